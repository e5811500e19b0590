//! Special tokens that stand in a text as text: `<|im_end|>` in a caption, or in what a kind puts around one.

use super::{Error, Tokenizer, cleanup};
use crate::text::spec::TokenRules;

impl Tokenizer {
    /// The tokens, by id and text, that are read whole wherever their text stands, and that `caption` writes: each once, in
    /// the order of their ids.
    pub fn written(&self, rules: &TokenRules, caption: &str) -> Vec<(u32, String)> {
        // What cannot be cleaned up cannot be encoded, which then says so.
        let text = cleanup::apply(&rules.cleanup, caption).unwrap_or(caption.into());
        let whole = self.plain.whole_tokens().into_iter();
        let mut found: Vec<(u32, String)> = whole
            .map(|(id, token)| (id, token.content))
            .filter(|(_, token)| text.contains(token.as_str()))
            .collect();
        found.sort();
        found
    }

    /// Checks that the tokens in the text around captions are read as such.
    pub(super) fn check_template(&self, rules: &TokenRules) -> Result<(), Error> {
        for token in (self.format.needs)(rules) {
            let id = self.plain.id_of(token);
            if !id.is_some_and(|id| self.plain.is_special(id)) {
                return Err(Error::Rules(format!(
                    "the text around captions has `{token}`, which this {} tokenizer does not read as one token: it is \
                     another model's, or its folder lacks the file that adds it",
                    self.format.name
                )));
            }
        }
        Ok(())
    }
}
