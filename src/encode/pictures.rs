//! Pictures into the store: each view of each picture that the store lacks, once, as the VAE's mean and
//! log-variance.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::json;

use super::Error;
use crate::base_model::BaseModel;
use crate::cache::{Specs, tensors};
use crate::dataset::{self, PreparedPicture, Viewed};
use crate::digest::canonical_json;
use crate::monitor::Monitor;
use crate::nn::Kernels;
use crate::recipe::latents::LatentKey;
use crate::store::{NewEntry, Store};

/// Pictures decoded together, on all cores; the VAE takes them one by one. At 1024 px their pixels are 200 MB for each
/// view.
const CHUNK: usize = 16;

/// What encoding pictures came to. A view is one crop, mirrored or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PictureStats {
    /// The spec's fingerprint.
    pub spec: String,
    /// Different views asked for.
    pub views: u64,
    /// Of these, already in the store.
    pub present: u64,
    /// Encoded now.
    pub encoded: u64,
    /// Pictures that could not be read or decoded, each reported.
    pub failed: u64,
}

/// Encodes on `device`, by `kernels`, what the store lacks. A picture that does not decode is reported and passed over.
///
/// # Errors
/// If the VAE or the store fails; what was committed before stays.
pub fn encode_pictures(
    base: &BaseModel,
    store: &Store,
    pictures: &[Viewed<'_>],
    (device, kernels): (&Device, &Kernels),
    monitor: &dyn Monitor,
) -> Result<PictureStats, Error> {
    let (spec, specs) = (base.vae.fingerprint, Specs::from(base));
    let reader = store.reader_of(&[spec])?;
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for picture in pictures {
        let mut views = Vec::new();
        for &view in picture.views.iter() {
            let entry = specs.view(picture.digest, view);
            // Two data sets may hold the same picture, and a reference may be one of the pictures.
            if seen.insert(entry) && !reader.contains(&spec, &entry) {
                views.push(view);
            }
        }
        if !views.is_empty() {
            missing.push(Viewed {
                views: views.into(),
                ..picture.clone()
            });
        }
    }
    let lacking: usize = missing.iter().map(|picture| picture.views.len()).sum();
    let present = (seen.len() - lacking) as u64;
    let mut stats = PictureStats {
        spec: spec.to_string(),
        views: seen.len() as u64,
        present,
        ..PictureStats::default()
    };
    if missing.is_empty() {
        return Ok(stats);
    }
    let mut writer = store.when_free(monitor, || store.writer())?;
    writer.put_spec(&spec, &canonical_json(&base.vae.spec))?;
    let encoder = base.vae.load_encoder(device, kernels)?;
    monitor.start("pictures", Some(missing.len() as u64));
    for chunk in missing.chunks(CHUNK) {
        for (of, prepared) in chunk.iter().zip(dataset::prepare(chunk)) {
            match prepared {
                Err(error) => {
                    monitor.problem(&error.to_string());
                    stats.failed += 1;
                }
                Ok(views) => {
                    for view in views {
                        writer.put(encode(base, &encoder, of.picture, &view)?)?;
                        stats.encoded += 1;
                    }
                }
            }
            monitor.advance(1);
        }
        writer.commit_if_large()?;
    }
    writer.finish()?;
    monitor.finish();
    Ok(stats)
}

/// The pixels of a view as the VAE reads them, [1, 3, height, width].
///
/// # Errors
/// If the view has another number of pixels than its size says.
pub fn pixels(prepared: &PreparedPicture) -> candle_core::Result<Tensor> {
    let bucket = prepared.view.bucket;
    let shape = (1, 3, bucket.height as usize, bucket.width as usize);
    Tensor::from_slice(&prepared.pixels, shape, &Device::Cpu)
}

fn encode(
    base: &BaseModel,
    encoder: &crate::vae::Encoder,
    path: &Path,
    prepared: &PreparedPicture,
) -> Result<NewEntry, Error> {
    let fail = |source| Error::Vae {
        path: path.into(),
        source,
    };
    let spec = base.vae.fingerprint;
    let key = LatentKey::new(spec, prepared.digest, prepared.view);
    let pixels = pixels(prepared).and_then(|p| p.to_device(encoder.device()));
    let moments = encoder.encode(&pixels.map_err(fail)?).map_err(fail)?;
    let output = base.vae.spec.precision.output;
    let mut parts = Vec::new();
    for (name, tensor) in [("mean", &moments.mean), ("logvar", &moments.logvar)] {
        // The store keeps single samples.
        let tensor = tensor.squeeze(0).map_err(fail)?;
        parts.push((
            name.to_owned(),
            tensors::to_bytes(&tensor, output).map_err(fail)?,
        ));
    }
    let (view, size) = (prepared.view, prepared.original_size);
    Ok(NewEntry {
        entry: key.fingerprint(),
        spec,
        source: format!(
            "picture {} of {} x {} px, {} x {} at ({}, {}){}",
            prepared.digest.short(),
            size.width,
            size.height,
            view.bucket.width,
            view.bucket.height,
            view.left,
            view.top,
            if view.flip { ", mirrored" } else { "" }
        ),
        tokens: Vec::new(),
        token_count: 0,
        truncated: false,
        parts,
        key: json!(key),
    })
}
