//! The allocator of the program and of the benches. It keeps freed memory for the next tensor: the system's gives large ones back, and each
//! new page costs a fault.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// From mimalloc.h. The crate's own declaration comes with a dependency, and without a name for the option.
    fn mi_option_set(option: c_int, value: c_long);
}

/// `mi_option_purge_delay` of mimalloc.h.
const PURGE_DELAY: c_int = 15;
/// Milliseconds until freed memory goes back to the system. By mimalloc's own 1000 it went while encoders were still at work, and returned as
/// pages to be cleared: without that CLIP-L in bf16 is 1.06 times as fast on a machine that has other work, too.
const KEPT: c_long = 10_000;

/// To be called before there are other threads.
pub(crate) fn keep_freed_memory() {
    // SAFETY: it stores a number, which the allocator reads when memory is freed.
    unsafe { mi_option_set(PURGE_DELAY, KEPT) };
}
