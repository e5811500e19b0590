//! Latents of clips against windows of their clips: those that the Experiment takes, and those that a trainer may have taken, beginning where
//! the entry's name says, at other rates.
//!
//! Of one window fewer crops are looked at than of a picture: its frames are read and encoded anew for each.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};

use super::Error;
use super::fit::Fit;
use super::latents::Looker;
use super::place::{self, Candidate, Placement};
use crate::dataset;
use crate::dataset::clip::ClipFile;
use crate::encode;
use crate::foreign::cache::LatentFacts;
use crate::recipe::latents::{Rate, Size, View, Window};
use crate::vae::Extents;

/// Rates, in frames a second, that trainers bring clips to by default: 16 of Wan in musubi-tuner, ai-toolkit and diffusion-pipe, 24 of
/// ai-toolkit's data sets; and those at which clips mostly are, which musubi takes as they come without `source_fps`.
const RATES: [f64; 5] = [16.0, 24.0, 25.0, 30.0, 60.0];

impl Looker<'_> {
    /// Whether the picture is a clip.
    pub(super) fn is_clip(&self) -> bool {
        self.item.views.iter().any(|view| view.window.is_some())
    }

    /// The window and view of the clip that latents, [channels, frames, height, width], are likeliest of; `None` where there is none of so
    /// many frames.
    pub(super) fn best_of_clip(
        &self,
        latents: &Tensor,
        size: Size,
        (facts, start): (&LatentFacts, Option<u32>),
    ) -> Result<Option<Fit>, Error> {
        let clip = ClipFile::open(&self.item.picture).map_err(dataset::Error::from)?;
        let step = self.base.latent_geometry().factors.time.unwrap_or(1);
        let frames = latents.dim(1)?.saturating_sub(1).saturating_mul(step) + 1;
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        let views = place::candidates(self.item, size, facts);
        let mut best: Option<Fit> = None;
        for (window, own) in self.windows(&clip, frames, start) {
            for candidate in views.iter().filter(|c| is_looked_at(c)) {
                let candidate = Candidate {
                    view: View {
                        window: Some(window),
                        ..candidate.view
                    },
                    expected: candidate.expected && own,
                    ..*candidate
                };
                let Some((mean, logvar)) = self.clip_moments(&clip, candidate.view)? else {
                    continue;
                };
                let Some(fit) = self.compare(latents, candidate, (&mean, &logvar))? else {
                    continue;
                };
                if best.is_none_or(|known| fit.beats(&known)) {
                    best = Some(fit);
                }
                if fit.is_sure() {
                    return Ok(best);
                }
            }
        }
        Ok(best)
    }

    /// The windows of so many frames, and whether the Experiment has them, which come first.
    fn windows(&self, clip: &ClipFile, frames: u32, start: Option<u32>) -> Vec<(Window, bool)> {
        let of_clip = self
            .items
            .iter()
            .filter(|item| item.picture == self.item.picture);
        let own: BTreeSet<Window> = of_clip
            .flat_map(|item| item.views.iter().filter_map(|view| view.window))
            .collect();
        let rates = own.iter().map(|window| window.rate);
        let rates: Vec<Rate> = rates
            .chain(RATES.iter().filter_map(|rate| Rate::of(*rate)))
            .collect();
        // What the name says of the beginning, and else the Experiment's windows and the clip's beginning.
        let is_it = |w: &&Window| w.frames == frames && start.is_none_or(|s| s == w.start);
        let mut all: Vec<(Window, bool)> = own.iter().filter(is_it).map(|w| (*w, true)).collect();
        let mut seen = own.clone();
        for rate in rates {
            let window = Window {
                rate,
                start: start.unwrap_or(0),
                frames,
            };
            let end = window.start.saturating_add(frames);
            if end <= clip.frames_at(rate) && seen.insert(window) {
                all.push((window, false));
            }
        }
        all
    }

    /// Mean and log-variance for a view of a clip, [channels, frames, height, width] of its latents; `None` where it cannot be read.
    fn clip_moments(&self, clip: &ClipFile, view: View) -> Result<Option<(Tensor, Tensor)>, Error> {
        let extents = Extents {
            frames: view.frames() as usize,
            ..Extents::from(view.bucket)
        };
        if self.base.latent_geometry().check(extents).is_err() {
            return Ok(None);
        }
        let read = encode::clip_latents(self.encoder, clip, view, &mut |_| {});
        let moments = read.map_err(|source| encode::Error::Vae {
            path: self.item.picture.clone(),
            source,
        })?;
        let Ok(moments) = moments else {
            return Ok(None);
        };
        let cpu = |t: &Tensor| {
            let t = t.squeeze(0)?.to_device(&Device::Cpu)?;
            t.to_dtype(candle_core::DType::F32)
        };
        Ok(Some((cpu(&moments.mean)?, cpu(&moments.logvar)?)))
    }
}

/// Those that are expected, and the usual ways to bring frames to a size.
fn is_looked_at(candidate: &Candidate) -> bool {
    let usual = [Placement::Whole, Placement::Middle, Placement::Squashed];
    candidate.expected || !candidate.view.flip && usual.contains(&candidate.placement)
}
