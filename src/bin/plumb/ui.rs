//! What a person sees: results on standard output, progress, notes and problems on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plumb::monitor::Monitor;
use serde::Serialize;

/// Why a command ended early, and with which exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// An error: exit status 1.
    pub(crate) fn error(error: impl std::fmt::Display) -> Self {
        Self {
            status: 1,
            message: error.to_string(),
        }
    }

    /// Wrong usage or a wrong Experiment file: exit status 2.
    pub(crate) fn usage(error: impl std::fmt::Display) -> Self {
        Self {
            status: 2,
            message: error.to_string(),
        }
    }

    /// A refusal, because the store does not hold what is needed: exit status 4.
    pub(crate) fn refused(reason: impl std::fmt::Display) -> Self {
        Self {
            status: 4,
            message: reason.to_string(),
        }
    }
}

/// The terminal, or what stands in for it. It is the library's [`Monitor`].
pub(crate) struct Ui {
    json: bool,
    quiet: bool,
    bar: Mutex<Option<ProgressBar>>,
    problems: AtomicU64,
}

impl Ui {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            bar: Mutex::new(None),
            problems: AtomicU64::new(0),
        }
    }

    /// Prints a report: `value` as JSON under `--json`, else `text`.
    pub(crate) fn report(&self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(value).map_err(Failure::error)?;
            self.print(&json)
        } else {
            self.print(text.trim_end())
        }
    }

    /// Prints a line of result. A closed pipe (`plumb ... | head`) is a normal end.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        match writeln!(std::io::stdout().lock(), "{text}") {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::error(e)),
            _ => Ok(()),
        }
    }

    /// 0, or 3 when problems were reported.
    pub(crate) fn exit_code(&self) -> ExitCode {
        self.clear();
        ExitCode::from(if self.problems.load(Ordering::Relaxed) == 0 {
            0
        } else {
            3
        })
    }

    /// Says why the command ended, and gives its exit status.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        self.clear();
        let word = if failure.status == 4 {
            "refused"
        } else {
            "error"
        };
        self.complain(&format!("{word}: {}", failure.message));
        ExitCode::from(failure.status)
    }

    fn clear(&self) {
        if let Some(bar) = self.slot().take() {
            bar.finish_and_clear();
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        self.bar
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn complain(&self, line: &str) {
        let write = || {
            // Where standard error is closed, there is nobody left to tell.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        };
        match &*self.slot() {
            // Otherwise the bar's next drawing would overwrite the line.
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Monitor for Ui {
    fn start(&self, stage: &str, total: Option<u64>) {
        self.clear();
        // In a file, a bar would be thousands of lines of control characters.
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let template = match total {
            Some(_) => "{prefix} {wide_bar:.cyan} {pos}/{len} {per_sec}, {eta} left {msg}",
            None => "{prefix} {spinner} {pos} {per_sec} {msg}",
        };
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
            .with_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
            .with_prefix(stage.to_owned());
        // So that a long unit of work does not look like a hang.
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.slot() = Some(bar);
    }

    fn advance(&self, units: u64) {
        if let Some(bar) = &*self.slot() {
            bar.inc(units);
        }
    }

    fn status(&self, text: &str) {
        if let Some(bar) = &*self.slot() {
            bar.set_message(text.to_owned());
        }
    }

    fn finish(&self) {
        self.clear();
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.complain(text);
        }
    }

    fn problem(&self, text: &str) {
        self.problems.fetch_add(1, Ordering::Relaxed);
        self.complain(&format!("problem: {text}"));
    }
}
