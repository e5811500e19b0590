//! The kernels against the CPU in f64, at sizes that end in the middle of a tile. Without a GPU they skip and say so.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

use crate::device::{self, Choice};
use crate::nn::attention::{Parts, joint_attention, joint_attention_backward};
use crate::nn::norm::{Statistic, modulate_backward, norm_backward};
use crate::nn::picture_backward::{conv2d_backward, conv2d_weight_backward, group_norm_backward};
use crate::nn::testing::{difference, normal};
use crate::nn::{
    Activation, AttentionMask, Conv2dOptions, Kernels, Padding, attention, dropout, flat,
    gated_residual, group_norm, group_norm_silu, layer_norm, modulate, rms_norm, rope,
};
use crate::rng::{Rng, Stream};

/// A GPU and its kernels.
type Gpu = (Device, Kernels);

fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| match device::open(Choice::Cuda(0), &[]) {
        Ok(opened) => {
            let kernels = Kernels::compile(&opened.device).expect("kernels for the GPU");
            Some((opened.device, kernels))
        }
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    });
    gpu.as_ref()
}

/// What `op` gives on the GPU, in a type, against the CPU in f64 on the same rounded numbers; twice, for the same bits.
fn held(
    dtype: DType,
    limit: f64,
    inputs: &[Tensor],
    op: impl Fn(&Kernels, &[Tensor]) -> Result<Vec<Tensor>>,
) {
    let Some((gpu, kernels)) = gpu() else { return };
    let op = |x: &[Tensor]| op(kernels, x);
    let rounded: Vec<_> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
    let on = |t: &Tensor| t.to_device(gpu).unwrap();
    let on_gpu: Vec<_> = rounded.iter().map(on).collect();
    let exact: Vec<_> = rounded
        .iter()
        .map(|t| t.to_dtype(DType::F64).unwrap())
        .collect();
    let home = |t: &Tensor| t.to_device(&Device::Cpu).unwrap();
    let found: Vec<_> = op(&on_gpu).unwrap().iter().map(home).collect();
    let repeated: Vec<_> = op(&on_gpu).unwrap().iter().map(home).collect();
    for (i, want) in op(&exact).unwrap().iter().enumerate() {
        assert_eq!(found[i].dtype(), dtype);
        let off = difference(&found[i], want);
        assert!(off < limit, "{dtype:?}, result {i}: off by {off}");
        let (first, second) = (&found[i], &repeated[i]);
        assert_eq!(difference(first, second), 0.0, "result {i} changes");
    }
}

fn both(inputs: &[Tensor], op: impl Fn(&Kernels, &[Tensor]) -> Result<Vec<Tensor>>) {
    held(DType::F32, 1e-5, inputs, &op);
    held(DType::BF16, 6e-3, inputs, &op);
}

#[test]
fn they_serve_their_own_gpu_and_two_types() {
    let Some((gpu, kernels)) = gpu() else { return };
    let serves = |kernels: &Kernels, dtype, device: &Device| {
        let tensor = Tensor::zeros(3, dtype, device).unwrap();
        kernels.serving(&tensor).is_some()
    };
    assert!(serves(kernels, DType::F32, gpu) && serves(kernels, DType::BF16, gpu));
    assert!(!serves(kernels, DType::U32, gpu) && !serves(kernels, DType::F32, &Device::Cpu));
    assert!(!serves(&Kernels::NONE, DType::F32, gpu));
}

#[test]
fn attention_at_every_width_and_length() {
    for width in [16, 32, 64, 96, 128] {
        for (queries, keys) in [(1, 1), (63, 65), (130, 64), (64, 200)] {
            let inputs = [
                normal(1, &[2, queries, 3, width]),
                normal(2, &[2, keys, 3, width]),
                normal(3, &[2, keys, 3, width]),
            ];
            let scale = 1.0 / (width as f64).sqrt();
            let mut masks = vec![
                AttentionMask::None,
                AttentionMask::KeyCounts(vec![keys, keys.div_ceil(3)]),
            ];
            if queries <= keys {
                masks.push(AttentionMask::Causal);
            }
            for mask in masks {
                held(DType::BF16, 6e-3, &inputs, |k, x| {
                    Ok(vec![attention(k, &x[0], &x[1], &x[2], scale, None, &mask)?])
                });
            }
            for batch in [1, 2] {
                let bias = normal(4, &[batch, 3, queries, keys]);
                let inputs = [&inputs[..], &[bias]].concat();
                held(DType::BF16, 6e-3, &inputs, |k, x| {
                    let mask = AttentionMask::KeyCounts(vec![keys.div_ceil(2), keys]);
                    let bias = Some(&x[3]);
                    Ok(vec![attention(k, &x[0], &x[1], &x[2], scale, bias, &mask)?])
                });
            }
        }
    }
}

