//! What is known of a trainer's settings, as data: `configs/trainers/NAME.toml` says by hand what each does, with the source;
//! `configs/trainers/known/NAME.toml` lists every name that the trainer reads, written by `tools/trainer_keys.py`.

use std::collections::BTreeMap;

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

use super::Trainer;
use super::tree::Value;

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/configs/trainers");

/// What becomes of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is a field of the Experiment.
    Effective,
    /// It changes no number, plumb does it by itself, or it asks for nothing.
    NotNeeded,
    /// The trainer reads it, or seems to, and it changes nothing there.
    Inert,
    /// The trainer has one value for it, whatever is written.
    Constant,
    /// Another line, option or the base model's recipe counts instead.
    Overridden,
    /// It is effective in the trainer, and plumb has nothing like it.
    NotSupported,
    /// The trainer reads it; what it does was not looked at.
    NotLookedAt,
    /// The trainer does not know it either.
    Unknown,
}

impl Status {
    /// Every status, in the order that a report has them.
    pub const ALL: [Self; 8] = [
        Self::Effective,
        Self::Overridden,
        Self::Constant,
        Self::Inert,
        Self::NotNeeded,
        Self::NotSupported,
        Self::NotLookedAt,
        Self::Unknown,
    ];

    /// Whether something that the file asks for, or seems to, is lost.
    pub fn is_lost(self) -> bool {
        matches!(self, Self::NotSupported | Self::NotLookedAt | Self::Unknown)
    }
}

/// How a value becomes that of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum As {
    /// A whole number, of one field or several.
    Integer,
    /// A number, and one more.
    OneMore,
    /// A scale of classifier-free guidance, below 1 as 1, which is none in plumb.
    Guidance,
    /// How many shuffled captions: a flag, and as many variants, at least two.
    Shuffles,
    /// A number.
    Number,
    /// Two numbers, for two fields.
    Pair,
    /// True or false.
    Flag,
    /// The other of true and false.
    Not,
    /// Text.
    Text,
    /// A path as it stands.
    Path,
    /// A path, or an address on the hub.
    Model,
    /// The side of a square in px, `512,768` or `[512, 768]`.
    Resolution,
    /// A list of sides: a data set for each.
    Resolutions,
    /// An extension, with or without its dot.
    Extension,
    /// Captions of previews.
    Prompts,
    /// A file of such captions, one a line.
    PromptFile,
    /// A number of steps, or a share of them below 1.
    Warmup,
    /// A number of steps above 1, else a share of them.
    WarmupShare,
    /// Whole numbers, of a list or with blanks or commas between.
    Integers,
    /// Numbers of frames, one or a list, each rounded down to 1 more than a multiple of 4.
    Frames,
    /// The same, each rounded down to 1 more than a multiple of 8.
    FramesOfEight,
    /// Numbers of frames of which 1 is for pictures.
    FrameBuckets,
    /// A whole number behind the words of `prefix`.
    Prefixed,
    /// A folder, and by the table `values` the parts of it that fields have.
    Within,
    /// By the table `values`.
    Words,
}

/// When a rule holds: another setting has one of some values, or none of them, or is not there. Of a list it is about each value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    /// `scope.name`; of several, which are one setting in several places, the innermost that is written counts.
    pub(super) key: Names,
    /// It has one of these.
    #[serde(default)]
    pub(super) is: Vec<toml::Value>,
    /// It has none of these.
    #[serde(default)]
    pub(super) is_not: Vec<toml::Value>,
    /// The first of its values is one of these, or it is one itself.
    #[serde(default)]
    pub(super) first: Vec<toml::Value>,
    /// Its text contains one of these, capitals or not.
    #[serde(default)]
    pub(super) contains: Vec<String>,
    /// Whether it is written at all.
    pub(super) written: Option<bool>,
}

/// One or several names.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    pub(super) fn any(&self, is_meant: impl FnMut(&String) -> bool) -> bool {
        match self {
            Self::One(name) => std::slice::from_ref(name).iter().any(is_meant),
            Self::Several(names) => names.iter().any(is_meant),
        }
    }

    fn list(self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name],
            Self::Several(names) => names,
        }
    }
}

/// What settings do.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawRule")]
pub(super) struct Rule {
    pub(super) scopes: Vec<String>,
    pub(super) names: Vec<String>,
    /// Families it is about; empty: all.
    pub(super) families: Vec<String>,
    pub(super) when: Vec<When>,
    pub(super) status: Status,
    /// The fields it becomes; of `recipe.` under `[recipe.deviate]`.
    pub(super) fields: Vec<String>,
    pub(super) how: As,
    pub(super) values: toml::Table,
    /// What counts where nothing is written.
    pub(super) default: Option<toml::Value>,
    /// What an empty value stands for, where that is not the default.
    pub(super) null: Option<toml::Value>,
    /// The setting that a whole number is divided by: it counts micro-batches.
    pub(super) divided_by: Option<String>,
    /// What a larger whole number counts as.
    pub(super) most: Option<i64>,
    /// What a number stands behind.
    pub(super) prefix: String,
    /// Values that ask for nothing.
    pub(super) off: Vec<toml::Value>,
    /// Whether it counts before other settings of the same field.
    pub(super) wins: bool,
    pub(super) text: Option<String>,
    pub(super) source: Option<String>,
}

