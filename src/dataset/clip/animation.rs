//! Animated pictures as clips.

use std::borrow::Cow;

use super::Decode;
use super::times::Moment;
use crate::dataset::picture::{Animation, AnimationFrames};
use crate::recipe::latents::{Rate, Window};

/// Seconds of the ticks that an animation's times are told in.
const MICROSECONDS: (u32, u32) = (1, 1_000_000);

/// How many frames it has at a rate.
pub(super) fn frames_at(animation: &Animation, rate: Rate) -> u32 {
    let ticks = animation.times.iter().sum();
    let end = Moment {
        ticks,
        tick: MICROSECONDS,
    };
    end.frame(rate).max(1)
}

/// Begins to decode a window.
///
/// # Errors
/// What the decoder says of the file.
pub(super) fn decoder(animation: &Animation, window: Window) -> Result<Frames, String> {
    let mut ticks = 0;
    let mut starts = Vec::with_capacity(animation.times.len());
    for time in &animation.times {
        let tick = MICROSECONDS;
        starts.push(Moment { ticks, tick }.frame(window.rate));
        ticks += time;
    }
    Ok(Frames {
        frames: animation.decode()?,
        starts: starts.into_iter().peekable(),
        at: window.start,
        shown: Vec::new(),
    })
}

/// The frames that are to be seen at each moment of a rate.
pub(super) struct Frames {
    frames: AnimationFrames,
    /// The moment from which each frame that is not decoded yet is seen.
    starts: std::iter::Peekable<std::vec::IntoIter<u32>>,
    /// The next moment.
    at: u32,
    shown: Vec<u8>,
}

impl Decode for Frames {
    fn next(&mut self) -> Result<Cow<'_, [u8]>, String> {
        // The last of those that begin by then; the others are decoded as well, since later ones are drawn over them.
        while self.starts.next_if(|&start| start <= self.at).is_some() {
            self.shown = self.frames.next()?;
        }
        self.at += 1;
        Ok(Cow::Borrowed(&self.shown))
    }
}
