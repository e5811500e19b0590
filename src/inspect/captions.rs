//! The captions that there are to look at: those of an Experiment, with their pictures, or all that a store has.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::Error;
use crate::base_model::BaseModel;
use crate::cache::{self, EncoderId, Specs};
use crate::dataset::{self, Item, Preview, Reference};
use crate::digest::{Digest, Fingerprint};
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::store::{self, Record, StoreReader};

/// Where a caption is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A picture of the data sets.
    Picture,
    /// A prompt of the previews, or what stands for no caption.
    Prompt,
    /// The store, which does not know what its captions are for.
    Store,
}

/// A caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    /// Its text.
    pub text: String,
    /// Where it is from.
    pub origin: Origin,
    /// The items that it belongs to, by their places in [`Captions::items`].
    pub items: Vec<usize>,
}

/// Captions, each once, and the encoders that there are for them.
pub struct Captions {
    /// In the order of the data sets, then the prompts; of a store, sorted.
    pub all: Vec<Caption>,
    /// The pictures; none of a store.
    pub items: Vec<Item>,
    /// The references of prompts.
    pub references: HashMap<String, Reference>,
    /// In the recipe's order.
    pub encoders: Vec<EncoderId>,
    /// What of a store could not be understood, a line each.
    pub problems: Vec<String>,
}

impl Captions {
    /// Those of an Experiment. A picture that cannot be used is told, and is not among the items.
    ///
    /// # Errors
    /// If a data set cannot be read.
    pub fn of_experiment(
        experiment: &Experiment,
        base: &BaseModel,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let multiple = base.latent_geometry().side_multiple();
        let items = match experiment.datasets().is_empty() {
            true => Vec::new(),
            false => dataset::open_usable(experiment, multiple, monitor)?.0,
        };
        let mut all: Vec<Caption> = Vec::new();
        let mut places = HashMap::new();
        let of_items = items.iter().enumerate();
        let of_items = of_items.flat_map(|(n, item)| {
            let captions = item.captions.iter();
            captions.map(move |text| (text.clone(), Some(n)))
        });
        let extra = experiment.extra_captions().into_iter();
        for (text, item) in of_items.chain(extra.map(|text| (text, None))) {
            let place = *places.entry(text.clone()).or_insert_with(|| {
                all.push(Caption {
                    text,
                    origin: item.map_or(Origin::Prompt, |_| Origin::Picture),
                    items: Vec::new(),
                });
                all.len() - 1
            });
            all[place].items.extend(item);
        }
        Ok(Self {
            all,
            items,
            references: of_prompts(experiment, base, monitor),
            encoders: Specs::from(base).encoders,
            problems: Vec::new(),
        })
    }

    /// All that a store has an entry of, under any text encoder; `reader` is of all its entries.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn of_store(reader: &StoreReader) -> Result<Self, Error> {
        let mut texts = BTreeSet::new();
        let has_entries = |spec: &Fingerprint| Ok(reader.has_entries(spec));
        let (encoders, problems) = encoders_of_store(reader, has_entries)?;
        for encoder in &encoders {
            let mut take = |record: Record| _ = texts.insert(record.source);
            let told = reader.each_record(&encoder.spec, &mut take);
            told.map_err(cache::Error::from)?;
        }
        let caption = |text| Caption {
            text,
            origin: Origin::Store,
            items: Vec::new(),
        };
        Ok(Self {
            all: texts.into_iter().map(caption).collect(),
            items: Vec::new(),
            references: HashMap::new(),
            encoders,
            problems,
        })
    }

    /// The files of the pictures that a caption belongs to.
    pub fn pictures(&self, caption: &Caption) -> Vec<PathBuf> {
        let items = caption.items.iter().map(|&item| &self.items[item]);
        items.map(|item| item.picture.clone()).collect()
    }

    /// The first picture that a caption belongs to, and what is given beside it: that of a prompt, where it belongs to none.
    pub fn shown(&self, caption: &Caption) -> (Option<&Item>, Option<&Reference>) {
        match caption.items.first().and_then(|&item| self.items.get(item)) {
            Some(item) => (Some(item), item.reference.as_ref()),
            None => (None, self.references.get(&caption.text)),
        }
    }

    /// The digests of the pictures that a caption belongs to: copies of a file are one picture.
    pub fn digests(&self, caption: &Caption) -> BTreeSet<Digest> {
        let items = caption.items.iter();
        items.map(|&item| self.items[item].digest).collect()
    }

    /// Their texts.
    pub fn texts(&self) -> Vec<&str> {
        self.all
            .iter()
            .map(|caption| caption.text.as_str())
            .collect()
    }
}

/// The references of an Experiment's prompts: of a prompt that comes twice, the first. What cannot be read is told.
fn of_prompts(
    experiment: &Experiment,
    base: &BaseModel,
    monitor: &dyn Monitor,
) -> HashMap<String, Reference> {
    let settings = &base.settings.sample;
    let multiple = base.latent_geometry().side_multiple();
    let previews = dataset::previews(experiment, settings, multiple);
    let previews = previews.unwrap_or_else(|error| {
        monitor.problem(&error.to_string());
        Vec::new()
    });
    let mut found = HashMap::new();
    for (number, prompt) in settings.prompts.iter().enumerate() {
        let preview: Option<&Preview> = previews.get(number).or(previews.first());
        if let Some(preview) = preview {
            let own = found.entry(prompt.clone());
            own.or_insert_with(|| preview.reference.clone());
        }
    }
    found
}

/// Those text encoders of a store that have an entry as `has_entries` tells, each called by its kind and the beginning of its
/// fingerprint, as a store knows no recipe; and a line for each spec that is not what was written, whose entries are left out.
///
/// # Errors
/// If the store cannot be read.
pub(super) fn encoders_of_store(
    reader: &StoreReader,
    has_entries: impl Fn(&Fingerprint) -> Result<bool, store::Error>,
) -> Result<(Vec<EncoderId>, Vec<String>), Error> {
    let (mut encoders, mut problems) = (Vec::new(), Vec::new());
    for spec in reader.specs().map_err(cache::Error::from)? {
        if !has_entries(&spec).map_err(cache::Error::from)? {
            continue;
        }
        match slot(reader, &spec) {
            Ok(None) => {}
            Ok(Some(slot)) => encoders.push(EncoderId { slot, spec }),
            Err(e) if e.is_content() => problems.push(format!("{e}: its entries are left out")),
            Err(e) => return Err(cache::Error::from(e).into()),
        }
    }
    // By kind: the order of fingerprints would look like chance.
    encoders.sort_by(|a, b| a.slot.cmp(&b.slot));
    Ok((encoders, problems))
}

/// What a spec of the store is called, if it is a text encoder's.
fn slot(reader: &StoreReader, spec: &Fingerprint) -> Result<Option<String>, store::Error> {
    let json = reader.spec_json(spec)?;
    let json = json.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    let Some(json) = json.filter(|json| json.get("tokens").is_some()) else {
        return Ok(None);
    };
    let kind = json.pointer("/architecture/kind").and_then(Value::as_str);
    Ok(Some(format!(
        "{}_{}",
        kind.unwrap_or("encoder"),
        spec.short()
    )))
}
