//! The names of its tensors in files, and what the files tell of its architecture.
//!
//! Canonical are diffusers' names. Those of the authors' code are read too: `Wan2.1_VAE.pth`, and what ComfyUI made of it,
//! `wan_2.1_vae.safetensors`.

use super::super::names::listed;
use super::{Decoder, Encoder};
use crate::nn::Kernels;
use crate::nn::weights::Weights;
use crate::recipe::latents::{WAN_LATENTS, WanArchitecture, WanClass, WanEncoderArchitecture};

/// Where a whole model's file keeps its autoencoder.
const SCOPES: [&str; 3] = ["", "first_stage_model.", "vae."];

/// The same weights under canonical names and without prefix; `None` if they are not of this autoencoder.
pub fn canonical(weights: &Weights) -> Option<Weights> {
    for scope in SCOPES {
        let has = |name: &str| weights.contains(&format!("{scope}{name}"));
        if has("encoder.mid_block.attentions.0.to_qkv.weight") {
            return Some(weights.pp(scope));
        }
        if has("encoder.middle.1.to_qkv.weight") {
            let scoped = weights.pp(scope);
            // Told by the norms, of which each residual block has two.
            let blocks = (0..64).take_while(|n| {
                scoped.contains(&format!("encoder.downsamples.{n}.residual.0.gamma"))
            });
            let blocks = blocks.count();
            return Some(scoped.renamed(move |name: &str| original_name(name, blocks)));
        }
    }
    None
}

/// A canonical name in the authors' naming, for `blocks` residual blocks a level of the encoder.
fn original_name(name: &str, blocks: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &str| part.parse::<usize>().unwrap_or(0);
    let inner = |rest: &[&str]| {
        let parts = rest.iter().map(|part| match *part {
            "norm1" => "residual.0",
            "conv1" => "residual.2",
            "norm2" => "residual.3",
            "conv2" => "residual.6",
            "conv_shortcut" => "shortcut",
            other => other,
        });
        parts.collect::<Vec<_>>().join(".")
    };
    match parts[..] {
        ["quant_conv", last] => format!("conv1.{last}"),
        ["post_quant_conv", last] => format!("conv2.{last}"),
        [half, "conv_in", last] => format!("{half}.conv1.{last}"),
        [half, "norm_out", last] => format!("{half}.head.0.{last}"),
        [half, "conv_out", last] => format!("{half}.head.2.{last}"),
        [half, "mid_block", "attentions", _, ref rest @ ..] => {
            format!("{half}.middle.1.{}", rest.join("."))
        }
        [half, "mid_block", "resnets", n, ref rest @ ..] => {
            format!("{half}.middle.{}.{}", 2 * number(n), inner(rest))
        }
        [half, "down_blocks", n, ref rest @ ..] => {
            format!("{half}.downsamples.{n}.{}", inner(rest))
        }
        // The decoder's blocks and what doubles are counted in one row; a level has one block more than the encoder's.
        [half, "up_blocks", level, "resnets", n, ref rest @ ..] => {
            let n = number(level) * (blocks + 2) + number(n);
            format!("{half}.upsamples.{n}.{}", inner(rest))
        }
        [half, "up_blocks", level, "upsamplers", _, ref rest @ ..] => {
            let n = number(level) * (blocks + 2) + blocks + 1;
            format!("{half}.upsamples.{n}.{}", rest.join("."))
        }
        _ => name.to_owned(),
    }
}

/// The architecture that canonical weights have, where no configuration tells it (single files). The statistics are in no file: they
/// are the released VAE's, for its 16 channels.
///
/// `None` if they do not look like this autoencoder; what fits only partly is found out by loading.
pub fn architecture(weights: &Weights) -> Option<WanArchitecture> {
    let dim = |name: &str, axis: usize| weights.shape(name)?.get(axis).copied();
    let block = |n: usize| dim(&format!("encoder.down_blocks.{n}.conv1.weight"), 0);
    let down = |n: usize| weights.contains(&format!("encoder.down_blocks.{n}.resample.1.weight"));
    let base_dim = dim("encoder.conv_in.weight", 0)?;
    let (mut dim_mult, mut temporal_downsample) = (Vec::new(), Vec::new());
    let (mut n, mut num_res_blocks) = (0, 0);
    // As many levels as a configuration may have, 8, of as many blocks.
    while let (Some(width), true) = (block(n), dim_mult.len() < 8) {
        num_res_blocks = (n..n + 64).take_while(|n| block(*n).is_some()).count();
        dim_mult.push(width.checked_div(base_dim)?);
        n += num_res_blocks;
        if down(n) {
            let time = format!("encoder.down_blocks.{n}.time_conv.weight");
            temporal_downsample.push(weights.contains(&time));
            n += 1;
        }
    }
    let z_dim = dim("decoder.conv_in.weight", 1)?;
    let statistics = (z_dim == WAN_LATENTS.len()
        && temporal_downsample.len() + 1 == dim_mult.len())
    .then_some(WAN_LATENTS)?;
    let deepest = dim_mult.last().copied()?;
    Some(WanArchitecture {
        encoder: WanEncoderArchitecture {
            class: WanClass::AutoencoderKLWan,
            in_channels: dim("encoder.conv_in.weight", 1)?,
            base_dim,
            dim_mult,
            num_res_blocks,
            temporal_downsample,
            z_dim,
            latents_mean: statistics.map(|(mean, _)| mean).to_vec(),
            latents_std: statistics.map(|(_, std)| std).to_vec(),
        },
        decoder_base_dim: dim("decoder.conv_in.weight", 0)?.checked_div(deepest)?,
        out_channels: dim("decoder.conv_out.weight", 0)?,
    })
}

/// Canonical name and shape of every tensor of the encoder: what a latent's weights digest is taken over.
pub fn encoder_tensors(architecture: &WanEncoderArchitecture) -> Vec<(String, Vec<usize>)> {
    listed(|get| Encoder::build(architecture, &Kernels::NONE, get).map(drop))
}

/// Canonical name and shape of every tensor of the decoder.
pub fn decoder_tensors(architecture: &WanArchitecture) -> Vec<(String, Vec<usize>)> {
    listed(|get| Decoder::build(architecture, &Kernels::NONE, get).map(drop))
}
