//! What made a cache of another trainer: [`cache`] encodes a sample of its captions again under every recipe that could have, and says
//! which does reproduce it, encoder by encoder.
//!
//! 1. `pair`: which entry is whose, as each trainer names them
//! 2. `observe`: an entry's tensors, taken apart into what each encoder gave
//! 3. `search`, `entries`: recipes that are tried, the variants first and then their neighbours in one field, until one reproduces the cache
//!    exactly; `finding`: what is said of the nearest
//! 4. `after`: what trainers do to an encoder's output before they store it
//! 5. `stale`: entries that the others' recipe does not reproduce, and which caption they are of
//!
//! Encoders are searched one by one: of three encoders with ten recipes each, thirty are tried and not a thousand. What a recipe gives
//! is computed here and put into no store; captions of equal token ids under equal rules are computed once. Of a recipe that cannot have
//! made the entries, by the number of rows, by rows that are zeros or by the first captions, the others are not computed.

mod after;
mod clips;
mod entries;
mod finding;
mod fit;
mod latents;
mod lora;
mod measure;
mod observe;
mod pair;
mod place;
mod report;
mod run;
mod search;
mod shape;
mod side;
mod stale;
mod stated;

use std::path::{Path, PathBuf};

pub use after::After;
pub use latents::{LatentsFinding, Moment, Other, OtherSize, Scaling};
pub use lora::{LoraAudit, LoraField, lora};
pub use measure::{Errors, Tolerance};
pub use place::{Nearest, Placed, Placement};
pub use report::{CacheReport, EncoderFinding, FieldSaid, Reading, StaleEntry, Verdict};
pub use side::{CacheEncoder, CacheSide, InCache, Made, side};
pub use stated::{OtherCrop, StatedCrops};

use crate::base_model::{self, BaseModel};
use crate::convert;
use crate::dataset;
use crate::encode::{self, EncodeOptions};
use crate::experiment::Experiment;
use crate::foreign::cache::{self as foreign, Cache, Content};
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::recipe;
use crate::shown;
use crate::store;

/// Why a cache could not be audited.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache.
    #[error(transparent)]
    Cache(#[from] foreign::Error),
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// A recipe that was to be tried.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// The pictures and captions.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// A caption could not be encoded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// The LoRA.
    #[error(transparent)]
    Lora(#[from] convert::Error),
    /// The shipped table of LoRAs' metadata is wrong, which the tests rule out.
    #[error("lora_metadata.toml: {0}")]
    Data(String),
    /// There is nothing to compare.
    #[error("{}: {why}", shown::path(path))]
    Nothing {
        /// The cache.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A tensor's numbers could not be used.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// How an audit is made.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// Entries that are looked at, spread over the cache.
    pub sample: usize,
    /// Where encoders compute.
    pub encode: EncodeOptions,
}

/// Finds out what made the embeddings in `path`, a folder or a file, and which of them are of captions that have changed since; and
/// whether its latents are of the Experiment's pictures.
///
/// # Errors
/// If the cache, the base model or the pictures cannot be read, or nothing of the cache belongs to a caption or picture.
pub fn cache(
    experiment: &Experiment,
    path: &Path,
    options: &AuditOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<CacheReport, Error> {
    if store::is_store(path) {
        return Err(Error::Nothing {
            path: path.to_owned(),
            why: "it is a store of plumb's own: `plumb inspect store` tells what made its entries, `plumb store check` whether they are sound"
                .to_owned(),
        });
    }
    let cache = Cache::open(path)?;
    monitor.start("reading the base model", None);
    let base = BaseModel::open(experiment, memo)?;
    monitor.finish();
    let items = items(experiment, &base, monitor)?;
    let known = pair::Known::new(&items, experiment.extra_captions());
    let of = |content| {
        cache
            .files
            .iter()
            .filter(move |f| f.content == content)
            .collect()
    };
    let texts = pair::pair(&cache, of(Content::Text), &known);
    let latents = pair::pair(&cache, of(Content::Latents), &known);
    let mut report = CacheReport::new(path, &cache, &base);
    if texts.paired.is_empty() && latents.paired.is_empty() {
        return Err(Error::Nothing {
            path: path.to_owned(),
            why: format!(
                "it has {}, of no picture or caption of the Experiment; name the folders that it was made from as [[dataset]]",
                shown::counted(cache.files.len(), "entry")
            ),
        });
    }
    report.pairing(&texts, &latents, &known);
    embeddings(
        &mut report,
        experiment,
        &base,
        (&texts, &known),
        options,
        memo,
        monitor,
    )?;
    let sample = pair::spread(&latents.paired, options.sample);
    report.pictures = latents::look(
        &base,
        &items,
        &known,
        &sample,
        &options.encode,
        &mut report.unreadable,
        monitor,
    )?;
    if let Some(found) = &mut report.pictures {
        let folders = experiment.datasets().into_iter().map(|set| set.path);
        let unreadable = &mut report.unreadable;
        stated::look(found, &known, &sample, folders, unreadable, monitor);
    }
    report.conclude();
    if report.encoders.is_empty() && report.pictures.is_none() {
        return Err(Error::Nothing {
            path: path.to_owned(),
            why: "none of the entries that were looked at could be read, see above".to_owned(),
        });
    }
    Ok(report)
}

/// The Experiment's pictures; none where it has no data set.
fn items(
    experiment: &Experiment,
    base: &BaseModel,
    monitor: &dyn Monitor,
) -> Result<Vec<dataset::Item>, Error> {
    let multiple = base.latent_geometry().side_multiple();
    Ok(match experiment.datasets().is_empty() {
        true => Vec::new(),
        false => dataset::open_usable(experiment, multiple, monitor)?.0,
    })
}

/// What made the embeddings: of each encoder in the report's order.
fn embeddings(
    report: &mut CacheReport,
    experiment: &Experiment,
    base: &BaseModel,
    (pairing, known): (&pair::Pairing<'_>, &pair::Known),
    options: &AuditOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<Option<(observe::Shapes, Vec<search::Winner>)>, Error> {
    let sample = pair::spread(&pairing.paired, options.sample);
    if sample.is_empty() {
        return Ok(None);
    }
    let mut runner = run::Runner::new(&options.encode, experiment);
    let shapes = observe::Shapes::of(base, &mut runner)?;
    let mut observed = report.read(&sample, &shapes, monitor);
    if observed.is_empty() {
        return Ok(None);
    }
    let trainer = report.trainers.first().map_or("", |t| t.name());
    let mut search = search::Search::new(base, &mut runner, memo, trainer, monitor)?;
    search.slots(&shapes, &observed, report)?;
    let keeps_ends = report.trainers.contains(&foreign::Trainer::AiToolkit);
    for (reading, raw) in pair::other_readings(&observed, known, keeps_ends) {
        if !report.is_unexplained() {
            break;
        }
        let found = (
            std::mem::take(&mut report.encoders),
            std::mem::take(&mut search.winners),
        );
        search.slots(&shapes, &raw, report)?;
        if report.is_unexplained() {
            (report.encoders, search.winners) = found;
        } else {
            report.reading = reading;
            observed = raw;
        }
    }
    stale::look(report, &observed, known, &mut search)?;
    report.encodings = search.runner.encoded;
    let winners = search.winners;
    Ok(Some((shapes, winners)))
}
