//! Foreign text as a person may see it: names in files, paths, values, what a server said. It may hold escape sequences that
//! steer a terminal, letters that turn the direction of a line, or ten megabytes.
//!
//! Whatever was not written by this program goes through here before it enters a message or a table. JSON output does not: it has
//! its own escapes, and is read by programs.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use serde::Serialize;

/// Characters of a text that are shown.
const TEXT_CHARS: usize = 200;

/// Characters of a path that are shown: its file name matters most, and is at its end.
const PATH_CHARS: usize = 400;

/// Characters of a line that are shown of a message or a report.
const LINE_CHARS: usize = 4000;

/// A value of a field as files have it, without quotes: the one name of a variant is the one that it is read by.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// A number as a person would write it: in full it may have hundreds of digits.
pub fn number(number: f64) -> String {
    match number.abs() {
        0.0 => format!("{number}"),
        1e-6..1e15 => format!("{number}"),
        _ => format!("{number:e}"),
    }
}

/// So many things: `1 picture`, `2 entries`, `0 windows of clips`.
pub fn counted(count: impl Display, thing: &str) -> String {
    let count = count.to_string();
    let things = things(&count, thing);
    format!("{count} {things}")
}

/// Some of so many things: `1 of 3 captions`, `1 of 1 caption`.
pub fn part_of(part: impl Display, all: impl Display, thing: &str) -> String {
    format!("{part} of {}", counted(all, thing))
}

/// The verb of so many things: `is` of one, else `are`.
pub fn are(count: impl Display) -> &'static str {
    match count.to_string() == "1" {
        true => "is",
        false => "are",
    }
}

/// The word for so many things: `picture` of one, else `pictures`. Of `window of clips` the first word alone.
pub fn things(count: impl Display, thing: &str) -> String {
    if count.to_string() == "1" {
        return thing.to_owned();
    }
    let (word, rest) = match thing.find(" of ") {
        Some(at) => thing.split_at(at),
        None => (thing, ""),
    };
    match word.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{stem}ies{rest}"),
        _ if word.ends_with("tch") => format!("{word}es{rest}"),
        _ => format!("{word}s{rest}"),
    }
}

/// A message or a report as a whole, on its way to a person: the last place where what nobody thought of is caught. Line ends
/// stay, all else is escaped; long lines are cut.
pub fn lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(line).collect();
    lines.join("\n")
}

/// The same on one line: a line end in an error is from a name that is in it.
pub fn line(text: &str) -> String {
    let mut shown = String::new();
    let end = text.char_indices().nth(LINE_CHARS).map(|(at, _)| at);
    // Writing into a string cannot fail.
    let _ = escape(&text[..end.unwrap_or(text.len())], &mut shown);
    if let Some(end) = end {
        let left = text[end..].chars().count();
        shown += &format!("... ({left} more characters)");
    }
    shown
}

/// A foreign text, escaped and cut when it is written.
#[derive(Clone, Copy, Debug)]
pub struct Shown<T>(T);

/// The beginning of a text, on one line, with what a terminal would act on escaped as in Rust (`\n`, `\u{1b}`).
pub fn text(text: &str) -> Shown<&str> {
    Shown(text)
}

/// A path, on one line, escaped like a text; a long one lacks its middle.
pub fn path(path: &Path) -> Shown<&Path> {
    Shown(path)
}

impl Display for Shown<&str> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Counted before it is collected: the text may be larger than what is left of memory.
        match self.0.char_indices().nth(TEXT_CHARS) {
            None => escape(self.0, f),
            Some((end, _)) => {
                escape(&self.0[..end], f)?;
                let left = self.0[end..].chars().count();
                write!(f, "... ({left} more characters)")
            }
        }
    }
}

impl Display for Shown<&Path> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let path = self.0.to_string_lossy();
        let chars = path.chars().count();
        if chars <= PATH_CHARS {
            return escape(&path, f);
        }
        let half = PATH_CHARS / 2;
        let at = |n: usize| path.char_indices().nth(n).map_or(path.len(), |(i, _)| i);
        escape(&path[..at(half)], f)?;
        f.write_str("...")?;
        escape(&path[at(chars - half)..], f)
    }
}

fn escape(text: &str, f: &mut impl fmt::Write) -> fmt::Result {
    for c in text.chars() {
        if is_unsafe(c) {
            write!(f, "{}", c.escape_debug())?;
        } else {
            f.write_char(c)?;
        }
    }
    Ok(())
}

/// Whether a terminal acts on a character, or shows nothing for it: controls, line ends, marks of direction, zero-width
/// characters but the joiner that emoji are made with.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}' | '\u{200c}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
        )
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::{line, lines, number, path, text};
    use std::path::Path;

    #[test]
    fn a_number_has_no_hundreds_of_digits() {
        let shown = [0.0, -1.0, 0.25, 1e9, 1e300, -1e300, 1e-300, f64::NAN].map(number);
        let expected = [
            "0",
            "-1",
            "0.25",
            "1000000000",
            "1e300",
            "-1e300",
            "1e-300",
            "NaN",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn one_thing_is_not_several() {
        let all = [
            (0, "picture"),
            (1, "picture"),
            (2, "entry"),
            (1, "entry"),
            (7, "micro-batch"),
            (3, "epoch"),
        ];
        let all = all.map(|(count, thing)| super::counted(count, thing));
        assert_eq!(
            all,
            [
                "0 pictures",
                "1 picture",
                "2 entries",
                "1 entry",
                "7 micro-batches",
                "3 epochs"
            ]
        );
        assert_eq!(super::counted(3, "window of clips"), "3 windows of clips");
        assert_eq!(super::things("1", "window of clips"), "window of clips");
        assert_eq!(super::part_of(1, 2, "entry"), "1 of 2 entries");
        assert_eq!(super::part_of(1, 1, "entry"), "1 of 1 entry");
        assert_eq!([1, 2, 0].map(super::are), ["is", "are", "are"]);
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_the_rest_is_left() {
        let hostile = "a\u{1b}[2J\nb\u{202e}c\u{9b}d\r";
        assert_eq!(
            text(hostile).to_string(),
            r"a\u{1b}[2J\nb\u{202e}c\u{9b}d\r"
        );
        let plain = "C:\\data \"\u{e9}\" \u{732b} \u{1f469}\u{200d}\u{1f680} <pad>";
        assert_eq!(text(plain).to_string(), plain);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "\u{732b}".repeat(1000);
        let shown = text(&long).to_string();
        assert_eq!(shown, "\u{732b}".repeat(200) + "... (800 more characters)");
        assert_eq!(text(&long[..600]).to_string(), "\u{732b}".repeat(200));
    }

    #[test]
    fn a_report_keeps_its_lines_and_an_error_has_one() {
        let hostile = "a\r\nb\u{1b}]0;x\u{7}\n";
        assert_eq!(lines(hostile), "a\\r\nb\\u{1b}]0;x\\u{7}\n");
        assert_eq!(line(hostile), r"a\r\nb\u{1b}]0;x\u{7}\n");
        let long = format!("{}\nb", "a".repeat(10_000_000));
        assert!(lines(&long).len() < 5000 && lines(&long).ends_with("more characters)\nb"));
    }

    #[test]
    fn a_long_path_keeps_its_file_name() {
        let long = "x/".repeat(1000) + "a\u{7}.png";
        let shown = path(Path::new(&long)).to_string();
        assert!(
            shown.ends_with(r"a\u{7}.png") && shown.chars().count() < 420,
            "{shown}"
        );
        assert_eq!(path(Path::new("/a/b.png")).to_string(), "/a/b.png");
    }
}
