//! What a training run depends on in an Experiment: everything but paths, names, previews and reporting. A run resumes only under
//! the same.
//!
//! The fingerprint is taken over the fields that differ from their defaults, so that an option that comes later, left at its
//! default, does not end the resume of a run that began before it. Checkpoints of the first version took all fields that there
//! were then; they are still known by that.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Experiment;
use super::raw::{Adapter, Raw, Train, Warmup};
use crate::digest::{Digest, Fingerprint};

/// Of the form below. A change of a default must come with a new version that names the old default.
const VERSION: u32 = 2;

/// Fields of `[train]` that change no trained number.
const REPORTING: [&str; 7] = [
    "output",
    "name",
    "checkpoint_every",
    "keep_checkpoints",
    "validate_every",
    "sample_every",
    "gradient_checkpointing",
];

/// The LoRA that a training starts from.
const START: &str = "adapter.from";

/// The LoRA that lies beneath the trained one.
const TRAINING_ADAPTER: &str = "train.training_adapter";

/// The fields that the first version took of each section.
const FIRST_ADAPTER: [&str; 5] = ["rank", "alpha", "targets", "dropout", "save_precision"];
const FIRST_TRAIN: [&str; 24] = [
    "steps",
    "learning_rate",
    "lr_schedule",
    "warmup_steps",
    "batch_size",
    "gradient_accumulation",
    "max_grad_norm",
    "beta1",
    "beta2",
    "epsilon",
    "weight_decay",
    "seed",
    "caption_dropout",
    "timestep_sampling",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "shift",
    "guidance",
    "loss_weighting",
    "min_snr_gamma",
    "noise_offset",
    "compute",
    "validation_share",
];
const FIRST_MODEL: [&str; 3] = ["prediction", "zero_terminal_snr", "weights"];

/// The digests of the LoRAs that an Experiment names for its training.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoraDigests {
    /// Of the one that it starts from.
    pub start: Option<Digest>,
    /// Of the one that lies beneath the trained one.
    pub training_adapter: Option<Digest>,
}

/// What a training depends on in an Experiment, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingFields {
    family: String,
    flavor: String,
    changed: Map<String, Value>,
}

impl TrainingFields {
    /// The id of what a training run depends on.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&json!({
            "version": VERSION,
            "family": self.family,
            "flavor": self.flavor,
            "changed": self.changed,
        }))
    }

    /// The fields that differ from their defaults, and the base model's name, by dotted name.
    pub fn by_name(&self) -> Map<String, Value> {
        let mut fields = self.changed.clone();
        fields.insert("model.family".to_owned(), json!(self.family));
        fields.insert("model.flavor".to_owned(), json!(self.flavor));
        fields
    }
}

/// What a field is where a file does not set it; null where it has no default.
pub fn default_of(field: &str) -> Value {
    let (section, field) = field.split_once('.').unwrap_or(("", field));
    let defaults = match section {
        "adapter" => section_of(&Adapter::default()),
        "train" => section_of(&Train::default()),
        "model" => model_defaults(),
        _ => Map::new(),
    };
    defaults.get(field).cloned().unwrap_or(Value::Null)
}

impl Experiment {
    /// What a training of `steps` steps, `warmup_steps` of them for warm-up, depends on. The file may give both in other measures.
    pub fn training(&self, steps: u64, warmup_steps: u64, loras: LoraDigests) -> TrainingFields {
        let mut changed = changed(&resolved(&self.raw, steps, warmup_steps));
        // Where the file lies changes no number.
        for (field, digest) in [
            (START, loras.start),
            (TRAINING_ADAPTER, loras.training_adapter),
        ] {
            if changed.remove(field).is_some() {
                changed.insert(field.to_owned(), json!(digest));
            }
        }
        TrainingFields {
            family: self.raw.model.family.clone(),
            flavor: self.raw.model.flavor.clone(),
            changed,
        }
    }

    /// The fields that differ from their defaults and decide trained numbers, by dotted name, as the file says them.
    pub fn set_for_training(&self) -> Map<String, Value> {
        changed(&self.raw)
    }

