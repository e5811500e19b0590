//! A right factor packed once for many products, and packed anew, from there, for products with its transpose.

use std::ops::Range;

use rayon::prelude::*;

use super::{CacheLine, Division, Factor, Kernel, PackRight, block_of};

/// A factor [inner, columns] as [`panels`] packed it: block after block of the inner dimension, in each panel after panel of a tile's
/// columns.
#[derive(Clone, Copy)]
pub(in super::super) struct Panels {
    data: *const f32,
    inner: usize,
    columns: usize,
    /// Numbers, or pairs, of the inner dimension in a block.
    block: usize,
    tile_columns: usize,
}

impl Panels {
    /// Of the lines that [`panels`] made by this kernel of a factor of this shape.
    pub(in super::super) fn new(
        kernel: Kernel,
        lines: &[CacheLine],
        (inner, columns): (usize, usize),
    ) -> Self {
        let tile_columns = kernel.divided().tile_columns;
        let numbers = inner * columns.next_multiple_of(tile_columns);
        assert!(lines.len() == lines_for(numbers), "panels of another shape");
        Self {
            data: lines.as_ptr().cast(),
            inner,
            columns,
            block: block_of(kernel, inner),
            tile_columns,
        }
    }

    pub(in super::super) fn are_one_block(&self) -> bool {
        self.block >= self.inner
    }

    /// The row `row` of the panel that begins with column `column`. `row` and those after it in its block are `tile_columns` apart.
    pub(super) fn at(&self, row: usize, column: usize) -> *const f32 {
        let start = row / self.block * self.block;
        let rows = self.block.min(self.inner - start);
        let all = self.columns.next_multiple_of(self.tile_columns);
        self.data
            .wrapping_add(start * all + column * rows + (row - start) * self.tile_columns)
    }

    /// Packs `rows` and `columns` of the transpose, panel after panel.
    ///
    /// # Safety
    ///
    /// The processor must have `pack`'s instructions, the panels must be alive and have these columns and rows, of which `columns` begins
    /// with a panel's first; and `to` must be writable for as many rows of whole panels.
    pub(super) unsafe fn pack_transpose(
        &self,
        pack: PackRight,
        rows: Range<usize>,
        columns: Range<usize>,
        to: *mut f32,
    ) {
        let wide = self.tile_columns;
        // In the order in which they lie in memory, which is read once and is not in the cache.
        let mut row = rows.start;
        while row < rows.end {
            let panel = row / wide * wide;
            let count = (panel + wide).min(rows.end) - row;
            let mut column = columns.start;
            while column < columns.end {
                let block_end = (column / self.block + 1) * self.block;
                let panel_end = (column / wide + 1) * wide;
                let width = block_end.min(panel_end).min(columns.end) - column;
                let square = Factor {
                    data: self.at(column, panel).wrapping_add(row - panel),
                    row_stride: 1,
                    column_stride: wide,
                };
                let first = column / wide * wide;
                let to = to
                    .wrapping_add((first - columns.start) * rows.len())
                    .wrapping_add((row - rows.start) * wide + column - first);
                // SAFETY: the square lies in one panel of one block, and in one panel of the target. Blocks are whole cache lines, and
                // so whole vectors: what is written beyond `width` is the panel's as well.
                unsafe { pack(square, (0, 0), (count, width), to) };
                column += width;
            }
            row += count;
        }
    }

    /// The factor's transpose, [columns, inner], as rows.
    ///
    /// # Safety
    ///
    /// The panels must be alive.
    pub(in super::super) unsafe fn transpose(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.inner * self.columns];
        out.par_chunks_exact_mut(self.inner)
            .enumerate()
            .for_each(|(column, out)| {
                let panel = column / self.tile_columns * self.tile_columns;
                for (row, out) in out.iter_mut().enumerate() {
                    let number = self.at(row, panel).wrapping_add(column - panel);
                    // SAFETY: row and column are the factor's.
                    *out = unsafe { *number };
                }
            });
        out
    }
}

// SAFETY: the numbers are only read.
unsafe impl Sync for Panels {}

fn lines_for(numbers: usize) -> usize {
    numbers / CacheLine::NUMBERS
}

/// Packs a right factor for [`Panels`]. Columns that fill the last panel are zeros.
///
/// # Safety
///
/// `inner` rows of `columns` must be readable in the factor.
pub(in super::super) unsafe fn panels(
    kernel: Kernel,
    right: Factor,
    (inner, columns): (usize, usize),
) -> Vec<CacheLine> {
    /// What threads read, and where they write.
    struct Both(Factor, *mut f32);
    // SAFETY: nobody changes the factor meanwhile, and threads write to different panels.
    unsafe impl Sync for Both {}

    let Division {
        tile_columns,
        pack_right,
        ..
    } = kernel.divided();
    let count = columns.div_ceil(tile_columns);
    let width = count * tile_columns;
    let mut packed = vec![CacheLine::ZEROS; lines_for(inner * width)];
    let both = &Both(right, packed.as_mut_ptr().cast());
    let block = block_of(kernel, inner);
    (0..count).into_par_iter().for_each(|panel| {
        let column = panel * tile_columns;
        for at in (0..inner).step_by(block) {
            let rows = block.min(inner - at);
            let to = both
                .1
                .wrapping_add(at * width + panel * rows * tile_columns);
            let size = (rows, tile_columns.min(columns - column));
            // SAFETY: the panel lies inside the factor and, packed, inside `packed`.
            unsafe { pack_right(both.0, (at, column), size, to) };
        }
    });
    packed
}
