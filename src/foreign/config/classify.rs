//! What becomes of each setting, by what is known of its trainer: the rows of the table, and the draft of the Experiment.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value as Toml;

use super::Trainer;
use super::convert;
use super::draft::Draft;
use super::forms;
use super::knowledge::{Knowledge, Rule, Status};
use super::report::Row;
use super::setting::{Lookup, Setting, counts};
use super::tree::Value;

/// Parts of names whose values are shown to nobody.
const SECRETS: [&str; 7] = [
    "access_key",
    "hub_token",
    "huggingface_token",
    "hf_token",
    "api_key",
    "password",
    "secret",
];

/// What settings are sorted by.
pub(super) struct Classifier<'a> {
    pub(super) trainer: Trainer,
    pub(super) knowledge: &'a Knowledge,
    pub(super) family: &'a str,
    /// Where files lie that the config names.
    pub(super) folder: &'a Path,
    /// The numbers of all data sets.
    pub(super) sets: Vec<usize>,
}

impl Classifier<'_> {
    /// Sorts every setting, and what counts where nothing is written.
    pub(super) fn run(&self, settings: &[Setting], draft: &mut Draft) -> Vec<Row> {
        let defaults = self.defaults(settings);
        let lookup = Lookup::new(settings, &defaults);
        let mut rows = Vec::new();
        for (n, setting) in settings.iter().enumerate() {
            let row = match later(settings, n) {
                Some(other) => self.overridden(setting, other),
                None => self.row(settings, n, &lookup, draft),
            };
            rows.push(row);
        }
        self.unwritten(settings, &lookup, &mut rows, draft);
        rows
    }

    /// The rule that holds of a name, for a data set where one is meant.
    fn rule(
        &self,
        scope: &str,
        name: &str,
        lookup: &Lookup<'_>,
        set: Option<usize>,
    ) -> Option<&Rule> {
        let mut rules = self.named(scope, name);
        rules.find(|rule| lookup.holds(&rule.when, set))
    }

    /// The rules of a name, for this family.
    fn named(&self, scope: &str, name: &str) -> impl Iterator<Item = &Rule> {
        let is_named = move |rule: &&Rule| {
            let in_scope = rule.scopes.iter().any(|s| s == scope || s == "*");
            in_scope && rule.names.iter().any(|n| n == name || n == "*")
        };
        let is_for = |rule: &&Rule| {
            rule.families.is_empty() || rule.families.iter().any(|f| f == self.family)
        };
        self.knowledge.keys.iter().filter(is_named).filter(is_for)
    }

    fn blank(&self, setting: &Setting, status: Status) -> Row {
        let is_secret = SECRETS
            .iter()
            .any(|part| setting.name.to_lowercase().contains(part))
            && matches!(setting.value, Value::Text(_) | Value::Open(_));
        Row {
            file: setting.file,
            line: setting.line,
            setting: setting.place.clone(),
            value: match is_secret {
                true => "(not shown)".to_owned(),
                false => setting.value.written(),
            },
            written: true,
            status,
            fields: BTreeMap::new(),
            why: None,
            source: None,
        }
    }

    fn overridden(&self, setting: &Setting, other: &Setting) -> Row {
        let line = other.line.filter(|_| other.file == setting.file);
        self.replaced(setting, counts(&other.place, line))
    }

    /// The row of a setting that another counts instead of.
    pub(super) fn replaced(&self, setting: &Setting, why: String) -> Row {
        Row {
            why: Some(why),
            ..self.blank(setting, Status::Overridden)
        }
    }

    /// The row of a setting, which has its number. Where it is one thing for some data sets and another for others, what is lost is told
    /// first, then what is taken over.
    fn row(&self, settings: &[Setting], n: usize, lookup: &Lookup<'_>, draft: &mut Draft) -> Row {
        let weight = |row: &Row| match row.status {
            Status::Effective => 1,
            status => 2 * u8::from(status.is_lost()),
        };
        let mut rows = Vec::new();
        for (rule, sets) in self.rules(&settings[n], lookup) {
            rows.push(match rule {
                Some(rule) => self.by_rule(rule, sets, settings, n, lookup, draft),
                None => self.without_rule(&settings[n]),
            });
        }
        // Of equal ones `max_by_key` gives the last.
        let found = rows.into_iter().rev().max_by_key(weight);
        found.unwrap_or_else(|| self.without_rule(&settings[n]))
    }

    /// The rules that hold of a setting, each with the data sets for which it does.
    fn rules(&self, setting: &Setting, lookup: &Lookup<'_>) -> Vec<(Option<&Rule>, Vec<usize>)> {
        let sets = match setting.sets.is_empty() {
            true => &self.sets,
            false => &setting.sets,
        };
        let of = |set| self.rule(&setting.scope, &setting.name, lookup, set);
        let mut asks_others = self.named(&setting.scope, &setting.name);
        if sets.is_empty() || !asks_others.any(|rule| !rule.when.is_empty()) {
            return vec![(of(sets.first().copied()), sets.clone())];
        }
        let mut found: Vec<(Option<&Rule>, Vec<usize>)> = Vec::new();
        for set in sets {
            let rule = of(Some(*set));
            let is_same = |known: &Option<&Rule>| match (known, rule) {
                (Some(known), Some(rule)) => std::ptr::eq(*known, rule),
                (known, rule) => known.is_none() && rule.is_none(),
            };
            match found.iter_mut().find(|(known, _)| is_same(known)) {
                Some((_, its)) => its.push(*set),
                None => found.push((rule, vec![*set])),
            }
        }
        found
    }

    fn by_rule(
        &self,
        rule: &Rule,
        mut sets: Vec<usize>,
        settings: &[Setting],
        n: usize,
        lookup: &Lookup<'_>,
        draft: &mut Draft,
    ) -> Row {
        let setting = &settings[n];
        let mut found = self.blank(setting, rule.status);
        found.why.clone_from(&rule.text);
        found.source = self.source(rule, &setting.scope, &setting.name);
        let null = rule.null.as_ref().filter(|_| setting.value == Value::Null);
        let value = null.map_or_else(|| setting.value.clone(), plain);
        if value == Value::Null && !rule.is_off(&Value::Null) {
            found.status = Status::NotNeeded;
            found.why = Some("nothing is set: the trainer's default counts".to_owned());
            return found;
        }
        if !matches!(rule.status, Status::Effective | Status::NotSupported) {
            return found;
        }
        if rule.is_off(&value) {
            found.status = Status::NotNeeded;
            found.why = Some("at this value it asks for nothing".to_owned());
            return found;
        }
        if let Some(other) = self.switched_off(setting, rule, &mut sets, settings, lookup) {
            return self.overridden(setting, other);
        }
        if rule.status == Status::Effective {
            let rank = (rule.wins, setting.rank + 1, n);
            let origin = match setting.line {
                Some(line) => format!("{}, line {line}", setting.place),
                None => setting.place.clone(),
            };
            draft.origin(n, origin);
            let value = micro_batches(rule, value, lookup);
            self.effective(rule, &value, rank, n, &sets, draft, &mut found);
        }
        found
    }

    /// Takes out the data sets for which an inner setting of the same thing switches off what this one asks for: a `false` of a data set
    /// sets no field, and counts before a `true` of the run. Where none is left, gives the setting that counts.
    fn switched_off<'s>(
        &self,
        setting: &Setting,
        rule: &Rule,
        sets: &mut Vec<usize>,
        settings: &'s [Setting],
        lookup: &Lookup<'_>,
    ) -> Option<&'s Setting> {
        let is_inner = |s: &&Setting| {
            s.name == setting.name && s.rank > setting.rank && s.value != Value::Null
        };
        let inner: Vec<&Setting> = settings.iter().filter(is_inner).collect();
        let mut by = None;
        sets.retain(|set| {
            let of_set = inner.iter().filter(|s| s.is_about(*set));
            let Some(other) = of_set.max_by_key(|s| s.rank) else {
                return true;
            };
            let is_off = |its: &Rule| {
                let same_field = its.targets().any(|f| rule.targets().any(|own| own == f));
                let nothing =
                    || convert::fields(its, &other.value, self.folder).is_ok_and(|f| f.is_empty());
                let asks = matches!(its.status, Status::Effective | Status::NotSupported);
                let off = its.is_off(&other.value) || its.status == Status::Effective && nothing();
                let same = same_field || other.scope == setting.scope || std::ptr::eq(its, rule);
                asks && off && same
            };
            let its = self.rule(&other.scope, &other.name, lookup, Some(*set));
            let off = its.is_some_and(is_off);
            if off {
                by = Some(*other);
            }
            !off
        });
        by.filter(|_| sets.is_empty())
    }

    /// Puts a value into the draft, or says in its row why not.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a row and a slot are made of"
    )]
    fn effective(
        &self,
        rule: &Rule,
        value: &Value,
        rank: (bool, u8, usize),
        row: usize,
        sets: &[usize],
        draft: &mut Draft,
        found: &mut Row,
    ) {
        match convert::fields(rule, value, self.folder) {
            Ok(fields) if fields.is_empty() => {
                found.status = Status::NotNeeded;
                found.why = found.why.take().or(Some("plumb does so anyway".to_owned()));
            }
            Ok(fields) => {
                for (field, value) in fields {
                    let field = match field.strip_prefix("recipe.") {
                        Some(name) => format!("recipe.deviate.{name}"),
                        None => field,
                    };
                    draft.put(&field, value, rank, row, sets);
                }
            }
            Err(why) => {
                found.status = Status::NotSupported;
                found.why = Some(why);
            }
        }
    }

    fn without_rule(&self, setting: &Setting) -> Row {
        if setting.scope == forms::ANY {
            let why = "the script does not set it, and it may stand for more options: put them in its place";
            return Row {
                why: Some(why.to_owned()),
                ..self.blank(setting, Status::NotSupported)
            };
        }
        let known = &self.knowledge.known;
        if let Some(place) = known.place(&setting.scope, &setting.name) {
            return Row {
                why: Some("the trainer reads it; what it does was not looked at".to_owned()),
                source: Some(place.to_owned()),
                ..self.blank(setting, Status::NotLookedAt)
            };
        }
        let mut why = self.knowledge.unknown.clone();
        if let Some(nearest) = known.nearest(&setting.scope, &setting.name) {
            why += &format!("; it does know `{nearest}`");
        } else if let Some(other) = self.elsewhere(&setting.scope, &setting.name) {
            why += &format!("; it does know one in `{other}`");
        }
        let source = &self.knowledge.unknown_source;
        Row {
            why: Some(why),
            source: Some(self.knowledge.shown_source(self.trainer, source)),
            ..self.blank(setting, Status::Unknown)
        }
    }

    /// Another part of the configuration that has the name.
    fn elsewhere(&self, scope: &str, name: &str) -> Option<&str> {
        let scopes = self.knowledge.known.scopes.iter();
        let mut having =
            scopes.filter(|(other, names)| *other != scope && names.contains_key(name));
        having.next().map(|(other, _)| other.as_str())
    }

    fn source(&self, rule: &Rule, scope: &str, name: &str) -> Option<String> {
        match rule.source.as_deref() {
            Some(source) => Some(self.knowledge.shown_source(self.trainer, source)),
            None => self.knowledge.known.place(scope, name).map(str::to_owned),
        }
    }

    /// By `scope.name`, what counts where nothing is written, of rules that hold without any other.
    fn defaults(&self, settings: &[Setting]) -> Vec<(String, Toml)> {
        let none = Lookup::new(settings, &[]);
        let mut found = Vec::new();
        for rule in &self.knowledge.keys {
            let is_for = rule.families.is_empty() || rule.families.iter().any(|f| f == self.family);
            let (Some(default), true) = (&rule.default, is_for && none.holds(&rule.when, None))
            else {
                continue;
            };
            let (scope, name) = (&rule.scopes[0], &rule.names[0]);
            let key = format!("{scope}.{name}");
            if found.iter().all(|(known, _)| *known != key) {
                found.push((key, default.clone()));
            }
        }
        found
    }

    /// Rows for what is not written and counts all the same.
    fn unwritten(
        &self,
        settings: &[Setting],
        lookup: &Lookup<'_>,
        rows: &mut Vec<Row>,
        draft: &mut Draft,
    ) {
        for rule in &self.knowledge.keys {
            let Some(default) = &rule.default else {
                continue;
            };
            let (scope, name) = (&rule.scopes[0], &rule.names[0]);
            let counts = |set: Option<usize>| {
                let found = self.rule(scope, name, lookup, set);
                found.is_some_and(|found| std::ptr::eq(found, rule))
            };
            let written: Vec<&Setting> = settings
                .iter()
                .filter(|s| rule.scopes.contains(&s.scope) && rule.names.contains(&s.name))
                .filter(|s| s.value != Value::Null || rule.null.is_some())
                .collect();
            let is_everywhere = written.iter().any(|s| s.sets.is_empty());
            let without = |set: &&usize| !written.iter().any(|s| s.sets.contains(set));
            let of_sets = self.is_of_sets(rule, settings);
            let sets = self.sets.iter().filter(without).copied();
            let sets: Vec<usize> = match of_sets {
                true => sets.filter(|set| counts(Some(*set))).collect(),
                false => sets.collect(),
            };
            let missing = match of_sets {
                true => !is_everywhere && !sets.is_empty(),
                false => written.is_empty() && counts(None),
            };
            if !missing {
                continue;
            }
            let row = rows.len();
            let default = micro_batches(rule, plain(default), lookup);
            if let Some(found) = self.of_default(rule, default, row, &sets, draft) {
                rows.push(found);
            }
        }
    }

    /// Whether a rule is about each data set on its own.
    fn is_of_sets(&self, rule: &Rule, settings: &[Setting]) -> bool {
        let has_field = rule.targets().any(|field| field.starts_with("dataset."));
        // A part of the configuration that each data set has.
        let scope = &rule.scopes[0];
        let of_scope = |s: &Setting| s.scope == *scope && !s.sets.is_empty();
        !self.sets.is_empty() && (has_field || settings.iter().any(of_scope))
    }

    fn of_default(
        &self,
        rule: &Rule,
        value: Value,
        row: usize,
        sets: &[usize],
        draft: &mut Draft,
    ) -> Option<Row> {
        if rule.is_off(&value) {
            return None;
        }
        let mut found = Row {
            file: 0,
            line: None,
            setting: match rule.scopes[0].as_str() {
                "config" | "options" | "arguments" | "implied" => rule.names[0].clone(),
                scope => format!("{scope}.{}", rule.names[0]),
            },
            // A trainer's own word, such as diffusers' `none`.
            value: match value {
                Value::Null => "none".to_owned(),
                _ => value.written(),
            },
            written: false,
            status: rule.status,
            fields: BTreeMap::new(),
            why: rule.text.clone(),
            source: self.source(rule, &rule.scopes[0], &rule.names[0]),
        };
        if rule.status == Status::Effective {
            draft.origin(row, format!("{}'s default", self.trainer.name()));
            self.effective(rule, &value, (false, 0, 0), row, sets, draft, &mut found);
        }
        // What changes nothing need not be told of what nobody wrote.
        let is_told = found.status == Status::Effective || found.status.is_lost();
        is_told.then_some(found)
    }
}

