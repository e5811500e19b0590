//! What a training run depends on in an Experiment: everything but paths, names, previews and reporting. A run resumes only under
//! the same.
//!
//! The fingerprint is taken over the fields that differ from their defaults, so that an option that comes later, left at its
//! default, does not end the resume of a run that began before it. Checkpoints of the first version took all fields that there
//! were then; they are still known by that.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Experiment;
use super::raw::{Adapter, Raw, Train};
use crate::digest::Fingerprint;

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

impl Experiment {
    /// The id of what a training run depends on.
    pub fn training_fingerprint(&self) -> Fingerprint {
        let (model, changed) = (&self.raw.model, changed(&self.raw));
        Fingerprint::of(&json!({
            "version": VERSION,
            "family": model.family,
            "flavor": model.flavor,
            "changed": changed,
        }))
    }

    /// The id that a checkpoint of the first version has of the same; None where a field is set that there was not then.
    pub fn first_training_fingerprint(&self) -> Option<Fingerprint> {
        let raw = &self.raw;
        let known = |key: &str| match key.split_once('.') {
            Some(("adapter", field)) => FIRST_ADAPTER.contains(&field),
            Some(("train", field)) => FIRST_TRAIN.contains(&field),
            Some(("model", field)) => FIRST_MODEL.contains(&field),
            _ => false,
        };
        if !changed(raw).keys().all(|key| known(key)) {
            return None;
        }
        let mut train = section(&raw.train);
        train.retain(|field, _| FIRST_TRAIN.contains(&field.as_str()));
        let mut adapter = section(&raw.adapter);
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
        section(&raw.adapter),
        &section(&Adapter::default()),
    );
    let mut train = section(&raw.train);
    train.retain(|field, _| !REPORTING.contains(&field.as_str()));
    add("train", train, &train_defaults());
    let model = &raw.model;
    let model = Map::from_iter([
        ("prediction".to_owned(), json!(model.prediction)),
        (
            "zero_terminal_snr".to_owned(),
            json!(model.zero_terminal_snr.unwrap_or(false)),
        ),
        ("weights".to_owned(), json!(model.weights)),
    ]);
    let defaults = Map::from_iter([("zero_terminal_snr".to_owned(), json!(false))]);
    add("model", model, &defaults);
    changed
}

/// A number of steps has no default, so it is always among what is changed.
fn train_defaults() -> Map<String, Value> {
    // serde's defaults stand at the fields; the smallest section has them all.
    let least: Result<Train, _> = toml::from_str("steps = 1\noutput = \"\"");
    let mut defaults = least.map_or_else(|_| Map::new(), |train| section(&train));
    defaults.remove("steps");
    defaults
}

fn section(section: &impl Serialize) -> Map<String, Value> {
    match json!(section) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
