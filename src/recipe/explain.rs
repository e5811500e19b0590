//! What each field does to the numbers: effective, conditional or inert, why, and who says so.
//!
//! The tables are data, in `configs/recipes/fields.toml`; what is a kind of text encoder's own, in its folder.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::{Error, Recipe};
use crate::text::{KINDS, Kind};

const FILE: &str = "configs/recipes/fields.toml";
const TEXT: &str = include_str!("../../configs/recipes/fields.toml");

/// What a table explains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subject {
    /// The `config.json` of a kind of text encoder.
    Encoder(&'static dyn Kind),
    /// A tokenizer's files.
    Tokenizer,
    /// A recipe.
    Recipe,
}

impl Subject {
    /// Every subject, the recipe first.
    pub fn all() -> impl Iterator<Item = Self> {
        let encoders = KINDS.iter().map(|kind| Self::Encoder(*kind));
        [Self::Recipe]
            .into_iter()
            .chain(encoders)
            .chain([Self::Tokenizer])
    }

    /// The word for it: `recipe`, `tokenizer`, or a kind's.
    pub fn word(self) -> &'static str {
        match self {
            Self::Encoder(kind) => kind.word(),
            Self::Tokenizer => "tokenizer",
            Self::Recipe => "recipe",
        }
    }

    /// What a person calls it.
    pub fn title(self) -> String {
        match self {
            Self::Encoder(kind) => format!("config.json of a {}", kind.title()),
            Self::Tokenizer => "files of a tokenizer".to_owned(),
            Self::Recipe => "fields of a recipe".to_owned(),
        }
    }

    /// What a JSON file describes, by its content; `None` where nothing tells.
    pub fn of_file(content: &Value) -> Option<Self> {
        const OF_TOKENIZERS: [&str; 4] = [
            "tokenizer_class",
            "added_tokens_decoder",
            "model_max_length",
            "added_tokens",
        ];
        match content.get("model_type").and_then(Value::as_str) {
            Some(found) => {
                // A `model_type` that no kind explains is no tokenizer's file either.
                let kind = KINDS
                    .iter()
                    .find(|kind| kind.model_types().contains(&found));
                kind.map(|kind| Self::Encoder(*kind))
            }
            None => {
                let is_tokenizer = OF_TOKENIZERS.iter().any(|key| content.get(key).is_some());
                is_tokenizer.then_some(Self::Tokenizer)
            }
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.word())
    }
}

/// What a field does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectClass {
    /// It changes the numbers.
    Effective,
    /// It changes them under a condition.
    Conditional,
    /// It never does.
    Inert,
}

impl std::fmt::Display for EffectClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Effective => "effective",
            Self::Conditional => "conditional",
            Self::Inert => "inert",
        })
    }
}

/// What is known of one or several fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldNote {
    /// The fields' names.
    pub names: Vec<String>,
    /// What they do.
    pub class: EffectClass,
    /// What transformers uses where the file leaves the field out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Why, as a sentence for a person.
    pub why: String,
    /// Who says so.
    pub source: String,
}

/// A field of a file or of a recipe, explained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedField {
    /// The field's path.
    pub field: String,
    /// Its value; `None`: the file leaves it out.
    pub value: Option<Value>,
    /// What is known of it; `None`: nothing, so it may matter.
    #[serde(flatten)]
    pub entry: Option<FieldNote>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    tokenizer: Vec<FieldNote>,
    recipe: Vec<FieldNote>,
    values: FieldValues,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TablesOfKind {
    config: Vec<FieldNote>,
    recipe: Vec<FieldNote>,
    #[serde(default)]
    values: FieldValues,
}

/// By a field's name, the values that a search tries.
type FieldValues = BTreeMap<String, Vec<Value>>;

/// All that is known about a subject's fields.
///
/// # Errors
/// If the shipped tables are wrong, which the tests rule out.
pub fn table(subject: Subject) -> Result<Vec<FieldNote>, Error> {
    match subject {
        Subject::Encoder(kind) => Ok(of_kind(kind)?.config),
        Subject::Tokenizer => Ok(common()?.tokenizer),
        Subject::Recipe => {
            let mut notes = common()?.recipe;
            for kind in KINDS {
                notes.extend(of_kind(*kind)?.recipe);
            }
            Ok(notes)
        }
    }
}

