//! SimpleTuner: config.json, config.toml or config.env with the options of its command line, and the list of data backends.

use super::{Gathered, Place, Sources, diffusers};
use crate::foreign::config::Error;
use crate::foreign::config::knowledge::flag;
use crate::foreign::config::read::Document;
use crate::foreign::config::setting::{Setting, Step};
use crate::foreign::config::tree::Node;

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
            for (name, value) in &script.variables {
                gathered.settings.push(Setting {
                    place: name.clone(),
                    file,
                    line: Some(value.line),
                    scope: "options".to_owned(),
                    name: name.clone(),
                    value: value.value(0),
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
    let mut kinds: Vec<(&str, Option<usize>)> = node
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
                "image" | "video" => ("backend", Some(gathered.new_set())),
                "text_embeds" | "image_embeds" => ("cache backend", None),
                _ => ("other backend", None),
            }
        })
        .collect();
    references(node.items(), &mut kinds);
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

/// Data sets of references are of those that name them.
fn references(backends: &[Node], kinds: &mut [(&str, Option<usize>)]) {
    let text = |backend: &Node, key: &str| backend.get(key).and_then(Node::text).map(str::to_owned);
    for (n, backend) in backends.iter().enumerate() {
        let (Some(set), Some(named)) = (kinds[n].1, text(backend, "conditioning_data")) else {
            continue;
        };
        let is_named = |other: &Node| {
            let kind = text(other, "conditioning_type").unwrap_or_default();
            text(other, "id").as_ref() == Some(&named) && kind.starts_with("reference")
        };
        let found = backends.iter().position(is_named);
        if let Some(kind) = found.and_then(|found| kinds.get_mut(found))
            && kind.0 == "other backend"
        {
            *kind = ("reference backend", Some(set));
        }
    }
}
