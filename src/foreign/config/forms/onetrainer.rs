//! OneTrainer: a JSON of the whole run, the concepts (its data sets) and the samples in it or in files that it names.

use super::{Gathered, Place, Sources};
use crate::foreign::config::Error;
use crate::foreign::config::setting::{Leaf, Setting, Step};
use crate::foreign::config::tree::{Node, Value};

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    let given = sources.count();
    let is_list = |sources: &Sources, file: usize, key: &str| {
        let node = sources.values(file).and_then(|node| node.items().first());
        node.is_some_and(|node| node.has(key))
    };
    let mut concepts = (0..given).find(|file| is_list(sources, *file, "image"));
    let mut samples = (0..given).find(|file| is_list(sources, *file, "prompt"));
    let main = sources.values(0).filter(|node| node.items().is_empty());
    let main = main.ok_or_else(|| Error::OtherTrainer {
        file: sources.path(0).to_owned(),
        trainer: "onetrainer",
        why: "the first file is not that of the run".to_owned(),
    })?;
    for _ in main.get("concepts").map_or(&[][..], Node::items) {
        gathered.new_set();
    }
    let inside = |key: &str| main.get(key).is_some_and(|node| !node.items().is_empty());
    let (has_concepts, has_samples) = (inside("concepts"), inside("samples"));
    gathered.add_all(main, 0, |leaf| place(leaf, &[]));
    for (found, has, key) in [
        (&mut concepts, has_concepts, "concept_file_name"),
        (&mut samples, has_samples, "sample_definition_file_name"),
    ] {
        let name = gathered.text("config", key);
        if let (None, false, Some(name)) = (*found, has, name) {
            *found = sources.companion(0, &name)?;
            if found.is_none() {
                gathered.not_here(&name, key);
            }
        }
    }
    for (file, prefix) in [(concepts, "concepts"), (samples, "samples")] {
        let Some((file, node)) = file.and_then(|file| Some((file, sources.values(file)?))) else {
            continue;
        };
        if prefix == "concepts" {
            for _ in node.items() {
                gathered.new_set();
            }
        }
        gathered.add_all(node, file, |leaf| place(leaf, &[prefix]));
    }
    drop_disabled(&mut gathered);
    from_older(&mut gathered);
    Ok(gathered)
}

fn place(leaf: &Leaf<'_>, prefix: &[&str]) -> Place {
    let keys = [prefix, leaf.keys().as_slice()].concat();
    let item = leaf.way.iter().find_map(|step| match step {
        Step::Item(n) => Some(*n),
        Step::Key(_) => None,
    });
    let Some((name, scope)) = keys.split_last() else {
        return Place::new("config", "");
    };
    let scope = match scope {
        [] => "config".to_owned(),
        scope => scope.join("."),
    };
    match (keys.first(), item) {
        (Some(&"concepts"), Some(set)) => Place::new(scope, *name).ranked(2).of_set(set),
        _ => Place::new(scope, *name),
    }
}

/// Concepts that are switched off, or only for validation, are no data sets; samples that are switched off no previews.
fn drop_disabled(gathered: &mut Gathered) {
    let is_off_sample =
        |s: &Setting| s.scope == "samples" && s.name == "enabled" && s.value == Value::Flag(false);
    let beginning = |s: &Setting| {
        (
            s.file,
            s.place.split(']').next().unwrap_or_default().to_owned(),
        )
    };
    let unused: Vec<(usize, String)> = gathered
        .settings
        .iter()
        .filter(|s| is_off_sample(s))
        .map(beginning)
        .collect();
    for setting in &mut gathered.settings {
        if setting.scope == "samples" && unused.contains(&beginning(setting)) {
            "unused samples".clone_into(&mut setting.scope);
        }
    }
    let is_off = |scope: &str, name: &str, value: &Value| match (scope, name, value) {
        ("concepts", "enabled", Value::Flag(false)) => true,
        ("concepts", "type", Value::Text(kind)) => kind != "STANDARD",
        _ => false,
    };
    let off: Vec<usize> = gathered
        .settings
        .iter()
        .filter(|s| is_off(&s.scope, &s.name, &s.value))
        .flat_map(|s| s.sets.clone())
        .collect();
    for setting in &mut gathered.settings {
        if setting.sets.iter().any(|set| off.contains(set)) {
            setting.scope = format!("unused {}", setting.scope);
        }
    }
}

/// The number of the last version of OneTrainer's configs that calls something by a name, and the name of today
/// (modules/util/config/TrainConfig.py `__migration_5` to `__migration_9`). Files without a number are presets, which are as
/// today's.
fn from_older(gathered: &mut Gathered) {
    const RENAMED: [(i64, &str, &str); 5] = [
        (5, "save_after", "save_every"),
        (5, "save_after_unit", "save_every_unit"),
        (7, "lora_layers", "layer_filter"),
        (7, "lora_layer_preset", "layer_filter_preset"),
        (7, "lora_layers_regex", "layer_filter_regex"),
    ];
    let of_run = |name: &'static str| move |s: &&Setting| s.scope == "config" && s.name == name;
    let found = gathered.settings.iter().find(of_run("__version"));
    let Some(Value::Integer(version)) = found.map(|s| s.value.clone()) else {
        return;
    };
    let weight_dtype = gathered.settings.iter().find(of_run("weight_dtype"));
    let weight_dtype = weight_dtype.map(|s| s.value.clone());
    for setting in &mut gathered.settings {
        // What FLUX and SD3 had was the prior's; what stood under its own name was put aside.
        match setting.scope.as_str() {
            "prior" if version <= 8 => "transformer".clone_into(&mut setting.scope),
            "transformer" if version <= 8 => "prior".clone_into(&mut setting.scope),
            _ => {}
        }
        if version <= 9 && setting.name == "weight_dtype" && setting.scope != "config" {
            let none = Value::Text("NONE".to_owned());
            if let (true, Some(dtype)) = (setting.value == none, &weight_dtype) {
                setting.value.clone_from(dtype);
            }
        }
        let renamed = RENAMED.iter().find(|(last, old, _)| {
            version <= *last && setting.scope == "config" && setting.name == *old
        });
        if let Some((_, _, new)) = renamed {
            (*new).clone_into(&mut setting.name);
        }
    }
}
