//! The ways in which trainers bring a picture to the size of its latents: which part of it they keep, and by which filter they resize.
//!
//! - scaled to cover the size, and the middle kept: kohya, musubi, OneTrainer, diffusion-pipe (with Pillow's `ImageOps.fit`); SimpleTuner and
//!   ai-toolkit by default
//! - another part of that: a random crop (ai-toolkit and OneTrainer write where; SimpleTuner, diffusers do not), or `crop_style = "corner"`
//! - squashed to the size: SimpleTuner's `crop = false`
//! - not resized: kohya's `bucket_no_upscale`
//!
//! Other crops of the picture that covers the size are looked for where none of these gives the latents and nothing is written.

use std::path::PathBuf;

use serde::Serialize;

use crate::dataset::Item;
use crate::foreign::cache::LatentFacts;
use crate::recipe::latents::{Resampling, Size, View, Window};

/// Which part of a picture latents are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// All of it, scaled to the size of the latents: they have its shape.
    Whole,
    /// The middle, scaled to cover the size.
    Middle,
    /// The left end of it, scaled to cover the size.
    Left,
    /// The right end.
    Right,
    /// The upper end.
    Top,
    /// The lower end.
    Bottom,
    /// Another part of it.
    Elsewhere,
    /// All of it, scaled to the size without regard to its shape.
    Squashed,
    /// The middle, not scaled.
    Unscaled,
}

/// Tensors that are of the same part of their pictures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placed {
    /// Which part.
    pub placement: Placement,
    /// Whether it is mirrored.
    pub mirrored: bool,
    /// By which filter it was resized: one of these, which cannot be told apart.
    pub resampling: Vec<Resampling>,
    /// Whether the cache says so itself or, where it says nothing, the Experiment; or else the middle.
    pub expected: bool,
    /// Whether that gives the latents, and not only nearly.
    pub reproduced: bool,
    /// Of a clip, which frames, where that is not expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Tensors.
    pub tensors: usize,
    /// The first of their files.
    pub first: PathBuf,
}

/// The placement of a picture that comes nearest to latents.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Nearest {
    /// Which part of the picture.
    pub placement: Placement,
    /// Whether it is mirrored.
    pub mirrored: bool,
    /// How its latents correlate with these, channel by channel.
    pub correlation: f64,
}

/// A way that is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) view: View,
    pub(super) placement: Placement,
    /// Whether what is written beside the latents, or else the Experiment, says so; or else the middle.
    pub(super) expected: bool,
}

/// The filters that a resized picture may be from, other than the spec's.
pub(super) const FILTERS: [Resampling; 3] = [
    Resampling::Lanczos3,
    Resampling::Bicubic,
    Resampling::Bilinear,
];

/// How many times as many pixels as the latents' a picture may have in which a crop is looked for.
const MOST_SEARCHED: u64 = 4;

/// The ways to bring a picture to latents of `size`, each once: first those that are expected, then the others.
pub(super) fn candidates(item: &Item, size: Size, facts: &LatentFacts) -> Vec<Candidate> {
    let flip = facts.flipped;
    let mut all: Vec<Candidate> = Vec::new();
    let mut add = |view: View, expected: bool| {
        if fits(view) && all.iter().all(|known| known.view != view) {
            all.push(Candidate {
                view,
                placement: named(view, item.size),
                expected,
            });
        }
    };
    let cover = covering(item.size, size);
    if let Some([left, top]) = facts.crop {
        let resized = facts
            .resized
            .map_or(cover, |[width, height]| Size { width, height });
        let view = at(resized, (left, top), size, flip);
        add(view, true);
    } else {
        let own = item.views.iter().filter(|view| view.bucket == size);
        own.filter(|view| view.flip == flip || !flip)
            .for_each(|view| add(*view, true));
        let is_own = item.views.iter().any(|view| view.bucket == size);
        let view = at(cover, middle(cover, size), size, flip);
        add(view, !is_own);
    }
    for flip in [flip, !flip] {
        let end = (
            cover.width.saturating_sub(size.width),
            cover.height.saturating_sub(size.height),
        );
        for place in [middle(cover, size), (0, 0), end] {
            let view = at(cover, place, size, flip);
            add(view, false);
        }
        add(at(size, (0, 0), size, flip), false);
        let view = at(item.size, middle(item.size, size), size, flip);
        add(view, false);
        // The expected ones, mirrored.
        for own in item.views.iter().filter(|view| view.bucket == size) {
            let view = View { flip, ..*own };
            add(view, false);
        }
        if let (Some([left, top]), Some([width, height])) = (facts.crop, facts.resized) {
            let view = at(Size { width, height }, (left, top), size, flip);
            add(view, false);
        }
    }
    all
}

