//! `plumb encode`: captions and pictures into the store.

use std::collections::BTreeSet;
use std::path::PathBuf;

use plumb::dataset;
use plumb::encode::{self, CaptionStats, EncodeOptions, EncodeReport, Error, Part, Selection};
use plumb::shown::{are, counted, things};

use crate::CommandResult;
use crate::signals;
use crate::store;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Experiment file.
    pub(crate) experiment: PathBuf,
    /// Encode the captions in this text file, one a line (an empty line is the empty caption), and nothing else. Of a `.jsonl` file, each
    /// line is an object with a `caption`, which may have line ends.
    #[arg(long, value_name = "FILE")]
    pub(crate) captions: Option<PathBuf>,
    /// Do part I of N (as `2/8`) of the work, for several processes or machines at one store.
    ///
    /// Entries are split by their fingerprints: evenly, and always alike. Parts may run at once, in any order, and again. When all
    /// are done, there is nothing left for `plumb encode` without this option, and `plumb train` finds everything.
    #[arg(long, value_name = "I/N", default_value_t = Part::WHOLE, hide_default_value = true)]
    part: Part,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let options = EncodeOptions {
        stop: signals::asked,
        ..world::encode_options(&args.device.open(ui)?, &args.wait)
    };
    signals::heed("ending after what is being encoded", ui)?;
    let selection = Selection {
        captions: args.captions.as_deref(),
        part: args.part,
    };
    let mut memo = world::digest_memo();
    let report = encode::run(&experiment, selection, &options, &mut memo, ui).map_err(failure)?;
    ui.report(&report, &describe(&report))?;
    report.stopped.map_or(Ok(()), |s| Err(Failure::stopped(s)))
}

/// The exit status that goes with an error.
pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Base(error) => world::base_failure(error),
        Error::Dataset(dataset::Error::Several(_)) => Failure::errors(error),
        other => Failure::error(other),
    }
}

pub(crate) fn describe(report: &EncodeReport) -> String {
    let mut lines = Vec::new();
    if let Some(part) = &report.part {
        let others = match part.all_there {
            true => "those of all parts are in the store",
            false => "the store lacks entries of other parts, or of pictures that cannot be used",
        };
        lines.push(format!("{part}; {others}"));
    }
    for stats in &report.captions {
        lines.push(format!(
            "{:8} {:6} {}: {} encoded, {} there already{}",
            stats.slot,
            stats.captions,
            things(stats.captions, "caption"),
            stats.encoded,
            stats.present,
            lost(stats)
        ));
    }
    if let Some(stats) = &report.pictures {
        // In a column with the captions above, where there are pictures alone.
        let views = match stats.of_clips {
            0 => format!("{:6} {}", stats.views, things(stats.views, "picture")),
            of_clips => dataset::pictures_and_windows(stats.views - of_clips, of_clips),
        };
        lines.push(format!(
            "{:8} {views}: {} encoded, {} there already",
            "vae", stats.encoded, stats.present
        ));
    }
    if let Some(references) = &report.references {
        let without = match references.without {
            0 => String::new(),
            n => format!(", {n} without one"),
        };
        lines.push(format!(
            "{:8} {:6} {} of a picture and its reference{without}; {}",
            "",
            references.pairs,
            things(references.pairs, "pair"),
            counted(references.different, "different reference")
        ));
    }
    if let Some(stats) = report.pictures.as_ref().filter(|stats| stats.failed > 0) {
        let failed = match (stats.of_clips, stats.failed) {
            (0, failed) => counted(failed, "picture"),
            (_, 1) => "1 picture or clip".to_owned(),
            (_, failed) => format!("{failed} pictures or clips"),
        };
        let it = if stats.failed == 1 { "it" } else { "them" };
        lines.push(format!(
            "{failed} could not be used, see above: repair {it}, or move {it} out of the folder with the caption; `plumb train` does not leave {it} out"
        ));
    }
    let specs: BTreeSet<&str> = report.captions.iter().map(|s| s.spec.as_str()).collect();
    lines.push(format!(
        "store {}, {}",
        report.store.display(),
        counted(specs.len(), "encoder spec")
    ));
    if let Some(pushed) = &report.pushed {
        lines.push(store::push_text(pushed));
    }
    if let Some(signal) = report.stopped {
        lines.push(format!(
            "ended by {signal}: what was encoded is in the store; run the same command again to go on"
        ));
    }
    lines.join("\n")
}

/// What captions lose on the way.
fn lost(stats: &CaptionStats) -> String {
    let mut lost = match stats.truncated {
        0 => String::new(),
        n => format!(
            "; {n} of them all {} cut (`plumb inspect tokens` shows where)",
            are(n)
        ),
    };
    if stats.shortened > 0 {
        lost += &format!(
            "; {} {} cut by the recipe's clean-up, before tokens are made",
            stats.shortened,
            are(stats.shortened)
        );
    }
    lost
}
