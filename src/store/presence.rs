//! Gathers the rows of an index part into entries. A part that lacks a row of one of its entries is refused.

use super::pack::PACK_LIMIT_BYTES;
use super::record::PARTS_LIMIT;
use crate::digest::{Digest, Fingerprint};

/// An entry of an index part: where its rows are, and which pack has its payloads.
#[derive(Clone)]
pub(super) struct EntryRows {
    pub(super) entry: Fingerprint,
    /// The first of its rows in the part.
    pub(super) row: u32,
    /// The number of its rows, one for each of its payloads.
    pub(super) rows: u32,
    pub(super) pack: Digest,
    /// The end of its last payload in the pack's file; a shorter file cannot have all of it.
    pub(super) end: u64,
    /// The bytes of its payloads.
    pub(super) bytes: u64,
}

/// Where a payload is.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) pack: Digest,
    /// The end in the pack's file.
    pub(super) end: u64,
    pub(super) bytes: u64,
}

/// Gathers the rows of an index part, in order, into entries.
#[derive(Default)]
pub(super) struct EntryGrouper {
    found: Vec<EntryRows>,
    num_rows: u32,
    // Of the last entry: its id as text, how many rows it says that it has, and their names.
    entry: String,
    expected: u32,
    names: Vec<String>,
}

impl EntryGrouper {
    /// Takes the next row.
    pub(super) fn add(
        &mut self,
        entry: &str,
        part: &str,
        parts: u32,
        span: Span,
    ) -> Result<(), String> {
        let Span { pack, end, bytes } = span;
        let is_open = self.names.len() < self.expected as usize;
        let incomplete = || Err(incomplete(entry));
        match self.found.last_mut() {
            // The last entry still lacks rows: the next row must be one of them, in the same pack, with a name of its own.
            Some(last) if is_open => {
                let fits = entry == self.entry && pack == last.pack && parts == self.expected;
                if !fits || self.names.iter().any(|n| n == part) {
                    return incomplete();
                }
                last.rows += 1;
                last.end = last.end.max(end);
                last.bytes += bytes;
            }
            // More rows of an entry than it says.
            Some(last) if entry == self.entry && pack == last.pack => return incomplete(),
            _ if !(1..=PARTS_LIMIT as u32).contains(&parts) => return incomplete(),
            _ => {
                self.found.push(EntryRows {
                    // Parsed once an entry, not once a row; texts are compared above.
                    entry: entry.parse().map_err(|e| format!("column entry: {e}"))?,
                    row: self.num_rows,
                    rows: 1,
                    pack,
                    end,
                    bytes,
                });
                entry.clone_into(&mut self.entry);
                self.expected = parts;
                self.names.clear();
            }
        }
        self.names.push(part.to_owned());
        self.num_rows += 1;
        Ok(())
    }

    /// The entries, when the last one has all its rows.
    pub(super) fn finish(self) -> Result<Vec<EntryRows>, String> {
        if self.names.len() < self.expected as usize {
            return Err(incomplete(&self.entry));
        }
        Ok(self.found)
    }
}

/// Where a payload ends; no pack reaches further than its limit.
pub(super) fn payload_end(offset: u64, length: u64) -> Result<u64, String> {
    offset
        .checked_add(length)
        // Bounded here, so that no place in a hostile index can overflow or ask for more than a pack has.
        .filter(|&end| end <= PACK_LIMIT_BYTES as u64)
        .ok_or_else(|| {
            format!(
                "columns offset and length: expected a place in a pack, found {offset} and {length}"
            )
        })
}

fn incomplete(entry: &str) -> String {
    format!("the rows of entry {entry} are not what its column parts says")
}
