//! What a thread packs factors into.

use std::cell::Cell;

/// Numbers that start at a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(in super::super) struct CacheLine([f32; Self::NUMBERS]);

impl CacheLine {
    pub(in super::super) const NUMBERS: usize = 16;
    pub(in super::super) const ZEROS: Self = Self([0.0; Self::NUMBERS]);
}

thread_local! {
    /// What this thread packs factors into.
    pub(super) static PACKED: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// Places for so many lines each, one behind the other. What a thread packs into is kept by it and only grown: the factors of one product
/// after the other are packed into the same pages.
pub(super) fn places<const N: usize>(
    packed: &mut Vec<CacheLine>,
    lines: [usize; N],
) -> [*mut f32; N] {
    let all = lines.iter().sum();
    if packed.len() < all {
        packed.resize(all, CacheLine::ZEROS);
    }
    let mut rest = packed.as_mut_slice();
    lines.map(|count| {
        rest.split_off_mut(..count)
            .map_or(std::ptr::null_mut(), |place| place.as_mut_ptr().cast())
    })
}
