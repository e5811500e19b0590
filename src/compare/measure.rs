//! The losses that are compared: of every picture, at every noise level, with the same noise for everybody.

use super::Error;
use crate::autograd::Tape;
use crate::cache::ModelCache;
use crate::dataset::Item;
use crate::lora::Bound;
use crate::models::Denoiser;
use crate::monitor::Monitor;
use crate::probe::stats::mean;
use crate::train::VALIDATION_SIGMAS;
use crate::train::inputs::{DrawOptions, HeldOut};
use crate::train::step;

/// Draws of noise in which one picture's number never meets another's.
const APART: u64 = 1 << 32;

/// The losses of a picture, one for each of [`VALIDATION_SIGMAS`], each the mean of its draws.
pub(super) type LossesOf = Vec<f64>;

/// The losses of every picture.
pub(super) struct Losses {
    /// Of A and of B.
    pub(super) both: [Vec<LossesOf>; 2],
    /// Of the base model alone, where they were wanted.
    pub(super) base: Option<Vec<LossesOf>>,
}

/// Who predicts: the denoiser with adapters or without.
pub(super) struct Predictor<'a> {
    pub(super) denoiser: &'a dyn Denoiser,
    pub(super) adapters: &'a Bound,
}

/// The losses of every picture. The first draw is the one that a training validates with.
pub(super) fn losses(
    predictor: &Predictor<'_>,
    source: &ModelCache<'_>,
    pictures: &[Item],
    (draws, options): (u64, &DrawOptions),
    monitor: &dyn Monitor,
) -> Result<Vec<LossesOf>, Error> {
    let tape = Tape::off(predictor.denoiser.kernels());
    let mut all = Vec::with_capacity(pictures.len());
    for (number, item) in (0..).zip(pictures) {
        let held_out = HeldOut::read(source, item)?;
        let mut of_picture = Vec::with_capacity(VALIDATION_SIGMAS.len());
        for level in (0..).zip(VALIDATION_SIGMAS) {
            let mut sum = 0.0;
            for draw in 0..draws {
                let number = draw * APART + number;
                let batch = held_out.batch(number, level, options)?;
                sum += step::loss(predictor.denoiser, &tape, predictor.adapters, &batch)?;
            }
            of_picture.push(sum / draws as f64);
            monitor.advance(1);
        }
        all.push(of_picture);
    }
    Ok(all)
}

/// What one file gives is one number at each noise level, whatever number of windows a clip has: they are no pictures of their own, and an
/// interval over them would be too narrow. The first item of each file, in their order, and the means over its items.
pub(super) fn by_file(items: &[Item], losses: &[LossesOf]) -> (Vec<Item>, Vec<LossesOf>) {
    let mut files: Vec<(Item, Vec<&LossesOf>)> = Vec::new();
    for (item, of_item) in items.iter().zip(losses) {
        match files
            .iter_mut()
            .find(|(first, _)| first.digest == item.digest)
        {
            Some((_, all)) => all.push(of_item),
            None => files.push((item.clone(), vec![of_item])),
        }
    }
    let means = |all: &[&LossesOf]| {
        let levels = all.first().map_or(0, |of_item| of_item.len());
        let at = |level: usize| {
            all.iter()
                .map(|of_item| of_item[level])
                .collect::<Vec<f64>>()
        };
        (0..levels).map(|level| mean(&at(level))).collect()
    };
    let means = files.iter().map(|(_, all)| means(all)).collect();
    (files.into_iter().map(|(first, _)| first).collect(), means)
}

/// The mean over noise levels, picture by picture.
pub(super) fn by_picture(losses: &[LossesOf]) -> Vec<f64> {
    losses.iter().map(|of_picture| mean(of_picture)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::digest::Digest;
    use crate::recipe::latents::Size;

    #[test]
    fn windows_of_a_clip_count_as_one() {
        let item = |name: &str| Item {
            picture: PathBuf::from(name),
            digest: Digest::of(name.as_bytes()),
            size: Size {
                width: 8,
                height: 8,
            },
            captions: Vec::new(),
            written: String::new(),
            views: Vec::new(),
            repeats: 1,
            held_out: true,
            reference: None,
        };
        let items = ["a", "b", "a"].map(item);
        let losses = [vec![1.0, 2.0], vec![5.0, 5.0], vec![3.0, 6.0]];
        let (files, means) = by_file(&items, &losses);
        assert_eq!(means, [vec![2.0, 4.0], vec![5.0, 5.0]]);
        assert_eq!(files, items[..2]);
    }
}
