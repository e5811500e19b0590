//! The pictures and captions of a training. Before it starts, the store is checked to hold an entry for each of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use crate::base_model::BaseModel;
use crate::cache::{self, CutCaptions, Manifest, ModelCache, refuse_if_missing};
use crate::dataset::{self, Item, Preview, Reference};
use crate::digest::Digest;
use crate::experiment::{DatasetSettings, Experiment};
use crate::monitor::Monitor;
use crate::recipe::latents::Size;
use crate::shown;
use crate::store::{Lacking, Store};
use crate::vae::{Extents, LatentGeometry};

/// All pictures of a training, with where their tensors come from.
pub struct TrainingSet<'a> {
    items: Vec<Item>,
    /// Indices into `items`: a picture with `repeats = 3` is there three times.
    samples: Vec<usize>,
    /// For validation, never trained from.
    held_out: Vec<Item>,
    /// The references of the previews.
    previews: Vec<Preview>,
    source: ModelCache<'a>,
    manifest: Digest,
    resolution: Size,
    truncated: Vec<CutCaptions>,
}

/// Samples of an epoch, repeats counted: each takes some bytes, and a slip in `repeats` would ask for more than there are.
const MAX_SAMPLES: u64 = 100_000_000;

fn check_samples(experiment: &Experiment, pictures: &[Item]) -> Result<(), Error> {
    let samples: u64 = pictures.iter().map(|item| u64::from(item.repeats)).sum();
    if samples <= MAX_SAMPLES {
        return Ok(());
    }
    Err(Error::Experiment {
        file: experiment.file.clone(),
        what: format!(
            "`dataset.repeats`: an epoch would have {samples} samples, expected at most {MAX_SAMPLES}"
        ),
    })
}

impl<'a> TrainingSet<'a> {
    /// Finds the pictures of an Experiment and checks that the store has their latents and the embeddings of their captions and of the
    /// previews' prompts. The list of these entries is written into the store as a run, so that `plumb store gc` keeps them.
    ///
    /// # Errors
    /// [`Error::Refused`] where the store lacks something.
    pub fn open(
        experiment: &Experiment,
        base: &'a BaseModel,
        store: &Store,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let multiple = base.latent_geometry().side_multiple();
        let pictures = dataset::open(experiment, multiple, monitor)?;
        let previews = dataset::previews(experiment, &base.settings.sample, multiple)?;
        let viewed = dataset::viewed(&pictures, &previews);
        check_samples(experiment, &pictures)?;
        let captions: BTreeSet<String> =
            cache::captions(experiment, &pictures).into_iter().collect();
        let texts = captions.iter().map(String::as_str);
        let used = Manifest::new(base, texts, &viewed);
        let source = ModelCache::open_for(base, store, used.entries())?;
        for problem in source.reader.problems() {
            monitor.problem(&problem);
        }
        let reader = &source.reader;
        if let Some(refusal) =
            refuse_if_missing(experiment, base, store, reader, &captions, &viewed)?
        {
            return Err(Error::Refused(Box::new(refusal)));
        }
        // Before anything is loaded, and all at once.
        reader.entries().fetch(used.entries(), monitor)?;
        // Only of what is there: a refused training leaves no trace. What a garbage collection takes before the list is
        // written is missed in writing it.
        used.write(store, "train", (experiment, None), Lacking::Refuse, monitor)?;
        let (held_out, items): (Vec<_>, Vec<_>) =
            pictures.into_iter().partition(|item| item.held_out);
        let repeated = |(n, item): (usize, &Item)| std::iter::repeat_n(n, item.repeats as usize);
        Ok(Self {
            truncated: source.truncated(&captions)?,
            samples: items.iter().enumerate().flat_map(repeated).collect(),
            items,
            held_out,
            previews,
            source,
            manifest: used.digest(),
            resolution: largest_resolution(&experiment.datasets()),
        })
    }

