//! What plumb and other programs make, each in the form of the other: LoRAs ([`lora`]), caches ([`cache`]), and sets of samples in the
//! shards that data loaders read ([`shards`]).
//!
//! The file that is made says what it was made from; what the source says about its training stays in it.

pub mod cache;
mod complete;
mod family;
pub mod provenance;
pub mod shards;
mod source;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::lora::formats::{self, Expert, Imported, ReadOptions, Target, WriteOptions};
use crate::lora::{self, SaveDtype};
use crate::models::lora_names::namings;
use crate::monitor::Monitor;
use crate::shown;
use crate::store;
use source::{PEFT_CONFIG, PEFT_WEIGHTS, Source};

/// Under this key a file's metadata has [`Converted`] as JSON.
pub const METADATA_KEY: &str = lora::metadata::CONVERTED;

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
    /// What was named is no LoRA, nor a folder with one.
    #[error("{}: {what}", shown::path(path))]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What is there instead, and what to do.
        what: String,
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
    /// The LoRA says that it is for another family.
    #[error(
        "{}: expected a LoRA for `{wanted}`, found one for `{}`, as its metadata says (`{key}`): use it with a base model of that family",
        shown::path(path),
        shown::text(said)
    )]
    OtherFamily {
        /// The file.
        path: PathBuf,
        /// The family that it is to be used for.
        wanted: String,
        /// The family that it is for.
        said: String,
        /// Where it says so.
        key: &'static str,
    },
    /// The source is no LoRA that is read, or the result could not say all that is in it.
    #[error(transparent)]
    Lora(#[from] lora::Error),
    /// The result cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
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
    /// Whose adapters are taken of a file with those of two experts.
    pub expert: Option<Expert>,
}

/// What a conversion read and wrote.
#[derive(Debug, Serialize)]
pub struct ConvertReport {
    /// Where the result was written: a file, or PEFT's folder.
    pub file: PathBuf,
    /// The digest of the result, of PEFT's config with it where there is one.
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

/// What a caller of [`read_lora`] knows about a LoRA, and wants of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadLora<'a> {
    /// The family, where it is known; otherwise the file has to tell.
    pub family: Option<&'a str>,
    /// Whether adapters of text encoders are left out. Otherwise a file that has some is refused.
    pub without_text_encoders: bool,
    /// Whose adapters are read of a file with those of two experts. Otherwise such a file is refused.
    pub expert: Option<Expert>,
    /// Whether a file that is not what plumb wrote is read all the same, to look at it.
    pub damaged: bool,
}

/// A LoRA that was read.
#[derive(Debug)]
pub struct ReadFile {
    /// What is in it.
    pub lora: Imported<'static>,
    /// The file, where a folder was given the one in it.
    pub file: PathBuf,
    /// The digest of the file, and of PEFT's config with it where there is one.
    pub digest: Digest,
}

impl ReadFile {
    /// Tells what a person should know of the file.
    pub fn tell(&self, monitor: &dyn Monitor) {
        let file = shown::path(&self.file);
        for problem in &self.lora.problems {
            monitor.problem(&format!("{file}: {problem}"));
        }
        for note in &self.lora.notes {
            monitor.note(&format!("{file}: {note}"));
        }
    }
}

/// Reads a LoRA of any known naming and family, from a file or a folder that PEFT or diffusers saved.
///
/// # Errors
/// If the file cannot be read or is none, is not what plumb wrote, or says that it is for another family than the one that is wanted.
pub fn read_lora(path: &Path, options: &ReadLora<'_>) -> Result<ReadFile, Error> {
    let source = Source::read(path)?;
    let lora = parse(&source, options)?;
    if let Some(wanted) = options.family {
        family::check(&lora.metadata, wanted, &source.file)?;
    }
    Ok(ReadFile {
        digest: source.digest(lora.has_config),
        lora,
        file: source.file,
    })
}

