//! The sums of a tile's products, in matrix registers.

use std::arch::asm;

use super::super::super::tile::Tile;
use super::{COLUMNS, ROWS, SIDE};

/// Steps before a tile is done from which on its elements are asked for, two rows in a step; earlier, they would be gone again.
const LATE: usize = SIDE;

/// Sums of a tile, row by row.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[f32; COLUMNS]; ROWS]);

/// The last rows of a block that are fewer than an instruction's, filled up with zeros.
#[repr(C, align(64))]
struct Rest([f32; SIDE * COLUMNS]);

/// Where rows are written and read soon: what their cache lines are fetched for meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Soon {
    pub(super) to: *const f32,
    pub(super) stride: usize,
    pub(super) base: *const f32,
    pub(super) base_stride: usize,
}

/// The sums of a tile's products.
///
/// # Safety
///
/// As [`super::compute`]; sums are written for as many rows, or more.
pub(super) unsafe fn sum(t: &Tile, rows: usize, sums: *mut Sums, soon: Soon) {
    let (steps, rest) = (t.inner / SIDE, t.inner % SIDE);
    let last = (rest > 0).then(|| {
        let from = t.right.wrapping_add(steps * SIDE * COLUMNS);
        let mut last = Rest([0.0; SIDE * COLUMNS]);
        // SAFETY: they are the packed right factor's last rows.
        let from = unsafe { std::slice::from_raw_parts(from, rest * COLUMNS) };
        last.0[..rest * COLUMNS].copy_from_slice(from);
        last
    });
    let last = last
        .as_ref()
        .map_or(std::ptr::null(), |last| last.0.as_ptr());
    // SAFETY: the caller's promises.
    unsafe {
        if rows > SIDE {
            two_bands(t, (steps, last), sums, soon);
        } else {
            one_band(t, (steps, last), sums, soon);
        }
    }
}

/// A step, then fetches cache lines of both packed factors that the step after the next one reads.
macro_rules! and_fetch {
    ($step:literal $($line:literal)*) => {
        concat!(
            $step,
            $(
                "\nprefetcht0 [{left} + 4096 + 64*", $line, "]",
                "\nprefetcht0 [{right} + 4096 + 64*", $line, "]",
            )*
        )
    };
}

