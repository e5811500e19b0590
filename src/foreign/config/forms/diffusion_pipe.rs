//! diffusion-pipe: a TOML of the run, and one of the data set that it names.

use super::{Gathered, Place, Sources};
use crate::foreign::config::Error;
use crate::foreign::config::setting::Step;
use crate::foreign::config::tree::Node;

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    let given = sources.count();
    let is_data_set = |node: &Node| node.has("directory");
    let mut data_set = (0..given).find(|file| sources.values(*file).is_some_and(is_data_set));
    for file in (0..given).filter(|file| data_set != Some(*file)) {
        let node = sources.values(file).ok_or_else(|| Error::OtherTrainer {
            file: sources.path(file).to_owned(),
            trainer: "diffusion-pipe",
            why: "it is a script".to_owned(),
        })?;
        gathered.add_all(node, file, |leaf| match leaf.keys().as_slice() {
            [name] => Place::new("config", *name),
            [scope @ .., name] => Place::new(scope.join("."), *name),
            [] => Place::new("config", ""),
        });
    }
    if let (Some(name), None) = (gathered.text("config", "dataset"), data_set) {
        data_set = sources.companion(0, &name)?;
        if data_set.is_none() {
            gathered.not_here(&name, "`dataset`");
        }
    }
    let Some((file, node)) = data_set.and_then(|file| Some((file, sources.values(file)?))) else {
        return Ok(gathered);
    };
    for _ in node.get("directory").map_or(&[][..], Node::items) {
        gathered.new_set();
    }
    gathered.add_all(node, file, |leaf| {
        let keys = leaf.keys();
        match (keys.as_slice(), leaf.way.get(1)) {
            (["directory", name], Some(Step::Item(set))) => {
                Place::new("directory", *name).ranked(3).of_set(*set)
            }
            (keys, _) => Place::new("dataset", keys.join(".")).ranked(2),
        }
    });
    Ok(gathered)
}
