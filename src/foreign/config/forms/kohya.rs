//! kohya-ss sd-scripts: arguments of a command line, a `--config_file` in TOML (its tables are taken apart: library/train_util.py
//! `read_config_from_file`), a data set in TOML (library/config_util.py), and folders named `10_word`.

use std::path::Path;

use super::{Gathered, Place, Sources, diffusers};
use crate::foreign::config::Error;
use crate::foreign::config::read::Document;
use crate::foreign::config::setting::{Leaf, Setting, Step};
use crate::foreign::config::tree::{Node, Value};
use crate::shown;

/// The scripts that train LoRAs of a family that plumb has.
pub(super) const SCRIPTS: [&str; 4] = [
    "train_network.py",
    "sdxl_train_network.py",
    "sd3_train_network.py",
    "flux_train_network.py",
];

/// The most folders that are looked at.
const MAX_FOLDERS: usize = 10_000;

/// Whether it is a `--dataset_config`.
pub(super) fn is_data_set(node: &Node) -> bool {
    let first = node.get("datasets").and_then(|list| list.items().first());
    first.is_some_and(|set| set.has("subsets") || set.has("image_dir"))
}

/// Whether it is a `--config_file`.
pub(super) fn is_config_file(node: &Node) -> bool {
    let Value::Table(entries) = &node.value else {
        return false;
    };
    let own = [
        "network_module",
        "network_dim",
        "train_data_dir",
        "dataset_config",
    ];
    let has = |node: &Node| own.iter().any(|key| node.has(key));
    has(node) || entries.iter().any(|entry| has(&entry.node))
}

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    let data_set = run(sources, &SCRIPTS, &is_data_set, &mut gathered)?;
    match data_set.and_then(|file| Some((file, sources.values(file)?))) {
        Some((file, node)) => of_data_set(node, file, &mut gathered),
        None => folders(&mut gathered),
    }
    Ok(gathered)
}

/// The arguments of a run, of its command line and its `--config_file`, and which file is its `--dataset_config`.
///
/// # Errors
/// If a file that is named cannot be read.
pub(super) fn run(
    sources: &mut Sources,
    scripts: &[&str],
    is_data_set: &dyn Fn(&Node) -> bool,
    gathered: &mut Gathered,
) -> Result<Option<usize>, Error> {
    let given = sources.count();
    let mut data_set = (0..given).find(|file| sources.values(*file).is_some_and(is_data_set));
    for file in 0..given {
        if data_set != Some(file) {
            arguments(sources, file, scripts, gathered);
        }
    }
    if let Some(name) = gathered.text("arguments", "config_file") {
        match sources.companion(0, &with_ending(&name))? {
            Some(file) if file >= given => arguments(sources, file, scripts, gathered),
            Some(_) => {}
            None => gathered.notes.push(format!(
                "the file `{}` of --config_file is not here: what is in it is not in the table; give it as well",
                shown::text(&name)
            )),
        }
    }
    if let (Some(name), None) = (gathered.text("arguments", "dataset_config"), data_set) {
        data_set = sources.companion(0, &name)?;
        if data_set.is_none() {
            gathered.not_here(&name, "--dataset_config");
        }
    }
    for args in ["network_args", "optimizer_args", "lr_scheduler_args"] {
        gathered.split("arguments", args, args);
    }
    Ok(data_set)
}

/// `--config_file x` is `x.toml` (library/train_util.py `read_config_from_file`).
fn with_ending(name: &str) -> String {
    match name.ends_with(".toml") {
        true => name.to_owned(),
        false => format!("{name}.toml"),
    }
}

fn arguments(sources: &Sources, file: usize, scripts: &[&str], gathered: &mut Gathered) {
    match sources.document(file) {
        Some(Document::Script(script)) => {
            let is_script = |name: &str| scripts.contains(&name);
            diffusers::command(script, file, &is_script, gathered);
        }
        // A command line counts before it.
        Some(Document::Values(node)) => gathered.add_all(node, file, |leaf| {
            let keys = leaf.keys();
            // One level of tables has no meaning; what is deeper is no option.
            match keys.as_slice() {
                [name] | [_, name] => Place::new("arguments", *name),
                keys => Place::new("below an option", keys.join(".")),
            }
        }),
        None => {}
    }
}

fn of_data_set(node: &Node, file: usize, gathered: &mut Gathered) {
    // By the places of a data set and of a subset in their lists.
    let mut numbers = Vec::new();
    for set in node.get("datasets").map_or(&[][..], Node::items) {
        let subsets = set.get("subsets").map_or(&[][..], Node::items).len();
        let numbers_of: Vec<usize> = (0..subsets).map(|_| gathered.new_set()).collect();
        numbers.push(numbers_of);
    }
    gathered.add_all(node, file, |leaf| {
        let (keys, items) = (leaf.keys(), items(leaf));
        let name = keys.last().copied().unwrap_or_default();
        let of_set = |set: usize| numbers.get(set).cloned().unwrap_or_default();
        match (keys.as_slice(), items.as_slice()) {
            (["general", _], _) => Place::new("dataset", name).ranked(3),
            (["datasets", "subsets", _], [set, subset, ..]) => {
                let number = of_set(*set).get(*subset).copied();
                let place = Place::new("dataset", name).ranked(5);
                number.map_or(Place::new("dataset", name), |number| place.of_set(number))
            }
            (["datasets", _], [set, ..]) => Place {
                sets: of_set(*set),
                ..Place::new("dataset", name).ranked(4)
            },
            (keys, _) => Place::new("dataset file", keys.join(".")),
        }
    });
}

/// The places in lists on the way to a value.
pub(super) fn items(leaf: &Leaf<'_>) -> Vec<usize> {
    let items = leaf.way.iter().filter_map(|step| match step {
        Step::Item(n) => Some(*n),
        Step::Key(_) => None,
    });
    items.collect()
}

/// The data sets of `--train_data_dir`: its folders that are named `10_word`, each a data set with so many repeats, whose word is
/// the caption where there is none (library/config_util.py `generate_dreambooth_subsets_config_by_subdirs`).
fn folders(gathered: &mut Gathered) {
    let Some(folder) = gathered.text("arguments", "train_data_dir") else {
        return;
    };
    let found = std::fs::read_dir(Path::new(&folder)).into_iter().flatten();
    let mut names: Vec<(u32, String, String)> = found
        .take(MAX_FOLDERS)
        .filter_map(|entry| {
            let entry = entry.ok().filter(|entry| entry.path().is_dir())?;
            let name = entry.file_name().into_string().ok()?;
            let (repeats, word) = name.split_once('_')?;
            Some((repeats.parse().ok()?, word.to_owned(), name.clone()))
        })
        .collect();
    names.sort();
    if names.is_empty() {
        gathered.new_set();
        gathered.notes.push(format!(
            "`{}` has no folders named `10_word` here: where it has, each is a [[dataset]] with `repeats = 10` of its own",
            shown::text(&folder)
        ));
        return;
    }
    for (repeats, word, name) in names {
        let set = gathered.new_set();
        let path = Path::new(&folder).join(&name);
        let parts = [
            ("path", Value::Text(path.to_string_lossy().into_owned())),
            ("repeats", Value::Integer(i64::from(repeats))),
            ("word", Value::Text(word)),
        ];
        for (part, value) in parts {
            gathered.settings.push(Setting {
                place: format!("{folder}/{name}"),
                file: 0,
                line: None,
                scope: "folder".to_owned(),
                name: part.to_owned(),
                value,
                sets: vec![set],
                rank: 5,
            });
        }
    }
}
