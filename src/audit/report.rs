//! What an audit found, for programs and for the words that a person reads.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::after::After;
use super::latents::LatentsFinding;
use super::measure::{Errors, Tolerance};
use super::observe::Shapes;
use super::pair::{Known, Paired, Pairing};
use super::search::Observation;
use crate::base_model::BaseModel;
use crate::foreign::cache::{Cache, Content, LeftOut, Trainer};
use crate::monitor::Monitor;
use crate::nn::weights::Rounding;
use crate::shown;
use crate::text::spec::Dtype;

/// What made a cache.
#[derive(Clone, Debug, Serialize)]
pub struct CacheReport {
    /// The cache.
    pub path: PathBuf,
    /// Whose programs wrote it.
    pub trainers: Vec<Trainer>,
    /// Entries of embeddings.
    pub texts: usize,
    /// Entries of latents.
    pub latents: usize,
    /// Entries that were looked at.
    pub looked_at: usize,
    /// Sequences of tokens that encoders were run on, for whatever recipe.
    pub encodings: usize,
    /// The base model's family and flavor.
    pub base: String,
    /// Whether every encoder's part is what the base model's own recipe gives, and no entry is of another caption.
    pub as_base: bool,
    /// Which texts were encoded again.
    pub reading: Reading,
    /// One for each encoder that the cache has something of.
    pub encoders: Vec<EncoderFinding>,
    /// What the latents are, where there are some.
    pub pictures: Option<LatentsFinding>,
    /// Encoders that the cache has nothing of.
    pub absent: Vec<String>,
    /// Entries that are of another caption than the Experiment's.
    pub stale: Vec<StaleEntry>,
    /// Entries of no picture or caption of the Experiment.
    pub strangers: Vec<PathBuf>,
    /// Pictures whose caption has no entry.
    pub without_entry: Vec<PathBuf>,
    /// Entries that were paired by a name that several pictures have, or by their row alone.
    pub uncertain: usize,
    /// Entries that could not be read, or do not fit the base model.
    pub unreadable: Vec<LeftOut>,
    /// Files that look like part of a cache and are not read.
    pub left_out: Vec<LeftOut>,
}

/// Which texts reproduce a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The captions as the Experiment has them.
    Experiment,
    /// The caption files as they are: without the Experiment's trigger word.
    CaptionFiles,
    /// The captions with a line's end behind them, as their files have it, which ai-toolkit keeps: to an encoder with a template around the
    /// caption it is a token more.
    LineEnds,
}

/// What made one encoder's part.
#[derive(Clone, Debug, Serialize)]
pub struct EncoderFinding {
    /// The encoder's slot in the recipe.
    pub slot: String,
    /// Whether a recipe reproduces it.
    pub verdict: Verdict,
    /// The variant that it is told against: the trainer's own, or the reference where there is none.
    pub like: String,
    /// In which fields it differs from that variant.
    pub changed: Vec<FieldSaid>,
    /// Other variants that give the same for the captions looked at.
    pub also: Vec<String>,
    /// Other values of the changed field that do.
    pub or: Vec<String>,
    /// What became of the encoder's sequence.
    pub after: After,
    /// What its weights were rounded to before it computed; `None`: they are the Experiment's as they are.
    pub weights: Option<Rounding>,
    /// The types of fewer than 16 bits that the Experiment's own weights are stored in: then a cache of the whole weights is reproduced by
    /// nothing here.
    pub stored_as: Vec<String>,
    /// The precision that the encoder computed in.
    pub compute: Dtype,
    /// How near counts as the same.
    pub tolerance: Tolerance,
    /// How near it is: the largest of the entries that are reproduced, or of all where most are not.
    pub errors: Errors,
    /// Entries that are reproduced.
    pub matching: usize,
    /// Entries that were compared.
    pub compared: usize,
    /// Recipes that were tried.
    pub tried: usize,
    /// Whether the base model's own recipe gives the same for the captions looked at.
    pub same_as_base: bool,
    /// In which fields it differs from the base model's own recipe.
    pub base: Vec<FieldSaid>,
}

/// Whether a recipe reproduces a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Most entries are what the recipe gives.
    Reproduced,
    /// None of those tried gives most entries; the nearest is told.
    NotReproduced,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldSaid {
    /// Its path below the encoder's slot: `tokens.max_tokens`.
    pub field: String,
    /// What the cache was made with.
    pub cached: Value,
    /// What the other has.
    pub expected: Value,
    /// Whether it makes a difference for the captions looked at; `None` where that was not tried.
    pub matters: Option<bool>,
}

