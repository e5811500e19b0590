//! Reference pictures: which one is given beside a picture, and which size it is brought to.
//!
//! As their target (`reference_size = "target"`) they are resized to what the target is resized to, cropped at its crop and mirrored
//! with it: so do `paired_transform` of diffusers' `train_dreambooth_lora_flux_kontext.py`, ai-toolkit's `load_control_image`
//! (`toolkit/dataloader_mixins.py`) and SimpleTuner's `reference_strict`. The pair stays aligned; a reference of another shape is
//! stretched, which is told. (musubi-tuner and diffusion-pipe crop such a one.)
//!
//! In the size of the authors (`"preferred"`) of the target's view only the mirroring counts. Kontext's whole reference is stretched to the
//! nearest of their sizes in shape, by Lanczos, as `prepare_kontext` of their `src/flux/sampling.py` and diffusers'
//! `FluxKontextPipeline` do. klein's keeps its size up to a number of pixels, beyond which it is resized by Lanczos, and loses at its
//! edges what is no whole patch: so does diffusers' `Flux2KleinPipeline`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::caption::Listed;
use super::files::{self, Files};
use super::left_out::{Reason, named};
use super::{Error, Item, PictureFile, Reference, ViewRules};
use crate::digest::Digest;
use crate::experiment::{
    DatasetSettings, Experiment, ReferenceSettings, ReferenceSize, ReferenceSource, References,
    SampleSettings,
};
use crate::monitor::Monitor;
use crate::recipe::latents::{Resampling, Size, View};
use crate::shown;

/// A shape that differs by more than this factor from what it is brought to is told. Between two of the authors' sizes there is less.
const STRETCH: f64 = 1.1;

/// A reference that a preview is sampled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The picture, in the one view that is given.
    pub reference: Reference,
    /// The preview's own size.
    pub size: Size,
}

/// What is known of a reference before it is given beside anything.
pub(super) struct Opened<'a> {
    pub(super) picture: &'a Path,
    pub(super) digest: Digest,
    pub(super) size: Size,
}

/// Which size a model's authors bring a reference to, as the model can take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnSize {
    /// To that of these in px that is nearest in shape.
    Nearest(Vec<Size>),
    /// To its own.
    Within {
        /// Beyond this area in px, to about this area.
        most_pixels: u32,
        /// What sides are multiples of.
        multiple: u32,
    },
}

impl OwnSize {
    /// That of an Experiment's model, whose pictures have sides that are multiples of `multiple` px; none of a model without references.
    pub fn of(experiment: &Experiment, multiple: u32) -> Option<Self> {
        let multiple = multiple.max(1);
        Some(match experiment.flavor_references()? {
            References::Usual(sizes) => {
                Self::Nearest(sizes.iter().map(|s| floor(*s, multiple)).collect())
            }
            References::Possible { most_pixels } => Self::Within {
                most_pixels,
                multiple,
            },
        })
    }

    /// How the whole of a picture of this size in px is seen in it.
    pub fn view(&self, picture: Size) -> Option<View> {
        match self {
            Self::Nearest(sizes) => Some(whole(nearest(sizes, picture)?, Resampling::Lanczos3)),
            Self::Within {
                most_pixels,
                multiple,
            } => {
                let resized = within(picture, *most_pixels, *multiple);
                let bucket = floor(resized, *multiple);
                Some(View {
                    left: (resized.width - bucket.width) / 2,
                    top: (resized.height - bucket.height) / 2,
                    bucket,
                    ..whole(resized, Resampling::Lanczos3)
                })
            }
        }
    }
}

/// A size with sides that are multiples of `multiple`, as diffusers' pipelines make it.
fn floor(size: Size, multiple: u32) -> Size {
    let whole = |side: u32| (side / multiple).max(1) * multiple;
    Size {
        width: whole(size.width),
        height: whole(size.height),
    }
}

/// A size of at most about so many pixels, in whole ones as `_resize_to_target_area` of diffusers rounds them, and of no side below
/// `multiple`.
fn within(size: Size, most_pixels: u32, multiple: u32) -> Size {
    let pixels = f64::from(size.width) * f64::from(size.height);
    let scale = match pixels > f64::from(most_pixels) {
        true => (f64::from(most_pixels) / pixels).sqrt(),
        false => 1.0,
    };
    let side = |side: u32| ((f64::from(side) * scale) as u32).max(multiple);
    Size {
        width: side(size.width),
        height: side(size.height),
    }
}

/// The size of the nearest shape; of equally near ones the narrowest, as Python's `min` of (difference, width, height) gives it.
fn nearest(sizes: &[Size], picture: Size) -> Option<Size> {
    let far = |size: &Size| (aspect(*size) - aspect(picture)).abs();
    let of_sizes = sizes.iter().copied();
    of_sizes.min_by(|a, b| far(a).total_cmp(&far(b)).then_with(|| a.cmp(b)))
}

fn aspect(size: Size) -> f64 {
    f64::from(size.width) / f64::from(size.height.max(1))
}

