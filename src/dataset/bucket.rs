//! Which size a picture is brought to, and which part of it is kept: kohya's aspect-ratio buckets.
//!
//! The rule is that of `BucketManager` in kohya's sd-scripts (`library/train_util.py`,
//! `library/model_util.py: make_bucket_resolutions`), number for number; `tools/goldens/buckets.py` states it
//! in words. A picture is scaled to cover its bucket and cropped, never padded.

use crate::recipe::latents::{Resampling, Size, View};

/// A resized picture of more than this many times its bucket's pixels is refused: scaling a strip until it
/// covers a bucket would need any amount of memory, and keep next to nothing of it.
const MOST_OVERHANG: u64 = 32;

/// What buckets there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRules {
    /// The size whose area no bucket exceeds.
    pub resolution: Size,
    /// The shortest side of a bucket.
    pub min: u32,
    /// The longest side of a bucket.
    pub max: u32,
    /// What every side is a multiple of.
    pub step: u32,
    /// Whether the resolution is the only bucket.
    pub single: bool,
    /// Whether pictures of less than the resolution's area keep their size instead of being enlarged; buckets
    /// are then whatever whole steps a picture has, and `min` and `max` do not count.
    pub no_upscale: bool,
}

impl BucketRules {
    /// Buckets around a square: sides from half to twice its side, in steps of 64.
    pub fn around(side: u32) -> Self {
        let step = 64;
        Self {
            resolution: Size {
                width: side,
                height: side,
            },
            min: (side / 2 / step * step).max(step),
            max: (side.saturating_mul(2)).div_ceil(step) * step,
            step,
            single: false,
            no_upscale: false,
        }
    }
}

/// Why there are no such buckets, or none for a picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// The rules contradict each other or what the model needs.
    #[error("buckets: {0}")]
    Rules(String),
    /// The picture has not one whole step.
    #[error(
        "{}x{} pixels are less than one step of {step}: use a larger picture, or let it be enlarged (no_upscale = false)",
        picture.width, picture.height
    )]
    TooSmall {
        /// The picture's size.
        picture: Size,
        /// The rules' step.
        step: u32,
    },
    /// The picture is a strip.
    #[error(
        "{}x{} pixels are too narrow for any bucket (the nearest is {}x{}): crop the picture",
        picture.width, picture.height, bucket.width, bucket.height
    )]
    TooNarrow {
        /// The picture's size.
        picture: Size,
        /// The bucket of the nearest shape.
        bucket: Size,
    },
}

/// The size a picture is resized to, and that of the part that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// At least the bucket on both sides.
    pub resized: Size,
    /// What is kept.
    pub bucket: Size,
}

/// The buckets of one set of rules.
#[derive(Clone, Debug)]
pub struct Buckets {
    rules: BucketRules,
    area: u64,
    /// In order of width and height; empty under `no_upscale`, where each picture has its own.
    sizes: Vec<Size>,
}

impl Buckets {
    /// The buckets of `rules`, for a model whose pictures must have sides that are multiples of `multiple`.
    ///
    /// # Errors
    /// If the rules contradict each other or that multiple.
    pub fn new(rules: BucketRules, multiple: u32) -> Result<Self, BucketError> {
        let BucketRules {
            resolution,
            min,
            max,
            step,
            ..
        } = rules;
        let fail = |problem: String| Err(BucketError::Rules(problem));
        let (short, long) = (
            resolution.width.min(resolution.height),
            resolution.width.max(resolution.height),
        );
        // Bounded, so that `candidates` ends soon and no side overflows.
        if short == 0 || long > 1 << 16 {
            return fail(format!(
                "the resolution is {}x{}, expected sides of 1 to 65536",
                resolution.width, resolution.height
            ));
        }
        if step == 0 || multiple == 0 || step % multiple != 0 {
            return fail(format!(
                "the step is {step}, expected a multiple of {multiple}, as the model needs"
            ));
        }
        // Without others, the resolution is the one bucket, and no step leads to it.
        let is_single = rules.single && !rules.no_upscale;
        if is_single && (short % multiple != 0 || long % multiple != 0) {
            return fail(format!(
                "the only one is {}x{}, expected multiples of {multiple}, as the model needs",
                resolution.width, resolution.height
            ));
        }
        if !is_single && (min == 0 || min % step != 0 || max % step != 0 || max > 1 << 16) {
            return fail(format!(
                "the sides are {min} to {max}, expected multiples of the step {step} up to 65536"
            ));
        }
        if !is_single && (min > short || max < long) {
            return fail(format!(
                "the sides are {min} to {max}, which the resolution {}x{} exceeds",
                resolution.width, resolution.height
            ));
        }
        let area = u64::from(resolution.width) * u64::from(resolution.height);
        let sizes = match rules {
            BucketRules {
                no_upscale: true, ..
            } => Vec::new(),
            BucketRules { single: true, .. } => vec![resolution],
            _ => candidates(area, rules),
        };
        Ok(Self { rules, area, sizes })
    }

    /// Every bucket, in order of width and height; empty where nothing is enlarged.
    pub fn sizes(&self) -> &[Size] {
        &self.sizes
    }

