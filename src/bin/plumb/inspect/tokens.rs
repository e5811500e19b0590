//! `plumb inspect tokens`: a caption's tokens under every encoder, or what becomes of all captions.

use std::path::PathBuf;

use plumb::inspect::captions::Captions;
use plumb::inspect::{self, CaptionCut, CutCaption, TokenReport, TruncationReport};
use plumb::shown::{self, counted};
use plumb::text::tokenizer::Lost;

use super::{open, percent};
use crate::CommandResult;
use crate::layout::columns;
use crate::ui::{Failure, Ui};

/// Show a caption's tokens under every encoder, or which captions are cut.
///
/// With --caption: ids, pieces and pads, where each encoder cuts, the words that are lost, and what its vocabulary has no
/// token for. Without: a report over all captions that `plumb encode` would encode for the Experiment, those of its data
/// sets and its prompts: how many are cut by which encoder, by how much, the worst first. Tokens are made by the code that
/// encodes; the store is not asked. Cut captions leave the exit status at 0.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The Experiment file.
    experiment: PathBuf,
    /// The caption.
    #[arg(long, value_name = "TEXT", conflicts_with = "dataset")]
    caption: Option<String>,
    /// Look at the captions of the data sets and prompts: the default without --caption.
    #[arg(long)]
    dataset: bool,
    /// Print so many of the captions that are cut; --json has all.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        conflicts_with = "caption"
    )]
    worst: usize,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let (experiment, base) = open(&args.experiment, ui)?;
    if let Some(caption) = &args.caption {
        let reports = inspect::tokens(&base, caption).map_err(Failure::error)?;
        let text: Vec<String> = reports.iter().map(describe_tokens).collect();
        return ui.report(&reports, &text.join("\n\n"));
    }
    let has_data = !experiment.datasets().is_empty();
    if !has_data && (args.dataset || experiment.extra_captions().is_empty()) {
        return Err(Failure::usage(format!(
            "{}: it has no [[dataset]] whose captions could be looked at; give --caption, or name a folder of pictures under [[dataset]]",
            shown::path(&experiment.file)
        )));
    }
    let captions = Captions::of_experiment(&experiment, &base, ui).map_err(Failure::errors)?;
    let report = inspect::truncation(&base, &captions, ui).map_err(Failure::error)?;
    let name = base.recipe.name().to_string();
    ui.report(&report, &describe_truncation(&name, &report, args.worst))
}

fn describe_tokens(report: &TokenReport) -> String {
    let cut = match report.truncated {
        true => format!(", CUT: the whole caption has {}", report.total),
        false => String::new(),
    };
    let mut lines = vec![format!(
        "{}: {} and {}{cut}",
        report.slot,
        counted(report.count, "token"),
        counted(report.pads, "pad")
    )];
    if let Some(text) = &report.read_as {
        lines.push(format!("    read as `{}`", shown::text(text)));
    }
    let mut line = String::from("   ");
    for (token, id) in report.tokens.iter().zip(&report.ids).take(report.count) {
        // A token may be a line feed.
        let word = format!(" {}({id})", shown::text(token));
        // In characters: tokens may have letters of several bytes.
        if line.chars().count() + word.chars().count() > 100 {
            lines.push(std::mem::replace(&mut line, String::from("   ")));
        }
        line.push_str(&word);
    }
    lines.push(line);
    if let (true, Some(id), Some(token)) =
        (report.pads > 0, report.ids.last(), report.tokens.last())
    {
        let token = shown::text(token);
        lines.push(format!("    then {token}({id}) x {}", report.pads));
    }
    if report.specials_inside > 0 {
        lines.push(format!(
            "    {} of these are pad or end tokens that the caption's text writes or stands for",
            report.specials_inside
        ));
    }
    if !report.specials_written.is_empty() {
        let written: Vec<String> = (report.specials_written.iter())
            .map(|token| format!("`{}`", shown::text(token)))
            .collect();
        lines.push(format!(
            "    the caption's text writes {}, which is read as such a token and not as text",
            written.join(", ")
        ));
    }
    lines.extend(
        describe_lost(&report.lost)
            .iter()
            .map(|l| format!("    {l}")),
    );
    lines.join("\n")
}