/// Writes the LoRA in `source`, a file or a folder, to `out` in another naming: a file, or for PEFT a folder.
///
/// # Errors
/// If the source is no LoRA of a known naming and family, the target would ignore something in it, or the result
/// cannot be written.
pub fn lora(
    source: &Path,
    out: &Path,
    options: &ConvertOptions<'_>,
    monitor: &dyn Monitor,
) -> Result<ConvertReport, Error> {
    let options_of_source = ReadLora {
        family: options.family,
        without_text_encoders: options.without_text_encoders,
        expert: options.expert,
        damaged: false,
    };
    let read = read_lora(source, &options_of_source)?;
    check_expert(&read, options.expert)?;
    read.tell(monitor);
    let ReadFile {
        lora: read,
        file,
        digest,
    } = read;
    let weights = match options.target {
        Target::Peft => in_peft_folder(out)?,
        _ => out.to_owned(),
    };
    // Before an earlier adapter is taken away.
    let weights = store::file_target(&weights)?;
    // By real paths: a link or another spelling may lead to the same file.
    let same = |out: PathBuf| file.canonicalize().is_ok_and(|source| source == out);
    if weights.canonicalize().is_ok_and(same) {
        return Err(Error::SameFile {
            path: out.to_owned(),
        });
    }
    let converted = Converted {
        tool: store::TOOL.to_owned(),
        from: read.format.name().to_owned(),
        source: digest,
    };
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
    let config =
        (options.target == Target::Peft).then(|| formats::peft_config(&read.modules, read.naming));
    let (bytes, dtype) = formats::write(read.modules, read.naming, &options)?;
    if let Some(config) = &config {
        write_config(&out.join(PEFT_CONFIG), config, &weights)?;
    }
    store::write_file(&weights, &[&bytes])?;
    Ok(ConvertReport {
        file: out.to_owned(),
        digest: source::digest(&bytes, config.as_deref()),
        family: read.naming.family,
        from: read.format.name(),
        modules,
        ranks,
        dtype: dtype.name(),
        left_out: read.left_out,
    })
}

/// Refuses a file that has no adapters of the expert that was asked for.
fn check_expert(read: &ReadFile, wanted: Option<Expert>) -> Result<(), Error> {
    let found = read.lora.experts.expert;
    let Some(wanted) = wanted.filter(|wanted| found != Some(*wanted)) else {
        return Ok(());
    };
    let what = match found {
        None => "its names say nothing of two experts; leave `--expert` out".to_owned(),
        Some(found) => format!(
            "expected adapters of expert {}, found those of {} alone",
            wanted.name(),
            found.name()
        ),
    };
    let origin = shown::path(&read.file).to_string();
    Err(lora::Error::File { origin, what }.into())
}

/// The file of PEFT's weights in the folder `out`.
fn in_peft_folder(out: &Path) -> Result<PathBuf, Error> {
    if out.is_file() || out.extension().is_some_and(|end| end == "safetensors") {
        return Err(Error::Folder {
            path: out.to_owned(),
            what: "expected the name of a folder, as PEFT keeps a LoRA in two files".to_owned(),
        });
    }
    Ok(out.join(PEFT_WEIGHTS))
}

/// Writes PEFT's config, before the weights that it is for: weights of an earlier adapter are taken away first, as with a config that
/// is not theirs they would be another LoRA.
fn write_config(path: &Path, text: &str, weights: &Path) -> Result<(), Error> {
    store::check_file(path)?;
    match std::fs::remove_file(weights) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(weights, e)),
        _ => {}
    }
    Ok(store::write_file(path, &[text.as_bytes()])?)
}

fn parse(source: &Source, options: &ReadLora<'_>) -> Result<Imported<'static>, lora::Error> {
    let options = ReadOptions {
        namings: namings(),
        family: options.family,
        without_text_encoders: options.without_text_encoders,
        config: source.config(),
        expert: options.expert,
        damaged: options.damaged,
    };
    let origin = shown::path(&source.file).to_string();
    formats::read(&source.bytes, &origin, &options)
}
