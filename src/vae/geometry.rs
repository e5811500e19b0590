//! The latents that a denoiser sees: their extents against pixels, and their statistics.
//!
//! Shapes: b batch, c channels, f frames, h height, w width. Latents of pictures are [b, c, h, w], or [c, h, w] of one
//! sample. A VAE of videos has an axis for frames, [b, c, f, h, w] or [c, f, h, w], also for a picture: one frame.

use candle_core::{Result, Tensor, bail};
use serde::Serialize;

use crate::recipe::latents::{AutoencoderArchitecture, LatentStatistics, Size};

/// How large a picture or video is along each axis, or its latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extents {
    /// 1 for a picture.
    pub frames: usize,
    /// From top to bottom.
    pub height: usize,
    /// From left to right.
    pub width: usize,
}

impl Extents {
    /// The extents of a picture: of one frame.
    pub const fn picture(height: usize, width: usize) -> Self {
        Self {
            frames: 1,
            height,
            width,
        }
    }
}

impl From<Size> for Extents {
    fn from(size: Size) -> Self {
        Self::picture(size.height as usize, size.width as usize)
    }
}

/// Width before height; frames where there are several.
impl std::fmt::Display for Extents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.frames != 1 {
            write!(f, "{} frames of ", self.frames)?;
        }
        write!(f, "{} x {}", self.width, self.height)
    }
}

/// Pixels a latent, along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factors {
    /// Rows of pixels that become one row of latents.
    pub height: usize,
    /// Columns of pixels that become one column of latents.
    pub width: usize,
    /// Frames a latent frame, of which the first stands for one frame alone (the VAEs of Wan and others are causal in
    /// time). None for a VAE of pictures, whose latents have no axis for frames.
    pub time: Option<usize>,
}

impl Factors {
    /// The factors of an autoencoder.
    pub fn of(vae: &AutoencoderArchitecture) -> Self {
        Self {
            time: vae.frames(),
            ..Self::of_pictures(vae.factor())
        }
    }

    /// The factors of a VAE of pictures whose latents have `1 / side` of the pixels along each side.
    pub const fn of_pictures(side: usize) -> Self {
        Self {
            height: side,
            width: side,
            time: None,
        }
    }
}

/// A model's latents.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentGeometry {
    /// Channels of the latents: 4 of SD1.5 and SDXL, 16 of SD3 and FLUX.1, 32 of FLUX.2.
    pub channels: usize,
    /// Pixels a latent.
    pub factors: Factors,
    /// How the denoiser's latents come from the VAE's.
    pub statistics: LatentStatistics,
    /// Side of the squares of latents that the denoiser joins into a token: what their height and width are multiples
    /// of.
    pub patch: usize,
}

impl LatentGeometry {
    /// The geometry of this VAE's latents, for a denoiser that joins squares of `patch` x `patch` of them.
    pub fn new(vae: &AutoencoderArchitecture, statistics: &LatentStatistics, patch: usize) -> Self {
        Self {
            channels: vae.latent_channels(),
            factors: Factors::of(vae),
            statistics: statistics.clone(),
            patch,
        }
    }

    /// What heights and widths are both multiples of, in px: the least common multiple of the two, as the buckets of
    /// pictures lie and stand by one step.
    pub fn side_multiple(&self) -> u32 {
        let (height, width) = self.multiples();
        let common = (1..=width).find(|times| (times * height).is_multiple_of(width));
        // Always found: `width` times the height is one.
        (common.unwrap_or(1) * height) as u32
    }

    /// Checks that all of the pixels become whole latents and tokens.
    ///
    /// # Errors
    /// If they do not.
    pub fn check(&self, pixels: Extents) -> Result<()> {
        let (height, width) = self.multiples();
        let whole = |side: usize, multiple: usize| side > 0 && side.is_multiple_of(multiple);
        if !whole(pixels.height, height) || !whole(pixels.width, width) {
            match height == width {
                true => bail!("a picture of {pixels} px: both sides must be multiples of {width}"),
                false => bail!(
                    "a picture of {pixels} px: the width must be a multiple of {width}, the height of {height}"
                ),
            }
        }
        match self.factors.time {
            None if pixels.frames != 1 => {
                bail!("a video of {pixels} px: this model makes pictures, of 1 frame")
            }
            // The first latent frame stands for one frame, each later one for `step`.
            Some(step) if pixels.frames == 0 || !(pixels.frames - 1).is_multiple_of(step) => bail!(
                "a video of {pixels} px: the number of frames must be 1 more than a multiple of {step}"
            ),
            _ => Ok(()),
        }
    }

