//! Looking inside: what exactly the denoiser receives for a caption or a picture, and how a caption was cut into
//! tokens. Everything comes from the same code as training.

pub mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Serialize;

use crate::base_model::{BaseModel, TextEncoderPart};
use crate::cache::{self, Moments, Source, tensors};
use crate::dataset::{self, Item, PictureError, PictureFile, Placing};
use crate::encode::{self, EncodeOptions, encode_captions, encode_pictures, tokenize};
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::recipe::latents::{Size, View};
use crate::recipe::rules::DenoiserMask;
use crate::store::{self, Store};
use crate::text::Tokens;

/// Why something could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A caption or picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// The pictures' rules.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The picture cannot be used.
    #[error("{}: {why}", path.display())]
    Picture {
        /// The picture.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The picture's file.
    #[error(transparent)]
    PictureFile(#[from] PictureError),
    /// An entry, or the file that is written.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A tensor.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// A key.
    #[error("{0}")]
    Canonical(#[from] crate::digest::Error),
}

/// A caption's tokens under one encoder.
#[derive(Debug, Serialize)]
pub struct TokenReport {
    /// The encoder.
    pub slot: String,
    /// Every id, pads included.
    pub ids: Vec<u32>,
    /// Each id as the vocabulary writes it.
    pub tokens: Vec<String>,
    /// Ids before the pads.
    pub count: usize,
    /// What `count` would be had nothing been cut.
    pub total: usize,
    /// Whether something was cut.
    pub truncated: bool,
}

/// A caption's tokens under every encoder.
///
/// # Errors
/// If the caption cannot be tokenized.
pub fn tokens(base: &BaseModel, caption: &str) -> Result<Vec<TokenReport>, Error> {
    base.encoders
        .iter()
        .map(|encoder| Ok(report(encoder, tokenize(encoder, caption)?)))
        .collect()
}

fn report(encoder: &TextEncoderPart, tokens: Tokens) -> TokenReport {
    let text = |id: &u32| {
        encoder
            .tokenizer
            .token(*id)
            .unwrap_or_else(|| format!("<{id}>"))
    };
    TokenReport {
        slot: encoder.slot.clone(),
        tokens: tokens.ids.iter().map(text).collect(),
        ids: tokens.ids,
        count: tokens.count,
        total: tokens.total,
        truncated: tokens.truncated,
    }
}

/// Writes what the denoiser receives for a caption to `out`, encoding the caption first if the store lacks it.
///
/// Tensors: `context` [1, tokens, width], `pooled` [1, width]; of each encoder `SLOT.hidden` [tokens, width],
/// `SLOT.pooled` [width] (what the store holds, as f32) and `SLOT.token_ids` [tokens] (I64, pads included).
/// Where the denoiser masks pads, `mask` [1, tokens] has 1 for rows that it sees. Metadata: caption, recipe, mask (`none`
/// where the denoiser gets none), each encoder's spec and token count.
///
/// # Errors
/// If the caption cannot be encoded, or the file cannot be written.
pub fn conditioning(
    base: &BaseModel,
    store: &Store,
    caption: &str,
    options: &EncodeOptions,
    out: &Path,
    monitor: &dyn Monitor,
) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    encode_captions(base, store, &[caption.to_owned()], options, monitor)?;
    let source = Source::open(base, store)?;
    let outputs = source.outputs(caption)?;
    let made = source.assemble(&outputs)?;
    let mut made_of = BTreeMap::from([
        ("context".to_owned(), made.context.unsqueeze(0)?),
        ("pooled".to_owned(), made.pooled.unsqueeze(0)?),
    ]);
    let mask = match base.recipe.assembly().mask {
        DenoiserMask::None => "none",
        DenoiserMask::Pads => "pads",
    };
    if let Some(count) = made.token_count {
        let tokens = made.context.dims()[0];
        let seen: Vec<u8> = (0..tokens).map(|row| u8::from(row < count)).collect();
        made_of.insert(
            "mask".to_owned(),
            Tensor::from_vec(seen, (1, tokens), &Device::Cpu)?,
        );
    }
    let mut facts = BTreeMap::from([
        ("caption".to_owned(), caption.to_owned()),
        ("mask".to_owned(), mask.to_owned()),
        ("recipe".to_owned(), base.recipe.name().to_string()),
        (
            "recipe_fingerprint".to_owned(),
            base.recipe.fingerprint().to_string(),
        ),
    ]);
    for encoder in &base.encoders {
        let slot = &encoder.slot;
        let tokens = tokenize(encoder, caption)?;
        let ids: Vec<i64> = tokens.ids.iter().map(|&id| i64::from(id)).collect();
        made_of.insert(
            format!("{slot}.token_ids"),
            Tensor::from_vec(ids, tokens.ids.len(), &Device::Cpu)?,
        );
        facts.insert(format!("{slot}.spec"), encoder.fingerprint.to_string());
        facts.insert(format!("{slot}.token_count"), tokens.count.to_string());
        if let Some(output) = outputs.get(slot) {
            let parts = [("hidden", &output.hidden), ("pooled", &output.pooled)];
            for (name, tensor) in parts
                .into_iter()
                .filter_map(|(n, t)| t.as_ref().map(|t| (n, t)))
            {
                made_of.insert(format!("{slot}.{name}"), tensor.clone());
            }
        }
    }
    tensors::write_safetensors(out, &made_of, &facts)?;
    Ok(shapes(&made_of))
}

/// What a picture was made of.
#[derive(Debug, Serialize)]
pub struct PictureReport {
    /// The picture's own size.
    pub original_size: Size,
    /// How it was resized and cropped.
    pub view: View,
    /// Tensors in the file, with their shapes.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// Writes a picture's latents to `out`, under the rules of the Experiment's first data set, encoding the picture first
/// if the store lacks it, on the CPU.
///
/// Tensors: `mean` and `logvar` [1, channels, height, width], unscaled. Metadata: the picture's size, what it was
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
    let file = PictureFile::open(picture)?;
    let placing = Placing {
        crops: 1,
        flip: false,
        ..Placing::new(set, base.picture_multiple())?
    };
    let views = placing.views(file.size).map_err(|e| fail(e.to_string()))?;
    let view = *views
        .first()
        .ok_or_else(|| fail("no crop of it fits its bucket".into()))?;
    let item = Item {
        picture: picture.into(),
        digest: file.digest,
        size: file.size,
        captions: vec![String::new()],
        views,
        repeats: 1,
        held_out: false,
    };
    let items = std::slice::from_ref(&item);
    let stats = encode_pictures(base, store, items, &Device::Cpu, monitor)?;
    if stats.failed > 0 {
        return Err(fail("it could not be decoded, see above".into()));
    }
    let source = Source::open(base, store)?;
    let Moments { mean, logvar, .. } = source.reader.moments(&item, view)?;
    let made_of = BTreeMap::from([
        ("mean".to_owned(), mean.unsqueeze(0)?),
        ("logvar".to_owned(), logvar.unsqueeze(0)?),
    ]);
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

fn shapes(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<usize>> {
    tensors
        .iter()
        .map(|(name, t)| (name.clone(), t.dims().to_vec()))
        .collect()
}