/// Declares a function that writes the sums of products of [`COLUMNS`] columns: of the bytes of a step, what starts the sums, what adds
/// those of a step, and what writes them.
///
/// A load of a register is sixteen of cache lines, which take long from the L2 cache where another program has half of the core: so lines
/// are fetched before, and those that the tile is written to. (Measured: three fifths of the time then, and a few hundredths more on a core of
/// one's own. Of parts, which are multiplied six times for two loads, fetching the factors gains nothing.)
macro_rules! sums_of {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, [$($zero:literal)*], [$($step:expr),* $(,)?], [$($store:literal)*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// As [`super::compute`]; as many steps of [`SIDE`] rows of the packed right factor are readable, and one more in `last` unless it is null.
        unsafe fn $name(t: &Tile, (steps, last): (usize, *const f32), sums: *mut Sums, soon: Soon) {
            let late = steps.min(LATE);
            // SAFETY: the caller's promise. What is fetched need not be readable.
            unsafe {
                asm!(
                    $($zero,)*
                    "test {steps}, {steps}",
                    "jz 3f",
                    "2:",
                    $($step,)*
                    concat!("add {left}, ", $bytes),
                    concat!("add {right}, ", $bytes),
                    "dec {steps}",
                    "jnz 2b",
                    "3:",
                    "test {late}, {late}",
                    "jz 5f",
                    "4:",
                    "prefetchw [{to}]",
                    "prefetchw [{to} + 64]",
                    "prefetchw [{to} + {apart}*1]",
                    "prefetchw [{to} + {apart}*1 + 64]",
                    "lea {to}, [{to} + {apart}*2]",
                    "prefetcht0 [{base}]",
                    "prefetcht0 [{base} + 64]",
                    "prefetcht0 [{base} + {base_apart}*1]",
                    "prefetcht0 [{base} + {base_apart}*1 + 64]",
                    "lea {base}, [{base} + {base_apart}*2]",
                    $($step,)*
                    concat!("add {left}, ", $bytes),
                    concat!("add {right}, ", $bytes),
                    "dec {late}",
                    "jnz 4b",
                    "5:",
                    "test {last}, {last}",
                    "jz 6f",
                    "mov {right}, {last}",
                    "xor {last:e}, {last:e}",
                    "mov {late:e}, 1",
                    "jmp 4b",
                    "6:",
                    $($store,)*
                    left = inout(reg) t.left => _,
                    right = inout(reg) t.right => _,
                    steps = inout(reg) steps - late => _,
                    late = inout(reg) late => _,
                    last = inout(reg) last => _,
                    to = inout(reg) soon.to => _,
                    apart = in(reg) soon.stride * size_of::<f32>(),
                    base = inout(reg) soon.base => _,
                    base_apart = in(reg) soon.base_stride * size_of::<f32>(),
                    sums = in(reg) sums,
                    row = in(reg) SIDE * size_of::<f32>(),
                    wide = in(reg) COLUMNS * size_of::<f32>(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// As [`sum`], of factors whose numbers are split into parts.
///
/// # Safety
///
/// As [`super::compute`], with whole steps of both packed factors; sums are written for as many rows, or more.
pub(super) unsafe fn sum_of_parts(t: &Tile, rows: usize, sums: *mut Sums, soon: Soon) {
    let steps = (t.inner.div_ceil(2 * SIDE), std::ptr::null());
    // SAFETY: the caller's promises.
    unsafe {
        if rows > SIDE {
            two_bands_of_parts(t, steps, sums, soon);
        } else {
            one_band_of_parts(t, steps, sums, soon);
        }
    }
}

/// Loads registers with a part of a factor, each the next [`SIDE`] rows or columns.
macro_rules! load {
    ($factor:literal $part:literal: [$($register:literal + $offset:literal),*]) => {
        concat!(
            $("tileloadd tmm", $register, ", [{", $factor, "} + {row}*1 + 2048*", $part, " + ", $offset, "]\n",)*
        )
    };
}

/// Adds products of registers of the left factor with those of the right one.
macro_rules! add {
    ([$($sum:literal += $left:literal * $right:literal),*]) => {
        concat!($("tdpbf16ps tmm", $sum, ", tmm", $left, ", tmm", $right, "\n",)*)
    };
}

/// A step of parts, each number's largest one first: of the pairs of parts those that f32 sees, the smallest product first. A pair has a part
/// of the pair before, so that one factor's registers are loaded for it.
macro_rules! add_parts {
    ($left:tt, $sums:tt) => {
        concat!(
            load!("left" 2: $left), load!("right" 0: [6 + 0, 7 + 1024]), add!($sums),
            load!("left" 1: $left), add!($sums),
            load!("right" 1: [6 + 0, 7 + 1024]), add!($sums),
            load!("left" 0: $left), add!($sums),
            load!("right" 2: [6 + 0, 7 + 1024]), add!($sums),
            load!("right" 0: [6 + 0, 7 + 1024]), add!($sums),
        )
    };
}

sums_of!(
    /// Of up to [`SIDE`] rows.
    one_band,
    2048,
    ["tilezero tmm0" "tilezero tmm1"],
    [
        and_fetch!("tileloadd tmm4, [{left} + {row}*1]" 0 1 2 3 4 5),
        and_fetch!("tileloadd tmm6, [{right} + {wide}*1]" 6 7 8 9 10 11),
        and_fetch!("tileloadd tmm7, [{right} + {wide}*1 + 64]" 12 13 14 15 16 17 18),
        and_fetch!("tdpbf16ps tmm0, tmm4, tmm6" 19 20 21 22 23 24 25),
        and_fetch!("tdpbf16ps tmm1, tmm4, tmm7" 26 27 28 29 30 31),
    ],
    [
        "tilestored [{sums} + {wide}*1], tmm0"
        "tilestored [{sums} + {wide}*1 + 64], tmm1"
    ]
);
sums_of!(
    /// Of up to [`ROWS`] rows.
    two_bands,
    2048,
    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    [
        and_fetch!("tileloadd tmm4, [{left} + {row}*1]" 0 1 2 3),
        and_fetch!("tileloadd tmm6, [{right} + {wide}*1]" 4 5 6 7),
        and_fetch!("tileloadd tmm7, [{right} + {wide}*1 + 64]" 8 9 10 11),
        and_fetch!("tdpbf16ps tmm0, tmm4, tmm6" 12 13 14 15),
        and_fetch!("tileloadd tmm5, [{left} + {row}*1 + 1024]" 16 17 18 19),
        and_fetch!("tdpbf16ps tmm1, tmm4, tmm7" 20 21 22 23),
        and_fetch!("tdpbf16ps tmm2, tmm5, tmm6" 24 25 26 27),
        and_fetch!("tdpbf16ps tmm3, tmm5, tmm7" 28 29 30 31),
    ],
    [
        "tilestored [{sums} + {wide}*1], tmm0"
        "tilestored [{sums} + {wide}*1 + 64], tmm1"
        "tilestored [{sums} + {wide}*1 + 2048], tmm2"
        "tilestored [{sums} + {wide}*1 + 2112], tmm3"
    ]
);

sums_of!(
    /// Of up to [`SIDE`] rows, of parts.
    one_band_of_parts,
    6144,
    ["tilezero tmm0" "tilezero tmm1"],
    [add_parts!([4 + 0], [0 += 4 * 6, 1 += 4 * 7])],
    [
        "tilestored [{sums} + {wide}*1], tmm0"
        "tilestored [{sums} + {wide}*1 + 64], tmm1"
    ]
);
sums_of!(
    /// Of up to [`ROWS`] rows, of parts.
    two_bands_of_parts,
    6144,
    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    [add_parts!(
        [4 + 0, 5 + 1024],
        [0 += 4 * 6, 1 += 4 * 7, 2 += 5 * 6, 3 += 5 * 7]
    )],
    [
        "tilestored [{sums} + {wide}*1], tmm0"
        "tilestored [{sums} + {wide}*1 + 64], tmm1"
        "tilestored [{sums} + {wide}*1 + 2048], tmm2"
        "tilestored [{sums} + {wide}*1 + 2112], tmm3"
    ]
);
