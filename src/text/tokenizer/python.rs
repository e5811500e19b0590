//! Functions of Python's on text, in whose terms the programs are written that a recipe follows.

use tokenizers::NormalizedString;
use tokenizers::utils::SysRegex;

/// Python's `str.isspace`: Unicode's white space and the four separators of ASCII.
pub(in crate::text) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `" ".join(text.split())`: runs of white space as one space, none at the ends.
pub(in crate::text) fn joined_words(text: &str) -> String {
    let words: Vec<&str> = (text.split(is_space)).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

/// `unicodedata.normalize("NFC", text)`.
pub(in crate::text) fn nfc(text: &str) -> String {
    // What is ASCII is composed.
    if text.is_ascii() {
        return text.to_owned();
    }
    let mut normalized = NormalizedString::from(text);
    normalized.nfc();
    normalized.get().to_owned()
}

/// An expression of a constant or a table that is known to be one.
pub(in crate::text) fn regex(expression: &str) -> Result<SysRegex, String> {
    SysRegex::new(expression).map_err(|e| e.to_string())
}

/// Whether `expression` matches anywhere in `text`.
pub(in crate::text) fn is_found(expression: &SysRegex, text: &str) -> bool {
    expression.find_iter(text).next().is_some()
}

/// `re.sub`: `text` with what `expression` finds replaced.
pub(in crate::text) fn replaced(
    expression: &SysRegex,
    text: &str,
    mut by: impl FnMut(&str) -> String,
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for (start, stop) in expression.find_iter(text) {
        out += &text[end..start];
        out += &by(&text[start..stop]);
        end = stop;
    }
    out + &text[end..]
}
