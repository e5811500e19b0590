//! TOML, with the lines of its keys.

use toml::de::{DeTable, DeValue};

use crate::foreign::config::tree::{Budget, Entry, Node, Value};
use crate::shown;

/// Reads a text as TOML.
///
/// # Errors
/// If it is none (a key that stands twice is an error of TOML), or beyond the bounds.
pub(super) fn read(text: &str, budget: &mut Budget) -> Result<Node, String> {
    let lines = Lines::of(text);
    let table = DeTable::parse(text).map_err(|e| {
        let line = lines.at(e.span().map_or(0, |span| span.start));
        let message = e.message().trim().replace('\n', ", ");
        format!("line {line} is not TOML: {}", shown::text(&message))
    })?;
    let mut reader = Reader { lines, budget };
    let value = reader.table(table.get_ref(), 0)?;
    Ok(Node { line: None, value })
}

/// Where lines begin, in bytes.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(
            std::iter::once(0)
                .chain(ends.map(|(at, _)| at + 1))
                .collect(),
        )
    }

    /// The line of a place, from 1.
    fn at(&self, place: usize) -> usize {
        self.0.partition_point(|begin| *begin <= place)
    }
}

struct Reader<'a> {
    lines: Lines,
    budget: &'a mut Budget,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, depth: usize) -> Result<Value, String> {
        let mut entries = Vec::new();
        for (key, value) in table {
            let line = Some(self.lines.at(key.span().start));
            let value_line = Some(self.lines.at(value.span().start));
            let node = Node {
                line: value_line,
                value: self.value(value.get_ref(), depth + 1)?,
            };
            entries.push(Entry {
                key: key.get_ref().to_string(),
                line,
                node,
            });
        }
        // The table is sorted by key; a person reads a file from its top.
        entries.sort_by_key(|entry| entry.line);
        Ok(Value::Table(entries))
    }

    fn value(&mut self, value: &DeValue<'_>, depth: usize) -> Result<Value, String> {
        self.budget.take(1, depth)?;
        Ok(match value {
            DeValue::Table(table) => self.table(table, depth)?,
            DeValue::Array(list) => {
                let mut items = Vec::new();
                for item in list {
                    items.push(Node {
                        line: Some(self.lines.at(item.span().start)),
                        value: self.value(item.get_ref(), depth + 1)?,
                    });
                }
                Value::List(items)
            }
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Datetime(date) => Value::Text(date.to_string()),
            DeValue::Integer(number) => {
                let whole = i64::from_str_radix(number.as_str(), number.radix());
                whole.map_or_else(|_| Value::Text(number.to_string()), Value::Integer)
            }
            DeValue::Float(number) => {
                let real = number.as_str().parse();
                real.map_or_else(|_| Value::Text(number.to_string()), Value::Number)
            }
        })
    }
}
