//! The names of the autoencoder's tensors in files, and what the files tell of its architecture.
//!
//! Canonical are diffusers' names. Two others are read: diffusers' before its version 0.18 (the attention's
//! parts were called otherwise), and those of the original code (`latent-diffusion`), which Stability's single
//! files keep under `first_stage_model.`.

use std::cell::RefCell;

use candle_core::{DType, Device, Tensor};

use super::blocks::Parameters;
use super::{Decoder, Encoder};
use crate::nn::Kernels;
use crate::nn::weights::{self, Weights};
use crate::recipe::latents::{PatchNorm, VaeArchitecture, VaeEncoderArchitecture};

/// Where a whole model's file keeps its autoencoder.
const SCOPES: [&str; 3] = ["", "first_stage_model.", "vae."];

/// The same weights under canonical names and without prefix; as they are where they hold no autoencoder of a
/// known naming, so that loading says what is missing.
pub fn canonical(weights: &Weights) -> Weights {
    let has = |name: &str| weights.contains(name);
    let scope = SCOPES
        .into_iter()
        .find(|scope| has(&format!("{scope}decoder.conv_in.weight")));
    let scoped = weights.pp(scope.unwrap_or_default());
    // Told by the innermost level, which every size of the network has.
    if scoped.contains("decoder.mid.block_1.conv1.weight") {
        let levels = (0..)
            .take_while(|n| scoped.contains(&format!("decoder.up.{n}.block.0.conv1.weight")))
            .count();
        // FLUX.2's has these two within its halves, Stability's beside them.
        let within = scoped.contains("encoder.quant_conv.weight");
        scoped.renamed(move |name| match name.split_once('.') {
            Some(("quant_conv", kind)) if within => format!("encoder.quant_conv.{kind}"),
            Some(("post_quant_conv", kind)) if within => format!("decoder.post_quant_conv.{kind}"),
            _ => original_name(name, levels),
        })
    } else if scoped.contains("decoder.mid_block.attentions.0.query.weight") {
        scoped.renamed(|name: &str| {
            let parts = [
                ("to_q", "query"),
                ("to_k", "key"),
                ("to_v", "value"),
                ("to_out.0", "proj_attn"),
            ];
            replace(
                name,
                parts.map(|(new, old)| (format!(".{new}."), format!(".{old}."))),
            )
        })
    } else {
        scoped
    }
}

fn replace(name: &str, parts: impl IntoIterator<Item = (String, String)>) -> String {
    parts
        .into_iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(&from, &to))
}

