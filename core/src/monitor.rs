//! Progress and problems, without printing: the library reports here, the binary decides what a person sees.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// The time now, in seconds since 1970. The library does not look at the clock itself.
pub type Clock = fn() -> f64;

/// Asks whether work is to end before it is done, and by what signal. Who asks keeps what it has, and ends soon where there is one.
pub type Stop = fn() -> Option<Signal>;

/// Work that goes on until it is done.
pub fn never() -> Option<Signal> {
    None
}

/// How the system, or a person, asks a program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// Ctrl-C.
    #[serde(rename = "SIGINT")]
    Interrupt,
    /// What `kill` sends, and a scheduler before a job's time is up.
    #[serde(rename = "SIGTERM")]
    Terminate,
}

impl Signal {
    /// The exit status of a program that it ended: 128 and its number.
    pub fn status(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT (Ctrl-C)",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// What a long operation tells as it goes. Implementations must not block for long.
pub trait Monitor: Send + Sync {
    /// A stage begins: `total` units of work are expected, if known.
    fn start(&self, stage: &str, total: Option<u64>);
    /// `units` more of the current stage's work are done; may come from several threads.
    fn advance(&self, units: u64);
    /// A short text about the current state (a loss, a file name), replacing the one before.
    fn status(&self, text: &str);
    /// The current stage is over, whether all of its work was done or not.
    fn finish(&self);
    /// A fact worth a line, once.
    fn note(&self, text: &str);
    /// A problem that did not end the work; the exit status will tell that there were some.
    fn problem(&self, text: &str);
}

/// A monitor that drops all it is told.
pub struct Silent;

impl Monitor for Silent {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn status(&self, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn problem(&self, _: &str) {}
}

/// A monitor that remembers notes and problems, for tests and for reports.
#[derive(Default)]
pub struct Recorder {
    notes: Mutex<Vec<String>>,
    problems: Mutex<Vec<String>>,
}

impl Recorder {
    /// The notes so far, in order.
    pub fn notes(&self) -> Vec<String> {
        lock(&self.notes).clone()
    }

    /// The problems so far, in order.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.problems).clone()
    }
}

fn lock(list: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    // A list of texts is whole even if a thread panicked while it held the lock, so poison is passed over.
    list.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Monitor for Recorder {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn status(&self, _: &str) {}
    fn finish(&self) {}
    fn note(&self, text: &str) {
        lock(&self.notes).push(text.to_owned());
    }
    fn problem(&self, text: &str) {
        lock(&self.problems).push(text.to_owned());
    }
}
