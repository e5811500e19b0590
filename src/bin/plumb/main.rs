//! The command line: arguments in, library calls, words out. No numbers are made here.

mod allocator;
mod audit;
mod compare;
mod convert;
mod demo;
mod doctor;
mod encode;
mod inspect;
mod layout;
mod model;
mod own_kernels;
mod probe;
mod ranks;
mod recipe;
mod sample;
mod shell;
mod signals;
mod store;
mod train;
mod ui;
mod worker;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use plumb::shown;
use ui::{Failure, Ui};

/// Exact caption embeddings for diffusion LoRAs.
///
/// Exit status: 0 done; 1 error; 2 wrong usage or Experiment file; 3 done, with problems reported;
/// 4 refused, because the store does not hold what the Experiment needs; 130 and 143 ended by SIGINT (Ctrl-C) and SIGTERM: `train`, `encode`
/// and `worker` keep what they have done, and a second signal ends them at once.
#[derive(Parser)]
#[command(name = "plumb", version, about, long_about)]
struct Cli {
    /// Print results as JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    /// Show neither progress nor notes.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    /// Put what an Experiment needs into its store: captions and pictures, each once.
    Encode(encode::Args),
    Worker(worker::Args),
    Train(train::Args),
    Sample(sample::Args),
    Probe(probe::Args),
    Compare(compare::Args),
    Audit(audit::Args),
    /// Look inside: tokens, entries, differences, neighbours, stores, conditioning, latents, LoRAs.
    Inspect(inspect::Args),
    /// Tell what a checkpoint is and what it needs.
    Model(model::Args),
    /// Bring what other programs made into plumb.
    Import(convert::ImportArgs),
    /// Bring what plumb made into the form that other programs read.
    Export(convert::ExportArgs),
    /// List, show, compare and explain conditioning recipes.
    Recipe(recipe::Args),
    /// Check, repair, clean and measure a store.
    Store(store::Args),
    Doctor(doctor::Args),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return tell(&told),
    };
    let ui = Ui::new(cli.json, cli.quiet);
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args, &ui),
        Command::Encode(args) => encode::run(&args, &ui),
        Command::Worker(args) => worker::run(&args, &ui),
        Command::Train(args) => train::run(&args, &ui),
        Command::Sample(args) => sample::run(&args, &ui),
        Command::Probe(args) => probe::run(&args, &ui),
        Command::Compare(args) => compare::run(&args, &ui),
        Command::Audit(args) => audit::run(&args, &ui),
        Command::Inspect(args) => inspect::run(&args, &ui),
        Command::Model(args) => model::run(&args, &ui),
        Command::Import(args) => convert::import(&args, &ui),
        Command::Export(args) => convert::export(&args, &ui),
        Command::Recipe(args) => recipe::run(&args, &ui),
        Command::Store(args) => store::run(&args, &ui),
        Command::Doctor(args) => doctor::run(&args, &ui),
        Command::Completions(args) => shell::completions(&args, &ui),
        Command::Man(args) => shell::man(&args, &ui),
    };
    match result {
        Ok(()) => ui.exit_code(),
        Err(failure) => ui.fail(&failure),
    }
}

/// Help, or what is wrong with the arguments, which may be names of files that a shell put there.
fn tell(told: &clap::Error) -> ExitCode {
    let text = told.render().to_string();
    if shown::lines(&text) == text {
        // With colors.
        let _ = told.print();
    } else {
        eprintln!("{}", shown::lines(text.trim_end()));
    }
    ExitCode::from(if told.use_stderr() { 2 } else { 0 })
}

/// A command has reported its result itself; what is left to say is why it failed.
type CommandResult = Result<(), Failure>;
