//! Cases of attention, by own kernels or cuDNN.

use candle_core::{DType, Result, Tensor};

use super::{Case, Limit, normals};
use crate::nn::AttentionMask;
use crate::nn::attention::{Parts, attention, joint_attention, joint_attention_backward};

const RESULTS: [Limit; 1] = [(DType::BF16, 6e-3)];
const GRADIENTS: [Limit; 1] = [(DType::BF16, 2e-2)];
/// Where two keys are seen. Then a score's gradient is a difference of nearly the same numbers, one of which comes of the rounded results; with
/// weights rounded as well, as cuDNN has them, it is off by up to 3e-2.
const GRADIENTS_OF_TWO: [Limit; 1] = [(DType::BF16, 5e-2)];

/// Attention forward, at every width and length, with masks and biases.
pub(crate) fn attentions() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for width in (16..=128).step_by(16) {
        for (queries, keys) in [(1, 1), (63, 65), (130, 64), (64, 200)] {
            let name = format!("attention of {queries} queries to {keys} keys, heads of {width}");
            let [q, k] = [queries, keys].map(|tokens| [2, tokens, 3, width]);
            let biases = [1, 2].map(|batch| [batch, 3, queries, keys]);
            let inputs = normals([&q, &k, &k, &biases[0], &biases[1]])?;
            let scale = 1.0 / (width as f64).sqrt();
            cases.push(Case::new(name, inputs, &RESULTS, move |kernels, x| {
                let attend =
                    |bias, mask| attention(kernels, &x[0], &x[1], &x[2], scale, bias, &mask);
                let counts = |first, second| AttentionMask::KeyCounts(vec![first, second]);
                let mut found = vec![
                    attend(None, AttentionMask::None)?,
                    attend(None, counts(keys, keys.div_ceil(3)))?,
                    attend(Some(&x[3]), counts(keys.div_ceil(2), keys))?,
                    attend(Some(&x[4]), counts(keys.div_ceil(2), keys))?,
                ];
                if queries <= keys {
                    found.push(attend(None, AttentionMask::Causal)?);
                }
                Ok(found)
            }));
        }
    }
    Ok(cases)
}

/// Scores so large that only differences of them can be raised to a power.
pub(crate) fn large_scores() -> Result<Vec<Case>> {
    let mut inputs = normals([&[1, 70, 1, 64], &[1, 90, 1, 64], &[1, 90, 1, 64]])?;
    for large in &mut inputs[..2] {
        *large = (&*large * 30.0)?;
    }
    let name = "attention of large scores";
    Ok(vec![Case::new(name, inputs, &RESULTS, |k, x| {
        let mask = AttentionMask::None;
        Ok(vec![attention(k, &x[0], &x[1], &x[2], 1.0, None, &mask)?])
    })])
}

/// Attention and its gradients, of tokens in two parts and of keys that not every row of the batch sees.
pub(crate) fn attention_gradients() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for width in (16..=128).step_by(16) {
        for lengths in [(1, 3), (65, 64), (7, 150)] {
            let all = lengths.0 + lengths.1;
            let parts = [lengths.0, lengths.1].map(|n| [2, n, 2, width]);
            let results = [lengths.0, lengths.1].map(|n| [2, n, 2 * width]);
            let ([a, b], [c, d]) = (&parts, &results);
            let inputs = normals([a, a, a, b, b, b, c, d])?;
            for (masked, mask) in [
                ("", AttentionMask::None),
                (
                    ", some seen by one row",
                    AttentionMask::KeyCounts(vec![all, 1]),
                ),
                (
                    ", some seen by none",
                    AttentionMask::KeyCounts(vec![all.div_ceil(2), all.div_ceil(3)]),
                ),
            ] {
                let name =
                    format!("gradients of attention to {all} keys{masked}, heads of {width}");
                let inputs = inputs.clone();
                let limits = match all {
                    ..=4 => &GRADIENTS_OF_TWO,
                    _ => &GRADIENTS,
                };
                cases.push(Case::new(name, inputs, limits, move |k, x| {
                    // Tokens in two parts have no mask.
                    let given = |first: usize, second: usize| -> Result<_> {
                        match mask {
                            AttentionMask::None => Ok(vec![x[first].clone(), x[second].clone()]),
                            _ => Ok(vec![Tensor::cat(&[&x[first], &x[second]], 1)?]),
                        }
                    };
                    let parts = Parts {
                        q: given(0, 3)?,
                        k: given(1, 4)?,
                        v: given(2, 5)?,
                    };
                    let gradients = given(6, 7)?;
                    let (outs, kept) = joint_attention(k, &parts, 0.2, None, &mask)?;
                    let found =
                        joint_attention_backward(k, &parts, 0.2, None, &mask, &kept, &gradients)?;
                    Ok([outs, found.q, found.k, found.v].concat())
                }));
            }
        }
    }
    Ok(cases)
}
