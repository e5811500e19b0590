//! What each field does to the numbers: effective, conditional or inert, why, and who says so.
//!
//! The tables are data, in `configs/recipes/fields.toml`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, Recipe};

const FILE: &str = "configs/recipes/fields.toml";
const TEXT: &str = include_str!("../../configs/recipes/fields.toml");

/// What a table explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A CLIP text encoder's `config.json`.
    Clip,
    /// A T5 encoder's `config.json`.
    T5,
    /// A tokenizer's files.
    Tokenizer,
    /// A recipe.
    Recipe,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Clip, Self::T5, Self::Tokenizer, Self::Recipe];

    /// What a person calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Clip => "config.json of a CLIP text encoder",
            Self::T5 => "config.json of a T5 encoder",
            Self::Tokenizer => "files of a tokenizer",
            Self::Recipe => "fields of a recipe",
        }
    }

    /// What a JSON file describes, by its content; `None` where nothing tells.
    pub fn of_file(content: &Value) -> Option<Self> {
        let has = |key: &str| content.get(key).is_some();
        match content.get("model_type").and_then(Value::as_str) {
            Some("clip" | "clip_text_model") => Some(Self::Clip),
            Some("t5" | "umt5") => Some(Self::T5),
            Some(_) => None,
            None if [
                "tokenizer_class",
                "added_tokens_decoder",
                "model_max_length",
                "added_tokens",
            ]
            .iter()
            .any(|key| has(key)) =>
            {
                Some(Self::Tokenizer)
            }
            None => None,
        }
    }
}

/// What a field does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It changes the numbers.
    Effective,
    /// It changes them under a condition.
    Conditional,
    /// It never does.
    Inert,
}

impl std::fmt::Display for Class {
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
pub struct Entry {
    /// The fields' names.
    pub names: Vec<String>,
    /// What they do.
    pub class: Class,
    /// What transformers uses where the file leaves the field out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Why.
    pub why: String,
    /// Who says so.
    pub source: String,
}

/// A field of a file or of a recipe, explained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// The field's path.
    pub field: String,
    /// Its value; `None`: the file leaves it out.
    pub value: Option<Value>,
    /// What is known of it; `None`: nothing, so it may matter.
    #[serde(flatten)]
    pub entry: Option<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    clip: Vec<Entry>,
    t5: Vec<Entry>,
    tokenizer: Vec<Entry>,
    recipe: Vec<Entry>,
}

/// All that is known about a subject's fields.
///
/// # Errors
/// If the shipped tables are wrong, which the tests rule out.
pub fn table(subject: Subject) -> Result<Vec<Entry>, Error> {
    let tables: Tables = toml::from_str(TEXT).map_err(|e| Error::Data {
        file: FILE.to_owned(),
        why: e.to_string(),
    })?;
    Ok(match subject {
        Subject::Clip => tables.clip,
        Subject::T5 => tables.t5,
        Subject::Tokenizer => tables.tokenizer,
        Subject::Recipe => tables.recipe,
    })
}

/// Each field of a JSON file, and each that has a default and is missing there. The text tower's fields of a
/// whole CLIP's file appear as `text_config.hidden_size`.
///
/// # Errors
/// As [`table`].
pub fn file(subject: Subject, content: &Value) -> Result<Vec<Explained>, Error> {
    let entries = table(subject)?;
    let mut explained = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (field, value) in content.as_object().into_iter().flatten() {
        let inner = match (subject, field.as_str()) {
            (Subject::Clip, "text_config" | "text_config_dict") => value.as_object(),
            _ => None,
        };
        for (name, value) in inner.into_iter().flatten() {
            seen.push(name);
            explained.push(one(format!("{field}.{name}"), Some(value), name, &entries));
        }
        if inner.is_none() {
            seen.push(field);
            explained.push(one(field.clone(), Some(value), field, &entries));
        }
    }
    for entry in entries.iter().filter(|e| e.default.is_some()) {
        if !entry.names.iter().any(|name| seen.contains(&name.as_str())) {
            explained.extend(
                entry
                    .names
                    .first()
                    .map(|name| one(name.clone(), None, name, &entries)),
            );
        }
    }
    Ok(explained)
}

/// Each field of a recipe.
///
/// # Errors
/// As [`table`].
pub fn recipe(recipe: &Recipe) -> Result<Vec<Explained>, Error> {
    let entries = table(Subject::Recipe)?;
    let explain = |(path, field): (&String, &super::Field)| {
        one(
            path.clone(),
            Some(&field.value),
            recipe_name(path),
            &entries,
        )
    };
    Ok(recipe.fields().iter().map(explain).collect())
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

fn one(field: String, value: Option<&Value>, name: &str, entries: &[Entry]) -> Explained {
    Explained {
        field,
        value: value.cloned(),
        entry: entries
            .iter()
            .find(|e| e.names.iter().any(|n| n == name))
            .cloned(),
    }
}
