//! Each operation, at odd sizes and at size one.

use super::*;
use crate::autograd::{AttentionPart, LoraValues};
use crate::nn::{Activation, AttentionMask, Conv2dOptions, Frozen, Kernels};

/// One value in a list.
pub(super) fn one(value: Result<Value>) -> Result<Vec<Value>> {
    value.map(|value| vec![value])
}

/// A parameter of an operation: frozen, in the type of `like`.
pub(super) fn frozen(seed: u64, shape: &[usize], like: &Value) -> Tensor {
    let made = normal(seed, shape).to_dtype(like.tensor().dtype()).unwrap();
    made.to_device(like.tensor().device()).unwrap()
}

#[test]
fn norms() {
    for shape in [vec![1, 2], vec![3, 5], vec![2, 3, 2, 17]] {
        let n = *shape.last().unwrap();
        for with_weight in [false, true] {
            check(&[normal(1, &shape)], |tape, v| {
                let (weight, bias) = (frozen(2, &[n], &v[0]), frozen(3, &[n], &v[0]));
                let weight = with_weight.then_some(&weight);
                let bias = with_weight.then_some(&bias);
                Ok(vec![
                    tape.layer_norm(&v[0], weight, bias, 1e-3)?,
                    tape.rms_norm(&v[0], weight, 1e-3)?,
                ])
            });
        }
    }
}

#[test]
fn modulation_and_gates() {
    for (batch, lead, n) in [
        (1, vec![1], 2),
        (2, vec![3], 5),
        (3, vec![67], 18),
        (2, vec![], 4),
    ] {
        let shape = [vec![batch], lead, vec![n]].concat();
        let vector = [batch, n];
        check(
            &[normal(1, &shape), normal(2, &vector), normal(3, &vector)],
            |tape, v| one(tape.modulate(&v[0], &v[1], &v[2], 1e-3)),
        );
        check(
            &[normal(1, &shape), normal(2, &vector), normal(3, &shape)],
            |tape, v| one(tape.gated_residual(&v[0], &v[1], &v[2])),
        );
    }
}

#[test]
fn attention() {
    for (b, n, m, h, d, e) in [(1, 1, 1, 1, 1, 1), (2, 3, 5, 2, 4, 3), (1, 131, 2, 1, 2, 1)] {
        let inputs = [
            normal(1, &[b, n, h, d]),
            normal(2, &[b, m, h, d]),
            normal(3, &[b, m, h, e]),
        ];
        let mut masks = vec![AttentionMask::None];
        if n <= m {
            masks.push(AttentionMask::Causal);
        }
        masks.push(AttentionMask::KeyCounts(
            (0..b).map(|i| m - i * m / 3).collect(),
        ));
        for mask in masks {
            for biased in [false, true] {
                check(&inputs, |tape, v| {
                    let bias = biased.then(|| frozen(4, &[1, h, n, m], &v[0]));
                    one(tape.attention(&v[0], &v[1], &v[2], 0.6, bias.as_ref(), &mask))
                });
            }
        }
    }
}

#[test]
fn joint_attention() {
    let (b, h, d) = (2, 3, 4);
    let part = |seed: u64, n| [0, 1, 2].map(|i| normal(seed + i, &[b, n, h, d]));
    let inputs = [part(10, 5), part(20, 3)].concat();
    check(&inputs, |tape, v| {
        let parts = [
            AttentionPart {
                q: Some(&v[0]),
                k: &v[1],
                v: &v[2],
            },
            AttentionPart {
                q: Some(&v[3]),
                k: &v[4],
                v: &v[5],
            },
        ];
        tape.joint_attention(&parts, 0.5)
    });
    let inputs = [part(10, 5).to_vec(), part(20, 3)[1..].to_vec()].concat();
    check(&inputs, |tape, v| {
        let parts = [
            AttentionPart {
                q: Some(&v[0]),
                k: &v[1],
                v: &v[2],
            },
            AttentionPart {
                q: None,
                k: &v[3],
                v: &v[4],
            },
        ];
        tape.joint_attention(&parts, 0.5)
    });
}

#[test]
fn joint_attention_equals_attention_on_the_parts_put_together() {
    let tape = Tape::off(&Kernels::NONE);
    let value = |seed, n| Value::constant(normal(seed, &[2, n, 3, 4]));
    let (a, b) = (
        [1, 2, 3].map(|i| value(i, 70)),
        [4, 5, 6].map(|i| value(i, 9)),
    );
    let parts = [&a, &b].map(|[q, k, v]| AttentionPart { q: Some(q), k, v });
    let outs = tape.joint_attention(&parts, 0.5).unwrap();
    let [q, k, v] = [0, 1, 2].map(|i| tape.cat(&[&a[i], &b[i]], 1).unwrap());
    let whole = tape
        .attention(&q, &k, &v, 0.5, None, &AttentionMask::None)
        .unwrap();
    let joined = tape.cat(&[&outs[0], &outs[1]], 1).unwrap();
    assert!(difference(joined.tensor(), whole.tensor()) < 1e-13);
}

