//! A folder outside a store that is filled under another name and put in place whole: who sees it under its own name sees all of it.
//!
//! The other name is `.NAME.unfinished`, beside it. While it is filled, its writer holds a lock on a file in it; one whose writer died is
//! emptied by the next.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{self, Disk as _, Local};
use super::{Error, create_root};

/// What the writer of an unfinished folder holds locked.
const LOCK: &str = ".lock";

/// A folder that is being filled. Given up before [`Self::finish`], it goes.
pub struct NewFolder {
    target: PathBuf,
    unfinished: PathBuf,
    /// None once it has its name. Held as long as files are written.
    lock: Option<File>,
}

impl NewFolder {
    /// A folder to be at `path`, where there is nothing yet, or an empty folder.
    ///
    /// # Errors
    /// [`Error::Refused`], without the path, if there is something; if another process fills it just now, or the folder above cannot be
    /// written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let target = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
        let Some(name) = target.file_name() else {
            return Err(Error::Refused(
                "is no name for a new folder: give one".to_owned(),
            ));
        };
        expect_free(&target)?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".unfinished");
        let unfinished = target.with_file_name(hidden);
        create_root(&Local, target.parent().unwrap_or(Path::new("/")))?;
        match Local.create_dir(&unfinished) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => expect_ours(&unfinished)?,
            made => made.map_err(|e| Error::io("create the folder", &unfinished, e))?,
        }
        let path = unfinished.join(LOCK);
        let lock = Local.open_lock(&path);
        let lock = lock.map_err(|e| Error::io("open", &path, e))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::Refused(format!(
                "is being written by another process, in {}",
                unfinished.display()
            )));
        }
        let folder = Self {
            target,
            unfinished,
            lock: Some(lock),
        };
        folder.empty()?;
        Ok(folder)
    }

    /// Where it is while it is filled.
    pub(super) fn path(&self) -> &Path {
        &self.unfinished
    }

    /// Writes a file, durably; `name` is relative, and its folders are made.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &Path, chunks: &[&[u8]]) -> Result<(), Error> {
        let path = self.unfinished.join(name);
        let folder = path.parent().unwrap_or(&self.unfinished);
        disk::create_dirs(&Local, &self.unfinished, folder)?;
        let name = path.file_name().unwrap_or_default();
        disk::write_once(&Local, folder, name, chunks)
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// If something has come there meanwhile, or the system refuses.
    pub fn finish(mut self) -> Result<(), Error> {
        expect_free(&self.target)?;
        disk::remove(&Local, &self.unfinished.join(LOCK))?;
        match fs::remove_dir(&self.target) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("replace the empty folder", &self.target, e));
            }
            _ => {}
        }
        let named = Local.rename(&self.unfinished, &self.target);
        named.map_err(|e| Error::io("rename an unfinished folder to", &self.target, e))?;
        self.lock = None;
        let above = self.target.parent().unwrap_or(Path::new("/"));
        let synced = Local.sync_dir(above);
        synced.map_err(|e| Error::io("sync the folder", above, e))
    }

    /// Removes what a writer that died left.
    fn empty(&self) -> Result<(), Error> {
        for file in disk::list(&Local, &self.unfinished)? {
            let path = self.unfinished.join(&file.name);
            let removed = match (file.is_own && file.is_folder, file.name == LOCK) {
                (_, true) => Ok(()),
                (true, _) => fs::remove_dir_all(&path),
                (false, _) => fs::remove_file(&path),
            };
            removed.map_err(|e| Error::io("remove", &path, e))?;
        }
        Ok(())
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // The first error is the one to tell. What stays, the next writer removes.
            let _ = fs::remove_dir_all(&self.unfinished);
        }
    }
}

fn expect_free(target: &Path) -> Result<(), Error> {
    match fs::read_dir(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::Refused("is no folder: give another one".to_owned()))
        }
        Err(e) => Err(Error::io("look at", target, e)),
        Ok(mut files) => match files.next() {
            None => Ok(()),
            Some(_) => Err(Error::Refused(
                "is a folder with something in it: give a new one, or remove it".to_owned(),
            )),
        },
    }
}

/// That a folder which is there was left by a writer, or is empty.
fn expect_ours(unfinished: &Path) -> Result<(), Error> {
    let files = disk::list(&Local, unfinished)?;
    let is_ours = files.is_empty() || files.iter().any(|file| file.name == LOCK);
    if is_ours && disk::is_own_folder(&Local, unfinished)? {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "would be filled in {}, which is there already: remove that",
        unfinished.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_seen_whole_or_not_at_all_and_what_a_dead_writer_left_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("above/set");
        let folder = NewFolder::create(&target).expect("made");
        folder.write(Path::new("a/b"), &[b"x"]).expect("written");
        let busy = NewFolder::create(&target).err().expect("refused");
        assert!(busy.to_string().contains("another process"), "{busy}");
        assert!(!target.exists());
        drop(folder);
        let above = || fs::read_dir(target.parent().expect("above")).expect("there");
        assert_eq!(above().count(), 0, "what is given up goes");

        // As a process leaves it that was killed.
        let left = dir.path().join("above/.set.unfinished");
        fs::create_dir_all(left.join("a")).expect("made");
        fs::write(left.join("a/old"), "x").expect("written");
        let foreign = NewFolder::create(&target).err().expect("refused");
        assert!(foreign.to_string().contains("remove that"), "{foreign}");
        fs::write(left.join(LOCK), "").expect("written");
        fs::create_dir(&target).expect("an empty folder may be there");
        let folder = NewFolder::create(&target).expect("made");
        folder.write(Path::new("a/b"), &[b"x"]).expect("written");
        folder.finish().expect("in place");
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).expect("there");
            entries
                .map(|e| e.expect("an entry").file_name())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&target), ["a"]);
        assert_eq!(names(&target.join("a")), ["b"]);
        assert_eq!(above().count(), 1);
        let there = NewFolder::create(&target).err().expect("refused");
        assert!(
            there.to_string().contains("with something in it"),
            "{there}"
        );
    }
}
