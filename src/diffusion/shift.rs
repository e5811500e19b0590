//! How far a flow's noise levels are shifted towards noise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tokens of a picture and the natural logarithm of its shift, between which FLUX.1's authors draw a line
/// (black-forest-labs/flux `sampling.py` `get_schedule`): 256 x 256 px and 1024 x 1024 px.
const LINE: [(f64, f64); 2] = [(256.0, 0.5), (4096.0, 1.15)];

/// The shift of a flow's noise levels: `shift * s / (1 + (shift - 1) * s)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number, or \"resolution\"")]
pub enum Shift {
    /// The same for every picture; 1 is none.
    Fixed(f64),
    /// Another one for each picture, by a rule.
    By(ShiftRule),
}

/// A rule by which a picture's size decides its shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShiftRule {
    /// The larger a picture, the more: FLUX.1-dev's rule (`flux_shift` in kohya's sd-scripts and others), whose
    /// logarithm grows with the number of tokens; 1.88 at 512 x 512 px, 3.16 at 1024 x 1024 px.
    Resolution,
}

impl Shift {
    /// The shift for latents of so many tokens.
    pub fn at(self, tokens: usize) -> f64 {
        let Self::By(ShiftRule::Resolution) = self else {
            return self.fixed().unwrap_or(1.0);
        };
        let tokens = tokens as f64;
        let [(least, low), (most, high)] = LINE;
        (low + (high - low) * (tokens - least) / (most - least)).exp()
    }

    /// The number, where it is one.
    pub fn fixed(self) -> Option<f64> {
        match self {
            Self::Fixed(shift) => Some(shift),
            Self::By(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Shift, ShiftRule};

    /// `calculate_shift` of diffusers 0.42.1's Flux pipeline, exponentiated.
    #[test]
    fn larger_pictures_are_shifted_more_as_flux_dev_is() {
        let rule = Shift::By(ShiftRule::Resolution);
        for (height, width, shift) in [
            (32, 32, 1.648_721_27),
            (64, 64, 1.877_610_56),
            (128, 128, 3.158_192_91),
            (96, 160, 3.024_260_71),
        ] {
            let found = rule.at(height / 2 * (width / 2));
            assert!((found - shift).abs() < 1e-6, "{height} x {width}: {found}");
        }
        assert_eq!(Shift::Fixed(3.0).at(4096), 3.0);
    }

    #[test]
    fn a_file_has_a_number_or_the_word() {
        let read = |text: &str| serde_json::from_str::<Shift>(text).map_err(|e| e.to_string());
        assert_eq!(read("3"), Ok(Shift::Fixed(3.0)));
        assert_eq!(read("\"resolution\""), Ok(Shift::By(ShiftRule::Resolution)));
        assert_eq!(
            read("\"big\""),
            Err("expected a number, or \"resolution\"".to_owned())
        );
    }
}
