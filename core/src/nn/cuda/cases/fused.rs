//! Linear layers of one input with their adapters, and how the numbers of adapters are laid together.

use candle_core::{DType, Result, Tensor};

use super::{Case, EXACT, normals, single};
use crate::nn::Packed;
use crate::nn::flat::gather;
use crate::nn::fused::{FusedLinears, Layer, SeenByAdapters, StackedAdapters};
use crate::nn::linear::{LowRank, with_gelu};

/// Three layers, of which the first and the last carry adapters of two ranks, with biases and without, and all their gradients.
pub(crate) fn fused() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (m, k, n, ranks) in [
        (3, 64, 24, [4, 8]),
        (77, 128, 320, [16, 16]),
        (5, 7, 9, [3, 1]),
    ] {
        let mut inputs = normals([
            &[m, k],
            &[3, n, k],
            &[3, n],
            &[ranks[0] + ranks[1], k],
            &[n, ranks[0]],
            &[n, ranks[1]],
            &[3, m, n],
            &[m, k],
        ])?;
        for weight in [1, 3, 4, 5] {
            inputs[weight] = (&inputs[weight] * 0.2)?;
        }
        for bias in [false, true] {
            let with = if bias { "with" } else { "without" };
            let name = format!("fused linear layers of {m} rows, {k} to {n}, {with} biases");
            let limits = [(DType::F32, 1e-5), (DType::BF16, 2e-2)];
            cases.push(Case::new(name, inputs.clone(), &limits, move |k, x| {
                let layer = |i| {
                    Ok::<_, candle_core::Error>(Layer {
                        w: x[1].get(i)?.into(),
                        b: bias.then(|| x[2].get(i)).transpose()?,
                    })
                };
                let layers = FusedLinears::new(vec![layer(0)?, layer(1)?, layer(2)?])?;
                let adapter = |start, rank, b: &Tensor| {
                    Ok::<_, candle_core::Error>(LowRank {
                        a: x[3].narrow(0, start, rank)?,
                        b: b.clone(),
                        scale: 0.5,
                        mask: None,
                    })
                };
                let each = [
                    Some(adapter(0, ranks[0], &x[4])?),
                    None,
                    Some(adapter(ranks[0], ranks[1], &x[5])?),
                ];
                let mut found = Vec::new();
                for (stacked, earlier) in [(None, None), (Some(x[3].clone()), Some(x[7].copy()?))] {
                    let adapters = StackedAdapters::new(&each, stacked)?;
                    let (ys, down) = layers.forward(k, &x[0], adapters.as_ref())?;
                    let kept = down.as_ref().map(|down| (&x[0], down));
                    // The loss does not depend on the first, the second time.
                    let first = earlier.is_none().then(|| x[6].get(0)).transpose()?;
                    let gradients = vec![first, Some(x[6].get(1)?), Some(x[6].get(2)?)];
                    let seen =
                        (adapters.as_ref()).map(|adapters| SeenByAdapters { adapters, kept });
                    let gradients = layers.backward(k, gradients, seen, true, earlier)?;
                    let of_adapters = gradients.adapters.iter().flatten().flatten();
                    for t in ys
                        .iter()
                        .chain(&down)
                        .chain(&gradients.x)
                        .chain(of_adapters)
                    {
                        // Those of adapters are f32 in any case.
                        found.push(t.to_dtype(x[0].dtype())?);
                    }
                }
                Ok(found)
            }));
        }
    }
    Ok(cases)
}

/// A linear layer with GELU behind it, with an adapter and without.
pub(crate) fn with_gelus() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (m, k, n, rank) in [(3, 64, 24, 4), (77, 128, 320, 16), (5, 7, 9, 3)] {
        let mut inputs = normals([&[m, k], &[n, k], &[n], &[rank, k], &[n, rank]])?;
        for weight in [1, 3, 4] {
            inputs[weight] = (&inputs[weight] * 0.2)?;
        }
        let name = format!("linear layer with GELU, {m} rows, {k} to {n}");
        let limits = [(DType::F32, 1e-5), (DType::BF16, 2e-2)];
        cases.push(Case::new(name, inputs, &limits, |kernels, x| {
            let adapter = LowRank {
                a: x[3].clone(),
                b: x[4].clone(),
                scale: 0.5,
                mask: None,
            };
            let (weight, bias) = (Packed::whole(&x[1])?, Some(&x[2]));
            let mut found = Vec::new();
            for adapter in [None, Some(&adapter)] {
                let (y, before, down) = with_gelu(kernels, &x[0], &weight, bias, adapter)?;
                found.extend([y, before].into_iter().chain(down));
            }
            Ok(found)
        }));
    }
    Ok(cases)
}

/// Parts of a flat tensor, one behind the other.
pub(crate) fn gathered() -> Result<Vec<Case>> {
    let inputs = normals([&[5000]])?;
    let case = Case::new("parts of a flat tensor", inputs, &EXACT, |k, x| {
        let x = single(&x[0])?;
        let ranges = [3000..5000, 7..8, 0..1025, 9..9];
        let rounded = gather(k, &x, &ranges, DType::BF16)?;
        Ok(vec![gather(k, &x, &ranges, DType::F32)?, single(&rounded)?])
    });
    Ok(vec![case])
}
