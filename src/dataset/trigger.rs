//! The trigger word in captions.

use unicode_segmentation::UnicodeSegmentation as _;

use crate::experiment::PLACEHOLDER;

/// The caption with the trigger word in it.
///
/// # Errors
/// What is wrong, if there is a placeholder and no word.
pub(super) fn with_trigger(caption: &str, trigger: Option<&str>) -> Result<String, String> {
    let word = trigger.map(str::trim).filter(|word| !word.is_empty());
    let mut parts = split_at_placeholders(caption);
    let first = parts.next().unwrap_or_default();
    if first.len() < caption.len() {
        return match word {
            Some(word) => Ok(parts.fold(first.to_owned(), |text, part| text + word + part)),
            None => Err(format!(
                "the caption has `{PLACEHOLDER}`, but no trigger word is given"
            )),
        };
    }
    Ok(match word {
        None => caption.to_owned(),
        Some(word) if has_word(caption, word) => caption.to_owned(),
        Some(word) if caption.is_empty() => word.to_owned(),
        Some(word) => format!("{word}, {caption}"),
    })
}

/// The parts of a caption between its placeholders.
fn split_at_placeholders(caption: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(caption);
    std::iter::from_fn(move || {
        let text = rest?;
        let is_here = |at: &usize| {
            let here = text.get(*at..*at + PLACEHOLDER.len());
            here.is_some_and(|here| here.eq_ignore_ascii_case(PLACEHOLDER))
        };
        let at = text.match_indices('[').map(|(at, _)| at).find(is_here);
        rest = at.map(|at| &text[at + PLACEHOLDER.len()..]);
        Some(&text[..at.unwrap_or(text.len())])
    })
}

/// Whether a caption has the word, or words, as such and not inside longer ones: `sks` is not in `masks`. Capitals count, as
/// some encoders tell them apart; how much white space is between words does not.
///
/// Words are those of Unicode (UAX 29), but that an apostrophe, point or colon ends one: `sks` is in `sks's`. Scripts that put no
/// spaces between words have a boundary between any two signs there, Katakana excepted.
fn has_word(caption: &str, word: &str) -> bool {
    let spaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (caption, word) = (spaced(caption), spaced(word));
    let starts = caption.char_indices().map(|(at, _)| at);
    let mut found = starts.filter(|&at| caption[at..].starts_with(&word));
    found.any(|at| is_boundary(&caption, at) && is_boundary(&caption, at + word.len()))
}

/// Whether no word goes on over the place `at`.
fn is_boundary(text: &str, at: usize) -> bool {
    let is_outside_word = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let (before, after) = (text[..at].chars().next_back(), text[at..].chars().next());
    // A sign that is put on the letter before it is part of that letter.
    let is_whole_sign =
        at == text.len() || text.grapheme_indices(true).any(|(place, _)| place == at);
    let mut words = text.split_word_bound_indices();
    is_whole_sign
        && (is_outside_word(before)
            || is_outside_word(after)
            || words.any(|(place, _)| place == at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is_found(word: &str, captions: &[&str]) {
        for caption in captions {
            assert!(has_word(caption, word), "`{word}` is in `{caption}`");
            assert_eq!(with_trigger(caption, Some(word)).as_deref(), Ok(*caption));
        }
    }

    #[track_caller]
    fn is_added(word: &str, captions: &[&str]) {
        for caption in captions {
            let expected = format!("{word}, {caption}");
            assert_eq!(with_trigger(caption, Some(word)), Ok(expected));
        }
    }

    #[test]
    fn a_trigger_is_a_word_and_not_a_part_of_one() {
        is_found(
            "sks",
            &[
                "sks",
                "a sks dog",
                "a dog, sks",
                "(sks:1.2)",
                "sks's dog",
                "\"sks\"",
                "sks-style",
                "a\nsks\ndog",
                "sks.",
                "<sks>",
            ],
        );
        is_added(
            "sks",
            &[
                "masks at a party",
                "sksy",
                "asks",
                "sks_dog",
                "sks2",
                "SKS dog",
                "sk s",
            ],
        );
        is_added("man", &["a woman", "a mannequin", "manhattan"]);
        is_added("art", &["a heart", "artist"]);
        is_added("cat", &["concatenated cats"]);
        // The second one is whole.
        is_found("sks", &["masks of sks"]);
    }

    #[test]
    fn every_script_has_its_words() {
        // Cyrillic, Greek, accents as one sign and as two, Devanagari with a vowel sign.
        is_added(
            "\u{43a}\u{43e}\u{442}",
            &["\u{43a}\u{43e}\u{442}\u{44b} \u{438} \u{441}\u{43a}\u{43e}\u{442}"],
        );
        is_found(
            "\u{43a}\u{43e}\u{442}",
            &["\u{440}\u{44b}\u{436}\u{438}\u{439} \u{43a}\u{43e}\u{442}, \u{441}\u{43e}\u{43d}"],
        );
        is_added("caf", &["caf\u{e9}"]);
        is_added("cafe", &["cafe\u{301}"]);
        is_added("\u{915}", &["\u{915}\u{93f}"]);
        is_added("\u{395}\u{3b1}", &["\u{395}\u{3b1}\u{3c1}"]);
        // Without spaces between words: Han, Hiragana, Thai; Latin between them.
        is_found("\u{732b}", &["\u{4e00}\u{53ea}\u{732b}\u{54aa}"]);
        is_found(
            "sks",
            &["\u{4e00}\u{53ea}sks\u{72d7}", "sks\u{306e}\u{72ac}"],
        );
        is_found(
            "\u{306d}\u{3053}",
            &["\u{767d}\u{3044}\u{306d}\u{3053}\u{3068}"],
        );
        is_found(
            "\u{e41}\u{e21}\u{e27}",
            &["\u{e40}\u{e2b}\u{e47}\u{e19}\u{e41}\u{e21}\u{e27}\u{e19}"],
        );
        // Katakana and Hangul run together as letters do.
        is_added("\u{30cd}\u{30b3}", &["\u{30cd}\u{30b3}\u{30df}\u{30df}"]);
        is_added("\u{ace0}", &["\u{ace0}\u{c591}\u{c774}"]);
    }

    #[test]
    fn several_words_and_signs_are_one_trigger() {
        is_found("sks dog", &["a sks dog runs", "a sks  dog", "a sks\ndog"]);
        is_added("sks dog", &["a sks doghouse", "sks, dog"]);
        is_found("<s1>", &["a <s1> cat", "a<s1>cat"]);
        is_found("v1.5", &["in v1.5 style"]);
        is_added("v1.5", &["in v1.55"]);
        assert_eq!(
            with_trigger("a cat", Some(" sks ")).as_deref(),
            Ok("sks, a cat")
        );
        assert_eq!(with_trigger("a cat", Some("  ")).as_deref(), Ok("a cat"));
        assert_eq!(with_trigger("", Some("sks")).as_deref(), Ok("sks"));
    }

    #[test]
    fn a_placeholder_is_filled_wherever_it_stands() {
        let filled = with_trigger("[trigger]'s dog, a[Trigger][TRIGGER] [trig] [", Some("sks"));
        assert_eq!(filled.as_deref(), Ok("sks's dog, askssks [trig] ["));
        assert!(with_trigger("a [trigger]", None).is_err());
        assert!(with_trigger("a [trigger]", Some(" ")).is_err());
        assert_eq!(with_trigger("a [cat", None).as_deref(), Ok("a [cat"));
    }
}
