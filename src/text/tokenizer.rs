//! Captions to token ids, exactly as the program that trained the base model would make them.
//!
//! A [`Tokenizer`] is a vocabulary. It is built from any of the files that a kind's tokenizers are kept in, always in
//! the same way, so that its [`Tokenizer::digest`] does not depend on which of them was there. What a recipe may vary
//! (clean-up, lengths, cutting, pads) comes with each call as [`TokenRules`].
//!
//! The pipelines are those of transformers 5's own tokenizers (`CLIPTokenizer`, `T5Tokenizer`), which likewise take only
//! vocabulary, merges and character map from the files and ignore the rest of a `tokenizer.json`. Other programs, and
//! earlier versions of this one, read the same vocabulary otherwise: each is an [`Implementation`].
//!
//! - `bpe`: the files of byte-level BPE vocabularies
//! - `files`: what a tokenizer is, read from the files that a kind's [`TokenizerFormat`] names
//! - `pipeline`: a `tokenizers` pipeline
//! - `implementation`: the other ways from a text to ids
//! - `windows`: captions longer than what an encoder takes at once
//! - `specials`: the tokens that a caption's text, or the text around it, spells
//! - `cleanup`: the changes to the text before
//! - `lost`: what of a caption does not reach the encoder
//! - `python`, `html`, `ftfy`: what programs in Python do to text

pub(in crate::text) mod bpe;
mod cleanup;
mod files;
pub(in crate::text) mod ftfy;
mod html;
mod implementation;
mod lost;
mod pipeline;
pub(in crate::text) mod python;
mod specials;
mod windows;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::spec::{PadText, TokenRules, Truncation};
use crate::digest::Digest;
use crate::shown;
use implementation::Reader;

pub(in crate::text) use files::read_bytes;
pub use files::{AddedToken, TokenizerDefinition, TokenizerFormat, Vocabulary};
pub use implementation::{IMPLEMENTATION, Implementation, NamedImplementations, Part, TODAYS};
pub(in crate::text) use implementation::{
    check_implementation, check_only_implementation, implementation_default,
};
pub use lost::{CutText, DroppedText, Lost, is_shortened};
pub use pipeline::Pipeline;
pub use windows::Windows;

/// A word of at least this many tokens may be cut under [`Truncation::WholeWords`].
///
/// Source: `max_word_length` in Stability's `other_impls.py`.
const LONG_WORD_TOKENS: usize = 8;

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: cannot be read", shown::path(path))]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A folder holds none of the files a tokenizer is kept in.
    #[error(
        "{}: no {kind} tokenizer here; expected {expected}; give the model's tokenizer folder or one of these files",
        shown::path(path)
    )]
    Missing {
        /// The folder or file that was asked for.
        path: PathBuf,
        /// The kind of tokenizer wanted.
        kind: &'static str,
        /// The files that would have done.
        expected: &'static str,
    },
    /// A file does not say what a tokenizer's file must say.
    #[error("{}: not a {kind} tokenizer: {problem}", shown::path(path))]
    Malformed {
        /// The path of the file.
        path: PathBuf,
        /// The kind of tokenizer wanted.
        kind: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The vocabulary is larger than the embedding table.
    #[error(
        "the tokenizer's largest id is {id} (`{token}`) but the encoder's token embedding has {rows} rows; the tokenizer belongs to another model"
    )]
    DoesNotFit {
        /// The largest id.
        id: u32,
        /// The text of that id's token.
        token: String,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// Rules that no sequence of this tokenizer can satisfy.
    #[error("token rules: {0}")]
    Rules(String),
    /// The `tokenizers` library failed on a caption.
    #[error("the tokenizer failed on the caption {caption:?}: {problem}")]
    Failed {
        /// The caption's first 60 characters.
        caption: String,
        /// What the library said.
        problem: String,
    },
}

/// What an encoder's spec needs to know of a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerIdentity {
    /// The digest of its canonical form.
    pub digest: Digest,
    /// Its end-of-text id.
    pub end_id: u32,
}

/// A caption's token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The ids in the order of the encoder's rows: specials, content, specials, pads.
    pub ids: Vec<u32>,
    /// How many of them come before the pads, specials included.
    pub count: usize,
    /// Whether something was cut.
    pub truncated: bool,
    /// What `count` would be had nothing been cut.
    pub total: usize,
}

