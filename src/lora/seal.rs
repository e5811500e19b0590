//! The digests by which a LoRA file tells that it is still what was written: of everything that is read as numbers or as
//! their origin, and of the rest of the metadata, which other programs may edit.
//!
//! Files of other programs have kohya's and ModelSpec's hashes of the tensors' bytes. Many tools rewrite tensors and leave the old
//! hash standing, so there a difference is told and no more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::file::ADAPTER_METADATA;
use super::metadata::{CONVERTED, PROVENANCE, sha256};
use crate::digest::Fingerprint;
use crate::shown;

/// The key of the digests, as JSON.
const DIGESTS: &str = "plumb.digests";

/// The key of how plumb writes LoRA files. From [`VERSION`] on they have digests.
const VERSION_KEY: &str = "plumb.version";
const VERSION: &str = "2";

/// The metadata that decides what is read: numbers, their origin, the family and the naming.
const READ: [&str; 7] = [
    PROVENANCE,
    CONVERTED,
    VERSION_KEY,
    ADAPTER_METADATA,
    "modelspec.architecture",
    "software",
    "ss_base_model_version",
];

/// kohya's and ModelSpec's hashes of the tensors' bytes.
const FOREIGN: [&str; 2] = ["sshs_model_hash", "modelspec.hash_sha256"];

/// A tensor in a file's header: name, type, shape, and where its bytes begin and end.
pub(super) type Entry<'a> = (&'a str, String, &'a [usize], [usize; 2]);

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Digests {
    /// Of the tensors and the metadata in [`READ`].
    content: Fingerprint,
    /// Of all other metadata.
    rest: Fingerprint,
}

/// Adds the digests to a file's metadata, which must be whole but for them. `data`: the SHA-256 of the tensors' bytes.
pub(super) fn add(metadata: &mut BTreeMap<String, String>, entries: Vec<Entry<'_>>, data: &str) {
    metadata.insert(VERSION_KEY.to_owned(), VERSION.to_owned());
    let digests = json!(Digests::of(metadata, entries, data)).to_string();
    metadata.insert(DIGESTS.to_owned(), digests);
}

impl Digests {
    fn of(metadata: &BTreeMap<String, String>, mut entries: Vec<Entry<'_>>, data: &str) -> Self {
        entries.sort_unstable();
        let others = metadata.iter().filter(|(key, _)| *key != DIGESTS);
        let (read, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            others.partition(|(key, _)| READ.contains(&key.as_str()));
        Self {
            content: Fingerprint::of(&json!({
                "data": data,
                "metadata": read,
                "tensors": entries,
            })),
            rest: Fingerprint::of(&rest),
        }
    }
}

/// What a file's hashes say about it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Why it is not what plumb wrote, as a half sentence; None where plumb did not write it, or it is whole.
    pub(super) damage: Option<String>,
    /// Hashes of another program that do not fit.
    pub(super) problems: Vec<String>,
    /// What was changed without harm.
    pub(super) notes: Vec<String>,
}

/// Compares a file with the hashes in its metadata. `data`: the tensors' bytes.
pub(super) fn verify(
    metadata: &BTreeMap<String, String>,
    entries: Vec<Entry<'_>>,
    data: &[u8],
) -> Verdict {
    let stated = |key: &'static str| {
        let text = metadata.get(key)?.to_lowercase();
        let hash = text.strip_prefix("0x").unwrap_or(&text).to_owned();
        let is_hash = hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_hash.then_some((key, hash))
    };
    let stated: Vec<_> = FOREIGN.into_iter().filter_map(stated).collect();
    let digests = metadata.get(DIGESTS);
    let is_ours = [PROVENANCE, CONVERTED, VERSION_KEY];
    let is_ours = is_ours.iter().any(|key| metadata.contains_key(*key));
    if stated.is_empty() && digests.is_none() && !is_ours {
        return Verdict::default();
    }
    let found = sha256(std::iter::once(data));
    let wrong: Vec<_> = stated.iter().filter(|(_, hash)| *hash != found).collect();
    let tensors = wrong.first().map(|(key, hash)| {
        format!(
            "its tensors are not those of its `{key}` (expected {}, found {})",
            &hash[..12],
            &found[..12]
        )
    });
    let damaged = |what| Verdict {
        damage: Some(what),
        ..Verdict::default()
    };
    let Some(digests) = digests else {
        // Written before there were digests, or by another program.
        let lost = metadata
            .contains_key(VERSION_KEY)
            .then(|| format!("its `{DIGESTS}` metadata is missing"));
        return match is_ours {
            true => Verdict {
                damage: tensors.or(lost),
                ..Verdict::default()
            },
            false => Verdict {
                problems: tensors.into_iter().collect(),
                ..Verdict::default()
            },
        };
    };
    let Ok(digests) = serde_json::from_str::<Digests>(digests) else {
        return damaged(format!(
            "its `{DIGESTS}` metadata is `{}`, expected two digests",
            shown::text(digests)
        ));
    };
    let made = Digests::of(metadata, entries, &found);
    if digests.content != made.content {
        let header = || "its header is not the one that was written".to_owned();
        return damaged(tensors.unwrap_or_else(header));
    }
    let edited = (digests.rest != made.rest)
        .then(|| "its metadata was changed since it was written; its tensors are sound".to_owned());
    Verdict {
        notes: edited.into_iter().collect(),
        ..Verdict::default()
    }
}