#[test]
fn gradients_of_attention_in_parts() {
    for width in [16, 64, 128] {
        for lengths in [(1, 3), (65, 64), (7, 150)] {
            let part = |seed: u64, n| [0, 1, 2].map(|i| normal(seed + i, &[2, n, 2, width]));
            let gradients = [lengths.0, lengths.1].map(|n| normal(9, &[2, n, 2 * width]));
            let parts = [part(10, lengths.0), part(20, lengths.1)].concat();
            let inputs = [parts, gradients.to_vec()].concat();
            held(DType::BF16, 2e-2, &inputs, |k, x| {
                let (first, second) = (&x[..3], &x[3..6]);
                let both = |i: usize| vec![first[i].clone(), second[i].clone()];
                let parts = Parts {
                    q: both(0),
                    k: both(1),
                    v: both(2),
                };
                let (scale, mask) = (0.2, AttentionMask::None);
                let (outs, kept) = joint_attention(k, &parts, scale, None, &mask)?;
                let found =
                    joint_attention_backward(k, &parts, scale, None, &mask, &kept, &x[6..])?;
                Ok([outs, found.q, found.k, found.v].concat())
            });
        }
    }
}

/// Scores so large that only differences of them can be raised to a power.
#[test]
fn attention_of_large_scores() {
    let large = |seed, n| (normal(seed, &[1, n, 1, 64]) * 30.0).unwrap();
    let inputs = [large(1, 70), large(2, 90), normal(3, &[1, 90, 1, 64])];
    held(DType::BF16, 6e-3, &inputs, |k, x| {
        let mask = AttentionMask::None;
        Ok(vec![attention(k, &x[0], &x[1], &x[2], 1.0, None, &mask)?])
    });
}

#[test]
fn norms_forward_and_backward() {
    for width in [1, 3, 4, 130, 768, 1032, 3072, 4096, 4104] {
        // Far from 0, where a variance from sums of squares would be lost.
        let x = (normal(1, &[2, 5, width]) + 30.0).unwrap();
        let inputs = [x, normal(2, &[width]), normal(3, &[width])];
        let gradient = normal(4, &[2, 5, width]);
        held(DType::F32, 2e-4, &inputs, |k, x| {
            Ok(vec![layer_norm(k, &x[0], Some(&x[1]), Some(&x[2]), 1e-5)?])
        });
        let inputs = [normal(1, &[2, 5, width]), normal(2, &[width]), gradient];
        both(&inputs, |k, x| {
            let back = norm_backward(
                k,
                Statistic::RootMeanSquare,
                &x[0],
                Some(&x[1]),
                1e-2,
                x[2].copy()?,
            );
            Ok(vec![rms_norm(k, &x[0], Some(&x[1]), 1e-2)?, back?])
        });
        let rows = [normal(5, &[2, width]), normal(6, &[2, width])];
        let inputs = [&inputs[..], &rows].concat();
        both(&inputs, |k, x| {
            let back = modulate_backward(k, &x[0], &x[3], 1e-2, x[2].copy()?)?;
            let gated = gated_residual(k, &x[0], &x[4], &x[2])?;
            Ok(vec![modulate(k, &x[0], &x[3], &x[4], 1e-2)?, back, gated])
        });
    }
}

/// Views of all kinds that the tape makes: parts of rows, of tokens, of both, and dimensions in another order.
#[test]
fn views_in_one_piece() {
    both(&[normal(1, &[3, 5, 6, 16])], |k, x| {
        let x = &x[0];
        let views = [
            x.narrow(3, 8, 8)?,
            x.narrow(3, 4, 4)?,
            x.narrow(3, 1, 3)?,
            x.narrow(1, 1, 3)?.narrow(3, 0, 8)?,
            x.narrow(1, 1, 3)?.narrow(2, 2, 3)?.narrow(3, 0, 8)?,
            x.transpose(1, 2)?,
            x.permute((3, 2, 1, 0))?,
            x.narrow(0, 1, 1)?.narrow(2, 0, 2)?,
        ];
        let dense = |view: &Tensor| k.contiguous(view);
        views.iter().map(dense).collect()
    });
}

#[test]
fn linear_layers_with_a_bias() {
    for (m, k, n) in [
        (1, 8, 8),
        (3, 64, 24),
        (77, 128, 320),
        (130, 96, 40),
        (5, 7, 9),
    ] {
        let inputs = [
            normal(1, &[m, k]),
            (normal(2, &[n, k]) * 0.2).unwrap(),
            normal(3, &[n]),
        ];
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            held(dtype, limit, &inputs, |k, x| {
                Ok(vec![crate::nn::linear(k, &x[0], &x[1], Some(&x[2]))?])
            });
        }
    }
}

