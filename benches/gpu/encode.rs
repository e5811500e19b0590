//! Captions through text encoders, and pictures through the VAE. Their random weights are written to a file first, and read
//! as a model's are.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use plumb::nn::weights::Weights;
use plumb::recipe::latents::VaeEncoderArchitecture;
use plumb::rng::{Rng, Stream};
use plumb::text::activation::Activation;
use plumb::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use plumb::text::spec::EncoderMask;
use plumb::text::t5::{T5EncoderArchitecture, T5Forward, T5Mask, T5Network, T5PadRows};
use plumb::text::{Network, Residency, TextEncoder, Tokens};
use plumb::vae;
use serde_json::{Value, json};

use super::{Backend, Result, Timings, count, text};
use crate::encode::{clip_tensors, t5_tensors, write_weights};

/// All captions in one call, in bf16, until the results are back on the host.
pub(super) fn captions(case: &Value, backend: &Backend) -> Result<Value> {
    let Backend { device, kernels } = backend;
    let (network, tensors) = encoder(text(case, "model")?)?;
    let file = Path::new(text(case, "file")?);
    if !file.exists() {
        write_weights(file, &tensors)?;
    }
    let dtype = match device {
        Device::Cpu => DType::F32,
        _ => DType::BF16,
    };
    let weights = Weights::open(&[file.to_owned()])?
        .with_dtype(dtype)
        .on(device)
        .with_kernels(kernels);
    let encoder = TextEncoder::load(&*network, &weights, Residency::Resident)?;
    let tokens = tokens(
        count(case, "batch")?,
        count(case, "tokens")?,
        network.architecture().end_id(),
    );
    let timings = Timings::of(device, case, || {
        for encoded in encoder.encode(&tokens).map_err(candle_core::Error::wrap)? {
            // Brought back, as into the cache: a GPU's work is only over then.
            for part in [encoded.hidden, encoded.pooled].into_iter().flatten() {
                part.to_device(&Device::Cpu)?;
            }
        }
        Ok(())
    })?;
    Ok(json!({ "seconds": timings }))
}

/// A network, and the names and shapes of its tensors.
type Encoder = (Box<dyn Network>, Vec<(String, Vec<usize>)>);

fn encoder(name: &str) -> Result<Encoder> {
    let clip = |width, layers, heads| -> Encoder {
        let architecture = ClipTextArchitecture {
            vocab_size: 49408,
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: 77,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
            projection_dim: Some(width),
            eos_token_id: None,
        };
        let tensors = clip_tensors(&architecture);
        let forward = ClipForward {
            hidden_layer: Some(-2),
            final_norm: false,
            pooled: PooledRule::ArgmaxId,
            projection: true,
            mask: EncoderMask::None,
            chunks: None,
        };
        let network = ClipTextNetwork {
            architecture,
            forward,
        };
        (Box::new(network), tensors)
    };
    let t5 = |d_model, d_ff, num_layers, num_heads| -> Encoder {
        let architecture = T5EncoderArchitecture {
            vocab_size: 32128,
            d_model,
            d_kv: 64,
            d_ff,
            num_layers,
            num_heads,
            activation: Activation::GeluNew,
            is_gated_act: true,
            layer_norm_epsilon: 1e-6,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
        };
        let tensors = t5_tensors(&architecture);
        let forward = T5Forward {
            mask: T5Mask::None,
            pad_rows: T5PadRows::Keep,
        };
        let network = T5Network {
            architecture,
            forward,
        };
        (Box::new(network), tensors)
    };
    Ok(match name {
        "clip-g" => clip(1280, 32, 20),
        "clip-small" => clip(128, 2, 2),
        "t5-xxl" => t5(4096, 10240, 24, 64),
        "t5-small" => t5(128, 256, 2, 2),
        other => return Err(format!("no encoder `{other}`").into()),
    })
}

/// Ids that both sides make alike.
fn tokens(captions: usize, length: usize, end: u32) -> Vec<Tokens> {
    let vocabulary = 30_000;
    let caption = |i: usize| {
        let word = |j: usize| ((i * 7919 + j * 104_729) % vocabulary + 2) as u32;
        let mut ids: Vec<u32> = (0..length - 1).map(word).collect();
        ids.push(end);
        Tokens {
            ids,
            count: length,
            truncated: false,
            total: length,
        }
    };
    (0..captions).map(caption).collect()
}

/// One picture after the other, in f32, as latents are made.
pub(super) fn pictures(case: &Value, backend: &Backend) -> Result<Value> {
    let Backend { device, kernels } = backend;
    let architecture = match text(case, "model")? {
        "vae" => VaeEncoderArchitecture {
            in_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 16,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            patch_norm: None,
            use_quant_conv: false,
        },
        "vae-small" => VaeEncoderArchitecture {
            in_channels: 3,
            block_out_channels: vec![32, 64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 8,
            mid_block_add_attention: true,
            patch_norm: None,
            use_quant_conv: false,
        },
        other => return Err(format!("no autoencoder `{other}`").into()),
    };
    let file = Path::new(text(case, "file")?);
    if !file.exists() {
        write_weights(file, &vae::names::encoder_tensors(&architecture))?;
    }
    let weights = Weights::open(&[file.to_owned()])?
        .on(device)
        .with_kernels(kernels);
    let encoder = vae::Encoder::load(&architecture, &weights)?;
    let (batch, side) = (count(case, "batch")?, count(case, "px")?);
    let pixels = Rng::new(0, Stream::Noise, 0, 0).normals(batch * 3 * side * side);
    let pixels = Tensor::from_vec(pixels, (batch, 3, side, side), &Device::Cpu)?;
    let timings = Timings::of(device, case, || {
        let moments = encoder.encode(&pixels.to_device(device)?)?;
        moments.mean.to_device(&Device::Cpu)?;
        moments.logvar.to_device(&Device::Cpu)?;
        Ok(())
    })?;
    Ok(json!({ "seconds": timings }))
}