    /// The extents of the latents that a picture or video of this size has; what is left over at an end is dropped, as VAEs do.
    pub fn latents(&self, pixels: Extents) -> Extents {
        Extents {
            frames: match self.factors.time {
                Some(frames) if pixels.frames > 0 => 1 + (pixels.frames - 1) / frames,
                _ => pixels.frames,
            },
            height: pixels.height / self.factors.height,
            width: pixels.width / self.factors.width,
        }
    }

    /// Tokens that the denoiser makes of latents.
    pub fn tokens(&self, latents: Extents) -> usize {
        latents.frames * (latents.height / self.patch) * (latents.width / self.patch)
    }

    /// The shape of one sample's latents.
    pub fn shape(&self, latents: Extents) -> Vec<usize> {
        let Extents {
            frames,
            height,
            width,
        } = latents;
        match self.factors.time {
            None => vec![self.channels, height, width],
            Some(_) => vec![self.channels, frames, height, width],
        }
    }

    /// The extents of latents, of one sample or a batch.
    ///
    /// # Errors
    /// If they are not shaped so.
    pub fn extents(&self, latents: &Tensor) -> Result<Extents> {
        let axis = self.channel_axis(latents)?;
        match &latents.dims()[axis + 1..] {
            [height, width] => Ok(Extents::picture(*height, *width)),
            [frames, height, width] => Ok(Extents {
                frames: *frames,
                height: *height,
                width: *width,
            }),
            _ => self.misshapen(latents),
        }
    }

    /// Whether training draws from the VAE's distribution, or takes its mean: the running statistics of patches are those of means,
    /// which is what FLUX.2's authors and the trainers of its models give the denoiser (`encode` in `src/flux2/autoencoder.py`).
    pub fn draws_from_posterior(&self) -> bool {
        !matches!(self.statistics, LatentStatistics::Patches { .. })
    }

    /// Latents of one sample whose patches were joined to channels, [channels * side^2, height / side, width / side], with each number
    /// in its place, [channels, height, width]; None for latents of other channels, and where there are no statistics of patches.
    ///
    /// # Errors
    /// If the device fails.
    pub fn apart(&self, latents: &Tensor) -> Result<Option<Tensor>> {
        let LatentStatistics::Patches { side, .. } = self.statistics else {
            return Ok(None);
        };
        let (c, h, w) = latents.dims3()?;
        if c != self.channels * side * side {
            return Ok(None);
        }
        let patches = latents.reshape((self.channels, side, side, h, w))?;
        let places = patches.permute((0, 3, 1, 4, 2))?;
        Ok(Some(places.reshape((self.channels, h * side, w * side))?))
    }

    /// Latents of one sample, [channels, height, width], with patches joined to channels: [`Self::apart`] undone. As they are, where there are
    /// no statistics of patches.
    ///
    /// # Errors
    /// If they are not whole patches, or the device fails.
    pub fn joined(&self, latents: &Tensor) -> Result<Tensor> {
        let LatentStatistics::Patches { side, .. } = self.statistics else {
            return Ok(latents.clone());
        };
        let (c, h, w) = latents.dims3()?;
        let (h, w) = (h / side, w / side);
        let places = latents.reshape((c, h, side, w, side))?;
        let patches = places.permute((0, 2, 4, 1, 3))?;
        patches.reshape((c * side * side, h, w))
    }

