//! Variants of captions that are lists of tags: the same tags in another order, or without some of them.
//!
//! As kohya's sd-scripts make one for each step (`process_caption` of library/train_util.py): a caption is split at every comma,
//! white space around a tag is no part of it, the first tags are kept in place, the others are shuffled and some left out, and all
//! are joined by `, `. A backslash protects nothing: a comma in brackets splits as well. A full-width comma does not split. Two things
//! are otherwise: empty tags (`a, , b,`) are left out and not counted, as OneTrainer does, and there is a fixed number of variants
//! of each caption, so that each is encoded once. The first of them is the caption in its own order.
//!
//! A variant depends on its caption and its number alone, not on other pictures, names or a seed: asked for more of them, those
//! there are stay.

use crate::digest::Digest;
use crate::experiment::TagSettings;
use crate::rng::Rng;

/// The separator of kept tags that everybody writes.
const SEPARATOR: &str = "|||";

/// The tags of a caption.
struct Tags<'a> {
    /// Those that stay in front.
    first: Vec<&'a str>,
    /// Those that are shuffled, or left out.
    free: Vec<&'a str>,
    /// Those that stay at the end.
    last: Vec<&'a str>,
}

impl TagSettings {
    /// The variants of a caption, the first in its own order; only this one where there is nothing to vary. Two may be equal, and
    /// then come twice as often.
    ///
    /// # Errors
    /// What is wrong, if the caption is no list of tags.
    pub(super) fn variants(&self, caption: &str) -> Result<Vec<String>, String> {
        if caption.contains('\n') {
            let why = "a caption of several lines is no list of tags: write it in one line, or leave `shuffle_tags` and `tag_dropout` out";
            return Err(why.to_owned());
        }
        if self.separator.is_none() && caption.contains(SEPARATOR) {
            let why = format!(
                "the caption has `{SEPARATOR}`, which in kohya's scripts ends the tags that are kept: set `keep_tags_separator = \"{SEPARATOR}\"`, or take it out"
            );
            return Err(why);
        }
        let tags = self.split(caption);
        let count = match self.varies(&tags) {
            true => self.variants,
            false => 1,
        };
        Ok((0..count)
            .map(|n| self.variant(caption, &tags, n))
            .collect())
    }

    /// Whether a caption has variants.
    pub(super) fn has_effect(&self, caption: &str) -> bool {
        self.varies(&self.split(caption))
    }

    fn varies(&self, tags: &Tags<'_>) -> bool {
        let free = tags.free.len();
        (self.shuffle && free > 1) || (self.dropout > 0.0 && free > 0)
    }

    fn split<'a>(&self, caption: &'a str) -> Tags<'a> {
        let parts = self.separator.as_deref().and_then(|separator| {
            let (first, rest) = caption.split_once(separator)?;
            let (free, last) = rest.split_once(separator).unwrap_or((rest, ""));
            Some(Tags {
                first: list(first),
                free: list(free),
                last: list(last),
            })
        });
        parts.unwrap_or_else(|| {
            let mut first = list(caption);
            let free = first.split_off(first.len().min(self.keep));
            let last = Vec::new();
            Tags { first, free, last }
        })
    }

    fn variant(&self, caption: &str, tags: &Tags<'_>, number: u32) -> String {
        let mut free = tags.free.clone();
        if number > 0 {
            let coordinate = [
                &b"plumb tags 1"[..],
                &number.to_le_bytes(),
                caption.as_bytes(),
            ];
            let mut rng = Rng::with_key(*Digest::of(&coordinate.concat()).as_bytes());
            if self.shuffle {
                rng.shuffle(&mut free);
            }
            if self.dropout > 0.0 {
                free.retain(|_| rng.uniform() >= self.dropout);
            }
        }
        [tags.first.clone(), free, tags.last.clone()]
            .concat()
            .join(", ")
    }
}

