//! What is allocated, by counting every allocation of this thread. Tensors are made and dropped on the thread
//! that asks for them; workers only allocate scratch, which is not counted.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::Device;

use super::*;
use crate::autograd::LoraValues;
use crate::nn::Kernels;
use crate::nn::testing::memory::{Counting, largest, live, peak, watch};

#[global_allocator]
static COUNTING: Counting = Counting;

const MIB: isize = 1 << 20;

/// Ones, of so many MiB.
fn ones(mib: usize) -> Tensor {
    Tensor::ones((mib, 1 << 18), DType::F32, &Device::Cpu).unwrap()
}

/// Passes `x` on; on the way back writes down how many MiB are live.
fn probe(tape: &Tape, x: &Value, seen: &Rc<RefCell<Vec<isize>>>) -> Value {
    let (to, seen) = (x.id(), Rc::clone(seen));
    tape.record_one(&[x], x.tensor().clone(), move |slots, gradient| {
        seen.borrow_mut().push(live() / (MIB / 2) / 2);
        slots.add(to, gradient)
    })
}

#[test]
fn memory_falls_as_the_tape_is_consumed() {
    let seen = Rc::default();
    let before = live() / MIB;
    let tape = Tape::recording(&Kernels::NONE);
    let mut x = tape.leaf(ones(4));
    for _ in 0..6 {
        x = probe(&tape, &tape.silu(&x).unwrap(), &seen);
    }
    let seed = ones(4);
    // The leaf, six results, the seed.
    assert_eq!(live() / MIB - before, 8 * 4);
    let found = tape.backward_from(&[(&x, seed)]).unwrap();
    // The first step copies the seed, which is ours; each frees the 4 MiB that it read, and edits the gradient
    // in place.
    let want = [32, 32, 28, 24, 20, 16];
    let seen: Vec<_> = seen.borrow().iter().map(|mib| mib - before).collect();
    assert_eq!(seen, want);
    drop((found, x));
    assert_eq!(live() / MIB, before);
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
        let (w, lora_again) = (w.clone(), lora.clone());
        let before = watch();
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
        let (largest, peak) = (largest(), peak() - before);
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
        let before = live();
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
        let kept = (live() - before) / MIB;
        watch();
        tape.backward_from(&[(&x, ones(1))]).unwrap();
        (kept, (peak() - before) / MIB)
    };
    let (kept, peak) = run(false);
    assert!(kept >= 33 && peak >= 34, "kept {kept} MiB, peak {peak}");
    let (kept, peak) = run(true);
    // Four inputs and the result; then one block's eight results, a gradient and the seed on top.
    assert!(kept <= 5 && peak <= 16, "kept {kept} MiB, peak {peak}");
}
