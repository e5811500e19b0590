//! SimpleTuner: config.json, config.toml or config.env with the options of its command line, and the list of data backends.

use super::{Gathered, Place, Sources, diffusers};
use crate::foreign::config::Error;
use crate::foreign::config::knowledge::flag;
use crate::foreign::config::read::Document;
use crate::foreign::config::setting::{Setting, Step};
use crate::foreign::config::tree::{Node, Value};

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    let given = sources.count();
    let is_backends = |node: &Node| !node.items().is_empty();
    let mut backends = (0..given).find(|file| sources.values(*file).is_some_and(is_backends));
    for file in (0..given).filter(|file| backends != Some(*file)) {
        options(sources, file, &mut gathered);
    }
    let named = ["data_backend_config", "DATALOADER_CONFIG"]
        .iter()
        .find_map(|name| gathered.text("options", name));
    if let (Some(name), None) = (named, backends) {
        backends = sources.companion(0, &name)?;
        if backends.is_none() {
            gathered.not_here(&name, "data_backend_config");
        }
    }
    if let Some((file, node)) = backends.and_then(|file| Some((file, sources.values(file)?))) {
        of_backends(node, file, &mut gathered);
    }
    gathered.split("options", "optimizer_config", "optimizer_config");
    Ok(gathered)
}

fn options(sources: &Sources, file: usize, gathered: &mut Gathered) {
    match sources.document(file) {
        Some(Document::Values(node)) => gathered.add_all(node, file, |leaf| {
            let keys = leaf.keys();
            let name = keys.join(".");
            Place::new("options", name.trim_start_matches('-'))
        }),
        Some(Document::Script(script)) => {
            for (name, value, line) in &script.variables {
                gathered.settings.push(Setting {
                    place: name.clone(),
                    file,
                    line: Some(*line),
                    scope: "options".to_owned(),
                    name: name.clone(),
                    value: Value::Text(value.clone()),
                    sets: Vec::new(),
                    rank: 1,
                });
            }
            diffusers::command(script, file, &|_| false, gathered);
            for setting in &mut gathered.settings {
                if setting.scope == "arguments" {
                    "options".clone_into(&mut setting.scope);
                }
            }
        }
        None => {}
    }
}

fn of_backends(node: &Node, file: usize, gathered: &mut Gathered) {
    let kinds: Vec<(&str, Option<usize>)> = node
        .items()
        .iter()
        .map(|backend| {
            let kind = backend.get("dataset_type").and_then(Node::text);
            let is_off = |key| {
                backend
                    .get(key)
                    .is_some_and(|n| flag(&n.value) == Some(true))
            };
            match kind.unwrap_or("image") {
                _ if is_off("disabled") || is_off("disable") => ("disabled backend", None),
                "image" => ("backend", Some(gathered.new_set())),
                "text_embeds" | "image_embeds" => ("cache backend", None),
                _ => ("other backend", None),
            }
        })
        .collect();
    gathered.add_all(node, file, |leaf| {
        let Some(Step::Item(number)) = leaf.way.first() else {
            return Place::new("backends", leaf.keys().join("."));
        };
        let (scope, set) = kinds.get(*number).copied().unwrap_or(("backends", None));
        let place = Place::new(scope, leaf.keys().join(".")).ranked(3);
        match set {
            Some(set) => place.of_set(set),
            None => place,
        }
    });
}