    /// The picture of sample `index`, which counts repeats.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn item(&self, index: usize) -> &Item {
        &self.items[self.samples[index]]
    }

    /// The bucket of every sample, in px, its frames, and the bucket of its reference if it has one: only samples of one bucket and length
    /// beside references of one bucket fit into one micro-batch.
    pub fn buckets(&self) -> Vec<(Size, u32, Option<Size>)> {
        let samples = 0..self.samples.len();
        samples.map(|sample| sizes(self.item(sample))).collect()
    }

    /// The most samples that a micro-batch has, of `asked`: those of the largest bucket, where they are fewer, which is told.
    pub(super) fn most_in_a_batch(&self, asked: usize, monitor: &dyn Monitor) -> usize {
        let mut counts = BTreeMap::<_, usize>::new();
        for bucket in self.buckets() {
            *counts.entry(bucket).or_default() += 1;
        }
        let most = counts.into_values().max().unwrap_or(1);
        if most < asked {
            monitor.note(&format!(
                "a micro-batch has at most {}, and not the {asked} of `train.batch_size`: it is of one bucket, and no bucket has more{}",
                shown::counted(most, "picture"),
                match self.samples.len() > most {
                    true => " (`bucket_step` and `resolution` decide on the buckets)",
                    false => "",
                }
            ));
        }
        most.min(asked)
    }

    /// The references of the previews: none, one for all prompts, or one for each.
    pub fn previews(&self) -> &[Preview] {
        &self.previews
    }

    /// The pictures, trained from or held out, that have a reference.
    pub fn pairs(&self) -> usize {
        let all = self.items.iter().chain(&self.held_out);
        all.filter(|item| item.reference.is_some()).count()
    }

    /// How many of the captions each encoder cut.
    pub fn truncated(&self) -> &[CutCaptions] {
        &self.truncated
    }

    /// The pictures that are trained from, without repeats.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The pictures kept for validation.
    pub fn held_out(&self) -> &[Item] {
        &self.held_out
    }

    /// Reads the tensors of pictures and captions from the store.
    pub fn source(&self) -> &ModelCache<'a> {
        &self.source
    }

    /// The digest of the list of entries; a checkpoint is resumed only with the same.
    pub fn manifest(&self) -> Digest {
        self.manifest
    }

    /// The extents of the latents of the largest picture or clip, and of its reference if it has one, validation included: what memory is
    /// planned for. 1 x 1 without pictures.
    pub fn largest_latents(&self) -> (Extents, Option<Extents>) {
        let all = self.items.iter().chain(&self.held_out);
        largest_latents(all, &self.source.geometry)
    }

    /// An estimate of the longest context's tokens: the most among the longest captions, measured in bytes.
    ///
    /// # Errors
    /// If an entry cannot be read.
    pub fn longest_context(&self) -> Result<usize, Error> {
        // Bytes and tokens do not rank captions quite the same way; a few of the longest are read, not one, and not the whole store.
        const LOOKED_AT: usize = 16;
        let captions = self.items.iter().flat_map(|item| &item.captions);
        let mut captions: Vec<&str> = captions.map(String::as_str).collect();
        captions.sort_by_key(|caption| std::cmp::Reverse(caption.len()));
        captions.dedup();
        let mut longest = 0;
        for caption in captions.into_iter().take(LOOKED_AT) {
            longest = longest.max(self.source.conditioning(caption)?.context.dim(0)?);
        }
        Ok(longest)
    }

    /// The largest `resolution` of the Experiment's data sets, in px.
    pub fn resolution(&self) -> Size {
        self.resolution
    }
}

/// The extents of the latents of the largest of some pictures and clips, and of its reference if it has one. 1 x 1 of none.
pub fn largest_latents<'a>(
    items: impl Iterator<Item = &'a Item>,
    geometry: &LatentGeometry,
) -> (Extents, Option<Extents>) {
    let area = |size: Size| u64::from(size.width) * u64::from(size.height);
    let latents = |size: Size, frames: u32| {
        let pixels = Extents {
            frames: frames as usize,
            ..size.into()
        };
        geometry.latents(pixels)
    };
    let largest = items.map(sizes).max_by_key(|&(own, frames, other)| {
        let frames = latents(own, frames).frames as u64;
        area(own) * frames + other.map_or(0, area)
    });
    largest.map_or((Extents::picture(1, 1), None), |(own, frames, other)| {
        (latents(own, frames), other.map(|size| latents(size, 1)))
    })
}

/// What the VAE sees of a picture, and of its reference.
fn sizes(item: &Item) -> (Size, u32, Option<Size>) {
    (
        item.bucket(),
        item.frames(),
        item.reference.as_ref().map(Reference::bucket),
    )
}

/// The resolution of the most pixels; 0 x 0 without data sets.
fn largest_resolution(sets: &[DatasetSettings]) -> Size {
    let sizes = sets.iter().map(|set| set.resolution);
    let largest = sizes.max_by_key(|size| u64::from(size.width) * u64::from(size.height));
    largest.unwrap_or(Size {
        width: 0,
        height: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_largest_resolution_has_the_most_pixels_whatever_its_shape() {
        let text = "[model]\nfamily = \"sd3\"\nflavor = \"3-medium\"\npath = \"m\"\n[store]\npath = \"s\"\n\
            [train]\nsteps = 1\noutput = \"o\"\n\
            [[dataset]]\npath = \"a\"\n[[dataset]]\npath = \"b\"\nresolution = 512\n";
        let experiment = Experiment::parse(Path::new("exp.toml"), text.to_owned());
        let mut sets = experiment.expect("valid").datasets();
        let size = |width, height| Size { width, height };
        assert_eq!(largest_resolution(&sets), size(1024, 1024));
        sets[1].resolution = size(1344, 832);
        assert_eq!(largest_resolution(&sets), size(1344, 832));
        assert_eq!(largest_resolution(&[]), size(0, 0));
    }
}
