//! LoRA files from the naming of one program to that of another.
//!
//! The file that is made says what it was made from; what the source says about its training stays in it.

pub mod provenance;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::lora::formats::{self, Imported, ReadOptions, Target, WriteOptions};
use crate::lora::{self, SaveDtype};
use crate::models::lora_names::namings;
use crate::shown;
use crate::store;

/// Under this key a file's metadata has [`Converted`] as JSON.
pub const METADATA_KEY: &str = "plumb.converted";

/// Why a LoRA could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source cannot be read.
    #[error("{}: cannot be read: {source}", shown::path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The result would replace the source.
    #[error(
        "{}: is the file to convert; give another one with --out",
        shown::path(path)
    )]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The source is no LoRA that is read, or the result could not say all that is in it.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// The result cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What a converted file says about where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Converted {
    /// The plumb that converted it, with its version.
    pub tool: String,
    /// The naming that the source had, as [`formats::Format::name`] says it.
    pub from: String,
    /// The digest of the file it was made from.
    pub source: Digest,
}

impl Converted {
    /// From a LoRA file's metadata; `None` where it was not converted by plumb.
    ///
    /// # Errors
    /// If the entry is there and is not what a version of plumb wrote.
    pub fn read(metadata: &BTreeMap<String, String>) -> Result<Option<Self>, serde_json::Error> {
        read_entry(metadata, METADATA_KEY)
    }
}

fn read_entry<T: DeserializeOwned>(
    metadata: &BTreeMap<String, String>,
    key: &str,
) -> Result<Option<T>, serde_json::Error> {
    let text = metadata.get(key);
    text.map(|text| serde_json::from_str(text)).transpose()
}

fn write_entry(metadata: &mut BTreeMap<String, String>, key: &str, value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("a structure in which every key is text");
    metadata.insert(key.to_owned(), text);
}

/// What a person may choose about a conversion.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions<'a> {
    /// Whose naming the result has.
    pub target: Target,
    /// How numbers are stored; `None`: as in the source, or as f32 if that would lose something.
    pub dtype: Option<SaveDtype>,
    /// The family, where the file does not tell.
    pub family: Option<&'a str>,
    /// Whether adapters of text encoders are left out.
    pub without_text_encoders: bool,
}

/// What a conversion read and wrote.
#[derive(Debug, Serialize)]
pub struct ConvertReport {
    /// Where the result was written.
    pub file: PathBuf,
    /// The digest of the result.
    pub digest: Digest,
    /// The family of base models that it is for, such as `sdxl`.
    pub family: &'static str,
    /// The naming of the source.
    pub from: &'static str,
    /// Modules of the network that have an adapter.
    pub modules: usize,
    /// The different ranks of their adapters, rising.
    pub ranks: Vec<usize>,
    /// How the result's numbers are stored: `F32`, `F16` or `BF16`.
    pub dtype: &'static str,
    /// Tensors of text encoders that were left out.
    pub left_out: usize,
}

/// Reads a LoRA of any known naming and family.
///
/// # Errors
/// If the file cannot be read or is none.
pub fn read_lora(
    path: &Path,
    family: Option<&str>,
    without_text_encoders: bool,
) -> Result<Imported<'static>, Error> {
    Ok(parse(
        path,
        &read_bytes(path)?,
        family,
        without_text_encoders,
    )?)
}

/// Writes the LoRA in `source` to `out` in another naming.
///
/// # Errors
/// If the source is no LoRA of a known naming and family, the target would ignore something in it, or the result
/// cannot be written.
pub fn lora(
    source: &Path,
    out: &Path,
    options: &ConvertOptions<'_>,
) -> Result<ConvertReport, Error> {
    let bytes = read_bytes(source)?;
    // By real paths: a link or another spelling may lead to the same file.
    let same = |out: PathBuf| source.canonicalize().is_ok_and(|source| source == out);
    if out.canonicalize().is_ok_and(same) {
        return Err(Error::SameFile {
            path: out.to_owned(),
        });
    }
    let read = parse(
        source,
        &bytes,
        options.family,
        options.without_text_encoders,
    )?;
    let converted = Converted {
        tool: store::TOOL.to_owned(),
        from: read.format.name().to_owned(),
        source: Digest::of(&bytes),
    };
    // The numbers were taken out; a large LoRA is not to be in memory twice.
    drop(bytes);
    let mut metadata = read.metadata;
    write_entry(&mut metadata, METADATA_KEY, &converted);
    let mut ranks: Vec<_> = read.modules.iter().map(formats::Module::rank).collect();
    let modules = ranks.len();
    ranks.sort_unstable();
    ranks.dedup();
    let options = WriteOptions {
        target: options.target,
        dtype: options.dtype,
        source: read.dtype,
        metadata,
    };
    let (bytes, dtype) = formats::write(read.modules, read.naming, &options)?;
    store::write_file(out, &[&bytes])?;
    Ok(ConvertReport {
        file: out.to_owned(),
        digest: Digest::of(&bytes),
        family: read.naming.family,
        from: read.format.name(),
        modules,
        ranks,
        dtype: dtype.name(),
        left_out: read.left_out,
    })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn parse(
    path: &Path,
    bytes: &[u8],
    family: Option<&str>,
    without_text_encoders: bool,
) -> Result<Imported<'static>, lora::Error> {
    let options = ReadOptions {
        namings: namings(),
        family,
        without_text_encoders,
    };
    formats::read(bytes, &path.display().to_string(), &options)
}
