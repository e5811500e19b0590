//! `[model.files]`: components that lie apart from the model, by the slots of its recipe.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Components that live apart from the model's path, by the recipe's slots (`clip_l`, `t5`, ...), `vae`, and `scheduler` (a
/// scheduler_config.json, which then counts instead of what the model says of its noise schedule). A path alone is the slot's
/// weights; `SLOT_config` and `SLOT_tokenizer` are short for the table's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, PathOrFiles>")]
pub struct FileMap(BTreeMap<String, SlotFiles>);

/// The files of one component: files, folders, or addresses on the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlotFiles {
    /// Its weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Its `config.json`, where that does not lie beside the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// The folder of a text encoder's tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

impl SlotFiles {
    fn parts(&mut self) -> [(&'static str, &mut Option<PathBuf>); 3] {
        [
            ("weights", &mut self.weights),
            ("config", &mut self.config),
            ("tokenizer", &mut self.tokenizer),
        ]
    }
}

/// What may stand at a key of the table.
// Read by hand: of an untagged enum, serde would only say that no variant matches, and not which field is unknown.
enum PathOrFiles {
    Path(PathBuf),
    Files(SlotFiles),
}

impl<'de> Deserialize<'de> for PathOrFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrFilesVisitor;
        impl<'de> Visitor<'de> for PathOrFilesVisitor {
            type Value = PathOrFiles;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a table of `weights`, `config` and `tokenizer`")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<PathOrFiles, E> {
                Ok(PathOrFiles::Path(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<PathOrFiles, A::Error> {
                SlotFiles::deserialize(MapAccessDeserializer::new(table)).map(PathOrFiles::Files)
            }
        }
        deserializer.deserialize_any(PathOrFilesVisitor)
    }
}

impl TryFrom<BTreeMap<String, PathOrFiles>> for FileMap {
    type Error = String;

    fn try_from(entries: BTreeMap<String, PathOrFiles>) -> Result<Self, String> {
        let mut map = Self::default();
        for (key, entry) in entries {
            let (slot, files) = match entry {
                PathOrFiles::Files(files) => (key.as_str(), files),
                PathOrFiles::Path(path) => short(&key, path),
            };
            map.add(slot, files)?;
        }
        Ok(map)
    }
}

/// The slot of a key whose value is a path, and what the path is.
fn short(key: &str, path: PathBuf) -> (&str, SlotFiles) {
    let mut files = SlotFiles::default();
    let slot = if let Some(slot) = key.strip_suffix("_config") {
        files.config = Some(path);
        slot
    } else if let Some(slot) = key.strip_suffix("_tokenizer") {
        files.tokenizer = Some(path);
        slot
    } else {
        files.weights = Some(path);
        key
    };
    (slot, files)
}

impl FileMap {
    fn add(&mut self, slot: &str, mut files: SlotFiles) -> Result<(), String> {
        // The short keys and the table may together name a slot's files, each once.
        let known = self.0.entry(slot.to_owned()).or_default();
        for ((part, old), (_, new)) in known.parts().into_iter().zip(files.parts()) {
            if old.is_some() && new.is_some() {
                return Err(format!("`{slot}` is given its {part} twice"));
            }
            *old = old.take().or(new.take());
        }
        Ok(())
    }

    /// The slots that files are named for.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &SlotFiles)> {
        self.0.iter().map(|(slot, files)| (slot.as_str(), files))
    }

    /// What is named for a slot.
    pub fn of(&self, slot: &str) -> Option<&SlotFiles> {
        self.0.get(slot)
    }

    /// The paths that are named.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let slots = self.0.values();
        let paths = slots.flat_map(|files| [&files.weights, &files.config, &files.tokenizer]);
        paths.filter_map(Option::as_deref)
    }

    /// The same with every path changed.
    #[must_use]
    pub fn map(&self, change: impl Fn(&Path) -> PathBuf) -> Self {
        let mut map = self.clone();
        for files in map.0.values_mut() {
            for (_, path) in files.parts() {
                *path = path.as_deref().map(&change);
            }
        }
        map
    }
}

impl JsonSchema for FileMap {
    fn schema_name() -> Cow<'static, str> {
        "FileMap".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let files = generator.subschema_for::<SlotFiles>();
        json_schema!({
            "description": "Components that live apart from the model's path, by the recipe's slots (`clip_l`, `t5`, ...), `vae`, and `scheduler` (a scheduler_config.json, which then counts instead of what the model says of its noise schedule). A path alone is the slot's weights; `SLOT_config` and `SLOT_tokenizer` are short for the table's fields.",
            "type": "object",
            "additionalProperties": { "anyOf": [{ "type": "string" }, files] }
        })
    }
}
