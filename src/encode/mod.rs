//! Encoding: captions and pictures of an Experiment into its store, each once. Run again after any change, only what changed is
//! done.

mod captions;
mod pictures;

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;

pub use captions::{CaptionStats, encode_captions, read_text, tokenize};
pub use pictures::{PictureStats, encode_pictures, pixels};

use crate::base_model::{self, BaseModel};
use crate::cache::{self, Manifest, Specs};
use crate::dataset::{self, Item};
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::nn::Kernels;
use crate::nn::weights::DigestMemo;
use crate::store::{self, Store};
use crate::text::{self, tokenizer};

/// Why captions or pictures could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The pictures and captions.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The file of captions.
    #[error("{}: {why}", file.display())]
    Captions {
        /// The file of captions.
        file: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A caption and an encoder do not fit.
    #[error("{slot}: {source}")]
    Encoder {
        /// The encoder's slot in the recipe: `clip_l`, `t5`.
        slot: String,
        /// What is wrong.
        source: text::Error,
    },
    /// The tokenizer.
    #[error("{slot}: caption `{caption}`: {source}")]
    Tokenizer {
        /// The encoder's slot in the recipe: `clip_l`, `t5`.
        slot: String,
        /// The caption's first 60 characters.
        caption: String,
        /// What is wrong.
        source: tokenizer::Error,
    },
    /// The VAE failed on a picture.
    #[error("{}: {source}", path.display())]
    Vae {
        /// The picture's file.
        path: PathBuf,
        /// What is wrong.
        source: candle_core::Error,
    },
    /// A result could not be turned into bytes.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// Where encoders compute, and where a large one's weights are meanwhile.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// Where encoders and VAE compute.
    pub device: Device,
    /// Our own CUDA kernels that they compute by there, if any.
    pub kernels: Kernels,
    /// Encoders with more bytes of weights than this are read layer by layer.
    pub resident_limit_bytes: u64,
}

/// What encoding came to.
#[derive(Debug, Serialize)]
pub struct EncodeReport {
    /// The store's folder.
    pub store: PathBuf,
    /// One for each encoder, in the recipe's order.
    pub captions: Vec<CaptionStats>,
    /// None where only captions were asked for.
    pub pictures: Option<PictureStats>,
}

/// Encodes what an Experiment needs, or the lines of `captions`, a text file, and nothing else.
///
/// # Errors
/// At the first thing that cannot be encoded or stored; what was committed before stays. A picture that does not decode is
/// reported and passed over.
pub fn run(
    experiment: &Experiment,
    captions: Option<&Path>,
    options: &EncodeOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<EncodeReport, Error> {
    monitor.start("reading the base model", None);
    let base = BaseModel::open(experiment, memo)?;
    monitor.finish();
    for deviation in base.recipe.deviations() {
        monitor.note(&format!(
            "recipe {} deviates: {deviation}",
            base.recipe.name()
        ));
    }
    let store = Store::open_or_create(&experiment.store_path())?;
    let items = match captions {
        Some(_) => Vec::new(),
        None => dataset::open(experiment, base.latent_geometry().side_multiple(), monitor)?,
    };
    let texts = match captions {
        Some(file) => read_captions(file)?,
        None => cache::captions(experiment, &items),
    };
    let embedded = encode_captions(&base, &store, &texts, options, monitor)?;
    let pictures = match captions {
        Some(_) => None,
        None => Some(encode_pictures(
            &base,
            &store,
            &items,
            (&options.device, &options.kernels),
            monitor,
        )?),
    };
    remember(experiment, captions, &base, &store, (&texts, &items))?;
    Ok(EncodeReport {
        store: store.path().to_owned(),
        captions: embedded,
        pictures,
    })
}

/// Writes down which entries are used, after they are there: a list of entries that an interrupted encode did not get to would
/// be a problem to `store check`.
fn remember(
    experiment: &Experiment,
    captions: Option<&Path>,
    base: &BaseModel,
    store: &Store,
    (texts, items): (&[String], &[Item]),
) -> Result<(), Error> {
    let texts = texts.iter().map(String::as_str);
    let used = Manifest::new(&Specs::from(base), texts, items);
    Ok(used.write(store, "encode", experiment, captions)?)
}

/// One caption a line, exactly as it stands there; only the line's end is no part of it.
fn read_captions(file: &Path) -> Result<Vec<String>, Error> {
    let fail = |why: String| Error::Captions {
        file: file.to_owned(),
        why,
    };
    let bytes = std::fs::read(file).map_err(|e| fail(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        fail(format!(
            "line {line} is not UTF-8 text; save the file as UTF-8"
        ))
    })?;
    // Some editors of Windows begin UTF-8 with a byte order mark, which is no part of the first caption.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.lines().map(str::to_owned).collect())
}
