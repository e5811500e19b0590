//! A `tokenizers` pipeline. Special tokens around a sequence are not its business.

use tokenizers::{AddedToken as LibraryToken, Model as _};

use super::files::AddedToken;

/// From a text to ids, without specials around.
#[derive(Clone)]
pub struct Pipeline(tokenizers::Tokenizer);

impl Pipeline {
    /// A pipeline that reads these tokens' texts as their ids, whatever is around them.
    pub(in crate::text) fn new(
        tokenizer: tokenizers::Tokenizer,
        specials: impl IntoIterator<Item = String>,
    ) -> tokenizers::Result<Self> {
        let mut pipeline = Self(tokenizer);
        pipeline.add_specials(specials)?;
        Ok(pipeline)
    }

    /// The ids of `text`.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        // Without specials, which `Tokenizer` puts around, and without offsets, which nobody asks for.
        let encoding = self.0.encode_fast(text, false).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids that the model itself makes of `text`: no token is looked for in it, nothing is normalized or split.
    pub(in crate::text) fn model_ids(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokens = self.0.get_model().tokenize(text);
        Ok((tokens.map_err(|e| e.to_string())?.iter())
            .map(|token| token.id)
            .collect())
    }

    /// The tokens that are read as their ids wherever their text stands, with that text.
    pub(super) fn whole_tokens(&self) -> Vec<(u32, LibraryToken)> {
        self.0.get_added_tokens_decoder().into_iter().collect()
    }

    pub(in crate::text) fn id_of(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    pub(super) fn token_of(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    /// Whether the text of `id` in a caption is read as `id`, whatever is around it.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.0
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .contains_key(&id)
    }

    /// This pipeline, reading the text of `id` as `id`.
    pub(super) fn with_special(&self, id: u32) -> Result<Self, String> {
        let token = self
            .token_of(id)
            .ok_or_else(|| format!("there is no token {id}"))?;
        let mut pipeline = self.clone();
        pipeline.add_specials([token])?;
        Ok(pipeline)
    }

    fn add_specials(&mut self, tokens: impl IntoIterator<Item = String>) -> Result<(), String> {
        let tokens = tokens
            .into_iter()
            // Special, so that the text is looked for before the normalizer lower-cases it.
            .map(|token| LibraryToken::from(token, true));
        self.0
            .add_special_tokens(tokens)
            .map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Adds a token beyond the vocabulary, whose id must be the next free one.
    pub(super) fn add(&mut self, token: &AddedToken) -> Result<(), String> {
        let added = LibraryToken::from(token.content.clone(), false)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized);
        self.0.add_tokens([added]).map_err(|e| e.to_string())?;
        match self.id_of(&token.content) {
            Some(id) if id == token.id => Ok(()),
            id => Err(format!(
                "the added token `{}` has the id {}, but the next free one is {id:?}",
                token.content, token.id
            )),
        }
    }
}
