//! What can be known of the orientation of `text_projection`; `names.rs` tells the story.

use crate::nn::weights::Weights;
use crate::text::Error;
use crate::text::names::FoundEncoder;

use super::names::{Naming, PROJECTION};

/// Two entries of OpenCLIP's own ViT-bigG-14 matrix, `[0, 1]` and `[1, 0]`, as printed in
/// <https://github.com/Stability-AI/generative-models/issues/111>.
const BIG_G_RAW: (f32, f32) = (0.0218, -0.0037);
const BIG_G_WIDTH: usize = 1280;

/// Whether the file has the matrix under OpenCLIP's name.
///
/// # Errors
/// If the names contradict each other, or shape or values show that the name lies.
pub(super) fn is_raw(
    weights: &Weights,
    found: &FoundEncoder<Naming>,
    (width, columns): (usize, usize),
) -> Result<bool, Error> {
    let name = |leaf: &str| format!("{}{leaf}", found.prefix);
    let (raw, linear) = (name("text_projection"), name(PROJECTION));
    let transposed = |reason: String| {
        Error::OfKind(format!(
            "`{linear}` in {} is stored transposed ({reason}): pooled vectors would be wrong; use a file with \
             OpenCLIP's own names or one that Hugging Face libraries wrote",
            weights.describe()
        ))
    };
    match (weights.contains(&raw), weights.shape(&linear)) {
        // Without either, the recipe's need of one is refused when tensors are required.
        (raw_is_there, None) => Ok(raw_is_there),
        (true, Some(_)) => Err(Error::Untied {
            files: weights.describe(),
            first: raw,
            second: linear,
        }),
        (false, Some(_)) if found.naming == Naming::OpenClip => Err(transposed(
            "all other names are OpenCLIP's, which would keep the matrix as `text_projection`, or it is \
             not: this cannot be told"
                .into(),
        )),
        (false, Some(shape)) if width != columns && shape == [width, columns] => {
            Err(transposed(format!("its shape is {shape:?}, a linear layer's is [{columns}, {width}]")))
        }
        (false, Some(shape)) => {
            if shape == [BIG_G_WIDTH, BIG_G_WIDTH] && holds_big_g_raw(weights, &linear)? {
                return Err(transposed("its values are those of OpenCLIP's matrix".into()));
            }
            Ok(false)
        }
    }
}

/// What a person should know when nothing tells the orientation.
pub(super) fn note(weights: &Weights, found: &FoundEncoder<Naming>) -> Option<String> {
    let linear = format!("{}{PROJECTION}", found.prefix);
    let square = weights
        .shape(&linear)
        .is_some_and(|s| s.first() == s.last());
    (square && found.naming != Naming::OpenClip && !is_symmetric_corner(weights, &linear)).then(|| {
        format!(
            "`{linear}` is square: that it is a linear layer's weight, as its name says, and not OpenCLIP's \
             transpose of it, cannot be told from {}",
            weights.describe()
        )
    })
}

fn corner(weights: &Weights, name: &str) -> Result<(f32, f32), Error> {
    let shape = weights.shape(name).unwrap_or_default();
    let &[rows, columns] = shape.as_slice() else {
        return Ok((0.0, 0.0));
    };
    // Two rows, not the whole matrix: locating reads headers only otherwise.
    let take = rows.min(2);
    let ids: Vec<u32> = (0..).take(take).collect();
    let corner =
        weights
            .clone()
            .with_dtype(candle_core::DType::F32)
            .rows((rows, columns), name, &ids)?;
    let values = corner
        .to_device(&candle_core::Device::Cpu)?
        .to_vec2::<f32>()?;
    let at = |i: usize, j: usize| {
        values
            .get(i)
            .and_then(|row| row.get(j))
            .copied()
            .unwrap_or(0.0)
    };
    Ok((at(0, 1), at(1, 0)))
}

fn holds_big_g_raw(weights: &Weights, name: &str) -> Result<bool, Error> {
    let (upper, lower) = corner(weights, name)?;
    // Four printed decimals are off by 5e-5 at most, bf16 near 0.02 by 6e-5.
    let near = |a: f32, b: f32| (a - b).abs() < 1.5e-4;
    Ok(near(upper, BIG_G_RAW.0) && near(lower, BIG_G_RAW.1))
}

/// Whether the matrix may be the identity, whose orientation does not matter.
fn is_symmetric_corner(weights: &Weights, name: &str) -> bool {
    corner(weights, name).is_ok_and(|(upper, lower)| upper == lower)
}
