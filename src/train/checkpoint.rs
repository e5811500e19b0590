//! A checkpoint: all a run needs to go on as if it had never stopped.
//!
//! One safetensors file: the adapter's `f32` masters as the flat tensor `parameters`, the optimizer's state as flat tensors under
//! the names that it gives them, and one metadata entry, `plumb`, as JSON: a digest of the whole file and [`State`]. Randomness needs
//! no state: it is a function of the step. Which of a run's checkpoints is used, [`super::checkpoints`] decides.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load as _;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::convert::provenance::Stretch;
use crate::digest::{Digest, Fingerprint};
use crate::optim::{OptimizerOptions, StateTensor};
use crate::{shown, store};

const METADATA_KEY: &str = "plumb";
const PARAMETERS: &str = "parameters";

/// How the metadata entry begins; the digest's 64 digits follow. In the header each quote has a backslash before it.
const DIGEST_BEFORE: &str = "{\"digest\":\"";
const DIGEST_DIGITS: usize = 64;

/// The largest file that is read: a LoRA of five thousand million parameters.
const LIMIT_BYTES: u64 = 64 << 30;

/// Why a checkpoint could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system cannot read it.
    #[error(
        "{}: cannot be read: {source}; make it readable, or remove it to go on from the one before it",
        shown::path(path)
    )]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was read, and is not what was written.
    #[error("{}: is damaged: {why}", shown::path(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        why: String,
    },
    /// It is as it was written, and another version's.
    #[error(
        "{}: is whole, but this plumb cannot read its state: {why}; use the version that wrote it, or start over with --restart",
        shown::path(path)
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// What is not understood.
        why: String,
    },
    /// It belongs to another run.
    #[error(
        "{}: is of a run with another Experiment or other data: {differences}; set that back, choose another `train.output`, or start over with --restart",
        shown::path(path)
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// What differs, with both values.
        differences: String,
    },
    /// There are checkpoints, and none can be used.
    #[error(
        "none of the checkpoints (there are {count}) is sound: {first}; put back a sound copy, or start over with --restart"
    )]
    NoneSound {
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        first: Box<Self>,
    },
    /// A tensor cannot be copied from its device.
    #[error("step {step}: the checkpoint cannot be made: {source}")]
    Unmade {
        /// Its step.
        step: u64,
        /// What failed.
        source: candle_core::Error,
    },
    /// It cannot be written.
    #[error("step {step}: the checkpoint cannot be kept: {source}; {}", from_where(*last))]
    Unsaved {
        /// Its step.
        step: u64,
        /// The step of the last one that is sound; None where there is none.
        last: Option<u64>,
        /// What failed.
        source: store::Error,
    },
}

fn from_where(last: Option<u64>) -> String {
    match last {
        Some(step) => format!("the last that was kept is of step {step}"),
        None => "none was kept before".to_owned(),
    }
}

/// What a checkpoint says of its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// What decides the run's numbers.
    pub identity: Identity,
    /// On what and in what type it was computed, in words. A run may go on elsewhere, but then not bit for bit.
    pub computed: String,
    /// Earlier stretches that were computed elsewhere, or under other learning rates.
    pub history: Vec<Stretch>,
}

/// [`State`] as it was before checkpoints had a digest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstState {
    step: u64,
    training: Fingerprint,
    denoiser: Digest,
    manifest: Digest,
    layout: Fingerprint,
    computed: String,
}

