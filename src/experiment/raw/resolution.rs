//! A data set's resolution: a number, or two.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The size whose area every bucket has about, in px.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Resolution {
    /// The side of a square.
    Side(u32),
    /// Width and height.
    Sides([u32; 2]),
}

impl Resolution {
    /// Width and height, in px.
    pub fn sides(self) -> [u32; 2] {
        match self {
            Self::Side(side) => [side; 2],
            Self::Sides(sides) => sides,
        }
    }
}

impl<'de> Deserialize<'de> for Resolution {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Sides;
        impl<'de> Visitor<'de> for Sides {
            type Value = Resolution;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of px, or [width, height]")
            }

            fn visit_u64<E: Error>(self, side: u64) -> Result<Resolution, E> {
                // What is larger is out of range as well.
                Ok(Resolution::Side(u32::try_from(side).unwrap_or(u32::MAX)))
            }

            fn visit_i64<E: Error>(self, side: i64) -> Result<Resolution, E> {
                self.visit_u64(u64::try_from(side).unwrap_or(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Resolution, A::Error> {
                let mut next = |n| {
                    let side = sides.next_element()?;
                    side.ok_or_else(|| A::Error::invalid_length(n, &self))
                };
                let found = [next(0)?, next(1)?];
                match sides.next_element::<u32>()? {
                    None => Ok(Resolution::Sides(found)),
                    Some(_) => Err(A::Error::invalid_length(3, &self)),
                }
            }
        }
        from.deserialize_any(Sides)
    }
}

impl JsonSchema for Resolution {
    fn schema_name() -> Cow<'static, str> {
        "Resolution".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let side = json_schema!({ "type": "integer", "format": "uint32", "minimum": 0 });
        json_schema!({
            "description": "The side of a square in px, or width and height.",
            "anyOf": [side, { "type": "array", "items": side, "minItems": 2, "maxItems": 2 }],
        })
    }
}
