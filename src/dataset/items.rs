//! An Experiment's pictures and captions: found, looked at, sorted into buckets. `encode` makes what they need,
//! `train` asks whether it is there; both come through here, so that they mean the same.

use super::{BucketError, BucketRules, Buckets, Dataset, Error, Folder, HeldOut, Item, references};
use crate::experiment::{DatasetSettings, Experiment};
use crate::monitor::Monitor;
use crate::recipe::latents::{Size, View};
use crate::shown;

/// Which size a folder's pictures are brought to, and which crops of them there are.
#[derive(Clone, Debug)]
pub struct ViewRules {
    /// The sizes there are, and which of them a picture gets.
    pub buckets: Buckets,
    /// Crops of each picture, spread along what its bucket cuts off; 1: the middle.
    pub crops: u32,
    /// Whether each crop is also there mirrored.
    pub flip: bool,
}

impl ViewRules {
    /// As a data set says, for a model whose pictures must have sides that are multiples of `multiple`.
    ///
    /// # Errors
    /// If its buckets contradict each other or the model.
    pub fn new(set: &DatasetSettings, multiple: u32) -> Result<Self, Error> {
        let Size { width, height } = set.resolution;
        let (min, max) = match set.bucket {
            true => (set.min_bucket_px, set.max_bucket_px),
            // Without buckets there is one size, and bounds that are its sides leave no other.
            false => (width.min(height), width.max(height)),
        };
        let rules = BucketRules {
            resolution: set.resolution,
            min,
            max,
            step: set.bucket_step_px,
            single: !set.bucket,
            no_upscale: set.no_upscale,
        };
        let buckets = Buckets::new(rules, multiple).map_err(|e| Error::Unusable {
            path: set.path.clone(),
            problem: e.to_string(),
        })?;
        Ok(Self {
            buckets,
            crops: set.crops,
            flip: set.flip,
        })
    }

    /// The views of a picture of this size; never none.
    ///
    /// # Errors
    /// If no bucket takes it.
    pub fn views(&self, picture: Size) -> Result<Vec<View>, BucketError> {
        Ok(self.buckets.place(picture)?.views(self.crops, self.flip))
    }
}

/// All items of an Experiment, in the order of its data sets and their files, for a model whose pictures must have sides that
/// are multiples of `multiple`.
///
/// # Errors
/// If a folder, picture or caption cannot be used; all such problems are told at once.
pub fn open(
    experiment: &Experiment,
    multiple: u32,
    monitor: &dyn Monitor,
) -> Result<Vec<Item>, Error> {
    tell_empty(experiment, monitor);
    let data = Dataset::scan(&folders(experiment, multiple)?, monitor)?;
    held_out(experiment, data)
}

/// The same without the pictures that cannot be used: each is a problem of one line. For what is done picture by picture; a
/// training with fewer pictures would be another one. Gives their number as well.
///
/// # Errors
/// If a folder or caption cannot be used, or no picture.
pub fn open_usable(
    experiment: &Experiment,
    multiple: u32,
    monitor: &dyn Monitor,
) -> Result<(Vec<Item>, u64), Error> {
    tell_empty(experiment, monitor);
    let (data, broken) = Dataset::scan_usable(&folders(experiment, multiple)?, monitor)?;
    for error in &broken {
        monitor.problem(&error.to_string());
    }
    Ok((held_out(experiment, data)?, broken.len() as u64))
}

/// A trigger word that changes nothing is a slip, or a template's.
fn tell_empty(experiment: &Experiment, monitor: &dyn Monitor) {
    for (number, set) in experiment.datasets().iter().enumerate() {
        if set
            .trigger
            .as_ref()
            .is_some_and(|word| word.trim().is_empty())
        {
            monitor.note(&format!(
                "{}: `dataset[{number}].trigger` is empty and changes no caption: name a word, or leave it out",
                shown::path(&experiment.file)
            ));
        }
    }
}

fn folders(experiment: &Experiment, multiple: u32) -> Result<Vec<Folder>, Error> {
    let own_size = references::OwnSize::of(experiment, multiple);
    let folder = |set| {
        let view_rules = ViewRules::new(&set, multiple)?;
        Ok(Folder {
            set,
            view_rules,
            own_size: own_size.clone(),
        })
    };
    experiment.datasets().into_iter().map(folder).collect()
}

/// The items, of which those that are held out are marked.
fn held_out(experiment: &Experiment, mut data: Dataset) -> Result<Vec<Item>, Error> {
    let split = data.split(match experiment.validation_share() {
        0.0 => HeldOut::None,
        share => HeldOut::Fraction(share),
    })?;
    for place in split.validation {
        data.items[place].held_out = true;
    }
    Ok(data.items)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn set(text: &str, resolution: Size) -> DatasetSettings {
        let text = format!(
            "[model]\nfamily = \"sd3\"\nflavor = \"3-medium\"\npath = \"m\"\n[store]\npath = \"s\"\n\
             [train]\nsteps = 1\noutput = \"o\"\n\
             [[dataset]]\npath = \"pictures\"\nresolution = 64\nbucket_step = 16\n{text}"
        );
        let experiment = Experiment::parse(Path::new("exp.toml"), text).expect("valid");
        let set = experiment.datasets().into_iter().next().expect("a set");
        assert_eq!(
            set.resolution,
            Size {
                width: 64,
                height: 64
            }
        );
        DatasetSettings { resolution, ..set }
    }

    #[test]
    fn a_resolution_may_be_wider_than_high() {
        let wide = Size {
            width: 128,
            height: 64,
        };
        let picture = Size {
            width: 500,
            height: 500,
        };
        let rules = ViewRules::new(&set("bucket = false", wide), 16).expect("one bucket");
        assert_eq!(rules.buckets.sizes(), [wide]);
        let views = rules.views(picture).expect("views");
        assert_eq!(views[0].bucket, wide);
        let rules = ViewRules::new(&set("", wide), 16).expect("buckets");
        let area = |size: &Size| size.width * size.height;
        let sizes = rules.buckets.sizes();
        assert!(sizes.len() > 3 && sizes.iter().all(|size| area(size) <= 128 * 64));
        assert!(sizes.contains(&wide));
    }
}
