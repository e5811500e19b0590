//! Pictures into the store: each view of each picture that the store lacks, once, as the VAE's mean and
//! log-variance.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use crate::base::{self, Base};
use crate::dataset::{PictureError, PictureFile, Prepared};
use crate::digest::{self, Digest, Fingerprint, canonical_json};
use crate::monitor::Monitor;
use crate::payload;
use crate::recipe::latents::{LatentKey, View};
use crate::store::{self, NewEntry, Store};

/// Pictures decoded together.
const CHUNK: usize = 16;

/// Why pictures could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base model.
    #[error(transparent)]
    Base(#[from] base::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A picture.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The VAE failed on a picture.
    #[error("{}: {source}", path.display())]
    Vae {
        /// The picture.
        path: PathBuf,
        /// What is wrong.
        source: candle_core::Error,
    },
    /// A key has no canonical form.
    #[error("{0}")]
    Canonical(#[from] digest::Error),
}

/// A picture and the views of it that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its file.
    pub path: PathBuf,
    /// The digest of the file.
    pub digest: Digest,
    /// The views.
    pub views: Vec<View>,
}

/// What encoding pictures came to. A view is one crop, mirrored or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatentStats {
    /// The spec's fingerprint.
    pub spec: String,
    /// Different views asked for.
    pub views: u64,
    /// Of these, already in the store.
    pub present: u64,
    /// Encoded now.
    pub encoded: u64,
    /// Pictures that could not be decoded, each reported.
    pub failed: u64,
}

/// The entry of a view.
///
/// # Errors
/// Never in practice: a key always has a canonical form.
pub fn entry(spec: Fingerprint, picture: Digest, view: View) -> Result<Fingerprint, digest::Error> {
    LatentKey::new(spec, picture, view).fingerprint()
}

/// The entries of all views of `wanted`.
///
/// # Errors
/// Never in practice: a key always has a canonical form.
pub fn entries(base: &Base, wanted: &[Wanted]) -> Result<Vec<Fingerprint>, digest::Error> {
    let views = wanted
        .iter()
        .flat_map(|w| w.views.iter().map(|&view| (w.digest, view)));
    views
        .map(|(digest, view)| entry(base.vae.fingerprint, digest, view))
        .collect()
}

/// Encodes on `device` what the store lacks. A picture that does not decode is reported and passed over.
///
/// # Errors
/// If the VAE or the store fails; what was committed before stays.
pub fn encode_pictures(
    base: &Base,
    store: &Store,
    wanted: &[Wanted],
    device: &Device,
    monitor: &dyn Monitor,
) -> Result<LatentStats, Error> {
    let spec = base.vae.fingerprint;
    let reader = store.reader_of(&[spec])?;
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for picture in wanted {
        let mut views = Vec::new();
        for &view in &picture.views {
            let entry = entry(spec, picture.digest, view)?;
            if seen.insert(entry) && !reader.contains(&spec, &entry) {
                views.push(view);
            }
        }
        if !views.is_empty() {
            missing.push(Wanted {
                views,
                ..picture.clone()
            });
        }
    }
    let lacking: usize = missing.iter().map(|w| w.views.len()).sum();
    let present = (seen.len() - lacking) as u64;
    let mut stats = LatentStats {
        spec: spec.to_string(),
        views: seen.len() as u64,
        present,
        ..LatentStats::default()
    };
    if missing.is_empty() {
        return Ok(stats);
    }
    let mut writer = store.writer()?;
    writer.put_spec(&spec, &canonical_json(&base.vae.spec)?)?;
    let encoder = base.vae.load_encoder(device)?;
    monitor.start("pictures", Some(missing.len() as u64));
    for chunk in missing.chunks(CHUNK) {
        let prepared: Vec<_> = chunk.par_iter().map(prepare).collect();
        for (picture, prepared) in chunk.iter().zip(prepared) {
            match prepared {
                Err(error) => {
                    monitor.problem(&error.to_string());
                    stats.failed += 1;
                }
                Ok(views) => {
                    for view in views {
                        writer.put(encode(base, &encoder, &picture.path, &view)?)?;
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

fn prepare(wanted: &Wanted) -> Result<Vec<Prepared>, PictureError> {
    PictureFile::open(&wanted.path)?
        .expect(&wanted.digest)?
        .prepare_all(&wanted.views)
}

/// The pixels of a view as the VAE reads them, [1, 3, height, width].
///
/// # Errors
/// If the view has another number of pixels than its size says.
pub fn pixels(prepared: &Prepared) -> candle_core::Result<Tensor> {
    let bucket = prepared.view.bucket;
    let shape = (1, 3, bucket.height as usize, bucket.width as usize);
    Tensor::from_slice(&prepared.pixels, shape, &Device::Cpu)
}

fn encode(
    base: &Base,
    encoder: &crate::vae::Encoder,
    path: &Path,
    prepared: &Prepared,
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
        let tensor = tensor.squeeze(0).map_err(fail)?;
        parts.push((
            name.to_owned(),
            payload::to_bytes(&tensor, output).map_err(fail)?,
        ));
    }
    let (view, size) = (prepared.view, prepared.original_size);
    Ok(NewEntry {
        entry: key.fingerprint()?,
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
        key: serde_json::to_value(&key)
            .map_err(|e| digest::Error::NoCanonicalForm(e.to_string()))?,
    })
}
