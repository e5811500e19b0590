//! [`Window`]: which frames of a clip are encoded together.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most frames a second, and the largest number in a fraction of them.
const MOST: u32 = 1_000_000;

/// Frames a second: a fraction in lowest terms, as 24000/1001 of NTSC's film.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Fraction", into = "Fraction")]
pub struct Rate {
    numerator: u32,
    denominator: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Rate {
    /// `numerator / denominator` frames a second; None where one of the two is 0 or above a million.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        let sound = |n: u32| (1..=MOST).contains(&n);
        if !sound(numerator) || !sound(denominator) {
            return None;
        }
        let divisor = common_divisor(numerator, denominator);
        Some(Self {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        })
    }

    /// So many frames a second, 1 to a million.
    pub(crate) const fn whole(frames_a_second: u32) -> Self {
        Self {
            numerator: frames_a_second,
            denominator: 1,
        }
    }

    /// The fraction that a number with at most three decimals means (23.976 is 2997/125); None where it is not above 0, or above 1000.
    pub fn of(frames_a_second: f64) -> Option<Self> {
        let thousandths = (frames_a_second * 1000.0).round();
        let sound = (1.0..=1e6).contains(&thousandths);
        sound.then(|| Self::new(thousandths as u32, 1000)).flatten()
    }

    /// Above the fraction's line.
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// Below the fraction's line.
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// As a number.
    pub fn frames_a_second(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        _ => common_divisor(b, a % b),
    }
}

impl TryFrom<Fraction> for Rate {
    type Error = &'static str;

    fn try_from(of: Fraction) -> Result<Self, Self::Error> {
        let expected = "expected a rate as a fraction in lowest terms of numbers from 1 to 1000000";
        let rate = Self::new(of.numerator, of.denominator).ok_or(expected)?;
        // One rate has one canonical form.
        match rate.numerator == of.numerator {
            true => Ok(rate),
            false => Err(expected),
        }
    }
}

impl From<Rate> for Fraction {
    fn from(rate: Rate) -> Self {
        Self {
            numerator: rate.numerator,
            denominator: rate.denominator,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            // Thousandths are what people write, and NTSC's rates have few more.
            _ => write!(f, "{}", (self.frames_a_second() * 1000.0).round() / 1000.0),
        }
    }
}

/// Frames of a clip that follow each other. The clip is first brought to `rate`: its n-th frame is then what is to be seen n / `rate`
/// seconds after its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Frames a second.
    pub rate: Rate,
    /// The first frame, counted from 0 at that rate.
    pub start: u32,
    /// How many there are. Causal VAEs take one more than a multiple of what they take together in time (Wan 2.1: 4n + 1).
    pub frames: u32,
}

#[cfg(test)]
mod tests {
    use super::{Rate, Window};

    #[test]
    fn a_rate_has_one_form() {
        let film = Rate::new(24_000, 1001).expect("a rate");
        assert_eq!(Rate::new(48_000, 2002), Some(film));
        assert_eq!(film.to_string(), "23.976");
        assert_eq!(Rate::of(23.976), Rate::new(2997, 125));
        assert_eq!(Rate::of(16.0).map(|r| r.to_string()), Some("16".to_owned()));
        for none in [0.0, -1.0, 0.0004, 1000.001, f64::NAN, f64::INFINITY] {
            assert_eq!(Rate::of(none), None, "{none}");
        }
        assert_eq!(Rate::new(1, 0), None);
        let text = r#"{"rate":{"numerator":16,"denominator":1},"start":4,"frames":17}"#;
        let window: Window = serde_json::from_str(text).expect("a window");
        assert_eq!(
            (window.rate, window.start),
            (Rate::new(16, 1).expect("a rate"), 4)
        );
        for bad in [
            r#"{"numerator":16,"denominator":0}"#,
            r#"{"numerator":32,"denominator":2}"#,
        ] {
            assert!(serde_json::from_str::<Rate>(bad).is_err(), "{bad}");
        }
    }
}
