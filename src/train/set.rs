//! What a training trains from: pairs of a picture and a caption, checked to be in the store before anything
//! starts, and read from it as the steps ask.

use std::collections::BTreeSet;
use std::path::PathBuf;

use candle_core::Tensor;
use serde_json::Value;

use super::Error;
use crate::base::Base;
use crate::conditioning::{self, Outputs, read_outputs};
use crate::digest::{self, Digest, Fingerprint};
use crate::experiment::Experiment;
use crate::latents;
use crate::manifest::Manifest;
use crate::material;
use crate::monitor::Monitor;
use crate::payload;
use crate::preview;
use crate::recipe::Recipe;
use crate::recipe::latents::{Size, View};
use crate::recipe::spec::caption_entry;
use crate::refusal::{Missing, Refusal, nearest};
use crate::rng::Rng;
use crate::sample::LatentSpace;
use crate::store::{Store, StoreReader};

const EXAMPLES: usize = 3;

/// A picture with its caption.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The picture's file, for messages.
    pub picture: PathBuf,
    /// The caption, trigger word included.
    pub caption: String,
    /// The size the VAE saw.
    pub bucket: Size,
    /// The size of the whole picture.
    pub size: Size,
    /// Its crops, mirrored or not, each with its entry. Never empty.
    pub views: Vec<(View, Fingerprint)>,
}

/// What the store has of one view of a picture.
pub struct Moments {
    /// The posterior's mean, [channels, height, width].
    pub mean: Tensor,
    /// The logarithm of its variance, same shape.
    pub logvar: Tensor,
    /// What a denoiser that asks for it is told about sizes: [`ConditioningTensors::time_ids`] of one sample.
    ///
    /// [`ConditioningTensors::time_ids`]: crate::models::ConditioningTensors::time_ids
    pub time_ids: [f32; 6],
}

/// Reads tensors from the store for one base model.
pub struct PairSource<'a> {
    base: &'a Base,
    reader: StoreReader,
    space: LatentSpace,
    context_width: usize,
}

impl<'a> PairSource<'a> {
    /// Of the entries that `store` has now.
    ///
    /// # Errors
    /// If the store or the base model cannot be read.
    pub fn open(base: &'a Base, store: &Store) -> Result<Self, Error> {
        let mut specs: Vec<Fingerprint> = base.encoders.iter().map(|e| e.fingerprint).collect();
        specs.push(base.vae.fingerprint);
        Ok(Self {
            reader: store.reader_of(&specs)?,
            space: base.latent_space(),
            context_width: base.family.context_width(&base.components)?,
            base,
        })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.base.recipe
    }

    /// The model's latents.
    pub fn space(&self) -> &LatentSpace {
        &self.space
    }

    /// Channels of the denoiser's context.
    pub fn context_width(&self) -> usize {
        self.context_width
    }

    /// What the encoders made of a caption.
    ///
    /// # Errors
    /// If the store lacks it.
    pub fn outputs(&self, caption: &str) -> Result<Outputs, conditioning::Error> {
        read_outputs(self.base, &self.reader, caption)
    }

    /// One of a pair's views; `draw` chooses which.
    ///
    /// # Errors
    /// If the store lacks it.
    pub fn moments(&self, pair: &Pair, draw: &mut Rng) -> Result<Moments, Error> {
        match pair.views.len() {
            0 | 1 => self.only_moments(pair),
            count => self.view_moments(pair, pair.views[draw.below(count as u64) as usize]),
        }
    }

    /// As [`Self::moments`], of the first view.
    ///
    /// # Errors
    /// If the store lacks it.
    pub fn only_moments(&self, pair: &Pair) -> Result<Moments, Error> {
        let first = pair.views.first().ok_or_else(|| Error::Lost {
            picture: pair.picture.clone(),
        })?;
        self.view_moments(pair, *first)
    }

    fn view_moments(
        &self,
        pair: &Pair,
        (view, entry): (View, Fingerprint),
    ) -> Result<Moments, Error> {
        let lost = || Error::Lost {
            picture: pair.picture.clone(),
        };
        let entry = self
            .reader
            .get(&self.base.vae.fingerprint, &entry)?
            .ok_or_else(lost)?;
        let part = |name| entry.part(name).map(payload::to_tensor).ok_or_else(lost);
        Ok(Moments {
            mean: part("mean")??,
            logvar: part("logvar")??,
            time_ids: time_ids(pair.size, &view),
        })
    }
}

/// Height and width before the picture was resized, top and left of the crop in the resized picture, height and width
/// of the crop (SDXL: Podell et al., arXiv:2307.01952, section 2.2). In a mirrored view the crop lies where it does in
/// the mirrored picture.
fn time_ids(original: Size, view: &View) -> [f32; 6] {
    let left = match view.flip {
        true => view.resized.width - view.left - view.bucket.width,
        false => view.left,
    };
    let bucket = view.bucket;
    let told = [
        original.height,
        original.width,
        view.top,
        left,
        bucket.height,
        bucket.width,
    ];
    told.map(|px| px as f32)
}

