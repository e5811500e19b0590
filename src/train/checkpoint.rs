//! Checkpoints: all a run needs to go on as if it had never stopped.
//!
//! One safetensors file a checkpoint, `checkpoints/step-00000500.safetensors`: the adapter's `f32` masters and
//! AdamW's two moments as flat tensors, and one metadata entry, `plumb`, with [`State`] as JSON. Randomness
//! needs no state: it is a function of the step.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Fingerprint};
use crate::store;

const METADATA_KEY: &str = "plumb";
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

/// What a checkpoint says of its run; a run goes on only from its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// What the training depends on in the Experiment.
    pub training: Fingerprint,
    /// The denoiser's weights.
    pub denoiser: Digest,
    /// The entries it trains from.
    pub manifest: Digest,
    /// Names and shapes of the adapter's tensors.
    pub layout: Fingerprint,
    /// On what and in what type it was computed, in words. A run may go on elsewhere, but then not bit for bit.
    pub computed: String,
}

/// A checkpoint in memory.
#[derive(Debug, PartialEq)]
pub struct Checkpoint {
    /// What it belongs to.
    pub state: State,
    /// The adapter's masters.
    pub parameters: Vec<f32>,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
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
        let mut all = list(folder)?;
        all.truncate(all.len().saturating_sub(keep.max(1)));
        for (_, old) in all {
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
        let flat: Vec<(&str, Vec<u8>)> = [
            ("first_moment", &self.first_moment),
            ("parameters", &self.parameters),
            ("second_moment", &self.second_moment),
        ]
        .into_iter()
        .map(|(name, values)| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
        let mut views = Vec::new();
        for (name, bytes) in &flat {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
            views.push((*name, view.map_err(|e| unwritable(e.to_string()))?));
        }
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), state)]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| unwritable(e.to_string()))
    }

    /// Reads the newest checkpoint in `folder` that is whole and belongs to the run `expected` describes
    /// (its step aside). `first` is what a checkpoint of the first version has for its training. `None` where the folder has
    /// none.
    ///
    /// # Errors
    /// If the newest whole one belongs to another run, or none of those there can be read.
    pub fn newest(
        folder: &Path,
        expected: &State,
        first: Option<Fingerprint>,
    ) -> Result<Option<Self>, Error> {
        let mut damaged = None;
        for (step, path) in list(folder)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(mut found) => {
                    if Some(found.state.training) == first {
                        found.state.training = expected.training;
                    }
                    found.check(&path, expected, step)?;
                    return Ok(Some(found));
                }
                Err(error) => damaged = damaged.or(Some(error)),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    fn check(&self, path: &Path, expected: &State, step: u64) -> Result<(), Error> {
        let text = |s: &dyn std::fmt::Display| s.to_string();
        let (e, f) = (expected, &self.state);
        let pairs = [
            ("training section", text(&e.training), text(&f.training)),
            ("base model", text(&e.denoiser), text(&f.denoiser)),
            (
                "set of cached entries",
                text(&e.manifest),
                text(&f.manifest),
            ),
            ("set of adapted modules", text(&e.layout), text(&f.layout)),
            ("step", text(&step), text(&f.step)),
        ];
        match pairs
            .into_iter()
            .find(|(_, expected, found)| expected != found)
        {
            None => Ok(()),
            Some((what, expected, found)) => {
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

    fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |why: String| Error::Unreadable {
            path: path.into(),
            why,
        };
        let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| unreadable(e.to_string()))?;
        let text = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let text =
            text.ok_or_else(|| unreadable(format!("it has no `{METADATA_KEY}` metadata")))?;
        let state = serde_json::from_str(text).map_err(|e| unreadable(e.to_string()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| unreadable(e.to_string()))?;
        let flat = |name: &str| -> Result<Vec<f32>, Error> {
            let view = tensors
                .tensor(name)
                .map_err(|e| unreadable(e.to_string()))?;
            if view.dtype() != Dtype::F32 {
                return Err(unreadable(format!(
                    "tensor `{name}`: expected F32, found {:?}",
                    view.dtype()
                )));
            }
            let words = view.data().chunks_exact(4);
            Ok(words
                .map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]]))
                .collect())
        };
        let found = Self {
            state,
            parameters: flat("parameters")?,
            first_moment: flat("first_moment")?,
            second_moment: flat("second_moment")?,
        };
        let length = found.parameters.len();
        if found.first_moment.len() != length || found.second_moment.len() != length {
            return Err(unreadable(
                "its moments and parameters are of different lengths".to_owned(),
            ));
        }
        Ok(found)
    }
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
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Checkpoint, State, list};
    use crate::digest::{Digest, Fingerprint};

    fn checkpoint(step: u64) -> Checkpoint {
        let id = Fingerprint::from_bytes([1; 32]);
        let digest = Digest::of(b"x");
        let state = State {
            step,
            training: id,
            denoiser: digest,
            manifest: digest,
            layout: id,
            computed: "on a CPU in f32".to_owned(),
        };
        let values = vec![step as f32, f32::MIN_POSITIVE, -0.0];
        Checkpoint {
            state,
            parameters: values.clone(),
            first_moment: values.clone(),
            second_moment: values,
        }
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found_and_old_ones_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = checkpoint(0).state;
        assert_eq!(
            Checkpoint::newest(folder.path(), &expected, None).expect("empty"),
            None
        );
        for step in [5, 10, 15] {
            checkpoint(step).write(folder.path(), 2).expect("written");
        }
        let steps: Vec<u64> = list(folder.path())
            .expect("listed")
            .into_iter()
            .map(|(s, _)| s)
            .collect();
        assert_eq!(steps, [10, 15]);
        let newest = folder.path().join("step-00000015.safetensors");
        let bytes = std::fs::read(&newest).expect("readable");
        std::fs::write(&newest, &bytes[..bytes.len() - 1]).expect("cut");
        let found = Checkpoint::newest(folder.path(), &expected, None).expect("the older one");
        assert_eq!(found, Some(checkpoint(10)));
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        checkpoint(5).write(folder.path(), 2).expect("written");
        let mut expected = checkpoint(0).state;
        expected.denoiser = Digest::of(b"another");
        let error = Checkpoint::newest(folder.path(), &expected, None).expect_err("refused");
        assert!(
            error
                .to_string()
                .contains("its base model differs from this run's"),
            "{error}"
        );
    }
}
