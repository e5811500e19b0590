//! kohya-ss musubi-tuner: arguments of a command line, a `--config_file` in TOML (src/musubi_tuner/training/parser_common.py
//! `read_config_from_file`), and a data set in TOML (src/musubi_tuner/dataset/config_utils.py): pictures, or videos.

use super::{Gathered, Place, Sources, kohya};
use crate::foreign::config::Error;
use crate::foreign::config::tree::{Node, Value};

/// The scripts that train LoRAs of a family that plumb has.
pub(super) const SCRIPTS: [&str; 4] = [
    "wan_train_network.py",
    "flux_2_train_network.py",
    "zimage_train_network.py",
    "flux_kontext_train_network.py",
];

/// What tells a data set of pictures or videos.
const FOLDERS: [&str; 4] = [
    "image_directory",
    "image_jsonl_file",
    "video_directory",
    "video_jsonl_file",
];

/// Whether it is a `--dataset_config`.
pub(super) fn is_data_set(node: &Node) -> bool {
    let first = node.get("datasets").and_then(|list| list.items().first());
    first.is_some_and(|set| FOLDERS.iter().any(|key| set.has(key)))
}

/// Whether it is a `--config_file`: its tables are taken apart.
pub(super) fn is_config_file(node: &Node) -> bool {
    let Value::Table(entries) = &node.value else {
        return false;
    };
    node.has("dit") || entries.iter().any(|entry| entry.node.has("dit"))
}

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    let data_set = kohya::run(sources, &SCRIPTS, &is_data_set, &mut gathered)?;
    if let Some((file, node)) = data_set.and_then(|file| Some((file, sources.values(file)?))) {
        of_data_set(node, file, &mut gathered);
    }
    Ok(gathered)
}

fn of_data_set(node: &Node, file: usize, gathered: &mut Gathered) {
    let sets = node.get("datasets").map_or(&[][..], Node::items).len();
    let numbers: Vec<usize> = (0..sets).map(|_| gathered.new_set()).collect();
    gathered.add_all(node, file, |leaf| {
        let (keys, items) = (leaf.keys(), kohya::items(leaf));
        let name = keys.last().copied().unwrap_or_default();
        match (keys.as_slice(), items.as_slice()) {
            (["general", _], _) => Place::new("dataset", name).ranked(3),
            (["datasets", _], [set, ..]) => {
                let place = Place::new("dataset", name).ranked(4);
                match numbers.get(*set) {
                    Some(number) => place.of_set(*number),
                    None => place,
                }
            }
            (keys, _) => Place::new("dataset file", keys.join(".")),
        }
    });
}
