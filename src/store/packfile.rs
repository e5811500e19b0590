//! Packs as maintenance reads them: as bytes in memory, so that an error of the disk is an error, and never looks like
//! damage. (Of a mapped file it would end the process.)

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::disk::{self, ListedFile};
use super::layout::Layout;
use super::pack::{HEADER_LIMIT_BYTES, PACK_LIMIT_BYTES};
use super::packed::{self, OpenedPack};
use super::record::{PartRecord, Record};
use super::{Error, PackPath};
use crate::digest::{Digest, Fingerprint};
use crate::monitor::Monitor;

/// How many packs are in memory at once: a gigabyte at most.
const PACKS_AT_ONCE: usize = 4;

/// What reading a pack whole showed. That it could not be read is none of these, but an error.
pub(super) enum PackState {
    /// Every byte is what was written.
    Sound {
        spec: Fingerprint,
        spec_json: String,
        records: Vec<Record>,
    },
    /// Not what its name says, or no pack.
    Damaged,
    /// Of a format that this program does not know: to be left alone.
    Foreign(String),
}

/// Reads the whole pack and says in what state it is.
///
/// # Errors
/// If it could not be read; that says nothing about its state.
pub(super) fn read_state(layout: &Layout, file: &PackPath) -> Result<PackState, Error> {
    let bytes = match read_whole(layout, file) {
        Err(e) if e.is_content() => return Ok(PackState::Damaged),
        other => other?,
    };
    // First: with another digest nothing that the header says can be believed, its version neither.
    if Digest::of(&bytes) != file.pack {
        return Ok(PackState::Damaged);
    }
    Ok(match packed::read_pack(&file.path, &file.pack, &bytes) {
        Err(e @ Error::NewerFormat { .. }) => PackState::Foreign(e.to_string()),
        // The file is what was written; were a payload not what its header says, it would have been so
        // from the beginning, and reading it would tell.
        Ok(opened) if opened.faults.is_empty() => PackState::Sound {
            spec: opened.spec,
            spec_json: opened.spec_json,
            records: opened.entries.into_iter().map(|e| e.record).collect(),
        },
        _ => PackState::Damaged,
    })
}

/// Does `work` on each pack, a few at once, and gives `take` what came of it, in the order of the packs.
pub(super) fn each<T: Send>(
    files: &[(PackPath, ListedFile)],
    monitor: &dyn Monitor,
    work: impl Fn(&PackPath) -> Result<T, Error> + Sync,
    mut take: impl FnMut(&(PackPath, ListedFile), T) -> Result<(), Error>,
) -> Result<(), Error> {
    for some in files.chunks(PACKS_AT_ONCE) {
        let results: Vec<Result<T, Error>> = some
            .par_iter()
            .map(|(file, listed)| {
                let result = work(file);
                monitor.advance(listed.bytes);
                result
            })
            .collect();
        for (file, result) in some.iter().zip(results) {
            take(file, result?)?;
        }
    }
    Ok(())
}

/// All bytes of a pack. One that is longer than any can be is an error of its content.
pub(super) fn read_whole(layout: &Layout, file: &PackPath) -> Result<Vec<u8>, Error> {
    disk::read_bounded(&*layout.disk, &file.path, PACK_LIMIT_BYTES as u64)
}

/// As [`read_whole`], with zeros in the place of payloads: the header's reader asks for all of the file, and looks at the
/// header alone.
pub(super) fn read_header(layout: &Layout, file: &PackPath) -> Result<Vec<u8>, Error> {
    let (disk, path) = (&*layout.disk, &file.path);
    let length = disk::length(disk, path)?;
    if length > PACK_LIMIT_BYTES as u64 {
        let why = format!("expected at most {PACK_LIMIT_BYTES} bytes, found {length}");
        return Err(Error::malformed(path, why));
    }
    let prefix = disk::read_range(disk, path, 0, length.min(8))?.unwrap_or_default();
    let said = prefix.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let head = (said.saturating_add(8))
        .min(HEADER_LIMIT_BYTES as u64 + 8)
        .min(length);
    let header = disk::read_range(disk, path, 0, head)?.unwrap_or_default();
    // Zeros that nobody touches take no memory, where a growing list would write them.
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(header.len())];
    bytes[..header.len()].copy_from_slice(&header);
    Ok(bytes)
}

/// Reads the whole pack, and its header.
pub(super) fn open(layout: &Layout, file: &PackPath) -> Result<(Vec<u8>, OpenedPack), Error> {
    let bytes = read_whole(layout, file)?;
    let opened = packed::read_pack(&file.path, &file.pack, &bytes)?;
    Ok((bytes, opened))
}

/// Whether these payloads are in a pack as they were written.
pub(super) fn is_sound<'a>(
    layout: &Layout,
    pack: &Digest,
    parts: impl Iterator<Item = &'a PartRecord>,
) -> Result<bool, Error> {
    let path = layout.pack(pack);
    for part in parts {
        match disk::read_range(&*layout.disk, &path, part.offset, part.length) {
            Ok(Some(bytes)) if Digest::of(&bytes) == part.digest => {}
            Ok(_) => return Ok(false),
            Err(e) if e.is_gone() => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
