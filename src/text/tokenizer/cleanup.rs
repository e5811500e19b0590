//! Changes to a caption before the tokenizer sees it, as the programs do that a recipe follows.
//!
//! They follow Python, in whose terms they were written: characters are code points, and white space is
//! `str.isspace`.

use std::borrow::Cow;

use tokenizers::utils::SysRegex;

use super::{ftfy, python};
use crate::text::spec::Cleanup;

/// Parentheses nested deeper than this are left as they are. (The reference, which recurses, fails there.)
const MAX_DEPTH: usize = 1000;

/// `text` after `steps`, in their order.
///
/// # Errors
/// If the tables of a step are damaged.
pub(super) fn apply<'t>(steps: &[Cleanup], text: &'t str) -> Result<Cow<'t, str>, String> {
    steps.iter().try_fold(Cow::Borrowed(text), |text, step| {
        Ok(match step {
            Cleanup::FirstCharacters226 => on_slice(text, |text| first_characters(text, 226)),
            Cleanup::FirstLine => on_slice(text, first_line),
            // The tokenizers of CLIP and T5 collapse white space, so trimming the parts would change nothing.
            Cleanup::RespaceCommas if text.contains(',') => text.replace(',', ", ").into(),
            Cleanup::RespaceCommas => text,
            Cleanup::DropPromptWeights => drop_prompt_weights(&text).into(),
            Cleanup::Ftfy63 => ftfy::fix_text(ftfy::Version::V6_3, &text)?.into(),
            Cleanup::UnescapeHtmlTwice if !text.contains('&') => text,
            Cleanup::UnescapeHtmlTwice => ftfy::unescaped_twice(&text)?.into(),
            Cleanup::CollapseWhitespace => python::joined_words(&text).into(),
        })
    })
}

/// What the steps drop of the end of `text`, each that does, with what it drops. White space alone is nothing.
pub(super) fn dropped(steps: &[Cleanup], text: &str) -> Vec<(Cleanup, String)> {
    let mut found = Vec::new();
    let mut text = Cow::Borrowed(text);
    for step in steps {
        let kept = match step {
            Cleanup::FirstCharacters226 => first_characters(&text, 226),
            Cleanup::FirstLine => first_line(&text),
            // These change the text, and keep its words.
            Cleanup::RespaceCommas
            | Cleanup::DropPromptWeights
            | Cleanup::Ftfy63
            | Cleanup::UnescapeHtmlTwice
            | Cleanup::CollapseWhitespace => &text,
        };
        // A slice of it, at its beginning but for white space.
        let begin = text.len() - text.trim_start_matches(python::is_space).len();
        let rest = match text.starts_with(kept) {
            true => &text[kept.len()..],
            false => &text[(begin + kept.len()).min(text.len())..],
        };
        let rest = rest.trim_matches(python::is_space);
        if !rest.is_empty() && kept.len() < text.len() {
            found.push((*step, rest.to_owned()));
        }
        // What has no tables cannot be encoded, which then says so.
        if let Ok(changed) = apply(&[*step], &text) {
            text = Cow::Owned(changed.into_owned());
        }
    }
    found
}

fn on_slice<'t>(text: Cow<'t, str>, part: fn(&str) -> &str) -> Cow<'t, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(part(text)),
        Cow::Owned(text) => Cow::Owned(part(&text).to_owned()),
    }
}

fn first_characters(text: &str, count: usize) -> &str {
    text.char_indices()
        .nth(count)
        .map_or(text, |(end, _)| &text[..end])
}

/// Source: kohya's `library/train_util.py`, which reads a caption file's lines (in Python's text mode, where a
/// carriage return ends one too) and strips the first.
fn first_line(text: &str) -> &str {
    let end = text.find(['\n', '\r']).unwrap_or(text.len());
    text[..end].trim_matches(python::is_space)
}

/// The caption without the parentheses and weights of prompt syntax, its words joined by single spaces.
///
/// `(x)` and `(x:1.2)` become `x`, as a word of its own even inside one; `\(` and `\)` become plain parentheses.
/// Unbalanced parentheses stay. Source: `token_weights`, `parse_parentheses` and `SDTokenizer` in Stability's
/// `other_impls.py`.
fn drop_prompt_weights(text: &str) -> String {
    // The reference hides escaped parentheses behind these, and so do we: a caption that contains them
    // literally must come out the same.
    let hidden = text.replace("\\)", "\0\u{1}").replace("\\(", "\0\u{2}");
    let mut cleaned = String::with_capacity(text.len());
    for segment in segments(&hidden) {
        let segment = segment.replace("\0\u{1}", ")").replace("\0\u{2}", "(");
        for word in segment.split([' ', '\n']).filter(|word| !word.is_empty()) {
            if !cleaned.is_empty() {
                cleaned.push(' ');
            }
            cleaned.push_str(word);
        }
    }
    cleaned
}

