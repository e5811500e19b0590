//! What the Python package ftfy's `fix_text` does with its defaults: it mends text that was decoded wrongly, and makes
//! entities, ligatures, full-width letters, curly quotes, line breaks and control characters plain.
//!
//! The tables are ftfy's own, of two of its versions; `tools/ftfy_tables.py` wrote them. The code is not ftfy's.

mod bytes;
mod encoding;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;
use tokenizers::utils::SysRegex;

use super::{html, python};
use encoding::Encodings;

/// More rounds than any text needs; ftfy has no bound.
const MOST_ROUNDS: usize = 64;

/// A version of ftfy: they differ in what they take for text that was decoded wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum Version {
    /// 6.1.1, of February 2022 to November 2023.
    V6_1,
    /// 6.3.1, since October 2024.
    V6_3,
}

/// The tables of characters and entities.
#[derive(Deserialize)]
pub(super) struct Tables {
    /// What each entity is, by its name without the `&`; many also without the semicolon.
    pub(super) entities: BTreeMap<String, String>,
    /// The entities whose names ftfy also takes in capitals.
    pub(super) upper: BTreeMap<String, String>,
    /// What HTML has for numbers that are no characters of text, such as 0x80.
    pub(super) references: BTreeMap<u32, String>,
    /// The numbers that HTML drops.
    pub(super) nothing: BTreeSet<u32>,
    ligatures: BTreeMap<char, String>,
    widths: BTreeMap<char, String>,
    versions: BTreeMap<String, Encodings>,
}

struct Loaded {
    tables: Tables,
    terminal_escape: SysRegex,
}

/// The tables, read when they are first asked for.
fn loaded() -> Result<&'static Loaded, String> {
    static LOADED: LazyLock<Result<Loaded, String>> = LazyLock::new(|| {
        let mut tables: Tables =
            serde_json::from_str(include_str!("ftfy/tables.json")).map_err(|e| e.to_string())?;
        for encodings in tables.versions.values_mut() {
            encodings.prepare()?;
        }
        Ok(Loaded {
            tables,
            terminal_escape: python::regex(r"\x1b\[[\p{Nd};]*[a-zA-Z]")?,
        })
    });
    LOADED.as_ref().map_err(Clone::clone)
}

/// `html.unescape(html.unescape(text))`.
pub(in crate::text) fn unescaped_twice(text: &str) -> Result<String, String> {
    let tables = &loaded()?.tables;
    Ok(html::unescape(tables, &html::unescape(tables, text)))
}

/// `ftfy.fix_text(text)`.
pub(in crate::text) fn fix_text(version: Version, text: &str) -> Result<String, String> {
    let loaded = loaded()?;
    let name = match version {
        Version::V6_1 => "6.1",
        Version::V6_3 => "6.3",
    };
    let encodings = (loaded.tables.versions.get(name)).ok_or("ftfy's tables lack a version")?;
    let mut fixed = String::with_capacity(text.len());
    let mut unescapes = true;
    for line in text.split_inclusive('\n') {
        // From the first `<` on the text counts as HTML, whose entities are meant.
        unescapes &= !line.contains('<');
        fixed += &line_fixed(loaded, encodings, line, unescapes);
    }
    Ok(fixed)
}

fn line_fixed(loaded: &Loaded, encodings: &Encodings, line: &str, unescapes: bool) -> String {
    let tables = &loaded.tables;
    let mut text = line.to_owned();
    for _ in 0..MOST_ROUNDS {
        let mut next = if unescapes {
            html::unescape_cautiously(tables, &text)
        } else {
            text.clone()
        };
        next = encodings.fixed(next);
        next = plain_characters(tables, encodings, &next);
        next = plain_line_breaks(&next);
        next = python::replaced(&loaded.terminal_escape, &next, |_| String::new());
        next.retain(|c| !is_control(c));
        next = python::nfc(&next);
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// C1 controls as Windows-1252 has them, then ligatures, widths and quotes.
fn plain_characters(tables: &Tables, encodings: &Encodings, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut own = [0; 4];
    for c in text.chars() {
        let c = encodings.without_c1(c);
        let ligature = tables.ligatures.get(&c).map(String::as_str);
        for c in ligature.unwrap_or(c.encode_utf8(&mut [0; 4])).chars() {
            let width = tables.widths.get(&c).map(String::as_str);
            let plain = width.unwrap_or(c.encode_utf8(&mut own));
            out.extend(plain.chars().map(straight_quote));
        }
    }
    out
}

fn straight_quote(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        other => other,
    }
}

fn plain_line_breaks(text: &str) -> String {
    (text.replace("\r\n", "\n")).replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n")
}

/// What ftfy removes: ASCII's controls but those of white space, and format characters that nobody means.
fn is_control(c: char) -> bool {
    matches!(c,
        '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f'
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}