impl Rule {
    /// Whether a setting of this value asks for nothing.
    pub(super) fn is_off(&self, value: &Value) -> bool {
        self.off.iter().any(|off| equals(value, off))
    }

    /// Every field that it may set.
    pub(super) fn targets(&self) -> impl Iterator<Item = &String> {
        let inner = self.values.values().filter_map(toml::Value::as_table);
        inner.flat_map(toml::Table::keys).chain(&self.fields)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    scope: Names,
    name: Names,
    #[serde(default)]
    families: Vec<String>,
    #[serde(default)]
    when: Vec<When>,
    status: Option<Status>,
    field: Option<Names>,
    #[serde(rename = "as")]
    how: Option<As>,
    #[serde(default)]
    values: toml::Table,
    default: Option<toml::Value>,
    null: Option<toml::Value>,
    divided_by: Option<String>,
    most: Option<i64>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    off: Vec<toml::Value>,
    #[serde(default)]
    wins: bool,
    text: Option<String>,
    source: Option<String>,
}

impl TryFrom<RawRule> for Rule {
    type Error = String;

    fn try_from(raw: RawRule) -> Result<Self, String> {
        let names = raw.name.list();
        let wrong = |why: &str| Err(format!("{}: {why}", names.join(", ")));
        let has_target = raw.field.is_some() || !raw.values.is_empty();
        let status = match raw.status {
            Some(status) => status,
            None if has_target => Status::Effective,
            None => return wrong("neither a status nor a field"),
        };
        let how = match raw.how {
            Some(how) => how,
            None if !raw.values.is_empty() => As::Words,
            None if raw.field.is_some() => return wrong("a field, and not how it is read"),
            None => As::Text,
        };
        if status != Status::Effective && raw.text.is_none() {
            return wrong("a status, and not why");
        }
        // Where a name is read, the list of known names has; that it does nothing must be seen elsewhere.
        let claims = matches!(status, Status::Inert | Status::Constant);
        if claims && raw.source.is_none() {
            return wrong("a claim, and no source");
        }
        Ok(Self {
            scopes: raw.scope.list(),
            names,
            families: raw.families,
            when: raw.when,
            status,
            fields: raw.field.map_or_else(Vec::new, Names::list),
            how,
            values: raw.values,
            default: raw.default,
            null: raw.null,
            divided_by: raw.divided_by,
            most: raw.most,
            prefix: raw.prefix,
            off: raw.off,
            wins: raw.wins,
            text: raw.text,
            source: raw.source,
        })
    }
}

/// A setting that tells which base model is meant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelRule {
    /// All must hold.
    pub(super) when: Vec<When>,
    pub(super) family: String,
    /// Where the path's name does not tell another.
    pub(super) flavor: Option<String>,
    /// Whose recipe it is made by, where that is not the trainer's one.
    pub(super) variant: Option<String>,
}

/// A trainer's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Knowledge {
    /// Whose it is, for a person.
    pub(super) title: String,
    /// What the trainer does with a name that it does not know.
    pub(super) unknown: String,
    /// Where that is seen.
    pub(super) unknown_source: String,
    /// Where its relative paths start.
    pub(super) paths: String,
    /// The setting that names the kind of base model, for messages.
    pub(super) model_key: String,
    /// The setting that names the base model's place, for messages.
    pub(super) model_path: String,
    /// Parts of the configuration that have the names of another: each text encoder those of a model's part.
    #[serde(default)]
    pub(super) same_scopes: BTreeMap<String, String>,
    pub(super) sources: BTreeMap<String, String>,
    pub(super) models: Vec<ModelRule>,
    pub(super) keys: Vec<Rule>,
    #[serde(skip)]
    pub(super) known: Known,
}

/// Every name that a trainer reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// The repository and its revision; that of the rules is the same.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares it"))]
    pub(super) source: String,
    /// By scope and name, where it is read.
    pub(super) scopes: BTreeMap<String, BTreeMap<String, String>>,
    /// By scope and name, the name it stands for.
    #[serde(default)]
    pub(super) aliases: BTreeMap<String, BTreeMap<String, String>>,
}