/// The whole of a picture in one size.
fn whole(size: Size, resampling: Resampling) -> View {
    View {
        resized: size,
        left: 0,
        top: 0,
        bucket: size,
        flip: false,
        resampling,
        window: None,
    }
}

/// How a reference of this size is seen beside each of the target's views.
pub(super) fn views(
    rule: ReferenceSize,
    own: Option<&OwnSize>,
    picture: Size,
    beside: &[View],
) -> Vec<View> {
    match (rule, own.and_then(|own| own.view(picture))) {
        (ReferenceSize::Preferred, Some(own)) => {
            let mirrored = |view: &View| View {
                flip: view.flip,
                ..own
            };
            beside.iter().map(mirrored).collect()
        }
        (ReferenceSize::Target, _) | (ReferenceSize::Preferred, None) => beside.to_vec(),
    }
}

impl Reference {
    /// Whether it changes its shape by more than a little.
    pub fn is_stretched(&self) -> bool {
        let stretched = |view: &View| {
            let factor = aspect(self.size) / aspect(view.resized);
            factor.max(1.0 / factor) > STRETCH
        };
        self.views.first().is_some_and(stretched)
    }
}

/// The references of a folder's pictures, by the picture's name.
///
/// # Errors
/// If a picture has none or several, or the folder of references cannot be read.
pub(super) fn find(
    set: &DatasetSettings,
    pictures: &[String],
    listed: &BTreeMap<String, (Listed, String)>,
    monitor: &dyn Monitor,
) -> Result<BTreeMap<String, PathBuf>, Error> {
    let Some(ReferenceSettings { source, .. }) = &set.references else {
        return Ok(BTreeMap::new());
    };
    let (found, remedy) = match source {
        ReferenceSource::Folder(folder) => {
            let found = in_folder(set, folder, pictures, monitor)?;
            let folder = shown::path(folder);
            (
                found,
                format!("put one of the same name into {folder}, with any ending of a picture"),
            )
        }
        ReferenceSource::Column(column) => (
            in_column(set, pictures, listed)?,
            format!(
                "name one in `{}` of metadata.jsonl or metadata.csv",
                shown::text(column)
            ),
        ),
    };
    let without = pictures.iter().filter(|name| !found.contains_key(*name));
    let without: Vec<&String> = without.collect();
    match without.is_empty() {
        true => Ok(found),
        false => Err(Error::NoReference {
            folder: set.path.clone(),
            count: without.len(),
            named: named(&without),
            remedy,
        }),
    }
}

/// A name without its ending.
fn stem(name: &str) -> PathBuf {
    Path::new(name).with_extension("")
}

fn in_folder(
    set: &DatasetSettings,
    folder: &Path,
    pictures: &[String],
    monitor: &dyn Monitor,
) -> Result<BTreeMap<String, PathBuf>, Error> {
    check_apart(set, folder)?;
    let mut files = files::find(&DatasetSettings {
        path: folder.to_owned(),
        ..set.clone()
    })?;
    let mut by_stem: BTreeMap<PathBuf, Vec<&String>> = BTreeMap::new();
    for name in &files.pictures {
        by_stem.entry(stem(name)).or_default().push(name);
    }
    let (mut found, mut used, mut errors) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for picture in pictures {
        let stem = stem(picture);
        match by_stem.get(&stem).map(Vec::as_slice) {
            None => {}
            Some([name]) => _ = found.insert(picture.clone(), folder.join(name)),
            Some(names) if !used.contains(&stem) => errors.push(Error::Unusable {
                path: set.path.join(picture),
                problem: format!(
                    "it has {} references, {}: remove all but one",
                    names.len(),
                    named(names)
                ),
            }),
            // Told already, of another picture of that name.
            Some(_) => {}
        }
        used.insert(stem);
    }
    if let Some(error) = Error::of(errors) {
        return Err(error);
    }
    let orphans = files
        .pictures
        .iter()
        .filter(|name| !used.contains(&stem(name)));
    for name in orphans {
        files.left.add(Reason::OrphanReference, name.clone());
    }
    for name in files.captions.iter().chain(&files.lists) {
        files.left.add(Reason::ReferenceCaption, name.clone());
    }
    files.left.sort();
    files.left.tell(folder, monitor);
    Ok(found)
}

/// Refuses a folder of references that would be read as the data set's own pictures.
fn check_apart(set: &DatasetSettings, folder: &Path) -> Result<(), Error> {
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })
    };
    let (own, references) = (real(&set.path)?, real(folder)?);
    let problem = match own == references {
        true => "is the folder of the pictures themselves: each would be its own reference",
        false if set.recursive && references.starts_with(&own) => {
            "lies inside the data set's folder, which `recursive = true` reads: the references would be trained on as well; put it \
             beside that folder"
        }
        false => return Ok(()),
    };
    Err(Error::Unusable {
        path: folder.to_owned(),
        problem: format!("`references` {problem}"),
    })
}

