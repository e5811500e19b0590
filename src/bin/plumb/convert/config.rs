//! `plumb import config`: another trainer's config as an Experiment.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use plumb::foreign::config::{self, Error, Imported, Options, Trainer};
use plumb::monitor::Monitor as _;
use plumb::{shown, store};

use crate::CommandResult;
use crate::ui::{Failure, Ui};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The config: a script, TOML, YAML or JSON. Further files are those that it names (data sets, previews), where they are not
    /// found beside it.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Whose it is, where the file does not tell.
    #[arg(long, value_name = "TRAINER", value_parser = trainers())]
    from: Option<Trainer>,
    /// The base model, where the file does not tell: `sdxl`, `sd3/3.5-large`, ...
    #[arg(long, value_name = "FAMILY/FLAVOR")]
    model: Option<String>,
    /// Keep the trainer's way of making conditioning instead of the base model's own.
    #[arg(long)]
    keep_recipe: bool,
    /// The Experiment to write; without it, it goes to standard output and the table to standard error.
    #[arg(long, value_name = "EXP.toml")]
    out: Option<PathBuf>,
}

/// `--from`: a trainer by its name.
fn trainers() -> impl TypedValueParser<Value = Trainer> {
    PossibleValuesParser::new(Trainer::ALL.map(Trainer::name)).try_map(|name| {
        let named = Trainer::ALL
            .into_iter()
            .find(|trainer| trainer.name() == name);
        named.ok_or("no such trainer")
    })
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        let out = shown::path(out);
        return Err(Failure::usage(format!(
            "{out}: is there already; give another name with --out, or move it away"
        )));
    }
    let options = Options {
        from: args.from,
        model: args.model.clone(),
        keep_recipe: args.keep_recipe,
    };
    let imported = config::import(&args.files, &options).map_err(|e| match e {
        Error::UnknownTrainer { .. } | Error::NoModel { .. } => Failure::usage(e),
        e => Failure::error(e),
    })?;
    if let Some(out) = &args.out {
        store::write_file(out, &[imported.experiment.as_bytes()]).map_err(Failure::error)?;
    }
    say(&imported, args.out.as_deref(), ui)?;
    let lost = imported.lost();
    if lost > 0 {
        ui.problem(&format!(
            "not in the Experiment: {}, see LOST and unknown in the table",
            plumb::shown::counted(lost, "setting")
        ));
    }
    Ok(())
}

fn say(imported: &Imported, out: Option<&Path>, ui: &Ui) -> CommandResult {
    let table = imported.table();
    match out {
        Some(out) => {
            let next = format!(
                "{table}\nwritten: {}; look at its paths, then: plumb encode {}",
                shown::path(out),
                shown::path(out)
            );
            ui.report(imported, &next)
        }
        None => {
            ui.note(table.trim_end());
            ui.report(imported, &imported.experiment)
        }
    }
}
