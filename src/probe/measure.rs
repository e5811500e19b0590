//! Losses of the frozen base model: for each picture, under every recipe, with the same noise at the same timesteps.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};

use super::Error;
use super::choice::ComparedRecipes;
use super::report::LeftOut;
use super::stats::mean;
use crate::autograd::Tape;
use crate::base_model::BaseModel;
use crate::cache::{Conditioning, ModelCache};
use crate::dataset::{self, Item};
use crate::digest::Digest;
use crate::lora::Bound;
use crate::models::memory::{CallShape, context_tokens};
use crate::models::{self, Denoiser};
use crate::nn::loss::squared_error;
use crate::rng::{Rng, Stream};
use crate::store::Store;
use crate::train::inputs::{DrawOptions, Drawn, StillPicture, denoiser_batches};
use crate::train::largest_latents;

/// A picture, with its copies: several items only where the data set has the same picture more than once.
pub struct Subject(Vec<Item>);

impl Subject {
    /// The first of its files.
    ///
    /// # Panics
    /// Never: a subject is made of at least one item.
    pub fn first(&self) -> &Item {
        &self.0[0]
    }

    /// The first caption of those after this one among `all` that it has not itself; `at` is its place.
    pub fn stranger<'a>(&self, all: &'a [Self], at: usize) -> Option<&'a str> {
        let (before, from) = all.split_at(at.min(all.len()));
        let others = from.iter().skip(1).chain(before);
        let is_strange = |caption: &&str| self.captions().all(|own| own != *caption);
        others.flat_map(Self::captions).find(is_strange)
    }

    /// All captions of the picture.
    pub fn captions(&self) -> impl Iterator<Item = &str> {
        let captions = self.0.iter().flat_map(|item| &item.captions);
        captions.map(String::as_str)
    }
}

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// What noise and timesteps derive from, beside the picture.
    pub seed: u64,
    /// Draws a picture: one in each of as many equal parts of the schedule.
    pub count: u32,
    /// The most samples in one call of the denoiser.
    pub batch: usize,
}

/// The pictures whose latents the store has, of groups of equal ones.
///
/// # Errors
/// If the store cannot be read.
pub fn with_latents(
    base: &BaseModel,
    store: &Store,
    groups: Vec<Vec<Item>>,
) -> Result<Vec<Subject>, Error> {
    let pictures = dataset::viewed(groups.iter().flatten(), &[]);
    let reader = ModelCache::open_of(base, store, std::iter::empty(), &pictures)?.reader;
    let is_there = |item: &Item| reader.has_views(item);
    let mut there = Vec::new();
    for mut group in groups {
        group.retain(is_there);
        if !group.is_empty() {
            there.push(Subject(group));
        }
    }
    Ok(there)
}

/// The largest call of the denoiser, for a plan of its memory.
pub fn call(
    base: &BaseModel,
    compared: &ComparedRecipes,
    subjects: &[Subject],
    draws: Draws,
) -> CallShape {
    let recipes = compared.recipes.iter();
    let context = recipes
        .map(|recipe| context_tokens(&recipe.base.recipe))
        .max();
    let items = subjects.iter().flat_map(|subject| &subject.0);
    let (latents, reference) = largest_latents(items, &base.latent_geometry());
    CallShape {
        samples: draws.batch.max(1),
        latents,
        reference,
        context: context.unwrap_or(0),
    }
}

/// Takes out the recipes whose conditioning the denoiser cannot take, as one caption tells: too wide a context, or a pooled vector of
/// another size than the first recipe's.
///
/// # Errors
/// If an entry is missing or damaged.
pub fn leave_out_misfits(
    compared: &mut ComparedRecipes,
    store: &Store,
    subjects: &[Subject],
) -> Result<(), Error> {
    let caption = subjects.iter().flat_map(Subject::captions).next();
    let mut pooled = None;
    let mut misfits = Vec::new();
    for (at, cache) in caches(compared, store, subjects)?.iter().enumerate() {
        let outputs = cache.outputs(caption.unwrap_or_default())?;
        let why = match cache.assemble(&outputs) {
            Err(error) => error.to_string(),
            Ok(made) => {
                let size = made.pooled.elem_count();
                let expected = *pooled.get_or_insert(size);
                if size == expected {
                    continue;
                }
                format!("its pooled vector has {size} numbers, the denoiser takes {expected}")
            }
        };
        misfits.push((at, why));
    }
    // From the end, so that the places before stay.
    for (at, why) in misfits.into_iter().rev() {
        let recipe = compared.recipes.remove(at);
        let label = recipe.candidate.label();
        compared.left_out.push(LeftOut { label, why });
    }
    compared.check()
}

