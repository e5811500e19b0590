//! What other programs than transformers 5 make of T5's vocabulary, both of transformers 4, for the text between literal
//! special tokens: SentencePiece itself (`T5Tokenizer`, `legacy`), and the library `tokenizers` (`T5TokenizerFast`), which
//! splits a text at spaces alone where transformers 5 splits it at all white space.
//!
//! Sources: `Normalizer::Normalize` of SentencePiece, which looks the characters up one after the other, the longest match
//! first, where `tokenizers` does so by grapheme; `SpmConverter` of transformers 4 (`convert_slow_tokenizer.py`).

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace};
use tokenizers::{NormalizedString, Normalizer as _};

use super::charsmap::CharsMap;
use crate::text::tokenizer::{Implementation, NamedImplementations, Pipeline};

/// The names of all of them.
pub(super) const NAMES: [&str; 2] = [SLOW, FAST];
const SLOW: &str = "transformers_4";
const FAST: &str = "transformers_4_fast";

/// The mark of a word's beginning.
const MARK: &str = "\u{2581}";

struct SentencePiece(Option<CharsMap>);

/// All of them, by name, for a vocabulary's character map.
pub(super) fn all(charsmap: Option<&[u8]>) -> Result<NamedImplementations, String> {
    let map = charsmap.map(CharsMap::of).transpose()?;
    let precompiled = charsmap.map(Precompiled::from).transpose();
    let precompiled = precompiled.map_err(|e| e.to_string())?;
    let spaces = Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), MARK);
    let fast = Fast {
        precompiled,
        spaces: spaces.map_err(|e| e.to_string())?,
    };
    Ok(vec![
        (SLOW, Box::new(SentencePiece(map))),
        (FAST, Box::new(fast)),
    ])
}

/// `T5TokenizerFast` of transformers 4.
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
        let normalize = |by: &dyn Fn(&mut NormalizedString) -> tokenizers::Result<()>,
                         text: &mut _| {
            by(text).map_err(|e| e.to_string())
        };
        if let Some(map) = &self.precompiled {
            normalize(&|text| map.normalize(text), &mut text)?;
        }
        text.rstrip();
        normalize(&|text| self.spaces.normalize(text), &mut text)?;
        Ok(text.get().to_owned())
    }

    fn ids(&self, pipeline: &Pipeline, cleaned: &str) -> Result<Vec<u32>, String> {
        words_ids(pipeline, cleaned)
    }
}

/// The ids of a text of which each word is read for itself, its mark before it; a mark without a word is one, too.
pub(super) fn words_ids(pipeline: &Pipeline, text: &str) -> Result<Vec<u32>, String> {
    let mut marked = text.replace(' ', MARK);
    if !marked.is_empty() && !marked.starts_with(MARK) {
        marked.insert_str(0, MARK);
    }
    let mut ids = Vec::new();
    for word in marked.split(MARK).skip(1) {
        ids.extend(pipeline.model_ids(&format!("{MARK}{word}"))?);
    }
    Ok(ids)
}

impl Implementation for SentencePiece {
    fn reads_added_tokens(&self) -> bool {
        true
    }

    // `T5Tokenizer._add_eos_if_not_present`, after the text was cut.
    fn ends_once(&self) -> bool {
        true
    }

    fn cleaned(&self, text: &str) -> Result<String, String> {
        let mut cleaned = String::with_capacity(text.len());
        // As if a space were before the text, so that those at its beginning are left out.
        let mut after_space = true;
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let own = &rest[..first.len_utf8()];
            let (length, mut new) = (self.0.as_ref())
                .and_then(|map| map.longest(rest))
                .unwrap_or((own.len(), own));
            rest = &rest[length..];
            while after_space && new.starts_with(' ') {
                new = &new[1..];
            }
            if !new.is_empty() {
                cleaned += new;
                after_space = new.ends_with(' ');
            }
        }
        Ok(cleaned)
    }

    fn ids(&self, pipeline: &Pipeline, cleaned: &str) -> Result<Vec<u32>, String> {
        let marked = cleaned.replace(' ', MARK);
        // A mark that stands at the end, whatever it comes from, is left out.
        let marked = marked.trim_end_matches(MARK);
        if marked.is_empty() {
            return Ok(Vec::new());
        }
        pipeline.model_ids(&format!("{MARK}{marked}"))
    }
}
