//! How far a flow's noise levels are shifted towards noise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tokens of a picture and the natural logarithm of its shift, between which FLUX.1's authors draw a line
/// (black-forest-labs/flux `sampling.py` `get_schedule`): 256 x 256 px and 1024 x 1024 px.
const LINE: [(f64, f64); 2] = [(256.0, 0.5), (4096.0, 1.15)];

/// FLUX.2's lines, slope and start, of so many sampling steps (`compute_empirical_mu` of black-forest-labs/flux2
/// `src/flux2/sampling.py`); the second is FLUX.1's to five digits.
const FEW_STEPS: (f64, f64, f64) = (10.0, 8.738_095_24e-5, 1.898_333_33);
const MANY_STEPS: (f64, f64, f64) = (200.0, 1.6927e-4, 0.456_666_66);

/// Beyond so many tokens the steps play no part.
const STEPS_COUNT_TO: f64 = 4300.0;

/// The shift of a flow's noise levels: `shift * s / (1 + (shift - 1) * s)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number, \"resolution\" or \"steps\"")]
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
    /// FLUX.2's rule: as `resolution`, and the more the fewer steps a picture is sampled in; 7.6 at 1024 x 1024 px in 50 steps,
    /// 9.9 in 4. In training, where nothing is sampled, it is `resolution`, as in musubi-tuner (`flux2_shift`).
    Steps,
}

impl Shift {
    /// The shift for latents of so many tokens.
    pub fn at(self, tokens: usize) -> f64 {
        let Self::By(ShiftRule::Resolution | ShiftRule::Steps) = self else {
            return self.fixed().unwrap_or(1.0);
        };
        let tokens = tokens as f64;
        let [(least, low), (most, high)] = LINE;
        (low + (high - low) * (tokens - least) / (most - least)).exp()
    }

    /// The shift for a picture of so many tokens that is sampled in so many steps.
    pub fn of_sampling(self, tokens: usize, steps: usize) -> f64 {
        if self != Self::By(ShiftRule::Steps) {
            return self.at(tokens);
        }
        let tokens = tokens as f64;
        let line = |(_, slope, start): (f64, f64, f64)| slope * tokens + start;
        let (few, many) = (line(FEW_STEPS), line(MANY_STEPS));
        if tokens > STEPS_COUNT_TO {
            return many.exp();
        }
        let slope = (many - few) / (MANY_STEPS.0 - FEW_STEPS.0);
        (slope * steps as f64 + many - MANY_STEPS.0 * slope).exp()
    }

    /// What a model's scheduler says, for one of this shift: a configuration has the line of `resolution` and nothing of steps, and
    /// FLUX.2's pipelines count these themselves.
    #[must_use]
    pub fn as_scheduler_says(self, said: Self) -> Self {
        match (self, said) {
            (Self::By(ShiftRule::Steps), Self::By(ShiftRule::Resolution)) => self,
            _ => said,
        }
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

    /// `compute_empirical_mu` of diffusers 0.42.1's Flux2Klein pipeline, exponentiated.
    #[test]
    fn few_steps_are_shifted_more_as_flux2_is() {
        let rule = Shift::By(ShiftRule::Steps);
        for (tokens, steps, shift) in [
            (4096, 50, 7.563_629_421),
            (4096, 4, 9.886_595_938),
            (256, 50, 5.061_219_539),
            (1024, 20, 6.796_091_182),
            (4301, 4, 3.269_695_725),
            (4300, 200, 3.269_142_310),
        ] {
            let found = rule.of_sampling(tokens, steps);
            assert!(
                (found / shift - 1.0).abs() < 1e-6,
                "{tokens} in {steps}: {found}"
            );
        }
        assert_eq!(rule.at(4096), Shift::By(ShiftRule::Resolution).at(4096));
        let resolution = Shift::By(ShiftRule::Resolution);
        assert_eq!(resolution.of_sampling(4096, 4), resolution.at(4096));
        assert_eq!(rule.as_scheduler_says(resolution), rule);
        assert_eq!(rule.as_scheduler_says(Shift::Fixed(3.0)), Shift::Fixed(3.0));
        assert_eq!(resolution.as_scheduler_says(resolution), resolution);
    }

    #[test]
    fn a_file_has_a_number_or_the_word() {
        let read = |text: &str| serde_json::from_str::<Shift>(text).map_err(|e| e.to_string());
        assert_eq!(read("3"), Ok(Shift::Fixed(3.0)));
        assert_eq!(read("\"resolution\""), Ok(Shift::By(ShiftRule::Resolution)));
        assert_eq!(read("\"steps\""), Ok(Shift::By(ShiftRule::Steps)));
        assert_eq!(
            read("\"big\""),
            Err("expected a number, \"resolution\" or \"steps\"".to_owned())
        );
    }
}