/// All pairs of a training.
pub struct TrainingSet<'a> {
    pairs: Vec<Pair>,
    /// Indices into `pairs`, each as often as it comes in an epoch.
    samples: Vec<usize>,
    held_out: Vec<Pair>,
    source: PairSource<'a>,
    manifest: Digest,
    resolution_px: u32,
}

impl<'a> TrainingSet<'a> {
    /// Finds the pairs of an Experiment and checks that the store has all they need, previews included. The list
    /// of entries is written down as a run, so that garbage collection keeps them.
    ///
    /// # Errors
    /// [`Error::Refused`] where the store lacks something.
    pub fn open(
        experiment: &Experiment,
        base: &'a Base,
        store: &Store,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let items = material::open(experiment, base, monitor)?;
        let (mut pairs, mut samples, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
        for item in &items {
            let views = item
                .views
                .iter()
                .map(|&v| Ok((v, latents::entry(base.vae.fingerprint, item.digest, v)?)));
            let pair = Pair {
                picture: item.path.clone(),
                caption: item.caption.clone(),
                bucket: item.bucket,
                size: item.size,
                views: views.collect::<Result<_, digest::Error>>()?,
            };
            if item.held_out {
                held_out.push(pair);
            } else {
                samples.extend(std::iter::repeat_n(pairs.len(), item.repeats as usize));
                pairs.push(pair);
            }
        }
        let captions = wanted_captions(experiment, &pairs, &held_out);
        let views = pairs.iter().chain(&held_out).flat_map(|p| &p.views);
        let used = Manifest::new(
            base,
            captions.iter().map(String::as_str),
            views.map(|(_, entry)| *entry),
        )?;
        // Before looking whether they are there: then nothing can remove them in between.
        match used.write(store, "train", experiment, None) {
            Err(e) if e.is_read_only() => monitor.note(&format!(
                "{e}; training from it, but nothing keeps `plumb store gc` from removing what this run uses"
            )),
            written => written?,
        }
        let source = PairSource::open(base, store)?;
        for problem in source.reader.problems() {
            monitor.problem(&problem.to_string());
        }
        let all: Vec<&Pair> = pairs.iter().chain(&held_out).collect();
        refuse_if_missing(experiment, &source, store, &captions, &all)?;
        let resolution_px = experiment
            .raw
            .dataset
            .iter()
            .map(|d| d.resolution)
            .max()
            .unwrap_or(0);
        Ok(Self {
            pairs,
            samples,
            held_out,
            source,
            manifest: used.digest()?,
            resolution_px,
        })
    }

    /// The pair of sample `index`.
    pub fn pair(&self, index: usize) -> &Pair {
        &self.pairs[self.samples[index]]
    }

    /// The bucket of every sample.
    pub fn buckets(&self) -> Vec<Size> {
        (0..self.samples.len())
            .map(|s| self.pair(s).bucket)
            .collect()
    }

    /// Every pair that is trained from, with how often it comes in an epoch.
    pub fn repeated_pairs(&self) -> impl Iterator<Item = (&Pair, usize)> {
        let mut repeats = vec![0; self.pairs.len()];
        for &sample in &self.samples {
            repeats[sample] += 1;
        }
        self.pairs.iter().zip(repeats)
    }

    /// The pairs kept for validation.
    pub fn held_out(&self) -> &[Pair] {
        &self.held_out
    }

    /// Where tensors come from.
    pub fn source(&self) -> &PairSource<'a> {
        &self.source
    }

    /// The digest of the list of entries.
    pub fn manifest(&self) -> Digest {
        self.manifest
    }

    /// Pictures that are trained from.
    pub fn num_pictures(&self) -> usize {
        self.pairs.len()
    }

    /// Height and width of the latents with the most pixels, validation included.
    pub fn largest_latents(&self) -> (usize, usize) {
        let factor = self.source.space.factor;
        let buckets = self.pairs.iter().chain(&self.held_out).map(|p| p.bucket);
        let largest = buckets.max_by_key(|b| u64::from(b.width) * u64::from(b.height));
        largest.map_or((1, 1), |b| {
            (b.height as usize / factor, b.width as usize / factor)
        })
    }

    /// Rows of the longest context among some of the captions, the longest of them first.
    ///
    /// # Errors
    /// If an entry cannot be read.
    pub fn longest_context(&self) -> Result<usize, Error> {
        const LOOKED_AT: usize = 16;
        let mut captions: Vec<&str> = self.pairs.iter().map(|p| p.caption.as_str()).collect();
        captions.sort_by_key(|caption| std::cmp::Reverse(caption.len()));
        captions.dedup();
        let mut longest = 0;
        for caption in captions.into_iter().take(LOOKED_AT) {
            let outputs = self.source.outputs(caption)?;
            let recipe = self.source.recipe();
            let made = conditioning::assemble(recipe, &outputs, self.source.context_width)?;
            longest = longest.max(made.context.dim(0)?);
        }
        Ok(longest)
    }