    /// Where a picture of this size goes.
    ///
    /// # Errors
    /// If it is too small to give one step, or a strip.
    pub fn place(&self, picture: Size) -> Result<Placement, BucketError> {
        let step = self.rules.step;
        if picture.width == 0 || picture.height == 0 {
            return Err(BucketError::TooSmall { picture, step });
        }
        let placement = match self.rules.no_upscale {
            true => self.keeping_size(picture),
            false => self.nearest(picture),
        };
        let Some(Placement { resized, bucket }) = placement else {
            return Err(BucketError::TooSmall { picture, step });
        };
        if area(resized) > MOST_OVERHANG * area(bucket) {
            return Err(BucketError::TooNarrow { picture, bucket });
        }
        Ok(Placement { resized, bucket })
    }

    fn nearest(&self, picture: Size) -> Option<Placement> {
        let ratio = aspect(picture);
        let error = |size: &Size| (aspect(*size) - ratio).abs();
        let bucket = match self.sizes.contains(&picture) {
            true => picture,
            // The first of equals, as `min_by` and kohya's `argmin` give it.
            false => *self
                .sizes
                .iter()
                .min_by(|a, b| error(a).total_cmp(&error(b)))?,
        };
        // By the side that must not fall short; the other one overhangs and is cropped.
        let scale = if ratio > aspect(bucket) {
            f64::from(bucket.height) / f64::from(picture.height)
        } else {
            f64::from(bucket.width) / f64::from(picture.width)
        };
        let resized = Size {
            width: half_up(f64::from(picture.width) * scale),
            height: half_up(f64::from(picture.height) * scale),
        };
        Some(Placement { resized, bucket })
    }

    fn keeping_size(&self, picture: Size) -> Option<Placement> {
        let step = self.rules.step;
        let mut resized = picture;
        if area(picture) > self.area {
            let ratio = aspect(picture);
            let to_steps = |x: f64| half_up(x) / step * step;
            let width = (self.area as f64 * ratio).sqrt();
            let height = self.area as f64 / width;
            let by_width = to_steps(width);
            let its_height = to_steps(f64::from(by_width) / ratio);
            let by_height = to_steps(height);
            let its_width = to_steps(f64::from(by_height) * ratio);
            if [by_width, its_height, by_height, its_width].contains(&0) {
                return None;
            }
            let error = |width, height| (f64::from(width) / f64::from(height) - ratio).abs();
            // The height where equal, as in kohya.
            resized = if error(by_width, its_height) < error(its_width, by_height) {
                Size {
                    width: by_width,
                    height: half_up(f64::from(by_width) / ratio),
                }
            } else {
                Size {
                    width: half_up(f64::from(by_height) * ratio),
                    height: by_height,
                }
            };
        }
        let bucket = Size {
            width: resized.width / step * step,
            height: resized.height / step * step,
        };
        (bucket.width > 0 && bucket.height > 0).then_some(Placement { resized, bucket })
    }
}

impl Placement {
    /// The views of a picture: `crops` places from one end of the overhang to the other (1: the middle), each
    /// also mirrored if `flip`. Places that coincide are given once.
    pub fn views(&self, crops: u32, flip: bool) -> Vec<View> {
        let slack = |resized: u32, bucket: u32| u64::from(resized.saturating_sub(bucket));
        let (wide, high) = (
            slack(self.resized.width, self.bucket.width),
            slack(self.resized.height, self.bucket.height),
        );
        let place = |slack: u64, n: u32| match crops {
            // 0 is refused by the Experiment; here it must not divide.
            0 | 1 => (slack / 2) as u32,
            _ => (slack * u64::from(n) / u64::from(crops - 1)) as u32,
        };
        let mut views: Vec<View> = (0..crops.max(1))
            .map(|n| View {
                resized: self.resized,
                left: place(wide, n),
                top: place(high, n),
                bucket: self.bucket,
                flip: false,
                resampling: Resampling::Spec,
                window: None,
            })
            .collect();
        // Places only move on, so equal ones are neighbours.
        views.dedup();
        if flip {
            views = views
                .into_iter()
                .flat_map(|v| [v, View { flip: true, ..v }])
                .collect();
        }
        views
    }
}

fn candidates(area: u64, rules: BucketRules) -> Vec<Size> {
    let BucketRules { min, max, step, .. } = rules;
    let square = (area as f64).sqrt() as u32 / step * step;
    // In order of width and height, which decides between buckets that are equally near.
    let mut sizes = std::collections::BTreeSet::new();
    if square > 0 {
        sizes.insert(Size {
            width: square,
            height: square,
        });
    }
    for width in (min..=max).step_by(step as usize) {
        let height = (area / u64::from(width)).min(u64::from(max)) as u32 / step * step;
        if height >= min {
            sizes.insert(Size { width, height });
            sizes.insert(Size {
                width: height,
                height: width,
            });
        }
    }
    sizes.into_iter().collect()
}

fn area(size: Size) -> u64 {
    u64::from(size.width) * u64::from(size.height)
}

fn aspect(size: Size) -> f64 {
    f64::from(size.width) / f64::from(size.height)
}

/// To the nearest whole number, halves up: kohya's `int(x + 0.5)`, not Python's `round`, which takes halves to even.
fn half_up(x: f64) -> u32 {
    (x + 0.5) as u32
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
