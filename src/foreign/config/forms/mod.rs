//! How each trainer's files are taken apart into settings: which part of its configuration a value belongs to, and which data
//! sets it is about. What a setting does is no matter here.

mod accelerate;
mod ai_toolkit;
mod detect;
mod diffusers;
mod diffusion_pipe;
mod kohya;
mod musubi;
mod onetrainer;
mod simpletuner;
mod sources;

use super::knowledge::Knowledge;
use super::setting::{Leaf, Setting, leaves};
use super::tree::{Node, Value};
use super::{Error, Trainer};
use crate::shown;

pub(super) use detect::detect;
pub(super) use diffusers::ANY;
pub(super) use sources::Sources;

/// What a trainer's files come to.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) settings: Vec<Setting>,
    /// Settings that stand again further down, and what counts instead of each.
    pub(super) replaced: Vec<(Setting, String)>,
    /// How many data sets there are.
    pub(super) sets: usize,
    /// What a person should know.
    pub(super) notes: Vec<String>,
    /// The part of the known names that command lines are of, where a trainer has several scripts.
    pub(super) script: Option<String>,
}

/// The most data sets that are taken over.
const MAX_SETS: usize = 1000;

/// Where a value belongs.
struct Place {
    scope: String,
    name: String,
    sets: Vec<usize>,
    rank: u8,
}

impl Place {
    fn new(scope: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            scope: scope.into(),
            name: name.into(),
            sets: Vec::new(),
            rank: 1,
        }
    }

    fn of_set(mut self, set: usize) -> Self {
        self.sets = vec![set];
        self
    }

    fn ranked(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }
}

impl Gathered {
    /// A new data set's number; beyond the bound, all are the last.
    fn new_set(&mut self) -> usize {
        self.sets = (self.sets + 1).min(MAX_SETS);
        self.sets - 1
    }

    /// Notes that a file which a setting names is not there.
    fn not_here(&mut self, name: &str, setting: &str) {
        self.notes.push(format!(
            "the file `{}` of {setting} is not here; give it as well",
            shown::text(name)
        ));
    }

    /// Every value of a document.
    fn add_all(&mut self, node: &Node, file: usize, place: impl Fn(&Leaf<'_>) -> Place) {
        for leaf in leaves(node) {
            let to = place(&leaf);
            let setting = Setting {
                place: leaf.place(),
                file,
                line: leaf.line,
                scope: to.scope,
                name: to.name,
                value: leaf.value.clone(),
                sets: to.sets,
                rank: to.rank,
            };
            match leaf.instead {
                Some(why) => self.replaced.push((setting, why)),
                None => self.settings.push(setting),
            }
        }
    }

    /// The last value of a `scope` and `name` that is text.
    fn text(&self, scope: &str, name: &str) -> Option<String> {
        let found = self.settings.iter().rev();
        let mut found = found.filter(|s| s.scope == scope && s.name == name);
        match &found.next()?.value {
            Value::Text(text) | Value::Open(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        }
    }

    /// Settings that stand as `name=value` in the values of others become settings of a scope of their own.
    fn split(&mut self, scope: &str, name: &str, into: &str) {
        let settings = std::mem::take(&mut self.settings);
        for setting in settings {
            let parts = match setting.scope == scope && setting.name == name {
                true => assignments(&setting.value),
                false => None,
            };
            let Some(parts) = parts else {
                self.settings.push(setting);
                continue;
            };
            let is_open = match &setting.value {
                Value::List(items) => items
                    .iter()
                    .any(|item| matches!(item.value, Value::Open(_))),
                value => matches!(value, Value::Open(_)),
            };
            for (key, value) in parts {
                self.settings.push(Setting {
                    place: format!("{} {key}", setting.place),
                    scope: into.to_owned(),
                    name: key,
                    value: match is_open && value.contains('$') {
                        true => Value::Open(value),
                        false => Value::Text(value),
                    },
                    ..setting.clone()
                });
            }
        }
    }

    /// Has names stand for those that they are other names of, and command lines be of their script.
    pub(super) fn canonical(&mut self, knowledge: &mut Knowledge) {
        let known = &mut knowledge.known;
        for setting in &mut self.settings {
            let other = known.aliases.get(&setting.scope);
            if let Some(other) = other.and_then(|names| names.get(&setting.name)) {
                setting.name.clone_from(other);
            }
        }
        let has_arguments = self.settings.iter().any(|s| s.scope == "arguments");
        if known.scopes.contains_key("arguments") || !has_arguments {
            return;
        }
        let of_script = self
            .script
            .as_ref()
            .and_then(|script| known.scopes.get(script));
        let all = || known.scopes.values().flatten();
        let all = || {
            all()
                .map(|(name, place)| (name.clone(), place.clone()))
                .collect()
        };
        let arguments = of_script.cloned().unwrap_or_else(all);
        known.scopes.insert("arguments".to_owned(), arguments);
    }
}

/// `a=1` and `b=2` of a list, of one text with commas or blanks between, or of a table.
fn assignments(value: &Value) -> Option<Vec<(String, String)>> {
    let one = |text: &str| {
        let (key, value) = text.split_once('=')?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    match value {
        Value::List(items) => items.iter().map(|item| one(item.text()?)).collect(),
        Value::Text(text) | Value::Open(text) if text.matches('=').count() == 1 => {
            Some(vec![one(text)?])
        }
        // A comma may stand in a value: `betas=0.9,0.99,weight_decay=0.1`.
        Value::Text(text) | Value::Open(text) if !text.is_empty() => {
            let mut found: Vec<(String, String)> = Vec::new();
            for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
                match (one(part), found.last_mut()) {
                    (Some(assigned), _) => found.push(assigned),
                    (None, Some((_, value))) => *value += &format!(",{part}"),
                    (None, None) => return None,
                }
            }
            Some(found)
        }
        _ => None,
    }
}

/// Takes a trainer's files apart.
///
/// # Errors
/// If they are not that trainer's, or one that is named cannot be read.
pub(super) fn gather(trainer: Trainer, sources: &mut Sources) -> Result<Gathered, Error> {
    let mut gathered = of_trainer(trainer, sources)?;
    accelerate::gather(sources, &mut gathered)?;
    Ok(gathered)
}

fn of_trainer(trainer: Trainer, sources: &mut Sources) -> Result<Gathered, Error> {
    match trainer {
        Trainer::Kohya => kohya::gather(sources),
        Trainer::Musubi => musubi::gather(sources),
        Trainer::AiToolkit => ai_toolkit::gather(sources),
        Trainer::SimpleTuner => simpletuner::gather(sources),
        Trainer::Diffusers => diffusers::gather(sources),
        Trainer::OneTrainer => onetrainer::gather(sources),
        Trainer::DiffusionPipe => diffusion_pipe::gather(sources),
    }
}
