//! Weights of a UNet under the names of diffusers, whichever of two namings the files have: that one, or the one of the
//! original code (CompVis for SD1, Stability's `generative-models` for SDXL), which numbers its blocks through.

use super::architecture::{Architecture, Variant};
use crate::models::family::DescribedWeights;
use crate::models::{Component, Error};
use crate::nn::weights::Weights;

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component, variant: Variant) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    let weights = match Original::of(&stored) {
        Some(original) => stored.renamed(move |name| original.stored(name)),
        None => stored,
    };
    Ok(DescribedWeights {
        architecture: Box::new(Architecture::of(component, &weights, variant)?),
        weights,
    })
}

/// What the original naming's numbers depend on.
#[derive(Clone, Debug)]
struct Original {
    /// Blocks of a level on the way up, and places of a level on the way down.
    per_level: usize,
    /// Whether the upsampler of each level of the way up stands behind an attention.
    upsampler_third: Vec<bool>,
}

/// Modules in front of and behind the blocks: diffusers' name, the original's.
pub(in crate::models) const OUTER: &[(&str, &str)] = &[
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// Modules of a residual block.
pub(in crate::models) const RESNET: &[(&str, &str)] = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

impl Original {
    /// If the weights have this naming.
    fn of(stored: &Weights) -> Option<Self> {
        if !stored.contains("input_blocks.0.0.weight") {
            return None;
        }
        // Block 0 is `conv_in`; a level's residual blocks follow, then what halves it, which so has their count as
        // its number.
        let first_halving =
            (1..64).find(|i| stored.contains(&format!("input_blocks.{i}.0.op.weight")));
        let per_level = first_halving.unwrap_or(3);
        let upsampler_third = (1..64)
            .map(|level| format!("output_blocks.{}", level * per_level - 1))
            .take_while(|place| stored.contains(&format!("{place}.0.in_layers.2.weight")))
            .map(|place| stored.contains(&format!("{place}.2.conv.weight")));
        Some(Self {
            per_level,
            upsampler_third: upsampler_third.collect(),
        })
    }

    /// Where a tensor of diffusers' name is. A name that is unknown stays as it is, and will not be found.
    fn stored(&self, name: &str) -> String {
        let place = name.rsplit_once('.').and_then(|(module, kind)| {
            let place = self.module(module)?;
            Some(format!("{place}.{kind}"))
        });
        place.unwrap_or_else(|| name.to_owned())
    }

    fn module(&self, module: &str) -> Option<String> {
        if let Some((_, stored)) = OUTER.iter().find(|(ours, _)| *ours == module) {
            return Some((*stored).to_owned());
        }
        if let Some(rest) = module.strip_prefix("mid_block.") {
            let (kind, i, inner) = three(rest)?;
            return match kind {
                "resnets" => Some(format!("middle_block.{}.{}", 2 * i, resnet(inner)?)),
                _ => Some(format!("middle_block.1.{inner}")),
            };
        }
        let (side, level, rest) = three(module)?;
        let (kind, i, inner) = three(rest)?;
        let first = level.checked_mul(self.per_level)?;
        let (blocks, block) = match side {
            "down_blocks" => ("input_blocks", first + i + 1),
            _ => ("output_blocks", first + i),
        };
        Some(match kind {
            "resnets" => format!("{blocks}.{block}.0.{}", resnet(inner)?),
            "attentions" => format!("{blocks}.{block}.1.{inner}"),
            "downsamplers" => format!("{blocks}.{}.0.op", first + self.per_level),
            _ => {
                let third = self.upsampler_third.get(level).copied().unwrap_or_default();
                let place = 1 + usize::from(third);
                format!("{blocks}.{}.{place}.conv", first + self.per_level - 1)
            }
        })
    }
}

/// `a.1.b.c` as `a`, 1 and `b.c`.
fn three(name: &str) -> Option<(&str, usize, &str)> {
    let (kind, rest) = name.split_once('.')?;
    let (number, rest) = rest.split_once('.')?;
    Some((kind, number.parse().ok()?, rest))
}

fn resnet(module: &str) -> Option<&'static str> {
    let found = RESNET.iter().find(|(ours, _)| *ours == module);
    found.map(|(_, stored)| *stored)
}
