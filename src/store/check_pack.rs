//! What a check finds in one pack.

use std::collections::HashMap;

use super::layout::PackPath;
use super::packed::{self, OpenedPack};
use super::record::Record;
use super::{Store, packfile};
use crate::digest::{Digest, Fingerprint};

/// What reading one pack brought to light.
#[derive(Default)]
pub(super) struct PackFindings {
    /// What it says of each entry, as the digest of the record.
    pub(super) entries: HashMap<Fingerprint, Digest>,
    /// The entries whose payload is not what was written. Only those that the index names matter.
    pub(super) damaged: HashMap<Fingerprint, String>,
    pub(super) problems: Vec<String>,
    /// Why it could not be read; nothing else is known then.
    pub(super) unreadable: Option<String>,
}

/// What one pack shows; `None` if it is gone.
pub(super) fn check_pack(store: &Store, file: &PackPath, read_data: bool) -> Option<PackFindings> {
    let mut findings = PackFindings::default();
    let read = match read_data {
        true => packfile::read_whole(&store.layout, file),
        false => packfile::read_header(&store.layout, file),
    };
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(e) if e.is_gone() => return None,
        Err(e) if e.is_content() => {
            findings.problems.push(e.to_string());
            return Some(findings);
        }
        Err(e) => {
            findings.unreadable = Some(e.to_string());
            return Some(findings);
        }
    };
    match packed::read_pack(&file.path, &file.pack, &bytes) {
        Ok(opened) => {
            if read_data {
                read_payloads(&file.pack, &bytes, &opened, &mut findings);
            }
            findings.problems.extend(opened.faults);
            let digests = opened
                .entries
                .iter()
                .map(|e| (e.record.entry, record_digest(&e.record)));
            findings.entries = digests.collect();
        }
        Err(e) => findings.problems.push(e.to_string()),
    }
    Some(findings)
}

fn read_payloads(pack: &Digest, bytes: &[u8], opened: &OpenedPack, findings: &mut PackFindings) {
    for packed in &opened.entries {
        if let Err(why) = packed.payloads(bytes) {
            let record = &packed.record;
            let source = crate::shown::text(&record.source);
            let what = format!("entry {} (\"{source}\"): {why}", record.entry);
            findings.damaged.insert(record.entry, what);
        }
    }
    let found = Digest::of(bytes);
    // A damaged payload changes the file's digest as well: that would be told twice.
    if found != *pack && findings.damaged.is_empty() {
        findings.problems.push(format!(
            "expected content with the digest in the name, found {}; all payloads are sound",
            found.short()
        ));
    }
}

/// Stands for a record where only equality matters, in 32 bytes instead of a caption and its tokens.
pub(super) fn record_digest(record: &Record) -> Digest {
    // A record has no map and no NaN, so it always has a JSON form; were it not so, both sides are alike.
    Digest::of(&serde_json::to_vec(record).unwrap_or_default())
}
