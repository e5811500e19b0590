//! The bound of the folder that stands before a store on object storage. Packs that are over there too go when it is full, first those
//! that nobody read for longest, whichever process that was: a file's time of access says when.
//!
//! A pack that is removed while somebody reads it stays readable for them, where the system does that; elsewhere it cannot be removed. Whoever
//! wants it next fetches it again.

use std::fs::{File, FileTimes};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::Mirror;
use crate::digest::Digest;
use crate::store::Error;
use crate::store::disk::ListedFile;
use crate::store::layout::Layout;

/// How much a folder keeps.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimit {
    /// Bytes of packs, about: those that are still to be pushed stay in any case.
    pub bytes: u64,
    /// The time now; the library itself reads no clock.
    pub now: fn() -> SystemTime,
}

/// How long what was read stays the last that was read: a file is not marked at each look.
const MARK_AFTER: Duration = Duration::from_secs(60);
/// Of the bound, what is made free when it is reached, so that not every pack makes a list of all.
const SHARE_FREED: u64 = 16;
/// Packs of which it is asked at once whether they are over there.
const LOOKED_FOR: usize = 64;
/// What came just now is about to be read by whoever fetched it.
const SPARED: Duration = Duration::from_secs(5);

impl Mirror {
    /// Marks a pack that is open as read, where that matters.
    pub(in crate::store) fn mark_read(&self, file: &File, accessed: Option<SystemTime>) {
        let Some(limit) = self.behind.limit else {
            return;
        };
        let now = (limit.now)();
        let is_recent = |at: SystemTime| now.duration_since(at).is_ok_and(|d| d < MARK_AFTER);
        if !accessed.is_some_and(is_recent) {
            // In a folder of somebody else's it cannot be; then the oldest copy goes first.
            let _ = file.set_times(FileTimes::new().set_accessed(now));
        }
    }

    /// Counts a pack that came into the folder, and makes room when it is time.
    pub(super) fn grew(&self, layout: &Layout, pack: &Digest, bytes: u64) -> Result<(), Error> {
        let Some(limit) = self.behind.limit else {
            return Ok(());
        };
        let before = self.grown.fetch_add(bytes, Ordering::Relaxed);
        match before.saturating_add(bytes) > limit.bytes / SHARE_FREED {
            true => self.trim(layout, Some(pack)),
            false => Ok(()),
        }
    }

    /// Removes what the folder has too much, but not `wanted`, which is about to be read.
    pub(in crate::store) fn trim(
        &self,
        layout: &Layout,
        wanted: Option<&Digest>,
    ) -> Result<(), Error> {
        let Some(limit) = self.behind.limit else {
            return Ok(());
        };
        self.grown.store(0, Ordering::Relaxed);
        let here = layout.list_packs()?;
        let mut total: u64 = here.iter().map(|(_, file)| file.bytes).sum();
        let most = limit.bytes - limit.bytes / SHARE_FREED;
        if total <= most {
            return Ok(());
        }
        let now = (limit.now)();
        let mut old = Vec::new();
        let is_ours = |file: &ListedFile| file.is_file && file.is_own;
        for (pack, file) in here.iter().filter(|(_, file)| is_ours(file)) {
            // One that another process removed.
            let Ok(metadata) = layout.disk.look_at(&layout.pack(pack)) else {
                continue;
            };
            let read = metadata.accessed().or_else(|_| metadata.modified());
            let read = read.unwrap_or(SystemTime::UNIX_EPOCH);
            let is_spared = now.duration_since(read).is_ok_and(|d| d < SPARED);
            if !is_spared && wanted != Some(pack) {
                old.push((read, *pack, file.bytes));
            }
        }
        old.sort();
        for some in old.chunks(LOOKED_FOR) {
            if total <= most {
                break;
            }
            let packs: Vec<Digest> = some.iter().map(|(_, pack, _)| *pack).collect();
            let there = self.find(&packs)?;
            for (_, pack, bytes) in some.iter().filter(|(_, pack, _)| there.contains_key(pack)) {
                // One that cannot be removed is in use, or gone.
                if total > most && layout.disk.remove(&layout.pack(pack)).is_ok() {
                    total -= bytes;
                }
            }
        }
        Ok(())
    }
}
