//! Small cases of what has kernels here, at sizes that end in the middle of a tile, held against the CPU in f64: what a GPU is tried with
//! before its kernels are used there, and what the unit tests try.

mod attention;
mod fp8;
mod fused;
mod pointwise;

use candle_core::{DType, Device, Result, Tensor};

use super::conv::add_channels;
use crate::nn::compare::{difference, normal};
use crate::nn::flat::{AdamWUpdate, accumulate_all, sum_of_squares};
use crate::nn::linear::{Adapted, LowRank, WantedGradients, adapted, backward};
use crate::nn::norm::{Statistic, gated_backward, modulate_backward, norm_backward};
use crate::nn::picture_backward::{
    conv2d_backward, conv2d_weight_backward, group_norm_backward, upsample_nearest_2x_backward,
};
use crate::nn::{
    Conv2dOptions, Kernels, Packed, Padding, conv2d, dropout, gated_residual, group_norm,
    group_norm_silu, layer_norm, linear, modulate, rms_norm, upsample_nearest_2x,
};
use crate::rng::{Rng, Stream};

pub(crate) use attention::{attention_gradients, attentions, large_scores};
pub(crate) use fp8::in_fp8;
pub(crate) use fused::{fused, gathered, with_gelus};
pub(crate) use pointwise::{losses, pointwise_operations, told};

type Operation = Box<dyn Fn(&Kernels, &[Tensor]) -> Result<Vec<Tensor>>>;

/// A type that a case is computed in, and how far its results may be off, in units of the largest number.
type Limit = (DType, f64);

const BOTH: [Limit; 2] = [(DType::F32, 1e-5), (DType::BF16, 6e-3)];
/// Of sums whose terms were rounded before.
const SUMS: [Limit; 2] = [(DType::F32, 1e-5), (DType::BF16, 1e-2)];

/// Of products in 8-bit floats. Hopper's sum in some 13 bits, whatever type the result is of.
const IN_FP8: [Limit; 2] = [(DType::F32, 2e-3), (DType::BF16, 1e-2)];

/// Not a bit may differ.
const EXACT: [Limit; 1] = [(DType::F32, f64::MIN_POSITIVE)];

/// An operation, and what it is given.
pub(crate) struct Case {
    name: String,
    /// In f64 on the CPU; rounded to the type that is tried, there too.
    inputs: Vec<Tensor>,
    limits: Vec<Limit>,
    operation: Operation,
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        inputs: Vec<Tensor>,
        limits: &[Limit],
        operation: impl Fn(&Kernels, &[Tensor]) -> Result<Vec<Tensor>> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            inputs,
            limits: limits.to_vec(),
            operation: Box::new(operation),
        }
    }

    /// What is computed, in words.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the kernels compute otherwise than the CPU, or otherwise the second time, in words.
    ///
    /// # Errors
    ///
    /// If they, or the CPU, cannot compute it.
    pub(crate) fn fault(&self, gpu: &Device, kernels: &Kernels) -> Result<Option<String>> {
        for &(dtype, limit) in &self.limits {
            let rounded = each(&self.inputs, |t| t.to_dtype(dtype))?;
            let on_gpu = each(&rounded, |t| t.to_device(gpu))?;
            let exact = each(&rounded, |t| t.to_dtype(DType::F64))?;
            let compute = || {
                each(&(self.operation)(kernels, &on_gpu)?, |t| {
                    t.to_device(&Device::Cpu)
                })
            };
            let (found, again) = (compute()?, compute()?);
            let wanted = (self.operation)(kernels, &exact)?;
            if [found.len(), again.len()] != [wanted.len(); 2] {
                return Ok(Some(format!("{}: {} results", self.name, found.len())));
            }
            for (i, want) in wanted.iter().enumerate() {
                let what = format!("{} in {}, result {i}", self.name, dtype.as_str());
                if found[i].dtype() != dtype {
                    return Ok(Some(format!(
                        "{what}: it is of {}",
                        found[i].dtype().as_str()
                    )));
                }
                let off = difference(&found[i], want)?;
                if off >= limit {
                    return Ok(Some(format!(
                        "{what}: off by {off:.1e} of its largest number, where rounding stays below {limit:.0e}"
                    )));
                }
                if difference(&found[i], &again[i])? != 0.0 {
                    return Ok(Some(format!("{what}: other numbers the second time")));
                }
            }
        }
        Ok(None)
    }
}

fn each(tensors: &[Tensor], f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    tensors.iter().map(f).collect()
}

fn normals<const N: usize>(shapes: [&[usize]; N]) -> Result<Vec<Tensor>> {
    (1..)
        .zip(shapes)
        .map(|(seed, shape)| normal(seed, shape))
        .collect()
}