    /// The denoiser's latents of the VAE's, of one sample or a batch.
    ///
    /// # Errors
    /// If they are not shaped so, or the device fails.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.statistics {
            // In one step, as `x * scale - shift * scale`.
            LatentStatistics::Shared { scale, shift } => latents.affine(*scale, -shift * scale),
            LatentStatistics::PerChannel { scale, mean, std } => {
                // In diffusers' order, as another one rounds otherwise: `(x - mean) * scaling_factor / std`.
                let centered = latents.broadcast_sub(&self.per_channel(mean, latents)?)?;
                (centered * *scale)?.broadcast_div(&self.per_channel(std, latents)?)
            }
            LatentStatistics::Patches { side, mean, std } => {
                self.by_patches(latents, *side, |patches| {
                    let centered = patches.broadcast_sub(&self.per_place(mean, *side, latents)?)?;
                    centered.broadcast_div(&self.per_place(std, *side, latents)?)
                })
            }
        }
    }

    /// The deviations of the denoiser's latents, of those of the VAE's: what [`Self::normalize`] multiplies by. None where the mean
    /// stands for the latents.
    ///
    /// # Errors
    /// As [`Self::normalize`].
    pub fn normalize_deviations(&self, deviations: &Tensor) -> Result<Option<Tensor>> {
        Ok(match &self.statistics {
            LatentStatistics::Shared { scale, .. } => Some((deviations * *scale)?),
            LatentStatistics::PerChannel { scale, std, .. } => {
                let std = self.per_channel(std, deviations)?;
                Some((deviations * *scale)?.broadcast_div(&std)?)
            }
            LatentStatistics::Patches { .. } => None,
        })
    }

    /// The VAE's latents of the denoiser's, of one sample or a batch: [`Self::normalize`] undone.
    ///
    /// # Errors
    /// As [`Self::normalize`].
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.statistics {
            LatentStatistics::Shared { scale, shift } => latents.affine(1.0 / scale, *shift),
            LatentStatistics::PerChannel { scale, mean, std } => {
                // Likewise: `x * std / scaling_factor + mean`.
                let spread = latents.broadcast_mul(&self.per_channel(std, latents)?)?;
                (spread / *scale)?.broadcast_add(&self.per_channel(mean, latents)?)
            }
            LatentStatistics::Patches { side, mean, std } => {
                self.by_patches(latents, *side, |patches| {
                    let spread = patches.broadcast_mul(&self.per_place(std, *side, latents)?)?;
                    spread.broadcast_add(&self.per_place(mean, *side, latents)?)
                })
            }
        }
    }

    /// What heights and widths are multiples of, in px.
    pub fn multiples(&self) -> (usize, usize) {
        let Factors { height, width, .. } = self.factors;
        (height * self.patch, width * self.patch)
    }

    /// One number a channel, in a shape that broadcasts to that of `latents`.
    fn per_channel(&self, numbers: &[f64], latents: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1; latents.rank()];
        shape[self.channel_axis(latents)?] = numbers.len();
        // Rounded once, from f64 to the type of the latents.
        Tensor::from_slice(numbers, shape, latents.device())?.to_dtype(latents.dtype())
    }

    /// `f` of latents [.., c, h, w] as [.., c, h / side, side, w / side, side], and back.
    fn by_patches(
        &self,
        latents: &Tensor,
        side: usize,
        f: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let axis = self.channel_axis(latents)?;
        let (front, [h, w]) = match latents.dims().split_at(axis + 1) {
            (front, &[h, w]) if h.is_multiple_of(side) && w.is_multiple_of(side) => (front, [h, w]),
            _ => bail!(
                "latents: expected a height and a width that are multiples of {side}, found {:?}",
                latents.dims()
            ),
        };
        let places = [front, &[h / side, side, w / side, side]].concat();
        f(&latents.reshape(places)?)?.reshape(latents.dims())
    }

    /// One number a channel and place in a patch, in a shape that broadcasts to that of [`Self::by_patches`].
    fn per_place(&self, numbers: &[f64], side: usize, like: &Tensor) -> Result<Tensor> {
        let shape = (self.channels, 1, side, 1, side);
        if numbers.len() != self.channels * side * side {
            bail!(
                "statistics of latents: expected {} numbers, found {}",
                self.channels * side * side,
                numbers.len()
            );
        }
        Tensor::from_slice(numbers, shape, like.device())?.to_dtype(like.dtype())
    }

    fn channel_axis(&self, latents: &Tensor) -> Result<usize> {
        let rank_of_one = if self.factors.time.is_some() { 4 } else { 3 };
        match latents.rank().checked_sub(rank_of_one) {
            Some(axis @ (0 | 1)) => Ok(axis),
            _ => self.misshapen(latents),
        }
    }

    fn misshapen<T>(&self, latents: &Tensor) -> Result<T> {
        let (channels, found) = (self.channels, latents.dims());
        let frames = match self.factors.time {
            Some(_) => ", frames",
            None => "",
        };
        bail!(
            "latents: expected shape [{channels}{frames}, height, width], or a batch of it, found {found:?}"
        )
    }
}

#[cfg(test)]
#[path = "geometry_tests.rs"]
mod tests;