    /// The LoRAs that a training is made with, as the file names them, by the names of the fields.
    pub fn loras_of_training(&self) -> Vec<(&'static str, &Path)> {
        let start = self.raw.adapter.from.as_deref();
        let beneath = self.raw.train.training_adapter.as_deref();
        let named = [(START, start), (TRAINING_ADAPTER, beneath)];
        let there = named.into_iter();
        there
            .filter_map(|(field, path)| Some((field, path?)))
            .collect()
    }

    /// The fields of each data set but its path. What decides numbers is what they come to: pictures, crops and captions.
    pub fn dataset_fields(&self) -> Vec<Map<String, Value>> {
        let mut sets: Vec<_> = self.raw.dataset.iter().map(section_of).collect();
        for set in &mut sets {
            set.remove("path");
            set.remove("references");
        }
        sets
    }

    /// The id that a checkpoint of the first version has of the same; None where a field is set that there was not then.
    pub fn first_training_fingerprint(&self, steps: u64, warmup_steps: u64) -> Option<Fingerprint> {
        let raw = &resolved(&self.raw, steps, warmup_steps);
        let known = |key: &str| match key.split_once('.') {
            Some(("adapter", field)) => FIRST_ADAPTER.contains(&field),
            Some(("train", field)) => FIRST_TRAIN.contains(&field),
            Some(("model", field)) => FIRST_MODEL.contains(&field),
            _ => false,
        };
        if !changed(raw).keys().all(|key| known(key)) {
            return None;
        }
        let mut train = section_of(&raw.train);
        train.retain(|field, _| FIRST_TRAIN.contains(&field.as_str()));
        let mut adapter = section_of(&raw.adapter);
        adapter.retain(|field, _| FIRST_ADAPTER.contains(&field.as_str()));
        let mut parts = json!({
            "adapter": adapter,
            "family": raw.model.family,
            "flavor": raw.model.flavor,
            "prediction": raw.model.prediction,
            "zero_terminal_snr": raw.model.zero_terminal_snr.unwrap_or(false),
            "train": train,
        });
        // The first version left it out where it was not set, and its fingerprints stand in checkpoints.
        if let Some(quantized) = raw.model.weights {
            parts["weights"] = json!(quantized);
        }
        Some(Fingerprint::of(&parts))
    }
}

/// The same file with its length in steps.
fn resolved(raw: &Raw, steps: u64, warmup_steps: u64) -> Raw {
    let mut raw = raw.clone();
    (raw.train.steps, raw.train.epochs) = (Some(steps), None);
    raw.train.warmup_steps = Warmup::Steps(warmup_steps);
    raw
}

/// The fields that differ from their defaults, by dotted name.
fn changed(raw: &Raw) -> Map<String, Value> {
    let mut changed = Map::new();
    let mut add = |name: &str, section: Map<String, Value>, defaults: &Map<String, Value>| {
        for (field, value) in section {
            // An option without a default is null where it is not set.
            if defaults.get(&field).unwrap_or(&Value::Null) != &value {
                changed.insert(format!("{name}.{field}"), value);
            }
        }
    };
    add(
        "adapter",
        section_of(&raw.adapter),
        &section_of(&Adapter::default()),
    );
    let mut train = section_of(&raw.train);
    train.retain(|field, _| !REPORTING.contains(&field.as_str()));
    add("train", train, &section_of(&Train::default()));
    let model = &raw.model;
    let model = Map::from_iter([
        ("prediction".to_owned(), json!(model.prediction)),
        (
            "zero_terminal_snr".to_owned(),
            json!(model.zero_terminal_snr.unwrap_or(false)),
        ),
        ("weights".to_owned(), json!(model.weights)),
        ("compute".to_owned(), json!(model.compute)),
    ]);
    add("model", model, &model_defaults());
    changed
}

fn model_defaults() -> Map<String, Value> {
    Map::from_iter([("zero_terminal_snr".to_owned(), json!(false))])
}

fn section_of(section: &impl Serialize) -> Map<String, Value> {
    match json!(section) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