/// All of them but those of 8-bit floats, which older GPUs do not multiply.
///
/// # Errors
///
/// For want of memory.
pub(crate) fn all() -> Result<Vec<Case>> {
    let mut cases = of_attention()?;
    for more in [
        norms()?,
        views()?,
        linears()?,
        adapters()?,
        fused()?,
        with_gelus()?,
        gathered()?,
        flat()?,
        convolutions()?,
        channels()?,
        group_norms()?,
        dropouts()?,
        pointwise_operations()?,
        losses()?,
        told()?,
    ] {
        cases.extend(more);
    }
    Ok(cases)
}

/// Those that cuDNN may compute.
///
/// # Errors
///
/// For want of memory.
pub(crate) fn of_cudnn() -> Result<Vec<Case>> {
    let mut cases = of_attention()?;
    cases.extend(convolutions()?);
    Ok(cases)
}

fn of_attention() -> Result<Vec<Case>> {
    let mut cases = attentions()?;
    cases.extend(attention_gradients()?);
    cases.extend(large_scores()?);
    Ok(cases)
}

/// Norms of rows, modulated and gated too, and their gradients.
pub(crate) fn norms() -> Result<Vec<Case>> {
    let mut cases = norms_of(&[3, 4, 5, 130, 768, 1032, 3072, 4096, 4104])?;
    // A view that begins where four numbers at a time cannot be read.
    let inputs = normals([&[1 + 3 * 8]])?;
    let name = "norm of rows that begin anywhere";
    cases.push(Case::new(name, inputs, &BOTH, |k, x| {
        let rows = x[0].narrow(0, 1, 24)?.reshape((3, 8))?;
        Ok(vec![rms_norm(k, &rows, None, 1e-6)?])
    }));
    Ok(cases)
}

/// Norms of rows of these widths. Of 1 they are for tests alone: a GPU that rounds otherwise may give next to nothing where the CPU gives 0.
pub(crate) fn norms_of(widths: &[usize]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &width in widths {
        let (rows, a_row, each_batch) = ([2, 5, width], [width], [2, width]);
        let mut inputs = normals([&rows, &a_row, &a_row])?;
        // Far from 0, where a variance from sums of squares would be lost.
        inputs[0] = (&inputs[0] + 30.0)?;
        let name = format!("layer norm of {width}");
        cases.push(Case::new(name, inputs, &[(DType::F32, 2e-4)], |k, x| {
            Ok(vec![layer_norm(k, &x[0], Some(&x[1]), Some(&x[2]), 1e-5)?])
        }));
        let inputs = normals([&rows, &a_row, &rows, &each_batch, &each_batch, &a_row])?;
        let name = format!("norms of {width}");
        cases.push(Case::new(name, inputs, &BOTH, |k, x| {
            let (weight, gradient) = (Some(&x[1]), || x[2].copy());
            let back = |statistic| norm_backward(k, statistic, &x[0], weight, 1e-2, gradient()?);
            Ok(vec![
                rms_norm(k, &x[0], weight, 1e-2)?,
                back(Statistic::RootMeanSquare)?,
                layer_norm(k, &x[0], weight, Some(&x[5]), 1e-2)?,
                back(Statistic::Deviation)?,
                modulate(k, &x[0], &x[3], &x[4], 1e-2)?,
                modulate_backward(k, &x[0], &x[3], 1e-2, gradient()?)?,
                gated_residual(k, &x[0], &x[4], &x[2])?,
                gated_backward(k, &x[4], &x[2])?,
            ])
        }));
    }
    Ok(cases)
}

/// Views of all kinds that the tape makes: parts of rows, of tokens, of both, and dimensions in another order.
pub(crate) fn views() -> Result<Vec<Case>> {
    let inputs = normals([&[3, 5, 6, 16], &[2, 3, 4, 2, 2, 5]])?;
    Ok(vec![Case::new(
        "views in one piece",
        inputs,
        &BOTH,
        |k, x| {
            let (x, patches) = (&x[0], &x[1]);
            let views = [
                patches.permute([0, 5, 1, 3, 2, 4])?,
                patches.permute([0, 3, 1, 4, 2, 5])?,
                patches.narrow(0, 1, 1)?.permute([0, 3, 1, 4, 2, 5])?,
                x.narrow(1, 0, 1)?.broadcast_as((3, 4, 6, 16))?,
                x.narrow(3, 8, 8)?,
                x.narrow(3, 4, 4)?,
                x.narrow(3, 1, 3)?,
                x.narrow(1, 1, 3)?.narrow(3, 0, 8)?,
                x.narrow(1, 1, 3)?.narrow(2, 2, 3)?.narrow(3, 0, 8)?,
                x.transpose(1, 2)?,
                x.permute((3, 2, 1, 0))?,
                x.narrow(0, 1, 1)?.narrow(2, 0, 2)?,
            ];
            each(&views, |view| k.contiguous(view))
        },
    )])
}

