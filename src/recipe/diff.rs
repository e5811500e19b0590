//! In which fields two descriptions differ: two recipes, two specs, or what an Experiment wants and what a
//! store holds. It works on JSON, so that one side may be a file.
//!
//! A [`Diff`] prints as what a refusal shows: field, wanted, found, and where each came from.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::shown;

/// Differences between two descriptions, in the order of their paths.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diff {
    /// One for each field that differs.
    pub fields: Vec<FieldDiff>,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldDiff {
    /// The dotted path: `tokens.max_tokens`.
    pub field: String,
    /// What one side has; `None`: it has no such field.
    pub wanted: Option<Value>,
    /// What the other side has; `None`: it has no such field.
    pub found: Option<Value>,
    /// Where the wanted value comes from, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted_from: Option<String>,
    /// Where the found value comes from, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found_from: Option<String>,
}

impl Diff {
    /// What differs between `wanted` and `found`. Objects are compared field by field, all else as a whole.
    pub fn between(wanted: &Value, found: &Value) -> Self {
        let mut diff = Self::default();
        diff.compare("", Some(wanted), Some(found));
        diff
    }

    /// Says where wanted values come from: `origin` is asked for each field's path.
    #[must_use]
    pub fn wanted_from(mut self, origin: impl Fn(&str) -> Option<String>) -> Self {
        for field in &mut self.fields {
            field.wanted_from = origin(&field.field);
        }
        self
    }

    /// Says where found values come from: `origin` is asked for each field's path.
    #[must_use]
    pub fn found_from(mut self, origin: impl Fn(&str) -> Option<String>) -> Self {
        for field in &mut self.fields {
            field.found_from = origin(&field.field);
        }
        self
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    fn compare(&mut self, path: &str, wanted: Option<&Value>, found: Option<&Value>) {
        match (wanted, found) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    let path = match path {
                        "" => key.clone(),
                        _ => format!("{path}.{key}"),
                    };
                    self.compare(&path, a.get(key), b.get(key));
                }
            }
            (wanted, found) if !same(wanted, found) => self.fields.push(FieldDiff {
                field: path.to_owned(),
                wanted: wanted.cloned(),
                found: found.cloned(),
                wanted_from: None,
                found_from: None,
            }),
            _ => {}
        }
    }
}

/// Equality as the canonical form has it: 1 and 1.0 are one number.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a == b || a.as_f64() == b.as_f64(),
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => a == b,
    }
}

/// A value as a person reads it: text without quotes, ids shortened to 12 digits, nothing as `none`.
pub fn readable(value: Option<&Value>) -> String {
    match value {
        None => "(no such field)".into(),
        Some(Value::Null) => "none".into(),
        // As `Digest::short`, which a person finds again in other messages.
        Some(Value::String(text)) if is_id(text) => format!("{}...", &text[..12]),
        // Templates have line ends.
        Some(Value::String(text)) => shown::line(text),
        Some(Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| readable(Some(item))).collect();
            format!("[{}]", items.join(", "))
        }
        Some(Value::Object(_)) => "(a group of fields)".into(),
        Some(other) => other.to_string(),
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Diff {
    /// A table of field and both values under these heads, and below each row where the values come from.
    pub fn table(&self, wanted: &str, found: &str) -> String {
        let mut rows = vec![["field".to_owned(), wanted.to_owned(), found.to_owned()]];
        rows.extend(self.fields.iter().map(|d| {
            [
                d.field.clone(),
                readable(d.wanted.as_ref()),
                readable(d.found.as_ref()),
            ]
        }));
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let (first, second) = (width(0), width(1));
        let mut lines = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            lines.push(format!("{:first$}  {:second$}  {}", row[0], row[1], row[2]));
            let Some(diff) = at.checked_sub(1).and_then(|at| self.fields.get(at)) else {
                continue;
            };
            for (head, from) in [(wanted, &diff.wanted_from), (found, &diff.found_from)] {
                if let Some(from) = from {
                    lines.push(format!("    {head}: {from}"));
                }
            }
        }
        lines.join("\n")
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table("wanted", "found"))
    }
}
