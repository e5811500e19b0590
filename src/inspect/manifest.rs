//! A manifest: all that another program has to know to read an Experiment's captions and pictures from a store, and nothing that
//! it would have to work out anew. The Python package under `python/` reads it.
//!
//! The store is looked at as `train` does, and what it lacks is refused in the same words, so that who reads by a manifest reads
//! what a training would.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::Error;
use crate::base_model::BaseModel;
use crate::cache::{
    self, Description, Manifest, Reader, Refusal, Specs, refuse_if_missing, refuse_without_store,
    time_ids,
};
use crate::dataset::{self, Item, Reference, Viewed};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::recipe::latents::View;
use crate::store::{Place, Store, TOOL};

/// The version of the members below.
const MANIFEST_VERSION: u32 = 1;

/// That of a manifest with references: who does not know them must not read pictures without.
const WITH_REFERENCES: u32 = 2;

/// What a manifest is to list.
#[derive(Clone, Copy, Debug)]
pub enum Listed<'a> {
    /// The Experiment's pictures with their captions, its prompts, and the empty caption where it is needed.
    Experiment,
    /// These captions, and no pictures.
    Captions(&'a [String]),
}

/// What to read, and how it becomes what the denoiser receives.
#[derive(Debug, Serialize)]
pub struct ManifestReport {
    version: u32,
    /// The plumb that wrote it.
    tool: &'static str,
    experiment: ExperimentFile,
    /// The store's folder.
    pub store: String,
    /// The recipe, the specs, and how tensors are put together.
    pub model: Description,
    /// The digest of the list of entries, as a LoRA's metadata has it.
    entries: Digest,
    /// Captions that belong to no picture.
    pub prompts: Vec<String>,
    /// In the order of the data sets and their files.
    pub pictures: Vec<Picture>,
    /// The references of the previews: one for all prompts, or one for each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    preview_references: Vec<ReferencePicture>,
}

/// The Experiment that a manifest was made of.
#[derive(Debug, Serialize)]
struct ExperimentFile {
    file: String,
    /// The digest of its text.
    digest: Digest,
    /// The probability with which a training drops a caption.
    caption_dropout: f64,
}

/// A picture, as [`Item`] has it.
#[derive(Debug, Serialize)]
pub struct Picture {
    file: String,
    /// What it is known by.
    digest: Digest,
    captions: Vec<String>,
    /// All of one size.
    pub views: Vec<PictureView>,
    repeats: u32,
    held_out: bool,
    /// What the denoiser is given beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<ReferencePicture>,
}

/// A reference picture, as [`Reference`] has it.
#[derive(Debug, Serialize)]
pub struct ReferencePicture {
    file: String,
    digest: Digest,
    /// One for each view of the picture, in their order. The denoiser is given the latents' mean.
    views: Vec<PictureView>,
}

/// One view of a picture.
#[derive(Debug, Serialize)]
pub struct PictureView {
    /// The fingerprint of its latents' entry.
    entry: Fingerprint,
    /// What is seen of it; of a clip, which frames as well.
    pub view: View,
    /// [`time_ids`]: the input of the size embedding, where the model has one.
    time_ids: [f32; 6],
}

impl ManifestReport {
    /// The bytes of a file: the canonical JSON of the members, with a digest of that before them.
    pub fn to_bytes(&self) -> Vec<u8> {
        // No other member comes before it in canonical JSON, so that who checks it need only cut it out.
        let mut members: Value = json!(self);
        let digest = Digest::of(&canonical_json(&members));
        members["digest"] = json!(digest);
        canonical_json(&members)
    }
}

