//! JSON whose objects keep the order of their fields: PEFT takes the first pattern of an object that fits.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::shown;

#[derive(Clone, Debug)]
pub(super) enum Json {
    /// Fields in order; of one that is there twice the last value, at the place of the first, as in Python.
    Object(Vec<(String, Self)>),
    /// Of a list only how long it is: nothing that is read here is a list.
    List(usize),
    Plain(Value),
}

impl Json {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Plain(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// What Python takes for false.
    pub(super) fn is_off(&self) -> bool {
        match self {
            Self::Object(fields) => fields.is_empty(),
            Self::List(length) => *length == 0,
            Self::Plain(Value::Null | Value::Bool(false)) => true,
            Self::Plain(Value::String(text)) => text.is_empty(),
            Self::Plain(Value::Number(number)) => number.as_f64() == Some(0.0),
            Self::Plain(_) => false,
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(_) => f.write_str("an object"),
            Self::List(length) => write!(f, "a list of {length}"),
            Self::Plain(value) => write!(f, "{}", shown::text(&value.to_string())),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Plain(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Plain(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Plain(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Plain(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Plain(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Plain(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut length = 0;
        while list.next_element::<Json>()?.is_some() {
            length += 1;
        }
        Ok(Json::List(length))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            match places.get(&key) {
                Some(&place) => {
                    let (_, there): &mut (String, Json) = &mut fields[place];
                    *there = value;
                }
                None => {
                    places.insert(key.clone(), fields.len());
                    fields.push((key, value));
                }
            }
        }
        Ok(Json::Object(fields))
    }
}
