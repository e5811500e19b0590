//! The sizes and constants of a Qwen3: from a configuration, or as published.
//!
//! Published numbers: the `config.json` of Qwen/Qwen3-0.6B, -1.7B, -4B and -8B.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Qwen3;
use crate::text::activation::Activation;
use crate::text::config::{ConfigError, ConfigFields};
use crate::text::{Architecture, Kind};

/// The effective fields of a `Qwen3Config`, for hidden states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qwen3Architecture {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads of queries.
    pub num_attention_heads: usize,
    /// Number of heads of keys and values, each of which serves as many heads of queries as the others.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The feed-forward's activation, before the gate.
    pub hidden_act: Activation,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// The longest wavelength of the rotary positions, over 2 pi.
    pub rope_theta: f64,
}

impl Architecture for Qwen3Architecture {
    fn kind(&self) -> &'static dyn Kind {
        &Qwen3
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn width(&self) -> usize {
        self.hidden_size
    }

    fn end_id(&self) -> u32 {
        // `<|endoftext|>` in the vocabulary that all of them share (Qwen3-0.6B's tokenizer_config.json).
        151_643
    }
}

/// The architecture of a `Qwen3Config`.
pub(super) fn read(fields: ConfigFields<'_>) -> Result<Qwen3Architecture, ConfigError> {
    fields.model_type(&["qwen3"])?;
    if fields.flag("attention_bias")? == Some(true) {
        let expected = "false (no Qwen3 has such biases)";
        return Err(fields.wrong("attention_bias", expected.into(), "true".into()));
    }
    // `Qwen3Config`'s defaults.
    let num_hidden_layers = fields.size("num_hidden_layers", 32)?;
    full_attention(&fields, num_hidden_layers)?;
    let heads = fields.size("num_attention_heads", 32)?;
    let groups = match fields.get("num_key_value_heads") {
        // transformers: as many as queries have.
        Some(Value::Null) => heads,
        _ => fields.size("num_key_value_heads", 32)?,
    };
    if heads % groups != 0 {
        return Err(fields.wrong(
            "num_key_value_heads",
            format!("a divisor of num_attention_heads, {heads}"),
            groups.to_string(),
        ));
    }
    let head_dim = fields.size("head_dim", 128)?;
    if head_dim % 2 != 0 {
        return Err(fields.wrong("head_dim", "an even number".into(), head_dim.to_string()));
    }
    Ok(Qwen3Architecture {
        vocab_size: fields.size("vocab_size", 151_936)?,
        hidden_size: fields.size("hidden_size", 4096)?,
        intermediate_size: fields.size("intermediate_size", 22_016)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: groups,
        head_dim,
        hidden_act: fields.activation("hidden_act", "silu")?,
        rms_norm_eps: fields.epsilon("rms_norm_eps", 1e-6)?,
        rope_theta: rope_theta(&fields)?,
    })
}

/// Refuses a configuration by which some layer sees only the last tokens.
fn full_attention(fields: &ConfigFields<'_>, layers: usize) -> Result<(), ConfigError> {
    let refuse = |field: &str, found: String| {
        let expected = "full attention in every layer (plumb has no sliding window)";
        Err(fields.wrong(field, expected.into(), found))
    };
    match fields.get("layer_types") {
        None | Some(Value::Null) => {}
        Some(Value::Array(types)) if types.len() < layers => {
            return Err(fields.wrong(
                "layer_types",
                format!("one for each of {layers} layers"),
                format!("{} of them", types.len()),
            ));
        }
        Some(Value::Array(types)) => {
            if let Some(other) = types.iter().find(|t| *t != "full_attention") {
                return refuse("layer_types", other.to_string());
            }
            return Ok(());
        }
        Some(other) => return refuse("layer_types", other.to_string()),
    }
    let on = fields.flag("use_sliding_window")?.unwrap_or(false);
    // transformers: of the layers from this one on.
    let first = match fields.get("max_window_layers") {
        Some(Value::Number(n)) if n.as_u64() == Some(0) => 0,
        _ => fields.size("max_window_layers", 28)?,
    };
    let is_null = fields.get("sliding_window").is_some_and(Value::is_null);
    if on && !is_null && first < layers {
        let window = fields.size("sliding_window", 4096)?;
        return refuse(
            "use_sliding_window",
            format!("true (a window of {window} tokens from layer {first} on)"),
        );
    }
    Ok(())
}

/// The rotary positions' base, which transformers 4 has beside a `rope_scaling`, and transformers 5 in `rope_parameters`.
fn rope_theta(fields: &ConfigFields<'_>) -> Result<f64, ConfigError> {
    let mut found: Option<(&str, f64)> = None;
    let mut take = |field: &'static str, value: &Value| {
        let theta = value.as_f64().filter(|x| *x > 1.0 && *x < 1e12);
        let theta = theta.ok_or_else(|| {
            fields.wrong(
                field,
                "a number between 1 and 1e12".into(),
                value.to_string(),
            )
        })?;
        match found {
            Some((other, old)) if old != theta => {
                Err(fields.wrong(field, format!("{old} as in {other}"), theta.to_string()))
            }
            _ => {
                found = Some((field, theta));
                Ok(())
            }
        }
    };
    for field in ["rope_parameters", "rope_scaling"] {
        let rope = match fields.get(field) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(rope)) => rope,
            Some(other) => {
                return Err(fields.wrong(field, "an object".into(), other.to_string()));
            }
        };
        for key in ["rope_type", "type"] {
            // Others stretch the positions: the numbers of every row change.
            if let Some(other) = rope.get(key).filter(|t| !t.is_null() && *t != "default") {
                return Err(fields.wrong(
                    &format!("{field}.{key}"),
                    "default (plumb has no other rotary positions)".into(),
                    other.to_string(),
                ));
            }
        }
        // By kinds of layers, as other models have it.
        if let Some((key, _)) = rope.iter().find(|(_, value)| value.is_object()) {
            return Err(fields.wrong(
                &format!("{field}.{key}"),
                "a number or a word".into(),
                "an object".into(),
            ));
        }
        if let Some(theta) = rope.get("rope_theta") {
            take(
                if field == "rope_parameters" {
                    "rope_parameters.rope_theta"
                } else {
                    "rope_scaling.rope_theta"
                },
                theta,
            )?;
        }
    }
    if let Some(theta) = fields.get("rope_theta") {
        take("rope_theta", theta)?;
    }
    Ok(found.map_or(10_000.0, |(_, theta)| theta))
}

/// What differs between the sizes: width, width of the feed-forward, layers, heads of queries.
const SIZES: [(usize, usize, usize, usize); 4] = [
    (1024, 3072, 28, 16),
    (2048, 6144, 28, 16),
    (2560, 9728, 36, 32),
    (4096, 12_288, 36, 32),
];

/// The one of this width.
pub(super) fn of_width(width: usize) -> Option<Qwen3Architecture> {
    let sizes = SIZES.iter().find(|(c, ..)| *c == width)?;
    let &(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads) = sizes;
    Some(Qwen3Architecture {
        vocab_size: 151_936,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: 8,
        head_dim: 128,
        hidden_act: Activation::Silu,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
    })
}

/// The 4B, which Z-Image and the smaller FLUX.2 klein have.
pub(super) fn published(slot: &str) -> Option<Qwen3Architecture> {
    (slot == "qwen3").then(|| of_width(2560)).flatten()
}
