//! Every operation against finite differences in f64, by kernels and composed of candle's operations; in f32 against
//! those, in bf16 as GPUs compute, and on a GPU where there is one; then what the tape keeps and frees.

mod linears;
mod memory;
mod operations;
mod precision;
mod tape;

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

use super::{Tape, Value};
use crate::nn::Kernels;
use crate::nn::testing::{beside_others, composed, difference, gpu, normal};

/// The sum of all results times fixed random numbers, so that every result matters differently.
fn scalar(outs: &[Value]) -> f64 {
    let weighted = |(i, out): (usize, &Value)| {
        let t = out.tensor().to_dtype(DType::F64).unwrap();
        let weights = normal(900 + i as u64, t.dims());
        (t * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    outs.iter().enumerate().map(weighted).sum()
}

/// The gradients towards `inputs` of `scalar`.
fn gradients(
    inputs: &[Tensor],
    op: &impl Fn(&Tape, &[Value]) -> Result<Vec<Value>>,
) -> Vec<Option<Tensor>> {
    gradients_by(&Kernels::NONE, inputs, op)
}

fn gradients_by(
    kernels: &Kernels,
    inputs: &[Tensor],
    op: &impl Fn(&Tape, &[Value]) -> Result<Vec<Value>>,
) -> Vec<Option<Tensor>> {
    let tape = Tape::recording(kernels);
    let leaves: Vec<_> = inputs.iter().map(|t| tape.leaf(t.clone())).collect();
    let outs = op(&tape, &leaves).unwrap();
    let seeds: Vec<_> = outs
        .iter()
        .enumerate()
        .map(|(i, out)| {
            let weights = normal(900 + i as u64, out.dims());
            let weights = weights.to_dtype(out.tensor().dtype()).unwrap();
            (out, weights.to_device(out.tensor().device()).unwrap())
        })
        .collect();
    let mut found = tape.backward_from(&seeds).unwrap();
    leaves.iter().map(|leaf| found.take(leaf)).collect()
}

/// `input`, one element of which is moved.
fn nudged(input: &Tensor, index: usize, by: f64) -> Tensor {
    let mut data = input.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    data[index] += by;
    Tensor::from_vec(data, input.dims(), input.device()).unwrap()
}

/// Central differences of `scalar` towards every element of one input.
fn differences(
    inputs: &[Tensor],
    which: usize,
    op: &impl Fn(&Tape, &[Value]) -> Result<Vec<Value>>,
) -> Tensor {
    let at = |index: usize, by: f64| {
        let mut inputs = inputs.to_vec();
        inputs[which] = nudged(&inputs[which], index, by);
        let values: Vec<_> = inputs.into_iter().map(Value::constant).collect();
        scalar(&op(&Tape::off(&Kernels::NONE), &values).unwrap())
    };
    let step = 1e-5;
    let slopes: Vec<f64> = (0..inputs[which].elem_count())
        .map(|index| (at(index, step) - at(index, -step)) / (2.0 * step))
        .collect();
    Tensor::from_vec(slopes, inputs[which].dims(), inputs[which].device()).unwrap()
}

/// The same elements with a stride of two.
fn strided(t: &Tensor) -> Tensor {
    let last = t.rank();
    let twin = Tensor::stack(&[t, t], last).unwrap();
    twin.narrow(last, 0, 1).unwrap().squeeze(last).unwrap()
}

/// Checks the gradients of `op` (which must be in the type of its inputs) towards all `inputs` (f64).
fn check(inputs: &[Tensor], op: impl Fn(&Tape, &[Value]) -> Result<Vec<Value>>) {
    let exact = gradients(inputs, &op);
    for (which, exact) in exact.iter().enumerate() {
        let want = differences(inputs, which, &op);
        let off = difference(exact.as_ref().unwrap(), &want);
        assert!(off < 1e-6, "input {which}: the gradient is off by {off}");
    }
    let compare = |what: &str, found: Vec<Option<Tensor>>, limit: f64| {
        for (which, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let off = difference(found.as_ref().unwrap(), exact.as_ref().unwrap());
            assert!(off < limit, "{what}, input {which}: off by {off}");
        }
    };
    let with_strides: Vec<_> = inputs.iter().map(strided).collect();
    compare("strides", gradients(&with_strides, &op), 1e-12);
    compare("composed", composed(|| gradients(inputs, &op)), 1e-10);
    compare(
        "composed, strides",
        composed(|| gradients(&with_strides, &op)),
        1e-10,
    );
    let single: Vec<_> = inputs
        .iter()
        .map(|t| t.to_dtype(DType::F32).unwrap())
        .collect();
    compare("f32", gradients(&single, &op), 1e-5);
    one_at_a_time(inputs, &op, &exact);
    let _right = beside_others();
    for place in elsewhere() {
        let Place {
            device,
            kernels,
            dtype,
            limit,
        } = place;
        let what = format!("{place:?}");
        let there: Vec<_> = inputs
            .iter()
            .map(|t| t.to_dtype(*dtype).unwrap().to_device(device).unwrap())
            .collect();
        // What is exact for the numbers as they were rounded.
        let rounded: Vec<_> = there.iter().map(host).collect();
        let exact = gradients(&rounded, &op);
        let found = gradients_by(kernels, &there, &op);
        for (which, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let (found, exact) = (host(found.as_ref().unwrap()), exact.as_ref().unwrap());
            let largest = |t: &Tensor| t.abs().unwrap().max_all().unwrap();
            let number = |t: Tensor| t.to_scalar::<f64>().unwrap();
            let off = number(largest(&(found - exact).unwrap()));
            let off = off / number(largest(exact)).max(1.0);
            assert!(off < *limit, "{what}, input {which}: off by {off}");
        }
    }
}

/// In f64 on the CPU.
fn host(t: &Tensor) -> Tensor {
    let here = t.to_device(&Device::Cpu).unwrap();
    here.to_dtype(DType::F64).unwrap()
}

/// Where operations are computed beside f32 and f64 on the CPU.
#[derive(Debug)]
struct Place {
    device: Device,
    kernels: Kernels,
    dtype: DType,
    /// How much they may be off.
    limit: f64,
}

/// bf16 on the CPU, and a GPU's two types by candle's operations and by own kernels where there is one.
fn elsewhere() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let mut devices = vec![(Device::Cpu, Kernels::NONE)];
        if let Some((device, own)) = gpu() {
            devices.push((device.clone(), Kernels::NONE));
            devices.push((device, own));
        }
        let types = [(DType::F32, 1e-4), (DType::BF16, 0.08)];
        let places = devices.iter().flat_map(|(device, kernels)| {
            types.map(|(dtype, limit)| Place {
                device: device.clone(),
                kernels: kernels.clone(),
                dtype,
                limit,
            })
        });
        places.collect()
    })
}

/// Each input alone as a leaf: the others get nothing, and the one the same.
fn one_at_a_time(
    inputs: &[Tensor],
    op: &impl Fn(&Tape, &[Value]) -> Result<Vec<Value>>,
    exact: &[Option<Tensor>],
) {
    for which in 0..inputs.len() {
        let alone = |tape: &Tape, leaf: &[Value]| {
            let mut values: Vec<_> = inputs.iter().cloned().map(Value::constant).collect();
            values[which] = leaf[0].clone();
            op(tape, &values)
        };
        let found = gradients(&inputs[which..=which], &alone);
        let off = difference(found[0].as_ref().unwrap(), exact[which].as_ref().unwrap());
        assert!(off < 1e-12, "input {which} alone: off by {off}");
    }
}
