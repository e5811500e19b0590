//! OneTrainer: a JSON of the whole run, the concepts (its data sets) and the samples in it or in files that it names.

use super::{Gathered, Place, Sources};
use crate::foreign::config::Error;
use crate::foreign::config::setting::{Leaf, Step};
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

/// Concepts that are switched off, or only for validation, are no data sets.
fn drop_disabled(gathered: &mut Gathered) {
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
