//! Embeddings and latents as tensors.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use serde::Serialize;

use super::conditioning::{Conditioning, EncoderOutput, EncoderOutputs, assemble};
use super::{EncoderId, Error, Manifest, Specs, tensors};
use crate::base_model::BaseModel;
use crate::dataset::{Item, Reference, Viewed};
use crate::digest::{Digest, Fingerprint};
use crate::recipe::Recipe;
use crate::recipe::latents::{Size, View};
use crate::store::{Entry, Store, StoreReader};
use crate::vae::LatentGeometry;

/// What the store has of one view of a picture.
pub struct StoredLatents {
    /// The posterior's mean, one sample's latents as [`LatentGeometry`] has them.
    pub mean: Tensor,
    /// The logarithm of its variance, same shape; None where the mean stands for the latents ([`takes_means`]).
    ///
    /// [`takes_means`]: crate::recipe::latents::AutoencoderArchitecture::takes_means
    pub logvar: Option<Tensor>,
    /// The size embedding's input: [`ConditioningTensors::time_ids`] of one sample.
    ///
    /// [`ConditioningTensors::time_ids`]: crate::models::ConditioningTensors::time_ids
    pub time_ids: [f32; 6],
}

/// How many of a training's captions an encoder cut because they are too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CutCaptions {
    /// The encoder's slot in the recipe: `clip_l`, `t5`.
    pub slot: String,
    /// Different captions.
    pub captions: u64,
    /// Of these, cut.
    pub truncated: u64,
    /// Of these, shortened by the recipe's clean-up before anything is counted in tokens.
    pub shortened: u64,
}

/// Reads the entries of some specs, those that a store has when it is opened.
pub struct Reader {
    specs: Specs,
    store: Arc<StoreReader>,
}

impl EncoderOutput {
    /// Of a caption's entry in the store.
    ///
    /// # Errors
    /// If a part of it is no tensor.
    pub fn of_entry(entry: &Entry) -> candle_core::Result<Self> {
        let part = |name| entry.part(name).map(tensors::to_tensor).transpose();
        Ok(Self {
            hidden: part("hidden")?,
            pooled: part("pooled")?,
            token_count: entry.token_count as usize,
        })
    }
}

impl Reader {
    /// Of the entries that `store` has now of those given as (spec, entry).
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open_for(
        specs: Specs,
        store: &Store,
        entries: &[(Fingerprint, Fingerprint)],
    ) -> Result<Self, Error> {
        let store = Arc::new(store.reader_of_entries(entries)?);
        Ok(Self { specs, store })
    }

    /// The entries themselves, for who reads more than tensors.
    pub fn entries(&self) -> &Arc<StoreReader> {
        &self.store
    }

    /// What it reads.
    pub fn specs(&self) -> &Specs {
        &self.specs
    }

