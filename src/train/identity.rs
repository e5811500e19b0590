//! What decides the numbers of a run, and in what two of them differ, in the words of the Experiment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::TrainingSet;
use super::length::Length;
use crate::base_model::{self, BaseModel};
use crate::dataset::Item;
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::experiment::{Experiment, LoraDigests, Settings, Warmup, default_of};
use crate::lora::AdapterSet;
use crate::models::schedule::word;
use crate::recipe::diff::{Diff, readable};
use crate::shown;

/// Differences that a message names; the others are counted.
const MOST_NAMED: usize = 8;

/// What decides a run's numbers. A run goes on only where all of it is the same, a longer training aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The fingerprint of what in the Experiment decides trained numbers.
    pub training: Fingerprint,
    /// The digest of the denoiser's weights.
    pub denoiser: Digest,
    /// The digest of the list of entries that it trains from.
    pub manifest: Digest,
    /// The fingerprint of the adapters' tensors, names and shapes: how a checkpoint's `parameters` are laid out.
    pub layout: Fingerprint,
    /// What these were made from; None in checkpoints of versions that did not keep it.
    pub description: Option<Description>,
}

/// What a run's numbers depend on, with values that can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The Experiment's fields that differ from their defaults, by dotted name; its length is in steps.
    pub set: Map<String, Value>,
    /// What fields come to where the file may leave them to the flavor or the base model. They count instead of `set`, where both
    /// runs know them.
    pub resolved: Map<String, Value>,
    /// The recipe's fingerprint.
    pub recipe: Fingerprint,
    /// The recipe's fields.
    pub rules: Value,
    /// Each text encoder by slot, and the VAE, with the fingerprints of their specs.
    pub specs: BTreeMap<String, Fingerprint>,
    /// The pictures and clips, with those held out.
    pub pictures: usize,
    /// Digests of what is trained from, picture by picture, by the words of [`DATA`].
    pub data: BTreeMap<String, Digest>,
    /// The fields of the data sets, to explain `data`: they do not count themselves.
    pub datasets: Vec<Map<String, Value>>,
    /// What the base model says of itself beside its weights, by the words of a message.
    #[serde(default)]
    pub configurations: BTreeMap<String, Fingerprint>,
}

/// What the two are called of which differences are told.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a> {
    /// The first.
    pub(super) first: &'a str,
    /// The second, where its Experiment says something.
    pub(super) file: &'a str,
    /// The second, where something else does.
    pub(super) now: &'a str,
    /// Fields that may differ.
    pub(super) free: &'a [&'a str],
    /// What the second's Experiment names in fields whose digest alone is kept.
    pub(super) files: &'a [(&'a str, &'a Path)],
}

impl Sides<'static> {
    /// A run that stopped, and one that is to go on with it.
    pub(super) const RESUMED: Self = Self {
        first: "the checkpoint",
        file: "the Experiment",
        now: "now",
        // It decides what is written at the end, and no trained number.
        free: &["adapter.save_precision"],
        files: &[],
    };
}

impl Sides<'_> {
    pub(super) fn both(
        &self,
        what: &str,
        first: &dyn std::fmt::Display,
        now: &dyn std::fmt::Display,
    ) -> String {
        format!("{what}: {} {first}, {} {now}", self.first, self.now)
    }

    fn field(&self, name: &str, first: &str, now: &str) -> String {
        let file = self.files.iter().find(|(field, _)| *field == name);
        let file = file.map_or_else(String::new, |(_, file)| format!("{}, ", shown::path(file)));
        format!(
            "`{}`: {} {first}, {} {file}{now}",
            shown::text(name),
            self.first,
            self.file
        )
    }
}

/// The fields that name a LoRA's file.
const NAMES_LORA: [&str; 2] = ["adapter.from", "train.training_adapter"];
/// So many characters of a digest are shown, as of all others.
const DIGEST_CHARS: usize = 12;

/// The names in [`Description::configurations`].
const DENOISER_CONFIG: &str = "the denoiser's config.json";
const LATENTS: &str = "the VAE's scaling and shift of latents";

/// Which pictures and clips, and in what order: an epoch is shuffled by their places.
const PICTURES: &str = "pictures";
/// Which reference stands beside each picture, and how; left out where there is none.
const REFERENCES: &str = "references";
/// The names in [`Description::data`], with what to say where one differs.
const DATA: [(&str, &str); 6] = [
    (PICTURES, "the pictures or clips, or their order"),
    ("views", "the sizes and crops of pictures or clips"),
    ("captions", "the captions"),
    ("repeats", "how often pictures or clips come in an epoch"),
    ("held_out", "which pictures or clips are held out"),
    (REFERENCES, "the reference pictures"),
];