/// A vocabulary and its pipeline; shared between threads.
pub struct Tokenizer {
    format: &'static TokenizerFormat,
    plain: Pipeline,
    /// Pipelines that read one pad token's text as special, by pad id, built when first asked for.
    with_pad: Mutex<BTreeMap<u32, Arc<Pipeline>>>,
    /// The ways from a text to ids beside the pipeline's own, by the names that recipes have for them.
    implementations: BTreeMap<&'static str, Box<dyn Implementation>>,
    digest: Digest,
    before: Vec<u32>,
    after: Vec<u32>,
    end: u32,
    largest: (u32, String),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tokenizer({}, {})",
            self.format.name,
            self.digest.short()
        )
    }
}

impl Tokenizer {
    /// Loads the tokenizer at `path`.
    ///
    /// `path` is a tokenizer's folder as diffusers and transformers write it, or one of the format's files. In a folder,
    /// `tokenizer.json` is preferred, as transformers does. Tokens that somebody added beyond the vocabulary
    /// are taken from `tokenizer.json` and from `tokenizer_config.json` beside it.
    ///
    /// # Errors
    /// If a file is missing, unreadable, or not such a tokenizer.
    pub fn load(format: &'static TokenizerFormat, path: &Path) -> Result<Self, Error> {
        let file = format.find(path)?;
        let definition = format.open(&file)?;
        Self::build(format, &definition).map_err(|p| format.malformed(&file, p))
    }

    fn build(
        format: &'static TokenizerFormat,
        definition: &TokenizerDefinition,
    ) -> Result<Self, String> {
        let TokenizerDefinition { vocabulary, added } = definition;
        let mut plain = vocabulary.pipeline().map_err(|e| e.to_string())?;
        for token in added {
            plain.add(token)?;
        }
        let id_of = |token: &&str| {
            plain
                .id_of(token)
                .ok_or_else(|| format!("the vocabulary has no `{token}`"))
        };
        let ids = |tokens: &[&str]| tokens.iter().map(id_of).collect::<Result<Vec<u32>, _>>();
        let canonical = vocabulary.canonical(added);
        let last_added = added.last().map(|token| (token.id, token.content.clone()));
        Ok(Self {
            format,
            before: ids(format.before)?,
            after: ids(format.after)?,
            end: id_of(&format.end)?,
            digest: Digest::of(&canonical),
            // Pairs compare by id first.
            largest: last_added
                .max(vocabulary.largest())
                .ok_or("the vocabulary is empty")?,
            plain,
            with_pad: Mutex::default(),
            implementations: vocabulary.implementations()?.into_iter().collect(),
        })
    }

    /// The id of the vocabulary: over its canonical form, whatever files it came from.
    ///
    /// The canonical form is the RFC 8785 JSON of `kind`, `version`, the vocabulary (CLIP: `vocab` and
    /// `merges`; T5: `pieces` with scores, and the character map's own digest), and the `added` tokens.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What an encoder's spec needs to know of it.
    pub fn identity(&self) -> TokenizerIdentity {
        TokenizerIdentity {
            digest: self.digest(),
            end_id: self.eos_id(),
        }
    }

    /// The end-of-text id.
    pub fn eos_id(&self) -> u32 {
        self.end
    }

