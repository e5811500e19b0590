//! A table of f32 in rows: in memory while it is small, in a file without a name when it is not (100,000 vectors of T5-XXL are
//! 1.6 GB).

use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

use tempfile::SpooledTempFile;

use super::super::Error;

/// What is kept in memory, in bytes.
const IN_MEMORY: usize = 256 << 20;
/// What is read at once, in bytes.
const BLOCK_BYTES: usize = 16 << 20;
/// The widest row. A bound against hostile shapes.
const MAX_WIDTH: usize = 1 << 20;

/// A table of f32, [rows, width].
pub struct Rows {
    width: usize,
    len: usize,
    file: SpooledTempFile,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            width: 0,
            len: 0,
            file: SpooledTempFile::new(IN_MEMORY),
        }
    }
}

impl Rows {
    /// Numbers in a row; 0 before the first.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a row of this width can be added.
    pub fn fits(&self, width: usize) -> bool {
        (1..=MAX_WIDTH).contains(&width) && (self.is_empty() || width == self.width)
    }

    /// Adds a row, which must fit.
    ///
    /// # Errors
    /// If it does not, or there is no room on the disk for temporary files.
    pub fn push(&mut self, row: &[f32]) -> Result<(), Error> {
        if !self.fits(row.len()) {
            let (width, found) = (self.width, row.len());
            return Err(Error::Rows(io::Error::other(format!(
                "expected a row of {width} numbers, found {found}"
            ))));
        }
        self.width = row.len();
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        let written = self
            .file
            .seek(SeekFrom::End(0))
            .and_then(|_| self.file.write_all(&bytes));
        written.map_err(Error::Rows)?;
        self.len += 1;
        Ok(())
    }

    /// Some rows from `start` on, at most `count` and at most to the end.
    ///
    /// # Errors
    /// If they cannot be read back.
    pub fn read(&mut self, start: usize, count: usize) -> Result<Vec<f32>, Error> {
        let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
        self.read_into((start, count), &mut bytes, &mut numbers)?;
        Ok(numbers)
    }

    /// As [`Self::read`], in the place of what is in `bytes` and `numbers`.
    fn read_into(
        &mut self,
        (start, count): (usize, usize),
        bytes: &mut Vec<u8>,
        numbers: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let start = start.min(self.len);
        let count = count.min(self.len - start);
        let row_bytes = self.width * size_of::<f32>();
        bytes.resize(count * row_bytes, 0);
        let read = self
            .file
            .seek(SeekFrom::Start((start * row_bytes) as u64))
            .and_then(|_| self.file.read_exact(bytes));
        read.map_err(Error::Rows)?;
        numbers.clear();
        let read = bytes.as_chunks().0.iter();
        numbers.extend(read.map(|&number| f32::from_le_bytes(number)));
        Ok(())
    }

    /// Rows that [`Self::for_each_block`] reads at once.
    pub fn block_rows(&self) -> usize {
        (BLOCK_BYTES / (self.width.max(1) * size_of::<f32>())).max(1)
    }

    /// Gives `each` all rows, some megabytes at a time: the place of the first of them, and their numbers.
    ///
    /// # Errors
    /// If they cannot be read back, or `each` fails.
    pub fn for_each_block(
        &mut self,
        mut each: impl FnMut(usize, &[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let count = self.block_rows();
        // Memory that is new to the process costs more than what is read into it.
        let (mut bytes, mut block) = (Vec::new(), Vec::new());
        for start in (0..self.len).step_by(count) {
            self.read_into((start, count), &mut bytes, &mut block)?;
            each(start, &block)?;
        }
        Ok(())
    }
}
