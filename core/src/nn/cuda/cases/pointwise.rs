//! Single numbers: activations, sums, rotations, errors, and what networks are told by.

use candle_core::{DType, Result, Tensor};

use super::{BOTH, Case, SUMS, normals};
use crate::nn::compare::normal;
use crate::nn::loss::{mean_squared_error, mean_squared_error_backward};
use crate::nn::rope::rope_backward;
use crate::nn::{Activation, pointwise, rope, sinusoids};

/// Activations, sums and rotary position embeddings, and their gradients.
pub(crate) fn pointwise_operations() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for activation in [
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
    ] {
        for width in [16, 12, 5] {
            let name = format!("{activation:?} and sums of rows of {width}");
            let inputs = normals([&[2, 7, 3, width], &[2, 7, 3, width]])?;
            cases.push(Case::new(name, inputs, &BOTH, move |k, x| {
                Ok(vec![
                    activation.apply(k, &x[0])?,
                    activation.apply_gated(k, &x[0], &x[1])?,
                    activation.backward(k, &x[0], x[1].copy()?)?,
                    pointwise::add(k, &x[0], &x[1])?,
                    pointwise::mul(k, &x[0], &x[1].transpose(1, 2)?.transpose(1, 2)?)?,
                    pointwise::add(k, &x[0], &x[1].narrow(0, 1, 1)?.narrow(3, 0, 1)?)?,
                    pointwise::mul(k, &x[1].narrow(0, 1, 1)?, &x[0])?,
                    pointwise::sum_to(k, &x[0], &[2, 7, 1, 1])?,
                    pointwise::sum_to(k, &x[0], &[3, width])?,
                    pointwise::add(k, &x[0], &x[1].narrow(0, 1, 1)?.squeeze(0)?)?,
                ])
            }));
        }
    }
    for half in [3, 4, 8] {
        let angles = normal(2, &[7, half])?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let name = format!("rotation of heads of {}", 2 * half);
        let inputs = normals([&[2, 7, 3, 2 * half]])?;
        cases.push(Case::new(name, inputs, &BOTH, move |k, x| {
            let [cos, sin] = [&cos, &sin].map(|table| table.to_device(x[0].device()));
            let (cos, sin) = (cos?, sin?);
            Ok(vec![
                rope(k, &x[0], &cos, &sin)?,
                rope_backward(k, &x[0], &cos, &sin)?,
            ])
        }));
    }
    Ok(cases)
}

/// Errors of predictions, and their gradients.
pub(crate) fn losses() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for row in [1, 5, 20_000] {
        let inputs = normals([&[3, row], &[3, row]])?;
        let name = format!("errors of rows of {row}");
        cases.push(Case::new(name, inputs, &SUMS, |k, x| {
            let weights = Tensor::new(&[0.5f32, 2.0, 1.0], x[0].device())?;
            let mut found = Vec::new();
            for weights in [None, Some(&weights)] {
                let error = mean_squared_error(k, &x[0], &x[1], weights)?;
                // As where it is half of a larger one.
                let outer = (error.ones_like()? * 0.5)?;
                let gradient = mean_squared_error_backward(k, &x[0], &x[1], weights, &outer)?;
                found.extend([error.to_dtype(x[0].dtype())?, gradient]);
            }
            Ok(found)
        }));
    }
    Ok(cases)
}

/// Sinusoids of times and sizes, which are told in f32 whatever the network computes in.
pub(crate) fn told() -> Result<Vec<Case>> {
    let limits = [(DType::F32, 1e-6), (DType::BF16, 6e-3)];
    let inputs = normals([&[1]])?;
    let case = Case::new("sinusoids", inputs, &limits, |k, x| {
        let numbers = Tensor::new(&[0f32, 0.37, 500.5, 1000.0], x[0].device())?;
        Ok(vec![
            sinusoids(k, &numbers, 256, &x[0])?,
            sinusoids(k, &numbers, 6, &x[0])?,
        ])
    });
    Ok(vec![case])
}
