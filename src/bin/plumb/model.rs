//! `plumb model`: what a checkpoint is.

use std::fmt::Write as _;
use std::path::PathBuf;

use plumb::inspect::model::{self, Asked, Kind, Memory, NetworkMemory, Report, StoredNetwork};
use plumb::monitor::Monitor as _;
use plumb::shown::counted;
use plumb::train::plan::Machine;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world;

/// A file of another architecture has hundreds; the first ones tell it.
const MAX_PROBLEMS: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Tell what a file or folder is, whether all of it loads, the recipe it needs, and the memory it takes.
    ///
    /// Takes a folder as diffusers writes it, a single file (safetensors or GGUF), or a text encoder or VAE alone.
    /// Reads headers only, so a file of any size takes moments. Exit status 3 when something is wrong with it.
    Check {
        /// The file or folder.
        path: PathBuf,
        /// Count the memory of a training for what this Experiment asks for: its largest resolution, most frames, batch and rank.
        #[arg(long = "for", value_name = "EXPERIMENT")]
        experiment: Option<PathBuf>,
    },
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let Command::Check { path, experiment } = &args.command;
    let path = world::local(path, ui)?;
    let asked = match experiment {
        None => None,
        Some(file) => {
            let experiment = world::open_experiment(file, ui)?;
            Some(Asked::of(&experiment).map_err(world::base_failure)?)
        }
    };
    let report = model::check(&path, asked).map_err(Failure::error)?;
    ui.report(&report, &describe(&report))?;
    for problem in report.problems.iter().take(MAX_PROBLEMS) {
        ui.problem(problem);
    }
    let more = report.problems.len().saturating_sub(MAX_PROBLEMS);
    if more > 0 {
        ui.problem(&format!("{more} more, which --json lists"));
    }
    Ok(())
}

fn describe(report: &Report) -> String {
    let mut text = format!("{}: {}\n", report.path.display(), report.summary);
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label:10}{value}");
    };
    match report.flavors.as_slice() {
        [] => {}
        [one] => line("flavor", one),
        several => {
            let names = several.join(" or ");
            line(
                "flavor",
                &format!("{names}: only the values of the weights differ, so you say which"),
            );
        }
    }
    for (n, recipe) in report.recipes.iter().enumerate() {
        let label = if n == 0 { "recipe" } else { "" };
        line(label, &format!("plumb recipe show {recipe}"));
    }
    text.push_str(&parts(&report.parts));
    if !report.ignored.is_empty() {
        let _ = writeln!(
            text,
            "not read  {} of no part, such as {}",
            counted(report.ignored.len(), "tensor"),
            report.ignored[0]
        );
    }
    for (n, said) in report.says.iter().enumerate() {
        let label = if n == 0 { "it says" } else { "" };
        let _ = writeln!(text, "{label:10}{said}");
    }
    text.push_str(&lines_to_write(report));
    if let Some(memory) = &report.memory {
        text.push_str(&self::memory(memory));
    }
    for note in &report.notes {
        let _ = writeln!(text, "note      {note}");
    }
    let verdict = match report.problems.len() {
        // Of a LoRA nothing was checked that such a sentence could be about.
        _ if report.kind == Kind::Lora => String::new(),
        0 => "every tensor is there and has its place".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    text + &verdict
}

fn parts(parts: &[StoredNetwork]) -> String {
    let mut text = String::new();
    for (n, part) in parts.iter().enumerate() {
        let types: Vec<String> = part
            .types
            .iter()
            .map(|(name, count)| format!("{count} x {name}"))
            .collect();
        let place = match part.prefix.as_str() {
            "" => part.path.display().to_string(),
            prefix => format!("{prefix}*"),
        };
        let _ = writeln!(
            text,
            "{:10}{:9} {:>8} parameters, {:>9}, tensors {}; {place}",
            if n == 0 { "parts" } else { "" },
            part.name,
            count(part.parameters),
            bytes(part.bytes),
            types.join(", "),
        );
    }
    text
}

/// What may stand there instead of the first flavor.
fn others(flavors: &[&'static str]) -> String {
    match flavors.split_first() {
        Some((_, others @ [_, ..])) => {
            let quoted: Vec<String> = others.iter().map(|name| format!("{name:?}")).collect();
            format!("  # or {}", quoted.join(", "))
        }
        _ => String::new(),
    }
}

/// The Experiment's lines for it, as far as they are known.
fn lines_to_write(report: &Report) -> String {
    let mut lines = Vec::new();
    if let (Some(family), [flavor, ..]) = (report.family, report.flavors.as_slice()) {
        lines.extend([
            "[model]".to_owned(),
            format!("family = {family:?}"),
            format!("flavor = {flavor:?}{}", others(&report.flavors)),
            format!("path = {:?}", report.path.display().to_string()),
        ]);
        lines.extend(report.lines.iter().cloned());
    }
    if !report.needs.is_empty() {
        lines.push("[model.files]".to_owned());
    }
    for need in &report.needs {
        let optional = if need.optional { ", optional" } else { "" };
        lines.push(format!("{} = \"...\"  # {}{optional}", need.key, need.what));
    }
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        let label = if n == 0 { "write" } else { "" };
        let _ = writeln!(text, "{label:10}{line}");
    }
    text
}

fn memory(memory: &Memory) -> String {
    let each = |uses: &[NetworkMemory]| {
        let each = uses
            .iter()
            .map(|u| format!("{} {} in {}", u.what, bytes(u.bytes), u.dtype));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    if !memory.encode.is_empty() {
        let (most, each) = (bytes(memory.encode_bytes), each(&memory.encode));
        let _ = writeln!(text, "encode    {most} of weights at a time ({each})");
        let _ = writeln!(text, "          not counted: {}", memory.left_out);
    }
    for (n, train) in memory.train.iter().enumerate() {
        let label = if n == 0 { "train" } else { "" };
        let machine = match train.machine {
            Machine::Cpu => "a processor",
            Machine::Gpu => "a GPU",
        };
        let _ = writeln!(
            text,
            "{label:10}{} on {machine} in {} at {} px, or {} with gradient checkpointing",
            bytes(train.stored.total()),
            train.dtype,
            train.pixels,
            bytes(train.checkpointed.total()),
        );
        let _ = writeln!(text, "          ({})", train.checkpointed);
    }
    if let Some(train) = memory.train.first() {
        let at_a_time = match (train.samples, train.pixels.frames) {
            (1, 1) => "one picture".to_owned(),
            (1, _) => "one clip".to_owned(),
            (samples, 1) => format!("{samples} pictures"),
            (samples, _) => format!("{samples} clips"),
        };
        let _ = writeln!(
            text,
            "          for {at_a_time} at a time and adapters of rank {} on the default targets{}",
            train.rank,
            match memory.of_videos && train.pixels.frames == 1 {
                true => "; of clips, --for EXPERIMENT counts the frames",
                false => "",
            }
        );
    }
    text
}

/// A count in the unit that people use for it.
fn count(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

fn bytes(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}
