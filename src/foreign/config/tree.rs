//! What every reader gives: values with the lines they stand on, within bounds.

/// Levels of tables and lists; those that people write have eight at most.
const MAX_DEPTH: usize = 32;

/// Values of all files together. A YAML of a few lines can stand for billions, by aliases of aliases.
const MAX_VALUES: usize = 50_000;

/// A value, and the line it stands on, from 1, where its format tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) line: Option<usize>,
    pub(super) value: Value,
}

/// A value as a trainer's own reader would have it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Flag(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    /// Text of a script in which a variable stands that is not known, `$NAME`; other dollar signs stand twice.
    Open(String),
    List(Vec<Node>),
    /// In the order of the file; a key that stands twice is twice in it.
    Table(Vec<Entry>),
}

/// A key of a table with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: Option<usize>,
    pub(super) node: Node,
}

impl Node {
    /// The last value of a key: what counts in every trainer.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Table(entries) = &self.value else {
            return None;
        };
        let found = entries.iter().rev().find(|entry| entry.key == key);
        found.map(|entry| &entry.node)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) | Value::Open(text) => Some(text),
            _ => None,
        }
    }

    /// Values in it, itself included.
    pub(super) fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Table(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
            _ => 0,
        }
    }

    /// Levels below it.
    pub(super) fn depth(&self) -> usize {
        match &self.value {
            Value::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Table(entries) => 1 + entries.iter().map(|e| e.node.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

impl Value {
    /// As a person would write it: for tables of what became of it.
    pub(super) fn written(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Flag(flag) => flag.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Number(number) => number_written(*number),
            Self::Text(text) | Self::Open(text) => text.clone(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|item| item.value.written()).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Table(entries) => {
                let one = |entry: &Entry| format!("{}: {}", entry.key, entry.node.value.written());
                let entries: Vec<String> = entries.iter().map(one).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    /// Whether rows are made of what is in it, and not of it.
    pub(super) fn is_branch(&self) -> bool {
        match self {
            Self::Table(entries) => !entries.is_empty(),
            Self::List(items) => items
                .iter()
                .any(|item| matches!(item.value, Self::Table(_))),
            _ => false,
        }
    }
}

/// Small and large numbers with an exponent, as people write learning rates.
fn number_written(number: f64) -> String {
    let size = number.abs();
    match size != 0.0 && !(1e-3..1e6).contains(&size) {
        true => format!("{number:e}"),
        false => number.to_string(),
    }
}

/// What is left of the bounds.
#[derive(Debug)]
pub(super) struct Budget {
    values: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { values: MAX_VALUES }
    }
}

impl Budget {
    /// Takes `values` more, `depth` levels below the top.
    ///
    /// # Errors
    /// If that is more than a config has.
    pub(super) fn take(&mut self, values: usize, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "tables and lists stand more than {MAX_DEPTH} levels deep in each other, which no config needs"
            ));
        }
        self.values = self.values.checked_sub(values).ok_or_else(|| {
            format!("there are more than {MAX_VALUES} values in it, which no config has")
        })?;
        Ok(())
    }
}