/// A canonical name in the original code's naming. There, the decoder's levels are counted from the picture.
fn original_name(name: &str, levels: usize) -> String {
    let ups = (0..levels).map(|n| {
        (
            format!("decoder.up_blocks.{n}."),
            format!("decoder.up.{}.", levels - 1 - n),
        )
    });
    // Dots on both sides, so that `.norm.` is no part of `.norm1.`.
    let parts = [
        (".mid_block.resnets.0.", ".mid.block_1."),
        (".mid_block.resnets.1.", ".mid.block_2."),
        (".mid_block.attentions.0.", ".mid.attn_1."),
        (".group_norm.", ".norm."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".proj_out."),
        (".down_blocks.", ".down."),
        (".resnets.", ".block."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        (".conv_norm_out.", ".norm_out."),
        (".conv_shortcut.", ".nin_shortcut."),
    ];
    let fixed = parts.map(|(from, to)| (from.to_owned(), to.to_owned()));
    replace(name, ups.chain(fixed))
}

/// The architecture that canonical weights have, where no configuration tells it (Stability's single files).
/// The number of groups is in no shape: it is the original code's, 32.
///
/// `None` if they do not look like an autoencoder; what fits only partly is found out by loading.
pub fn architecture(weights: &Weights) -> Option<VaeArchitecture> {
    let dim = |name: &str, axis: usize| weights.shape(name)?.get(axis).copied();
    let channels = |blocks: &str| -> Vec<_> {
        // As many levels as `VaeConfig` takes.
        let levels = 0..8;
        let channels = |n| dim(&format!("{blocks}.{n}.resnets.0.conv1.weight"), 0);
        levels.map_while(channels).collect()
    };
    let block_out_channels = channels("encoder.down_blocks");
    let mut decoder_block_out_channels = channels("decoder.up_blocks");
    decoder_block_out_channels.reverse();
    let layers_per_block = (0..64)
        .take_while(|n| {
            weights.contains(&format!("encoder.down_blocks.0.resnets.{n}.conv1.weight"))
        })
        .count();
    if block_out_channels.is_empty() {
        return None;
    }
    // Of the decoder, as the encoder's last convolution has mean and log-variance: twice as many.
    let latent_channels = dim("decoder.conv_in.weight", 1)?;
    Some(VaeArchitecture {
        encoder: VaeEncoderArchitecture {
            in_channels: dim("encoder.conv_in.weight", 1)?,
            block_out_channels,
            layers_per_block,
            latent_channels,
            norm_num_groups: 32,
            use_quant_conv: weights.contains("quant_conv.weight"),
            mid_block_add_attention: weights.contains("encoder.mid_block.attentions.0.to_q.weight"),
            patch_norm: patch_norm(weights, latent_channels),
        },
        decoder_block_out_channels,
        out_channels: dim("decoder.conv_out.weight", 0)?,
        use_post_quant_conv: weights.contains("post_quant_conv.weight"),
    })
}

/// The batch norm of FLUX.2's VAE, told by its running means; its epsilon is the authors'.
fn patch_norm(weights: &Weights, latent_channels: usize) -> Option<PatchNorm> {
    let means: usize = weights.shape(NORM_TENSORS[0])?.iter().product();
    let side = (1..=16).find(|side| side * side * latent_channels == means)?;
    Some(PatchNorm { side, eps: 1e-4 })
}

/// The batch norm's means and variances.
const NORM_TENSORS: [&str; 2] = ["bn.running_mean", "bn.running_var"];

/// Canonical name and shape of every tensor of the encoder: what a latent's weights digest is taken over. The means and
/// variances of a batch norm are among them.
pub fn encoder_tensors(architecture: &VaeEncoderArchitecture) -> Vec<(String, Vec<usize>)> {
    let mut tensors = listed(|get| Encoder::build(architecture, &Kernels::NONE, get).map(drop));
    if let Some(channels) = architecture.norm_channels() {
        tensors.extend(NORM_TENSORS.map(|name| (name.to_owned(), vec![channels])));
    }
    tensors
}

/// The running means and variances of the batch norm that canonical weights have, [channels] each. None where the architecture has
/// none.
///
/// # Errors
/// If one is missing, misshapen or not finite.
pub fn norm_tensors(
    architecture: &VaeEncoderArchitecture,
    weights: &Weights,
) -> Result<Option<[Tensor; 2]>, weights::Error> {
    let Some(channels) = architecture.norm_channels() else {
        return Ok(None);
    };
    let [mean, variance] = NORM_TENSORS.map(|name| weights.get(&[channels], name));
    Ok(Some([mean?, variance?]))
}

/// Canonical name and shape of every tensor of the decoder.
pub fn decoder_tensors(architecture: &VaeArchitecture) -> Vec<(String, Vec<usize>)> {
    listed(|get| Decoder::build(architecture, &Kernels::NONE, get).map(drop))
}

/// What `build` asks for, given empty tensors: names and shapes are stated in one place only.
fn listed(
    build: impl Fn(Parameters<'_, candle_core::Error>) -> candle_core::Result<()>,
) -> Vec<(String, Vec<usize>)> {
    let list = RefCell::new(Vec::new());
    let built = build(&|shape, name| {
        list.borrow_mut().push((name.to_owned(), shape.to_vec()));
        Tensor::zeros(0, DType::F32, &Device::Cpu)
    });
    debug_assert!(built.is_ok(), "an empty tensor fits everywhere");
    list.into_inner()
}
