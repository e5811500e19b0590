//! Text that was decoded by the wrong table: UTF-8 read as if it were one of the single-byte encodings.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tokenizers::utils::SysRegex;

use super::bytes;
use crate::text::tokenizer::python;

/// The encodings in the order in which they are tried.
const ORDER: [&str; 10] = [
    "latin-1",
    WINDOWS_1252,
    "sloppy-windows-1251",
    "sloppy-windows-1250",
    "sloppy-windows-1253",
    "sloppy-windows-1254",
    "sloppy-windows-1257",
    "iso-8859-2",
    MAC_ROMAN,
    "cp437",
];
const WINDOWS_1252: &str = "sloppy-windows-1252";
const MAC_ROMAN: &str = "macroman";

/// More steps than any text needs; ftfy has no bound.
const MOST_STEPS: usize = 64;

/// What a version of ftfy knows of encodings.
#[derive(Deserialize)]
pub(super) struct Encodings {
    /// By name, the characters of the bytes from 0x80.
    encodings: BTreeMap<String, String>,
    /// Finds what is likely decoded wrongly.
    bad: String,
    /// The characters that may begin a sequence of 2, 3 and 4.
    starts: [String; 3],
    /// Those that may follow.
    continuation: String,
    /// Those before which no sequence begins.
    strict: String,
    #[serde(skip)]
    prepared: Prepared,
}

#[derive(Default)]
struct Prepared {
    /// In the order in which they are tried.
    order: Vec<Encoding>,
    bad: Option<SysRegex>,
    starts: [BTreeSet<char>; 3],
    continuation: BTreeSet<char>,
    strict: BTreeSet<char>,
    /// Of Windows-1252, from 0x80.
    windows_1252: Vec<char>,
}

struct Encoding {
    name: &'static str,
    bytes: BTreeMap<char, u8>,
}

impl Encodings {
    /// Makes what is looked up of what was read.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        let prepared = &mut self.prepared;
        prepared.bad = Some(python::regex(&self.bad)?);
        prepared.starts = [0, 1, 2].map(|n| self.starts[n].chars().collect());
        prepared.continuation = self.continuation.chars().collect();
        prepared.strict = self.strict.chars().collect();
        for name in ORDER {
            if let Some(high) = self.encodings.get(name) {
                prepared.order.push(Encoding::new(name, high));
            }
        }
        let windows_1252 = self.encodings.get(WINDOWS_1252).ok_or("no Windows-1252")?;
        prepared.windows_1252 = windows_1252.chars().collect();
        Ok(())
    }

    /// `text` with what was decoded wrongly mended, as often as that changes anything.
    pub(super) fn fixed(&self, mut text: String) -> String {
        for _ in 0..MOST_STEPS {
            match self.step(&text) {
                Some(next) if next != text => text = next,
                _ => break,
            }
        }
        text
    }

    fn is_bad(&self, text: &str) -> bool {
        let bad = self.prepared.bad.as_ref();
        !text.is_ascii() && bad.is_some_and(|bad| python::is_found(bad, text))
    }

    /// One step; `None`: there is nothing to mend.
    fn step(&self, text: &str) -> Option<String> {
        if !self.is_bad(text) {
            return None;
        }
        for encoding in &self.prepared.order {
            let mended = encoding
                .encode(text)
                .and_then(|b| self.mended(encoding, &b));
            if mended.is_some() {
                return mended;
            }
        }
        let partly = self.parts_fixed(text);
        if partly != text {
            return Some(partly);
        }
        // C1 controls are read as Windows-1252; where there are none, nothing has changed.
        Some(text.chars().map(|c| self.without_c1(c)).collect())
    }

    fn mended(&self, encoding: &Encoding, encoded: &[u8]) -> Option<String> {
        // Since 6.2: in MacRoman an en dash and a space would be taken for a space that was lost.
        let is_after_6_1 = self.encodings.contains_key("sloppy-windows-1257");
        let mut encoded = encoded.to_vec();
        if !(is_after_6_1 && encoding.name == MAC_ROMAN) {
            encoded = bytes::with_no_break_spaces(&encoded);
        }
        if encoding.is_sloppy() {
            encoded = bytes::with_losses_replaced(&encoded);
        }
        bytes::decoded(&encoded)
    }

    /// A C1 control as Windows-1252 has it.
    pub(super) fn without_c1(&self, c: char) -> char {
        match c {
            '\u{80}'..='\u{9f}' => {
                let at = usize::try_from(u32::from(c) - 0x80).unwrap_or(usize::MAX);
                self.prepared.windows_1252.get(at).copied().unwrap_or(c)
            }
            other => other,
        }
    }

    /// `text` with the sequences inside it mended that look like UTF-8.
    fn parts_fixed(&self, text: &str) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        while at < chars.len() {
            let end = self.sequences_end(&chars, at);
            if end == at {
                out.push(chars[at]);
                at += 1;
                continue;
            }
            let part: String = chars[at..end].iter().collect();
            // The whole would be mended by itself without end.
            if end - at < chars.len() && self.is_bad(&part) {
                out += &self.fixed(part);
            } else {
                out += &part;
            }
            at = end;
        }
        out
    }

    /// Where the sequences end that begin at `start`; `start` itself if none does.
    fn sequences_end(&self, chars: &[char], start: usize) -> usize {
        let prepared = &self.prepared;
        if start > 0 && prepared.strict.contains(&chars[start - 1]) {
            return start;
        }
        let mut at = start;
        loop {
            let follow = |n: usize| {
                let following = chars.get(at + 1..=at + n);
                following.is_some_and(|f| f.iter().all(|c| prepared.continuation.contains(c)))
            };
            let is_one = |n: &usize| {
                chars
                    .get(at)
                    .is_some_and(|c| prepared.starts[n - 1].contains(c))
                    && follow(*n)
            };
            match (1..=3).find(is_one) {
                None => return at,
                Some(n) => at += n + 1,
            }
        }
    }
}

impl Encoding {
    fn new(name: &'static str, high: &str) -> Self {
        let mut bytes: BTreeMap<char, u8> = high.chars().zip(0x80..=0xFF).collect();
        for byte in 0..0x80 {
            bytes.insert(char::from(byte), byte);
        }
        if name.starts_with("sloppy-") {
            bytes.remove(&char::from(bytes::LOST));
            bytes.insert(char::REPLACEMENT_CHARACTER, bytes::LOST);
        }
        Self { name, bytes }
    }

    fn is_sloppy(&self) -> bool {
        self.name.starts_with("sloppy-")
    }

    /// The bytes of `text`, if it could have been read with this encoding.
    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.bytes.get(&c).copied()).collect()
    }
}