impl Identity {
    pub(super) fn new(
        experiment: &Experiment,
        base: &BaseModel,
        set: &TrainingSet<'_>,
        (denoiser, loras, adapters): (Digest, LoraDigests, &AdapterSet),
        length: Length,
    ) -> Result<Self, base_model::Error> {
        let (denoiser_config, latents) = base.configurations()?;
        let configurations = [(DENOISER_CONFIG, denoiser_config), (LATENTS, Some(latents))];
        let layout: Vec<_> = adapters
            .tensors()
            .map(|(name, shape, _)| (name, shape))
            .collect();
        let training = experiment.training(length.steps, length.warmup_steps, loras);
        let encoders = base.encoders.iter();
        let encoders = encoders.map(|e| (e.slot.clone(), e.fingerprint));
        let all: Vec<&Item> = set.items().iter().chain(set.held_out()).collect();
        Ok(Self {
            training: training.fingerprint(),
            denoiser,
            manifest: set.manifest(),
            layout: Fingerprint::of(&layout),
            description: Some(Description {
                set: training.by_name(),
                resolved: resolved(&base.settings),
                recipe: base.recipe.fingerprint(),
                rules: base.recipe.rules(),
                specs: encoders
                    .chain([("vae".to_owned(), base.vae.fingerprint)])
                    .collect(),
                pictures: all.len(),
                data: data(&all),
                datasets: experiment.dataset_fields(),
                configurations: configurations
                    .into_iter()
                    .filter_map(|(name, id)| Some((name.to_owned(), id?)))
                    .collect(),
            }),
        })
    }

    /// In what this run, which a checkpoint is of, differs from `now`: a clause for each. `longer` leaves out what a training of
    /// another length has otherwise.
    pub(super) fn differences(&self, now: &Self, longer: bool, sides: Sides<'_>) -> Vec<String> {
        let mut found = match (&self.description, &now.description) {
            (Some(a), Some(b)) => a.differences(&b.as_read(), longer, sides),
            _ if self.training != now.training => {
                let why = "the fields of the Experiment, which this checkpoint's version did not keep one by one";
                vec![sides.both(why, &self.training.short(), &now.training.short())]
            }
            _ => Vec::new(),
        };
        if self.denoiser != now.denoiser {
            let (a, b) = (self.denoiser.short(), now.denoiser.short());
            found.push(sides.both("the base model's weights", &a, &b));
        }
        if self.manifest != now.manifest && found.is_empty() {
            let (a, b) = (self.manifest.short(), now.manifest.short());
            found.push(sides.both("the list of entries in the store", &a, &b));
        }
        if self.layout != now.layout && found.is_empty() {
            let (a, b) = (self.layout.short(), now.layout.short());
            found.push(sides.both("the adapted modules", &a, &b));
        }
        found
    }

    /// The length that this run had; None where it was not kept.
    pub(super) fn length(&self) -> Option<Length> {
        let set = &self.description.as_ref()?.set;
        Some(Length {
            steps: set.get("train.steps")?.as_u64()?,
            warmup_steps: set
                .get("train.warmup_steps")
                .map_or(Some(0), Value::as_u64)?,
        })
    }
}

impl Description {
    /// As it comes back from a file: a number with many digits may be read as its neighbour.
    fn as_read(&self) -> Self {
        let text = serde_json::to_string(self).ok();
        let read = text.and_then(|text| serde_json::from_str(&text).ok());
        read.unwrap_or_else(|| self.clone())
    }

    fn differences(&self, now: &Self, longer: bool, sides: Sides<'_>) -> Vec<String> {
        let mut found = self.in_fields(now, longer, sides);
        if self.recipe != now.recipe {
            for field in Diff::between(&self.rules, &now.rules).fields {
                let name = format!("the recipe's `{}`", shown::text(&field.field));
                let [a, b] = [&field.wanted, &field.found].map(|v| readable(v.as_ref()));
                found.push(sides.both(&name, &shown::text(&a), &shown::text(&b)));
            }
            if Diff::between(&self.rules, &now.rules).is_empty() {
                found.push(sides.both("the recipe", &self.recipe.short(), &now.recipe.short()));
            }
        }
        found.extend(self.in_data(now, sides));
        for (slot, now) in &now.specs {
            let before = self.specs.get(slot).filter(|before| *before != now);
            // Where the recipe is another, so are the encoders' specs.
            if let (Some(before), true) = (before, found.is_empty()) {
                let name = format!("the component `{}`", shown::text(slot));
                found.push(sides.both(&name, &before.short(), &now.short()));
            }
        }
        for (name, now) in &now.configurations {
            let before = self.configurations.get(name);
            if let Some(before) = before.filter(|before| *before != now) {
                found.push(sides.both(
                    &shown::text(name).to_string(),
                    &before.short(),
                    &now.short(),
                ));
            }
        }
        found
    }

