//! What of a caption does not reach the encoder: text that the recipe's clean-up drops, text behind the limit, and characters
//! that the vocabulary has no token for. By the code that encodes, so that both mean the same cut.

use serde::Serialize;

use super::implementation::Reader;
use super::windows::{MOST_WINDOWS, Windows};
use super::{Error, Tokenizer, cleanup, failed};
use crate::text::spec::{Cleanup, TokenRules};

/// What of a caption an encoder does not see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// What the recipe's clean-up drops before anything is counted in tokens.
    pub dropped: Vec<DroppedText>,
    /// What lies behind the limit of tokens.
    pub cut: Option<CutText>,
    /// Tokens that stand for what the vocabulary lacks, of the whole caption.
    pub unknown_tokens: usize,
    /// The words with such tokens, each once, in order; of many only the first.
    pub unknown_words: Vec<String>,
}

/// Text that a step of the clean-up drops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DroppedText {
    /// The step.
    pub by: Cleanup,
    /// What it drops.
    pub text: String,
}

/// Text behind the limit of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CutText {
    /// From the first word on that is not there whole.
    pub text: String,
    /// Whether some tokens of that word are kept.
    pub inside_word: bool,
}

/// Words that are named.
const MOST_WORDS: usize = 20;

impl Tokenizer {
    /// What of `caption` an encoder does not see under `rules`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn lost(&self, rules: &TokenRules, caption: &str) -> Result<Lost, Error> {
        let room = self.room(rules)?;
        let text = self.prompt(rules, caption)?;
        let with_pad = self.pipeline_with_pad(rules)?;
        let reader = self.reader(rules, with_pad.as_deref())?;
        let dropped = cleanup::dropped(&rules.cleanup, caption).into_iter();
        let cut = || -> Result<Option<CutText>, String> {
            let tokens = self.tokens(rules, room, &reader, &text)?;
            if !tokens.truncated {
                return Ok(None);
            }
            let starts = word_starts(&text);
            // The words that fit whole, counted by halves: each word more makes no fewer tokens.
            let (mut fits, mut fails) = (0, starts.len());
            let mut kept = 0;
            while fails - fits > 1 {
                let middle = fits + (fails - fits) / 2;
                let part = self.tokens(rules, room, &reader, &text[..starts[middle]])?;
                if part.truncated {
                    fails = middle;
                } else {
                    (fits, kept) = (middle, part.count);
                }
            }
            if fits == 0 {
                kept = self.tokens(rules, room, &reader, "")?.count;
            }
            let begin = starts.get(fits).copied().unwrap_or(0);
            Ok(Some(CutText {
                text: text[begin..].trim_end().to_owned(),
                inside_word: tokens.count > kept,
            }))
        };
        let fail = |problem| failed(caption, problem);
        let cut = cut().map_err(fail)?;
        let (unknown_tokens, unknown_words) = self.unknown(rules, &reader, &text).map_err(fail)?;
        Ok(Lost {
            dropped: dropped.map(|(by, text)| DroppedText { by, text }).collect(),
            cut,
            unknown_tokens,
            unknown_words,
        })
    }

    /// The most ids that `rules` give a caption, pads included; `None`: as many as it has.
    pub fn limit(&self, rules: &TokenRules) -> Option<usize> {
        let most = rules.max_tokens?;
        let specials = self.format.specials();
        Some(match (self.format.windows)(rules) {
            Windows::One => most,
            Windows::Joined(count) => most.saturating_sub(specials) * count + specials,
            Windows::Whole => most * MOST_WINDOWS,
        })
    }

    /// How many tokens of `text` stand for what the vocabulary lacks, and the words they are in.
    fn unknown(
        &self,
        rules: &TokenRules,
        reader: &Reader<'_>,
        text: &str,
    ) -> Result<(usize, Vec<String>), String> {
        let token = (self.format.unknown)(rules);
        let Some(unknown) = self.plain.id_of(token) else {
            return Ok((0, Vec::new()));
        };
        let count = |text: &str| -> Result<usize, String> {
            let ids = reader.encode(text)?;
            let found = ids.iter().filter(|id| **id == unknown).count();
            // Who writes the token itself gets it.
            Ok(found.saturating_sub(text.matches(token).count()))
        };
        let total = count(text)?;
        let mut words: Vec<String> = Vec::new();
        if total == 0 {
            return Ok((0, words));
        }
        for word in text.split_whitespace() {
            if words.len() == MOST_WORDS {
                break;
            }
            if count(word)? > 0 && !words.iter().any(|known| known == word) {
                words.push(word.to_owned());
            }
        }
        Ok((total, words))
    }
}

