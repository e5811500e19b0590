//! A sample: a picture, or a window of a clip, with all of its captions and views.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::Serialize;

use crate::cache::{self, ModelCache, places, time_ids};
use crate::convert::cache::CacheError;
use crate::convert::cache::values::write;
use crate::dataset::{Item, Viewed};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::experiment::{DatasetSettings, ReferenceSource};
use crate::foreign::cache::ToWrite;
use crate::recipe::latents::{Size, View};
use crate::text::spec::Dtype;

/// What goes into a shard.
pub(super) struct Sample {
    /// Its number and the beginning of the picture's digest: neither points nor slashes, whatever the file is called.
    pub(super) key: String,
    /// The first caption.
    pub(super) caption: String,
    pub(super) tensors: Vec<ToWrite>,
    /// [`Meta`] as JSON.
    pub(super) meta: Vec<u8>,
}

/// What samples are made from.
pub(super) struct Source<'a> {
    pub(super) cache: ModelCache<'a>,
    /// Whether the denoiser is told each picture's size and crop.
    pub(super) size_conditioning: bool,
    /// How context and pooled vector are stored; all else is f32.
    pub(super) dtype: Dtype,
}

#[derive(Serialize)]
struct Meta<'a> {
    /// Of the recipe that all of it was made by: whoever mixes sets can compare it.
    recipe_fingerprint: Fingerprint,
    picture: PictureFacts<'a>,
    captions: Vec<CaptionFacts<'a>>,
    views: Vec<ViewFacts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<ReferenceFacts<'a>>,
    /// How often it comes in one pass over the data.
    repeats: u32,
}

#[derive(Serialize)]
struct PictureFacts<'a> {
    /// Below the folder that its data set names; for one that lies elsewhere, its name.
    file: String,
    digest: Digest,
    #[serde(flatten)]
    size: &'a Size,
}

#[derive(Serialize)]
struct CaptionFacts<'a> {
    text: &'a str,
    encoders: BTreeMap<String, EncoderFacts>,
}

#[derive(Serialize)]
struct EncoderFacts {
    entry: Fingerprint,
    /// Ids before padding.
    tokens: usize,
    /// Where its sequence stands in `context`, from and to: its true tokens first, then its pads.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<[usize; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<[usize; 2]>,
}

#[derive(Serialize)]
struct ViewFacts {
    entry: Fingerprint,
    view: View,
    time_ids: [f32; 6],
}

#[derive(Serialize)]
struct ReferenceFacts<'a> {
    #[serde(flatten)]
    picture: PictureFacts<'a>,
    /// One for each view of the picture.
    views: Vec<ViewFacts>,
}

