//! Linear layers whose products are in 8-bit floats.

use candle_core::Result;

use super::{Case, IN_FP8, normals};
use crate::nn::Frozen;
use crate::nn::fused::{FusedLinears, Layer};
use crate::nn::linear::{WantedGradients, backward};

/// Single layers with a bias and without, and several of one input, with the gradient towards it.
pub(crate) fn in_fp8() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (m, k, n) in [(1, 16, 16), (3, 64, 48), (77, 128, 336), (130, 96, 80)] {
        for in_both_orders in [false, true] {
            let inputs = normals([&[m, k], &[2, n, k], &[n], &[m, n], &[m, k]])?;
            let order = if in_both_orders { "both orders" } else { "one" };
            let name = format!("product in fp8 of {m} rows, {k} to {n}, in {order}");
            cases.push(Case::new(name, inputs, &IN_FP8, move |kernels, x| {
                let matrix = |i| {
                    let place = (x[0].device(), kernels);
                    Frozen::fp8(&x[1].get(i)?, x[0].dtype(), place, in_both_orders)
                };
                let (first, second) = (matrix(0)?, matrix(1)?);
                let w = first.matrix()?;
                let mut found = vec![
                    w.linear(kernels, &x[0], None)?,
                    w.linear(kernels, &x[0], Some(&x[2]))?,
                ];
                let wanted = WantedGradients {
                    x: true,
                    a: false,
                    b: false,
                };
                for earlier in [None, Some(x[4].copy()?)] {
                    let gradients = backward(kernels, &x[3], &w, None, wanted, earlier)?;
                    found.extend(gradients.into_iter().flatten());
                }
                let layer = |w, b| Layer { w, b };
                let both = vec![layer(first, Some(x[2].clone())), layer(second, None)];
                let (ys, _) = FusedLinears::new(both)?.forward(kernels, &x[0], None)?;
                found.extend(ys);
                Ok(found)
            }));
        }
    }
    Ok(cases)
}
