//! Qwen's tokenizer: byte-level BPE. Its special tokens lie beyond the vocabulary, and nothing stands around a text but
//! what a recipe's template puts there.
//!
//! Source: `Qwen2Tokenizer.__init__` of transformers 5 (`models/qwen2/tokenization_qwen2.py`), which Qwen3 has, too.

use std::path::Path;

use tokenizers::SplitDelimiterBehavior;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::rules;
use crate::text::tokenizer::bpe::{self, BpeKind, BpeVocabulary};
use crate::text::tokenizer::{
    Error, Pipeline, TokenizerDefinition, TokenizerFormat, Vocabulary as _, Windows,
};

/// The end of a text, which is also what fills: the same token in base and chat models.
const END: &str = "<|endoftext|>";
/// What a chat is written with.
const OF_CHATS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// How Qwen splits a text before BPE.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen's tokenizers.
pub(super) static FORMAT: TokenizerFormat = TokenizerFormat {
    name: "Qwen",
    files: &["tokenizer.json", "vocab.json"],
    expected: "tokenizer.json, or vocab.json with merges.txt and tokenizer_config.json",
    before: &[],
    after: &[],
    end: END,
    // Every byte has a token: `read` sees to it.
    unknown: |_| "",
    read,
    prompt: |rules, caption| {
        let (before, behind) = rules::around(rules)?;
        Some([before, caption, behind].concat())
    },
    needs: |rules| {
        let around = rules::around(rules);
        around.map_or_else(Vec::new, |(before, behind)| {
            [tokens_in(before), tokens_in(behind)].concat()
        })
    },
    windows: |_| Windows::One,
    readable: bpe::readable,
};

static KIND: BpeKind = BpeKind {
    name: "qwen2",
    version: 1,
    specials: &[],
    pipeline,
    implementations: Vec::new,
};

fn pipeline(vocabulary: &BpeVocabulary) -> tokenizers::Result<Pipeline> {
    let model = vocabulary.model().build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(NFC))?;
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
        Split::new(
            SplitPattern::Regex(SPLIT.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )?
        .into(),
        ByteLevel::default()
            .add_prefix_space(false)
            .use_regex(false)
            .into(),
    ])));
    // Where a vocabulary has them itself, as miniatures do.
    let own = [END].iter().chain(&OF_CHATS);
    let own = own.filter(|token| vocabulary.id_of(token).is_some());
    Pipeline::new(tokenizer, own.map(|token| (*token).to_owned()))
}

/// The special tokens that a text spells: `<|name|>`, and the marks of a thought.
fn tokens_in(text: &str) -> Vec<&str> {
    const OF_THOUGHTS: [&str; 2] = ["<think>", "</think>"];
    let starts = text.match_indices('<').map(|(at, _)| &text[at..]);
    starts
        .filter_map(|rest| {
            let thought = OF_THOUGHTS.into_iter().find(|mark| rest.starts_with(mark));
            thought.or_else(|| {
                let name = rest.strip_prefix("<|")?.split_once("|>")?.0;
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                name.chars().all(is_name).then(|| &rest[..name.len() + 4])
            })
        })
        .collect()
}

fn read(file: &Path) -> Result<TokenizerDefinition, Error> {
    let (vocabulary, added) = bpe::read(&KIND, &FORMAT, file)?;
    // A byte without a token would be left out of a caption without a word.
    let lacks = |byte: &char| vocabulary.id_of(&byte.to_string()).is_none();
    if let Some(byte) = ByteLevel::alphabet().into_iter().filter(lacks).min() {
        return Err(FORMAT.malformed(
            file,
            format!("the vocabulary has no `{byte}`, of the 256 that stand for bytes"),
        ));
    }
    Ok(TokenizerDefinition {
        vocabulary: Box::new(vocabulary),
        added,
    })
}