/// What the store has of some pictures and their captions, as each of the recipes sees it.
fn caches<'a>(
    compared: &'a ComparedRecipes,
    store: &Store,
    subjects: &[Subject],
) -> Result<Vec<ModelCache<'a>>, Error> {
    let bases = compared.recipes.iter().map(|recipe| &recipe.base);
    // And the empty caption, which one without captions has.
    let captions: BTreeSet<&str> = (subjects.iter().flat_map(Subject::captions))
        .chain([""])
        .collect();
    let pictures = dataset::viewed(subjects.iter().flat_map(|subject| &subject.0), &[]);
    let captions = captions.iter().copied();
    Ok(ModelCache::open_all(bases, store, captions, &pictures)?)
}

/// The losses of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// By recipe, then by draw, from the part of the schedule with the least noise on.
    pub losses: Vec<Vec<f64>>,
    /// By recipe, the first one under which the denoiser received exactly the same.
    pub alike: Vec<usize>,
    /// By draw, under the first recipe with the caption of another picture; empty where there was none.
    pub control: Vec<f64>,
}

impl Row {
    /// The mean loss under a recipe.
    pub fn loss(&self, recipe: usize) -> f64 {
        mean(self.losses.get(recipe).map_or(&[], Vec::as_slice))
    }

    /// By how much the loss under a recipe is above that under the first, in the `band`-th of `bands` parts of the draws; exactly 0
    /// where the denoiser received the same.
    pub fn difference(&self, recipe: usize, (band, bands): (usize, usize)) -> f64 {
        let (Some(first), Some(other)) = (self.losses.first(), self.losses.get(recipe)) else {
            return 0.0;
        };
        let size = first.len() / bands.max(1);
        let pairs = first.iter().zip(other).skip(band * size).take(size);
        let differences: Vec<f64> = pairs.map(|(first, other)| other - first).collect();
        mean(&differences)
    }

    /// By how much the loss is above the first recipe's with the caption of another picture.
    pub fn control_difference(&self) -> Option<f64> {
        let own = self.losses.first()?;
        let pairs = own.iter().zip(&self.control);
        let differences: Vec<f64> = pairs.map(|(own, other)| other - own).collect();
        (!differences.is_empty()).then(|| mean(&differences))
    }
}

/// The pictures measured so far.
pub struct Measurement<'a> {
    recipes: Vec<(String, ModelCache<'a>)>,
    base: &'a BaseModel,
    denoiser: &'a dyn Denoiser,
    options: DrawOptions,
    draws: Draws,
    rows: Vec<Row>,
}

