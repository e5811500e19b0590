//! Times of frames, counted in frames of another rate.

use crate::recipe::latents::Rate;

/// A moment of a clip: ticks behind its first frame, and the seconds of a tick as a fraction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub ticks: u64,
    pub tick: (u32, u32),
}

impl Moment {
    /// The frame at `rate` that is nearest to it; the later one where two are equally near, as ffmpeg's `fps=round=near` has it.
    pub(super) fn frame(self, rate: Rate) -> u32 {
        let (numerator, denominator) = self.tick;
        let above = u128::from(self.ticks) * u128::from(numerator) * u128::from(rate.numerator());
        let below = u128::from(denominator.max(1)) * u128::from(rate.denominator());
        u32::try_from((2 * above + below) / (2 * below)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{Moment, Rate};

    #[test]
    fn the_nearest_frame_is_taken_and_of_two_the_later() {
        let frame = |ticks, tick, rate: (u32, u32)| {
            Moment { ticks, tick }.frame(Rate::new(rate.0, rate.1).expect("a rate"))
        };
        // 25 a second to 16: one second and a half is 24 frames.
        let of_25: Vec<u32> = (0..8).map(|n| frame(n, (1, 25), (16, 1))).collect();
        assert_eq!(of_25, [0, 1, 1, 2, 3, 3, 4, 4]);
        assert_eq!(frame(1, (1, 32), (16, 1)), 1);
        assert_eq!(frame(99, (1001, 24_000), (24_000, 1001)), 99);
        assert_eq!(frame(u64::MAX, (u32::MAX, 1), (1_000_000, 1)), u32::MAX);
        assert_eq!(frame(3, (1, 0), (1, 1)), 3);
    }
}