fn common() -> Result<Tables, Error> {
    parsed(TEXT, FILE.to_owned())
}

fn of_kind(kind: &dyn Kind) -> Result<TablesOfKind, Error> {
    parsed(kind.fields(), format!("the fields of a {}", kind.title()))
}

fn parsed<T: DeserializeOwned>(text: &str, file: String) -> Result<T, Error> {
    toml::from_str(text).map_err(|e| Error::Data {
        file,
        why: e.to_string(),
    })
}

/// Each field of a JSON file, and each that has a default and is missing there. The text tower's fields of a
/// whole CLIP's file appear as `text_config.hidden_size`.
///
/// # Errors
/// As [`table`].
pub fn file(subject: Subject, content: &Value) -> Result<Vec<ExplainedField>, Error> {
    let entries = table(subject)?;
    let mut explained = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (field, value) in content.as_object().into_iter().flatten() {
        let inner = match subject {
            Subject::Encoder(kind) if kind.nested().contains(&field.as_str()) => value.as_object(),
            _ => None,
        };
        for (name, value) in inner.into_iter().flatten() {
            seen.push(name);
            explained.push(explained_field(
                format!("{field}.{name}"),
                Some(value),
                name,
                &entries,
            ));
        }
        if inner.is_none() {
            seen.push(field);
            explained.push(explained_field(field.clone(), Some(value), field, &entries));
        }
    }
    // A field that is left out has its default, and may matter as much as one that is there.
    for entry in entries.iter().filter(|e| e.default.is_some()) {
        if !entry.names.iter().any(|name| seen.contains(&name.as_str())) {
            explained.extend(
                entry
                    .names
                    .first()
                    .map(|name| explained_field(name.clone(), None, name, &entries)),
            );
        }
    }
    Ok(explained)
}

/// Each field of a recipe.
///
/// # Errors
/// As [`table`].
pub fn recipe(recipe: &Recipe) -> Result<Vec<ExplainedField>, Error> {
    let common = common()?.recipe;
    let mut by_slot = BTreeMap::new();
    for encoder in recipe.encoders() {
        // Kinds have fields of one name that do different things, such as `forward.mask`.
        let of_kind = of_kind(encoder.rules.network)?.recipe;
        by_slot.insert(
            encoder.slot.as_str(),
            [common.as_slice(), &of_kind].concat(),
        );
    }
    let explain = |(path, field): (&String, &super::Field)| {
        let slot = path.split('.').next().unwrap_or_default();
        let entries = by_slot.get(slot).unwrap_or(&common);
        explained_field(path.clone(), Some(&field.value), recipe_name(path), entries)
    };
    Ok(recipe.fields().iter().map(explain).collect())
}

/// The values worth trying at each field of a recipe that can change a caption's conditioning, its own among them.
///
/// # Errors
/// As [`table`].
pub fn values(recipe: &Recipe) -> Result<BTreeMap<String, Vec<Value>>, Error> {
    let common = common()?.values;
    let mut by_slot = BTreeMap::new();
    for encoder in recipe.encoders() {
        let of_kind = of_kind(encoder.rules.network)?.values;
        by_slot.insert(encoder.slot.as_str(), of_kind);
    }
    let of_field = |path: &String| {
        let slot = path.split('.').next().unwrap_or_default();
        let of_kind = by_slot.get(slot).and_then(|v| v.get(recipe_name(path)));
        let values = of_kind.or_else(|| common.get(recipe_name(path)))?;
        Some((path.clone(), values.clone()))
    };
    Ok(recipe.fields().keys().filter_map(of_field).collect())
}

/// The name under which a recipe's field stands in the table: without its slot.
fn recipe_name(path: &str) -> &str {
    if let Some(rest) = path.strip_prefix("assembly.") {
        let end = rest
            .find('.')
            .map_or(path.len(), |at| at + "assembly.".len());
        return &path[..end];
    }
    path.split_once('.').map_or(path, |(_, rest)| rest)
}

fn explained_field(
    field: String,
    value: Option<&Value>,
    name: &str,
    entries: &[FieldNote],
) -> ExplainedField {
    ExplainedField {
        field,
        value: value.cloned(),
        entry: entries
            .iter()
            .find(|e| e.names.iter().any(|n| n == name))
            .cloned(),
    }
}
