//! `plumb inspect lora`: what a LoRA was trained with.

use std::path::PathBuf;

use plumb::convert::provenance::{Provenance, StartedFrom};
use plumb::inspect::{self, LoraReport};
use plumb::monitor::Monitor as _;
use plumb::recipe::Diff;
use plumb::shown;

use crate::CommandResult;
use crate::ui::{Failure, Ui};

/// Lines of an Experiment that are printed: a file may hold any text in its place.
const MAX_LINES: usize = 500;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The LoRA, a file or a folder, in the naming of any program that `plumb import lora` reads.
    file: PathBuf,
    /// The family it is for, where the file does not tell.
    #[arg(long, value_name = "NAME")]
    family: Option<String>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let report = inspect::lora(&args.file, args.family.as_deref()).map_err(Failure::error)?;
    let origin = shown::path(&args.file).to_string();
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
            "trained by plumb for {} on weights {}, recipe ({})",
            shown::counted(made.step, "step"),
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
        "{origin}: {} in the naming of {}, {}, rank {}, {} parameters in {}",
        report.family,
        report.format,
        shown::counted(report.modules, "module"),
        ranks.join(", "),
        report.parameters,
        report.dtype
    )];
    if report.text_encoder_tensors > 0 {
        lines.push(format!(
            "and {}, which plumb does not read",
            shown::counted(report.text_encoder_tensors, "tensor of text encoders")
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
    if let Some(beneath) = made.training_adapter {
        lines.push(format!(
            "trained above     {}, a training adapter that is left out here",
            beneath.short()
        ));
    }
    match from_reference {
        Some(diff) if diff.is_empty() => {
            lines.push("conditioning as the reference has it".to_owned());
        }
        Some(diff) => lines.push(format!("conditioning against the reference:\n{diff}")),
        None => {}
    }
    lines
}
