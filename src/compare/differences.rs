//! In what two LoRAs were made otherwise, as far as they say.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::convert::provenance::Provenance;
use crate::experiment::{Experiment, default_of};
use crate::recipe::Diff;

/// Something that two LoRAs were made otherwise by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// A dotted name: of the recipe's fields behind `recipe.`, of the Experiment's, or of what a LoRA says beside.
    pub field: String,
    /// What it was for A; null where it was not set and has no default.
    pub a: Value,
    /// What it was for B.
    pub b: Value,
}

/// What two LoRAs were made otherwise by: recipe, Experiment, then what came of them.
pub(super) fn between(a: &Provenance, b: &Provenance) -> Vec<Difference> {
    let rules = |made: &Provenance| made.recipe.get("rules").cloned().unwrap_or_default();
    let mut found = Vec::new();
    for field in Diff::between(&rules(a), &rules(b)).fields {
        found.push(Difference {
            field: format!("recipe.{}", field.field),
            a: field.wanted.unwrap_or_default(),
            b: field.found.unwrap_or_default(),
        });
    }
    let same_recipe = found.is_empty();
    match (read(a), read(b)) {
        (Some(a), Some(b)) => found.extend(in_experiments(&a, &b)),
        // One of them is of a later version: what it says cannot be told field by field.
        _ => add(&mut found, "experiment", &a.experiment, &b.experiment),
    }
    add(&mut found, "flavor", &a.flavor, &b.flavor);
    add(&mut found, "steps done", &a.step, &b.step);
    add(&mut found, "computed", &a.computed, &b.computed);
    add(&mut found, "latents", &a.latents, &b.latents);
    if same_recipe {
        // Else they differ with the recipe.
        add(&mut found, "encoders", &a.encoders, &b.encoders);
        add(
            &mut found,
            "pictures and captions",
            &a.manifest,
            &b.manifest,
        );
    }
    let sources = |made: &Provenance| made.from.first().map(|from| from.source);
    add(&mut found, "started from", &sources(a), &sources(b));
    found
}

fn read(made: &Provenance) -> Option<Experiment> {
    Experiment::parse(Path::new(""), made.experiment.clone()).ok()
}

fn add(found: &mut Vec<Difference>, field: &str, a: &impl Serialize, b: &impl Serialize) {
    let (a, b) = (json!(a), json!(b));
    if a != b {
        let field = field.to_owned();
        found.push(Difference { field, a, b });
    }
}

fn in_experiments(a: &Experiment, b: &Experiment) -> Vec<Difference> {
    let (set_a, set_b) = (a.set_for_training(), b.set_for_training());
    let names: BTreeSet<&String> = set_a.keys().chain(set_b.keys()).collect();
    let value = |set: &Map<String, Value>, name: &str| {
        let set = set.get(name).cloned();
        set.unwrap_or_else(|| default_of(name))
    };
    let mut found = Vec::new();
    for name in names {
        add(&mut found, name, &value(&set_a, name), &value(&set_b, name));
    }
    let (sets_a, sets_b) = (a.dataset_fields(), b.dataset_fields());
    if sets_a.len() != sets_b.len() {
        add(&mut found, "data sets", &sets_a.len(), &sets_b.len());
        return found;
    }
    for (number, (a, b)) in sets_a.iter().zip(&sets_b).enumerate() {
        for field in Diff::between(&json!(a), &json!(b)).fields {
            let name = format!("dataset[{number}].{}", field.field);
            add(&mut found, &name, &field.wanted, &field.found);
        }
    }
    found
}