/// The metadata entry. The digest comes first: [`DIGEST_BEFORE`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Of the whole file, with zeros in its own place.
    digest: Digest,
    state: State,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it belongs to.
    pub state: State,
    /// The adapter's masters, `[n]` in f32.
    pub parameters: Tensor,
    /// The optimizer's state by name.
    pub optimizer: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// The bytes of its file.
    ///
    /// # Errors
    /// If a tensor cannot be copied from its device.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let step = self.state.step;
        let unmade = |source| Error::Unmade { step, source };
        let unset = Digest::from_bytes([0; 32]);
        let entry = Entry {
            digest: unset,
            state: self.state.clone(),
        };
        let text =
            serde_json::to_string(&entry).map_err(|e| unmade(candle_core::Error::wrap(e)))?;
        let parameters = (PARAMETERS, &self.parameters);
        let tensors = self.optimizer.iter().map(|(name, t)| (name.as_str(), t));
        // Copied to the host here, where an error can be returned: safetensors' trait for tensors gives bytes without a `Result`.
        let tensors = tensors
            .chain([parameters])
            .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
            .collect::<candle_core::Result<Vec<_>>>()
            .map_err(unmade)?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), text)]);
        let mut bytes = safetensors::serialize(tensors, Some(metadata))
            .map_err(|e| unmade(candle_core::Error::wrap(e)))?;
        let at = digest_place(&bytes, unset).ok_or_else(|| {
            unmade(candle_core::Error::Msg(
                "the digest has no place".to_owned(),
            ))
        })?;
        let digest = Digest::of(&bytes).to_string();
        bytes[at..at + DIGEST_DIGITS].copy_from_slice(digest.as_bytes());
        Ok(bytes)
    }

    /// Reads the checkpoint at `path`, of a run trained by `optimizer`; and whether it has a digest, which then fits.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not as it was written; else as the variants say.
    pub fn read(path: &Path, optimizer: &OptimizerOptions) -> Result<(Self, bool), Error> {
        let bytes = read_file(path).map_err(|source| Error::Unreadable {
            path: path.into(),
            source,
        })?;
        Self::from_bytes(bytes, optimizer).map_err(|fault| fault.at(path))
    }

    /// Reads the bytes of a checkpoint that another rank sent.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn of_rank(bytes: Vec<u8>, optimizer: &OptimizerOptions) -> Result<Self, Error> {
        let read = Self::from_bytes(bytes, optimizer);
        let (checkpoint, _) = read.map_err(|fault| fault.at(Path::new("rank 0's checkpoint")))?;
        Ok(checkpoint)
    }

    fn from_bytes(mut bytes: Vec<u8>, optimizer: &OptimizerOptions) -> Result<(Self, bool), Fault> {
        let entry = metadata_entry(&bytes)?;
        let has_digest = entry.starts_with(DIGEST_BEFORE);
        let state = match has_digest {
            true => {
                check_digest(&mut bytes, &entry)?;
                let entry: Entry =
                    serde_json::from_str(&entry).map_err(|e| Fault::OtherVersion(e.to_string()))?;
                entry.state
            }
            false => {
                let state: FirstState = serde_json::from_str(&entry).map_err(damaged)?;
                state.into()
            }
        };
        let tensors = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let length = tensors.tensor(PARAMETERS).map_err(damaged)?;
        let length = length.shape().iter().product();
        let flat = |name, dtype| StateTensor {
            name,
            dtype,
            length,
        };
        let parameters = read_flat(&tensors, flat(PARAMETERS, DType::F32))?;
        let wanted = optimizer.state_tensors(length).into_iter();
        let optimizer = wanted
            .map(|tensor| Ok((tensor.name.to_owned(), read_flat(&tensors, tensor)?)))
            .collect::<Result<_, Fault>>()?;
        let checkpoint = Self {
            state,
            parameters,
            optimizer,
        };
        if let Some(name) = checkpoint.not_finite().map_err(damaged)? {
            return Err(Fault::Damaged(format!(
                "`{name}` has numbers that are not finite"
            )));
        }
        Ok((checkpoint, has_digest))
    }

    /// The name of a tensor in which a number is NaN or infinite, if there is one: no run can go on from it.
    ///
    /// # Errors
    /// If a tensor cannot be copied from its device.
    pub fn not_finite(&self) -> candle_core::Result<Option<String>> {
        let optimizer = self.optimizer.iter().map(|(name, t)| (name.as_str(), t));
        for (name, tensor) in [(PARAMETERS, &self.parameters)]
            .into_iter()
            .chain(optimizer)
        {
            // NaN and the infinities stay what they are in a product with 0, and in a sum; finite numbers come to 0.
            let sum = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?;
            if !sum.to_scalar::<f32>()?.is_finite() {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }
}

impl From<FirstState> for State {
    fn from(first: FirstState) -> Self {
        Self {
            step: first.step,
            identity: Identity {
                training: first.training,
                denoiser: first.denoiser,
                manifest: first.manifest,
                layout: first.layout,
                description: None,
            },
            computed: first.computed,
            history: Vec::new(),
        }
    }
}

/// What is wrong with the bytes of a file.
enum Fault {
    Damaged(String),
    OtherVersion(String),
}

impl Fault {
    fn at(self, path: &Path) -> Error {
        let path = path.into();
        match self {
            Self::Damaged(why) => Error::Damaged { path, why },
            Self::OtherVersion(why) => Error::OtherVersion { path, why },
        }
    }
}

fn damaged(why: impl std::fmt::Display) -> Fault {
    // Names of tensors and fields stand in it, as the file has them.
    Fault::Damaged(shown::text(&why.to_string()).to_string())
}

/// A file's bytes. What is no file has no end, or is none of ours.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > LIMIT_BYTES {
        return Err(io::Error::other("it is no file of a checkpoint's size"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LIMIT_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn metadata_entry(file: &[u8]) -> Result<String, Fault> {
    let (_, header) = SafeTensors::read_metadata(file).map_err(damaged)?;
    let entries = header.metadata().as_ref();
    let entry = entries.filter(|m| m.len() == 1);
    let entry = entry.and_then(|m| m.get(METADATA_KEY)).cloned();
    entry.ok_or_else(|| damaged(format!("expected one metadata entry, `{METADATA_KEY}`")))
}

/// Where a file's header has the digits of its digest.
fn digest_place(file: &[u8], digest: Digest) -> Option<usize> {
    let before = DIGEST_BEFORE.replace('"', "\\\"");
    let wanted = format!("{before}{digest}");
    let at = file
        .windows(wanted.len())
        .position(|w| w == wanted.as_bytes())?;
    Some(at + before.len())
}

/// That the digest which the metadata entry names is the file's.
fn check_digest(file: &mut [u8], entry: &str) -> Result<(), Fault> {
    let digits = entry[DIGEST_BEFORE.len()..].get(..DIGEST_DIGITS);
    let named: Option<Digest> = digits.and_then(|digits| digits.parse().ok());
    let place = named.and_then(|named| digest_place(file, named).map(|at| (named, at)));
    let Some((named, at)) = place else {
        return Err(damaged("its digest cannot be read"));
    };
    file[at..at + DIGEST_DIGITS].fill(b'0');
    let found = Digest::of(file);
    if found == named {
        return Ok(());
    }
    let (named, found) = (named.short(), found.short());
    Err(damaged(format!("expected digest {named}, found {found}")))
}

fn read_flat(file: &SafeTensors<'_>, wanted: StateTensor) -> Result<Tensor, Fault> {
    let StateTensor {
        name,
        dtype,
        length,
    } = wanted;
    let view = file.tensor(name).map_err(damaged)?;
    if view.dtype() != dtype.into() || view.shape() != [length] {
        return Err(damaged(format!(
            "tensor `{name}`: expected {length} numbers in {dtype:?}, found {:?} in {:?}",
            view.shape(),
            view.dtype()
        )));
    }
    view.load(&Device::Cpu).map_err(damaged)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