impl<'a> Measurement<'a> {
    /// Of what `store` has now of `subjects`, the pictures that may be measured.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(
        base: &'a BaseModel,
        compared: &'a ComparedRecipes,
        (store, subjects): (&Store, &[Subject]),
        denoiser: &'a dyn Denoiser,
        draws: Draws,
    ) -> Result<Self, Error> {
        let caches = caches(compared, store, subjects)?.into_iter();
        let labels = compared.recipes.iter().map(|c| c.candidate.label());
        Ok(Self {
            recipes: labels.zip(caches).collect(),
            base,
            denoiser,
            options: DrawOptions::of(base).unweighted(),
            draws,
            rows: Vec::new(),
        })
    }

    /// The losses of each picture so far, in the order in which they were added.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The same.
    pub fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// Measures one more; `stranger` is another picture's caption.
    ///
    /// # Errors
    /// If an entry is missing or damaged, or a recipe gives what the denoiser does not take.
    pub fn add(&mut self, subject: &Subject, stranger: Option<&str>) -> Result<(), Error> {
        let copies = subject.0.iter().map(|item| self.measured(item, stranger));
        let copies: Vec<Row> = copies.collect::<Result<_, _>>()?;
        self.rows.push(averaged(&copies));
        Ok(())
    }

    fn measured(&self, item: &Item, stranger: Option<&str>) -> Result<Row, Error> {
        let (_, first) = self
            .recipes
            .first()
            .ok_or_else(|| candle_core::Error::Msg("a probe without recipes".to_owned()))?;
        let count = self.recipes.len();
        let mut row = Row {
            losses: vec![Vec::new(); count],
            alike: Vec::new(),
            control: Vec::new(),
        };
        let view = item.views.first().copied();
        let view = view.ok_or_else(|| crate::cache::Error::NoLatents {
            picture: item.picture.clone(),
        })?;
        let picture = StillPicture::read(first, item, view)?;
        // What one caption becomes is put together once, however many draws it has.
        let mut made = BTreeMap::new();
        let mut samples = Vec::new();
        for draw in 0..self.draws.count {
            let captions = item.captions.len().max(1);
            let caption = item.captions.get(draw as usize % captions);
            let caption = caption.map_or("", String::as_str);
            if !made.contains_key(caption) {
                made.insert(caption, self.conditionings(caption, count)?);
            }
            let mut rng = Rng::new(
                self.draws.seed,
                Stream::Probe,
                u64::from(draw),
                number_of(&item.digest),
            );
            let share = (f64::from(draw) + rng.uniform()) / f64::from(self.draws.count);
            let share = self.options.timesteps.band.at(share);
            let drawn = picture.draw(share, &mut rng, self.options.process)?;
            samples.push((caption, drawn));
        }
        row.alike = firsts(count, |recipe| {
            made.values().map(|d| d.which[recipe]).collect::<Vec<_>>()
        });
        let own = samples.len();
        if let Some(stranger) = stranger {
            made.insert(stranger, self.conditionings(stranger, 1)?);
            let drawn: Vec<Drawn> = samples.iter().map(|(_, drawn)| drawn.clone()).collect();
            samples.extend(drawn.into_iter().map(|drawn| (stranger, drawn)));
        }
        let losses = self.losses(&samples, &made)?;
        for (number, ((caption, _), of_draw)) in samples.iter().zip(&losses).enumerate() {
            let Some(of_caption) = made.get(caption) else {
                continue;
            };
            for (recipe, &which) in of_caption.which.iter().enumerate() {
                let loss = of_draw[which];
                if !loss.is_finite() {
                    return Err(Error::NotFinite {
                        picture: item.picture.clone(),
                        label: self.recipes[recipe].0.clone(),
                        why: self.base.why_not_finite(self.denoiser.dtype(), false),
                    });
                }
                match number < own {
                    true => row.losses[recipe].push(loss),
                    false => row.control.push(loss),
                }
            }
        }
        Ok(row)
    }

    /// What each of the first `count` recipes makes of a caption; equal ones once.
    fn conditionings(&self, caption: &str, count: usize) -> Result<Different, Error> {
        let mut different = Different::default();
        let mut known = BTreeMap::new();
        for (label, cache) in self.recipes.iter().take(count) {
            let outputs = cache.outputs(caption)?;
            let made = cache.assemble(&outputs);
            let made = made.and_then(|made| Ok((identity(&made)?, made)));
            let (identity, made) = made.map_err(|source| Error::Denoiser {
                label: label.clone(),
                source,
            })?;
            let next = different.conditionings.len();
            let which = *known.entry(identity).or_insert(next);
            if which == next {
                different.conditionings.push((label.clone(), made));
            }
            different.which.push(which);
        }
        Ok(different)
    }

    /// By draw, the loss under each of the caption's different conditionings.
    fn losses(
        &self,
        samples: &[(&str, Drawn)],
        made: &BTreeMap<&str, Different>,
    ) -> Result<Vec<Vec<f64>>, Error> {
        // A call of the denoiser has contexts of one length, or masked pads.
        let mut calls = BTreeMap::<_, Vec<_>>::new();
        let mut losses = Vec::new();
        for (number, (caption, drawn)) in samples.iter().enumerate() {
            let conditionings = made.get(caption).map_or(&[][..], |d| &d.conditionings);
            losses.push(vec![f64::NAN; conditionings.len()]);
            for (which, (label, conditioning)) in conditionings.iter().enumerate() {
                let key = (
                    match conditioning.token_count {
                        None => conditioning.context.dims().to_vec(),
                        Some(_) => Vec::new(),
                    },
                    conditioning.pooled.dims().to_vec(),
                    conditioning.token_count.is_some(),
                );
                let sample = (
                    (number, which),
                    label,
                    (drawn.clone(), conditioning.clone()),
                );
                calls.entry(key).or_default().push(sample);
            }
        }
        for call in calls.values() {
            for part in call.chunks(self.draws.batch.max(1)) {
                let inputs = part.iter().map(|(_, _, sample)| sample.clone()).collect();
                let found = self.call(inputs).map_err(|source| Error::Denoiser {
                    label: part
                        .first()
                        .map_or_else(String::new, |(_, label, _)| (*label).clone()),
                    source,
                })?;
                for (((number, which), _, _), loss) in part.iter().zip(found) {
                    losses[*number][*which] = loss;
                }
            }
        }
        Ok(losses)
    }

    fn call(&self, samples: Vec<(Drawn, Conditioning)>) -> candle_core::Result<Vec<f64>> {
        let tape = Tape::off(self.denoiser.kernels());
        let mut losses = Vec::new();
        // One, as all contexts are equally long.
        for batch in denoiser_batches(samples, &self.options)? {
            let prediction = models::predict(
                self.denoiser,
                &tape,
                &Bound::none(),
                &batch.noisy,
                &batch.timesteps,
                &batch.conditioning,
            )?
            .into_tensor();
            let target = batch.target.to_device(prediction.device())?;
            losses.extend(squared_error(&prediction, &target)?);
        }
        Ok(losses)
    }
}

