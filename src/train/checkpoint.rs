//! Checkpoints: all a run needs to go on as if it had never stopped.
//!
//! One safetensors file a checkpoint, `checkpoints/step-00000500.safetensors`: the adapter's `f32` masters as the flat tensor
//! `parameters`, the optimizer's state as flat tensors under the names that it gives them, and one metadata entry, `plumb`,
//! with [`State`] as JSON. Randomness needs no state: it is a function of the step.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load as _;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Fingerprint};
use crate::optim::{OptimizerOptions, StateTensor};
use crate::store;

const METADATA_KEY: &str = "plumb";
const PARAMETERS: &str = "parameters";
const PREFIX: &str = "step-";
const ENDING: &str = ".safetensors";

/// Why a checkpoint could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder of checkpoints cannot be read, or a file in it.
    #[error("{}: cannot be read: {why}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The checkpoint belongs to another run.
    #[error(
        "{}: its {what} differs from this run's (expected {expected}, found {found}); \
         choose another `train.output`, or start over with --restart", path.display()
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// This run's.
        expected: String,
        /// The checkpoint's.
        found: String,
    },
    /// The checkpoint could not be put in place.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What a checkpoint says of its run. A run resumes only where all but `computed` agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// The fingerprint of what in the Experiment decides trained numbers.
    pub training: Fingerprint,
    /// The digest of the denoiser's weights.
    pub denoiser: Digest,
    /// The digest of the list of entries that it trains from.
    pub manifest: Digest,
    /// The fingerprint of the adapters' tensors, names and shapes: how `parameters` is laid out.
    pub layout: Fingerprint,
    /// The fingerprint of the denoiser's configuration; absent where it has none, and in checkpoints of before it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Fingerprint>,
    /// The fingerprint of how the denoiser's latents come from the VAE's; absent in checkpoints of before it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents: Option<Fingerprint>,
    /// On what and in what type it was computed, in words. A run may go on elsewhere, but then not bit for bit.
    pub computed: String,
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
    /// Writes the checkpoint into `folder`, whole and durable or not at all, then removes the oldest beyond
    /// the last `keep`.
    ///
    /// # Errors
    /// If the file cannot be written. That old ones cannot be removed is no error.
    pub fn write(&self, folder: &Path, keep: usize) -> Result<PathBuf, Error> {
        let name = format!("{PREFIX}{:08}{ENDING}", self.state.step);
        let path = folder.join(name);
        store::write_file(&path, &[&self.to_bytes(&path)?])?;
        // Only now that the new one is durable; with a `keep` of 0 it would remove itself.
        let mut old = list(folder)?;
        old.truncate(old.len().saturating_sub(keep.max(1)));
        for (_, old) in old {
            // An old checkpoint that stays does no harm.
            let _ = std::fs::remove_file(old);
        }
        Ok(path)
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let unwritable = |why: String| Error::Unreadable {
            path: path.into(),
            why,
        };
        let state = serde_json::to_string(&self.state).map_err(|e| unwritable(e.to_string()))?;
        let parameters = (PARAMETERS, &self.parameters);
        let tensors = self.optimizer.iter().map(|(name, t)| (name.as_str(), t));
        // Copied to the host here, where an error can be returned: safetensors' trait for tensors gives bytes without a `Result`.
        let tensors = tensors
            .chain([parameters])
            .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
            .collect::<candle_core::Result<Vec<_>>>()
            .map_err(|e| unwritable(e.to_string()))?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), state)]);
        safetensors::serialize(tensors, Some(metadata)).map_err(|e| unwritable(e.to_string()))
    }

    /// Reads the newest checkpoint in `folder` that is whole and belongs to the run `expected` describes
    /// (its step aside), trained by `optimizer`. `first` is what a checkpoint of the first version has for its training. `None`
    /// where the folder has none.
    ///
    /// # Errors
    /// If the newest whole one belongs to another run, or none of those there can be read.
    pub fn newest(
        folder: &Path,
        expected: &State,
        first: Option<Fingerprint>,
        optimizer: &OptimizerOptions,
    ) -> Result<Option<Self>, Error> {
        let mut damaged = None;
        for (step, path) in list(folder)?.into_iter().rev() {
            let at_step = State {
                step,
                ..expected.clone()
            };
            match Self::read(&path, &at_step, first, optimizer) {
                Ok(found) => return Ok(Some(found)),
                // Not skipped: going on from an older one would overwrite another run's checkpoints.
                Err(error @ Error::OtherRun { .. }) => return Err(error),
                // A damaged file costs the steps since the one before it.
                Err(error) => damaged = damaged.or(Some(error)),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    fn read(
        path: &Path,
        expected: &State,
        first: Option<Fingerprint>,
        optimizer: &OptimizerOptions,
    ) -> Result<Self, Error> {
        let unreadable = |why: String| Error::Unreadable {
            path: path.into(),
            why,
        };
        let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
        let mut state = read_state(&bytes).map_err(unreadable)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| unreadable(e.to_string()))?;
        // The first version fingerprinted the same training differently; taken as this run's, it is compared like any other.
        if Some(state.training) == first {
            state.training = expected.training;
        }
        state.check(path, expected)?;
        let parameters = tensors.tensor(PARAMETERS);
        let length = parameters.map_err(|e| unreadable(e.to_string()))?;
        let length = length.shape().iter().product();
        let flat = |name, dtype| StateTensor {
            name,
            dtype,
            length,
        };
        let parameters = read_flat(&tensors, flat(PARAMETERS, DType::F32)).map_err(unreadable)?;
        let optimizer = optimizer.state_tensors(length).into_iter();
        let optimizer = optimizer
            .map(|tensor| Ok((tensor.name.to_owned(), read_flat(&tensors, tensor)?)))
            .collect::<Result<_, _>>();
        Ok(Self {
            state,
            parameters,
            optimizer: optimizer.map_err(unreadable)?,
        })
    }
}

impl State {
    /// That a checkpoint with this state is of the run and the step that `expected` describes.
    fn check(&self, path: &Path, expected: &Self) -> Result<(), Error> {
        let text = |s: &dyn std::fmt::Display| s.to_string();
        let (e, f) = (expected, self);
        // Compared where both are known.
        let known = |a: Option<Fingerprint>, b: Option<Fingerprint>| match (a, b) {
            (Some(a), Some(b)) => (a.to_string(), b.to_string()),
            _ => (String::new(), String::new()),
        };
        let (config, latents) = (known(e.config, f.config), known(e.latents, f.latents));
        let pairs = [
            ("training section", text(&e.training), text(&f.training)),
            ("base model", text(&e.denoiser), text(&f.denoiser)),
            (
                "set of cached entries",
                text(&e.manifest),
                text(&f.manifest),
            ),
            ("set of adapted modules", text(&e.layout), text(&f.layout)),
            ("denoiser's config.json", config.0, config.1),
            ("VAE's scaling and shift of latents", latents.0, latents.1),
            ("step", text(&e.step), text(&f.step)),
        ];
        match pairs
            .into_iter()
            .find(|(_, expected, found)| expected != found)
        {
            None => Ok(()),
            Some((what, expected, found)) => {
                // Fingerprints are 64 digits long; 12 tell them apart.
                let short = |id: String| id.chars().take(12).collect();
                Err(Error::OtherRun {
                    path: path.into(),
                    what,
                    expected: short(expected),
                    found: short(found),
                })
            }
        }
    }
}

fn read_state(file: &[u8]) -> Result<State, String> {
    let (_, header) = SafeTensors::read_metadata(file).map_err(|e| e.to_string())?;
    let text = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
    let text = text.ok_or_else(|| format!("it has no `{METADATA_KEY}` metadata"))?;
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn read_flat(file: &SafeTensors<'_>, wanted: StateTensor) -> Result<Tensor, String> {
    let StateTensor {
        name,
        dtype,
        length,
    } = wanted;
    let view = file.tensor(name).map_err(|e| e.to_string())?;
    if view.dtype() != dtype.into() || view.shape() != [length] {
        return Err(format!(
            "tensor `{name}`: expected {length} numbers in {dtype:?}, found {:?} in {:?}",
            view.shape(),
            view.dtype()
        ));
    }
    view.load(&Device::Cpu).map_err(|e| e.to_string())
}

/// The checkpoints in a folder, oldest first, by step.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let unreadable = |e: std::io::Error| Error::Unreadable {
        path: folder.into(),
        why: e.to_string(),
    };
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name
            .strip_prefix(PREFIX)
            .and_then(|n| n.strip_suffix(ENDING))
            .and_then(|n| n.parse().ok());
        found.extend(step.map(|s| (s, path.clone())));
    }
    // By step first, whatever order the file system lists them in.
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use candle_core::{Device, Tensor};

    use super::{Checkpoint, Error, State, list, read_state};
    use crate::digest::{Digest, Fingerprint};
    use crate::optim::OptimizerOptions;

    fn checkpoint(step: u64) -> Checkpoint {
        let id = Fingerprint::from_bytes([1; 32]);
        let digest = Digest::of(b"x");
        let state = State {
            step,
            training: id,
            denoiser: digest,
            manifest: digest,
            layout: id,
            config: None,
            latents: None,
            computed: "on a CPU in f32".to_owned(),
        };
        let flat = |factor: f32| {
            let values = [factor * step as f32, f32::MIN_POSITIVE, -0.0];
            Tensor::new(&values, &Device::Cpu).expect("a tensor")
        };
        Checkpoint {
            state,
            parameters: flat(1.0),
            optimizer: BTreeMap::from([
                ("first_moment".to_owned(), flat(2.0)),
                ("second_moment".to_owned(), flat(3.0)),
            ]),
        }
    }

    fn newest(folder: &Path, expected: &State) -> Result<Option<Vec<u8>>, Error> {
        let found = Checkpoint::newest(folder, expected, None, &OptimizerOptions::default())?;
        Ok(found.map(|checkpoint| bytes_of(&checkpoint)))
    }

    fn bytes_of(checkpoint: &Checkpoint) -> Vec<u8> {
        checkpoint.to_bytes(Path::new("")).expect("bytes")
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found_and_old_ones_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = checkpoint(0).state;
        assert_eq!(newest(folder.path(), &expected).expect("empty"), None);
        for step in [5, 10, 15] {
            checkpoint(step).write(folder.path(), 2).expect("written");
        }
        let steps: Vec<u64> = list(folder.path())
            .expect("listed")
            .into_iter()
            .map(|(s, _)| s)
            .collect();
        assert_eq!(steps, [10, 15]);
        let last = folder.path().join("step-00000015.safetensors");
        let bytes = std::fs::read(&last).expect("readable");
        std::fs::write(&last, &bytes[..bytes.len() - 1]).expect("cut");
        let found = newest(folder.path(), &expected).expect("the older one");
        assert_eq!(found, Some(bytes_of(&checkpoint(10))));
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        checkpoint(5).write(folder.path(), 2).expect("written");
        let mut expected = checkpoint(0).state;
        expected.denoiser = Digest::of(b"another");
        let error = newest(folder.path(), &expected).expect_err("refused");
        assert!(
            error
                .to_string()
                .contains("its base model differs from this run's"),
            "{error}"
        );
    }

    #[test]
    fn without_its_optimizer_s_state_a_checkpoint_is_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut last = checkpoint(15);
        last.optimizer.remove("second_moment");
        last.write(folder.path(), 2).expect("written");
        let error = newest(folder.path(), &last.state).expect_err("damaged");
        assert!(error.to_string().contains("second_moment"), "{error}");
        checkpoint(10).write(folder.path(), 2).expect("written");
        let found = newest(folder.path(), &last.state).expect("the older one");
        assert_eq!(found, Some(bytes_of(&checkpoint(10))));
    }

    #[test]
    fn a_checkpoint_of_the_first_version_is_read_and_written_the_same() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("tests/fixtures/run-v1/out/checkpoints");
        let written = std::fs::read(folder.join("step-00000002.safetensors")).expect("a file");
        let state = read_state(&written).expect("a state");
        assert_eq!(newest(&folder, &state).expect("read"), Some(written));
    }
}
