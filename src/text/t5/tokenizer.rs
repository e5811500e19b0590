//! The tokenizers of T5 and UMT5: SentencePiece's unigram pieces with `</s>` after.
//!
//! Source: `T5Tokenizer.__init__` of transformers 5 (`models/t5/tokenization_t5.py`), which both have there.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::PreTokenizerWrapper;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::{charsmap, implementations, sentencepiece};
use crate::digest::{self, Digest};
use crate::text::tokenizer::{
    AddedToken, Error, NamedImplementations, Pipeline, TokenizerDefinition, TokenizerFormat,
    Vocabulary, Windows, read_bytes,
};

pub(super) const EOS: &str = "</s>";
pub(super) const UNKNOWN: &str = "<unk>";
/// The index that transformers 5 takes for that of the unknown piece, whatever the vocabulary says.
pub(super) const UNKNOWN_ID: usize = 2;

/// What T5's and UMT5's vocabularies differ in.
pub(super) struct Dialect {
    /// The first word of the canonical form.
    pub(super) kind: &'static str,
    /// The index of the piece `<unk>`.
    pub(super) unknown: usize,
    /// How many `<extra_id_*>` pieces follow the pieces of a `spiece.model`.
    pub(super) extra_ids: usize,
    /// The tokens that are read as their ids wherever they stand, beside `<extra_id_*>`.
    pub(super) specials: &'static [&'static str],
    /// Whether pieces without text may be there, which nothing is read as.
    pub(super) hollow: bool,
    /// The ways from a text to ids beside transformers 5's, of a character map.
    pub(super) implementations: fn(Option<&[u8]>) -> Result<NamedImplementations, String>,
}

static T5_DIALECT: Dialect = Dialect {
    kind: "t5",
    unknown: UNKNOWN_ID,
    extra_ids: 100,
    specials: &["<pad>", EOS, UNKNOWN],
    hollow: false,
    implementations: implementations::all,
};

/// The version of the canonical form behind the digest.
const VERSION: u32 = 1;

/// T5's tokenizers.
pub(super) static FORMAT: TokenizerFormat = TokenizerFormat {
    name: "T5",
    files: &["tokenizer.json", "spiece.model"],
    expected: "tokenizer.json or spiece.model",
    before: &[],
    after: &[EOS],
    end: EOS,
    unknown: |_| UNKNOWN,
    read: |file| read(&FORMAT, &T5_DIALECT, file),
    prompt: |_, _| None,
    needs: |_| Vec::new(),
    windows: |_| Windows::One,
    readable: |token| token,
};

struct T5Vocabulary {
    dialect: &'static Dialect,
    /// Text and score, in order of their ids.
    pieces: Vec<(String, f64)>,
    charsmap: Option<Vec<u8>>,
}

impl Vocabulary for T5Vocabulary {
    fn id_of(&self, token: &str) -> Option<u32> {
        (self.pieces.iter().zip(0_u32..))
            .find_map(|((piece, _), id)| (*piece == token).then_some(id))
    }

    fn largest(&self) -> Option<(u32, String)> {
        let id = u32::try_from(self.pieces.len()).ok()?.checked_sub(1)?;
        self.pieces.last().map(|(piece, _)| (id, piece.clone()))
    }

    fn canonical(&self, added: &[AddedToken]) -> Vec<u8> {
        #[derive(Serialize)]
        struct Form<'a> {
            kind: &'a str,
            version: u32,
            pieces: &'a [(String, f64)],
            charsmap: Option<Digest>,
            added: &'a [AddedToken],
        }
        digest::canonical_json(&Form {
            kind: self.dialect.kind,
            version: VERSION,
            pieces: &self.pieces,
            // Its bytes have no form in JSON.
            charsmap: self.charsmap.as_deref().map(Digest::of),
            added,
        })
    }

    fn pipeline(&self) -> tokenizers::Result<Pipeline> {
        let model = Unigram::from(self.pieces.clone(), Some(UNKNOWN_ID), false)?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        if let Some(map) = &self.charsmap {
            let map = Precompiled::from(map).map_err(|e| e.to_string())?;
            tokenizer.with_normalizer(Some(NormalizerWrapper::Precompiled(map)))?;
        }
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
            PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit),
            Metaspace::new('\u{2581}', PrependScheme::Always, true).into(),
        ])));
        let known = self.dialect.specials.iter().map(|t| (*t).to_owned());
        let sentinels = (self.pieces.iter())
            .map(|(piece, _)| piece)
            .filter(|piece| is_sentinel(piece))
            .cloned();
        // A special that the vocabulary lacks would be given a new id.
        let known = known.filter(|token| self.pieces.iter().any(|(piece, _)| piece == token));
        Pipeline::new(tokenizer, known.chain(sentinels))
    }

    fn implementations(&self) -> Result<NamedImplementations, String> {
        (self.dialect.implementations)(self.charsmap.as_deref())
    }
}