/// The different conditionings of a caption.
#[derive(Default)]
struct Different {
    /// Each with the first recipe that makes it.
    conditionings: Vec<(String, Conditioning)>,
    /// By recipe, which of them it makes.
    which: Vec<usize>,
}

/// For each of `count` things, the first that has the same key.
pub(super) fn firsts<K: Ord>(count: usize, key: impl Fn(usize) -> K) -> Vec<usize> {
    let mut known = BTreeMap::new();
    (0..count)
        .map(|at| *known.entry(key(at)).or_insert(at))
        .collect()
}

/// What two conditionings have in common that are the same to the last bit, in all that the denoiser sees.
fn identity(conditioning: &Conditioning) -> candle_core::Result<(Digest, Option<usize>)> {
    let mut bytes = Vec::new();
    let context = match conditioning.token_count {
        Some(seen) => conditioning.context.narrow(0, 0, seen)?,
        None => conditioning.context.clone(),
    };
    for tensor in [&context, &conditioning.pooled] {
        for size in tensor.dims() {
            bytes.extend_from_slice(&(*size as u64).to_le_bytes());
        }
        for value in flat(tensor)? {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
    Ok((Digest::of(&bytes), conditioning.token_count))
}

fn flat(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// What draws are keyed by, of the picture's content alone: neither names nor other pictures change them.
fn number_of(digest: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn averaged(copies: &[Row]) -> Row {
    let mut row = copies[0].clone();
    row.alike = firsts(row.losses.len(), |recipe| {
        copies.iter().map(|c| c.alike[recipe]).collect::<Vec<_>>()
    });
    for (recipe, losses) in row.losses.iter_mut().enumerate() {
        for (draw, loss) in losses.iter_mut().enumerate() {
            let all: Vec<f64> = copies.iter().map(|c| c.losses[recipe][draw]).collect();
            *loss = mean(&all);
        }
    }
    for (draw, loss) in row.control.iter_mut().enumerate() {
        let all: Vec<f64> = copies.iter().map(|c| c.control[draw]).collect();
        *loss = mean(&all);
    }
    row
}