    /// The id of `token`, as the vocabulary spells it (`cat</w>`, `<pad>`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.plain.id_of(token)
    }

    /// The token of `id`, readable: bytes decoded where they are whole characters, `</w>` and
    /// the word mark (U+2581) kept.
    pub fn token(&self, id: u32) -> Option<String> {
        let token = self.plain.token_of(id)?;
        Some((self.format.readable)(token))
    }

    /// Checks that every id has its row in an embedding table of `rows` rows.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] otherwise.
    pub fn check_fits(&self, rows: usize) -> Result<(), Error> {
        let (id, token) = &self.largest;
        if (*id as usize) < rows {
            return Ok(());
        }
        Err(Error::DoesNotFit {
            id: *id,
            token: token.clone(),
            rows,
        })
    }

    /// The ids of `caption` under `rules`.
    ///
    /// Literal specials in the caption (`<|endoftext|>`, `</s>`, `<extra_id_0>`) become their ids, as in every
    /// program that this follows.
    ///
    /// # Errors
    /// [`Error::Rules`] where no sequence can satisfy the rules.
    pub fn encode(&self, rules: &TokenRules, caption: &str) -> Result<Tokens, Error> {
        let room = self.room(rules)?;
        let text = self.prompt(rules, caption)?;
        let with_pad = self.pipeline_with_pad(rules)?;
        let reader = self.reader(rules, with_pad.as_deref())?;
        self.tokens(rules, room, &reader, &text)
            .map_err(|problem| failed(caption, problem))
    }

    /// The ids of a text that was cleaned up, with `room` for content.
    fn tokens(
        &self,
        rules: &TokenRules,
        room: Option<usize>,
        reader: &Reader<'_>,
        text: &str,
    ) -> Result<Tokens, String> {
        let windows = (self.format.windows)(rules);
        let room = match (windows, room, rules.max_tokens) {
            (Windows::Joined(count), Some(room), _) => Some(room * count),
            (Windows::Whole, Some(room), Some(most)) => {
                let contents = windows::contents(reader, rules.truncation, text, room)?;
                let around = (&self.before[..], &self.after[..]);
                return Ok(windows::framed(&contents, most, rules, around));
            }
            (_, room, _) => room,
        };
        let (mut content, mut total) = match rules.truncation {
            Truncation::Tokens => cut_at_tokens(reader, text, room)?,
            Truncation::WholeWords => cut_at_words(reader, text, room)?,
        };
        if reader.ends_once() && content.last() == Some(&self.end) {
            content.pop();
            total -= 1;
        }
        let least = match (windows, room) {
            // Every window is encoded, whether the caption reaches it or not.
            (Windows::Joined(_), Some(room)) => room + self.format.specials(),
            _ => rules.min_tokens,
        };
        Ok(self.framed(&content, total, least, rules.pad_id))
    }

    /// What of `caption` is turned into ids: the text after the recipe's clean-up and that of the implementation.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn read_text(&self, rules: &TokenRules, caption: &str) -> Result<String, Error> {
        let text = self.prompt(rules, caption)?;
        let with_pad = self.pipeline_with_pad(rules)?;
        let reader = self.reader(rules, with_pad.as_deref())?;
        reader
            .text(&text)
            .map_err(|problem| failed(caption, problem))
    }

    /// The caption after the recipe's clean-up, with what the kind puts around it.
    fn prompt<'c>(&self, rules: &TokenRules, caption: &'c str) -> Result<Cow<'c, str>, Error> {
        let text = cleanup::apply(&rules.cleanup, caption).map_err(|p| failed(caption, p))?;
        // After the clean-up, which is of the caption and not of what a kind puts around it.
        Ok(match (self.format.prompt)(rules, &text) {
            Some(prompt) => prompt.into(),
            None => text,
        })
    }

    /// What reads texts under `rules`.
    fn reader<'t>(
        &'t self,
        rules: &TokenRules,
        with_pad: Option<&'t Pipeline>,
    ) -> Result<Reader<'t>, Error> {
        let pipeline = with_pad.unwrap_or(&self.plain);
        let name = match rules.of_kind.get(IMPLEMENTATION) {
            None => TODAYS,
            Some(name) => name.as_str().unwrap_or_default(),
        };
        if name == TODAYS {
            return Ok(Reader::of(pipeline));
        }
        let found = self.implementations.get(name);
        let found = found.ok_or_else(|| {
            Error::Rules(format!(
                "a {} tokenizer has no implementation `{name}`",
                self.format.name
            ))
        })?;
        Ok(Reader::by(pipeline, &**found))
    }

    /// [`Self::encode`] for many captions, on all cores, in their order.
    ///
    /// # Errors
    /// As [`Self::encode`], for the first caption that fails.
    pub fn encode_all<S: AsRef<str> + Sync>(
        &self,
        rules: &TokenRules,
        captions: &[S],
    ) -> Result<Vec<Tokens>, Error> {
        captions
            .par_iter()
            .map(|caption| self.encode(rules, caption.as_ref()))
            .collect()
    }

    /// How many ids of content the rules leave room for.
    fn room(&self, rules: &TokenRules) -> Result<Option<usize>, Error> {
        let specials = self.format.specials();
        // Asked also where nothing is padded, as `pad_text` may read it in a caption.
        if self.plain.token_of(rules.pad_id).is_none() {
            return Err(Error::Rules(format!(
                "pad_id {} is not in the {} tokenizer's vocabulary, whose largest id is {}",
                rules.pad_id, self.format.name, self.largest.0
            )));
        }
        self.check_template(rules)?;
        let Some(max) = rules.max_tokens else {
            return Ok(None);
        };
        if max < specials {
            return Err(Error::Rules(format!(
                "max_tokens {max} leaves no room for the {specials} special tokens of a {} sequence",
                self.format.name
            )));
        }
        if rules.min_tokens > max {
            return Err(Error::Rules(format!(
                "min_tokens {} is larger than max_tokens {max}",
                rules.min_tokens
            )));
        }
        Ok(Some(max - specials))
    }

    /// The pipeline that reads the pad token's text as special, where `rules` ask for it and the plain one
    /// does not already.
    fn pipeline_with_pad(&self, rules: &TokenRules) -> Result<Option<Arc<Pipeline>>, Error> {
        if rules.pad_text == PadText::Ordinary || self.plain.is_special(rules.pad_id) {
            return Ok(None);
        }
        // A panic of another thread leaves the map usable: pipelines go in whole.
        let mut built = self.with_pad.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = built.get(&rules.pad_id) {
            return Ok(Some(Arc::clone(pipeline)));
        }
        let pipeline = Arc::new(
            self.plain
                .with_special(rules.pad_id)
                .map_err(Error::Rules)?,
        );
        built.insert(rules.pad_id, Arc::clone(&pipeline));
        Ok(Some(pipeline))
    }

    /// `content` between the specials, padded up to `least`. `total` counts the content had nothing been cut.
    fn framed(&self, content: &[u32], total: usize, least: usize, pad: u32) -> Tokens {
        let specials = self.format.specials();
        let mut ids = Vec::with_capacity(least.max(content.len() + specials));
        ids.extend_from_slice(&self.before);
        ids.extend_from_slice(content);
        ids.extend_from_slice(&self.after);
        let count = ids.len();
        if count < least {
            ids.resize(least, pad);
        }
        Tokens {
            ids,
            count,
            truncated: content.len() < total,
            total: count - content.len() + total,
        }
    }
}