/// Linear layers with a bias.
pub(crate) fn linears() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (m, k, n) in [
        (1, 8, 8),
        (3, 64, 24),
        (77, 128, 320),
        (130, 96, 40),
        (5, 7, 9),
        (5, 12, 12),
    ] {
        let mut inputs = normals([&[m, k], &[n, k], &[n]])?;
        inputs[1] = (&inputs[1] * 0.2)?;
        let name = format!("linear layer of {m} rows, {k} to {n}");
        cases.push(Case::new(name, inputs, &SUMS, |kernels, x| {
            Ok(vec![linear(kernels, &x[0], &x[1], Some(&x[2]))?])
        }));
    }
    Ok(cases)
}

/// Linear layers with an adapter, with dropout and without, and their gradients.
pub(crate) fn adapters() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (m, k, n, rank) in [(3, 64, 24, 4), (77, 128, 320, 16), (5, 8, 40, 8)] {
        let mut inputs = normals([
            &[m, k],
            &[n, k],
            &[n],
            &[rank, k],
            &[n, rank],
            &[m, n],
            &[m, k],
        ])?;
        for weight in [1, 3, 4] {
            inputs[weight] = (&inputs[weight] * 0.2)?;
        }
        for dropout in [false, true] {
            let (with, inputs) = (if dropout { " and dropout" } else { "" }, inputs.clone());
            let name = format!("adapter{with} on a linear layer of {m} rows, {k} to {n}");
            let limits = [(DType::F32, 1e-5), (DType::BF16, 2e-2)];
            cases.push(Case::new(name, inputs, &limits, move |kernels, x| {
                let weight = Packed::whole(&x[1])?;
                let adapter = LowRank {
                    a: x[3].clone(),
                    b: x[4].clone(),
                    scale: 0.5,
                    mask: dropout.then(|| x[6].clone()),
                };
                let (y, down) = adapted(kernels, &x[0], &weight, Some(&x[2]), &adapter)?;
                let of_adapter = Some(Adapted {
                    adapter: &adapter,
                    x: Some(&x[0]),
                    down: Some(&down),
                });
                let wanted = WantedGradients {
                    x: true,
                    a: true,
                    b: true,
                };
                let mut found = vec![y, down.clone()];
                for earlier in [None, Some(x[6].copy()?)] {
                    let gradients = backward(kernels, &x[5], &weight, of_adapter, wanted, earlier)?;
                    // Those of adapters are f32 in any case.
                    let gradients = gradients.iter().flatten();
                    found.extend(
                        gradients
                            .map(|t| t.to_dtype(x[0].dtype()))
                            .collect::<Result<Vec<_>>>()?,
                    );
                }
                Ok(found)
            }));
        }
    }
    Ok(cases)
}

/// Flat tensors of many numbers: sums into parts, the norm, AdamW.
pub(crate) fn flat() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for count in [1, 1000, 300_001] {
        let inputs = normals([&[count], &[count + 5]])?;
        let name = format!("sums of {count} numbers");
        cases.push(Case::new(name, inputs, &EXACT, |k, x| {
            let (x, sum) = (single(&x[0])?, single(&x[1])?.copy()?);
            let pieces = [(0, x.narrow(0, 0, 1)?), (5, x.clone())];
            accumulate_all(k, &sum, &pieces, 0.5)?;
            let of_bf16 = [(2, x.to_dtype(DType::BF16)?)];
            accumulate_all(k, &sum, &of_bf16, 0.25)?;
            Ok(vec![sum])
        }));
        let inputs = normals([&[count], &[count]])?;
        let name = format!("norm and AdamW of {count} numbers");
        cases.push(Case::new(name, inputs, &[(DType::F32, 1e-5)], |k, x| {
            let (x, second) = (single(&x[0])?, single(&x[1])?.sqr()?);
            let squares = Tensor::new(sum_of_squares(k, &x)? as f32, x.device())?;
            let update = AdamWUpdate {
                keep1: 0.9,
                take1: 0.1,
                keep2: 0.99,
                take2: 0.01,
                shrink: 0.999,
                step_size: 1e-2,
                root_correction: 0.8,
                epsilon: 1e-8,
            };
            let (parameters, first) = (x.copy()?, (&x * 0.3)?);
            update.apply(k, &parameters, &x, (&first, &second))?;
            Ok(vec![squares, parameters, first, second])
        }));
    }
    Ok(cases)
}