#[test]
fn rope() {
    let (n, d) = (5, 6);
    check(&[normal(1, &[2, n, 3, d])], |tape, v| {
        let angles = normal(2, &[n, d / 2]);
        let table = |t: Tensor| t.to_device(v[0].tensor().device());
        one(tape.rope(&v[0], &table(angles.cos()?)?, &table(angles.sin()?)?))
    });
    // Turned by a quarter, (a, b) becomes (-b, a).
    let x = Value::constant(Tensor::new(&[[[[2f64, 3.0]]]], &candle_core::Device::Cpu).unwrap());
    let (zero, unit) = (
        normal(1, &[1, 1]).zeros_like().unwrap(),
        normal(1, &[1, 1]).ones_like().unwrap(),
    );
    let y = Tape::off(&Kernels::NONE).rope(&x, &zero, &unit).unwrap();
    assert_eq!(
        y.tensor().flatten_all().unwrap().to_vec1::<f64>().unwrap(),
        [-3.0, 2.0]
    );
}

#[test]
fn activations() {
    let kinds = [
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
    ];
    for kind in kinds {
        check(&[normal(1, &[3, 7])], |tape, v| {
            one(tape.activation(kind, &v[0]))
        });
        check(&[normal(1, &[3, 7]), normal(2, &[3, 7])], |tape, v| {
            one(tape.activation_gated(kind, &v[0], &v[1]))
        });
    }
}

#[test]
fn tanh() {
    check(&[normal(1, &[2, 5])], |tape, v| one(tape.tanh(&v[0])));
}

#[test]
fn sums_and_products() {
    let same = [normal(1, &[2, 3, 5]), normal(2, &[2, 3, 5])];
    let spread = [normal(1, &[2, 3, 5]), normal(2, &[1, 5])];
    let both = [normal(1, &[2, 1, 5]), normal(2, &[3, 1])];
    for inputs in [same, spread, both] {
        check(&inputs, |tape, v| {
            let sum = tape.add(&v[0], &v[1])?;
            one(tape.scale(&tape.mul(&sum, &v[1])?, -1.5))
        });
    }
    // One value as both operands.
    check(&[normal(1, &[4])], |tape, v| {
        one(tape.mul(&tape.add(&v[0], &v[0])?, &v[0]))
    });
}

#[test]
fn shapes() {
    let inputs = [normal(1, &[2, 3, 4]), normal(2, &[2, 5, 4])];
    check(&inputs, |tape, v| {
        let joined = tape.cat(&[&v[0], &v[1], &v[0]], 1)?;
        let turned = tape.permute(&joined, &[2, 0, 1])?;
        let flat = tape.reshape(&turned, &[8, 11])?;
        let parts = tape.split(&flat, 1, &[2, 8, 1])?;
        let middle = tape.narrow(&flat, 0, 3, 2)?;
        Ok(vec![
            parts[0].clone(),
            parts[2].clone(),
            middle,
            tape.narrow(&flat, 1, 0, 11)?,
        ])
    });
    check(&[normal(1, &[2, 1, 3])], |tape, v| {
        let turned = tape.permute(&v[0], &[1, 0, 2])?;
        one(tape.add(&turned, &tape.permute(&v[0], &[1, 0, 2])?))
    });
    let (tape, x) = (
        Tape::off(&Kernels::NONE),
        Value::constant(normal(1, &[2, 3])),
    );
    assert!(tape.split(&x, 1, &[1, 1]).is_err());
    assert!(tape.split(&x, 2, &[1]).is_err());
    assert!(tape.narrow(&x, 1, 2, 2).is_err());
    assert!(tape.permute(&x, &[0, 0]).is_err());
    assert!(tape.reshape(&x, &[4]).is_err());
    assert!(tape.cat(&[], 0).is_err());
}

#[test]
fn mean_square_errors() {
    for shape in [vec![1, 1], vec![3, 2, 5]] {
        let weights: Vec<f32> = (0..shape[0]).map(|b| 0.5 + b as f32).collect();
        let weights = Tensor::new(weights, &Device::Cpu).unwrap();
        for weights in [None, Some(weights)] {
            check(&[normal(1, &shape)], |tape, v| {
                one(tape.mse(&v[0], &frozen(2, &shape, &v[0]), weights.as_ref()))
            });
        }
    }
    let (tape, x) = (
        Tape::off(&Kernels::NONE),
        Value::constant(normal(1, &[2, 3])),
    );
    let loss = tape.mse(&x, &normal(2, &[2, 3]), None).unwrap();
    let want = (x.tensor() - normal(2, &[2, 3]))
        .unwrap()
        .sqr()
        .unwrap()
        .mean_all()
        .unwrap();
    assert!(difference(loss.tensor(), &want) < 1e-14);
    assert!(tape.mse(&x, &normal(2, &[2, 4]), None).is_err());
    let one_weight = normal(3, &[1]);
    assert!((tape.mse(&x, &normal(2, &[2, 3]), Some(&one_weight))).is_err());
}

