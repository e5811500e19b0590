//! The folder of a run. It is made, locked and tried before anything long begins, and left as it was found where nothing comes of the
//! training.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::{shown, store};

/// Held locked by the training that works in the folder, with its process's number in it.
const LOCK: &str = "train.lock";

/// Where checkpoints are, in the folder.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Where previews are, in the folder.
pub(super) const PREVIEWS: &str = "previews";
/// How the name of a preview begins, before its step.
pub(super) const PREVIEW: &str = "step-";
/// How the name of a LoRA ends.
const ENDING: &str = ".safetensors";

/// Written to see whether there is room: a block of most file systems.
const PROBE_BYTES: usize = 4096;

/// Why a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another training holds it.
    #[error("{}: another training is at work in this folder{}; let it end, or choose another `train.output`", shown::path(folder), process(*holder))]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The number of the other process, if it could be read.
        holder: Option<u32>,
    },
    /// It cannot be written.
    #[error(
        "{}: cannot be written: {source}; make room or set its rights, or choose another `train.output`",
        shown::path(path)
    )]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has a name that the run needs.
    #[error(
        "{}: expected {expected}; remove it, or choose another `train.output`",
        shown::path(path)
    )]
    Taken {
        /// What is in the way.
        path: PathBuf,
        /// What it must be.
        expected: &'static str,
    },
    /// The disk is too full for what the run will write.
    #[error(
        "{}: the disk has {} free, and the run needs {} ({checkpoints} checkpoints of {} and the LoRA of {}); make room, set a lower \
         `train.keep_checkpoints`, or choose another `train.output`",
        shown::path(folder), megabytes(*free), megabytes(*needed), megabytes(*checkpoint), megabytes(*lora)
    )]
    TooFull {
        /// The folder.
        folder: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that will be needed at once.
        needed: u64,
        /// Checkpoints that will be written, as many as there are at once.
        checkpoints: u64,
        /// Bytes of one.
        checkpoint: u64,
        /// Bytes of the LoRA.
        lora: u64,
    },
}

