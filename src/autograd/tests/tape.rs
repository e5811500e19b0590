//! What the tape promises as a whole.

use super::operations::frozen;
use super::*;
use crate::autograd::LoraValues;
use crate::nn::Kernels;

/// A block with an adapter that it captures: two linears, a norm, a residual.
fn block(tape: &Tape, x: &Value, lora: &LoraValues) -> Result<Value> {
    let w = frozen(50, &[6, 6], x);
    let y = tape.layer_norm(x, None, None, 1e-5)?;
    let y = tape.gelu_tanh(&tape.linear(&y, &(&w).into(), None, Some(lora))?)?;
    tape.add(x, &tape.linear(&y, &(&w).into(), None, None)?)
}

#[test]
fn a_checkpoint_changes_no_gradient_nor_those_of_what_it_captures() {
    let inputs = [normal(1, &[3, 6]), normal(2, &[2, 6]), normal(3, &[6, 2])];
    let (plain, kept) = (
        gradients(&inputs, &network(false)),
        gradients(&inputs, &network(true)),
    );
    for (plain, kept) in plain.iter().zip(&kept) {
        assert!(difference(kept.as_ref().unwrap(), plain.as_ref().unwrap()) == 0.0);
    }
    check(&inputs, network(true));
}

/// Three blocks, each run again for its gradients if `checkpointed`.
fn network(checkpointed: bool) -> impl Fn(&Tape, &[Value]) -> Result<Vec<Value>> {
    move |tape: &Tape, v: &[Value]| {
        let lora = LoraValues {
            a: v[1].clone(),
            b: v[2].clone(),
            scale: 1.5,
            dropout: None,
        };
        let mut x = v[0].clone();
        for _ in 0..3 {
            x = if checkpointed {
                let lora = lora.clone();
                let f =
                    move |tape: &Tape, inputs: &[Value]| Ok(vec![block(tape, &inputs[0], &lora)?]);
                tape.checkpoint(&[&x], f)?.remove(0)
            } else {
                block(tape, &x, &lora)?
            };
        }
        Ok(vec![x])
    }
}

/// On a GPU, what a block is given waits on the host.
#[test]
fn a_checkpoint_that_waits_on_the_host_changes_no_gradient() {
    let _right = beside_others();
    for place in elsewhere() {
        let input = |seed, shape: &[usize]| {
            let t = normal(seed, shape).to_dtype(place.dtype).unwrap();
            t.to_device(&place.device).unwrap()
        };
        let inputs = [input(1, &[3, 6]), input(2, &[2, 6]), input(3, &[6, 2])];
        let found = [false, true].map(|offload| {
            let tape = Tape::recording(&Kernels::NONE).offloading(offload);
            let leaves: Vec<_> = inputs.iter().map(|t| tape.leaf(t.clone())).collect();
            let out = network(true)(&tape, &leaves).unwrap().remove(0);
            let seed = out.tensor().ones_like().unwrap();
            let mut found = tape.backward_from(&[(&out, seed)]).unwrap();
            let host = |leaf: &Value| host(&found.take(leaf).unwrap());
            leaves.iter().map(host).collect::<Vec<_>>()
        });
        for (kept, offloaded) in found[0].iter().zip(&found[1]) {
            assert_eq!(difference(kept, offloaded), 0.0, "{place:?}");
        }
    }
}

#[test]
fn a_block_may_pass_an_input_on_and_leave_a_result_unused() {
    let inputs = [normal(1, &[2, 3]), normal(2, &[2, 3])];
    let op = |tape: &Tape, v: &[Value]| {
        let outs = tape.checkpoint(&[&v[0], &v[1]], |tape, v| {
            Ok(vec![
                tape.mul(&v[0], &v[1])?,
                v[1].clone(),
                tape.silu(&v[0])?,
            ])
        })?;
        Ok(vec![tape.mul(&outs[0], &outs[1])?])
    };
    check(&inputs, op);
}

#[test]
fn checkpoints_nest() {
    check(&[normal(1, &[2, 3])], |tape, v| {
        tape.checkpoint(&[&v[0]], |tape, v| {
            let inner = tape.checkpoint(&[&v[0]], |tape, v| Ok(vec![tape.silu(&v[0])?]))?;
            Ok(vec![tape.mul(&inner[0], &v[0])?])
        })
    });
}

#[test]
fn nothing_is_written_down_for_what_needs_no_gradient() {
    let tape = Tape::recording(&Kernels::NONE);
    let x = Value::constant(normal(1, &[2, 3]));
    let y = tape.silu(&tape.add(&x, &x).unwrap()).unwrap();
    assert!(!y.needs_gradient());
    assert!(
        tape.backward_from(&[(&y, normal(2, &[2, 3]))]).is_err(),
        "there is nothing to go back to"
    );

    let off = Tape::off(&Kernels::NONE);
    let leaf = off.leaf(normal(1, &[2, 3]));
    assert!(!leaf.needs_gradient());
    let out = off
        .checkpoint(&[&leaf], |tape, v| Ok(vec![tape.silu(&v[0])?]))
        .unwrap();
    assert!(!out[0].needs_gradient());
}

#[test]
fn a_leaf_without_influence_gets_no_gradient() {
    let tape = Tape::recording(&Kernels::NONE);
    let (x, unused) = (tape.leaf(normal(1, &[2, 3])), tape.leaf(normal(2, &[2, 3])));
    let aside = tape.silu(&unused).unwrap();
    let loss = tape.mse(&x, &normal(3, &[2, 3]), None).unwrap();
    let mut found = tape.backward(&loss).unwrap();
    assert!(found.take(&unused).is_none() && found.take(&aside).is_none());
    assert!(found.take(&x).is_some() && found.take(&x).is_none());
}

#[test]
fn misuse_is_an_error() {
    let tape = Tape::recording(&Kernels::NONE);
    let x = tape.leaf(normal(1, &[2, 3]));
    assert!(tape.backward(&x).is_err(), "a loss has one element");
    let tape = Tape::recording(&Kernels::NONE);
    let x = tape.leaf(normal(1, &[2, 3]));
    assert!(tape.backward_from(&[(&x, normal(1, &[3, 2]))]).is_err());
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let inputs = [normal(1, &[130, 6]), normal(2, &[2, 6]), normal(3, &[6, 2])];
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let inputs = inputs.each_ref().map(|t| t.to_dtype(DType::F32).unwrap());
            gradients(&inputs, &network(false))
        })
    };
    let one = run(1);
    for threads in [2, 5] {
        for (a, b) in run(threads).iter().zip(&one) {
            assert!(
                difference(a.as_ref().unwrap(), b.as_ref().unwrap()) == 0.0,
                "{threads} threads"
            );
        }
    }
}
