//! A share of the work of one encoding, for several processes or machines at one store.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::captions::CaptionPlan;
use super::pictures::PicturePlan;
use crate::digest::Fingerprint;
use crate::shown;

/// The most parts that work is split into: as many as a Kubernetes Job has indexes.
pub const MAX_PARTS: u32 = 100_000;

/// One of so many parts of all entries, split by their fingerprints alone: whatever the order of captions and pictures, whatever the
/// store has, and whatever other entries there are, an entry is in the same part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    number: u32,
    of: u32,
}

/// Not a part.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected I/N, part I of N parts, as 1/4: I from 1 to N, N at most {MAX_PARTS}; found `{0}`"
)]
pub struct NotAPart(String);

impl Part {
    /// Everything.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Whether there are other parts.
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// Whether an entry belongs to it. Of `N` parts each has an equal range of fingerprints, part 1 the lowest: parts are as even as
    /// chance makes them, about the square root of their entries apart.
    pub fn has(self, entry: &Fingerprint) -> bool {
        let mut leading = [0; 8];
        leading.copy_from_slice(&entry.as_bytes()[..8]);
        let place = (u128::from(u64::from_be_bytes(leading)) * u128::from(self.of)) >> 64;
        place == u128::from(self.number - 1)
    }

    /// `part-2-of-4`, for names of files.
    pub(super) fn name(self) -> String {
        format!("part-{}-of-{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = NotAPart;

    fn from_str(text: &str) -> Result<Self, NotAPart> {
        let wrong = || NotAPart(shown::text(text).to_string());
        // Digits alone: `parse` takes a sign too.
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u32>().ok().filter(|_| plain)
        };
        let (part, of) = text.split_once('/').ok_or_else(wrong)?;
        let (number, of) = (
            number(part).ok_or_else(wrong)?,
            number(of).ok_or_else(wrong)?,
        );
        let fits = (1..=MAX_PARTS).contains(&of) && (1..=of).contains(&number);
        fits.then_some(Self { number, of }).ok_or_else(wrong)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a part had to do of all that there was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PartReport {
    /// `2/4`.
    pub part: Part,
    /// Entries of the part, in the store or not.
    pub entries: u64,
    /// Entries of all parts.
    pub of: u64,
    /// Whether the store has those of all parts now.
    pub all_there: bool,
}

impl PartReport {
    /// Of what is planned; None of the whole.
    pub(super) fn new(
        part: Part,
        captions: &CaptionPlan<'_>,
        latents: Option<&PicturePlan<'_>>,
    ) -> Option<Self> {
        let (entries, of) = captions.entries();
        let (views, all_views) = latents.map_or((0, 0), PicturePlan::entries);
        (!part.is_whole()).then_some(Self {
            part,
            entries: entries + views,
            of: of + all_views,
            all_there: false,
        })
    }
}

impl fmt::Display for PartReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part, entries, of, ..
        } = self;
        write!(f, "part {part}: {}", shown::part_of(entries, of, "entry"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn entries(count: u32) -> Vec<Fingerprint> {
        let one = |n: u32| *Digest::of(&n.to_le_bytes()).as_bytes();
        (0..count)
            .map(|n| Fingerprint::from_bytes(one(n)))
            .collect()
    }

    #[test]
    fn every_entry_is_in_one_part_and_parts_are_even() {
        let all = entries(20_000);
        for of in [1, 2, 3, 7, 64] {
            let mut counts = vec![0u32; of as usize];
            for entry in &all {
                let own = (1..=of).filter(|&number| Part { number, of }.has(entry));
                let own: Vec<u32> = own.collect();
                assert_eq!(own.len(), 1, "{entry} of {of}");
                counts[own[0] as usize - 1] += 1;
            }
            let expected = 20_000.0 / f64::from(of);
            for count in counts {
                // Five standard deviations.
                let off = (f64::from(count) - expected).abs();
                assert!(off <= 5.0 * expected.sqrt(), "{count} of {expected}");
            }
        }
        let (low, high) = ([0; 32], [255; 32]);
        let last = "100000/100000".parse::<Part>().expect("a part");
        assert!(
            last.has(&Fingerprint::from_bytes(high)) && !last.has(&Fingerprint::from_bytes(low))
        );
    }

    /// Other programs may rely on it, and a job that is run again by a later version has to mean the same entries.
    #[test]
    fn the_split_never_changes() {
        let first: String = (entries(16).iter())
            .map(|entry| {
                let own = (1..=4).find(|&number| Part { number, of: 4 }.has(entry));
                own.map_or('?', |n| char::from(b'0' + n as u8))
            })
            .collect();
        assert_eq!(first, "4443244414444232");
    }

    #[test]
    fn what_is_no_part_is_refused() {
        for text in [
            "",
            "/",
            "1",
            "0/4",
            "5/4",
            "a/b",
            "1/0",
            "1/",
            "/4",
            "+1/4",
            "-1/4",
            "1/4/2",
            " 1/4",
            "1/100001",
            "1/4294967297",
            "99999999999999999999/99999999999999999999",
            "1.0/4",
        ] {
            let error = text.parse::<Part>().expect_err(text).to_string();
            assert!(error.ends_with(&format!("found `{text}`")), "{error}");
        }
        assert_eq!(
            "007/10".parse::<Part>().expect("a part").to_string(),
            "7/10"
        );
    }
}
