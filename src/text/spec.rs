//! [`EncoderSpec`]: everything one text encoder's output depends on, and nothing else.
//!
//! A spec has two sources. The *rules* (how tokens are made, which layer is taken, what is masked) come from
//! the recipe's data. The *architecture* (sizes, activation, epsilon) comes from the checkpoint's own
//! `config.json`, so one recipe serves a miniature and the real thing. Weights and tokenizer enter by digest.
//!
//! Paths, batch sizes, devices and thread counts never enter: they do not change the numbers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Network;
use crate::digest::{Digest, Fingerprint};

/// The version of the canonical form of [`EncoderSpec`]. A change of meaning of any field bumps it.
pub const ENCODER_SPEC_VERSION: u32 = 1;

/// One encoder's full description; its [`Fingerprint`] keys the store.
///
/// In JSON the network has two fields, `architecture` and `forward`, each an object with the kind's name as `kind`
/// and the kind's own fields.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "SpecJson", try_from = "SpecJson")]
pub struct EncoderSpec {
    /// [`ENCODER_SPEC_VERSION`].
    pub version: u32,
    /// The network, from the checkpoint's configuration, and what is taken from it.
    pub network: Arc<dyn Network>,
    /// The weights the forward pass uses: over canonical name, shape, dtype and bytes of each.
    pub weights: Digest,
    /// The vocabulary and its rules, over the canonical form of the tokenizer that was built.
    pub tokenizer: Digest,
    /// How a caption becomes token ids.
    pub tokens: TokenRules,
    /// The precisions that decide the numbers.
    pub precision: Precision,
}

/// The canonical form: a spec as its JSON has it.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecJson {
    version: u32,
    architecture: Value,
    weights: Digest,
    tokenizer: Digest,
    tokens: TokenRules,
    forward: Value,
    precision: Precision,
}

impl From<EncoderSpec> for SpecJson {
    fn from(spec: EncoderSpec) -> Self {
        let [architecture, forward] = super::network_json(&*spec.network);
        Self {
            version: spec.version,
            architecture,
            weights: spec.weights,
            tokenizer: spec.tokenizer,
            tokens: spec.tokens,
            forward,
            precision: spec.precision,
        }
    }
}

impl TryFrom<SpecJson> for EncoderSpec {
    type Error = String;

    fn try_from(form: SpecJson) -> Result<Self, String> {
        let network = super::network(form.architecture, form.forward)?;
        // serde cannot refuse unknown fields beside a flattened map: the kind has to.
        let (kind, own) = (network.kind(), &form.tokens.of_kind);
        kind.check_tokens(own, form.tokens.pad_text)?;
        // Written out, a default would make another fingerprint of the same rules.
        if kind.without_defaults(own) != *own {
            return Err("a token rule that has its default is left out of a spec".to_owned());
        }
        Ok(Self {
            version: form.version,
            network,
            weights: form.weights,
            tokenizer: form.tokenizer,
            tokens: form.tokens,
            precision: form.precision,
        })
    }
}

// As JSON, since a `dyn Network` has no other equality.
impl PartialEq for EncoderSpec {
    fn eq(&self, other: &Self) -> bool {
        SpecJson::from(self.clone()) == SpecJson::from(other.clone())
    }
}

/// The JSON of a spec with the token rules in it that a canonical form leaves out, for a person to compare.
pub fn spelled_out(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let name = spec.pointer("/architecture/kind").and_then(Value::as_str);
    if let Some(Ok(kind)) = name.map(super::kind)
        && let Some(Value::Object(tokens)) = spec.get_mut("tokens")
    {
        for (rule, default) in kind.token_defaults() {
            tokens.entry(rule).or_insert(default);
        }
    }
    spec
}

impl EncoderSpec {
    /// The fingerprint of this spec.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self)
    }
}

/// How a caption becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Token rules that only this kind of encoder has, by name; in JSON they stand beside the others.
    #[serde(flatten)]
    pub of_kind: Map<String, Value>,
}

impl TokenRules {
    /// For where no kept row depends on pads: none are made, and the pad id matters only inside captions.
    pub(super) fn forget_pads(&mut self) {
        self.min_tokens = 0;
        if self.pad_text == PadText::Ordinary {
            self.pad_id = 0;
        }
    }
}

/// A change to the caption's text before tokenization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleanup {
    /// Only the first 226 characters are kept (Stability's reference for T5).
    // serde alone would call it `first_characters226`.
    #[serde(rename = "first_226_characters")]
    FirstCharacters226,
    /// Only the first line is kept, stripped (kohya).
    FirstLine,
    /// Split at commas, trimmed, joined again with `, ` (ai-toolkit).
    RespaceCommas,
    /// `(x)`, `(x:1.2)` lose parentheses and weights and stand apart as words of their own, `\(` `\)` lose the
    /// backslash (Stability's reference).
    DropPromptWeights,
    /// `fix_text` of the Python package ftfy, version 6.3.1: text that was decoded wrongly is mended, and entities, ligatures,
    /// full-width letters, curly quotes, line breaks and control characters become plain (Wan).
    #[serde(rename = "ftfy_6.3")]
    Ftfy63,
    /// HTML entities become the characters that they name, twice: `&amp;amp;` becomes `&` (Wan).
    UnescapeHtmlTwice,
    /// Runs of white space become one space, those at the ends nothing (Wan).
    CollapseWhitespace,
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

/// A mask inside the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderMask {
    /// Pads are attended like any token.
    None,
    /// No token attends to a pad.
    Pads,
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
        // Of this object's form; the spec's own version is in its fingerprint.
        version: 1,
    })
}