/// The tags between commas.
fn list(text: &str) -> Vec<&str> {
    let tags = text.split(',').map(str::trim);
    tags.filter(|tag| !tag.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn shuffled(variants: u32, keep: usize) -> TagSettings {
        TagSettings {
            variants,
            shuffle: true,
            keep,
            separator: None,
            dropout: 0.0,
        }
    }

    fn sorted(caption: &str) -> Vec<&str> {
        let mut tags: Vec<&str> = caption.split(", ").collect();
        tags.sort_unstable();
        tags
    }

    #[test]
    fn the_first_tags_stay_and_the_others_are_shuffled() {
        let caption = "1girl, solo,  long hair,smile, hat , outdoors";
        let found = shuffled(8, 2).variants(caption).expect("tags");
        assert_eq!(found.len(), 8);
        assert_eq!(found[0], "1girl, solo, long hair, smile, hat, outdoors");
        for variant in &found {
            assert!(variant.starts_with("1girl, solo, "), "{variant}");
            assert_eq!(sorted(variant), sorted(&found[0]));
        }
        let different: BTreeSet<&String> = found.iter().collect();
        assert!(different.len() > 5, "{found:?}");
        // These very variants: they are what stores were filled with.
        assert_eq!(found[1..3], PINNED.map(str::to_owned));
        // More of them leave those there are, and another caption has others.
        assert_eq!(shuffled(20, 2).variants(caption).expect("tags")[..8], found);
        let other = shuffled(8, 2).variants("1girl, solo, hat, smile, outdoors, long hair");
        assert_ne!(other.expect("tags")[1..], found[1..]);
    }

    const PINNED: [&str; 2] = [
        "1girl, solo, hat, smile, outdoors, long hair",
        "1girl, solo, long hair, smile, outdoors, hat",
    ];

    #[test]
    fn a_tag_is_what_stands_between_commas() {
        let own = |caption: &str| {
            let variants = shuffled(2, 0).variants(caption);
            variants.expect("tags").swap_remove(0)
        };
        for (caption, joined) in [
            ("a,b", "a, b"),
            (" a , , b,", "a, b"),
            (",", ""),
            ("", ""),
            ("one tag", "one tag"),
            ("miku \\(vocaloid, 2\\), b", "miku \\(vocaloid, 2\\), b"),
            ("a\\, b", "a\\, b"),
            ("\u{732b}\u{ff0c}\u{72ac}", "\u{732b}\u{ff0c}\u{72ac}"),
        ] {
            assert_eq!(own(caption), joined, "{caption}");
        }
        // Nothing to vary: one caption. A full-width comma is none.
        for caption in ["", ",", "one tag", "a, ", "\u{732b}\u{ff0c}\u{72ac}"] {
            let found = shuffled(8, 0).variants(caption).expect("tags");
            assert_eq!(
                (found.len(), shuffled(8, 0).has_effect(caption)),
                (1, false)
            );
        }
        assert!(!shuffled(8, 2).has_effect("a, b, c"));
        assert!(
            shuffled(8, 0)
                .variants("a, b\nc")
                .is_err_and(|why| why.contains("several lines"))
        );
    }

    #[test]
    fn a_separator_marks_what_is_kept_in_front_and_at_the_end() {
        let rules = TagSettings {
            separator: Some("|||".to_owned()),
            ..shuffled(12, 1)
        };
        for variant in rules.variants("x, y ||| b, c, d ||| z").expect("tags") {
            assert!(
                variant.starts_with("x, y, ") && variant.ends_with(", z"),
                "{variant}"
            );
            assert_eq!(sorted(&variant), ["b", "c", "d", "x", "y", "z"]);
        }
        let unset = shuffled(12, 1).variants("x ||| b, c");
        assert!(unset.is_err_and(|why| why.contains("keep_tags_separator")));
        // Without it, the number counts.
        for variant in rules.variants("a, b, c").expect("tags") {
            assert!(variant.starts_with("a, "), "{variant}");
        }
    }

    #[test]
    fn tags_are_left_out_as_often_as_is_said_and_kept_ones_never() {
        let rules = TagSettings {
            variants: 1000,
            shuffle: false,
            keep: 1,
            separator: None,
            dropout: 0.25,
        };
        let found = rules.variants("keep, a, b, c, d").expect("tags");
        assert_eq!(found[0], "keep, a, b, c, d");
        let mut left = 0;
        for variant in &found[1..] {
            let tags: Vec<&str> = variant.split(", ").collect();
            assert!(tags[0] == "keep" && tags.is_sorted_by_key(|t| (*t != "keep", *t)));
            left += tags.len() - 1;
        }
        let share = left as f64 / (4.0 * 999.0);
        assert!((share - 0.75).abs() < 0.02, "{share}");
    }
}