/// In f32 on the CPU as well: flat tensors are of no other type.
fn single(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// A window of 3 that skips pixels, of pictures padded otherwise on each side.
pub(crate) const STRIDED: Conv2dOptions = Conv2dOptions {
    stride: 2,
    padding: Padding {
        top: 2,
        bottom: 0,
        left: 1,
        right: 2,
    },
    upsample: false,
};

/// Convolutions and their gradients.
pub(crate) fn convolutions() -> Result<Vec<Case>> {
    let same = Conv2dOptions::SAME;
    let grown = Conv2dOptions {
        upsample: true,
        ..same
    };
    let mut cases = Vec::new();
    for (what, options, kernel) in [
        ("convolution", same, 3),
        ("convolution with a stride", STRIDED, 3),
        ("convolution of a picture doubled", grown, 3),
        ("pointwise convolution", Conv2dOptions::POINTWISE, 1),
    ] {
        for (h, w) in [(5, 7), (16, 21)] {
            let (picture, weight) = ([2, 3, h, w], [4, 3, kernel, kernel]);
            let mut inputs = normals([&picture, &weight, &[4]])?;
            let out = conv2d(&Kernels::NONE, &inputs[0], &inputs[1], None, options)?;
            inputs.push(normal(4, out.dims())?);
            let name = format!("{what}, {h} x {w}");
            cases.push(Case::new(name, inputs, &SUMS, move |k, x| {
                let of_weight = conv2d_weight_backward(k, &x[0], kernel, options, &x[3])?;
                Ok(vec![
                    conv2d(k, &x[0], &x[1], Some(&x[2]), options)?,
                    conv2d_backward(k, &x[1], options, (h, w), &x[3])?,
                    of_weight.to_dtype(x[0].dtype())?,
                ])
            }));
        }
    }
    Ok(cases)
}

/// A number for each channel added to pictures, as cuDNN's convolutions leave to us; and pictures doubled.
pub(crate) fn channels() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (height, width) in [(5, 7), (2, 2), (4, 6)] {
        let inputs = normals([&[2, 3, height, width], &[3]])?;
        let name = format!("numbers added to channels of {height} x {width}");
        cases.push(Case::new(name, inputs, &BOTH, |k, x| {
            match k.serving(&x[0]) {
                Some(k) => {
                    let sum = x[0].copy()?;
                    add_channels(k, &sum, &x[1])?;
                    Ok(vec![sum])
                }
                None => Ok(vec![x[0].broadcast_add(&x[1].reshape((1, 3, 1, 1))?)?]),
            }
        }));
    }
    let inputs = normals([&[2, 3, 5, 7], &[2, 3, 10, 14]])?;
    cases.push(Case::new("pictures doubled", inputs, &BOTH, |k, x| {
        Ok(vec![
            upsample_nearest_2x(k, &x[0])?,
            upsample_nearest_2x_backward(k, &x[1])?,
        ])
    }));
    Ok(cases)
}

/// Group norms whose groups are read by one block and by many, and their gradients.
pub(crate) fn group_norms() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let shapes = [
        (6, 3, 1),
        (6, 3, 2),
        (4, 2, 5),
        (4, 2, 8),
        (8, 2, 96),
        (8, 2, 97),
    ];
    for (channels, groups, side) in shapes {
        let picture = [2, channels, side, side];
        let mut inputs = normals([&picture, &[channels], &[channels], &picture])?;
        inputs[0] = (&inputs[0] + 2.0)?;
        let name = format!("group norm of {channels} channels of {side} x {side}");
        let limits = [(DType::F32, 1e-4), (DType::BF16, 1e-2)];
        cases.push(Case::new(name, inputs, &limits, move |k, x| {
            let back = |silu| {
                let (vectors, gradient) = ((&x[1], &x[2]), x[3].copy()?);
                group_norm_backward(k, &x[0], vectors, groups, 1e-2, silu, gradient)
            };
            Ok(vec![
                group_norm(k, &x[0], &x[1], &x[2], groups, 1e-2)?,
                group_norm_silu(k, &x[0], &x[1], &x[2], groups, 1e-2)?,
                back(false)?,
                back(true)?,
            ])
        }));
    }
    Ok(cases)
}

/// Dropout, which draws what the host draws.
pub(crate) fn dropouts() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for count in [1, 8, 8 * 300 + 3] {
        let inputs = normals([&[count]])?;
        let name = format!("dropout of {count} numbers");
        cases.push(Case::new(name, inputs, &EXACT, |k, x| {
            let key = Rng::key(7, Stream::AdapterDropout, 2, 5);
            Ok(vec![dropout::mask(k, key, 0.3, &x[0])?])
        }));
    }
    Ok(cases)
}
