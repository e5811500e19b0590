//! The architecture of a text encoder, read from the checkpoint's own `config.json`.
//!
//! A field that the file leaves out has the value that transformers (5.23) gives it; files written by
//! transformers may leave out whatever equals its default. What cannot be read as intended is refused: a wrong type,
//! an activation we do not have, another model.

use std::path::Path;

use serde_json::{Map, Value};

use super::activation::Activation;
use super::{Architecture, Kind};
use crate::files;

/// No encoder is larger in any direction; a larger number is damage.
const LARGEST: u64 = 1 << 24;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The path of the `config.json`.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not JSON, or not an object.
    #[error("{file}: not a model configuration: {why}")]
    NotAConfiguration {
        /// The path of the `config.json`.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A field is not what it must be.
    #[error("{file}: `{field}`: expected {expected}, found {found}")]
    Field {
        /// The path of the `config.json`.
        file: String,
        /// Its name, with its object before it where it is nested: `text_config_dict.hidden_size`.
        field: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// Reads the architecture of a text encoder from its `config.json`.
///
/// # Errors
/// If the file cannot be read, is not JSON, or does not describe such a network.
pub fn read(file: &Path, kind: &dyn Kind) -> Result<Box<dyn Architecture>, ConfigError> {
    let name = file.display().to_string();
    let text = files::read(file, files::MAX_CONFIG_BYTES).map_err(|source| ConfigError::Io {
        file: name.clone(),
        source,
    })?;
    let config = serde_json::from_slice(&text).map_err(|e| ConfigError::NotAConfiguration {
        file: name.clone(),
        why: e.to_string(),
    })?;
    from_config(&config, kind, &name)
}

/// The architecture that a configuration describes; `file` is its name for messages.
///
/// # Errors
/// If it does not describe such a network.
pub fn from_config(
    config: &Value,
    kind: &dyn Kind,
    file: &str,
) -> Result<Box<dyn Architecture>, ConfigError> {
    let Value::Object(config) = config else {
        return Err(ConfigError::NotAConfiguration {
            file: file.to_owned(),
            why: format!("expected an object, found {}", shown(config)),
        });
    };
    if let Some(found) = config.get("quantization_config").filter(|q| !q.is_null()) {
        return Err(ConfigError::Field {
            file: file.to_owned(),
            field: "quantization_config".to_owned(),
            expected: "none (plumb reads weights that are not quantized)".to_owned(),
            found: shown(found),
        });
    }
    kind.architecture(ConfigFields {
        map: config.clone(),
        file,
    })
}

/// A configuration's fields, read with transformers' defaults.
#[derive(Debug)]
pub struct ConfigFields<'a> {
    map: Map<String, Value>,
    file: &'a str,
}

impl ConfigFields<'_> {
    pub(super) fn wrong(&self, field: &str, expected: String, found: String) -> ConfigError {
        ConfigError::Field {
            file: self.file.to_owned(),
            field: field.to_owned(),
            expected,
            found,
        }
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    pub(super) fn size(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        value
            .as_u64()
            .filter(|n| (1..=LARGEST).contains(n))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| {
                self.wrong(
                    field,
                    format!("a whole number from 1 to {LARGEST}"),
                    shown(value),
                )
            })
    }

    // transformers also takes a list of ids here; which of them is pooled at would be a guess.
    pub(super) fn id(&self, field: &str, default: u32) -> Result<u32, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| self.wrong(field, "one token id".into(), shown(value)))
    }

    pub(super) fn epsilon(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        value
            .as_f64()
            .filter(|x| *x > 0.0 && *x < 1.0)
            .ok_or_else(|| self.wrong(field, "a number between 0 and 1".into(), shown(value)))
    }

    pub(super) fn text(&self, field: &str, default: &str) -> Result<String, ConfigError> {
        match self.get(field) {
            None => Ok(default.to_owned()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value) => Err(self.wrong(field, "text".into(), shown(value))),
        }
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong(field, "true or false".into(), shown(value))),
        }
    }

    pub(super) fn activation(&self, field: &str, default: &str) -> Result<Activation, ConfigError> {
        let name = self.text(field, default)?;
        Activation::named(&name)
            .ok_or_else(|| self.wrong(field, Activation::NAMES.to_owned(), name))
    }

    /// Refuses a file that says it is another model, or does not say what it is at all.
    pub(super) fn model_type(&self, expected: &[&str]) -> Result<(), ConfigError> {
        let wrong = |found| Err(self.wrong("model_type", expected.join(" or "), found));
        match self.get("model_type") {
            Some(Value::String(found)) if expected.contains(&found.as_str()) => Ok(()),
            Some(Value::String(found)) => wrong(found.clone()),
            Some(value) => wrong(shown(value)),
            None => wrong("no such field".into()),
        }
    }

    /// The object `over` laid over the object `under`. Where they disagree, loaders do too: refused.
    pub(super) fn merged(&self, under: &str, over: &str) -> Result<Self, ConfigError> {
        let mut map = Map::new();
        for name in [under, over] {
            let inner = match self.get(name) {
                // Whole CLIPs have been saved with `"text_config_dict": null`.
                None | Some(Value::Null) => continue,
                Some(Value::Object(inner)) => inner,
                Some(value) => return Err(self.wrong(name, "an object".into(), shown(value))),
            };
            for (key, value) in inner {
                match map.get(key) {
                    Some(old) if old != value => {
                        return Err(self.wrong(
                            &format!("{over}.{key}"),
                            format!("{} as in {under}", shown(old)),
                            shown(value),
                        ));
                    }
                    _ => {
                        map.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        Ok(Self {
            map,
            file: self.file,
        })
    }

    /// Takes the value of `alias` for `name`. Where both are there and disagree: refused.
    pub(super) fn alias(&mut self, alias: &str, name: &str) -> Result<(), ConfigError> {
        let Some(value) = self.map.get(alias).cloned() else {
            return Ok(());
        };
        match self.map.get(name) {
            Some(old) if *old != value => {
                Err(self.wrong(alias, format!("{} as in {name}", shown(old)), shown(&value)))
            }
            _ => {
                self.map.insert(name.to_owned(), value);
                Ok(())
            }
        }
    }
}

/// A JSON value in a message: long ones are cut.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
