//! An index part of which some row groups are read: those that may have what is looked for. Each range that is read is compared
//! with the part's digest (`tree`) before it is decoded.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};

use super::index::{self, Rows, Take};
use super::layout::Layout;
use super::tree::{PIECE_BYTES, Tree};
use super::{Error, disk};
use crate::digest::{Digest, Fingerprint};

/// The bytes at a Parquet file's end that tell how long what is before them is.
const TAIL_BYTES: u64 = 8;

/// An index part, its footer read.
pub(super) struct RangedPart {
    layout: Layout,
    path: PathBuf,
    tree: Tree,
    metadata: ArrowReaderMetadata,
}

/// Some of a file's bytes, by where they begin.
struct Pieces {
    bytes: u64,
    runs: BTreeMap<u64, Bytes>,
}

impl RangedPart {
    /// Opens a part whose pieces are known.
    pub(super) fn open(
        layout: &Layout,
        spec: &Fingerprint,
        part: &Digest,
        tree: Tree,
    ) -> Result<Self, Error> {
        let path = layout.index_part(spec, part);
        let length = disk::length(&*layout.disk, &path)?;
        if length != tree.bytes() {
            let why = format!("expected {} bytes, found {length}", tree.bytes());
            return Err(Error::malformed(&path, why));
        }
        let end = length - TAIL_BYTES..length;
        let mut pieces = Pieces::new(length);
        pieces.read(layout, (&path, &tree), end.clone())?;
        // The footer's length, and four letters.
        let tail = pieces.get_bytes(end.start, 4);
        let footer = tail.map_or(0, |mut tail| u64::from(tail.get_u32_le()));
        let before = end.start.saturating_sub(footer);
        pieces.read(layout, (&path, &tree), before..length)?;
        let decoded = super::contain(|| {
            let options = ArrowReaderOptions::default();
            let metadata = ArrowReaderMetadata::load(&pieces, options);
            let metadata = metadata.map_err(|e| e.to_string())?;
            index::check_file(&metadata, spec)?;
            Ok(metadata)
        });
        Ok(Self {
            metadata: decoded.map_err(|why| Error::malformed(&path, why))?,
            layout: layout.clone(),
            path,
            tree,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The number of row groups.
    pub(super) fn num_groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// The rows of a row group.
    pub(super) fn num_rows(&self, group: usize) -> usize {
        let rows = self.metadata.metadata().row_group(group).num_rows();
        usize::try_from(rows).unwrap_or(0)
    }

    /// The lowest and the highest entry of a row group, as far as the file tells.
    pub(super) fn range(&self, group: usize) -> Option<(Fingerprint, Fingerprint)> {
        group_range(self.metadata.metadata().row_group(group))
    }

    /// Decodes the rows of a row group, or those of them that `keep` selects.
    pub(super) fn decode<T>(
        &self,
        group: usize,
        keep: Option<RowSelection>,
        decode: impl Fn(&dyn Rows) -> Result<T, String>,
    ) -> Result<T, Error> {
        let rows = GroupRows {
            part: self,
            group,
            keep,
            failed: Cell::new(None),
        };
        let decoded = decode(&rows);
        // What went wrong in reading is what is to be told, not what the decoder made of it.
        match rows.failed.take() {
            Some(e) => Err(e),
            None => decoded.map_err(|why| Error::malformed(&self.path, why)),
        }
    }

    /// The bytes of the columns `wanted` of a row group.
    fn columns(&self, group: usize, wanted: &[&str]) -> Result<Pieces, Error> {
        let mut pieces = Pieces::new(self.tree.bytes());
        for column in self.metadata.metadata().row_group(group).columns() {
            let path = column.column_path().parts().first();
            if path.is_some_and(|name| wanted.contains(&name.as_str())) {
                let (start, length) = column.byte_range();
                let range = start..start.saturating_add(length);
                pieces.read(&self.layout, (&self.path, &self.tree), range)?;
            }
        }
        Ok(pieces)
    }
}

/// Rows of one row group.
struct GroupRows<'a> {
    part: &'a RangedPart,
    group: usize,
    keep: Option<RowSelection>,
    failed: Cell<Option<Error>>,
}

impl Rows for GroupRows<'_> {
    fn read(&self, wanted: &[&str], each: Take<'_>) -> Result<(), String> {
        // A column's range is what the footer says, which a panic of the library may come of, too.
        super::contain(|| {
            let pieces = self.part.columns(self.group, wanted).map_err(|e| {
                let why = e.to_string();
                self.failed.set(Some(e));
                why
            })?;
            let metadata = self.part.metadata.clone();
            let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(pieces, metadata)
                .with_row_groups(vec![self.group]);
            if let Some(keep) = &self.keep {
                builder = builder.with_row_selection(keep.clone());
            }
            index::read(builder, wanted, each)
        })
    }
}

impl Pieces {
    fn new(bytes: u64) -> Self {
        Self {
            bytes,
            runs: BTreeMap::new(),
        }
    }

    /// Reads what of `range` is not there yet, in whole pieces, and compares it.
    fn read(
        &mut self,
        layout: &Layout,
        (path, tree): (&Path, &Tree),
        range: Range<u64>,
    ) -> Result<(), Error> {
        let why = |what: &str| Error::malformed(path, format!("bytes {range:?}: {what}"));
        let start = range.start / PIECE_BYTES * PIECE_BYTES;
        let end = range.end.saturating_add(PIECE_BYTES - 1) / PIECE_BYTES * PIECE_BYTES;
        let end = end.min(self.bytes);
        if range.end > self.bytes || start >= end {
            return Err(why("expected a place in the file"));
        }
        if self.find(start, end - start).is_some() {
            return Ok(());
        }
        let bytes = disk::read_range(&*layout.disk, path, start, end - start)?;
        let bytes = bytes.ok_or_else(|| why("the file ends before"))?;
        if !tree.holds(start, &bytes) {
            return Err(why("expected content with the digest in the name"));
        }
        self.runs.insert(start, bytes.into());
        Ok(())
    }

    fn find(&self, start: u64, length: u64) -> Option<Bytes> {
        let (begin, run) = self.runs.range(..=start).next_back()?;
        let from = usize::try_from(start - begin).ok()?;
        let to = from.checked_add(usize::try_from(length).ok()?)?;
        (to <= run.len()).then(|| run.slice(from..to))
    }
}

impl Length for Pieces {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Pieces {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let run = self.runs.range(..=start).next_back();
        let found = run.and_then(|(begin, run)| {
            let from = usize::try_from(start - begin).ok()?;
            (from <= run.len()).then(|| run.slice(from..))
        });
        found.map(Bytes::reader).ok_or_else(|| not_read(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.find(start, length as u64)
            .ok_or_else(|| not_read(start))
    }
}

fn not_read(start: u64) -> ParquetError {
    ParquetError::General(format!("byte {start} is outside of the columns"))
}

/// The lowest and the highest entry that a row group says that it has.
pub(super) fn group_range(group: &RowGroupMetaData) -> Option<(Fingerprint, Fingerprint)> {
    let mut columns = group.columns().iter();
    let column = columns.find(|c| c.column_path().string() == "entry")?;
    let found = column.statistics()?;
    let parse = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
    Some((
        parse(found.min_bytes_opt()?)?,
        parse(found.max_bytes_opt()?)?,
    ))
}
