//! What a training trains from: the pictures of an Experiment, checked to be in the store before anything starts.

use std::collections::BTreeSet;

use super::Error;
use crate::base_model::BaseModel;
use crate::cache::{self, Manifest, ModelCache, Specs, refuse_if_missing};
use crate::dataset::{self, Item};
use crate::digest::Digest;
use crate::experiment::{DatasetSettings, Experiment};
use crate::monitor::Monitor;
use crate::recipe::latents::Size;
use crate::store::Store;
use crate::vae::Extents;

/// All pictures of a training, with where their tensors come from.
pub struct TrainingSet<'a> {
    items: Vec<Item>,
    /// Indices into `items`, each as often as it comes in an epoch.
    samples: Vec<usize>,
    held_out: Vec<Item>,
    source: ModelCache<'a>,
    manifest: Digest,
    resolution: Size,
}

impl<'a> TrainingSet<'a> {
    /// Finds the pictures of an Experiment and checks that the store has all they need, previews included. The list
    /// of entries is written down as a run, so that garbage collection keeps them.
    ///
    /// # Errors
    /// [`Error::Refused`] where the store lacks something.
    pub fn open(
        experiment: &Experiment,
        base: &'a BaseModel,
        store: &Store,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let all = dataset::open(experiment, base.latent_geometry().side_multiple(), monitor)?;
        let captions: BTreeSet<String> = cache::captions(experiment, &all).into_iter().collect();
        let texts = captions.iter().map(String::as_str);
        let used = Manifest::new(&Specs::from(base), texts, &all);
        // Before looking whether they are there: then nothing can remove them in between.
        match used.write(store, "train", experiment, None) {
            Err(e) if e.is_read_only() => monitor.note(&format!(
                "{e}; training from it, but nothing keeps `plumb store gc` from removing what this run uses"
            )),
            written => written?,
        }
        let source = ModelCache::open(base, store)?;
        for problem in source.reader.problems() {
            monitor.problem(&problem);
        }
        let reader = &source.reader;
        if let Some(refusal) = refuse_if_missing(experiment, base, store, reader, &captions, &all)?
        {
            return Err(Error::Refused(Box::new(refusal)));
        }
        let (held_out, items): (Vec<_>, Vec<_>) = all.into_iter().partition(|item| item.held_out);
        let repeated = |(n, item): (usize, &Item)| std::iter::repeat_n(n, item.repeats as usize);
        Ok(Self {
            samples: items.iter().enumerate().flat_map(repeated).collect(),
            items,
            held_out,
            source,
            manifest: used.digest(),
            resolution: largest_resolution(&experiment.datasets()),
        })
    }

    /// The picture of sample `index`.
    pub fn item(&self, index: usize) -> &Item {
        &self.items[self.samples[index]]
    }

    /// The bucket of every sample.
    pub fn buckets(&self) -> Vec<Size> {
        let samples = 0..self.samples.len();
        samples.map(|sample| self.item(sample).bucket()).collect()
    }

    /// The pictures that are trained from.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The pictures kept for validation.
    pub fn held_out(&self) -> &[Item] {
        &self.held_out
    }

    /// Where tensors come from.
    pub fn source(&self) -> &ModelCache<'a> {
        &self.source
    }

    /// The digest of the list of entries.
    pub fn manifest(&self) -> Digest {
        self.manifest
    }

    /// The extents of the latents of the most pixels, validation included.
    pub fn largest_latents(&self) -> Extents {
        let buckets = self.items.iter().chain(&self.held_out).map(Item::bucket);
        let largest = buckets.max_by_key(|b| u64::from(b.width) * u64::from(b.height));
        largest.map_or(Extents::picture(1, 1), |bucket| {
            self.source.geometry.latents(bucket.into())
        })
    }

    /// Rows of the longest context among some of the captions, the longest of them first.
    ///
    /// # Errors
    /// If an entry cannot be read.
    pub fn longest_context(&self) -> Result<usize, Error> {
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

    /// The largest resolution asked for.
    pub fn resolution(&self) -> Size {
        self.resolution
    }
}

/// That of the most pixels; none of no data set.
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
