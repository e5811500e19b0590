//! JSON, with keys that stand twice kept twice.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use crate::foreign::config::tree::{Budget, Entry, Node, Value};
use crate::shown;

/// Reads a text as JSON.
///
/// # Errors
/// If it is none, or beyond the bounds.
pub(super) fn read(text: &str, budget: &mut Budget) -> Result<Node, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let seed = Seed { budget, depth: 0 };
    let node = seed.deserialize(&mut reader).and_then(|node| {
        reader.end()?;
        Ok(node)
    });
    node.map_err(|e| format!("it is not JSON: {}", shown::text(&e.to_string())))
}

struct Seed<'a> {
    budget: &'a mut Budget,
    depth: usize,
}

impl Seed<'_> {
    fn inner(&mut self) -> Seed<'_> {
        Seed {
            budget: self.budget,
            depth: self.depth + 1,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        self.budget.take(1, self.depth).map_err(D::Error::custom)?;
        let value = from.deserialize_any(self)?;
        Ok(Node { line: None, value })
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        let whole = i64::try_from(number).map(Value::Integer);
        Ok(whole.unwrap_or(Value::Number(number as f64)))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut table: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = table.next_key::<String>()? {
            let node = table.next_value_seed(self.inner())?;
            entries.push(Entry {
                key,
                line: None,
                node,
            });
        }
        Ok(Value::Table(entries))
    }
}