    /// Index parts that could not be read, each reported once.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.store.problems();
        problems.iter().map(ToString::to_string).collect()
    }

    /// What every encoder made of a caption.
    ///
    /// # Errors
    /// If the store lacks an entry or cannot be read.
    pub fn outputs(&self, caption: &str) -> Result<EncoderOutputs, Error> {
        let mut outputs = EncoderOutputs::new();
        for encoder in &self.specs.encoders {
            let id = encoder.entry(caption);
            let Some(entry) = self.store.get(&encoder.spec, &id)? else {
                return Err(Error::NoCaption {
                    slot: encoder.slot.clone(),
                    caption: caption.to_owned(),
                    entry: id,
                });
            };
            outputs.insert(encoder.slot.clone(), EncoderOutput::of_entry(&entry)?);
        }
        Ok(outputs)
    }

    /// The latents of one of a picture's views.
    ///
    /// # Errors
    /// If the store lacks them.
    pub fn moments(&self, item: &Item, view: View) -> Result<StoredLatents, Error> {
        let entry = self.latents((&item.picture, item.digest), view)?;
        let logvar = entry.part("logvar").map(tensors::to_tensor);
        Ok(StoredLatents {
            mean: mean(&entry, &item.picture)?,
            logvar: logvar.transpose()?,
            time_ids: time_ids(item.size, &view),
        })
    }

    /// The latents of a reference in one of its views: the posterior's mean, as the authors' code (`AutoEncoder(sample_z=False)`) and
    /// diffusers' pipeline (`sample_mode="argmax"`) have it. What is given is not drawn.
    ///
    /// # Errors
    /// If the store lacks them.
    pub fn reference(&self, reference: &Reference, view: View) -> Result<Tensor, Error> {
        let picture = (reference.picture.as_path(), reference.digest);
        mean(&self.latents(picture, view)?, picture.0)
    }

    fn latents(&self, (picture, digest): (&Path, Digest), view: View) -> Result<Entry, Error> {
        let entry = self.specs.view(digest, view);
        let entry = self.store.get(&self.specs.latents, &entry)?;
        entry.ok_or_else(|| no_latents(picture))
    }

    /// Captions that an encoder has no entry of.
    pub(super) fn captions_without<'a>(
        &self,
        encoder: &EncoderId,
        captions: impl Iterator<Item = &'a str>,
    ) -> Vec<&'a str> {
        let there = |caption: &str| self.store.contains(&encoder.spec, &encoder.entry(caption));
        captions.filter(|caption| !there(caption)).collect()
    }

    /// Whether the latents of all of a picture's views are there, and of its reference's.
    pub fn has_views(&self, item: &Item) -> bool {
        let reference = item.reference.as_ref().map(Reference::viewed);
        let all = std::iter::once(item.viewed()).chain(reference);
        all.map(|picture| self.views_without(&picture))
            .sum::<usize>()
            == 0
    }

    /// How many of a picture's views have no latents.
    pub(super) fn views_without(&self, picture: &Viewed<'_>) -> usize {
        let entries = picture
            .views
            .iter()
            .map(|&view| self.specs.view(picture.digest, view));
        let there = |entry: &Fingerprint| self.store.contains(&self.specs.latents, entry);
        entries.filter(|entry| !there(entry)).count()
    }
}

/// The mean of an entry of latents.
fn mean(entry: &Entry, picture: &Path) -> Result<Tensor, Error> {
    let mean = entry.part("mean").ok_or_else(|| no_latents(picture))?;
    Ok(tensors::to_tensor(mean)?)
}

fn no_latents(picture: &Path) -> Error {
    Error::NoLatents {
        picture: picture.to_owned(),
    }
}

/// Height and width before the picture was resized, top and left of the crop in the resized picture, height and width
/// of the crop, in px (SDXL: Podell et al., arXiv:2307.01952, section 2.2). In a mirrored view the crop lies where it does in
/// the mirrored picture.
pub fn time_ids(original: Size, view: &View) -> [f32; 6] {
    let left = match view.flip {
        // The store mirrors the crop, not the picture.
        true => view.resized.width - view.left - view.bucket.width,
        false => view.left,
    };
    let bucket = view.bucket;
    let numbers = [
        original.height,
        original.width,
        view.top,
        left,
        bucket.height,
        bucket.width,
    ];
    numbers.map(|px| px as f32)
}

/// The cache of one base model: a reader, and what its entries are put together by.
pub struct ModelCache<'a> {
    /// How embeddings become conditioning.
    pub recipe: &'a Recipe,
    /// Channels, factors and statistics of the model's latents.
    pub geometry: LatentGeometry,
    /// Channels of the denoiser's context.
    pub context_width: usize,
    /// Reads the entries; the denoiser's recipe and width are applied here.
    pub reader: Reader,
}

impl<'a> ModelCache<'a> {
    /// Of the entries that `store` has now of those given as (spec, entry).
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open_for(
        base: &'a BaseModel,
        store: &Store,
        entries: &[(Fingerprint, Fingerprint)],
    ) -> Result<Self, Error> {
        let reader = Reader::open_for(Specs::from(base), store, entries)?;
        Ok(Self::of(base, reader))
    }

