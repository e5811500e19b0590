//! A cache as one side of a comparison: what it has of each caption under each encoder, and the recipe that made it as far as an audit
//! can tell.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::Serialize;

use super::after::After;
use super::observe::{Seen, Shapes};
use super::pair::{self, Known};
use super::report::{CacheReport, Reading, Verdict};
use super::{AuditOptions, Error, embeddings};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::cache::EncoderOutput;
use crate::encode::tokenize;
use crate::experiment::Experiment;
use crate::foreign::cache::{self as foreign, Cache, CacheFile, Content};
use crate::monitor::Monitor;
use crate::nn::weights::{DigestMemo, Rounding};
use crate::shown;

/// What made one encoder's part of a cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Made {
    /// Whether a recipe reproduces it; else what follows is the nearest one's.
    pub verdict: Verdict,
    /// The variant that it is told against: the trainer's own, or the reference where there is none.
    pub like: String,
    /// What became of the encoder's sequence.
    pub after: After,
    /// What the encoder's weights were rounded to before it computed.
    pub weights: Option<Rounding>,
    /// Whether the Experiment's own recipe gives the same for the captions looked at.
    pub as_experiment: bool,
    /// Entries that are reproduced, of those that were looked at.
    pub matching: usize,
    /// Entries that were looked at.
    pub compared: usize,
    /// Recipes that were tried.
    pub tried: usize,
}

/// One encoder of a cache.
pub struct CacheEncoder {
    /// What made its part.
    pub made: Made,
    /// The recipe's encoder, or that of the nearest; the Experiment's own where it gives the same.
    pub part: TextEncoderPart,
}

/// The embeddings of a cache.
pub struct CacheSide {
    /// By the Experiment's slots, those that the cache has.
    pub encoders: BTreeMap<String, CacheEncoder>,
    /// What a person should know, a line each.
    pub problems: Vec<String>,
    shapes: Shapes,
    files: BTreeMap<String, CacheFile>,
}

/// Opens a cache and finds out what made it.
///
/// # Errors
/// As [`super::cache`].
pub fn side(
    experiment: &Experiment,
    base: &BaseModel,
    path: &Path,
    options: &AuditOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<CacheSide, Error> {
    let cache = Cache::open(path)?;
    let items = super::items(experiment, base, monitor)?;
    let known = Known::new(&items, experiment.extra_captions());
    let of_text = cache.files.iter().filter(|f| f.content == Content::Text);
    let texts = pair::pair(&cache, of_text.collect(), &known);
    let mut report = CacheReport::new(path, &cache, base);
    let nothing = |why: &str| Error::Nothing {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    if texts.paired.is_empty() {
        return Err(nothing(
            "none of its entries is of a caption of the Experiment; name the folders that it was made from as [[dataset]]",
        ));
    }
    let found = embeddings(
        &mut report,
        experiment,
        base,
        (&texts, &known),
        options,
        memo,
        monitor,
    )?;
    let Some((shapes, winners)) = found.filter(|_| !report.encoders.is_empty()) else {
        return Err(nothing(
            "none of the entries that were looked at could be read, see above",
        ));
    };
    let problems = reading_problem(path, report.reading).into_iter().collect();
    let mut encoders = BTreeMap::new();
    for (finding, winner) in report.encoders.into_iter().zip(winners) {
        let made = Made {
            verdict: finding.verdict,
            like: finding.like,
            after: finding.after,
            weights: finding.weights,
            as_experiment: winner.as_experiment,
            matching: finding.matching,
            compared: finding.compared,
            tried: finding.tried,
        };
        // What these captions do not tell from the Experiment's own is taken for it.
        let own = base.encoders.iter().find(|part| part.slot == winner.slot);
        let part = match own.filter(|_| made.as_experiment) {
            Some(own) => own.clone(),
            None => winner.part,
        };
        encoders.insert(finding.slot, CacheEncoder { made, part });
    }
    let mut files = BTreeMap::new();
    for paired in &texts.paired {
        let text = paired.text.to_owned();
        // Of pictures with one caption, the first serves.
        files.entry(text).or_insert_with(|| paired.file.clone());
    }
    Ok(CacheSide {
        encoders,
        problems,
        shapes,
        files,
    })
}

/// What a person should know of the captions that a cache was made of.
fn reading_problem(path: &Path, reading: Reading) -> Option<String> {
    let of = match reading {
        Reading::Experiment => return None,
        Reading::CaptionFiles => {
            "the caption files as they are, without the Experiment's trigger word"
        }
        Reading::LineEnds => "captions with the line's end that their files have",
    };
    Some(format!("{}: it was made of {of}", shown::path(path)))
}

/// What a cache has of a caption under one encoder.
pub enum InCache {
    /// The numbers, with the ids of their rows where these are known.
    Output(EncoderOutput, Option<Vec<u32>>),
    /// No entry, or none that can be compared: then why.
    Missing(Option<String>),
}

impl CacheSide {
    /// What the cache has of a caption under an encoder.
    ///
    /// # Errors
    /// If the caption cannot be tokenized.
    pub fn output(&self, slot: &str, caption: &str) -> Result<InCache, Error> {
        let (Some(encoder), Some(file)) = (self.encoders.get(slot), self.files.get(caption)) else {
            return Ok(InCache::Missing(None));
        };
        let bad = |why: String| {
            let path = shown::path(&file.path);
            Ok(InCache::Missing(Some(format!("{path}: {why}"))))
        };
        let entry = match file.read() {
            Ok(entry) => entry,
            Err(foreign::Error::Unreadable { why, .. }) => return bad(why),
            Err(other) => return Err(other.into()),
        };
        if let Some(stored) = entry.caption.as_ref().filter(|stored| *stored != caption) {
            let stored = shown::text(stored);
            return bad(format!("it is stale: it was made of `{stored}`"));
        }
        match self.shapes.split(&entry) {
            Ok(mut seen) => match seen.remove(slot) {
                Some(seen) => encoder.output(seen, caption),
                None => Ok(InCache::Missing(None)),
            },
            Err(why) => bad(why),
        }
    }
}

impl CacheEncoder {
    fn output(&self, seen: Seen, caption: &str) -> Result<InCache, Error> {
        let tokens = tokenize(&self.part, caption)?;
        let rows = seen.hidden.as_ref().map(Tensor::dims2).transpose()?;
        let rows = rows.map_or(0, |(rows, _)| rows);
        // Where nothing reproduces the cache, or it has rows that no id is of, the ids would be a guess.
        let is_sure = self.made.verdict == Verdict::Reproduced && rows <= tokens.ids.len();
        let known = || tokens.ids.get(..rows).map(<[u32]>::to_vec);
        let ids = seen.ids.or_else(|| known().filter(|_| is_sure));
        let output = EncoderOutput {
            hidden: seen.hidden,
            pooled: seen.pooled,
            token_count: tokens.count.min(rows),
        };
        Ok(InCache::Output(output, ids))
    }
}