fn failed(caption: &str, problem: String) -> Error {
    Error::Failed {
        caption: caption.chars().take(60).collect(),
        problem,
    }
}

/// The first `room` ids of `text`, and how many there were.
fn cut_at_tokens(
    reader: &Reader<'_>,
    text: &str,
    room: Option<usize>,
) -> Result<(Vec<u32>, usize), String> {
    let mut ids = reader.encode(text)?;
    let total = ids.len();
    ids.truncate(room.unwrap_or(total));
    Ok((ids, total))
}

/// The ids of the words of `text` that fit into `room`, and how many there were.
///
/// Words are what stands between spaces and line feeds, each encoded alone. The first that does not fit ends
/// the sequence; it is cut if it is long, and left out if it is short.
///
/// Source: the first chunk of `SDTokenizer.tokenize_with_weights` in Stability's `other_impls.py`.
fn cut_at_words(
    reader: &Reader<'_>,
    text: &str,
    room: Option<usize>,
) -> Result<(Vec<u32>, usize), String> {
    let room = room.unwrap_or(usize::MAX);
    let mut ids = Vec::new();
    let mut total = 0;
    let mut full = false;
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        let word_ids = reader.encode(word)?;
        total += word_ids.len();
        // Counted on, as `Tokens::total` says how long the caption is.
        if full {
            continue;
        }
        // Never below 0: no more than fits is taken.
        full = word_ids.len() > room - ids.len();
        if !full {
            ids.extend_from_slice(&word_ids);
        } else if word_ids.len() >= LONG_WORD_TOKENS {
            ids.extend_from_slice(&word_ids[..room - ids.len()]);
        }
    }
    Ok((ids, total))
}

#[cfg(test)]
mod tests;