    /// As [`Self::open_for`], of what its encoders make of `captions` and its VAE of the views of `pictures`.
    ///
    /// # Errors
    /// As [`Self::open_for`].
    pub fn open_of<'t>(
        base: &'a BaseModel,
        store: &Store,
        captions: impl Iterator<Item = &'t str> + Clone,
        pictures: &[Viewed<'_>],
    ) -> Result<Self, Error> {
        let needed = Manifest::new(base, captions, pictures);
        Self::open_for(base, store, needed.entries())
    }

    /// As [`Self::open_of`], under several recipes of base models, in their order: the index is read once.
    ///
    /// # Errors
    /// As [`Self::open_for`].
    pub fn open_all<'t>(
        bases: impl Iterator<Item = &'a BaseModel>,
        store: &Store,
        captions: impl Iterator<Item = &'t str> + Clone,
        pictures: &[Viewed<'_>],
    ) -> Result<Vec<Self>, Error> {
        let bases: Vec<&BaseModel> = bases.collect();
        let needed = bases
            .iter()
            .map(|base| Manifest::new(base, captions.clone(), pictures));
        let mut entries: Vec<_> = needed.flat_map(|of| of.entries().to_vec()).collect();
        entries.sort_unstable();
        entries.dedup();
        let store = Arc::new(store.reader_of_entries(&entries)?);
        let reader = |base| Reader {
            specs: Specs::from(base),
            store: store.clone(),
        };
        Ok(bases
            .into_iter()
            .map(|base| Self::of(base, reader(base)))
            .collect())
    }

    fn of(base: &'a BaseModel, reader: Reader) -> Self {
        Self {
            recipe: &base.recipe,
            geometry: base.latent_geometry(),
            context_width: base.denoiser.context_width(),
            reader,
        }
    }

    /// What every encoder made of a caption.
    ///
    /// # Errors
    /// If the store lacks an entry or cannot be read.
    pub fn outputs(&self, caption: &str) -> Result<EncoderOutputs, Error> {
        self.reader.outputs(caption)
    }

    /// How many of `captions` each encoder cut, all of which the store has.
    ///
    /// # Errors
    /// If the store's index cannot be read.
    pub fn truncated(&self, captions: &BTreeSet<String>) -> Result<Vec<CutCaptions>, Error> {
        let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
        let count = |encoder: &EncoderId| {
            let entries: Vec<_> = texts.iter().map(|c| encoder.entry(c)).collect();
            let rules = self.recipe.encoder(&encoder.slot);
            let shortens = |text: &&str| rules.is_some_and(|e| e.rules.tokens.shortens(text));
            Ok(CutCaptions {
                slot: encoder.slot.clone(),
                captions: texts.len() as u64,
                truncated: self.reader.store.truncated(&encoder.spec, &entries)?,
                shortened: texts.iter().copied().filter(|text| shortens(text)).count() as u64,
            })
        };
        self.reader.specs.encoders.iter().map(count).collect()
    }

    /// What the denoiser receives of these.
    ///
    /// # Errors
    /// If an output that the recipe needs is missing or does not fit.
    pub fn assemble(&self, outputs: &EncoderOutputs) -> candle_core::Result<Conditioning> {
        assemble(self.recipe, outputs, self.context_width)
    }

    /// What the denoiser receives for a caption.
    ///
    /// # Errors
    /// As [`Self::outputs`] and [`Self::assemble`].
    pub fn conditioning(&self, caption: &str) -> Result<Conditioning, Error> {
        Ok(self.assemble(&self.outputs(caption)?)?)
    }
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
            resampling: crate::recipe::latents::Resampling::Spec,
            window: None,
        };
        let numbers = time_ids(size(1600, 640), &view);
        assert_eq!(numbers, [640.0, 1600.0, 0.0, 10.0, 64.0, 128.0]);
        view.flip = true;
        assert_eq!(time_ids(size(1600, 640), &view)[3], 22.0);
    }
}
