//! One setting of a config: what a trainer calls it, and what is written.

use std::collections::BTreeMap;

use super::knowledge::{When, equals};
use super::tree::{Node, Value};
use crate::shown;

/// A name with a value, at one place of a file.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The place as a person finds it: `config.process[0].train.lr`, `--network_dim`.
    pub(super) place: String,
    /// Which of the files.
    pub(super) file: usize,
    /// The line, where the format tells.
    pub(super) line: Option<usize>,
    /// The part of the trainer's configuration that it belongs to.
    pub(super) scope: String,
    pub(super) name: String,
    pub(super) value: Value,
    /// The data sets it is about, by their numbers; for none, it is about the run.
    pub(super) sets: Vec<usize>,
    /// Of two settings of one thing, that of the higher rank counts, and of equal ones the later.
    pub(super) rank: u8,
}

impl Setting {
    /// Whether it is a `scope.name`; both may have dots.
    fn is_named(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&self.scope);
        rest.and_then(|rest| rest.strip_prefix('.')) == Some(&self.name)
    }

    /// Whether it is about a data set.
    pub(super) fn is_about(&self, set: usize) -> bool {
        self.sets.is_empty() || self.sets.contains(&set)
    }
}

/// A step on the way to a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Key(String),
    Item(usize),
}

/// A value that rows are made of, with the way to it.
pub(super) struct Leaf<'a> {
    pub(super) way: Vec<Step>,
    pub(super) line: Option<usize>,
    pub(super) value: &'a Value,
    /// What counts instead, where its key, or one that it stands below, stands again in the same table.
    pub(super) instead: Option<String>,
}

impl Leaf<'_> {
    /// `config.process[0].train.lr`.
    pub(super) fn place(&self) -> String {
        place(&self.way)
    }

    /// The keys on the way, without places in lists.
    pub(super) fn keys(&self) -> Vec<&str> {
        let keys = self.way.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Item(_) => None,
        });
        keys.collect()
    }
}

/// Every value of a document that is not made of others.
pub(super) fn leaves(node: &Node) -> Vec<Leaf<'_>> {
    let (mut found, mut way) = (Vec::new(), Vec::new());
    collect(node, node.line, &mut way, None, &mut found);
    found
}

fn place(way: &[Step]) -> String {
    let mut place = String::new();
    for step in way {
        match step {
            Step::Item(n) => place += &format!("[{n}]"),
            Step::Key(key) if place.is_empty() => place += key,
            Step::Key(key) => place += &format!(".{key}"),
        }
    }
    place
}

fn collect<'a>(
    node: &'a Node,
    line: Option<usize>,
    way: &mut Vec<Step>,
    instead: Option<&String>,
    found: &mut Vec<Leaf<'a>>,
) {
    match &node.value {
        Value::Table(entries) if node.value.is_branch() => {
            // Of equal keys the last is kept.
            let all = entries.iter().enumerate();
            let last: BTreeMap<&str, usize> = all.map(|(n, e)| (e.key.as_str(), n)).collect();
            for (n, entry) in entries.iter().enumerate() {
                way.push(Step::Key(entry.key.clone()));
                let later = last.get(entry.key.as_str()).filter(|last| **last > n);
                let later = later.map(|last| counts(&place(way), entries[*last].line));
                let instead = instead.or(later.as_ref());
                collect(&entry.node, entry.line, way, instead, found);
                way.pop();
            }
        }
        Value::List(items) if node.value.is_branch() => {
            for (n, item) in items.iter().enumerate() {
                way.push(Step::Item(n));
                collect(item, item.line, way, instead, found);
                way.pop();
            }
        }
        value => found.push(Leaf {
            way: way.clone(),
            line,
            value,
            instead: instead.cloned(),
        }),
    }
}

/// That what stands at a later place counts, as a person finds it.
pub(super) fn counts(place: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("`{}` in line {line} counts", shown::text(place)),
        None => format!("the later `{}` counts", shown::text(place)),
    }
}

/// What settings come to, for rules that ask for others.
pub(super) struct Lookup<'a> {
    settings: &'a [Setting],
    defaults: &'a [(String, toml::Value)],
}

impl<'a> Lookup<'a> {
    pub(super) fn new(settings: &'a [Setting], defaults: &'a [(String, toml::Value)]) -> Self {
        Self { settings, defaults }
    }

    /// The setting that counts of a `scope.name`.
    pub(super) fn setting(&self, key: &str) -> Option<&'a Setting> {
        self.of_set(|setting| setting.is_named(key), None)
    }

    /// The setting that counts of those that are meant, of a data set or all of them.
    fn of_set(
        &self,
        is_meant: impl Fn(&Setting) -> bool,
        set: Option<usize>,
    ) -> Option<&'a Setting> {
        let is_of_set = |s: &&Setting| match set {
            Some(set) => s.is_about(set),
            None => true,
        };
        let all = self
            .settings
            .iter()
            .filter(|s| is_meant(s))
            .filter(is_of_set);
        // Of equal ranks, `max_by_key` gives the last.
        all.max_by_key(|setting| setting.rank)
    }

    /// Whether all conditions hold, for a data set where one is meant: each has its own.
    pub(super) fn holds(&self, when: &[When], set: Option<usize>) -> bool {
        when.iter().all(|when| self.one_holds(when, set))
    }

    fn one_holds(&self, when: &When, set: Option<usize>) -> bool {
        let setting = self.of_set(|setting| when.key.any(|key| setting.is_named(key)), set);
        let written = setting.filter(|setting| setting.value != Value::Null);
        if when.written.is_some_and(|asked| asked != written.is_some()) {
            return false;
        }
        let is_asked = |known: &str| when.key.any(|key| key == known);
        let default = self.defaults.iter().find(|(key, _)| is_asked(key));
        let is = |said: &toml::Value| match written {
            Some(setting) => equals(&setting.value, said),
            None => default.is_some_and(|(_, default)| default == said),
        };
        if !when.is.is_empty() && !when.is.iter().any(is) {
            return false;
        }
        if when.is_not.iter().any(is) {
            return false;
        }
        let is_first = |said: &toml::Value| match written.map(|setting| &setting.value) {
            Some(Value::List(items)) => items.first().is_some_and(|item| equals(&item.value, said)),
            _ => is(said),
        };
        if !when.first.is_empty() && !when.first.iter().any(is_first) {
            return false;
        }
        let text = written.map(|setting| setting.value.written().to_lowercase());
        let contains = |part: &String| text.as_ref().is_some_and(|text| text.contains(part));
        when.contains.is_empty() || when.contains.iter().any(contains)
    }
}
