//! Which names a LoRA's file may have: those that every system can hold, since LoRAs are passed on.

use crate::shown;

/// Bytes of a name. A file system has 255 for a whole file name, or 143 where it is encrypted.
const MAX_BYTES: usize = 120;

/// Characters that lead out of a folder, or that Windows has in no name.
const FORBIDDEN: [char; 9] = ['/', '\\', '<', '>', ':', '"', '|', '?', '*'];

/// Names of devices on Windows, with any ending. `COM` and `LPT` have a digit behind them.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// What is wrong with `name` as a file name without its ending, if anything.
pub(super) fn problem(name: &str) -> Option<String> {
    let found = |expected: &str| {
        let name = shown::text(name);
        Some(format!(
            "expected a plain file name {expected}, found `{name}`"
        ))
    };
    if name.is_empty() {
        return found("of at least one character");
    }
    if name.len() > MAX_BYTES {
        return found(&format!("of at most {MAX_BYTES} bytes"));
    }
    if name.contains(FORBIDDEN) {
        return found("without / \\ < > : \" | ? *");
    }
    // What is escaped when it is shown cannot be seen, or typed, in a name.
    if shown::text(name).to_string() != name {
        return found("without control characters");
    }
    if name.starts_with(['.', ' ']) || name.ends_with(['.', ' ']) {
        return found("without a dot or a space at its beginning or end");
    }
    if is_device(name) {
        return found("that is none of Windows' devices");
    }
    None
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end();
    let stem = stem.to_lowercase();
    let numbered = ["com", "lpt"].into_iter().any(|device| {
        let number = stem.strip_prefix(device);
        // Windows takes the superscript digits too.
        number.is_some_and(|n| {
            n.chars().count() == 1
                && n.contains(|c: char| {
                    c.is_ascii_digit() && c != '0' || "\u{b9}\u{b2}\u{b3}".contains(c)
                })
        })
    });
    numbered || DEVICES.contains(&stem.as_str())
}

#[cfg(test)]
mod tests {
    use super::problem;

    #[test]
    fn a_name_that_some_system_cannot_hold_is_refused_and_the_reason_told() {
        for (name, why) in [
            ("", "at least one character"),
            (&"x".repeat(300), "at most 120 bytes"),
            ("a/b", "without /"),
            ("a\\b", "without /"),
            ("a:b", "without /"),
            ("a\0b", "without control characters"),
            ("a\u{1b}[2J", "without control characters"),
            ("a\nb", "without control characters"),
            ("a\u{202e}b", "without control characters"),
            (".hidden", "at its beginning or end"),
            ("..", "at its beginning or end"),
            ("style.", "at its beginning or end"),
            ("style ", "at its beginning or end"),
            ("NUL", "Windows' devices"),
            ("con.v2", "Windows' devices"),
            ("Com1", "Windows' devices"),
            ("lpt9.x", "Windows' devices"),
        ] {
            let said = problem(name).unwrap_or_default();
            assert!(said.contains(why), "{name:?}: {said}");
            assert!(said.len() < 400 && !said.contains(['\n', '\u{1b}', '\u{202e}']));
        }
    }

    #[test]
    fn names_as_people_give_them_are_taken() {
        let long = "x".repeat(120);
        for name in [
            "lora",
            "my style v1.2",
            "a-b_c(3)",
            "\u{732b}",
            "\u{1f431}",
            "com",
            "com10",
            "console",
            "nullify",
            &long,
        ] {
            assert_eq!(problem(name), None, "{name}");
        }
    }
}
