//! What a check finds in one pack.

use std::collections::HashMap;

use super::layout::PackPath;
use super::packed::{self, OpenedPack};
use super::record::{PartRecord, Record};
use super::tensor::Summary;
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
    // Taken apart, so that a field that is added is not forgotten here.
    let Record {
        entry,
        source,
        tokens,
        token_count,
        truncated,
        tool,
        pack,
        parts,
    } = record;
    let mut bytes = Vec::with_capacity(512 + source.len() + 4 * tokens.len());
    bytes.extend(entry.as_bytes());
    bytes.extend(pack.as_bytes());
    bytes.extend(token_count.to_le_bytes());
    bytes.push(u8::from(*truncated));
    add_text(&mut bytes, source);
    add_text(&mut bytes, tool);
    add_length(&mut bytes, tokens.len());
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    for part in parts {
        add_part(&mut bytes, part);
    }
    Digest::of(&bytes)
}

fn add_part(bytes: &mut Vec<u8>, part: &PartRecord) {
    let PartRecord {
        part,
        tensor,
        offset,
        length,
        digest,
        dtype,
        shape,
        summary,
    } = part;
    add_text(bytes, part);
    add_text(bytes, tensor);
    bytes.extend(offset.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(digest.as_bytes());
    add_text(bytes, dtype.name());
    add_length(bytes, shape.len());
    for &size in shape {
        add_length(bytes, size);
    }
    let Summary {
        mean,
        std,
        min,
        max,
        rms,
        non_finite,
    } = summary;
    for number in [mean, std, min, max, rms] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(non_finite.to_le_bytes());
}

/// With its length, so that no two records have the same bytes.
fn add_text(bytes: &mut Vec<u8>, text: &str) {
    add_length(bytes, text.len());
    bytes.extend(text.as_bytes());
}

fn add_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend((length as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tensor::ElementType;

    fn part() -> PartRecord {
        PartRecord {
            part: "hidden".to_owned(),
            tensor: "e.hidden".to_owned(),
            offset: 8,
            length: 12,
            digest: Digest::of(b"payload"),
            dtype: ElementType::F32,
            shape: vec![1, 3],
            summary: Summary::default(),
        }
    }

    fn record() -> Record {
        Record {
            entry: Fingerprint::of_canonical(b"{}"),
            source: "a cat".to_owned(),
            tokens: vec![1, 2, 3],
            token_count: 2,
            truncated: false,
            tool: "plumb".to_owned(),
            pack: Digest::of(b"pack"),
            parts: vec![part(), part()],
        }
    }

    #[test]
    fn records_that_differ_in_one_field_have_different_digests() {
        let in_record: [fn(&mut Record); 10] = [
            |r| r.entry = Fingerprint::of_canonical(b"[]"),
            |r| r.source = "a cab".to_owned(),
            // What one text loses the next one gains.
            |r| (r.source, r.tool) = ("a catp".to_owned(), "lumb".to_owned()),
            |r| r.tokens = vec![1, 2, 4],
            |r| r.tokens = vec![1, 2],
            |r| r.token_count = 3,
            |r| r.truncated = true,
            |r| r.tool = "plumb 2".to_owned(),
            |r| r.pack = Digest::of(b"other"),
            |r| r.parts.truncate(1),
        ];
        let in_part: [fn(&mut PartRecord); 14] = [
            |p| p.part = "pooled".to_owned(),
            |p| p.tensor = "e.pooled".to_owned(),
            |p| p.offset = 16,
            |p| p.length = 16,
            |p| p.digest = Digest::of(b"other"),
            |p| p.dtype = ElementType::Bf16,
            |p| p.shape = vec![3, 1],
            |p| p.shape = vec![3],
            |p| p.summary.mean = 1.0,
            |p| p.summary.std = 1.0,
            |p| p.summary.min = -1.0,
            |p| p.summary.max = 1.0,
            |p| p.summary.rms = 1.0,
            |p| p.summary.non_finite = 1,
        ];
        let mut digests = vec![record_digest(&record())];
        for change in in_record {
            let mut changed = record();
            change(&mut changed);
            digests.push(record_digest(&changed));
        }
        for (place, change) in [0, 1].into_iter().flat_map(|n| in_part.map(|c| (n, c))) {
            let mut changed = record();
            change(&mut changed.parts[place]);
            digests.push(record_digest(&changed));
        }
        assert_eq!(record_digest(&record()), digests[0]);
        let all = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), all);
    }
}
