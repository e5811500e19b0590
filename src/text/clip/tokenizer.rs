//! CLIP's tokenizer: byte-level BPE with `<|startoftext|>` before and `<|endoftext|>` after.
//!
//! Source: `CLIPTokenizer.__init__` of transformers 5 (`models/clip/tokenization_clip.py`).

use std::path::Path;

use tokenizers::SplitDelimiterBehavior;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::implementations;
use crate::text::tokenizer::bpe::{self, BpeKind, BpeVocabulary};
use crate::text::tokenizer::{Error, Pipeline, TokenizerDefinition, TokenizerFormat};

pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";

/// How CLIP splits a text before BPE.
const SPLIT: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// CLIP's tokenizers.
pub(super) static FORMAT: TokenizerFormat = TokenizerFormat {
    name: "CLIP",
    files: &["tokenizer.json", "vocab.json"],
    expected: "tokenizer.json, or vocab.json and merges.txt",
    before: &[BOS],
    after: &[EOS],
    end: EOS,
    unknown: |_| EOS,
    read,
    prompt: |_, _| None,
    needs: |_| Vec::new(),
    windows: super::chunks::windows,
    readable: bpe::readable,
};

static KIND: BpeKind = BpeKind {
    name: "clip",
    version: 1,
    specials: &[BOS, EOS],
    pipeline,
    implementations: implementations::all,
};

fn pipeline(vocabulary: &BpeVocabulary) -> tokenizers::Result<Pipeline> {
    let model = vocabulary
        .model()
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        // As `CLIPTokenizer`, whose unknown token is `<|endoftext|>`.
        .unk_token(EOS.to_owned())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Sequence::new(vec![
        NFC.into(),
        Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
        Lowercase.into(),
    ])))?;
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
        Split::new(
            SplitPattern::Regex(SPLIT.to_owned()),
            // Inverted: what lies between matches is removed, white space above all.
            SplitDelimiterBehavior::Removed,
            true,
        )?
        .into(),
        ByteLevel::default().add_prefix_space(false).into(),
    ])));
    Pipeline::new(tokenizer, [BOS.to_owned(), EOS.to_owned()])
}

fn read(file: &Path) -> Result<TokenizerDefinition, Error> {
    let (vocabulary, added) = bpe::read(&KIND, &FORMAT, file)?;
    Ok(TokenizerDefinition {
        vocabulary: Box::new(vocabulary),
        added,
    })
}
