//! What exactly the denoiser receives for a picture, from the code that trains.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use serde::Serialize;

use super::{Error, shapes};
use crate::base_model::BaseModel;
use crate::cache::{ModelCache, StoredLatents, tensors};
use crate::dataset::{self, Item, PictureFile, ViewRules, clip};
use crate::encode::encode_pictures;
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::nn::Kernels;
use crate::recipe::latents::{Size, View};
use crate::store::Store;

/// What a picture was made of.
#[derive(Debug, Serialize)]
pub struct PictureReport {
    /// The picture's size in its file, in px.
    pub original_size: Size,
    /// How it was resized and cropped.
    pub view: View,
    /// The shapes of the tensors in the file that was written.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// Writes a picture's latents to `out`, under the rules of the Experiment's first data set, encoding the picture first
/// if the store lacks it, on the CPU.
///
/// Tensors: `mean` and `logvar` [1, channels, height, width], unscaled; `mean` alone, [1, channels, frames, height, width], where it
/// stands for the latents. Metadata: the picture's size, what it was
/// resized to, the crop's place and the bucket, in pixels, and the spec.
///
/// # Errors
/// If the picture cannot be encoded, or the file cannot be written.
pub fn latents(
    experiment: &Experiment,
    base: &BaseModel,
    store: &Store,
    picture: &Path,
    out: &Path,
    monitor: &dyn Monitor,
) -> Result<PictureReport, Error> {
    let fail = |why: String| Error::Picture {
        path: picture.into(),
        why,
    };
    let sets = experiment.datasets();
    let set = sets.first().ok_or_else(|| {
        fail("the Experiment has no [[dataset]], whose rules say how to crop it".into())
    })?;
    if clip::is_clip(picture) {
        return Err(fail(
            "it is a clip, and this command shows a picture's latents alone: give a picture, such as one of its frames".into(),
        ));
    }
    let file = PictureFile::open(picture).map_err(dataset::Error::from)?;
    let view_rules = ViewRules {
        // One picture to look at, so one view: neither random crops nor mirroring.
        crops: 1,
        flip: false,
        ..ViewRules::new(set, base.latent_geometry().side_multiple())?
    };
    let views = view_rules
        .views(file.size)
        .map_err(|e| fail(e.to_string()))?;
    let view = *views
        .first()
        .ok_or_else(|| fail("no crop of it fits its bucket".into()))?;
    let item = Item {
        picture: picture.into(),
        digest: file.digest,
        size: file.size,
        captions: vec![String::new()],
        written: String::new(),
        views,
        repeats: 1,
        held_out: false,
        reference: None,
    };
    let cpu = (&Device::Cpu, &Kernels::NONE);
    let stats = encode_pictures(base, store, &[item.viewed()], cpu, monitor)?;
    if stats.failed > 0 {
        return Err(fail("it could not be decoded, see above".into()));
    }
    let source = ModelCache::open_of(base, store, std::iter::empty(), &[item.viewed()])?;
    let StoredLatents { mean, logvar, .. } = source.reader.moments(&item, view)?;
    let mut made_of = BTreeMap::from([("mean".to_owned(), mean.unsqueeze(0)?)]);
    if let Some(logvar) = logvar {
        made_of.insert("logvar".to_owned(), logvar.unsqueeze(0)?);
    }
    let size = |s: Size| format!("{}x{}", s.width, s.height);
    let facts = BTreeMap::from([
        ("original_size".to_owned(), size(file.size)),
        ("resized".to_owned(), size(view.resized)),
        ("bucket".to_owned(), size(view.bucket)),
        ("crop_left".to_owned(), view.left.to_string()),
        ("crop_top".to_owned(), view.top.to_string()),
        ("flip".to_owned(), view.flip.to_string()),
        ("picture".to_owned(), file.digest.to_string()),
        ("spec".to_owned(), base.vae.fingerprint.to_string()),
    ]);
    tensors::write_safetensors(out, &made_of, &facts)?;
    Ok(PictureReport {
        original_size: file.size,
        view,
        tensors: shapes(&made_of),
    })
}
