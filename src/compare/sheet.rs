//! Previews side by side: the base model, A, B, with the same prompts and the same start noise.

use std::path::{Path, PathBuf};

use super::Error;
use crate::base_model::BaseModel;
use crate::dataset::{self, Item, Preview};
use crate::experiment::Experiment;
use crate::lora::Bound;
use crate::models::Denoiser;
use crate::monitor::Monitor;
use crate::sample::networks::{Network, beside, stages};
use crate::sample::previews::{self, ClipRow, ClipSheet, KeptFrames};
use crate::shown;
use crate::store::{self, Store};

/// Captions that stand in where an Experiment has no prompts.
const CAPTIONS: usize = 4;

/// The name of the sheet's file, without what tells a picture from a clip.
const NAME: &str = "compare";

/// What previews are asked for: the Experiment's prompts, or captions of the first pictures.
pub(super) fn prompts(base: &BaseModel, pictures: &[Item]) -> Vec<String> {
    let own = &base.settings.sample.prompts;
    if !own.is_empty() {
        return own.clone();
    }
    let captions = pictures.iter().filter_map(|item| item.captions.first());
    captions.take(CAPTIONS).cloned().collect()
}

/// The references of these: the Experiment's own, or those of the pictures whose captions they are.
pub(super) fn references(
    experiment: &Experiment,
    base: &BaseModel,
    pictures: &[Item],
) -> Result<Vec<Preview>, Error> {
    let settings = &base.settings.sample;
    if !settings.prompts.is_empty() {
        let multiple = base.latent_geometry().side_multiple();
        return Ok(dataset::previews(experiment, settings, multiple)?);
    }
    let shown = pictures.iter().filter(|item| !item.captions.is_empty());
    let shown: Vec<&Item> = shown.take(CAPTIONS).collect();
    let of_item = |item: &&Item| {
        let mut reference = item.reference.clone()?;
        reference.views.truncate(1);
        let size = item.bucket();
        Some(Preview { reference, size })
    };
    let made: Vec<Preview> = shown.iter().filter_map(of_item).collect();
    // One for each, or none: some pictures with and some without cannot be told in one list.
    Ok(match made.len() == shown.len() {
        true => made,
        false => Vec::new(),
    })
}

/// The captions that sampling a base model's prompts reads.
pub(super) fn captions(base: &BaseModel) -> Vec<String> {
    let settings = &base.settings.sample;
    let mut captions = settings.prompts.clone();
    if !captions.is_empty() {
        captions.push(settings.negative_prompt.clone().unwrap_or_default());
    }
    captions
}

/// The file of the sheet in a folder.
pub(super) fn file(folder: &Path, end: &str) -> PathBuf {
    folder.join(format!("{NAME}.{end}"))
}

/// What all columns of a sheet share.
pub(super) struct Previews<'a> {
    pub(super) store: &'a Store,
    pub(super) references: &'a [Preview],
    pub(super) denoiser: &'a dyn Denoiser,
    pub(super) monitor: &'a dyn Monitor,
}

impl Previews<'_> {
    /// Samples a column for each base model with its adapters, and writes the sheet into `folder`.
    pub(super) fn write(
        &self,
        columns: [(&BaseModel, &Bound); 3],
        files: [&Path; 2],
        folder: &Path,
    ) -> Result<PathBuf, Error> {
        let settings = &columns[0].0.settings.sample;
        let work = columns.len() * settings.prompts.len() * settings.steps;
        self.monitor.start("sampling", Some(work as u64));
        let other = columns[0].0.other_expert()?;
        let given = previews::shown_references(self.references, &settings.prompts)?;
        let mut rows = ClipRow::beside(&settings.prompts, &given);
        for (base, adapters) in columns {
            let source = previews::open(base, self.store, self.references)?;
            let advance = || self.monitor.advance(1);
            let own = Network::Loaded(self.denoiser, adapters);
            let beside = other.as_ref().map(|other| beside(other, self.denoiser));
            let stages = stages(base, own, beside);
            let mut column: Vec<KeptFrames> = rows.iter().map(|_| KeptFrames::default()).collect();
            let mut take = |number: usize, frame| column[number].push(&frame);
            let on = (self.denoiser.device(), self.denoiser.kernels());
            let from = (base, &source);
            previews::pictures(from, self.references, &stages, on, &advance, &mut take)?;
            for (row, frames) in rows.iter_mut().zip(column) {
                row.columns.push(frames);
            }
        }
        self.monitor.finish();
        let [a, b] = files;
        let heads = ["reference", "base model", "A", "B"];
        let sheet = ClipSheet {
            title: &format!("A {}   B {}", shown::path(a), shown::path(b)),
            // Where there are no references, nothing stands before the base model's.
            heads: &heads[usize::from(given.is_empty())..],
            rows: &rows,
        };
        let (end, bytes) = sheet.file(settings.rate)?;
        let path = file(folder, end);
        store::write_file(&path, &[&bytes])?;
        Ok(path)
    }
}
