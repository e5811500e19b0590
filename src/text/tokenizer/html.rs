//! HTML entities: Python's `html.unescape`, and the cautious one of the package ftfy.

use super::ftfy::Tables;

/// The longest name that `html.unescape` looks for.
const LONGEST_NAME: usize = 32;
/// The longest that ftfy does.
const LONGEST_CAUTIOUS: usize = 24;

/// `html.unescape(text)`, as a browser would: also without the semicolon, and where a name only begins with an entity's.
pub(super) fn unescape(tables: &Tables, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out += &rest[..at];
        rest = &rest[at..];
        let length = reference_length(&rest[1..]);
        match length {
            None => out.push('&'),
            Some(length) => out += &replacement(tables, &rest[1..=length]),
        }
        rest = &rest[1 + length.unwrap_or(0)..];
    }
    out + rest
}

/// The bytes of a reference behind its `&`: a number or a name, and a semicolon if there is one.
fn reference_length(text: &str) -> Option<usize> {
    let digits = |from: usize, is: fn(&u8) -> bool| {
        let count = text.as_bytes()[from..].iter().take_while(|b| is(b)).count();
        (count > 0).then_some(from + count)
    };
    let length = match text.as_bytes() {
        [b'#', b'x' | b'X', ..] => digits(2, u8::is_ascii_hexdigit)?,
        [b'#', ..] => digits(1, u8::is_ascii_digit)?,
        _ => name_length(text)?,
    };
    Some(length + usize::from(text[length..].starts_with(';')))
}

fn name_length(text: &str) -> Option<usize> {
    let ends = |c: char| matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';');
    let mut length = 0;
    for c in text.chars().take(LONGEST_NAME).take_while(|c| !ends(*c)) {
        length += c.len_utf8();
    }
    (length > 0).then_some(length)
}

fn replacement(tables: &Tables, reference: &str) -> String {
    if let Some(number) = reference.strip_prefix('#') {
        return of_number(tables, number.trim_end_matches(';'));
    }
    if let Some(text) = tables.entities.get(reference) {
        return text.clone();
    }
    // The longest entity that the name begins with; of two characters at least.
    let ends = reference.char_indices().skip(2).map(|(at, _)| at);
    for end in ends.collect::<Vec<_>>().into_iter().rev() {
        if let Some(text) = tables.entities.get(&reference[..end]) {
            return format!("{text}{}", &reference[end..]);
        }
    }
    format!("&{reference}")
}

fn of_number(tables: &Tables, number: &str) -> String {
    let code = match number.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => number.parse(),
    };
    // What no u32 holds is beyond Unicode all the more.
    let Ok(code) = code else {
        return char::REPLACEMENT_CHARACTER.to_string();
    };
    if let Some(text) = tables.references.get(&code) {
        return text.clone();
    }
    match char::from_u32(code) {
        None => char::REPLACEMENT_CHARACTER.to_string(),
        Some(_) if tables.nothing.contains(&code) => String::new(),
        Some(c) => c.to_string(),
    }
}

/// As ftfy: only with the semicolon, and names in capitals where that is no other entity.
pub(super) fn unescape_cautiously(tables: &Tables, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out += &rest[..at];
        rest = &rest[at..];
        let length = cautious_length(rest);
        match length {
            None => out.push('&'),
            Some(length) => out += &cautious(tables, &rest[..length]),
        }
        rest = &rest[length.unwrap_or(1)..];
    }
    out + rest
}

/// The bytes of `&name;` or `&#number;`.
fn cautious_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let from = 1 + usize::from(bytes.get(1) == Some(&b'#'));
    let count = (bytes[from..].iter())
        .take_while(|b| b.is_ascii_alphanumeric())
        .count();
    let is_one = (1..=LONGEST_CAUTIOUS).contains(&count) && bytes.get(from + count) == Some(&b';');
    is_one.then_some(from + count + 1)
}

fn cautious(tables: &Tables, reference: &str) -> String {
    let name = &reference[1..];
    if let Some(text) = (tables.entities.get(name)).or_else(|| tables.upper.get(name)) {
        return text.clone();
    }
    if name.starts_with('#') {
        let text = unescape(tables, reference);
        // A semicolon is left where only a part was a number.
        if !text.contains(';') {
            return text;
        }
    }
    reference.to_owned()
}
