//! What a person sees: results on standard output, progress, notes and problems on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plumb::monitor::{Monitor, Signal};
use plumb::shown;
use serde::Serialize;

/// Why a command ended early, and with which exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    /// What a person may see: escaped, without a backtrace.
    message: String,
}

impl Failure {
    /// An error: exit status 1.
    pub(crate) fn error(error: impl std::fmt::Display) -> Self {
        Self::one_line(1, &error)
    }

    /// Several errors, each on a line of its own: exit status 1.
    pub(crate) fn errors(errors: impl std::fmt::Display) -> Self {
        Self {
            status: 1,
            message: shown::lines(&errors.to_string()),
        }
    }

    /// Wrong usage or a wrong Experiment file: exit status 2.
    pub(crate) fn usage(error: impl std::fmt::Display) -> Self {
        Self::one_line(2, &error)
    }

    fn one_line(status: u8, error: &impl std::fmt::Display) -> Self {
        Self {
            status,
            message: shown::line(without_backtrace(&error.to_string())),
        }
    }

    /// An error that another process tells: exit status 1.
    pub(crate) fn told() -> Self {
        Self {
            status: 1,
            message: String::new(),
        }
    }

    /// No error: the work was asked to end, and ended well.
    pub(crate) fn stopped(signal: Signal) -> Self {
        Self {
            status: signal.status(),
            message: String::new(),
        }
    }

    /// The same, which came of a signal.
    pub(crate) fn by(mut self, signal: Signal) -> Self {
        self.status = signal.status();
        self
    }

    /// The same, by which of several processes says it.
    pub(crate) fn of_rank(mut self, rank: usize) -> Self {
        self.message = format!("rank {rank}: {}", self.message);
        self
    }

    /// A refusal, because the store does not hold what is needed: exit status 4.
    pub(crate) fn refused(reason: impl std::fmt::Display) -> Self {
        Self {
            status: 4,
            message: shown::lines(&reason.to_string()),
        }
    }
}

/// An error as it is without RUST_BACKTRACE: candle puts a backtrace behind its errors where that is set, which is for who debugs a
/// panic.
fn without_backtrace(message: &str) -> &str {
    let begins = message.match_indices('\n').find(|(at, _)| {
        let frame = message[at + 1..].trim_start();
        frame.starts_with("0: ") && message[at + 1..].starts_with("   ")
    });
    begins.map_or(message, |(at, _)| &message[..at])
}

/// The bar that is shown, if one is.
type Bar = Mutex<Option<ProgressBar>>;

/// The terminal, or what stands in for it. It is the library's [`Monitor`].
pub(crate) struct Ui {
    json: bool,
    quiet: bool,
    bar: Arc<Bar>,
    problems: AtomicU64,
    /// Before each line; empty but where several processes share the terminal.
    prefix: String,
}

impl Ui {
    /// For a process that is not the first of several: problems, with its number, and nothing else.
    pub(crate) fn of_rank(rank: usize) -> Self {
        Self {
            prefix: format!("rank {rank}: "),
            ..Self::new(false, true)
        }
    }

    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            bar: Arc::default(),
            problems: AtomicU64::new(0),
            prefix: String::new(),
        }
    }

    /// Prints a report: `value` as JSON under `--json`, else `text`.
    pub(crate) fn report(&self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(value).map_err(Failure::error)?;
            self.print(&json)
        } else {
            self.print(&shown::lines(text.trim_end()))
        }
    }

    /// Notes a report where standard output has other things: `value` as JSON under `--json`, else `text`.
    pub(crate) fn note_report(&self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        match self.json {
            true => self.note(&serde_json::to_string(value).map_err(Failure::error)?),
            false => self.note(text),
        }
        Ok(())
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
        if !failure.message.is_empty() {
            self.complain(&format!("{word}: {}", failure.message));
        }
        ExitCode::from(failure.status)
    }

    fn clear(&self) {
        if let Some(bar) = self.slot().take() {
            bar.finish_and_clear();
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        slot(&self.bar)
    }

    fn complain(&self, line: &str) {
        complain(&self.bar, line);
    }

    /// What notes a line from another thread.
    pub(crate) fn teller(&self) -> impl Fn(&str) + Send + 'static + use<> {
        let (bar, quiet) = (self.bar.clone(), self.quiet);
        move |line| {
            if !quiet {
                complain(&bar, line);
            }
        }
    }
}

fn slot(bar: &Bar) -> MutexGuard<'_, Option<ProgressBar>> {
    bar.lock().unwrap_or_else(PoisonError::into_inner)
}

fn complain(bar: &Bar, line: &str) {
    let write = || {
        // Where standard error is closed, there is nobody left to tell.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    };
    match &*slot(bar) {
        // Otherwise the bar's next drawing would overwrite the line.
        Some(bar) => bar.suspend(write),
        None => write(),
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
            .with_prefix(shown::text(stage).to_string());
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
            bar.set_message(shown::text(text).to_string());
        }
    }

    fn finish(&self) {
        self.clear();
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.complain(&shown::lines(text));
        }
    }

    fn problem(&self, text: &str) {
        self.problems.fetch_add(1, Ordering::Relaxed);
        let text = shown::line(without_backtrace(text));
        self.complain(&format!("{}problem: {text}", self.prefix));
    }
}
