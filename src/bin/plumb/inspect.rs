//! `plumb inspect`: what exactly a model receives, and what a LoRA was trained with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plumb::base_model::BaseModel;
use plumb::convert::provenance::{Provenance, StartedFrom};
use plumb::experiment::Experiment;
use plumb::inspect::{self, LoraReport, TokenReport};
use plumb::monitor::Monitor as _;
use plumb::recipe::Diff;
use plumb::shown;
use plumb::store::Store;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, ComputeDevice, WaitArgs};

/// Lines of an Experiment that are printed: a file may hold any text in its place.
const MAX_LINES: usize = 500;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show a caption's tokens under every encoder, and where it is cut.
    Tokens {
        /// The Experiment file.
        experiment: PathBuf,
        /// The caption.
        #[arg(long, value_name = "TEXT")]
        caption: String,
    },
    /// Write the tensors that the denoiser receives for a caption.
    ///
    /// The file (safetensors) has `context` and `pooled`, each encoder's raw `SLOT.hidden` and `SLOT.pooled`, and
    /// `SLOT.token_ids`. The caption is encoded first if the store lacks it.
    Conditioning {
        /// The Experiment file.
        experiment: PathBuf,
        /// The caption.
        #[arg(long, value_name = "TEXT")]
        caption: String,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write a picture's latents: `mean` and `logvar`, unscaled, and the crop and bucket used.
    ///
    /// The picture is cropped as the Experiment's first data set says, and encoded first if the store lacks it.
    Latents {
        /// The Experiment file.
        experiment: PathBuf,
        /// The picture.
        #[arg(long, value_name = "FILE")]
        picture: PathBuf,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show what a LoRA was trained with.
    Lora {
        /// The LoRA, a file or a folder, in the naming of any program that `plumb import lora` reads.
        file: PathBuf,
        /// The family it is for, where the file does not tell.
        #[arg(long, value_name = "NAME")]
        family: Option<String>,
    },
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    match &args.command {
        Command::Tokens {
            experiment,
            caption,
        } => tokens(experiment, caption, ui),
        Command::Conditioning {
            experiment,
            caption,
            out,
        } => {
            let (experiment, base) = open(experiment, ui)?;
            let store = open_store(&experiment)?;
            let options = world::encode_options(&ComputeDevice::cpu(), &WaitArgs::default());
            let shapes = inspect::conditioning(&base, &store, caption, &options, out, ui)
                .map_err(Failure::error)?;
            ui.report(&shapes, &format!("{}\n{}", table(&shapes), out.display()))
        }
        Command::Latents {
            experiment,
            picture,
            out,
        } => {
            let (experiment, base) = open(experiment, ui)?;
            let store = open_store(&experiment)?;
            let report = inspect::latents(&experiment, &base, &store, picture, out, ui)
                .map_err(Failure::error)?;
            let (size, view) = (report.original_size, report.view);
            let text = format!(
                "{} x {} px, resized to {} x {}, cropped at ({}, {}) to {} x {}\n{}\n{}",
                size.width,
                size.height,
                view.resized.width,
                view.resized.height,
                view.left,
                view.top,
                view.bucket.width,
                view.bucket.height,
                table(&report.tensors),
                out.display()
            );
            ui.report(&report, &text)
        }
        Command::Lora { file, family } => show_lora(file, family.as_deref(), ui),
    }
}

fn open(experiment: &Path, ui: &Ui) -> Result<(Experiment, BaseModel), Failure> {
    let experiment = world::open_experiment(experiment, ui)?;
    let base =
        BaseModel::open(&experiment, &mut world::digest_memo()).map_err(world::base_failure)?;
    Ok((experiment, base))
}

fn open_store(experiment: &Experiment) -> Result<Store, Failure> {
    let path = experiment.store_path().map_err(Failure::usage)?;
    let store = Store::open_or_create(&path).map_err(Failure::error)?;
    Ok(store.waiting(WaitArgs::default().limit()))
}

fn table(shapes: &BTreeMap<String, Vec<usize>>) -> String {
    let width = shapes.keys().map(String::len).max().unwrap_or(0);
    let lines: Vec<String> = shapes
        .iter()
        .map(|(name, shape)| format!("{name:width$}  {shape:?}"))
        .collect();
    lines.join("\n")
}

fn tokens(experiment: &Path, caption: &str, ui: &Ui) -> CommandResult {
    let (_, base) = open(experiment, ui)?;
    let reports = inspect::tokens(&base, caption).map_err(Failure::error)?;
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

fn show_lora(path: &Path, family: Option<&str>, ui: &Ui) -> CommandResult {
    let report = inspect::lora(path, family).map_err(Failure::error)?;
    let origin = shown::path(path).to_string();
    for problem in &report.problems {
        ui.problem(&format!("{origin}: {problem}"));
    }
    for note in &report.notes {
        ui.note(&format!("{origin}: {note}"));
    }
    ui.report(&report, &describe_lora(&origin, &report))
}

fn describe_start(from: &StartedFrom) -> String {
    let by = match &from.made {
        Some(made) => format!(
            "trained by plumb for {} steps on weights {}, recipe ({})",
            made.step,
            made.base.short(),
            made.recipe_fingerprint.short()
        ),
        None => {
            let said = from
                .said
                .get("ss_output_name")
                .or(from.said.get("modelspec.title"));
            let said = said.map_or("", String::as_str);
            format!("of another program, `{}`", shown::text(said))
        }
    };
    format!(
        "started from      {}, in the naming of {}, {by}",
        from.source.short(),
        shown::text(&from.format)
    )
}

fn describe_lora(origin: &str, report: &LoraReport) -> String {
    let ranks: Vec<String> = report.ranks.iter().map(usize::to_string).collect();
    let mut lines = vec![format!(
        "{origin}: {} in the naming of {}, {} modules, rank {}, {} parameters in {}",
        report.family,
        report.format,
        report.modules,
        ranks.join(", "),
        report.parameters,
        report.dtype
    )];
    if report.text_encoder_tensors > 0 {
        lines.push(format!(
            "and {} tensors of text encoders, which plumb does not read",
            report.text_encoder_tensors
        ));
    }
    if let Some(converted) = &report.converted {
        lines.push(format!(
            "converted by      {}, from the naming of {}, file {}",
            converted.tool,
            converted.from,
            converted.source.short()
        ));
    }
    let Some(made) = &report.provenance else {
        lines.push("not made by plumb: what it was trained with is not recorded".to_owned());
        lines.extend(
            report
                .metadata
                .iter()
                .map(|(k, v)| format!("  {}: {}", shown::text(k), shown::text(v))),
        );
        return lines.join("\n");
    };
    lines.extend(describe_making(made, report.from_reference.as_ref()));
    lines.push("\nExperiment:".to_owned());
    let experiment = made.experiment.lines();
    lines.extend(experiment.take(MAX_LINES).map(|l| format!("  {l}")));
    let more = made.experiment.lines().count().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.push(format!("  ... ({more} more lines, which --json has)"));
    }
    lines.join("\n")
}

/// What a LoRA of ours says of its making. `from_reference`: in what its recipe differs from the reference.
fn describe_making(made: &Provenance, from_reference: Option<&Diff>) -> Vec<String> {
    let variant = made
        .recipe
        .get("variant")
        .and_then(|v| v.as_str())
        .unwrap_or("?");
    let mut lines = vec![
        format!("made by           {}", shown::text(&made.tool)),
        format!(
            "base model        {}/{}, weights {}",
            made.family,
            made.flavor,
            made.base.short()
        ),
        format!(
            "recipe            {variant} ({})",
            made.recipe_fingerprint.short()
        ),
    ];
    for (slot, spec) in &made.encoders {
        lines.push(format!("  {slot:16}{}", spec.short()));
    }
    lines.extend([
        format!("latents           {}", made.latents.short()),
        format!("cache manifest    {}", made.manifest.short()),
        format!("seed, steps       {}, {}", made.seed, made.step),
        format!("computed          {}", made.computed),
    ]);
    for before in &made.history {
        let (until, steps) = (before.until, before.steps);
        let computed = &before.computed;
        lines.push(format!(
            "  until step {until} {computed}, as a training of {steps} steps"
        ));
    }
    lines.extend(made.from.iter().map(describe_start));
    match from_reference {
        Some(diff) if diff.is_empty() => {
            lines.push("conditioning as the reference has it".to_owned());
        }
        Some(diff) => lines.push(format!("conditioning against the reference:\n{diff}")),
        None => {}
    }
    lines
}
