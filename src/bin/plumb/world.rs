//! What commands ask of the machine they run on.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use plumb::base;
use plumb::embed::EmbedOptions;
use plumb::experiment::Experiment;
use plumb::nn::weights::DigestMemo;

use crate::ui::Failure;

/// Opens an Experiment file; what is wrong with it is the user's to mend, with exit status 2.
pub(crate) fn open_experiment(path: &std::path::Path) -> Result<Experiment, Failure> {
    Experiment::open(path).map_err(Failure::usage)
}

/// A recipe or deviation that cannot be is the Experiment's fault, with exit status 2; the rest is the model's.
pub(crate) fn base_failure(error: base::Error) -> Failure {
    match error {
        base::Error::Recipe(_) | base::Error::Missing { .. } => Failure::usage(error),
        other => Failure::error(other),
    }
}

/// Digests of weights that were read before, so that a 10 GB file is read once. Not part of any store.
pub(crate) fn digest_memo() -> DigestMemo {
    DigestMemo::open(&cache_folder().join("weights.json"))
}

fn cache_folder() -> PathBuf {
    let named = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    named("XDG_CACHE_HOME")
        .or_else(|| named("LOCALAPPDATA"))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("plumb")
}

/// Encoders that fill most of the memory are read layer by layer.
pub(crate) fn embed_options() -> EmbedOptions {
    EmbedOptions {
        resident_limit_bytes: available_memory_bytes() / 10 * 7,
    }
}

fn available_memory_bytes() -> u64 {
    const UNKNOWN: u64 = 8 << 30;
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return UNKNOWN;
    };
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(UNKNOWN, |k| k << 10)
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> f64 {
    now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}