/// Whether a recipe's clean-up drops text of a caption, whatever the limit of tokens is.
pub fn is_shortened(steps: &[Cleanup], caption: &str) -> bool {
    !cleanup::dropped(steps, caption).is_empty()
}

/// Where words begin: behind white space, and at each letter of a script that puts no spaces between words.
fn word_starts(text: &str) -> Vec<usize> {
    let (mut starts, mut before) = (Vec::new(), ' ');
    for (at, c) in text.char_indices() {
        let joined = before == '\u{200d}' || is_joiner(c);
        let begins =
            before.is_whitespace() || (stands_alone(c) && !joined) || ends_alone(before, c);
        if !c.is_whitespace() && begins {
            starts.push(at);
        }
        before = c;
    }
    starts
}

/// A word behind a letter that is one of its own.
fn ends_alone(before: char, c: char) -> bool {
    stands_alone(before) && c.is_alphanumeric()
}

/// What belongs to the character before it: the joiner of emoji, their variations and skin tones.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{1f3fb}'..='\u{1f3ff}')
}

/// Characters of scripts without spaces (Thai to Khmer, Chinese, Japanese), and pictures.
fn stands_alone(c: char) -> bool {
    matches!(c,
        '\u{e00}'..='\u{eff}'
        | '\u{1000}'..='\u{109f}'
        | '\u{1780}'..='\u{17ff}'
        | '\u{2600}'..='\u{27bf}'
        | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{1f000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::{is_shortened, word_starts};
    use crate::text::spec::Cleanup;
    use crate::text::tokenizer::cleanup;

    fn words(text: &str) -> Vec<&str> {
        let starts = word_starts(text);
        let ends = starts.iter().skip(1).copied().chain([text.len()]);
        starts.iter().zip(ends).map(|(a, b)| &text[*a..b]).collect()
    }

    #[test]
    fn words_begin_behind_spaces_and_where_a_script_has_none() {
        assert_eq!(words("a red  cat"), ["a ", "red  ", "cat"]);
        assert_eq!(
            words(" \u{732b}\u{3068}cat"),
            ["\u{732b}", "\u{3068}", "cat"]
        );
        assert_eq!(words("\u{e9}t\u{e9}"), ["\u{e9}t\u{e9}"]);
        // A person on a rocket is one picture of three characters.
        let astronaut = "\u{1f469}\u{200d}\u{1f680}";
        assert_eq!(words(&astronaut.repeat(2)), [astronaut, astronaut]);
        assert_eq!(words(""), Vec::<&str>::new());
    }

    #[test]
    fn what_the_clean_up_drops_is_told_and_white_space_is_nothing() {
        let first_line = [Cleanup::FirstLine];
        assert_eq!(
            cleanup::dropped(&first_line, " a cat \n\n a dog\n"),
            [(Cleanup::FirstLine, "a dog".to_owned())]
        );
        assert!(!is_shortened(&first_line, "\u{1f} a cat \r\n"));
        assert!(is_shortened(&first_line, "\na cat"));
        let characters = [Cleanup::FirstCharacters226, Cleanup::DropPromptWeights];
        let long = format!("{} (end:1.2)", "\u{e9}".repeat(226));
        assert_eq!(
            cleanup::dropped(&characters, &long),
            [(Cleanup::FirstCharacters226, "(end:1.2)".to_owned())]
        );
        assert!(!is_shortened(&characters, &"(a) ".repeat(56)));
        assert!(!is_shortened(&[], &long));
    }
}