#[test]
fn convolutions() {
    let wide_stride = Conv2dOptions {
        stride: 3,
        ..Conv2dOptions::SAME
    };
    let all = [
        Conv2dOptions::SAME,
        Conv2dOptions::HALVE,
        Conv2dOptions::DOUBLE,
        wide_stride,
    ];
    for options in all {
        for (h, w) in [(4, 6), (5, 3)] {
            check(&[normal(1, &[2, 3, h, w])], |tape, v| {
                let (weight, bias) = (frozen(2, &[2, 3, 3, 3], &v[0]), frozen(3, &[2], &v[0]));
                one(tape.conv2d(&v[0], &weight, Some(&bias), options, None))
            });
        }
    }
    check(&[normal(1, &[1, 3, 2, 2])], |tape, v| {
        let weight = frozen(2, &[5, 3, 1, 1], &v[0]);
        one(tape.conv2d(&v[0], &weight, None, Conv2dOptions::POINTWISE, None))
    });
}

#[test]
fn convolutions_with_an_adapter() {
    let both = Conv2dOptions {
        stride: 2,
        ..Conv2dOptions::SAME
    };
    for (options, kernel) in [
        (Conv2dOptions::SAME, 3),
        (Conv2dOptions::DOUBLE, 3),
        (both, 3),
        (Conv2dOptions::POINTWISE, 1),
    ] {
        for dropout in [false, true] {
            let inputs = [
                normal(1, &[2, 3, 4, 5]),
                normal(2, &[2, 3, kernel, kernel]),
                normal(3, &[4, 2, 1, 1]),
            ];
            check(&inputs, |tape, v| {
                let weight = frozen(4, &[4, 3, kernel, kernel], &v[0]);
                let lora = LoraValues {
                    a: v[1].clone(),
                    b: v[2].clone(),
                    scale: 0.7,
                    dropout: dropout.then(|| frozen(5, &[2, 3, 4, 5], &v[0])),
                };
                one(tape.conv2d(&v[0], &weight, None, options, Some(&lora)))
            });
        }
    }
}

#[test]
fn group_norms_and_doubling() {
    for (shape, groups) in [([1, 2, 1, 2], 1), ([2, 6, 3, 5], 3), ([2, 4, 2, 2], 4)] {
        for silu in [false, true] {
            check(&[normal(1, &shape)], |tape, v| {
                let channels = [shape[1]];
                let (weight, bias) = (frozen(2, &channels, &v[0]), frozen(3, &channels, &v[0]));
                one(tape.group_norm(&v[0], &weight, &bias, groups, 1e-3, silu))
            });
        }
        check(&[normal(1, &shape)], |tape, v| {
            one(tape.upsample_nearest_2x(&v[0]))
        });
    }
}

#[test]
fn a_packed_weight_gives_the_same_bits() {
    let single = |seed: u64, shape: &[usize]| normal(seed, shape).to_dtype(DType::F32).unwrap();
    for (lead, inner, out) in [
        (vec![1], 1, 1),
        (vec![2, 19], 770, 33),
        (vec![154], 48, 400),
    ] {
        let shape = [lead.clone(), vec![inner]].concat();
        let (w, b) = (single(2, &[out, inner]), single(3, &[out]));
        let kept = |packed: bool| match packed {
            true => Frozen::packed(&w).unwrap(),
            false => Frozen::from(&w),
        };
        for (adapted, dropout) in [(false, false), (true, false), (true, true)] {
            let found = [false, true].map(|packed| {
                let tape = Tape::recording(&Kernels::NONE);
                let (x, a) = (
                    tape.leaf(single(1, &shape)),
                    tape.leaf(single(4, &[3, inner])),
                );
                let lora = LoraValues {
                    a: a.clone(),
                    b: tape.leaf(single(5, &[out, 3])),
                    scale: 0.7,
                    dropout: dropout.then(|| single(6, &shape)),
                };
                let lora = adapted.then_some(&lora);
                // Twice on one input: the second gradient is added to the first.
                let y = tape.linear(&x, &kept(packed), Some(&b), lora).unwrap();
                let z = tape.linear(&x, &kept(packed), None, lora).unwrap();
                let seeds = [(&y, single(7, y.dims())), (&z, single(8, z.dims()))];
                let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let mut all = vec![numbers(y.tensor()), numbers(z.tensor())];
                let mut gradients = tape.backward_from(&seeds).unwrap();
                let leaves = [&x, &a].into_iter().chain(lora.map(|lora| &lora.b));
                all.extend(
                    leaves
                        .filter_map(|leaf| gradients.take(leaf))
                        .map(|g| numbers(&g)),
                );
                assert_eq!(all.len(), if adapted { 5 } else { 3 });
                all
            });
            assert!(found[0] == found[1], "{inner}, {out}, {adapted}, {dropout}");
        }
    }
}
