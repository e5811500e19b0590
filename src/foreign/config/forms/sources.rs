//! The files of an import: those that are given, and those that they name and that lie where they say.

use std::path::{Path, PathBuf};

use crate::foreign::config::Error;
use crate::foreign::config::read::{self, Document};
use crate::foreign::config::tree::{Budget, Node};
use crate::shown;

/// The most files of one import.
const MAX_FILES: usize = 32;

/// Files with what is in them.
#[derive(Debug, Default)]
pub(in crate::foreign::config) struct Sources {
    list: Vec<(PathBuf, Document)>,
    budget: Budget,
}

impl Sources {
    /// Reads files.
    ///
    /// # Errors
    /// If there is none, or one cannot be read.
    pub(in crate::foreign::config) fn read(files: &[PathBuf]) -> Result<Self, Error> {
        let mut sources = Self::default();
        if files.is_empty() {
            return Err(Error::Unreadable {
                file: PathBuf::new(),
                why: "no file is given".to_owned(),
            });
        }
        for file in files {
            sources.add(file)?;
        }
        Ok(sources)
    }

    fn add(&mut self, file: &Path) -> Result<usize, Error> {
        let unreadable = |why: String| Error::Unreadable {
            file: file.to_owned(),
            why,
        };
        if self.list.len() >= MAX_FILES {
            return Err(unreadable(format!("there are more than {MAX_FILES} files")));
        }
        let document = read::read(file, &mut self.budget).map_err(unreadable)?;
        self.list.push((file.to_owned(), document));
        Ok(self.list.len() - 1)
    }

    pub(in crate::foreign::config) fn path(&self, file: usize) -> &Path {
        self.list.get(file).map_or(Path::new(""), |(path, _)| path)
    }

    pub(in crate::foreign::config) fn paths(&self) -> Vec<PathBuf> {
        self.list.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The files' names, for a sentence.
    pub(in crate::foreign::config) fn names(&self) -> String {
        let name = |(path, _): &(PathBuf, Document)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            shown::text(&name).to_string()
        };
        let names: Vec<String> = self.list.iter().map(name).collect();
        names.join(" and ")
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn document(&self, file: usize) -> Option<&Document> {
        self.list.get(file).map(|(_, document)| document)
    }

    /// The values of a file that has some.
    pub(super) fn values(&self, file: usize) -> Option<&Node> {
        match self.document(file)? {
            Document::Values(node) => Some(node),
            Document::Script(_) => None,
        }
    }

    /// Reads a file that another one names, if it lies where that says: seen from the other's folder, or from one above it (trainers
    /// start in the folder of their program), or beside it under its name alone.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub(super) fn companion(&mut self, of: usize, name: &str) -> Result<Option<usize>, Error> {
        let folder = self.path(of).parent().unwrap_or(Path::new("")).to_owned();
        let named = Path::new(&name.replace('\\', "/")).to_owned();
        let above = folder.ancestors().take(4).map(|folder| folder.join(&named));
        let beside = named.file_name().map(|name| folder.join(name));
        let Some(found) = above.chain(beside).find(|path| path.is_file()) else {
            return Ok(None);
        };
        match self.list.iter().position(|(path, _)| *path == found) {
            Some(known) => Ok(Some(known)),
            None => self.add(&found).map(Some),
        }
    }
}