/// What is lost of a caption, a line each.
fn describe_lost(lost: &Lost) -> Vec<String> {
    let mut lines: Vec<String> = (lost.dropped.iter())
        .map(|dropped| {
            format!(
                "lost by clean-up {}: `{}`",
                shown::word(&dropped.by),
                shown::text(&dropped.text)
            )
        })
        .collect();
    if let Some(cut) = &lost.cut {
        let inside = match cut.inside_word {
            true => " (cut inside its first word)",
            false => "",
        };
        lines.push(format!(
            "lost behind the cut: `{}`{inside}",
            shown::text(&cut.text)
        ));
    }
    if lost.unknown_tokens > 0 {
        let words: Vec<String> = (lost.unknown_words.iter())
            .map(|word| format!("`{}`", shown::text(word)))
            .collect();
        lines.push(format!(
            "the vocabulary has no token for something in: {} ({} unknown tokens)",
            words.join(", "),
            lost.unknown_tokens
        ));
    }
    lines
}

fn describe_truncation(recipe: &str, report: &TruncationReport, worst: usize) -> String {
    let all = report.captions as u64;
    let mut text = format!(
        "{} of {} and the prompts, under {recipe}\n\n",
        counted(report.captions, "different caption"),
        counted(report.pictures, "picture")
    );
    let mut rows = vec![
        [
            "encoder",
            "limit",
            "longest",
            "cut",
            "lost tokens",
            "shortened",
            "unknown",
        ]
        .map(str::to_owned),
    ];
    for encoder in &report.encoders {
        let share = |n: u64| match n {
            0 => "0".to_owned(),
            n => format!("{n} ({})", percent(n, all)),
        };
        rows.push([
            encoder.slot.clone(),
            encoder.limit.map_or("none".to_owned(), |n| n.to_string()),
            encoder.longest.to_string(),
            share(encoder.truncated),
            encoder.lost_tokens.to_string(),
            share(encoder.shortened),
            share(encoder.with_unknown),
        ]);
    }
    text += &columns(&rows);
    text += &legend(report);
    for encoder in report.encoders.iter().filter(|e| e.with_unknown > 0) {
        let words = encoder.unknown_words.iter().take(8);
        let words: Vec<String> = words
            .map(|(word, n)| format!("`{}` ({n})", shown::text(word)))
            .collect();
        text += &format!("{}: unknown in {}\n", encoder.slot, words.join(", "));
    }
    if report.cut.is_empty() {
        return text + "\nno caption loses text\n";
    }
    text += &format!(
        "\n{} of which text is lost, the worst first\n",
        counted(report.cut.len(), "caption")
    );
    for caption in report.cut.iter().take(worst) {
        text += &describe_cut(caption);
    }
    let more = report.cut.len().saturating_sub(worst);
    if more > 0 {
        text += &format!(
            "... and {more} more (--worst {} prints them)\n",
            report.cut.len()
        );
    }
    text
}

/// What the columns mean, of those that have something in them.
fn legend(report: &TruncationReport) -> String {
    let any = |f: fn(&inspect::EncoderCuts) -> u64| report.encoders.iter().any(|e| f(e) > 0);
    let mut lines = String::new();
    if any(|e| e.shortened) {
        lines += "shortened: the recipe's clean-up drops text before it is tokens\n";
    }
    if any(|e| e.with_unknown) {
        lines += "unknown: with characters that the vocabulary has no token for\n";
    }
    lines
}

fn describe_cut(caption: &CutCaption) -> String {
    let name = match caption.pictures.split_first() {
        None => "a prompt".to_owned(),
        Some((first, [])) => shown::path(first).to_string(),
        Some((first, others)) => format!("{} and {} more", shown::path(first), others.len()),
    };
    let mut text = format!("\n{name}\n");
    // Encoders that lose the same are told together.
    let mut groups: Vec<(Vec<&CaptionCut>, Vec<String>)> = Vec::new();
    for cut in &caption.by {
        let lost = Lost {
            unknown_tokens: 0,
            ..cut.lost.clone()
        };
        let lines = describe_lost(&lost);
        match groups.iter_mut().find(|(_, known)| *known == lines) {
            Some((cuts, _)) => cuts.push(cut),
            None => groups.push((vec![cut], lines)),
        }
    }
    for (cuts, lines) in groups {
        let slots: Vec<String> = (cuts.iter())
            .map(|cut| match cut.total - cut.count {
                0 => cut.slot.clone(),
                lost => format!("{} {} of {} tokens lost", cut.slot, lost, cut.total),
            })
            .collect();
        text += &format!("  {}\n", slots.join(", "));
        for line in lines {
            text += &format!("    {line}\n");
        }
    }
    text
}
