//! What a tokenizer is, read from whichever files it is kept in.
//!
//! Everything else these files may say (normalizer, pre-tokenizer, post-processor, truncation, padding, names
//! of special tokens, lengths) is the same for every tokenizer of a kind, or decided by the recipe.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pipeline::Pipeline;
use super::{Error, NamedImplementations, TokenRules, Windows};
use crate::files;

/// The largest that is published (Gemma, 262,144 tokens) has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// A kind's tokenizers: the files they are kept in, and what is the same for all of them.
pub struct TokenizerFormat {
    /// What a person calls them: `CLIP`.
    pub name: &'static str,
    /// Of these files a folder has one; the first that is there is read.
    pub files: &'static [&'static str],
    /// These files, for a person: `tokenizer.json or spiece.model`.
    pub expected: &'static str,
    /// The tokens before every caption.
    pub before: &'static [&'static str],
    /// The tokens after every caption.
    pub after: &'static [&'static str],
    /// The end-of-text token.
    pub end: &'static str,
    /// The token that stands for what the vocabulary has no token for, by the token rules that are the kind's own.
    pub unknown: fn(&TokenRules) -> &'static str,
    /// Reads one of the files and, where it needs them, those beside it.
    pub read: fn(&Path) -> Result<TokenizerDefinition, Error>,
    /// The text that is tokenized for a caption that was cleaned up: where a model expects more around it, by the token
    /// rules that are the kind's own.
    pub prompt: fn(&TokenRules, &str) -> Option<String>,
    /// The tokens in what stands around a caption: spelled out in pieces they would mean something else.
    pub needs: fn(&TokenRules) -> Vec<&str>,
    /// How many windows a caption may fill, by the token rules that are the kind's own.
    pub windows: fn(&TokenRules) -> Windows,
    /// A token as a person reads it.
    pub readable: fn(String) -> String,
}

/// What a tokenizer's files say, before a pipeline is built of it.
pub struct TokenizerDefinition {
    /// The tokens the model was trained with, and how a text is split into them.
    pub vocabulary: Box<dyn Vocabulary>,
    /// The tokens that the file names as added; some may be of the vocabulary.
    pub added: Vec<AddedToken>,
}

/// A vocabulary as its files have it.
pub trait Vocabulary {
    /// The id of a token.
    fn id_of(&self, token: &str) -> Option<u32>;

    /// The largest id and its token; `None`: there is no token.
    fn largest(&self) -> Option<(u32, String)>;

    /// The canonical form of it and of the tokens that were added.
    fn canonical(&self, added: &[AddedToken]) -> Vec<u8>;

    /// From a text to ids, built as transformers builds it.
    ///
    /// # Errors
    /// If the library takes it for no such vocabulary.
    fn pipeline(&self) -> tokenizers::Result<Pipeline>;

    /// The other ways from a text to ids, by the names that recipes have for them.
    ///
    /// # Errors
    /// If one cannot be made of this vocabulary.
    fn implementations(&self) -> Result<NamedImplementations, String> {
        Ok(Vec::new())
    }
}

/// A token that somebody added beyond the vocabulary (textual inversion).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddedToken {
    /// Absent where the file keys its tokens by id.
    #[serde(default)]
    pub id: u32,
    /// The text that is read as this token.
    pub content: String,
    /// Whether it is read only where no word goes on around it.
    #[serde(default)]
    pub single_word: bool,
    /// Whether it takes the white space before it.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether it takes the white space after it.
    #[serde(default)]
    pub rstrip: bool,
    /// Whether it is looked for after the text was normalized.
    #[serde(default)]
    pub normalized: bool,
}

impl TokenizerFormat {
    /// How many tokens stand around every caption.
    pub fn specials(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// The file of the tokenizer at `path`, a folder or a file.
    pub(super) fn find(&self, path: &Path) -> Result<PathBuf, Error> {
        if path.is_file() {
            return Ok(path.to_owned());
        }
        let mut candidates = self.files.iter().map(|name| path.join(name));
        candidates
            .find(|candidate| candidate.is_file())
            .ok_or_else(|| Error::Missing {
                path: path.to_owned(),
                kind: self.name,
                expected: self.expected,
            })
    }

    /// The tokenizer kept in `file`; of the added tokens those that lie beyond the vocabulary, by their ids.
    pub(super) fn open(&self, file: &Path) -> Result<TokenizerDefinition, Error> {
        let TokenizerDefinition { vocabulary, added } = (self.read)(file)?;
        // By id, as the library gives each token that is added the next free one.
        let mut beyond = BTreeMap::new();
        add(&*vocabulary, added, &mut beyond).map_err(|p| self.malformed(file, p))?;
        let config = file.with_file_name("tokenizer_config.json");
        if config.is_file() {
            let malformed = |problem| self.malformed(&config, problem);
            let found = added_in_config(&read_bytes(&config)?).map_err(malformed)?;
            add(&*vocabulary, found, &mut beyond).map_err(malformed)?;
        }
        Ok(TokenizerDefinition {
            vocabulary,
            added: beyond.into_values().collect(),
        })
    }

    /// The JSON in a file.
    pub(in crate::text) fn json(&self, file: &Path) -> Result<Value, Error> {
        serde_json::from_slice(&read_bytes(file)?)
            .map_err(|e| self.malformed(file, format!("not JSON: {e}")))
    }

    pub(in crate::text) fn malformed(&self, path: &Path, problem: String) -> Error {
        Error::Malformed {
            path: path.to_owned(),
            kind: self.name,
            problem,
        }
    }
}

/// The bytes of a file.
pub(in crate::text) fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    files::read(path, MAX_TOKENIZER_BYTES).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// The tokens under `added_tokens_decoder`, in a `tokenizer_config.json`.
fn added_in_config(bytes: &[u8]) -> Result<Vec<AddedToken>, String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        added_tokens_decoder: BTreeMap<u32, AddedToken>,
    }
    let config: Config = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok((config.added_tokens_decoder.into_iter())
        .map(|(id, token)| AddedToken { id, ..token })
        .collect())
}

/// Adds the tokens that lie beyond the vocabulary. Those inside it are dropped: its own specials are known, and
/// whether the pad's text is special (`!` of CLIP-G) is for the recipe to say.
fn add(
    vocabulary: &dyn Vocabulary,
    found: Vec<AddedToken>,
    all: &mut BTreeMap<u32, AddedToken>,
) -> Result<(), String> {
    for token in found {
        match vocabulary.id_of(&token.content) {
            Some(id) if id == token.id => {}
            Some(id) => {
                return Err(format!(
                    "the added token `{}` has the id {}, in the vocabulary {id}",
                    token.content, token.id
                ));
            }
            None => {
                all.insert(token.id, token);
            }
        }
    }
    Ok(())
}
