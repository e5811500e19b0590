//! Linear layers: alone, with adapters, with a GELU behind them, and several of one input.

use super::operations::{frozen, one};
use super::*;
use crate::autograd::LoraValues;
use crate::nn::fused::{FusedLinears, Layer};

#[test]
fn linear() {
    for (lead, inner, out) in [(vec![1], 1, 1), (vec![3, 5], 7, 4), (vec![2, 1], 3, 70)] {
        check(&[normal(1, &[lead, vec![inner]].concat())], |tape, v| {
            let (w, b) = (frozen(2, &[out, inner], &v[0]), frozen(3, &[out], &v[0]));
            one(tape.linear(&v[0], &(&w).into(), Some(&b), None))
        });
    }
}

#[test]
fn linear_with_an_adapter() {
    for (lead, inner, out, rank) in [
        (vec![1], 1, 1, 1),
        (vec![2, 3], 5, 7, 2),
        (vec![2, 1], 3, 9, 4),
    ] {
        for dropout in [false, true] {
            let shape = [lead.clone(), vec![inner]].concat();
            let inputs = [
                normal(1, &shape),
                normal(2, &[rank, inner]),
                normal(3, &[out, rank]),
            ];
            check(&inputs, |tape, v| {
                let w = frozen(4, &[out, inner], &v[0]);
                let mask = dropout.then(|| frozen(5, &shape, &v[0]));
                let (a, b) = (v[1].clone(), v[2].clone());
                let lora = LoraValues {
                    a,
                    b,
                    scale: 0.7,
                    dropout: mask,
                };
                one(tape.linear(&v[0], &(&w).into(), None, Some(&lora)))
            });
        }
    }
}

#[test]
fn linear_with_gelu() {
    for (rows, inner, out, rank) in [(1, 1, 1, 1), (3, 5, 7, 2), (4, 8, 16, 8)] {
        let inputs = [
            normal(1, &[rows, inner]),
            normal(2, &[rank, inner]),
            normal(3, &[out, rank]),
        ];
        check(&inputs, |tape, v| {
            let (w, bias) = (frozen(4, &[out, inner], &v[0]), frozen(5, &[out], &v[0]));
            let lora = LoraValues {
                a: v[1].clone(),
                b: v[2].clone(),
                scale: 0.7,
                dropout: None,
            };
            one(tape.linear_gelu(&v[0], &(&w).into(), Some(&bias), Some(&lora)))
        });
    }
}

/// Three layers of one input, of which the first and the last have adapters made of `v[1..5]`, with dropout or without.
fn three(tape: &Tape, v: &[Value], out: usize, dropout: bool) -> Result<Vec<Value>> {
    let x = &v[0];
    let inner = x.tensor().dim(1)?;
    let layer = |i: u64| Layer {
        w: (&frozen(10 + i, &[out, inner], x)).into(),
        b: (i != 1).then(|| frozen(20 + i, &[out], x)),
    };
    let linears = FusedLinears::new(vec![layer(0), layer(1), layer(2)])?;
    let lora = |a: &Value, b: &Value| LoraValues {
        a: a.clone(),
        b: b.clone(),
        scale: 0.7,
        dropout: dropout.then(|| frozen(30, x.dims(), x)),
    };
    let loras = [Some(lora(&v[1], &v[2])), None, Some(lora(&v[3], &v[4]))];
    tape.linears(x, &linears, &loras, None)
}

fn of_three(rows: usize, inner: usize, out: usize, ranks: [usize; 2]) -> Vec<Tensor> {
    vec![
        normal(1, &[rows, inner]),
        normal(2, &[ranks[0], inner]),
        normal(3, &[out, ranks[0]]),
        normal(4, &[ranks[1], inner]),
        normal(5, &[out, ranks[1]]),
    ]
}

#[test]
fn linears_of_one_input() {
    for (rows, inner, out, ranks) in [(1, 1, 1, [1, 1]), (3, 5, 7, [2, 1]), (2, 3, 9, [4, 3])] {
        for dropout in [false, true] {
            let inputs = of_three(rows, inner, out, ranks);
            check(&inputs, |tape, v| three(tape, v, out, dropout));
            // The loss depends on some results only.
            check(&inputs[..], |tape, v| {
                let ys = three(tape, v, out, dropout)?;
                let both = tape.add(&ys[0], &ys[2])?;
                Ok(vec![both, ys[2].clone()])
            });
        }
    }
}

/// What is computed together is what is computed alone, bit for bit.
#[test]
fn linears_of_one_input_give_what_each_gives() {
    let single = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    for (rows, inner, out, ranks) in [
        (1, 3, 5, [1, 2]),
        (77, 96, 40, [16, 4]),
        (300, 768, 33, [8; 2]),
    ] {
        let inputs = of_three(rows, inner, out, ranks).into_iter().map(single);
        let values: Vec<_> = inputs.map(Value::constant).collect();
        let tape = Tape::off(&Kernels::NONE);
        let together = three(&tape, &values, out, false).unwrap();
        for (i, (a, b)) in [(0, (1, 2)), (2, (3, 4))] {
            let w = frozen(10 + i as u64, &[out, inner], &values[0]);
            let bias = frozen(20 + i as u64, &[out], &values[0]);
            let lora = LoraValues {
                a: values[a].clone(),
                b: values[b].clone(),
                scale: 0.7,
                dropout: None,
            };
            let alone = tape.linear(&values[0], &(&w).into(), Some(&bias), Some(&lora));
            let numbers = |value: &Value| value.tensor().to_vec2::<f32>().unwrap();
            assert_eq!(
                numbers(&alone.unwrap()),
                numbers(&together[i]),
                "{rows} rows, layer {i}"
            );
        }
    }
}