impl Known {
    /// Where a name is read; scopes below a known name are part of it.
    pub(super) fn place(&self, scope: &str, name: &str) -> Option<&str> {
        let found = self.scopes.get(scope).and_then(|names| names.get(name));
        if let Some(place) = found {
            return Some(place);
        }
        if self.scopes.contains_key(scope) {
            return None;
        }
        let (outer, part) = scope.rsplit_once('.')?;
        self.place(outer, part)
    }

    /// The name that is most like one that is not known.
    pub(super) fn nearest(&self, scope: &str, name: &str) -> Option<&str> {
        // Nobody mistypes so much that kilobytes were to be compared.
        let names = self.scopes.get(scope).filter(|_| name.len() <= 100)?;
        let scored = names
            .keys()
            .map(|known| (strsim::jaro_winkler(name, known), known));
        let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(likeness, _)| *likeness > 0.85)
            .map(|(_, known)| known.as_str())
    }
}

/// A word in a base model's name that tells its flavor.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FlavorWord {
    pub(super) family: String,
    contains: Vec<String>,
    pub(super) flavor: String,
}

/// The flavor that a model's name tells, if it tells one.
pub(super) fn flavor_by_name(family: &str, path: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct File {
        flavors: Vec<FlavorWord>,
    }
    let text = FILES.get_file("flavors.toml")?.contents_utf8()?;
    let file: File = toml::from_str(text).ok()?;
    let path = path.to_lowercase().replace(['_', ' '], "-");
    let is_meant = |word: &FlavorWord| {
        word.family == family && word.contains.iter().any(|part| path.contains(part))
    };
    let found = file.flavors.into_iter().find(is_meant);
    found.map(|word| word.flavor)
}

impl Knowledge {
    /// What ships of a trainer.
    ///
    /// # Errors
    /// If a shipped file is wrong, which the tests rule out.
    pub(super) fn of(trainer: Trainer) -> Result<Self, String> {
        let name = trainer.name();
        let text = |path: &str| {
            let file = FILES.get_file(path);
            let text = file.and_then(|file| file.contents_utf8());
            text.ok_or_else(|| format!("configs/trainers/{path} is missing"))
        };
        let wrong = |path: &str, e: toml::de::Error| format!("configs/trainers/{path}: {e}");
        let (file, known) = (format!("{name}.toml"), format!("known/{name}.toml"));
        let mut knowledge: Self = toml::from_str(text(&file)?).map_err(|e| wrong(&file, e))?;
        knowledge.known = toml::from_str(text(&known)?).map_err(|e| wrong(&known, e))?;
        for (scope, other) in &knowledge.same_scopes {
            let names = knowledge
                .known
                .scopes
                .get(other)
                .cloned()
                .unwrap_or_default();
            knowledge.known.scopes.insert(scope.clone(), names);
        }
        Ok(knowledge)
    }

    /// The trainer's repository with the revision that was read, and those of others that sources name.
    pub(super) fn revisions(&self, trainer: Trainer) -> String {
        let own = self.sources.get(trainer.name()).cloned();
        let others = self
            .sources
            .iter()
            .filter(|(alias, _)| *alias != trainer.name());
        let others = others.map(|(alias, source)| format!("{alias}: {source}"));
        own.into_iter().chain(others).collect::<Vec<_>>().join("; ")
    }

    /// A source without its alias, as a person finds it in the trainer's repository.
    pub(super) fn shown_source(&self, trainer: Trainer, source: &str) -> String {
        source.replace(&format!("{}:", trainer.name()), "")
    }
}

/// Whether a value is what a file of ours says: numbers as numbers, text whatever its capitals. A list is if each of its values is.
pub(super) fn equals(value: &Value, said: &toml::Value) -> bool {
    if let (Value::List(items), false) = (value, said.is_array()) {
        return !items.is_empty() && items.iter().all(|item| equals(&item.value, said));
    }
    let number = |value: &Value| match value {
        Value::Integer(n) => Some(*n as f64),
        Value::Number(n) => Some(*n),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    match said {
        toml::Value::Boolean(said) => flag(value) == Some(*said),
        toml::Value::Integer(said) => number(value) == Some(*said as f64),
        toml::Value::Float(said) => number(value) == Some(*said),
        toml::Value::String(said) => match value {
            Value::Null => said == "none",
            value => value.written().trim().eq_ignore_ascii_case(said),
        },
        toml::Value::Array(said) if said.is_empty() => {
            matches!(value, Value::List(items) if items.is_empty())
        }
        toml::Value::Table(said) if said.is_empty() => {
            matches!(value, Value::Table(entries) if entries.is_empty())
        }
        _ => false,
    }
}

/// A value as true or false, as argparse and JSON have it.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Flag(flag) => Some(*flag),
        Value::Integer(0) => Some(false),
        Value::Integer(1) => Some(true),
        Value::Text(text) => match text.trim().to_lowercase().as_str() {
            "true" | "yes" | "1" | "on" => Some(true),
            "false" | "no" | "0" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    }
}
