//! ai-toolkit: a YAML (or JSON) with `job`, `config` and in it a list of processes, of which the first is read.

use super::{Gathered, Place, Sources};
use crate::foreign::config::Error;
use crate::foreign::config::setting::{Leaf, Step};
use crate::foreign::config::tree::{Node, Value};

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    let wrong = |why: &str| Error::OtherTrainer {
        file: sources.path(0).to_owned(),
        trainer: "ai-toolkit",
        why: why.to_owned(),
    };
    let node = sources.values(0).ok_or_else(|| wrong("it is a script"))?;
    let config = node
        .get("config")
        .ok_or_else(|| wrong("it has no `config`"))?;
    let process = config.get("process").and_then(|list| list.items().first());
    let process = process.ok_or_else(|| wrong("`config.process` is no list of processes"))?;
    for _ in process.get("datasets").map_or(&[][..], Node::items) {
        gathered.new_set();
    }
    gathered.add_all(node, 0, place);
    // Every `[name]` is the run's (toolkit/config.py `preprocess_config`).
    if let Some(name) = config.get("name").and_then(Node::text) {
        for setting in &mut gathered.settings {
            replaced(&mut setting.value, "[name]", name);
        }
    }
    // So is every `[trigger]` of a preview, and nothing where there is no such word (jobs/process/BaseSDTrainProcess.py:326-328).
    let trigger = gathered.text("process", "trigger_word").unwrap_or_default();
    for setting in &mut gathered.settings {
        if setting.scope.starts_with("sample") {
            replaced(&mut setting.value, "[trigger]", &trigger);
        }
    }
    Ok(gathered)
}

fn replaced(value: &mut Value, placeholder: &str, by: &str) {
    match value {
        // Where the word is long, the text would grow without bound.
        Value::Text(text) if by.len() < 200 => *text = text.replace(placeholder, by),
        Value::List(items) => {
            for item in items {
                replaced(&mut item.value, placeholder, by);
            }
        }
        _ => {}
    }
}

fn place(leaf: &Leaf<'_>) -> Place {
    let keys = leaf.keys();
    let items: Vec<usize> = leaf
        .way
        .iter()
        .filter_map(|step| match step {
            Step::Item(n) => Some(*n),
            Step::Key(_) => None,
        })
        .collect();
    match keys.as_slice() {
        [name] => Place::new("root", *name),
        ["config", name] => Place::new("config", *name),
        ["config", "process", rest @ .., name] => {
            if items.first().is_some_and(|process| *process > 0) {
                return Place::new("another process", keys[2..].join("."));
            }
            let scope = match rest {
                [] => "process".to_owned(),
                rest => rest.join("."),
            };
            match (rest, items.get(1)) {
                (["datasets", ..], Some(set)) => Place::new(scope, *name).ranked(2).of_set(*set),
                _ => Place::new(scope, *name),
            }
        }
        [.., name] => Place::new(keys[..keys.len() - 1].join("."), *name),
        [] => Place::new("root", ""),
    }
}
