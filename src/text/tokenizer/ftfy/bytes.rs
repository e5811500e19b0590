//! Bytes that are nearly UTF-8.

/// A byte that a sloppy encoding has for a character that was lost.
pub(super) const LOST: u8 = 0x1A;

fn is_continuation(byte: u8) -> bool {
    (0x80..=0xBF).contains(&byte)
}

/// `bytes` with spaces made no-break spaces again where that makes UTF-8.
pub(super) fn with_no_break_spaces(bytes: &[u8]) -> Vec<u8> {
    let bytes = with_a_grave_words(bytes);
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.as_slice();
    while let Some(first) = rest.first() {
        match altered_length(rest) {
            None => {
                out.push(*first);
                rest = &rest[1..];
            }
            Some(length) => {
                let (altered, after) = rest.split_at(length);
                out.extend(altered.iter().map(|b| if *b == b' ' { 0xA0 } else { *b }));
                rest = after;
            }
        }
    }
    out
}

/// `bytes` with an a grave that stands as a word of its own keeping the space after it; the contractions of Portuguese
/// that go on behind it do not.
fn with_a_grave_words(bytes: &[u8]) -> Vec<u8> {
    const GOES_ON: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let after = rest.strip_prefix(b"\xc3 ");
        match after.filter(|after| !GOES_ON.iter().any(|word| after.starts_with(word))) {
            Some(after) => {
                out.extend(b"\xc3\xa0 ");
                rest = after;
            }
            None => {
                out.push(*first);
                rest = &rest[1..];
            }
        }
    }
    out
}

/// How many bytes at the beginning would be a character if their space were a no-break space.
fn altered_length(bytes: &[u8]) -> Option<usize> {
    let follows = |b: u8| is_continuation(b) && b != 0x85 && b != 0xA0;
    match *bytes {
        [0xC2 | 0xC3 | 0xC5 | 0xCE | 0xD0 | 0xD9, b' ', ..] => Some(2),
        [0xE2 | 0xE3, b' ', c, ..] if follows(c) => Some(3),
        [0xE0..=0xE3, c, b' ', ..] if follows(c) => Some(3),
        [0xF0, b' ', c, d, ..] if is_continuation(c) && is_continuation(d) => Some(4),
        [0xF0, c, b' ', d, ..] if is_continuation(c) && is_continuation(d) => Some(4),
        [0xF0, c, d, b' ', ..] if is_continuation(c) && is_continuation(d) => Some(4),
        _ => None,
    }
}

/// `bytes` with the sequences that lost a byte as replacement characters.
pub(super) fn with_losses_replaced(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        match lossy_length(rest) {
            None => {
                out.push(*first);
                rest = &rest[1..];
            }
            Some(length) => {
                out.extend("\u{fffd}".bytes());
                rest = &rest[length..];
            }
        }
    }
    out
}

fn lossy_length(bytes: &[u8]) -> Option<usize> {
    // A byte that was lost, one that is there or was lost to a substitute, and either.
    let lost = |b: u8| b == LOST || b == b'?';
    let kept = |b: u8| b == LOST || is_continuation(b);
    let any = |b: u8| lost(b) || is_continuation(b);
    match *bytes {
        [0xC2..=0xDF, LOST, ..] | [0xC2..=0xC3, b'?', ..] => Some(2),
        [0xED, 0xA0..=0xAF, b, 0xED, 0xB0..=0xBF, d, ..]
            if (lost(b) && any(d)) || (any(b) && lost(d)) =>
        {
            Some(6)
        }
        [0xE0..=0xEF, b, c, ..] if (lost(b) && kept(c)) || (kept(b) && lost(c)) => Some(3),
        [0xF0..=0xF4, b, c, d, ..]
            if (lost(b) && kept(c) && kept(d))
                || (kept(b) && lost(c) && kept(d))
                || (kept(b) && kept(c) && lost(d)) =>
        {
            Some(4)
        }
        [LOST, ..] => Some(1),
        _ => None,
    }
}

/// The text of `bytes`; surrogates in pairs and Java's zero are taken too.
pub(super) fn decoded(bytes: &[u8]) -> Option<String> {
    if !bytes.contains(&0xED) && !bytes.contains(&0xC0) {
        return std::str::from_utf8(bytes).ok().map(str::to_owned);
    }
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let plain = (0..rest.len()).find(|at| special(&rest[*at..]).is_some());
        let (before, after) = rest.split_at(plain.unwrap_or(rest.len()));
        text += std::str::from_utf8(before).ok()?;
        rest = after;
        if let Some((found, length)) = special(rest) {
            text.push(found?);
            rest = &rest[length..];
        }
    }
    Some(text)
}

/// A sequence at the beginning that UTF-8 does not have: its character, or `None` where it has none, and its length.
fn special(bytes: &[u8]) -> Option<(Option<char>, usize)> {
    match *bytes {
        // ftfy's expression takes a line feed that ends the text for the end itself, and then drops it.
        [0xC0, 0x80, ..] | [0xC0, b'\n'] => Some((Some('\0'), 2)),
        [0xC0] => Some((None, 1)),
        [0xED, b @ 0xA0..=0xAF, c, 0xED, e @ 0xB0..=0xBF, f, ..]
            if is_continuation(c) && (is_continuation(f) || (f == b'\n' && bytes.len() == 6)) =>
        {
            let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
            let code = bits(b, 0x0F, 16) + bits(c, 0x3F, 10) + bits(e, 0x0F, 6) + bits(f, 0x3F, 0);
            Some((char::from_u32(code + 0x10000), 6))
        }
        // A surrogate alone.
        [0xED, 0xA0..=0xBF, ..] => Some((None, 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_utf_8_is_read() {
        let check = |bytes: &[u8], text: Option<&str>| assert_eq!(decoded(bytes).as_deref(), text);
        check(b"a\xc3\xa9", Some("a\u{e9}"));
        check(b"\xc3", None);
        check(b"\xed\xa0\xbd\xed\xb8\x80!", Some("\u{1f600}!"));
        check(b"\xc0\x80x", Some("\0x"));
        check(b"x\xc0\n", Some("x\0"));
        check(b"\xed\xa0\xbdab", None);
        check(b"\xed\x95\x9c", Some("\u{d55c}"));
    }
}
