//! `plumb inspect tokens`: a caption's tokens under every encoder.

use std::path::PathBuf;

use plumb::inspect::{self, TokenReport};
use plumb::shown;

use super::open;
use crate::CommandResult;
use crate::ui::{Failure, Ui};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// The caption.
    #[arg(long, value_name = "TEXT")]
    caption: String,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let (_, base) = open(&args.experiment, ui)?;
    let reports = inspect::tokens(&base, &args.caption).map_err(Failure::error)?;
    let text: Vec<String> = reports.iter().map(describe_tokens).collect();
    ui.report(&reports, &text.join("\n\n"))
}

fn describe_tokens(report: &TokenReport) -> String {
    let pads = report.ids.len() - report.count;
    let cut = match report.truncated {
        true => format!(", CUT: the whole caption has {}", report.total),
        false => String::new(),
    };
    let mut lines = vec![format!(
        "{}: {} tokens and {pads} pads{cut}",
        report.slot, report.count
    )];
    if let Some(text) = &report.read_as {
        lines.push(format!("    read as `{}`", shown::text(text)));
    }
    let mut line = String::from("   ");
    for (token, id) in report.tokens.iter().zip(&report.ids).take(report.count) {
        let word = format!(" {token}({id})");
        // In characters: tokens may have letters of several bytes.
        if line.chars().count() + word.chars().count() > 100 {
            lines.push(std::mem::replace(&mut line, String::from("   ")));
        }
        line.push_str(&word);
    }
    lines.push(line);
    if let (true, Some(id), Some(token)) = (pads > 0, report.ids.last(), report.tokens.last()) {
        lines.push(format!("    then {token}({id}) x {pads}"));
    }
    lines.join("\n")
}
