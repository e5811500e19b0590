//! What is allocated, by counting every allocation of this thread. Tensors are made and dropped on the thread
//! that asks for them; workers only allocate scratch, which is not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use candle_core::Device;

use super::*;
use crate::autograd::LoraValues;
use crate::nn::Kernels;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn count(size: usize) {
    let live = LIVE.get() + size as isize;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    LARGEST.set(LARGEST.get().max(size));
}

// SAFETY: everything is handed on to the system's allocator; the counters are plain cells of this thread, which
// need no allocation themselves.
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
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that this thread has allocated and not yet freed.
pub(crate) fn live_bytes() -> isize {
    LIVE.get()
}

const MIB: isize = 1 << 20;

/// Ones, of so many MiB.
fn ones(mib: usize) -> Tensor {
    Tensor::ones((mib, 1 << 18), DType::F32, &Device::Cpu).unwrap()
}

/// Passes `x` on; on the way back writes down how many MiB are live.
fn probe(tape: &Tape, x: &Value, seen: &Rc<RefCell<Vec<isize>>>) -> Value {
    let (to, seen) = (x.id(), Rc::clone(seen));
    tape.record_one(&[x], x.tensor().clone(), move |slots, gradient| {
        seen.borrow_mut().push(LIVE.get() / (MIB / 2) / 2);
        slots.add(to, gradient)
    })
}

#[test]
fn memory_falls_as_the_tape_is_consumed() {
    let seen = Rc::default();
    let before = LIVE.get() / MIB;
    let tape = Tape::recording(&Kernels::NONE);
    let mut x = tape.leaf(ones(4));
    for _ in 0..6 {
        x = probe(&tape, &tape.silu(&x).unwrap(), &seen);
    }
    let seed = ones(4);
    // The leaf, six results, the seed.
    assert_eq!(LIVE.get() / MIB - before, 8 * 4);
    let found = tape.backward_from(&[(&x, seed)]).unwrap();
    // The first step copies the seed, which is ours; each frees the 4 MiB that it read, and edits the gradient
    // in place.
    let want = [32, 32, 28, 24, 20, 16];
    let seen: Vec<_> = seen.borrow().iter().map(|mib| mib - before).collect();
    assert_eq!(seen, want);
    drop((found, x));
    assert_eq!(LIVE.get() / MIB, before);
}

#[test]
fn a_gradient_is_never_formed_for_a_frozen_weight() {
    let (inner, out, rank, rows) = (1024, 2048, 4, 8);
    let ones = |shape: [usize; 2]| Tensor::ones(&shape, DType::F32, &Device::Cpu).unwrap();
    let w = ones([out, inner]);
    let weight_bytes = out * inner * 4;
    for checkpointed in [false, true] {
        let tape = Tape::recording(&Kernels::NONE);
        let x = tape.leaf(ones([rows, inner]));
        let lora = LoraValues {
            a: tape.leaf(ones([rank, inner])),
            b: tape.leaf(ones([out, rank])),
            scale: 1.0,
            dropout: None,
        };
        let (before, (w, lora_again)) = (LIVE.get(), (w.clone(), lora.clone()));
        PEAK.set(before);
        LARGEST.set(0);
        let block = move |tape: &Tape, v: &[Value]| {
            Ok(vec![tape.linear(
                &v[0],
                &(&w).into(),
                None,
                Some(&lora_again),
            )?])
        };
        let y = if checkpointed {
            tape.checkpoint(&[&x], block).unwrap().remove(0)
        } else {
            block(&tape, std::slice::from_ref(&x)).unwrap().remove(0)
        };
        let loss = tape.mse(&y, &ones([rows, out]), None).unwrap();
        let mut found = tape.backward(&loss).unwrap();
        for leaf in [&x, &lora.a, &lora.b] {
            assert_eq!(found.take(leaf).unwrap().dims(), leaf.dims());
        }
        let (largest, peak) = (LARGEST.get(), PEAK.get() - before);
        assert!(
            largest < weight_bytes / 2,
            "{largest} bytes at once, the weight has {weight_bytes}"
        );
        assert!(
            peak < weight_bytes as isize / 2,
            "{peak} bytes, the weight has {weight_bytes}"
        );
    }
}

#[test]
fn a_checkpoint_keeps_inputs_only() {
    let run = |checkpointed: bool| {
        let before = LIVE.get();
        let tape = Tape::recording(&Kernels::NONE);
        let mut x = tape.leaf(ones(1));
        let block = |tape: &Tape, v: &[Value]| {
            let mut y = v[0].clone();
            for _ in 0..8 {
                y = tape.silu(&y)?;
            }
            Ok(vec![y])
        };
        for _ in 0..4 {
            let input = [x];
            x = if checkpointed {
                tape.checkpoint(&[&input[0]], block).unwrap().remove(0)
            } else {
                block(&tape, &input).unwrap().remove(0)
            };
        }
        let kept = (LIVE.get() - before) / MIB;
        PEAK.set(LIVE.get());
        tape.backward_from(&[(&x, ones(1))]).unwrap();
        (kept, (PEAK.get() - before) / MIB)
    };
    let (kept, peak) = run(false);
    assert!(kept >= 33 && peak >= 34, "kept {kept} MiB, peak {peak}");
    let (kept, peak) = run(true);
    // Four inputs and the result; then one block's eight results, a gradient and the seed on top.
    assert!(kept <= 5 && peak <= 16, "kept {kept} MiB, peak {peak}");
}
