//! The checkpoints of a run: `checkpoints/step-00000500.safetensors`, the last few of them. Which one a run goes on from, and which
//! may go.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, Error};
use crate::optim::OptimizerOptions;
use crate::store;

const PREFIX: &str = "step-";
const ENDING: &str = ".safetensors";

/// The folder of a run's checkpoints.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// How many are kept, at least 1.
    keep: usize,
    /// The steps of those that the run made and may go on from. All others go when the next is in place: they are damaged, or of a
    /// run that was given up.
    own: BTreeSet<u64>,
}

/// The checkpoint that a run goes on from.
#[derive(Debug)]
pub struct Newest {
    /// Its content, of which the state has not been compared with the run's.
    pub checkpoint: Checkpoint,
    /// Its file.
    pub path: PathBuf,
    /// Whether it has a digest. Those of earlier versions have none.
    pub has_digest: bool,
    /// What is wrong with newer ones.
    pub damaged: Vec<Error>,
}

impl Checkpoints {
    /// Those in `folder`, none of which is this run's yet; there may be no folder. The last `keep` of its own will be kept.
    pub fn new(folder: &Path, keep: usize) -> Self {
        Self {
            folder: folder.into(),
            keep: keep.max(1),
            own: BTreeSet::new(),
        }
    }

    /// The newest that is sound, for a run trained by `optimizer`; None where there is none at all. It and those before it are then
    /// this run's.
    ///
    /// # Errors
    /// If none is sound, or one cannot be read: what is wrong with it is not known then, and going on from an older one would
    /// overwrite it.
    pub fn newest(&mut self, optimizer: &OptimizerOptions) -> Result<Option<Newest>, Error> {
        let (mut damaged, all) = (Vec::new(), self.list()?);
        for (step, path) in all.iter().rev() {
            match Checkpoint::read(path, optimizer) {
                Ok((checkpoint, _)) if checkpoint.state.step != *step => {
                    let found = checkpoint.state.step;
                    damaged.push(Error::Damaged {
                        path: path.clone(),
                        why: format!("expected step {step} as its name says, found step {found}"),
                    });
                }
                Ok((checkpoint, has_digest)) => {
                    self.own = all.iter().map(|(s, _)| *s).filter(|s| s <= step).collect();
                    return Ok(Some(Newest {
                        checkpoint,
                        path: path.clone(),
                        has_digest,
                        damaged,
                    }));
                }
                Err(error @ Error::Damaged { .. }) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        let count = all.len();
        match damaged.into_iter().next() {
            None => Ok(None),
            Some(first) => Err(Error::NoneSound {
                count,
                first: Box::new(first),
            }),
        }
    }

    /// Writes a checkpoint, whole and durable or not at all, then removes the oldest beyond those that are kept, and what is not
    /// this run's.
    ///
    /// # Errors
    /// If the file cannot be written. That old ones cannot be removed is no error.
    pub fn write(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf, Error> {
        let step = checkpoint.state.step;
        let path = self.folder.join(format!("{PREFIX}{step:08}{ENDING}"));
        store::write_file(&path, &[&checkpoint.to_bytes()?]).map_err(|source| Error::Unsaved {
            step,
            last: self.own.last().copied(),
            source,
        })?;
        // Only now that the new one is durable.
        self.own.insert(step);
        while self.own.len() > self.keep {
            self.own.pop_first();
        }
        for (step, old) in self.list()? {
            if old != path && !self.own.contains(&step) {
                // An old checkpoint that stays does no harm while newer ones of the run are sound.
                let _ = std::fs::remove_file(old);
            }
        }
        Ok(path)
    }

    /// Checkpoints in the folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn count(&self) -> Result<usize, Error> {
        Ok(self.list()?.len())
    }

    /// The most checkpoints that are there at once, the new one included before the oldest goes.
    pub fn most(&self) -> u64 {
        (self.keep as u64).saturating_add(1)
    }

    /// All in the folder, oldest first, by step.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>, Error> {
        let unreadable = |source| Error::Unreadable {
            path: self.folder.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&self.folder) {
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
}