impl Source<'_> {
    /// The sample number `number` of a split.
    pub(super) fn sample(
        &self,
        number: usize,
        item: &Item,
        set: Option<&DatasetSettings>,
    ) -> Result<Sample, CacheError> {
        let mut tensors = Vec::new();
        let mut captions = Vec::new();
        for (n, caption) in item.captions.iter().enumerate() {
            captions.push(self.caption(n, caption, &mut tensors)?);
        }
        for (n, &view) in item.views.iter().enumerate() {
            self.view(n, item, view, &mut tensors)?;
        }
        let reference = item.reference.as_ref().map(|reference| ReferenceFacts {
            picture: facts(&reference.picture, set, reference.digest, &reference.size),
            views: self.views(&reference.viewed()),
        });
        let meta = Meta {
            recipe_fingerprint: self.cache.recipe.fingerprint(),
            picture: facts(&item.picture, set, item.digest, &item.size),
            captions,
            views: self.views(&item.viewed()),
            reference,
            repeats: item.repeats,
        };
        Ok(Sample {
            key: format!("{number:09}-{}", item.digest.short()),
            caption: item.captions.first().cloned().unwrap_or_default(),
            tensors,
            meta: canonical_json(&meta),
        })
    }

    /// Adds what the denoiser receives for a caption.
    fn caption<'c>(
        &self,
        number: usize,
        caption: &'c str,
        tensors: &mut Vec<ToWrite>,
    ) -> Result<CaptionFacts<'c>, cache::Error> {
        let outputs = self.cache.outputs(caption)?;
        let made = self.cache.assemble(&outputs)?;
        let rows = made.context.dim(0)?;
        tensors.push(write(&named("context", number), &made.context, self.dtype)?);
        if made.pooled.elem_count() > 0 {
            tensors.push(write(&named("pooled", number), &made.pooled, self.dtype)?);
        }
        let seen = made.token_count.unwrap_or(rows);
        tensors.push(ToWrite::first_rows(&named("mask", number), seen, rows));
        let places = places(self.cache.recipe, &outputs, self.cache.context_width)?;
        let encoder = |id: &cache::EncoderId| {
            let place = places.iter().find(|place| place.slot == id.slot);
            let facts = EncoderFacts {
                entry: id.entry(caption),
                tokens: outputs.get(&id.slot).map_or(0, |o| o.token_count),
                rows: place.map(|p| [p.row, p.row + p.rows]),
                channels: place.map(|p| [p.channel, p.channel + p.channels]),
            };
            (id.slot.clone(), facts)
        };
        let encoders = self.cache.reader.specs().encoders.iter();
        Ok(CaptionFacts {
            text: caption,
            encoders: encoders.map(encoder).collect(),
        })
    }

    /// Adds the latents of a view, as the denoiser takes them, and those of what it is given beside it.
    fn view(
        &self,
        number: usize,
        item: &Item,
        view: View,
        tensors: &mut Vec<ToWrite>,
    ) -> Result<(), cache::Error> {
        let (reader, geometry) = (&self.cache.reader, &self.cache.geometry);
        let stored = reader.moments(item, view)?;
        let mut add = |name: &str, tensor: &Tensor| -> Result<(), cache::Error> {
            tensors.push(write(&named(name, number), tensor, Dtype::F32)?);
            Ok(())
        };
        add("latents", &geometry.normalize(&stored.mean)?)?;
        if let Some(logvar) = &stored.logvar {
            let deviations = (logvar * 0.5)?.exp()?;
            if let Some(deviations) = geometry.normalize_deviations(&deviations)? {
                add("latents_std", &deviations)?;
            }
        }
        if self.size_conditioning {
            let numbers = stored.time_ids;
            let numbers = Tensor::from_slice(&numbers, numbers.len(), &candle_core::Device::Cpu)?;
            add("time_ids", &numbers)?;
        }
        if let Some((reference, view)) = item.reference_beside(view) {
            let mean = reader.reference(reference, view)?;
            add("reference", &geometry.normalize(&mean)?)?;
        }
        Ok(())
    }

    fn views(&self, of: &Viewed<'_>) -> Vec<ViewFacts> {
        let view = |&view: &View| ViewFacts {
            entry: self.cache.reader.specs().view(of.digest, view),
            view,
            time_ids: time_ids(of.size, &view),
        };
        of.views.iter().map(view).collect()
    }

    /// What stands for a caption that is dropped.
    pub(super) fn no_caption(&self) -> Result<Vec<ToWrite>, cache::Error> {
        let mut tensors = Vec::new();
        self.caption(0, "", &mut tensors)?;
        Ok(tensors)
    }
}

/// The first caption's and view's have the plain name: who knows of one alone finds it.
fn named(name: &str, number: usize) -> String {
    match number {
        0 => name.to_owned(),
        _ => format!("{name}.{number}"),
    }
}

fn facts<'a>(
    picture: &Path,
    set: Option<&DatasetSettings>,
    digest: Digest,
    size: &'a Size,
) -> PictureFacts<'a> {
    let references = set.and_then(|set| set.references.as_ref());
    let of_references = match references.map(|references| &references.source) {
        Some(ReferenceSource::Folder(folder)) => Some(folder),
        _ => None,
    };
    let folders = [set.map(|set| &set.path), of_references];
    let below = folders.into_iter().flatten();
    let below = below.filter_map(|folder| picture.strip_prefix(folder).ok());
    // The inner of two folders, one of which is in the other.
    let below = below.min_by_key(|below| below.components().count());
    let name = picture.file_name().map(Path::new);
    let below = below.or(name).unwrap_or(picture);
    // The same on every system, and wherever the folder lies.
    let parts = below
        .components()
        .map(|part| part.as_os_str().to_string_lossy());
    PictureFacts {
        file: parts.collect::<Vec<_>>().join("/"),
        digest,
        size,
    }
}
