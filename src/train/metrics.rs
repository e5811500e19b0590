//! What a training records as it goes: `metrics.jsonl` (one JSON object a line) and TensorBoard events.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::events::EventWriter;
use crate::monitor::{Clock, Monitor};
use crate::{shown, store};

/// The file of metrics in a run's folder.
pub(super) const LINES: &str = "metrics.jsonl";
/// The folder of TensorBoard's events there.
pub(super) const TENSORBOARD: &str = "tensorboard";

/// How the names of event files begin.
pub(super) const EVENTS: &str = "events.out.tfevents.";

/// A line of `metrics.jsonl`, told apart by its field `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricsLine {
    /// Written after an optimizer step.
    Step {
        /// Optimizer steps done.
        step: u64,
        /// The mean weighted loss over the step's micro-batches.
        loss: f64,
        /// The learning rate that the step used.
        learning_rate: f64,
        /// The gradient's norm before clipping.
        gradient_norm: f64,
        /// Wall-clock seconds the step took, `waited` included.
        seconds: f64,
        /// Of these, seconds in which it waited for its micro-batches.
        #[serde(default)]
        waited: f64,
    },
    /// Written after a validation.
    Validation {
        /// Optimizer steps done.
        step: u64,
        /// The mean loss over all noise levels and held-out pairs.
        loss: f64,
        /// The noise levels: sigmas of a flow, thousandths of DDPM's steps.
        sigmas: Vec<f64>,
        /// The mean loss at each of `sigmas`.
        losses: Vec<f64>,
    },
}

impl MetricsLine {
    fn step(&self) -> u64 {
        match self {
            Self::Step { step, .. } | Self::Validation { step, .. } => *step,
        }
    }
}

/// The open files of `metrics.jsonl` and of TensorBoard's events.
pub struct Metrics {
    lines: File,
    events: EventWriter<File>,
    clock: Clock,
}

impl Metrics {
    /// Opens the metrics in `folder` for a run that goes on after `step`: lines of later steps, which will be done again, are
    /// dropped.
    ///
    /// # Errors
    /// If the files cannot be read or written.
    pub fn open(folder: &Path, step: u64, clock: Clock, monitor: &dyn Monitor) -> io::Result<Self> {
        let path = folder.join(LINES);
        let (kept, unreadable) = keep_until(&path, step)?;
        if unreadable > 0 && step > 0 {
            monitor.note(&format!(
                "{}: {unreadable} lines cannot be read and are left out; the training does not depend on them",
                shown::path(&path)
            ));
        }
        // Replaced in one rename: a kill leaves the old lines or the new ones, and what is appended begins on a line of its own.
        store::write_file(&path, &[kept.as_bytes()]).map_err(io::Error::other)?;
        let lines = OpenOptions::new().append(true).open(&path)?;
        let logs = folder.join(TENSORBOARD);
        std::fs::create_dir_all(&logs)?;
        // A file for each start. TensorBoard reads a folder's files in the order of their names, so the time has leading zeros, and
        // stands still where the clock went back.
        let time = (clock() as u64).max(latest(&logs));
        let name = format!("{EVENTS}{time:010}.plumb.{step}");
        let events = OpenOptions::new()
            .create(true)
            .append(true)
            .open(logs.join(name))?;
        Ok(Self {
            lines,
            events: EventWriter::create(events, clock())?,
            clock,
        })
    }

    /// Writes one line to both outputs.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn write(&mut self, line: &MetricsLine) -> io::Result<()> {
        let json = serde_json::to_string(line).map_err(io::Error::other)?;
        writeln!(self.lines, "{json}")?;
        let now = (self.clock)();
        let mut scalar =
            |step, tag: &str, value: f64| self.events.scalar(now, step, tag, value as f32);
        match line {
            MetricsLine::Step {
                step,
                loss,
                learning_rate,
                gradient_norm,
                seconds,
                waited,
            } => {
                scalar(*step, "train/loss", *loss)?;
                scalar(*step, "train/learning_rate", *learning_rate)?;
                scalar(*step, "train/gradient_norm", *gradient_norm)?;
                scalar(*step, "train/seconds", *seconds)?;
                scalar(*step, "train/waited", *waited)
            }
            MetricsLine::Validation {
                step,
                loss,
                sigmas,
                losses,
            } => {
                scalar(*step, "validation/loss", *loss)?;
                for (sigma, loss) in sigmas.iter().zip(losses) {
                    scalar(
                        *step,
                        &format!("validation/loss at sigma {sigma:.2}"),
                        *loss,
                    )?;
                }
                Ok(())
            }
        }
    }

    /// Shows a PNG picture in TensorBoard.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn picture(
        &mut self,
        step: u64,
        tag: &str,
        size: (u32, u32),
        png: &[u8],
    ) -> io::Result<()> {
        self.events.picture((self.clock)(), step, tag, size, png)
    }
}

/// The latest time in the names of event files.
fn latest(logs: &Path) -> u64 {
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let times = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (time, _) = name.strip_prefix(EVENTS)?.split_once('.')?;
        // Ten digits are three hundred years.
        time.parse().ok().filter(|time| *time < 10_000_000_000)
    });
    times.max().unwrap_or(0)
}

/// The whole lines of steps up to `step`, none for a run that begins; and how many others cannot be read, but for the last, which a
/// kill may have cut short.
fn keep_until(path: &Path, step: u64) -> io::Result<(String, usize)> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let (mut kept, mut unreadable) = (String::new(), 0);
    let mut lines = bytes.split(|b| *b == b'\n').peekable();
    while let Some(line) = lines.next() {
        let is_last = lines.peek().is_none();
        match (
            serde_json::from_slice::<MetricsLine>(line),
            std::str::from_utf8(line),
        ) {
            (Ok(known), Ok(text)) if known.step() <= step && step > 0 => {
                kept += text;
                kept.push('\n');
            }
            (Ok(_), _) => {}
            (Err(_), _) => unreadable += usize::from(!is_last && !line.is_empty()),
        }
    }
    Ok((kept, unreadable))
}

#[cfg(test)]
mod tests {
    use super::{Metrics, MetricsLine};
    use crate::monitor::Silent;

    #[test]
    fn a_resumed_run_continues_its_metrics_without_doubling_steps() {
        let folder = tempfile::tempdir().expect("a folder");
        let line = |step| MetricsLine::Step {
            step,
            loss: 0.5,
            learning_rate: 1e-4,
            gradient_norm: 1.0,
            seconds: 0.1,
            waited: 0.05,
        };
        let mut metrics = Metrics::open(folder.path(), 0, || 2.0, &Silent).expect("opened");
        for step in 1..=4 {
            metrics.write(&line(step)).expect("told");
        }
        let mut metrics = Metrics::open(folder.path(), 2, || 1.0, &Silent).expect("reopened");
        metrics.write(&line(3)).expect("told");
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).expect("readable");
        let steps: Vec<MetricsLine> = text
            .lines()
            .map(|l| serde_json::from_str(l).expect("a line"))
            .collect();
        assert_eq!(steps, [line(1), line(2), line(3)]);
        // The clock went back in between: the files' names still have the order of the starts.
        let logs = std::fs::read_dir(folder.path().join("tensorboard")).expect("a folder");
        let logs = logs.map(|e| e.expect("an entry").file_name());
        let mut logs: Vec<_> = logs.map(|n| n.to_string_lossy().into_owned()).collect();
        logs.sort();
        let name = |step| format!("events.out.tfevents.0000000002.plumb.{step}");
        assert_eq!(logs, [name(0), name(2)]);
    }
}