/// Whether `piece` is `<extra_id_N>`.
fn is_sentinel(piece: &str) -> bool {
    let number = piece
        .strip_prefix("<extra_id_")
        .and_then(|rest| rest.strip_suffix('>'));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn read(
    format: &TokenizerFormat,
    dialect: &'static Dialect,
    file: &Path,
) -> Result<TokenizerDefinition, Error> {
    let malformed = |problem| format.malformed(file, problem);
    if file.extension().is_some_and(|ext| ext == "json") {
        return from_json(dialect, format.json(file)?).map_err(malformed);
    }
    let pieces = from_sentencepiece(dialect, &read_bytes(file)?).map_err(malformed)?;
    Ok(TokenizerDefinition {
        vocabulary: Box::new(pieces),
        added: Vec::new(),
    })
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerJson>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vec<(String, f64)>,
    unk_id: Option<usize>,
}

/// A normalizer, of which only the character map matters.
#[derive(Deserialize)]
struct NormalizerJson {
    #[serde(default)]
    normalizers: Vec<Self>,
    /// Present in the normalizer of type `Precompiled`; base64, as its deserializer in `tokenizers` reads.
    precompiled_charsmap: Option<String>,
}

impl NormalizerJson {
    fn charsmap(&self) -> Option<&str> {
        let direct = self.precompiled_charsmap.as_deref();
        direct.or_else(|| self.normalizers.iter().find_map(Self::charsmap))
    }
}

fn from_json(dialect: &'static Dialect, json: Value) -> Result<TokenizerDefinition, String> {
    // serde would also take a list for a structure.
    if !json.get("model").is_some_and(Value::is_object) {
        return Err("it has no `model`".to_owned());
    }
    let json: TokenizerJson = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let charsmap = (json.normalizer.as_ref())
        .and_then(NormalizerJson::charsmap)
        .map(base64)
        .transpose()?;
    let pieces = checked(dialect, json.model.vocab, json.model.unk_id, charsmap)?;
    Ok(TokenizerDefinition {
        vocabulary: Box::new(pieces),
        added: json.added_tokens,
    })
}

fn from_sentencepiece(dialect: &'static Dialect, bytes: &[u8]) -> Result<T5Vocabulary, String> {
    let mut model = sentencepiece::parse(bytes)?;
    // The sentinels are not in the file; transformers appends them, the last first.
    if !model
        .pieces
        .iter()
        .any(|(piece, _)| piece == "<extra_id_0>")
    {
        let extra = (0..dialect.extra_ids)
            .rev()
            .map(|n| (format!("<extra_id_{n}>"), 0.0));
        model.pieces.extend(extra);
    }
    let charsmap = Some(model.charsmap).filter(|map| !map.is_empty());
    checked(dialect, model.pieces, model.unknown, charsmap)
}

fn checked(
    dialect: &'static Dialect,
    pieces: Vec<(String, f64)>,
    unknown: Option<usize>,
    charsmap: Option<Vec<u8>>,
) -> Result<T5Vocabulary, String> {
    let wanted = dialect.unknown;
    if unknown != Some(wanted) || pieces.len() <= wanted {
        return Err(format!(
            "the unknown piece must have the id {wanted}, found {unknown:?} of {} pieces",
            pieces.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for (id, (piece, score)) in pieces.iter().enumerate() {
        // The digest is over JSON, which has no infinite score, and of two equal pieces one id could not be told.
        let hollow = dialect.hollow && piece.is_empty();
        if !hollow && (piece.is_empty() || !seen.insert(piece)) || !score.is_finite() {
            return Err(format!(
                "piece {id} (`{piece}`, score {score}) is empty, a duplicate, or without a finite score"
            ));
        }
    }
    if !seen.iter().any(|piece| *piece == EOS) {
        return Err(format!("the vocabulary has no `{EOS}`"));
    }
    if let Some(map) = &charsmap {
        charsmap::check(map)?;
    }
    Ok(T5Vocabulary {
        dialect,
        pieces,
        charsmap,
    })
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    // With or without signs of equality at the end, and whatever the last digit's idle bits are.
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_encode_padding(false)
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    );
    (ENGINE.decode(text.trim_end_matches('=')))
        .map_err(|_| "the precompiled character map is not base64".to_owned())
}
