//! Command lines as people keep them in scripts: words with quotes, lines that go on after `\` (or `^`, or a backtick), comments,
//! and variables that the script sets itself. Nothing is run.

use std::collections::BTreeMap;

use crate::foreign::config::tree::Budget;

/// The commands of a script.
#[derive(Debug, Default)]
pub(in crate::foreign::config) struct Script {
    /// Each with its words.
    pub(in crate::foreign::config) commands: Vec<Vec<Word>>,
    /// Variables that it sets: name, value, line.
    pub(in crate::foreign::config) variables: Vec<(String, String, usize)>,
}

/// A word of a command.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::foreign::config) struct Word {
    pub(in crate::foreign::config) text: String,
    pub(in crate::foreign::config) line: usize,
}

/// The largest text that variables may come to: each can hold the one before twice.
const MAX_WORD: usize = 1 << 16;

/// Reads a text as commands of a shell.
///
/// # Errors
/// If a quote is never closed, or it is beyond the bounds.
pub(super) fn read(text: &str, budget: &mut Budget) -> Result<Script, String> {
    let mut reader = Reader {
        chars: text.chars().peekable(),
        line: 1,
        known: BTreeMap::new(),
        script: Script::default(),
        command: Vec::new(),
        budget,
    };
    reader.run()?;
    Ok(reader.script)
}

struct Reader<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    known: BTreeMap<String, String>,
    script: Script,
    command: Vec<Word>,
    budget: &'a mut Budget,
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(c) = self.chars.peek().copied() {
            match c {
                '\n' | ';' | '&' | '|' => {
                    self.bump();
                    self.end_command();
                }
                '#' => {
                    while self.chars.peek().is_some_and(|c| *c != '\n') {
                        self.bump();
                    }
                }
                '\\' | '^' | '`' if self.goes_on() => {}
                c if c.is_whitespace() => {
                    self.bump();
                }
                _ => self.word()?,
            }
        }
        self.end_command();
        Ok(())
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    /// Goes over a sign that the command goes on in the next line, if one is here.
    fn goes_on(&mut self) -> bool {
        let mut ahead = self.chars.clone();
        ahead.next();
        let ends = ahead.find(|c| !matches!(c, ' ' | '\t' | '\r'));
        if !matches!(ends, Some('\n') | None) {
            return false;
        }
        while self.bump().is_some_and(|c| c != '\n') {}
        true
    }

    fn word(&mut self) -> Result<(), String> {
        let (line, mut text) = (self.line, String::new());
        while let Some(c) = self.chars.peek().copied() {
            match c {
                c if c.is_whitespace() || matches!(c, ';' | '&' | '|') => break,
                '\'' | '"' => self.quoted(c, &mut text)?,
                '\\' | '^' | '`' if self.goes_on() => break,
                '\\' => {
                    self.bump();
                    match self.chars.peek().copied() {
                        // A path of Windows; where a shell would eat the sign, nobody means it.
                        Some(next) if next.is_alphanumeric() => text.push('\\'),
                        _ => text.extend(self.bump()),
                    }
                }
                '$' => self.variable(&mut text),
                _ => text.extend(self.bump()),
            }
            if text.len() > MAX_WORD {
                return Err(format!("line {line}: a word of more than {MAX_WORD} bytes"));
            }
        }
        self.budget.take(1, 0)?;
        self.command.push(Word { text, line });
        Ok(())
    }

    fn quoted(&mut self, quote: char, text: &mut String) -> Result<(), String> {
        let line = self.line;
        self.bump();
        loop {
            match self.chars.peek().copied() {
                None => return Err(format!("line {line}: a quote is never closed")),
                Some(c) if c == quote => {
                    self.bump();
                    return Ok(());
                }
                Some('$') if quote == '"' => self.variable(text),
                Some('\\') if quote == '"' => {
                    self.bump();
                    match self.chars.peek().copied() {
                        Some(c @ ('"' | '\\' | '$' | '`')) => {
                            self.bump();
                            text.push(c);
                        }
                        Some('\n') => {
                            self.bump();
                        }
                        _ => text.push('\\'),
                    }
                }
                Some(_) => text.extend(self.bump()),
            }
            if text.len() > MAX_WORD {
                return Err(format!("line {line}: a word of more than {MAX_WORD} bytes"));
            }
        }
    }

    /// A variable that the script set is its value; another stays as it is written.
    fn variable(&mut self, text: &mut String) {
        self.bump();
        let braces = self.chars.peek() == Some(&'{');
        if braces {
            self.bump();
        }
        let mut name = String::new();
        while let Some(c) = self.chars.peek().copied() {
            if !(c.is_alphanumeric() || c == '_') {
                break;
            }
            name.extend(self.bump());
        }
        let closed = braces && self.chars.peek() == Some(&'}');
        if closed {
            self.bump();
        }
        match self.known.get(&name) {
            Some(value) => text.push_str(value),
            None if closed => text.push_str(&format!("${{{name}}}")),
            None if braces => text.push_str(&format!("${{{name}")),
            None => text.push_str(&format!("${name}")),
        }
    }

    fn end_command(&mut self) {
        let words = std::mem::take(&mut self.command);
        let is_word = |word: &&Word| !matches!(word.text.as_str(), "export" | "set" | "declare");
        let sets: Option<Vec<(String, String, usize)>> =
            words.iter().filter(is_word).map(assignment).collect();
        match sets {
            Some(sets) if !sets.is_empty() => {
                for (name, value, line) in sets {
                    self.known.insert(name.clone(), value.clone());
                    self.script.variables.push((name, value, line));
                }
            }
            _ if words.is_empty() => {}
            _ => self.script.commands.push(words),
        }
    }
}

/// `NAME=value`.
fn assignment(word: &Word) -> Option<(String, String, usize)> {
    let (name, value) = word.text.split_once('=')?;
    let name = name.strip_suffix('+').unwrap_or(name);
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_name = starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then(|| (name.to_owned(), value.to_owned(), word.line))
}

#[cfg(test)]
mod tests {
    use super::{Budget, read};

    fn words(text: &str) -> Vec<Vec<String>> {
        let script = read(text, &mut Budget::default()).expect("a script");
        let texts = |words: &Vec<super::Word>| words.iter().map(|w| w.text.clone()).collect();
        script.commands.iter().map(texts).collect()
    }

    #[test]
    fn a_command_goes_over_lines_and_its_variables_are_known() {
        let text = "#!/bin/bash\nexport MODEL=\"a/b\"\nN='x y'\naccelerate launch t.py \\\n  --m $MODEL/${N} \\\n  --flag # why\nnext\n";
        assert_eq!(
            words(text),
            [
                vec!["accelerate", "launch", "t.py", "--m", "a/b/x y", "--flag"],
                vec!["next"]
            ]
        );
    }

    #[test]
    fn windows_lines_and_unknown_variables_stay() {
        let text = "python t.py ^\r\n --d C:\\data\\x --o \"$HOME/out\"\r\n";
        assert_eq!(
            words(text),
            [["python", "t.py", "--d", "C:\\data\\x", "--o", "$HOME/out"]]
        );
    }

    #[test]
    fn an_open_quote_and_a_word_that_grows_are_refused() {
        let refusal = |text: &str| read(text, &mut Budget::default()).expect_err("refused");
        assert!(refusal("a 'b").contains("line 1: a quote"));
        let mut text = "A=xxxxxxxxxxxxxxxx\n".to_owned();
        for _ in 0..40 {
            text += "A=$A$A\n";
        }
        assert!(refusal(&text).contains("a word of more than"));
    }
}
