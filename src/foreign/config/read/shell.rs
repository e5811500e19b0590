//! Command lines as people keep them in scripts: words with quotes, lines that go on after `\` (or `^`, or a backtick), comments,
//! and variables that the script sets itself, lists among them. Nothing is run: a variable that a condition, a loop or a function sets
//! is not known, and neither is one of the environment.

mod expand;

use std::collections::{BTreeMap, BTreeSet};

use crate::foreign::config::tree::{Budget, Value};
use expand::append;

/// The commands of a script.
#[derive(Debug, Default)]
pub(in crate::foreign::config) struct Script {
    /// Each with its words.
    pub(in crate::foreign::config) commands: Vec<Vec<Word>>,
    /// Variables that it sets, and their values.
    pub(in crate::foreign::config) variables: Vec<(String, Word)>,
    /// What a person should know of variables.
    pub(in crate::foreign::config) notes: Vec<String>,
}

/// A word of a command.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::foreign::config) struct Word {
    pub(in crate::foreign::config) text: String,
    pub(in crate::foreign::config) line: usize,
    /// Whether a variable stands in it that is not known. Then a dollar sign that is none stands twice.
    open: bool,
    /// Whether such a variable stands outside quotes, where it may be several words.
    several: bool,
}

impl Word {
    /// What it says, or what of it behind some characters.
    pub(in crate::foreign::config) fn value(&self, from: usize) -> Value {
        let text = self.text[from..].to_owned();
        match self.open && text.contains('$') {
            true => Value::Open(text),
            false => Value::Text(text),
        }
    }

    /// Whether it is a variable alone that may stand for any number of options.
    pub(in crate::foreign::config) fn is_any(&self) -> bool {
        self.several && self.text.starts_with('$')
    }

    fn plain(text: String, line: usize) -> Self {
        Self {
            text,
            line,
            ..Self::default()
        }
    }

    /// Adds another's text, of which a dollar sign may be none of a variable.
    fn add(&mut self, other: &Self) {
        let twice = |word: &Self| match word.open {
            true => word.text.clone(),
            false => word.text.replace('$', "$$"),
        };
        if self.open != other.open {
            self.text = twice(self);
            self.text += &twice(other);
            self.open = true;
        } else {
            self.text += &other.text;
        }
        self.several |= other.several;
    }
}

