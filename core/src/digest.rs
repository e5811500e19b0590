//! Two kinds of identity, kept apart by type.
//!
//! - [`Digest`] is the id of *bytes*: BLAKE3 of a payload, a file, or a canonical set of weights.
//! - [`Fingerprint`] is the id of *inputs*: BLAKE3 of the canonical form of a description
//!   (an encoder's spec, or a spec together with a caption).
//!
//! The canonical form is RFC 8785 JSON, so that any language can compute the same fingerprint:
//! `blake3(rfc8785(value))`. This file knows nothing of what is described.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::shown;

/// The text is not an id.
#[derive(Debug, thiserror::Error)]
#[error("not an id: expected 64 lower-case hexadecimal digits, found `{}`", shown::text(.0))]
pub struct MalformedId(String);

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The 32 raw bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// From 32 raw bytes, as [`Self::as_bytes`] gives them.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The first 12 hexadecimal digits, for messages; never an identity.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;

            fn from_str(text: &str) -> Result<Self, MalformedId> {
                let malformed = || MalformedId(text.to_owned());
                // blake3 reads upper case too, but ids are file names and JSON strings: each has one spelling.
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(malformed());
                }
                blake3::Hash::from_hex(text).map(|h| Self(*h.as_bytes())).map_err(|_| malformed())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        // By hand, without a `String` for each: runs and headers list millions.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

id_type!(
    /// The id of bytes: BLAKE3 of them.
    Digest
);
id_type!(
    /// The id of inputs: BLAKE3 of the canonical form of their description.
    Fingerprint
);

/// From how many bytes on several threads digest faster than one: to wake the others takes a thread that is none of them about 0.1 ms, in
/// which it digests 0.7 MB itself (measured on Zen 5).
const PARALLEL_BYTES: usize = 4 << 20;

impl Digest {
    /// The digest of `bytes`, by the calling thread alone.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of `pieces`, one after the other, each by several threads where it is large. Not for who holds a lock: the thread may
    /// do other work of the pool meanwhile, and that may want the same lock.
    pub fn of_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for piece in pieces {
            if piece.len() < PARALLEL_BYTES {
                hasher.update(piece);
            } else {
                hasher.update_rayon(piece);
            }
        }
        Self::from(hasher.finalize())
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl Fingerprint {
    /// The fingerprint of a description: BLAKE3 of its canonical JSON, see [`canonical_json`].
    pub fn of(description: &impl Serialize) -> Self {
        Self::of_canonical(&canonical_json(description))
    }

    /// The fingerprint of a description that has this canonical JSON.
    pub fn of_canonical(json: &[u8]) -> Self {
        Self(*blake3::hash(json).as_bytes())
    }
}

/// RFC 8785 JSON: keys sorted by UTF-16 code units, no white space, numbers as ECMAScript prints them.
///
/// JSON has no NaN and no infinity, and serde_json writes `null` for one inside a structure. So whatever reads a number that is
/// described (a model's configuration, a tokenizer, an Experiment) refuses those that are not finite.
///
/// # Panics
/// For a map with keys that are not text, or a bare number that is not finite, neither of which is a description's type.
pub fn canonical_json(value: &impl Serialize) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value)
        .expect("a structure, a list or JSON, in which every key is text and there once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_digest_of_the_whole() {
        let bytes: Vec<u8> = (0..3 * PARALLEL_BYTES).map(|i| (i % 251) as u8).collect();
        for at in [0, 1, 1023, PARALLEL_BYTES, 2 * PARALLEL_BYTES + 77] {
            let (left, right) = bytes.split_at(at);
            assert_eq!(Digest::of_pieces([left, right]), Digest::of(&bytes), "{at}");
        }
    }

    #[test]
    fn an_id_survives_its_text_form_and_rejects_others() {
        let id = Digest::of(b"plumb");
        assert_eq!(id.to_string().parse::<Digest>().expect("own text"), id);
        for bad in [
            "",
            "ab",
            &id.to_string().to_uppercase(),
            &format!("{id}0"),
            &"g".repeat(64),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad} was taken");
        }
        let foreign = format!("\u{1b}[31m{}", "z".repeat(5000));
        let refusal = foreign.parse::<Digest>().expect_err("no id").to_string();
        assert!(
            refusal.len() < 1000 && !refusal.contains('\u{1b}'),
            "{refusal}"
        );
    }

    #[test]
    fn an_id_in_json_is_its_text() {
        let id = Fingerprint::of_canonical(b"{}");
        let json = serde_json::to_string(&[id]).expect("JSON");
        assert_eq!(json, format!("[\"{id}\"]"));
        assert_eq!(
            serde_json::from_str::<[Fingerprint; 1]>(&json).expect("own JSON"),
            [id]
        );
        // With an escape the text is not borrowed from the JSON.
        let escaped = json.replacen(
            &id.to_string()[..1],
            &format!("\\u00{:x}", id.to_string().as_bytes()[0]),
            1,
        );
        assert_eq!(
            serde_json::from_str::<[Fingerprint; 1]>(&escaped).expect("the same"),
            [id]
        );
        for bad in ["1", "null", "\"\"", "[]"] {
            assert!(
                serde_json::from_str::<Digest>(bad).is_err(),
                "{bad} was taken"
            );
        }
    }

    #[test]
    fn canonical_json_sorts_by_utf16_and_prints_numbers_as_ecmascript() {
        let value =
            serde_json::json!({"\u{e9}": 1e-6, "b": 1.0, "a": [1, "\u{1F600}"], "\u{1F600}": null});
        let text = String::from_utf8(canonical_json(&value)).expect("UTF-8");
        assert_eq!(
            text,
            "{\"a\":[1,\"\u{1F600}\"],\"b\":1,\"\u{e9}\":0.000001,\"\u{1F600}\":null}"
        );
    }

    #[test]
    #[should_panic(expected = "a structure, a list or JSON")]
    fn a_bare_number_that_json_cannot_hold_has_no_canonical_form() {
        canonical_json(&f64::NAN);
    }
}