/// The views of all of the covering picture that whole latents can be made of, mirrored or not, where that is more than `size` and not
/// so much more that it would take long. `step`: pixels of a latent, across and down.
pub(super) fn wholes(item: &Item, size: Size, step: [u32; 2]) -> Vec<View> {
    let cover = covering(item.size, size);
    let area = |size: Size| u64::from(size.width) * u64::from(size.height);
    if cover == size || area(cover) > MOST_SEARCHED * area(size) {
        return Vec::new();
    }
    let whole = Size {
        width: cover.width / step[0] * step[0],
        height: cover.height / step[1] * step[1],
    };
    let views = [false, true].map(|flip| at(cover, (0, 0), whole, flip));
    views.into_iter().filter(|view| fits(*view)).collect()
}

/// The part of such a view that begins at these pixels of it, as it is shown.
pub(super) fn part(whole: View, size: Size, [x, y]: [u32; 2]) -> View {
    let left = match whole.flip {
        true => whole
            .bucket
            .width
            .saturating_sub(x.saturating_add(size.width)),
        false => x,
    };
    at(whole.resized, (left, y), size, whole.flip)
}

/// Crops that lie `by` pixels beside one.
pub(super) fn around(view: View, by: u32, item: &Item) -> Vec<Candidate> {
    let View { left, top, .. } = view;
    let places = [
        (left.checked_sub(by), Some(top)),
        (left.checked_add(by), Some(top)),
        (Some(left), top.checked_sub(by)),
        (Some(left), top.checked_add(by)),
    ];
    let views = places.into_iter().filter_map(|(left, top)| {
        let view = View {
            left: left?,
            top: top?,
            ..view
        };
        fits(view).then_some(view)
    });
    views.map(|view| unexpected(view, item)).collect()
}

/// A view that fits, and that nothing names.
pub(super) fn unexpected(view: View, item: &Item) -> Candidate {
    Candidate {
        view,
        placement: named(view, item.size),
        expected: false,
    }
}

/// The size of a picture that is scaled until it covers `size`, as kohya and musubi round it.
fn covering(original: Size, size: Size) -> Size {
    let ratio = |a: u32, b: u32| f64::from(a) / f64::from(b.max(1));
    let scale = ratio(size.width, original.width).max(ratio(size.height, original.height));
    let side =
        |original: u32, least: u32| ((f64::from(original) * scale).round() as u32).max(least);
    Size {
        width: side(original.width, size.width),
        height: side(original.height, size.height),
    }
}

fn middle(resized: Size, size: Size) -> (u32, u32) {
    (
        resized.width.saturating_sub(size.width) / 2,
        resized.height.saturating_sub(size.height) / 2,
    )
}

fn at(resized: Size, (left, top): (u32, u32), bucket: Size, flip: bool) -> View {
    View {
        resized,
        left,
        top,
        bucket,
        flip,
        resampling: Resampling::Spec,
        window: None,
    }
}

/// Whether a view lies in its picture, and is of a size that can be computed: a hostile one would be a picture of gigabytes.
fn fits(view: View) -> bool {
    let View {
        resized, bucket, ..
    } = view;
    let inside = |start: u32, side: u32, whole: u32| {
        side > 0 && start.checked_add(side).is_some_and(|end| end <= whole)
    };
    inside(view.left, bucket.width, resized.width)
        && inside(view.top, bucket.height, resized.height)
        && u64::from(resized.width) * u64::from(resized.height) <= 1 << 26
}

/// What a view that fits keeps of a picture of that size.
fn named(view: View, original: Size) -> Placement {
    let View {
        resized,
        left,
        top,
        bucket,
        ..
    } = view;
    let place = (left, top);
    let end = (resized.width - bucket.width, resized.height - bucket.height);
    if resized == original
        && resized != covering(original, bucket)
        && place == middle(resized, bucket)
    {
        return Placement::Unscaled;
    }
    match end {
        (0, 0) if covering(original, bucket) == resized => Placement::Whole,
        (0, 0) => Placement::Squashed,
        _ if place == middle(resized, bucket) => Placement::Middle,
        (_, 0) if left == 0 => Placement::Left,
        (wide, 0) if left == wide => Placement::Right,
        (0, _) if top == 0 => Placement::Top,
        (0, high) if top == high => Placement::Bottom,
        _ => Placement::Elsewhere,
    }
}
