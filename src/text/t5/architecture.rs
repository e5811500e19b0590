//! The sizes and constants of a T5 encoder: from a configuration, or as published.
//!
//! Published numbers: google/t5-v1_1-xxl's `config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::T5;
use crate::text::activation::Activation;
use crate::text::config::{ConfigError, ConfigFields};
use crate::text::{Architecture, Kind};

/// The effective fields of a `T5Config`, for the encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5EncoderArchitecture {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one attention head.
    pub d_kv: usize,
    /// Width inside the feed-forward.
    pub d_ff: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// The feed-forward's activation, before the gate.
    pub activation: Activation,
    /// Whether the feed-forward is gated (v1.1) or plain.
    pub is_gated_act: bool,
    /// Epsilon of every RMS norm.
    pub layer_norm_epsilon: f64,
    /// Buckets of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance beyond which all positions share a bucket; 128 where the configuration is silent.
    pub relative_attention_max_distance: usize,
}

impl Architecture for T5EncoderArchitecture {
    fn kind(&self) -> &'static dyn Kind {
        &T5
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn width(&self) -> usize {
        self.d_model
    }

    fn end_id(&self) -> u32 {
        // `<pad>` 0, `</s>` 1, `<unk>` 2 in every T5 vocabulary (transformers' tokenization_t5.py).
        1
    }
}

/// The architecture of a `T5Config`.
pub(super) fn read(fields: ConfigFields<'_>) -> Result<T5EncoderArchitecture, ConfigError> {
    // Before the check of `model_type`, to say why: its names and shapes are T5's.
    if fields.get("model_type").and_then(Value::as_str) == Some("umt5") {
        return Err(fields.wrong(
            "model_type",
            "t5".into(),
            "umt5 (its position bias differs in every block)".into(),
        ));
    }
    fields.model_type(&["t5"])?;
    read_fields(fields, &DEFAULTS)
}

/// What a configuration's fields are where it does not name them.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) d_ff: usize,
    pub(super) num_layers: usize,
    pub(super) num_heads: usize,
    pub(super) feed_forward_proj: &'static str,
}

/// `T5Config`'s defaults, those of t5-small.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 32128,
    d_ff: 2048,
    num_layers: 6,
    num_heads: 8,
    feed_forward_proj: "relu",
};

/// The architecture of a configuration of either kind.
pub(super) fn read_fields(
    mut fields: ConfigFields<'_>,
    defaults: &Defaults,
) -> Result<T5EncoderArchitecture, ConfigError> {
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
    let (activation, is_gated_act) = feed_forward(&fields, defaults.feed_forward_proj)?;
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
        vocab_size: fields.size("vocab_size", defaults.vocab_size)?,
        d_model: fields.size("d_model", 512)?,
        d_kv: fields.size("d_kv", 64)?,
        d_ff: fields.size("d_ff", defaults.d_ff)?,
        num_layers: fields.size("num_layers", defaults.num_layers)?,
        num_heads: fields.size("num_heads", defaults.num_heads)?,
        activation,
        is_gated_act,
        layer_norm_epsilon: fields.epsilon("layer_norm_epsilon", 1e-6)?,
        relative_attention_num_buckets: buckets,
        relative_attention_max_distance: max_distance,
    })
}

/// `feed_forward_proj` is `ACT` or `gated-ACT`; `gated-gelu` means the tanh approximation. `dense_act_fn` and
/// `is_gated_act` win over it where the file has them.
fn feed_forward(
    fields: &ConfigFields<'_>,
    default: &str,
) -> Result<(Activation, bool), ConfigError> {
    let proj = fields.text("feed_forward_proj", default)?;
    let (gated, name) = match proj.split_once('-') {
        None => (false, proj.as_str()),
        // "For backwards compatibility" (`T5Config.__init__`): v1.1 was trained with the approximation.
        Some(("gated", "gelu")) => (true, "gelu_new"),
        Some(("gated", name)) if !name.contains('-') => (true, name),
        Some(_) => {
            return Err(fields.wrong("feed_forward_proj", "ACT or gated-ACT".into(), proj));
        }
    };
    let is_gated = fields.flag("is_gated_act")?.unwrap_or(gated);
    let activation = if fields.get("dense_act_fn").is_some() {
        fields.activation("dense_act_fn", name)?
    } else {
        let unknown = || {
            fields.wrong(
                "feed_forward_proj",
                Activation::NAMES.to_owned(),
                proj.clone(),
            )
        };
        Activation::named(name).ok_or_else(unknown)?
    };
    Ok((activation, is_gated))
}

/// T5 v1.1 XXL.
pub(super) fn published(slot: &str) -> Option<T5EncoderArchitecture> {
    (slot == "t5").then(|| xxl(32128))
}

/// The XXL of either kind, of a vocabulary of this size.
pub(super) fn xxl(vocab_size: usize) -> T5EncoderArchitecture {
    T5EncoderArchitecture {
        vocab_size,
        d_model: 4096,
        d_kv: 64,
        d_ff: 10240,
        num_layers: 24,
        num_heads: 64,
        activation: Activation::GeluNew,
        is_gated_act: true,
        layer_norm_epsilon: 1e-6,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
    }
}
