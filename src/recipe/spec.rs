//! [`EncoderSpec`]: everything one text encoder's output depends on, and nothing else.
//!
//! A spec has two sources. The *rules* (how tokens are made, which layer is taken, what is masked) come from
//! the recipe's data. The *architecture* (sizes, activation, epsilon) comes from the checkpoint's own
//! `config.json`, so one recipe serves a miniature and the real thing. Weights and tokenizer enter by digest.
//!
//! Paths, batch sizes, devices and thread counts never enter: they do not change the numbers.

use serde::{Deserialize, Serialize};

use super::rules::Network;
use crate::digest::{Digest, Fingerprint};

/// The version of the canonical form of [`EncoderSpec`]. A change of meaning of any field bumps it.
pub const ENCODER_SPEC_VERSION: u32 = 1;

/// One encoder's full description; its [`Fingerprint`] keys the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// [`ENCODER_SPEC_VERSION`].
    pub version: u32,
    /// The network, from the checkpoint's configuration.
    pub architecture: Architecture,
    /// The weights the forward pass uses: over canonical name, shape, dtype and bytes of each.
    pub weights: Digest,
    /// The vocabulary and its rules, over the canonical form of the tokenizer that was built.
    pub tokenizer: Digest,
    /// How a caption becomes token ids.
    pub tokens: TokenRules,
    /// What is taken from the network.
    pub forward: ForwardRules,
    /// The precisions that decide the numbers.
    pub precision: Precision,
}

impl EncoderSpec {
    /// The fingerprint of this spec.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self)
    }
}

/// The network of a text encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Architecture {
    /// A CLIP text tower.
    ClipText(ClipTextArchitecture),
    /// The encoder half of T5 v1.1.
    T5Encoder(T5EncoderArchitecture),
}

impl Architecture {
    /// What kind of network it is.
    pub fn network(&self) -> Network {
        match self {
            Self::ClipText(_) => Network::ClipText,
            Self::T5Encoder(_) => Network::T5Encoder,
        }
    }

    /// Rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::ClipText(clip) => clip.vocab_size,
            Self::T5Encoder(t5) => t5.vocab_size,
        }
    }
}

/// The effective fields of a `CLIPTextConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTextArchitecture {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads; invisible in the shapes.
    pub num_attention_heads: usize,
    /// Rows of the position embedding.
    pub max_position_embeddings: usize,
    /// The MLP's activation; invisible in the shapes.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm; invisible in the shapes.
    pub layer_norm_eps: f64,
    /// Columns of `text_projection`; `None` where the network has none or the recipe does not apply it.
    pub projection_dim: Option<usize>,
    /// The token whose first occurrence is pooled. As read from a configuration it is `eos_token_id`; in a
    /// spec it is the token that the pooled rule looks for, and `None` where the rule looks for none.
    pub eos_token_id: Option<u32>,
}

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

/// An activation, by its name in Hugging Face configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// The exact GELU, with erf.
    Gelu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluNew,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// How a caption becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRules {
    /// Changes to the text before the tokenizer, in order.
    pub cleanup: Vec<Cleanup>,
    /// Shorter sequences are padded on the right up to this many ids (specials counted).
    pub min_tokens: usize,
    /// Longer sequences are cut on the right to this many ids, the end token kept last; `None`: never cut.
    pub max_tokens: Option<usize>,
    /// Where a sequence is cut.
    pub truncation: Truncation,
    /// The id that fills.
    pub pad_id: u32,
    /// Whether the text of `pad_id` in the vocabulary is read as that id inside a caption (`!` in diffusers'
    /// CLIP-G), beyond the special tokens that every tokenizer of this kind has.
    pub pad_text: PadText,
}

/// A change to the caption's text before tokenization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleanup {
    /// Only the first 226 characters are kept (Stability's reference for T5).
    #[serde(rename = "first_226_characters")]
    FirstCharacters226,
    /// Only the first line is kept, stripped (kohya).
    FirstLine,
    /// Split at commas, trimmed, joined again with `, ` (ai-toolkit).
    RespaceCommas,
    /// `(x)`, `(x:1.2)` lose parentheses and weights and stand apart as words of their own, `\(` `\)` lose the
    /// backslash (Stability's reference).
    DropPromptWeights,
}

/// Where a too long sequence is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// At the limit, inside a word if need be.
    Tokens,
    /// Before a word of fewer than 8 tokens that does not fit (Stability's reference for CLIP).
    WholeWords,
}

/// How the pad token's text is read when a caption contains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadText {
    /// As any other text.
    Ordinary,
    /// As the pad token itself.
    Special,
}

/// What is taken from the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ForwardRules {
    /// For a CLIP text tower.
    ClipText(ClipForward),
    /// For a T5 encoder.
    T5Encoder(T5Forward),
}

/// What is taken from a CLIP text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipForward {
    /// The hidden state that becomes the sequence, as Hugging Face's `hidden_states` index counts from the
    /// end: -1 the last block's output, -2 the one before; `None`: no sequence is kept.
    pub hidden_layer: Option<i32>,
    /// Whether the final layer norm is applied to the sequence.
    pub final_norm: bool,
    /// Which row of the final-normed last layer is pooled.
    pub pooled: PooledRule,
    /// Whether the pooled row goes through `text_projection`.
    pub projection: bool,
    /// Whether pad ids are masked in the encoder's attention.
    pub mask: EncoderMask,
}

/// What is taken from a T5 encoder: the final-normed last hidden state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Forward {
    /// Whether pad ids are masked in the encoder's attention.
    pub mask: EncoderMask,
    /// Whether the rows of pad ids are kept.
    pub pad_rows: PadRows,
}

/// The row of CLIP's last hidden state that is pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PooledRule {
    /// None: there is no pooled output.
    None,
    /// At the first end-of-text id of the tokenizer (the spec's `eos_token_id`).
    FirstEos,
    /// At the first occurrence of the largest id (the rule of CLIP configurations with `eos_token_id` 2).
    ArgmaxId,
    /// As transformers decides: [`Self::ArgmaxId`] where the configuration's `eos_token_id` is 2 (a spec then
    /// says so), else at the first id equal to it, and at row 0 where there is none.
    ConfigEos,
}

/// A mask inside the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderMask {
    /// Pads are attended like any token.
    None,
    /// No token attends to a pad.
    Pads,
}

/// What becomes of the rows of pad ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadRows {
    /// They are computed and kept: the denoiser will read them.
    Keep,
    /// They are neither computed nor kept; allowed only with [`EncoderMask::Pads`], which makes the other
    /// rows independent of them.
    Drop,
}

/// The precisions of an encoder's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precision {
    /// Of weights and activations while computing. (The file's own dtype is in the weights' digest.)
    pub compute: Dtype,
    /// Of the stored payload.
    pub output: Dtype,
}

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

/// The fingerprint of an entry: what `spec` makes of `caption`.
///
/// It is that of the JSON object `{"caption": ..., "spec": ..., "version": 1}`.
pub fn caption_entry(spec: &Fingerprint, caption: &str) -> Fingerprint {
    #[derive(Serialize)]
    struct Entry<'a> {
        caption: &'a str,
        spec: &'a Fingerprint,
        version: u32,
    }
    Fingerprint::of(&Entry {
        caption,
        spec,
        version: 1,
    })
}