    /// The largest resolution asked for.
    pub fn resolution_px(&self) -> u32 {
        self.resolution_px
    }
}

fn wanted_captions(experiment: &Experiment, pairs: &[Pair], held_out: &[Pair]) -> BTreeSet<String> {
    let mut captions: BTreeSet<String> = pairs
        .iter()
        .chain(held_out)
        .map(|p| p.caption.clone())
        .collect();
    captions.extend(extra_captions(experiment));
    captions
}

/// Captions that a run needs beside those of its pictures: prompts, and what stands for no caption.
pub fn extra_captions(experiment: &Experiment) -> Vec<String> {
    let raw = &experiment.raw;
    let mut captions = Vec::new();
    if raw.train.caption_dropout > 0.0 {
        captions.push(String::new());
    }
    if !raw.sample.prompts.is_empty() {
        captions.extend(raw.sample.prompts.iter().cloned());
        captions.push(preview::negative(experiment).to_owned());
    }
    captions
}

fn refuse_if_missing(
    experiment: &Experiment,
    source: &PairSource<'_>,
    store: &Store,
    captions: &BTreeSet<String>,
    pairs: &[&Pair],
) -> Result<(), Error> {
    let base = source.base;
    let mut missing = Vec::new();
    for encoder in &base.encoders {
        let spec = encoder.fingerprint;
        let mut lacking = Vec::new();
        for caption in captions {
            if !source
                .reader
                .contains(&spec, &caption_entry(&spec, caption)?)
            {
                lacking.push(format!(
                    "`{}`",
                    caption.chars().take(70).collect::<String>()
                ));
            }
        }
        let wanted = serde_json::to_value(&encoder.spec).unwrap_or_default();
        let recipe = base.recipe.encoder(&encoder.slot);
        let origin = |path: &str| {
            let field = recipe.and_then(|r| r.field_behind(path));
            field
                .and_then(|f| base.recipe.origin(&f))
                .or_else(|| Some("the checkpoint".to_owned()))
        };
        missing.extend(gather(
            store,
            &encoder.slot,
            spec,
            captions.len(),
            lacking,
            &wanted,
            origin,
        )?);
    }
    let spec = base.vae.fingerprint;
    let mut lacking = Vec::new();
    for pair in pairs {
        let gone = pair
            .views
            .iter()
            .filter(|(_, entry)| !source.reader.contains(&spec, entry))
            .count();
        lacking.extend(std::iter::repeat_n(
            pair.picture.display().to_string(),
            gone,
        ));
    }
    let all = pairs.iter().map(|p| p.views.len()).sum();
    let wanted = serde_json::to_value(&base.vae.spec).unwrap_or_default();
    missing.extend(gather(
        store,
        "latents",
        spec,
        all,
        lacking,
        &wanted,
        |_| Some("the checkpoint".to_owned()),
    )?);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(Box::new(Refusal {
        store: experiment.store_path().display().to_string(),
        missing,
        command: format!("plumb encode {}", experiment.file.display()),
    })))
}

fn gather(
    store: &Store,
    what: &str,
    spec: Fingerprint,
    wanted: usize,
    lacking: Vec<String>,
    json: &Value,
    origin: impl Fn(&str) -> Option<String>,
) -> Result<Option<Missing>, Error> {
    if lacking.is_empty() {
        return Ok(None);
    }
    // Where some are there, the recipe is right and captions are new; where none is, another recipe may be.
    let nearest = match lacking.len() == wanted {
        true => nearest(&store.reader()?, &spec, json, origin)?,
        false => None,
    };
    Ok(Some(Missing {
        what: what.to_owned(),
        spec,
        wanted: wanted as u64,
        missing: lacking.len() as u64,
        examples: lacking.into_iter().take(EXAMPLES).collect(),
        nearest,
    }))
}

#[cfg(test)]
mod tests {
    use super::{Size, View, time_ids};

    #[test]
    fn a_mirrored_view_is_told_where_its_crop_lies_in_the_mirrored_picture() {
        let size = |width, height| Size { width, height };
        let mut view = View {
            resized: size(160, 64),
            left: 10,
            top: 0,
            bucket: size(128, 64),
            flip: false,
        };
        let told = time_ids(size(1600, 640), &view);
        assert_eq!(told, [640.0, 1600.0, 0.0, 10.0, 64.0, 128.0]);
        view.flip = true;
        assert_eq!(time_ids(size(1600, 640), &view)[3], 22.0);
    }
}