/// An entry that is not of the caption that its name says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StaleEntry {
    /// Its file.
    pub path: PathBuf,
    /// The Experiment's caption.
    pub caption: String,
    /// What it was made of, where that is known: the caption in its file, or another of the Experiment's captions that gives it.
    pub made_of: Option<String>,
    /// The encoders whose part is not the caption's.
    pub encoders: Vec<String>,
    /// How far it is from the caption.
    pub errors: Option<Errors>,
}

impl CacheReport {
    pub(super) fn new(path: &Path, cache: &Cache, base: &BaseModel) -> Self {
        let mut trainers: Vec<Trainer> = cache.files.iter().map(|f| f.trainer).collect();
        trainers.sort();
        trainers.dedup();
        let count = |content| cache.files.iter().filter(|f| f.content == content).count();
        let name = base.recipe.name();
        Self {
            path: path.to_owned(),
            trainers,
            texts: count(Content::Text),
            latents: count(Content::Latents),
            looked_at: 0,
            encodings: 0,
            base: format!("{} {}", name.family, name.flavor),
            as_base: false,
            reading: Reading::Experiment,
            encoders: Vec::new(),
            pictures: None,
            absent: Vec::new(),
            stale: Vec::new(),
            strangers: Vec::new(),
            without_entry: Vec::new(),
            uncertain: 0,
            unreadable: Vec::new(),
            left_out: cache.left_out.clone(),
        }
    }

    /// Notes which entries and captions belong together.
    pub(super) fn pairing(&mut self, pairing: &Pairing<'_>, latents: &Pairing<'_>, known: &Known) {
        let strangers = pairing.strangers.iter().chain(&latents.strangers);
        self.strangers = strangers.map(|f| f.path.clone()).collect();
        let picture = |n: &usize| known.captions[*n].picture.clone();
        self.without_entry = pairing.without_entry.iter().filter_map(picture).collect();
        self.uncertain = pairing.uncertain + latents.uncertain;
    }

    /// Reads a sample of the entries and takes them apart; what cannot be read is noted and left out.
    pub(super) fn read<'a>(
        &mut self,
        sample: &[Paired<'a>],
        shapes: &Shapes,
        monitor: &dyn Monitor,
    ) -> Vec<Observation<'a>> {
        let mut observed = Vec::new();
        for paired in sample {
            let seen = paired.file.read().map_err(|e| match e {
                crate::foreign::cache::Error::Unreadable { why, .. } => why,
                other => other.to_string(),
            });
            let split = seen.and_then(|entry| {
                if let [(tensor, count), ..] = entry.not_finite().as_slice() {
                    let name = shown::text(tensor);
                    return Err(format!(
                        "tensor `{name}` has {count} numbers that are infinite or not a number"
                    ));
                }
                Ok((shapes.split(&entry)?, entry.caption))
            });
            match split {
                Ok((seen, stored)) => {
                    // What the file says it was made of is what can be encoded again.
                    let is_stale = stored.as_ref().is_some_and(|s| s != paired.text);
                    if let (true, Some(made_of)) = (is_stale, &stored) {
                        self.stale.push(StaleEntry {
                            path: paired.file.path.clone(),
                            caption: paired.text.to_owned(),
                            made_of: Some(made_of.clone()),
                            encoders: Vec::new(),
                            errors: None,
                        });
                    }
                    observed.push(Observation {
                        paired: paired.clone(),
                        text: stored.unwrap_or_else(|| paired.text.to_owned()),
                        seen,
                    });
                }
                Err(why) => {
                    let path = paired.file.path.clone();
                    monitor.problem(&format!("{}: {why}", shown::path(&path)));
                    self.unreadable.push(LeftOut { path, why });
                }
            }
        }
        self.looked_at = observed.len();
        let has = |slot: &str| observed.iter().any(|o| o.seen.contains_key(slot));
        let absent = shapes.slots().filter(|slot| !has(slot));
        self.absent = absent.map(str::to_owned).collect();
        observed
    }

    /// Whether no encoder's part is reproduced.
    pub(super) fn is_unexplained(&self) -> bool {
        let is_reproduced = |e: &EncoderFinding| e.verdict == Verdict::Reproduced;
        !self.encoders.iter().any(is_reproduced)
    }

    /// Says whether all is as the base model expects.
    pub(super) fn conclude(&mut self) {
        self.as_base = self.encoders.iter().all(|e| e.same_as_base)
            && self.stale.is_empty()
            && self.unreadable.is_empty()
            && (self.pictures.as_ref()).is_none_or(|p| p.others.is_empty() && !p.is_misplaced())
            && self.reading == Reading::Experiment;
    }
}
