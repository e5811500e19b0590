//! The architecture of a text encoder, read from the checkpoint's own `config.json`.
//!
//! A field that the file leaves out has the value that transformers (5.23) gives it; files written by
//! transformers may leave out whatever equals its default. What cannot be read as intended is refused:
//! a wrong type, an activation we do not have, a decoder, a UMT5.

use std::path::Path;

use serde_json::{Map, Value};

use super::rules::Network;
use super::spec::{Activation, Architecture, ClipTextArchitecture, T5EncoderArchitecture};

/// No encoder is larger in any direction; a larger number is damage.
const LARGEST: u64 = 1 << 24;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not JSON, or not an object.
    #[error("{file}: not a model configuration: {why}")]
    NotAConfiguration {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A field is not what it must be.
    #[error("{file}: `{field}`: expected {expected}, found {found}")]
    Field {
        /// The file.
        file: String,
        /// The field.
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
pub fn read(file: &Path, network: Network) -> Result<Architecture, ConfigError> {
    let name = file.display().to_string();
    let text = std::fs::read(file).map_err(|source| ConfigError::Io {
        file: name.clone(),
        source,
    })?;
    let config = serde_json::from_slice(&text).map_err(|e| ConfigError::NotAConfiguration {
        file: name.clone(),
        why: e.to_string(),
    })?;
    from_config(&config, network, &name)
}

/// The architecture that a configuration describes; `file` is its name for messages.
///
/// # Errors
/// If it does not describe such a network.
pub fn from_config(
    config: &Value,
    network: Network,
    file: &str,
) -> Result<Architecture, ConfigError> {
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
    match network {
        Network::ClipText => clip_text(config, file).map(Architecture::ClipText),
        Network::T5Encoder => t5_encoder(config, file).map(Architecture::T5Encoder),
    }
}

fn clip_text(config: &Map<String, Value>, file: &str) -> Result<ClipTextArchitecture, ConfigError> {
    // A whole CLIP model's file: the text tower's fields are nested.
    let nested = ["text_config", "text_config_dict"]
        .iter()
        .any(|key| config.contains_key(*key));
    let outer = Fields {
        map: config.clone(),
        file,
    };
    outer.model_type(&["clip_text_model", "clip"])?;
    let fields = if nested {
        outer.merged("text_config", "text_config_dict")?
    } else {
        outer
    };
    let hidden_size = fields.size("hidden_size", 512)?;
    let heads = fields.size("num_attention_heads", 8)?;
    if hidden_size % heads != 0 {
        return Err(fields.wrong(
            "num_attention_heads",
            format!("a divisor of hidden_size {hidden_size}"),
            heads.to_string(),
        ));
    }
    let projected = nested || !is_plain_text_model(config);
    Ok(ClipTextArchitecture {
        vocab_size: fields.size("vocab_size", 49408)?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", 2048)?,
        num_hidden_layers: fields.size("num_hidden_layers", 12)?,
        num_attention_heads: heads,
        max_position_embeddings: fields.size("max_position_embeddings", 77)?,
        hidden_act: fields.activation("hidden_act", "quick_gelu")?,
        layer_norm_eps: fields.epsilon("layer_norm_eps", 1e-5)?,
        projection_dim: if projected {
            Some(fields.size("projection_dim", 512)?)
        } else {
            None
        },
        eos_token_id: Some(fields.id("eos_token_id", 49407)?),
    })
}

/// Whether `architectures` says that there is no `text_projection`.
fn is_plain_text_model(config: &Map<String, Value>) -> bool {
    let names = config.get("architectures").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().any(|n| n.as_str() == Some("CLIPTextModel")))
}

fn t5_encoder(
    config: &Map<String, Value>,
    file: &str,
) -> Result<T5EncoderArchitecture, ConfigError> {
    let mut fields = Fields {
        map: config.clone(),
        file,
    };
    fields.model_type(&["t5"])?;
    // transformers takes these for the fields' other names.
    for (alias, name) in [
        ("hidden_size", "d_model"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
    ] {
        fields.alias(alias, name)?;
    }
    if fields.flag("is_decoder")?.unwrap_or(false) {
        return Err(fields.wrong(
            "is_decoder",
            "false (plumb reads encoders)".into(),
            "true".into(),
        ));
    }
    let (activation, is_gated_act) = feed_forward(&fields)?;
    let buckets = fields.size("relative_attention_num_buckets", 32)?;
    let max_distance = fields.size("relative_attention_max_distance", 128)?;
    // A quarter of the buckets hold one distance each; the rest spread logarithmically beyond them.
    if buckets < 4 || buckets % 2 != 0 {
        return Err(fields.wrong(
            "relative_attention_num_buckets",
            "an even number of at least 4".into(),
            buckets.to_string(),
        ));
    }
    if max_distance <= buckets / 4 {
        return Err(fields.wrong(
            "relative_attention_max_distance",
            format!("more than {}, a quarter of the buckets", buckets / 4),
            max_distance.to_string(),
        ));
    }
    Ok(T5EncoderArchitecture {
        vocab_size: fields.size("vocab_size", 32128)?,
        d_model: fields.size("d_model", 512)?,
        d_kv: fields.size("d_kv", 64)?,
        d_ff: fields.size("d_ff", 2048)?,
        num_layers: fields.size("num_layers", 6)?,
        num_heads: fields.size("num_heads", 8)?,
        activation,
        is_gated_act,
        layer_norm_epsilon: fields.epsilon("layer_norm_epsilon", 1e-6)?,
        relative_attention_num_buckets: buckets,
        relative_attention_max_distance: max_distance,
    })
}

/// `feed_forward_proj` is `ACT` or `gated-ACT`; `gated-gelu` means the tanh approximation. `dense_act_fn` and
/// `is_gated_act` win over it where the file has them.
fn feed_forward(fields: &Fields<'_>) -> Result<(Activation, bool), ConfigError> {
    let proj = fields.text("feed_forward_proj", "relu")?;
    let (gated, name) = match proj.split_once('-') {
        None => (false, proj.as_str()),
        Some(("gated", "gelu")) => (true, "gelu_new"),
        Some(("gated", name)) if !name.contains('-') => (true, name),
        Some(_) => {
            return Err(fields.wrong("feed_forward_proj", "ACT or gated-ACT".into(), proj));
        }
    };
    let is_gated = fields.flag("is_gated_act")?.unwrap_or(gated);
    let activation = if fields.map.contains_key("dense_act_fn") {
        fields.activation("dense_act_fn", name)?
    } else {
        activation(name)
            .ok_or_else(|| fields.wrong("feed_forward_proj", activations(), proj.clone()))?
    };
    Ok((activation, is_gated))
}

/// The names under which transformers knows an activation.
fn activation(name: &str) -> Option<Activation> {
    Some(match name {
        "quick_gelu" => Activation::QuickGelu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluNew,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        _ => return None,
    })
}

fn activations() -> String {
    "one of quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish".into()
}

/// A configuration's fields, read with transformers' defaults.
struct Fields<'a> {
    map: Map<String, Value>,
    file: &'a str,
}

impl Fields<'_> {
    fn wrong(&self, field: &str, expected: String, found: String) -> ConfigError {
        ConfigError::Field {
            file: self.file.to_owned(),
            field: field.to_owned(),
            expected,
            found,
        }
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    fn size(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
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

    fn id(&self, field: &str, default: u32) -> Result<u32, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| self.wrong(field, "one token id".into(), shown(value)))
    }

    fn epsilon(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        value
            .as_f64()
            .filter(|x| *x > 0.0 && *x < 1.0)
            .ok_or_else(|| self.wrong(field, "a number between 0 and 1".into(), shown(value)))
    }

    fn text(&self, field: &str, default: &str) -> Result<String, ConfigError> {
        match self.get(field) {
            None => Ok(default.to_owned()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value) => Err(self.wrong(field, "text".into(), shown(value))),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong(field, "true or false".into(), shown(value))),
        }
    }

    fn activation(&self, field: &str, default: &str) -> Result<Activation, ConfigError> {
        let name = self.text(field, default)?;
        activation(&name).ok_or_else(|| self.wrong(field, activations(), name))
    }

    /// Refuses a file that says it is another model, or does not say what it is at all.
    fn model_type(&self, expected: &[&str]) -> Result<(), ConfigError> {
        let hint = |found: &str| match found {
            "umt5" => {
                "umt5 (its position bias differs in every block; no family of plumb uses it yet)"
                    .into()
            }
            other => other.to_owned(),
        };
        match self.get("model_type") {
            Some(Value::String(found)) if expected.contains(&found.as_str()) => Ok(()),
            Some(Value::String(found)) => {
                Err(self.wrong("model_type", expected.join(" or "), hint(found)))
            }
            Some(value) => Err(self.wrong("model_type", expected.join(" or "), shown(value))),
            None => Err(self.wrong("model_type", expected.join(" or "), "no such field".into())),
        }
    }

    /// The object `over` laid over the object `under`. Where they disagree, loaders do too: refused.
    fn merged(&self, under: &str, over: &str) -> Result<Self, ConfigError> {
        let mut map = Map::new();
        for name in [under, over] {
            let inner = match self.get(name) {
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
    fn alias(&mut self, alias: &str, name: &str) -> Result<(), ConfigError> {
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