fn in_column(
    set: &DatasetSettings,
    pictures: &[String],
    listed: &BTreeMap<String, (Listed, String)>,
) -> Result<BTreeMap<String, PathBuf>, Error> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let root = fs::canonicalize(&set.path).map_err(io(&set.path))?;
    let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
    for picture in pictures {
        let Some((Listed { reference, .. }, list)) = listed.get(picture) else {
            continue;
        };
        let Some(reference) = reference else { continue };
        let path = set.path.join(reference);
        let problem = match fs::canonicalize(&path) {
            Err(_) => "which is not there",
            Ok(real) if !set.follow_links && !real.starts_with(&root) => {
                "a link that leads out of the folder (`follow_links = true` follows it)"
            }
            Ok(_) => {
                found.insert(picture.clone(), path);
                continue;
            }
        };
        errors.push(Error::Unusable {
            path: set.path.join(list),
            problem: format!(
                "the reference of `{}` is `{}`, {problem}",
                shown::text(picture),
                shown::text(reference)
            ),
        });
    }
    match Error::of(errors) {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

/// Takes out the pictures that are named as references and have no caption: they are there for that alone.
pub(super) fn leave_named(files: &mut Files, listed: &BTreeMap<String, (Listed, String)>) {
    let named = listed
        .values()
        .filter_map(|(line, _)| line.reference.as_ref());
    let named: BTreeSet<&String> = named.collect();
    let captions: BTreeSet<PathBuf> = files.captions.iter().map(|name| stem(name)).collect();
    let is_only_one = |name: &String| {
        named.contains(name) && !listed.contains_key(name) && !captions.contains(&stem(name))
    };
    files.pictures.retain(|name| !is_only_one(name));
}

/// Tells what a person may not expect of the pairs.
pub(super) fn tell(items: &[Item], monitor: &dyn Monitor) {
    let pairs = items
        .iter()
        .filter_map(|item| Some((item, item.reference.as_ref()?)));
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let (mut stretched, mut equal) = (Vec::new(), Vec::new());
    for (item, reference) in pairs {
        if reference.is_stretched() {
            stretched.push(name(&item.picture));
        }
        if item.digest == reference.digest {
            equal.push(name(&item.picture));
        }
    }
    if !stretched.is_empty() {
        monitor.note(&format!(
            "{} brought to another shape, and stretched to it by more than a tenth, beside {} (crop the references, \
             or choose another `reference_size`)",
            shown::counted(stretched.len(), "reference"),
            named(&stretched)
        ));
    }
    if !equal.is_empty() {
        monitor.note(&format!(
            "{} the same as the picture beside it, which teaches to change nothing: beside {}",
            shown::counted(equal.len(), "reference"),
            named(&equal)
        ));
    }
}

/// A reference, opened, beside these views of a picture.
pub(super) fn beside(
    opened: &Opened<'_>,
    rule: ReferenceSize,
    own: Option<&OwnSize>,
    views: &[View],
) -> Reference {
    Reference {
        picture: opened.picture.to_owned(),
        digest: opened.digest,
        size: opened.size,
        views: self::views(rule, own, opened.size, views),
    }
}

/// The references of an Experiment's previews: none, one for all of them, or one for each. Where no size of the previews is set, it is
/// that of the reference, by the rules of the first data set or of the authors.
///
/// # Errors
/// If one is no picture that can be read, or no bucket takes it.
pub fn previews(
    experiment: &Experiment,
    settings: &SampleSettings,
    multiple: u32,
) -> Result<Vec<Preview>, Error> {
    let own_size = OwnSize::of(experiment, multiple);
    let sets = experiment.datasets();
    let rules = sets.first().map(|set| ViewRules::new(set, multiple));
    let rules = rules.transpose()?;
    let set_size = experiment.sets_preview_size().then_some(Size {
        width: settings.width,
        height: settings.height,
    });
    let preview = |path: &PathBuf| {
        let file = PictureFile::open(path)?;
        let own = own_size.as_ref().and_then(|own| own.view(file.size));
        let own = own.map_or(file.size, |view| view.bucket);
        let view = match (set_size, settings.reference_size, &rules) {
            (Some(size), ..) => whole(size, Resampling::Spec),
            (None, ReferenceSize::Target, Some(rules)) => {
                let placed = rules.buckets.place(file.size);
                let placed = placed.map_err(|e| Error::Unusable {
                    path: path.clone(),
                    problem: e.to_string(),
                })?;
                placed.views(1, false)[0]
            }
            (None, ..) => whole(own, Resampling::Spec),
        };
        let opened = Opened {
            picture: path,
            digest: file.digest,
            size: file.size,
        };
        Ok(Preview {
            reference: beside(&opened, settings.reference_size, own_size.as_ref(), &[view]),
            size: view.bucket,
        })
    };
    settings.references.iter().map(preview).collect()
}

#[cfg(test)]
#[path = "references_tests.rs"]
mod tests;
