//! What is allocated, by counting every allocation of a thread. Here, because tests of what is above compile this optimised.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts for each thread. For `#[global_allocator]`.
pub struct Counting;

#[derive(Clone, Copy)]
struct Counters {
    live: isize,
    peak: isize,
    largest: usize,
}

thread_local! {
    static COUNTERS: Cell<Counters> = const { Cell::new(Counters { live: 0, peak: 0, largest: 0 }) };
}

fn count(size: usize) {
    let Counters {
        live,
        peak,
        largest,
    } = COUNTERS.get();
    let live = live + size as isize;
    COUNTERS.set(Counters {
        live,
        peak: peak.max(live),
        largest: largest.max(size),
    });
}

// SAFETY: everything is handed on to the system's allocator; the counters are a plain cell of this thread, which
// needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let counters = COUNTERS.get();
        COUNTERS.set(Counters {
            live: counters.live - layout.size() as isize,
            ..counters
        });
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that this thread has allocated and not yet freed: less than nothing if it freed another's.
pub fn live() -> isize {
    COUNTERS.get().live
}

/// The most bytes that were live since [`watch`].
pub fn peak() -> isize {
    COUNTERS.get().peak
}

/// The largest allocation since [`watch`], in bytes.
pub fn largest() -> usize {
    COUNTERS.get().largest
}

/// From here on [`peak`] and [`largest`] are counted anew. Returns what is live.
pub fn watch() -> isize {
    let live = live();
    COUNTERS.set(Counters {
        live,
        peak: live,
        largest: 0,
    });
    live
}