#[test]
fn sums_of_many_numbers() {
    let Some((gpu, kernels)) = gpu() else { return };
    for count in [1, 1000, 300_001] {
        let x = normal(1, &[count]).to_dtype(DType::F32).unwrap();
        let on_gpu = x.to_device(gpu).unwrap();
        let found = flat::sum_of_squares(kernels, &on_gpu).unwrap();
        let want: f64 = (x.to_vec1::<f32>().unwrap().iter())
            .map(|x| f64::from(*x).powi(2))
            .sum();
        assert!((found / want - 1.0).abs() < 1e-5, "{found} {want}");

        let target = Tensor::ones(count + 5, DType::F32, gpu).unwrap();
        let pieces = [(0, on_gpu.narrow(0, 0, 1).unwrap()), (5, on_gpu.clone())];
        flat::accumulate_all(kernels, &target, &pieces, 0.5).unwrap();
        let sums = target.to_vec1::<f32>().unwrap();
        let x = x.to_vec1::<f32>().unwrap();
        assert_eq!(sums[0], 1.0 + 0.5 * x[0]);
        assert_eq!(sums[1..5], [1.0; 4]);
        let each = sums[5..].iter().zip(&x);
        assert!(each.into_iter().all(|(sum, x)| *sum == 1.0 + 0.5 * x));
    }
}

/// A view that begins where four numbers at a time cannot be read.
#[test]
fn rows_that_begin_anywhere() {
    both(&[normal(1, &[1 + 3 * 8])], |k, x| {
        let rows = x[0].narrow(0, 1, 24)?.reshape((3, 8))?;
        Ok(vec![rms_norm(k, &rows, None, 1e-6)?])
    });
}

#[test]
fn convolutions_forward_and_backward() {
    let same = Conv2dOptions::SAME;
    let odd = Conv2dOptions {
        stride: 2,
        padding: Padding {
            top: 2,
            bottom: 0,
            left: 1,
            right: 2,
        },
        upsample: false,
    };
    let grown = Conv2dOptions {
        upsample: true,
        ..same
    };
    let pointwise = Conv2dOptions::POINTWISE;
    for (options, kernel) in [(same, 3), (odd, 3), (grown, 3), (pointwise, 1)] {
        for (h, w) in [(5, 7), (16, 21)] {
            let x = normal(1, &[2, 3, h, w]);
            let weight = normal(2, &[4, 3, kernel, kernel]);
            let out = crate::nn::conv2d(&Kernels::NONE, &x, &weight, None, options).unwrap();
            let inputs = [x, weight, normal(3, &[4]), normal(4, out.dims())];
            for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                held(dtype, limit, &inputs, |k, x| {
                    let back = conv2d_backward(k, &x[1], options, (h, w), &x[3])?;
                    let of_weight = conv2d_weight_backward(k, &x[0], kernel, options, &x[3])?;
                    Ok(vec![
                        crate::nn::conv2d(k, &x[0], &x[1], Some(&x[2]), options)?,
                        back,
                        of_weight.to_dtype(x[0].dtype())?,
                    ])
                });
            }
        }
    }
}

#[test]
fn group_norms_of_one_and_of_many_pieces() {
    for (channels, groups, side) in [(6, 3, 1), (4, 2, 5), (8, 2, 97)] {
        let picture = |seed| normal(seed, &[2, channels, side, side]);
        let x = (picture(1) + 2.0).unwrap();
        let inputs = [
            x,
            normal(2, &[channels]),
            normal(3, &[channels]),
            picture(4),
        ];
        for (dtype, limit) in [(DType::F32, 1e-4), (DType::BF16, 1e-2)] {
            held(dtype, limit, &inputs, |k, x| {
                let vectors = (&x[1], &x[2]);
                let back = |silu| {
                    let gradient = x[3].copy()?;
                    group_norm_backward(k, &x[0], vectors, groups, 1e-2, silu, gradient)
                };
                Ok(vec![
                    group_norm(k, &x[0], &x[1], &x[2], groups, 1e-2)?,
                    group_norm_silu(k, &x[0], &x[1], &x[2], groups, 1e-2)?,
                    back(false)?,
                    back(true)?,
                ])
            });
        }
    }
}

#[test]
fn dropout_draws_what_the_host_draws() {
    let Some((gpu, kernels)) = gpu() else { return };
    let (stream, probability) = (Stream::AdapterDropout, 0.3);
    for count in [1, 8, 8 * 300 + 3] {
        let like = Tensor::zeros(count, DType::F32, gpu).unwrap();
        let key = Rng::key(7, stream, 2, 5);
        let found = dropout::mask(kernels, key, probability, &like).unwrap();
        let mut rng = Rng::new(7, stream, 2, 5);
        for (i, found) in found.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let dropped = rng.uniform() < probability;
            let want = if dropped {
                0.0
            } else {
                1.0 / (1.0 - probability)
            };
            assert_eq!(found, want as f32, "{i} of {count}");
        }
    }
}

#[test]
fn single_numbers() {
    let angles = normal(2, &[7, 8]);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    both(&[normal(1, &[2, 7, 3, 16])], |k, x| {
        let table = |t: &Tensor| t.to_device(x[0].device());
        Ok(vec![
            Activation::GeluErf.apply(k, &x[0])?,
            crate::nn::pointwise::add(k, &x[0], &x[0])?,
            rope(k, &x[0], &table(&cos)?, &table(&sin)?)?,
        ])
    });
}
