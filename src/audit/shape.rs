//! A tensor of a cache as the VAE's latents are shaped, and as they are scaled.

use candle_core::{Device, Tensor};

use super::Error;
use super::latents::Scaling;
use crate::foreign::cache;
use crate::models::cache_names::CacheNames;
use crate::recipe::latents::LatentStatistics;
use crate::shown;
use crate::vae::LatentGeometry;

/// Its numbers as [channels, height, width], or [channels, frames, height, width] for a VAE of clips, of which a picture is one frame; the
/// inner error is about the tensor.
pub(super) fn shaped(
    geometry: &LatentGeometry,
    tensor: &cache::Tensor,
) -> Result<Result<Tensor, String>, Error> {
    let channels = geometry.channels;
    let name = shown::text(&tensor.name);
    let of_clips = geometry.factors.time.is_some();
    // Of a batch of one.
    let found = &tensor.array.shape;
    let ones = found.iter().take_while(|n| **n == 1).count();
    let shape = match (of_clips, &found[ones..]) {
        (false, &[c, h, w] | &[c, 1, h, w]) => vec![c, h, w],
        (true, &[c, h, w]) => vec![c, 1, h, w],
        (true, &[c, f, h, w]) => vec![c, f, h, w],
        _ => {
            let frames = if of_clips { ", frames" } else { "" };
            return Ok(Err(format!(
                "tensor `{name}`: expected latents of shape [{channels}{frames}, height, width], found {found:?}"
            )));
        }
    };
    let c = shape[0];
    let latents = Tensor::from_vec(tensor.array.values.clone(), shape, &Device::Cpu)?;
    // Trainers of FLUX.2 join patches to channels before they store them.
    let apart = match of_clips {
        true => None,
        false => geometry.apart(&latents)?,
    };
    let latents = apart.unwrap_or(latents);
    if latents.dim(0)? != channels {
        return Ok(Err(format!(
            "tensor `{name}` has {c} channels, the base model's VAE gives {channels}: it was made for another base model"
        )));
    }
    Ok(Ok(latents))
}

/// What the VAE's latents would be for each way of scaling that the model has, and by how much they are more spread than these: the
/// mean of the logarithms.
pub(super) fn scalings(
    geometry: &LatentGeometry,
    caches: Option<&CacheNames>,
    latents: &Tensor,
) -> Result<Vec<(Scaling, Tensor, f64)>, Error> {
    let mut all = vec![(Scaling::OfVae, latents.clone(), 0.0)];
    if let LatentStatistics::Shared { scale, shift } = geometry.statistics {
        if (scale, shift) == (1.0, 0.0) {
            return Ok(all);
        }
        if shift != 0.0 {
            let plain = latents.affine(1.0 / scale, 0.0)?;
            all.push((Scaling::WithoutShift, plain, -scale.abs().ln()));
        }
    }
    let mean_log = |std: &[f64]| std.iter().map(|s| s.ln()).sum::<f64>() / std.len() as f64;
    let spread_by = match &geometry.statistics {
        LatentStatistics::Shared { scale, .. } => -scale.abs().ln(),
        LatentStatistics::PerChannel { scale, std, .. } => mean_log(std) - scale.abs().ln(),
        LatentStatistics::Patches { std, .. } => mean_log(std),
    };
    all.push((
        Scaling::OfDenoiser,
        geometry.denormalize(latents)?,
        spread_by,
    ));
    let kohya = caches.and_then(|names| names.kohya.as_ref()?.statistics);
    let musubi = caches.and_then(|names| names.musubi.as_ref()?.statistics);
    // Mostly both have the same, which are the model's as well.
    for (scale, shift) in kohya.into_iter().chain(musubi.filter(|_| musubi != kohya)) {
        if geometry.statistics != (LatentStatistics::Shared { scale, shift }) {
            let scaled = latents.affine(scale, -shift * scale)?;
            all.push((
                Scaling::OfTrainer,
                geometry.denormalize(&scaled)?,
                spread_by + scale.abs().ln(),
            ));
        }
    }
    Ok(all)
}
