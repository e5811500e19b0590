//! The names of a store's objects, and what there is of them. Only names that are exactly those of the format are ever read,
//! written or removed: what else lies in the bucket is somebody else's.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::CONTENTS;
use super::client::Listed;
use crate::digest::{Digest, Fingerprint};
use crate::store::layout::MARKER;
use crate::store::run::is_run_id;

/// What follows a pack's name where it is stored in shared form.
const SHARED: &str = ".planes";
/// What follows the digest of a list of index parts.
const PART_LIST: &str = ".parts.json";

/// An object as it was listed. The time is the server's.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Object {
    pub(in crate::store) bytes: u64,
    pub(in crate::store) modified: SystemTime,
}

/// A pack on object storage: as it is in a folder, or in shared form. Where it is there in both, this is the one that is read.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct RemotePack {
    pub(in crate::store) object: Object,
    pub(in crate::store) is_shared: bool,
}

/// What a store on object storage has, by name.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) has_marker: bool,
    /// Whether a push left the list for those who cannot list.
    pub(super) has_list: bool,
    pub(super) specs: BTreeMap<Fingerprint, Object>,
    pub(super) packs: BTreeMap<Digest, RemotePack>,
    /// Packs that are there in both forms: these are their second objects.
    pub(super) copies: BTreeMap<Digest, RemotePack>,
    pub(super) parts: BTreeMap<(Fingerprint, Digest), Object>,
    /// Lists of what is known of index parts (`lists`).
    pub(super) lists: BTreeMap<(Fingerprint, Digest), Object>,
    pub(super) runs: BTreeMap<String, Object>,
}

pub(super) fn spec(spec: &Fingerprint) -> String {
    format!("specs/{spec}.json")
}

pub(super) fn pack(pack: &Digest, is_shared: bool) -> String {
    let name = pack.to_string();
    let shared = if is_shared { SHARED } else { "" };
    format!("packs/{}/{name}.safetensors{shared}", &name[..2])
}

pub(super) fn part(spec: &Fingerprint, part: &Digest) -> String {
    format!("index/{spec}/{part}.parquet")
}

pub(super) fn part_list(spec: &Fingerprint, list: &Digest) -> String {
    format!("index/{spec}/{list}{PART_LIST}")
}

pub(super) fn run(id: &str) -> String {
    format!("runs/{id}.json")
}

impl Contents {
    pub(super) fn of(listed: &[Listed]) -> Self {
        let mut contents = Self::default();
        for file in listed {
            let object = Object {
                bytes: file.bytes,
                modified: file.modified,
            };
            contents.add(&file.name, object);
        }
        contents
    }

    /// Takes an object in, if its name is one of the format's.
    fn add(&mut self, name: &str, object: Object) -> Option<()> {
        if name == MARKER {
            self.has_marker = true;
            return Some(());
        }
        if name == CONTENTS {
            self.has_list = true;
            return Some(());
        }
        let (folder, rest) = name.split_once('/')?;
        match folder {
            "specs" => {
                let spec = rest.strip_suffix(".json")?.parse().ok()?;
                self.specs.insert(spec, object);
            }
            "packs" => self.add_pack(rest, object)?,
            "index" => {
                let (spec, file) = rest.split_once('/')?;
                let (of_kind, digest) = match file.strip_suffix(PART_LIST) {
                    Some(list) => (&mut self.lists, list),
                    None => (&mut self.parts, file.strip_suffix(".parquet")?),
                };
                let key = (spec.parse().ok()?, digest.parse().ok()?);
                of_kind.insert(key, object);
            }
            "runs" => {
                let id = rest.strip_suffix(".json").filter(|id| is_run_id(id))?;
                self.runs.insert(id.to_owned(), object);
            }
            _ => {}
        }
        Some(())
    }

    fn add_pack(&mut self, rest: &str, object: Object) -> Option<()> {
        let (folder, file) = rest.split_once('/')?;
        let plain = file.strip_suffix(SHARED);
        let is_shared = plain.is_some();
        let name = plain.unwrap_or(file).strip_suffix(".safetensors")?;
        let digest: Digest = name.parse().ok()?;
        // A pack in another folder would be found by listing and not by its name.
        if name.get(..2) != Some(folder) {
            return None;
        }
        let found = RemotePack { object, is_shared };
        if let Some(other) = self.packs.insert(digest, found) {
            // The smaller form is the one to fetch.
            let (kept, copy) = match other.object.bytes < object.bytes {
                true => (other, found),
                false => (found, other),
            };
            self.packs.insert(digest, kept);
            self.copies.insert(digest, copy);
        }
        Some(())
    }

    /// Whether it has anything of a store.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_marker && self.packs.is_empty() && self.parts.is_empty() && self.specs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str) -> Listed {
        Listed {
            name: name.to_owned(),
            bytes: name.len() as u64,
            modified: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_names_of_the_format_are_taken() {
        let id = "ab".repeat(32);
        let digest: Digest = id.parse().expect("a digest");
        let fingerprint: Fingerprint = id.parse().expect("a fingerprint");
        let good = [
            MARKER.to_owned(),
            spec(&fingerprint),
            pack(&digest, false),
            pack(&digest, true),
            part(&fingerprint, &digest),
            part_list(&fingerprint, &digest),
            run("encode-a.1"),
        ];
        let found = Contents::of(&good.each_ref().map(|name| listed(name)));
        assert!(found.has_marker && !found.is_empty());
        assert_eq!((found.specs.len(), found.parts.len()), (1, 1));
        assert_eq!(
            found.lists.keys().collect::<Vec<_>>(),
            [&(fingerprint, digest)]
        );
        assert_eq!((found.packs.len(), found.copies.len()), (1, 1));
        assert!(!found.packs[&digest].is_shared && found.copies[&digest].is_shared);
        assert_eq!(found.runs.keys().collect::<Vec<_>>(), ["encode-a.1"]);
        let bad = [
            format!("packs/cd/{id}.safetensors"),
            format!("packs/ab/../ab/{id}.safetensors"),
            format!("packs/ab/{}.safetensors", id.to_uppercase()),
            format!("packs/ab/{id}.safetensors.planes.planes"),
            format!("packs/{id}.safetensors"),
            format!("index/{id}/x/{id}.parquet"),
            format!("index/../{id}.parquet"),
            format!("index/{id}/parts.json"),
            format!("index/{id}/{id}.parquet.parts.json"),
            format!("specs/{id}.json/x"),
            "runs/../x.json".to_owned(),
            "runs/.x.json".to_owned(),
            "runs/a/b.json".to_owned(),
            "store.json/x".to_owned(),
            "/store.json".to_owned(),
            "lock".to_owned(),
            "\u{e4}b/c".to_owned(),
            format!("packs/\u{e4}/{id}.safetensors"),
        ];
        let found = Contents::of(&bad.each_ref().map(|name| listed(name)));
        assert!(
            found.is_empty() && found.runs.is_empty() && found.lists.is_empty(),
            "{found:?}"
        );
    }
}
