//! Mending the files of specs: those that are missing or damaged are written anew from what packs say, and those that stand
//! under a wrong name are put under their own.

use std::collections::BTreeMap;

use super::disk::{create_dirs, write_once};
use super::layout::{self, Layout};
use super::{Error, Problem, RebuildReport, Store};
use crate::digest::Fingerprint;

/// Files that are not the spec in their name, nor can be, as nothing knows that spec.
pub(super) struct Misnamed(Vec<(Fingerprint, Option<Vec<u8>>, bool)>);

/// The specs on disk that are what their names say.
pub(super) fn read_sound(layout: &Layout) -> Result<BTreeMap<Fingerprint, String>, Error> {
    let mut found = BTreeMap::new();
    for (spec, _) in layout.list_specs()? {
        match layout::read_spec(layout, &spec) {
            Ok(json) => {
                // What has its own fingerprint as its name was checked to be text when it was written.
                found.insert(spec, String::from_utf8_lossy(&json).into_owned());
            }
            Err(e) if e.is_content() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Finds the files that are not the spec in their name, where `known` has nothing to write in their place.
pub(super) fn examine(
    layout: &Layout,
    known: &BTreeMap<Fingerprint, String>,
) -> Result<Misnamed, Error> {
    let mut misnamed = Vec::new();
    for (spec, file) in layout.list_specs()? {
        if known.contains_key(&spec) {
            continue;
        }
        let content = match layout::read_as_spec(layout, &layout.spec(&spec)) {
            Ok(content) => is_spec(&content).then_some(content),
            Err(e) if e.is_content() => None,
            Err(e) => return Err(e),
        };
        misnamed.push((spec, content, file.is_own));
    }
    Ok(Misnamed(misnamed))
}

impl Misnamed {
    /// Puts each that is a spec under its own name, and sets the file aside.
    pub(super) fn mend(self, store: &Store, report: &mut RebuildReport) -> Result<(), Error> {
        for (name, content, is_own) in self.0 {
            if let Some(content) = content {
                let spec = Fingerprint::of_canonical(&content);
                report.specs_written += u64::from(write(store, &spec, &content)?);
            }
            let (from, to) = (store.layout.spec(&name), store.layout.spec_set_aside(&name));
            if !is_own {
                let what = "not the spec in its name, but behind a link".to_owned();
                let problem = Problem::of(&store.layout, &from, what, "left where it is");
                report.problems.push(problem);
                continue;
            }
            store
                .disk()
                .rename(&from, &to)
                .map_err(|e| Error::io("set aside", &from, e))?;
            report.specs_set_aside += 1;
        }
        Ok(())
    }
}

/// Writes a spec unless it is there already, as it must be; says whether it did.
pub(super) fn write(store: &Store, spec: &Fingerprint, json: &[u8]) -> Result<bool, Error> {
    match layout::read_spec(&store.layout, spec) {
        Ok(_) => return Ok(false),
        Err(e) if e.is_gone() || e.is_content() => {}
        Err(e) => return Err(e),
    }
    let dir = store.layout.specs();
    create_dirs(store.disk(), &store.layout.root, &dir)?;
    write_once(store.disk(), &dir, format!("{spec}.json"), &[json])?;
    Ok(true)
}

/// Whether these bytes are the canonical form of a spec.
fn is_spec(bytes: &[u8]) -> bool {
    let value = serde_json::from_slice::<serde_json::Value>(bytes);
    value.is_ok_and(|v| v.is_object() && crate::digest::canonical_json(&v) == bytes)
}
