//! What a data set says of its clips: how many frames a window has, and which windows there are.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Frames of a window: a number, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum FrameCounts {
    /// One number.
    One(u32),
    /// Windows of each of these lengths.
    Several(Vec<u32>),
}

impl FrameCounts {
    /// The numbers, in their order.
    pub fn numbers(&self) -> &[u32] {
        match self {
            Self::One(number) => std::slice::from_ref(number),
            Self::Several(numbers) => numbers,
        }
    }
}

impl<'de> Deserialize<'de> for FrameCounts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Counts;

        impl<'de> Visitor<'de> for Counts {
            type Value = FrameCounts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of frames, or a list of such numbers")
            }

            fn visit_u64<E: Error>(self, frames: u64) -> Result<FrameCounts, E> {
                // What is larger is out of range as well.
                Ok(FrameCounts::One(u32::try_from(frames).unwrap_or(u32::MAX)))
            }

            fn visit_i64<E: Error>(self, frames: i64) -> Result<FrameCounts, E> {
                self.visit_u64(u64::try_from(frames).unwrap_or(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FrameCounts, A::Error> {
                let mut counts = Vec::new();
                while let Some(count) = list.next_element()? {
                    counts.push(count);
                }
                Ok(FrameCounts::Several(counts))
            }
        }

        from.deserialize_any(Counts)
    }
}

impl JsonSchema for FrameCounts {
    fn schema_name() -> Cow<'static, str> {
        "FrameCounts".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let count = json_schema!({ "type": "integer", "format": "uint32", "minimum": 1 });
        json_schema!({
            "description": "A number of frames, or several.",
            "anyOf": [count, { "type": "array", "items": count, "minItems": 1 }],
        })
    }
}

/// Which windows of a clip there are, as musubi-tuner's `frame_extraction` has it. Each is told in words: `head`, `uniform:4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Windows {
    /// The first frames.
    #[default]
    Head,
    /// One after the other, as many as fit.
    Chunk,
    /// So many, evenly spread from the beginning to the end; they may overlap.
    Uniform(u32),
    /// One every so many frames.
    Slide(u32),
    /// As much of it as there is, up to the number of frames.
    Full,
}

const EXPECTED: &str = "expected \"head\", \"chunk\", \"uniform:4\" (so many, 2 to 1000), \"slide:8\" (one every 8 frames, 1 to 10000) or \"full\"";

impl FromStr for Windows {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = match text.split_once(':') {
            None => (text, None),
            Some((name, number)) => (name, Some(number.parse::<u32>().map_err(|_| EXPECTED)?)),
        };
        match (name, number) {
            ("head", None) => Ok(Self::Head),
            ("chunk", None) => Ok(Self::Chunk),
            ("full", None) => Ok(Self::Full),
            // One would be `head`.
            ("uniform", Some(count @ 2..=1000)) => Ok(Self::Uniform(count)),
            ("slide", Some(stride @ 1..=10_000)) => Ok(Self::Slide(stride)),
            _ => Err(EXPECTED),
        }
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Chunk => f.write_str("chunk"),
            Self::Uniform(count) => write!(f, "uniform:{count}"),
            Self::Slide(stride) => write!(f, "slide:{stride}"),
            Self::Full => f.write_str("full"),
        }
    }
}

impl Serialize for Windows {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Windows {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Windows {
    fn schema_name() -> Cow<'static, str> {
        "Windows".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Which windows of a clip there are: `head`, its first frames; `chunk`, one after the other, as many as fit; `uniform:4`, so many, evenly spread; `slide:8`, one every 8 frames; `full`, as much of it as there is, up to `frames`.",
            "type": "string",
            "pattern": "^(head|chunk|full|uniform:[0-9]+|slide:[0-9]+)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Windows;

    #[test]
    fn windows_are_told_in_words() {
        for text in ["head", "chunk", "full", "uniform:4", "slide:1"] {
            let windows: Windows = text.parse().expect(text);
            assert_eq!(windows.to_string(), text);
        }
        for text in [
            "",
            "heads",
            "head:2",
            "uniform",
            "uniform:1",
            "slide:0",
            "slide:-1",
            "uniform:x",
            "full:81",
        ] {
            let error = text.parse::<Windows>().expect_err(text);
            assert!(error.starts_with("expected"), "{error}");
        }
    }
}
