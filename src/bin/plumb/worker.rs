//! `plumb worker`: captions from an Arrow stream, for engines that spread work over machines.

use std::io::{BufReader, BufWriter, IsTerminal as _, stdin, stdout};
use std::path::PathBuf;

use plumb::encode::EncodeOptions;
use plumb::monitor::Monitor as _;
use plumb::shown::{self, counted};
use plumb::worker::{self, Error};

use crate::CommandResult;
use crate::encode;
use crate::signals::{self, Awaited};
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

/// Encode captions that come as an Arrow IPC stream on standard input, for Ray, Daft, Spark or a program of your own.
///
/// The column `caption` is encoded by the Experiment's recipe. To standard output go the same rows in the same order, with two more columns:
/// `error`, why a caption could not be encoded, and `entries`, what each text encoder made of it: slot, spec, entry (fingerprints),
/// token_count, truncated, and parts with dtype, shape, digest, mean, std, min, max, rms and data. A batch is read when the one before is
/// written. Captions with an error make the exit status 3. The captions in the Experiment itself are not looked at.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file, for its model, recipe and store.
    experiment: PathBuf,
    /// Put the tensors into the Experiment's store, from which they are not sent: rows then have no `data`, and are written when their
    /// entries are durable. No run lists them: `plumb encode` for the same captions, at the end, keeps them from `plumb store gc`.
    #[arg(long)]
    store: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    if stdin().is_terminal() || stdout().is_terminal() {
        let why = "standard input and output are Arrow IPC streams, found a terminal: start it from a program, as `python -m plumb.ray` does";
        return Err(Failure::usage(why));
    }
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let options = EncodeOptions {
        stop: signals::asked,
        ..world::encode_options(&args.device.open(ui)?, &args.wait)
    };
    signals::heed("ending after this batch", ui)?;
    let streams = (
        BufReader::new(Awaited(stdin().lock())),
        BufWriter::new(stdout().lock()),
    );
    let mut memo = world::digest_memo();
    let report = worker::run(&experiment, args.store, &options, &mut memo, streams, ui);
    let report = report.map_err(|error| match (&error, signals::found()) {
        // It broke off where a signal came.
        (Error::Input(_), Some(signal)) => Failure::stopped(signal),
        _ => failure(error),
    })?;
    if report.failed > 0 {
        ui.problem(&format!(
            "{} could not be encoded: the column `error` says why",
            shown::part_of(report.failed, report.rows, "caption")
        ));
    }
    let text = format!(
        "{}; {} encoded, {} there already",
        counted(report.rows, "caption"),
        counted(report.encoded, "entry"),
        report.present
    );
    ui.note_report(&report, &text)?;
    signals::found().map_or(Ok(()), |signal| Err(Failure::stopped(signal)))
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Encode(error) => encode::failure(error),
        other => Failure::error(other),
    }
}