    fn in_fields(&self, now: &Self, longer: bool, sides: Sides<'_>) -> Vec<String> {
        let names: BTreeSet<&String> = [&self.set, &now.set, &self.resolved, &now.resolved]
            .into_iter()
            .flat_map(Map::keys)
            .collect();
        let is_free = |name: &str| {
            sides.free.contains(&name)
                || longer && ["train.steps", "train.warmup_steps"].contains(&name)
        };
        let mut found = Vec::new();
        for name in names.into_iter().filter(|name| !is_free(name)) {
            let (a, b) = match (self.resolved.get(name), now.resolved.get(name)) {
                (Some(a), Some(b)) => (Some(a), Some(b)),
                // A version that did not resolve the field; left to the flavor, it is null on both sides.
                _ => (self.set.get(name), now.set.get(name)),
            };
            if a != b {
                let [a, b] = [a, b].map(|value| shown_value(name, value));
                found.push(sides.field(name, &a, &b));
            }
        }
        found
    }

    fn in_data(&self, now: &Self, sides: Sides<'_>) -> Vec<String> {
        let mut found = Vec::new();
        for (name, words) in DATA {
            // A later version may digest more.
            let (Some(a), Some(b)) = (self.data.get(name), now.data.get(name)) else {
                continue;
            };
            if a == b {
                continue;
            }
            let counted = name == PICTURES && self.pictures != now.pictures;
            found.push(match counted {
                true => sides.both("the pictures and clips", &self.pictures, &now.pictures),
                false => words.to_owned(),
            });
            // The lists of fewer or more pictures differ in everything.
            if counted {
                break;
            }
        }
        if !found.is_empty() {
            found.extend(self.in_datasets(now, sides));
        }
        found
    }

    fn in_datasets(&self, now: &Self, sides: Sides<'_>) -> Vec<String> {
        if self.datasets.len() != now.datasets.len() {
            let (a, b) = (self.datasets.len(), now.datasets.len());
            return vec![sides.both("the data sets", &a, &b)];
        }
        let mut found = Vec::new();
        for (number, (a, b)) in self.datasets.iter().zip(&now.datasets).enumerate() {
            let diff = Diff::between(&json!(a), &json!(b));
            found.extend(diff.fields.into_iter().map(|field| {
                let name = format!("dataset[{number}].{}", field.field);
                let value = |v: &Option<Value>| shown_value(&name, v.as_ref());
                let (a, b) = (value(&field.wanted), value(&field.found));
                sides.field(&name, &a, &b)
            }));
        }
        found
    }
}

fn shown_value(field: &str, value: Option<&Value>) -> String {
    let value = match value {
        Some(value) => value.clone(),
        None => match default_of(field) {
            Value::Null => return "nothing".to_owned(),
            default => return format!("{default} (the default)"),
        },
    };
    match value {
        Value::Null => "nothing".to_owned(),
        // What a run keeps of a file is its digest, wherever the file lies.
        Value::String(digest) if NAMES_LORA.contains(&field) => {
            let short: String = digest.chars().take(DIGEST_CHARS).collect();
            format!("a LoRA of digest {}", shown::text(&short))
        }
        value => shown::text(&value.to_string()).to_string(),
    }
}

/// The clauses in one line, the first of them.
pub(super) fn joined(differences: &[String]) -> String {
    let named = differences.iter().take(MOST_NAMED).cloned();
    let mut named: Vec<String> = named.collect();
    if let Some(more @ 1..) = differences.len().checked_sub(MOST_NAMED) {
        named.push(format!("and {more} more"));
    }
    named.join("; ")
}

/// Whether a run of the length `before` may have got `now` by a change of its steps alone: a warm-up that is a share moves with them.
pub(super) fn is_same_but_longer(before: Length, now: Length, warmup: Warmup) -> bool {
    before.steps != now.steps && before == Length::with(warmup, before.steps)
}

fn resolved(settings: &Settings) -> Map<String, Value> {
    let Settings {
        process,
        adapter,
        train,
        ..
    } = settings;
    let mut facts = vec![
        ("model.prediction", json!(word(process.prediction))),
        ("model.zero_terminal_snr", json!(process.zero_terminal_snr)),
        ("adapter.alpha", json!(adapter.alpha)),
        ("train.guidance", json!(train.guidance)),
    ];
    // DDPM's noise levels have neither.
    if process.is_flow() {
        facts.push(("train.shift", json!(train.timesteps.shift)));
        facts.push(("train.timestep_sampling", json!(train.timesteps.sampling)));
    }
    let named = facts.into_iter();
    named
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn data(items: &[&Item]) -> BTreeMap<String, Digest> {
    let list = |of: &dyn Fn(&Item) -> Value| {
        let list: Vec<Value> = items.iter().map(|item| of(item)).collect();
        Digest::of(&canonical_json(&list))
    };
    let [pictures, views, captions, repeats, held_out, references] =
        DATA.map(|(name, _)| name.to_owned());
    let mut data = BTreeMap::from([
        (pictures, list(&|item| json!(item.digest))),
        (views, list(&|item| json!(item.views))),
        (captions, list(&|item| json!(item.captions))),
        (repeats, list(&|item| json!(item.repeats))),
        (held_out, list(&|item| json!(item.held_out))),
    ]);
    if items.iter().any(|item| item.reference.is_some()) {
        let known = |item: &Item| json!(item.reference.as_ref().map(|r| (r.digest, &r.views)));
        data.insert(references, list(&known));
    }
    data
}