/// `text` cut at its groups, each group without its parentheses and weight, in order.
fn segments(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    // What is still to be cut, the first last, with its depth.
    let mut open = vec![(text, 0)];
    while let Some((text, depth)) = open.pop() {
        let parts = groups(text);
        let first = open.len();
        for part in parts {
            match part
                .strip_prefix('(')
                .and_then(|rest| rest.strip_suffix(')'))
            {
                Some(inner) if depth < MAX_DEPTH => open.push((without_weight(inner), depth + 1)),
                // Only plain text stands between this part and its neighbours: keep the order through the
                // same stack, at a depth where nothing is cut any more.
                _ => open.push((part, usize::MAX)),
            }
        }
        open[first..].reverse();
        while let Some((plain, _)) = open.pop_if(|(_, depth)| *depth == usize::MAX) {
            found.push(plain);
        }
    }
    found
}

/// `text` cut before each outermost `(` and after each `)` that closes it.
fn groups(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    // Signed: a `)` too many takes the reference's level below 0 too, where the next `(` opens no group.
    let (mut start, mut level) = (0, 0_i64);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => {
                if level == 0 && start < at {
                    parts.push(&text[start..at]);
                    start = at;
                }
                level += 1;
            }
            b')' => {
                level -= 1;
                if level == 0 {
                    parts.push(&text[start..=at]);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    if start < text.len() {
        parts.push(&text[start..]);
    }
    parts
}

/// `inner` without `:number` at its end. A colon at its very beginning does not count.
fn without_weight(inner: &str) -> &str {
    match inner.rfind(':') {
        Some(colon) if colon > 0 && is_python_float(&inner[colon + 1..]) => &inner[..colon],
        _ => inner,
    }
}

/// Whether Python's `float` takes `text`: with white space around it, single underscores between digits, and
/// the decimal digits of any script.
fn is_python_float(text: &str) -> bool {
    let mut ascii = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.trim_matches(python::is_space).chars().peekable();
    while let Some(c) = rest.next() {
        let digit_follows = rest.peek().copied().is_some_and(is_decimal_digit);
        match c {
            '_' if is_decimal_digit(before) && digit_follows => {}
            c if is_decimal_digit(c) => ascii.push('0'),
            c => ascii.push(c),
        }
        before = c;
    }
    // Beyond these, Python and Rust read the same numbers.
    ascii.parse::<f64>().is_ok()
}

fn is_decimal_digit(c: char) -> bool {
    c.is_ascii_digit()
        || (!c.is_ascii()
            && SysRegex::new(r"\p{Nd}")
                .is_ok_and(|digit| digit.find_iter(c.encode_utf8(&mut [0; 4])).next().is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_weights_go_as_the_reference_drops_them() {
        let check = |text: &str, expected: &str| {
            assert_eq!(drop_prompt_weights(text), expected, "{text:?}");
        };
        check("a (red) cat, (big:1.3) dog", "a red cat, big dog");
        check("a((b:1.2) c)d", "a b c d");
        check(r"a \(b\) (c\)d)", "a (b) c)d");
        check("unbalanced (a (b", "unbalanced (a (b");
        check("a) (b)", "a) (b)");
        check("((a)", "(a");
        check("() (:1.2) (a:b:1e-1)", ":1.2 a:b");
        check(
            "(a: 1_0.5 ) (b:1__0) (c:\u{ff11}.\u{0662}) (d:-inf) (e:)",
            "a b:1__0 c d e:",
        );
        check("a\nb  c\td", "a b c\td");
        check("nul \0\u{1}(x)", "nul ) x");
    }

    #[test]
    fn deep_nesting_ends() {
        let text = format!("{}x{}", "(".repeat(50_000), ")".repeat(50_000));
        assert!(drop_prompt_weights(&text).contains("((x))"));
    }

    #[test]
    fn lines_characters_and_commas() {
        let check = |step, text: &str, expected: &str| {
            assert_eq!(apply(&[step], text).expect("applied"), expected);
        };
        check(Cleanup::FirstLine, " a b \u{1f}\r\nc", "a b");
        check(Cleanup::FirstLine, "\nb", "");
        check(
            Cleanup::FirstCharacters226,
            &"\u{e9}".repeat(300),
            &"\u{e9}".repeat(226),
        );
        check(Cleanup::FirstCharacters226, "short", "short");
        check(Cleanup::RespaceCommas, "a,b, c,,d", "a, b,  c, , d");
        check(Cleanup::Ftfy63, "it\u{2019}s\r\n&amp;", "it's\n&");
        check(Cleanup::UnescapeHtmlTwice, "&amp;lt;b>", "<b>");
        check(Cleanup::CollapseWhitespace, " a\u{3000}\n b ", "a b");
    }
}