/// The setting that counts instead: of the same thing, of a higher rank or later.
fn later(settings: &[Setting], n: usize) -> Option<&Setting> {
    let this = &settings[n];
    let others = settings.iter().enumerate().filter(|(m, other)| {
        let same_place = other.place == this.place && other.file == this.file;
        let is_run = this.sets.is_empty() && other.sets.is_empty() && other.rank != this.rank;
        let same = other.scope == this.scope && other.name == this.name && (same_place || is_run);
        same && (other.rank, *m) > (this.rank, n)
    });
    others.map(|(_, other)| other).next_back()
}

/// A number of micro-batches as one of optimizer steps, where the rule says that it is one; a share stays.
fn micro_batches(rule: &Rule, value: Value, lookup: &Lookup<'_>) -> Value {
    let divisor = rule.divided_by.as_ref().and_then(|key| lookup.setting(key));
    let divisor = divisor.and_then(|setting| convert::whole_number(&setting.value));
    match (convert::whole_number(&value), divisor) {
        (Some(number), Some(divisor)) if divisor > 1 && number > 1 => {
            Value::Integer((number / divisor).max(1))
        }
        _ => value,
    }
}

fn plain(value: &Toml) -> Value {
    match value {
        Toml::Boolean(flag) => Value::Flag(*flag),
        Toml::Integer(number) => Value::Integer(*number),
        Toml::Float(number) => Value::Number(*number),
        Toml::String(text) if text == "none" => Value::Null,
        Toml::String(text) => Value::Text(text.clone()),
        value => Value::Text(value.to_string()),
    }
}
