//! What other programs than transformers 5 make of T5's vocabulary: SentencePiece itself, which transformers 4 calls for
//! the text between literal special tokens (`T5Tokenizer`, `legacy`).
//!
//! Source: `Normalizer::Normalize` of SentencePiece. It looks the characters up one after the other, the longest match
//! first; the library `tokenizers` does so by grapheme.

use super::charsmap::CharsMap;
use crate::text::tokenizer::{Implementation, Pipeline};

/// The names of all of them.
pub(super) const NAMES: [&str; 1] = ["transformers_4"];

/// The mark of a word's beginning.
const MARK: &str = "\u{2581}";

struct SentencePiece(Option<CharsMap>);

/// All of them, by name, for a vocabulary's character map.
pub(super) fn all(
    charsmap: Option<&[u8]>,
) -> Result<Vec<(&'static str, Box<dyn Implementation>)>, String> {
    let one = |name| -> Result<(&'static str, Box<dyn Implementation>), String> {
        let map = charsmap.map(CharsMap::of).transpose()?;
        Ok((name, Box::new(SentencePiece(map))))
    };
    NAMES.into_iter().map(one).collect()
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
