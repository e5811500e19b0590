//! The example scripts of diffusers: the arguments of a command line. What options of other argparse programs are is here too.

use super::{Gathered, Sources};
use crate::foreign::config::Error;
use crate::foreign::config::read::{Document, Script, Word};
use crate::foreign::config::setting::Setting;
use crate::foreign::config::tree::{Node, Value};

/// What a variable that may stand for more options belongs to.
pub(in crate::foreign::config) const ANY: &str = "variable";

/// Whether a file's name is that of such a script.
pub(super) fn is_script(name: &str) -> bool {
    name.starts_with("train_dreambooth") || name.starts_with("train_text_to_image")
}

pub(super) fn gather(sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = Gathered::default();
    for file in 0..sources.count() {
        if let Some(Document::Script(script)) = sources.document(file) {
            command(script, file, &is_script, &mut gathered);
        }
    }
    if gathered.settings.is_empty() {
        return Err(Error::OtherTrainer {
            file: sources.path(0).to_owned(),
            trainer: "diffusers",
            why: "there is no command line with options in it".to_owned(),
        });
    }
    gathered.sets = 1;
    Ok(gathered)
}

/// The options of the first command that runs one of the scripts, or of the first that has options.
pub(super) fn command(
    script: &Script,
    file: usize,
    is_script: &dyn Fn(&str) -> bool,
    gathered: &mut Gathered,
) {
    let name = |word: &Word| {
        let name = word.text.rsplit(['/', '\\']).next().unwrap_or_default();
        name.to_owned()
    };
    let runs = |words: &&Vec<Word>| words.iter().any(|word| is_script(&name(word)));
    let has_options = |words: &&Vec<Word>| words.iter().any(|word| word.text.starts_with("--"));
    let mut commands = script.commands.iter();
    let found = commands
        .clone()
        .find(runs)
        .or_else(|| commands.find(has_options));
    gathered.notes.extend(script.notes.iter().cloned());
    let Some(words) = found else {
        return;
    };
    let others = script.commands.len() - 1;
    if others > 0 {
        gathered.notes.push(format!(
            "{others} other command lines are left alone: only the first that trains is read"
        ));
    }
    let is_program = |word: &Word| word.text.ends_with(".py") || is_script(&name(word));
    let mut begin = 0;
    if let Some(at) = words.iter().position(is_program) {
        let word = &words[at];
        options(&words[..at], file, "launcher", gathered);
        let script = name(word);
        gathered.script = script.strip_suffix(".py").map(str::to_owned);
        gathered.settings.push(Setting {
            place: "the script".to_owned(),
            file,
            line: Some(word.line),
            scope: "command".to_owned(),
            name: "script".to_owned(),
            value: Value::Text(script),
            sets: Vec::new(),
            rank: 2,
        });
        begin = at + 1;
    }
    options(&words[begin..], file, "arguments", gathered);
}

/// `--name value`, `--name=value`, `--name` alone, `--name a b c`.
fn options(words: &[Word], file: usize, scope: &str, gathered: &mut Gathered) {
    let is_option = |word: &Word| {
        let name = word.text.strip_prefix('-').unwrap_or_default();
        // A negative number is a value.
        name.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic())
    };
    let mut rest = words;
    while let Some((word, after)) = rest.split_first() {
        let count = after.iter().take_while(|word| !is_option(word)).count();
        let (values, next) = after.split_at(count);
        rest = next;
        // The first behind an option may be its value; where more may stand, no one knows what they are.
        let is_first = |n: usize| n == 0 && is_option(word) && !word.text.contains('=');
        let (any, values): (Vec<_>, Vec<_>) = values
            .iter()
            .enumerate()
            .partition(|(n, word)| word.is_any() && !is_first(*n));
        let alone = Some(word).filter(|word| word.is_any());
        for word in alone
            .into_iter()
            .chain(any.into_iter().map(|(_, word)| word))
        {
            push(word, &word.text, word.value(0), file, ANY, gathered);
        }
        if word.is_any() {
            continue;
        }
        let values: Vec<&Word> = values.into_iter().map(|(_, word)| word).collect();
        if !is_option(word) {
            // Words before any option: a launcher's own.
            for word in std::iter::once(word).chain(values) {
                push(word, &word.text, Value::Flag(true), file, scope, gathered);
            }
            continue;
        }
        let (name, value) = match (word.text.split_once('='), values.as_slice()) {
            (Some((name, _)), _) => (name, word.value(name.len() + 1)),
            (None, []) => (word.text.as_str(), Value::Flag(true)),
            (None, [value]) => (word.text.as_str(), value.value(0)),
            (None, values) => {
                let node = |word: &&Word| Node {
                    line: Some(word.line),
                    value: word.value(0),
                };
                (
                    word.text.as_str(),
                    Value::List(values.iter().map(node).collect()),
                )
            }
        };
        push(word, name, value, file, scope, gathered);
    }
}

fn push(word: &Word, name: &str, value: Value, file: usize, scope: &str, gathered: &mut Gathered) {
    gathered.settings.push(Setting {
        place: name.to_owned(),
        file,
        line: Some(word.line),
        scope: scope.to_owned(),
        name: match scope {
            // Of the programs that are read argparse takes a name as it is.
            "launcher" => name.trim_start_matches('-').replace('-', "_"),
            _ => name.trim_start_matches('-').to_owned(),
        },
        value,
        sets: Vec::new(),
        rank: 2,
    });
}
