//! What a variable of a script stands for.

use super::{Known, Reader, Word, assignment, cost};
use crate::shown;

/// What stands in the place of a variable.
pub(super) enum Found {
    /// Its value; outside quotes each blank in it ends a word.
    Text(Word),
    /// Each item of a list is a word.
    List(Vec<Word>),
    /// How it is written, where nothing is known of it.
    Open(Word),
}

impl Reader<'_> {
    /// A variable that the script set is its value; another stays as it is written.
    pub(super) fn variable(&mut self) -> Result<Found, String> {
        self.bump();
        match self.chars.peek().copied() {
            Some('(') => {
                let inner = self.until_closed('(', ')');
                Ok(Found::Open(self.open(format!("${inner}"))))
            }
            Some('{') => {
                let inner = self.until_closed('{', '}');
                self.in_braces(&inner)
            }
            _ => {
                let mut name = String::new();
                while let Some(c) = self.chars.peek().copied().filter(|c| is_of_name(*c)) {
                    name.push(c);
                    self.bump();
                }
                Ok(match name.is_empty() {
                    true => Found::Text(Word::plain("$".to_owned(), self.line)),
                    false => self.value(&name, format!("${name}")),
                })
            }
        }
    }

    /// A text from one bracket to that which closes it, or to the end.
    fn until_closed(&mut self, begin: char, end: char) -> String {
        let (mut text, mut depth) = (String::new(), 0);
        while let Some(c) = self.bump() {
            text.push(c);
            depth += i32::from(c == begin) - i32::from(c == end);
            if depth == 0 || text.len() > super::MAX_WORD {
                break;
            }
        }
        text
    }

    /// `{NAME}`, `{NAME[@]}`, `{NAME:-what counts where it is not set}`; of others nothing is known.
    fn in_braces(&mut self, text: &str) -> Result<Found, String> {
        let written = format!("${text}");
        let Some(inner) = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        else {
            return Ok(Found::Open(self.open(written)));
        };
        let end = inner.find(|c| !is_of_name(c)).unwrap_or(inner.len());
        let (name, rest) = inner.split_at(end);
        if rest.is_empty() && !name.is_empty() {
            return Ok(self.value(name, written));
        }
        if matches!(rest, "[@]" | "[*]") {
            return match self.known.get(name).cloned() {
                Some(Known::List(words)) => {
                    self.budget.take(cost(&words), 0)?;
                    Ok(Found::List(words))
                }
                Some(Known::One(word)) => Ok(Found::List(vec![word])),
                None => {
                    let mut word = self.unknown(name, written);
                    word.several = true;
                    Ok(Found::List(vec![word]))
                }
            };
        }
        let marks = [":-", ":=", "-", "="];
        let default = marks.iter().find_map(|mark| rest.strip_prefix(mark));
        let is_plain = |text: &&str| !text.contains('$') && !self.unsure.contains_key(name);
        if self.known.contains_key(name) && default.is_some() {
            return Ok(self.value(name, written));
        }
        match default.filter(is_plain) {
            Some(default) => {
                let text = default.trim_matches(['"', '\'']).to_owned();
                self.tell(name, || {
                    format!(
                        "`{}` is taken as it is where the variable is not set",
                        shown::text(&written)
                    )
                });
                Ok(Found::Text(Word::plain(text, self.line)))
            }
            None => Ok(Found::Open(self.open(written))),
        }
    }

    /// The value of a variable, or how it is written.
    fn value(&mut self, name: &str, written: String) -> Found {
        match self.known.get(name) {
            Some(Known::One(word)) => Found::Text(word.clone()),
            // Without a place it is the first of a list.
            Some(Known::List(words)) => Found::Text(words.first().cloned().unwrap_or_default()),
            None => Found::Open(self.unknown(name, written)),
        }
    }

    /// How a variable is written of which nothing is known.
    fn unknown(&mut self, name: &str, written: String) -> Word {
        if let Some(line) = self.unsure.get(name).copied() {
            self.tell(name, || {
                format!(
                    "`{}` is set in line {line} under a condition or in a loop, which is not run: write what is meant in its place",
                    shown::text(&written)
                )
            });
        }
        self.open(written)
    }

    fn open(&self, text: String) -> Word {
        Word {
            open: true,
            ..Word::plain(text, self.line)
        }
    }

    /// Notes something of a variable, once.
    fn tell(&mut self, name: &str, note: impl FnOnce() -> String) {
        if self.told.insert(name.to_owned()) {
            self.script.notes.push(note());
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Adds what was found to the last of some words, and more words where it is several.
pub(super) fn append(words: &mut Vec<Word>, found: Found, is_quoted: bool) {
    let line = words.last().map_or(0, |word| word.line);
    let sets = words.last().is_some_and(|word| assignment(word).is_some());
    let parts = match found {
        Found::List(items) => items,
        Found::Open(mut word) => {
            // What sets a variable is one word.
            word.several |= !is_quoted && !sets;
            vec![word]
        }
        Found::Text(word) if is_quoted || sets => vec![word],
        Found::Text(word) => {
            let part = |text: &str| Word {
                text: text.to_owned(),
                open: word.open && text.contains('$'),
                ..word.clone()
            };
            word.text.split(char::is_whitespace).map(part).collect()
        }
    };
    for (n, part) in parts.iter().enumerate() {
        // Several blanks are one.
        let begins = n > 0 && (is_quoted || words.last().is_some_and(|word| !word.text.is_empty()));
        if begins {
            words.push(Word::plain(String::new(), line));
        }
        if let Some(last) = words.last_mut() {
            last.add(part);
        }
    }
}