/// The value of a variable.
#[derive(Clone, Debug)]
enum Known {
    One(Word),
    List(Vec<Word>),
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
        unsure: BTreeMap::new(),
        told: BTreeSet::new(),
        depth: 0,
        cases: 0,
        is_chained: false,
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
    known: BTreeMap<String, Known>,
    /// Variables that are set where it is not known whether that is run, and the line.
    unsure: BTreeMap<String, usize>,
    /// Variables that a note is about.
    told: BTreeSet<String>,
    /// How many conditions, loops and functions are open, and how many of them are `case`.
    depth: usize,
    cases: usize,
    /// Whether the command stands behind `&&` or `||`.
    is_chained: bool,
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
                    self.end_command()?;
                    if matches!(c, '&' | '|') && self.chars.peek() == Some(&c) {
                        self.bump();
                        self.is_chained = true;
                    }
                }
                _ => {
                    let words = self.words(false)?;
                    self.command.extend(words);
                }
            }
        }
        self.end_command()
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

    /// The words that stand here, which are one where no variable is several; or none, at a blank or a comment. `in_list`: a bracket
    /// ends them.
    fn words(&mut self, in_list: bool) -> Result<Vec<Word>, String> {
        match self.chars.peek().copied() {
            Some('#') => {
                while self.chars.peek().is_some_and(|c| *c != '\n') {
                    self.bump();
                }
                return Ok(Vec::new());
            }
            Some('\\' | '^' | '`') if self.goes_on() => return Ok(Vec::new()),
            Some(c) if c.is_whitespace() => {
                self.bump();
                return Ok(Vec::new());
            }
            _ => {}
        }
        let line = self.line;
        let mut words = vec![Word::plain(String::new(), line)];
        // Quotes make a word of nothing; a variable that is empty makes none.
        let mut is_word = false;
        while let Some(c) = self.chars.peek().copied() {
            match c {
                c if c.is_whitespace() || matches!(c, ';' | '&' | '|') => break,
                ')' if in_list => break,
                '(' if !in_list && self.list(&words)? => return Ok(Vec::new()),
                '\'' | '"' => {
                    is_word = true;
                    self.quoted(c, &mut words)?;
                }
                '\\' | '^' | '`' if self.goes_on() => break,
                '\\' => {
                    self.bump();
                    match self.chars.peek().copied() {
                        // A path of Windows; where a shell would eat the sign, nobody means it.
                        Some(next) if next.is_alphanumeric() => self.push('\\', &mut words),
                        Some(_) => self.take(&mut words),
                        None => {}
                    }
                }
                '$' => {
                    let found = self.variable()?;
                    append(&mut words, found, false);
                }
                _ => self.take(&mut words),
            }
            if words.last().is_some_and(|word| word.text.len() > MAX_WORD) {
                return Err(too_long(line));
            }
        }
        words.retain(|word| is_word || !word.text.is_empty());
        if words.iter().any(|word| word.text.len() > MAX_WORD) {
            return Err(too_long(line));
        }
        self.budget.take(cost(&words), 0)?;
        Ok(words)
    }

    /// Takes a character over as it stands.
    fn take(&mut self, words: &mut [Word]) {
        if let Some(c) = self.bump() {
            self.push(c, words);
        }
    }

    fn push(&self, c: char, words: &mut [Word]) {
        if let Some(word) = words.last_mut() {
            if word.open && c == '$' {
                word.text.push('$');
            }
            word.text.push(c);
        }
    }

    fn quoted(&mut self, quote: char, words: &mut Vec<Word>) -> Result<(), String> {
        let line = self.line;
        self.bump();
        loop {
            match self.chars.peek().copied() {
                None => return Err(format!("line {line}: a quote is never closed")),
                Some(c) if c == quote => {
                    self.bump();
                    return Ok(());
                }
                Some('$') if quote == '"' => {
                    let found = self.variable()?;
                    append(words, found, true);
                }
                Some('\\') if quote == '"' => {
                    self.bump();
                    match self.chars.peek().copied() {
                        Some('"' | '\\' | '$' | '`') => self.take(words),
                        Some('\n') => {
                            self.bump();
                        }
                        _ => self.push('\\', words),
                    }
                }
                Some(_) => self.take(words),
            }
            if words.last().is_some_and(|word| word.text.len() > MAX_WORD) {
                return Err(too_long(line));
            }
        }
    }

    /// Reads `NAME=(a b c)`, of which the words before the bracket are given; whether it is one.
    fn list(&mut self, before: &[Word]) -> Result<bool, String> {
        let [word] = before else {
            return Ok(false);
        };
        let Some((name, appends, value)) = assignment(word) else {
            return Ok(false);
        };
        if !value.text.is_empty() {
            return Ok(false);
        }
        let line = self.line;
        self.bump();
        let mut items = Vec::new();
        loop {
            match self.chars.peek().copied() {
                None => return Err(format!("line {line}: a bracket is never closed")),
                Some(')') => break,
                Some(';' | '&' | '|') => {
                    self.bump();
                }
                Some(_) => items.extend(self.words(true)?),
            }
        }
        self.bump();
        self.set_list(name, appends, items, line)?;
        Ok(true)
    }

    /// Sets a list, or appends to what is known of one.
    fn set_list(
        &mut self,
        name: String,
        appends: bool,
        mut items: Vec<Word>,
        line: usize,
    ) -> Result<(), String> {
        let before = self.known.get(&name).filter(|_| appends);
        // Of a list that is not known the beginning is missing.
        let is_whole = !appends || before.is_some();
        let mut all = match before {
            Some(Known::One(word)) => vec![word.clone()],
            Some(Known::List(words)) => words.clone(),
            None => Vec::new(),
        };
        all.append(&mut items);
        if appends {
            self.budget.take(cost(&all), 0)?;
        }
        match is_whole && !self.is_conditional() {
            true => {
                self.unsure.remove(&name);
                self.known.insert(name, Known::List(all));
            }
            false => self.forget(name, line),
        }
        Ok(())
    }

    fn is_conditional(&self) -> bool {
        self.depth > 0 || self.is_chained
    }

    fn forget(&mut self, name: String, line: usize) {
        self.known.remove(&name);
        self.unsure.insert(name, line);
    }

    /// Ends a command: what stands before it of a condition or a loop is taken off, and of assignments alone variables are set.
    fn end_command(&mut self) -> Result<(), String> {
        let mut words = std::mem::take(&mut self.command);
        while let Some(count) = self.structure(&words) {
            words.drain(..count.min(words.len()));
        }
        let is_test = |word: &Word| matches!(word.text.as_str(), "[" | "[[" | "test");
        if words.is_empty() || words.first().is_some_and(is_test) {
            return Ok(());
        }
        let sets = |word: &str| {
            let known = ["export", "set", "declare", "local", "readonly", "typeset"];
            known.contains(&word)
        };
        let named = words.first().is_some_and(|word| sets(&word.text));
        let is_option = |word: &&Word| named && word.text.starts_with('-');
        let told = words
            .iter()
            .filter(|word| !sets(&word.text) && !is_option(word));
        match told.map(assignment).collect::<Option<Vec<_>>>() {
            Some(found) if !found.is_empty() => {
                for (name, appends, value) in found {
                    self.set(name, appends, value)?;
                }
            }
            _ => self.script.commands.push(words),
        }
        self.is_chained = false;
        Ok(())
    }

    /// How many words at a command's beginning are of a condition, a loop or a function; none where it is a command itself.
    fn structure(&mut self, words: &[Word]) -> Option<usize> {
        let first = words.first()?;
        let count = match first.text.as_str() {
            "then" | "else" | "elif" | "do" | "!" | "time" => 1,
            "if" | "while" | "until" | "{" => {
                self.depth += 1;
                1
            }
            "fi" | "done" | "}" => {
                self.depth = self.depth.saturating_sub(1);
                1
            }
            "esac" => {
                self.depth = self.depth.saturating_sub(1);
                self.cases = self.cases.saturating_sub(1);
                1
            }
            "for" | "select" => {
                self.depth += 1;
                if let Some(word) = words.get(1) {
                    self.forget(word.text.clone(), word.line);
                }
                words.len()
            }
            "case" => {
                self.depth += 1;
                self.cases += 1;
                let begin = words.iter().position(|word| word.text == "in");
                begin.map_or(words.len(), |at| at + 1)
            }
            "function" => 2,
            text if text.ends_with("()") => 1,
            text if text.ends_with("(){") => {
                self.depth += 1;
                1
            }
            // A pattern of a `case`.
            text if self.cases > 0 && text.ends_with(')') => 1,
            _ => return None,
        };
        Some(count)
    }

    fn set(&mut self, name: String, appends: bool, value: Word) -> Result<(), String> {
        let line = value.line;
        let mut whole = match (appends, self.known.get(&name)) {
            (true, Some(Known::List(_))) => {
                return self.set_list(name, true, vec![value], line);
            }
            (true, Some(Known::One(word))) => word.clone(),
            // What is appended to is not known.
            (true, None) => Word {
                open: true,
                ..Word::plain(format!("${name}"), line)
            },
            (false, _) => Word::plain(String::new(), line),
        };
        whole.add(&value);
        whole.line = line;
        if whole.text.len() > MAX_WORD {
            return Err(too_long(line));
        }
        if self.is_conditional() || appends && self.unsure.contains_key(&name) {
            // Who reads the variables of a script finds this one, and not its value.
            let unknown = Word {
                open: true,
                ..Word::plain(format!("${name}"), line)
            };
            self.script.variables.push((name.clone(), unknown));
            self.forget(name, line);
            return Ok(());
        }
        self.unsure.remove(&name);
        self.script.variables.push((name.clone(), whole.clone()));
        self.known.insert(name, Known::One(whole));
        Ok(())
    }
}

fn too_long(line: usize) -> String {
    format!("line {line}: a word of more than {MAX_WORD} bytes")
}

/// What words take of the bounds: a variable may be a large one, many times.
fn cost(words: &[Word]) -> usize {
    words.iter().map(|word| 1 + word.text.len() / 1024).sum()
}

/// `NAME=value`, or `NAME+=value`, which appends.
fn assignment(word: &Word) -> Option<(String, bool, Word)> {
    let (before, value) = word.text.split_once('=')?;
    let name = before.strip_suffix('+').unwrap_or(before);
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_name = starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let value = Word {
        open: word.open && value.contains('$'),
        ..Word::plain(value.to_owned(), word.line)
    };
    is_name.then(|| (name.to_owned(), name != before, value))
}

#[cfg(test)]
mod tests;