/// The manifest of what is `listed` of an Experiment. `place` is the store to read from, where it is not the Experiment's.
///
/// # Errors
/// [`Error::Refused`] where the store lacks something; otherwise if the pictures or the store cannot be read.
pub fn manifest(
    experiment: &Experiment,
    base: &BaseModel,
    place: &Place,
    listed: Listed<'_>,
    monitor: &dyn Monitor,
) -> Result<ManifestReport, Error> {
    let (items, previews, prompts) = match listed {
        Listed::Captions(captions) => (Vec::new(), Vec::new(), captions.to_vec()),
        Listed::Experiment => {
            let multiple = base.latent_geometry().side_multiple();
            let items = dataset::open(experiment, multiple, monitor)?;
            let previews = dataset::previews(experiment, &base.settings.sample, multiple)?;
            (items, previews, experiment.extra_captions())
        }
    };
    let viewed = dataset::viewed(&items, &previews);
    let of_pictures = items.iter().flat_map(|item| &item.captions);
    let captions: BTreeSet<String> = of_pictures.chain(&prompts).cloned().collect();
    refuse(
        experiment,
        base,
        place,
        listed,
        (&captions, &viewed),
        monitor,
    )?;
    let used = Manifest::new(base, captions.iter().map(String::as_str), &viewed);
    let specs = Specs::from(base);
    Ok(ManifestReport {
        version: match viewed.len() == items.len() {
            true => MANIFEST_VERSION,
            false => WITH_REFERENCES,
        },
        tool: TOOL,
        experiment: ExperimentFile {
            file: shown_absolute(&experiment.file),
            digest: Digest::of(experiment.text.as_bytes()),
            caption_dropout: base.settings.train.caption_dropout,
        },
        store: shown_store(place),
        model: base.into(),
        entries: used.digest(),
        prompts,
        pictures: items.iter().map(|item| picture(&specs, item)).collect(),
        preview_references: (previews.iter())
            .map(|preview| reference_picture(&specs, &preview.reference))
            .collect(),
    })
}

/// Refuses what `train` would.
fn refuse(
    experiment: &Experiment,
    base: &BaseModel,
    place: &Place,
    listed: Listed<'_>,
    (captions, pictures): (&BTreeSet<String>, &[Viewed<'_>]),
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let found = match Store::open_at(place) {
        Err(e) if e.is_no_store() => Some(refuse_without_store(experiment, &place.shown())),
        Err(error) => return Err(cache::Error::Store(error).into()),
        Ok(store) => {
            let needed = Manifest::new(base, captions.iter().map(String::as_str), pictures);
            let reader = Reader::open_for(Specs::from(base), &store, needed.entries())?;
            for problem in reader.problems() {
                monitor.problem(&problem);
            }
            refuse_if_missing(experiment, base, &store, &reader, captions, pictures)?
        }
    };
    let Some(mut refusal) = found else {
        return Ok(());
    };
    add_to_command(&mut refusal, experiment, place, listed);
    Err(Error::Refused(Box::new(refusal)))
}

/// `plumb encode` makes what the Experiment has, in the Experiment's own store.
fn add_to_command(
    refusal: &mut Refusal,
    experiment: &Experiment,
    place: &Place,
    listed: Listed<'_>,
) {
    if matches!(listed, Listed::Captions(_)) {
        let more = " --captions FILE, a text file with the captions, one a line";
        refusal.command.push_str(more);
    }
    let own = experiment.store_path().ok();
    if own.is_none_or(|own| !is_same(own.folder(), place.folder())) {
        let more = format!(", with `[store] path` set to {}", place.shown().display());
        refusal.command.push_str(&more);
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn picture(specs: &Specs, item: &Item) -> Picture {
    Picture {
        file: shown_absolute(&item.picture),
        digest: item.digest,
        captions: item.captions.clone(),
        views: views(specs, &item.viewed()),
        repeats: item.repeats,
        held_out: item.held_out,
        reference: item.reference.as_ref().map(|r| reference_picture(specs, r)),
    }
}

fn reference_picture(specs: &Specs, reference: &Reference) -> ReferencePicture {
    ReferencePicture {
        file: shown_absolute(&reference.picture),
        digest: reference.digest,
        views: views(specs, &reference.viewed()),
    }
}

fn views(specs: &Specs, of: &Viewed<'_>) -> Vec<PictureView> {
    let view = |&view: &View| PictureView {
        entry: specs.view(of.digest, view),
        view,
        time_ids: time_ids(of.size, &view),
    };
    of.views.iter().map(view).collect()
}

fn shown_store(place: &Place) -> String {
    let shown = place.shown();
    match shown == place.folder() {
        true => shown_absolute(&shown),
        false => shown.display().to_string(),
    }
}

/// For people and for programs elsewhere: no part of what is read.
fn shown_absolute(path: &Path) -> String {
    let absolute = std::path::absolute(path);
    absolute.as_deref().unwrap_or(path).display().to_string()
}
