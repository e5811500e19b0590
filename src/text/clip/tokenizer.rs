//! CLIP's tokenizer: byte-level BPE with `<|startoftext|>` before and `<|endoftext|>` after.
//!
//! Source: `CLIPTokenizer.__init__` of transformers 5 (`models/clip/tokenization_clip.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::implementations;
use crate::digest;
use crate::text::tokenizer::{
    AddedToken, Error, NamedImplementations, Pipeline, TokenizerDefinition, TokenizerFormat,
    Vocabulary, bpe,
};

pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";

/// The version of the canonical form behind the digest.
const VERSION: u32 = 1;

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
    unknown: EOS,
    read,
    prompt: |_, _| None,
    needs: |_| Vec::new(),
    windows: super::chunks::windows,
    readable: bpe::readable,
};

struct ClipVocabulary {
    vocab: BTreeMap<String, u32>,
    /// In order of their rank.
    merges: Vec<(String, String)>,
}

impl Vocabulary for ClipVocabulary {
    fn id_of(&self, token: &str) -> Option<u32> {
        self.vocab.get(token).copied()
    }

    fn largest(&self) -> Option<(u32, String)> {
        bpe::largest(&self.vocab)
    }

    fn canonical(&self, added: &[AddedToken]) -> Vec<u8> {
        #[derive(Serialize)]
        struct Form<'a> {
            kind: &'a str,
            version: u32,
            vocab: &'a BTreeMap<String, u32>,
            merges: &'a [(String, String)],
            added: &'a [AddedToken],
        }
        digest::canonical_json(&Form {
            kind: "clip",
            version: VERSION,
            vocab: &self.vocab,
            merges: &self.merges,
            added,
        })
    }

    fn pipeline(&self) -> tokenizers::Result<Pipeline> {
        let vocab: Vocab = self
            .vocab
            .iter()
            .map(|(token, id)| (token.clone(), *id))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, self.merges.clone())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".to_owned())
            // As `CLIPTokenizer`, whose unknown token is `<|endoftext|>`.
            .unk_token(FORMAT.unknown.to_owned())
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

    fn implementations(&self) -> Result<NamedImplementations, String> {
        Ok(implementations::all())
    }
}

fn read(file: &Path) -> Result<TokenizerDefinition, Error> {
    let files = bpe::read(&FORMAT, &[BOS, EOS], file)?;
    Ok(TokenizerDefinition {
        vocabulary: Box::new(ClipVocabulary {
            vocab: files.vocab,
            merges: files.merges,
        }),
        added: files.added,
    })
}
