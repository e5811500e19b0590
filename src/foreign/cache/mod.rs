//! Caches of embeddings and latents that other trainers wrote: kohya's sd-scripts (`.npz`), musubi-tuner, ai-toolkit (safetensors),
//! SimpleTuner and OneTrainer (`.pt`), diffusion-pipe (shards), and folders of plain safetensors files.
//!
//! [`Cache::open`] finds a folder's entries by their names, [`CacheFile::read`] reads one: which tensor is whose, as that trainer's
//! own code names it. Nothing is guessed about how the numbers were made: that is `audit`'s work.
//!
//! What is refused: files of more than 256 MiB or that unpack to more; pickles that name anything but tensors and plain values, which
//! are never run; arrays of Python objects; diffusion-pipe's caches from before November 2025, which are files of Arrow.

mod archive;
mod array;
mod crops;
mod names;
mod npy;
mod read;
mod scan;
mod shards;
mod torch;
mod write;
mod write_npz;
mod write_torch;

#[cfg(test)]
mod fuzz_tests;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use array::{Array, NumberType};
pub use crops::{StatedCrop, is_list_of_crops, stated_crops};
pub use write::{ToWrite, safetensors};
pub use write_npz::npz;
pub use write_torch::{torch_dict, torch_tensor};

use crate::shown;

/// Whose program wrote a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trainer {
    /// kohya-ss/sd-scripts.
    Kohya,
    /// kohya-ss/musubi-tuner.
    Musubi,
    /// ostris/ai-toolkit.
    AiToolkit,
    /// bghira/SimpleTuner.
    Simpletuner,
    /// Nerogar/OneTrainer.
    Onetrainer,
    /// tdrussell/diffusion-pipe.
    DiffusionPipe,
    /// Anybody's safetensors files with tensors of known names.
    Safetensors,
}

impl Trainer {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya",
            Self::Musubi => "musubi",
            Self::AiToolkit => "ai-toolkit",
            Self::Simpletuner => "simpletuner",
            Self::Onetrainer => "onetrainer",
            Self::DiffusionPipe => "diffusion-pipe",
            Self::Safetensors => "safetensors",
        }
    }
}

/// What an entry is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A caption's embeddings.
    Text,
    /// A picture's latents.
    Latents,
}

/// What an entry is filed under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// The picture's file name without its extension.
    Stem(String),
    /// The MD5 of the caption, in hexadecimal digits.
    CaptionMd5(String),
    /// The SHA-256 of the picture's file name without its extension, in hexadecimal digits.
    StemSha256(String),
    /// The row in the trainer's list of pictures, from 0.
    Row(usize),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stem(stem) => write!(f, "{}", shown::text(stem)),
            Self::CaptionMd5(hash) => write!(f, "caption with MD5 {hash}"),
            Self::StemSha256(hash) => write!(f, "picture whose name has SHA-256 {hash}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// The MD5 of a caption in hexadecimal digits, under which SimpleTuner files it.
pub fn caption_md5(caption: &str) -> String {
    use md5::Digest as _;
    hexadecimal(&md5::Md5::digest(caption.as_bytes()))
}

/// The SHA-256 of a file name without its extension in hexadecimal digits, under which SimpleTuner files a picture's latents.
pub fn stem_sha256(stem: &str) -> String {
    use sha2::Digest as _;
    hexadecimal(&sha2::Sha256::digest(stem.as_bytes()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a tensor is. Encoders are named by their slot in plumb's recipes (`clip_l`, `t5`), or by their folder in a checkpoint of
/// diffusers (`text_encoder_2`) where that is what the trainer counts by.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Sequences of these encoders, [rows, width], joined along channels.
    Hidden(Vec<String>),
    /// Pooled vectors of these encoders, joined.
    Pooled(Vec<String>),
    /// The sequences of all encoders as the denoiser takes them.
    Context,
    /// The pooled vectors of all encoders as the denoiser takes them.
    ContextPooled,
    /// 1 for each row that is no pad, of this encoder, or of the only one there is.
    Mask(Option<String>),
    /// Token ids of an encoder.
    Ids(String),
    /// Latents, [channels, height, width].
    Latents(LatentFacts),
    /// What plumb has no use for.
    Other,
}

/// What a cache says of latents beside their numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentFacts {
    /// Whether the picture was mirrored.
    pub flipped: bool,
    /// Whether it was turned upside down (ai-toolkit's `flip_y`).
    pub upside_down: bool,
    /// Left and top of the crop in the resized picture, in px. (Not what kohya itself writes as `crop_ltrb`, which the sizes alone give.)
    pub crop: Option<[u32; 2]>,
    /// The size that the picture was resized to before the crop, width and height in px.
    pub resized: Option<[u32; 2]>,
    /// The picture's size before anything was done to it, width and height.
    pub original: Option<Vec<f32>>,
}

/// A tensor of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its numbers.
    pub array: Array,
}

/// An entry, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The caption that the file says it is of, where it says so.
    pub caption: Option<String>,
    /// Its tensors, by name.
    pub tensors: Vec<Tensor>,
    /// What the file says beside its tensors, as text: flags, sizes, the architecture.
    pub facts: Vec<(String, String)>,
}

impl Entry {
    /// The tensors with infinite numbers or none: their names, and how many.
    pub fn not_finite(&self) -> Vec<(&str, usize)> {
        let bad = |t: &'_ Tensor| t.array.not_finite();
        let found = self.tensors.iter().filter(|t| bad(t) > 0);
        found.map(|t| (t.name.as_str(), bad(t))).collect()
    }
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The file.
    pub path: PathBuf,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub length: u64,
}

/// A file of a cache, or an entry of several in files that have many.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheFile {
    /// Where it lies; the file and the entry's number in it, from 0, where a file has many.
    pub path: PathBuf,
    /// Whose program wrote it.
    pub trainer: Trainer,
    /// What it is of.
    pub content: Content,
    /// What it is filed under.
    pub key: Key,
    /// The first frame of the window of a clip that it is of, where its name says so: counted at the rate at which the trainer read it.
    pub start: Option<u32>,
    /// Where its parts lie in files that have many entries; none: it is all of its file.
    pub spans: Vec<Span>,
}

impl CacheFile {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is not what its name says.
    pub fn read(&self) -> Result<Entry, Error> {
        read::entry(self)
    }
}

/// A file that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Where it lies.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// The entries that a folder, or a file, holds.
#[derive(Clone, Debug)]
pub struct Cache {
    /// By path. Never none.
    pub files: Vec<CacheFile>,
    /// What looks like part of a cache and is not read.
    pub left_out: Vec<LeftOut>,
    /// Where OneTrainer's cache says which pictures its rows are, by row.
    pub row_pictures: Vec<PathBuf>,
}

impl Cache {
    /// Finds the entries under `path`, a folder or a single file. Only names are looked at, and the headers of safetensors files.
    ///
    /// # Errors
    /// If there is no entry, or a folder cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        scan::open(path)
    }
}

/// Why a cache cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", shown::path(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {why}", shown::path(path))]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}