fn process(number: Option<u32>) -> String {
    number.map_or_else(String::new, |n| format!(" (process {n})"))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Bytes that a run will write.
pub(super) struct Needs {
    /// Of a checkpoint.
    pub(super) checkpoint: u64,
    /// Checkpoints that come on top of those that are there, at most.
    pub(super) checkpoints: u64,
    /// Of the LoRA.
    pub(super) lora: u64,
}

/// A run's folder, held by this training alone.
#[derive(Debug)]
pub(super) struct OutputFolder {
    pub(super) path: PathBuf,
    /// The folders that were not there, outermost first.
    made: Vec<PathBuf>,
    /// None until it is locked.
    lock: Option<File>,
}

impl OutputFolder {
    /// Makes the folder of a run whose LoRA will be `lora` in it, takes it for this training, and sees that it can be written. What
    /// killed trainings left half written in it is removed.
    ///
    /// # Errors
    /// If another training holds it, it cannot be written, or something is in its way.
    pub(super) fn open(path: &Path, lora: &str) -> Result<Self, Error> {
        let mut folder = Self {
            path: path.to_owned(),
            made: Vec::new(),
            lock: None,
        };
        // From here on the drop of `folder` takes back what was made.
        folder.make(path)?;
        folder.lock()?;
        folder.make(&path.join(CHECKPOINTS))?;
        for part in [path.to_owned(), path.join(CHECKPOINTS)] {
            try_to_write(&part).map_err(|source| Error::Unwritable { path: part, source })?;
        }
        free_name(
            &path.join(lora),
            "the LoRA's file, or nothing",
            Path::is_file,
        )?;
        let metrics = path.join(super::metrics::LINES);
        free_name(&metrics, "a file, or nothing", Path::is_file)?;
        for part in [PREVIEWS, super::metrics::TENSORBOARD] {
            free_name(&path.join(part), "a folder, or nothing", Path::is_dir)?;
        }
        remove_abandoned(path);
        for part in [CHECKPOINTS, PREVIEWS] {
            remove_abandoned(&path.join(part));
        }
        Ok(folder)
    }

    /// That there is room for what the run will write.
    ///
    /// # Errors
    /// If there is not; a file system that does not tell is taken to have it.
    pub(super) fn check_room(&self, needs: &Needs) -> Result<(), Error> {
        let needed = needs.checkpoint.saturating_mul(needs.checkpoints);
        let needed = needed.saturating_add(needs.lora);
        match fs4::statvfs(&self.path) {
            // Some file systems of a network tell nothing but zeros.
            Ok(disk) if disk.total_space() > 0 && disk.available_space() < needed => {
                Err(Error::TooFull {
                    folder: self.path.clone(),
                    free: disk.available_space(),
                    needed,
                    checkpoints: needs.checkpoints,
                    checkpoint: needs.checkpoint,
                    lora: needs.lora,
                })
            }
            _ => Ok(()),
        }
    }

    /// Removes what the run that is given up made: its previews, its curves and its LoRA `lora`. Its checkpoints go when the first of the new
    /// run is there. Gives the files that look like LoRAs and stay, as they have other names.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub(super) fn begin_anew(&self, lora: &str) -> Result<Vec<PathBuf>, Error> {
        let is_preview = |name: &str| name.starts_with(PREVIEW) && !name.ends_with(ENDING);
        let is_curve = |name: &str| name.starts_with(super::metrics::EVENTS);
        for (part, is_of_run) in [
            (PREVIEWS, &is_preview as &dyn Fn(&str) -> bool),
            (super::metrics::TENSORBOARD, &is_curve),
        ] {
            for (name, path) in files(&self.path.join(part))? {
                if is_of_run(&name) {
                    remove(&path)?;
                }
            }
        }
        let mut stay = Vec::new();
        for (name, path) in files(&self.path)? {
            match name == lora {
                true => remove(&path)?,
                false if name.ends_with(ENDING) => stay.push(path),
                false => {}
            }
        }
        Ok(stay)
    }

    /// Makes a folder and those above it that are missing.
    fn make(&mut self, path: &Path) -> Result<(), Error> {
        // The empty path is the current folder, above a relative one.
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(Error::Taken {
                path: path.into(),
                expected: "a folder, or a link to one",
            });
        }
        if let Some(parent) = path.parent() {
            self.make(parent)?;
        }
        match std::fs::create_dir(path) {
            Ok(()) => self.made.push(path.into()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                let path = path.into();
                return Err(Error::Unwritable { path, source });
            }
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<(), Error> {
        let path = self.path.join(LOCK);
        // The folder is what people can do something about.
        let folder = self.path.clone();
        let failed = |source| Error::Unwritable {
            path: folder.clone(),
            source,
        };
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::InUse {
                        folder: self.path.clone(),
                        holder: holder(&mut file),
                    });
                }
                // A file system without locks: nobody else can be seen there.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // The training that held it may have removed it in between: then the lock is on a file that nobody else will see.
            if is_at(&file, &path) {
                self.lock = Some(file);
                break;
            }
        }
        let Some(file) = &mut self.lock else {
            return Ok(());
        };
        file.set_len(0)
            .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()))
            .map_err(failed)
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // While it is held. Where it stays, it does no harm.
            let _ = std::fs::remove_file(self.path.join(LOCK));
        }
        for made in self.made.iter().rev() {
            // Fails where there is something in it, which is as it should be.
            let _ = std::fs::remove_dir(made);
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether `file` is what `path` names.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// An open file cannot be removed elsewhere.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Writes a little into a file that never gets a name.
fn try_to_write(folder: &Path) -> io::Result<()> {
    let mut probe = tempfile::tempfile_in(folder)?;
    probe.write_all(&[1; PROBE_BYTES])?;
    // Some systems find out only now that there is no room.
    probe.sync_all()
}

/// Removes what killed trainings left half written. Where something stays, it does no harm.
fn remove_abandoned(folder: &Path) {
    let _ = store::collect_temporary_files(folder);
}

/// The files of a folder by their names, in order; none where there is no folder.
fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |source| Error::Unwritable {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_file()) {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn remove(path: &Path) -> Result<(), Error> {
    std::fs::remove_file(path).map_err(|source| Error::Unwritable {
        path: path.to_owned(),
        source,
    })
}

/// That nothing is at `path`, or what `fits`.
fn free_name(path: &Path, expected: &'static str, fits: fn(&Path) -> bool) -> Result<(), Error> {
    let path = path.to_owned();
    match std::fs::symlink_metadata(&path) {
        Ok(_) if fits(&path) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Error::Taken { path, expected }),
        // Such as a name that is too long for the file system.
        Err(source) => Err(Error::Unwritable { path, source }),
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
