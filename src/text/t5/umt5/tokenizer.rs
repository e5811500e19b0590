//! UMT5's tokenizer: 256,000 pieces of SentencePiece without a character map, 300 sentinels, `</s>` after.
//!
//! Transformers 4 reads its `tokenizer.json` as it stands; so does transformers 5 where a `config.json` beside it says that the
//! model is a `umt5`. In a folder that holds the tokenizer alone, as a diffusers model's, transformers 5 takes the
//! `T5Tokenizer` that `tokenizer_config.json` names: T5's, whose unknown piece is the one of id 2, here `<s>`
//! (`T5Tokenizer.__init__` in `models/t5/tokenization_t5.py`).

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace};
use tokenizers::{NormalizedString, Normalizer as _};

use super::super::implementations::words_ids;
use super::super::tokenizer::{Dialect, EOS, UNKNOWN, UNKNOWN_ID, read};
use crate::text::spec::TokenRules;
use crate::text::tokenizer::{
    IMPLEMENTATION, Implementation, NamedImplementations, Pipeline, TokenizerFormat, Windows,
};

/// The way of transformers 4.
pub(super) const FAST: &str = "transformers_4_fast";

/// What transformers 5 makes of text that the vocabulary has no piece for.
const BEGIN: &str = "<s>";

/// UMT5's tokenizers.
pub(super) static FORMAT: TokenizerFormat = TokenizerFormat {
    name: "UMT5",
    files: &["tokenizer.json", "spiece.model"],
    expected: "tokenizer.json or spiece.model",
    before: &[],
    after: &[EOS],
    end: EOS,
    unknown: |rules: &TokenRules| match rules.of_kind.contains_key(IMPLEMENTATION) {
        true => UNKNOWN,
        false => BEGIN,
    },
    read: |file| read(&FORMAT, &DIALECT, file),
    prompt: |_, _| None,
    needs: |_| Vec::new(),
    windows: |_| Windows::One,
    readable: |token| token,
};

/// The index of `<unk>`.
const OWN_UNKNOWN_ID: usize = 3;

static DIALECT: Dialect = Dialect {
    kind: "umt5",
    unknown: OWN_UNKNOWN_ID,
    extra_ids: 300,
    specials: &["<pad>", EOS, BEGIN, UNKNOWN],
    // Two of google/umt5-xxl's are.
    hollow: true,
    implementations,
};

fn implementations(charsmap: Option<&[u8]>) -> Result<NamedImplementations, String> {
    let precompiled = charsmap.map(Precompiled::from).transpose();
    let spaces = Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), " ");
    let fast = Fast {
        precompiled: precompiled.map_err(|e| e.to_string())?,
        spaces: spaces.map_err(|e| e.to_string())?,
    };
    Ok(vec![(FAST, Box::new(fast))])
}

/// What `tokenizer.json` says: runs of spaces are one, and words begin at spaces alone.
struct Fast {
    precompiled: Option<Precompiled>,
    spaces: Replace,
}

impl Implementation for Fast {
    fn reads_added_tokens(&self) -> bool {
        true
    }

    fn cleaned(&self, text: &str) -> Result<String, String> {
        let mut text = NormalizedString::from(text);
        if let Some(map) = &self.precompiled {
            map.normalize(&mut text).map_err(|e| e.to_string())?;
        }
        self.spaces
            .normalize(&mut text)
            .map_err(|e| e.to_string())?;
        Ok(text.get().to_owned())
    }

    fn ids(&self, pipeline: &Pipeline, cleaned: &str) -> Result<Vec<u32>, String> {
        let mut ids = words_ids(pipeline, cleaned)?;
        // Between literal tokens the pipeline's model has that id for unknown text alone.
        for id in &mut ids {
            if *id == UNKNOWN_ID as u32 {
                *id = OWN_UNKNOWN_ID as u32;
            }
        }
        Ok(ids)
    }
}
