use candle_core::{DType, Device};

use super::*;

fn wave(count: usize, phase: f32) -> Vec<f32> {
    (0..count)
        .map(|n| (n as f32 * 0.7 + phase).sin() * 3.0 + 10.0)
        .collect()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

/// The textbook formula in f64.
fn oracle(x: &[f32], w: &[f32], b: &[f32], groups: usize, pixels: usize, silu: bool) -> Vec<f64> {
    let channels = w.len() / groups;
    let mut out = Vec::new();
    for (n, group) in x.chunks(channels * pixels).enumerate() {
        let mean = group.iter().map(|&v| f64::from(v)).sum::<f64>() / group.len() as f64;
        let variance = group
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / group.len() as f64;
        for (k, &v) in group.iter().enumerate() {
            let c = n % groups * channels + k / pixels;
            let unit = (f64::from(v) - mean) / (variance + 1e-6).sqrt();
            let y = unit * f64::from(w[c]) + f64::from(b[c]);
            out.push(if silu { y / (1.0 + (-y).exp()) } else { y });
        }
    }
    out
}

#[test]
fn it_equals_the_formula_in_f64_for_every_grouping() {
    let (b, c, h, w) = (2, 6, 5, 7);
    let data = wave(b * c * h * w, 0.3);
    let (gain, bias) = (wave(c, 1.0), wave(c, 2.0));
    let x = Tensor::from_slice(&data, (b, c, h, w), &Device::Cpu).expect("x");
    let gain_t = Tensor::from_slice(&gain, c, &Device::Cpu).expect("gain");
    let bias_t = Tensor::from_slice(&bias, c, &Device::Cpu).expect("bias");
    for groups in [1, 2, 3, 6] {
        for silu in [false, true] {
            let y =
                forward(&Kernels::NONE, &x, &gain_t, &bias_t, groups, 1e-6, silu).expect("ours");
            let slow = composed(&x, &gain_t, &bias_t, groups, 1e-6, silu).expect("composition");
            let expected = oracle(&data, &gain, &bias, groups, h * w, silu);
            for found in [values(&y), values(&slow)] {
                for (y, e) in found.iter().zip(&expected) {
                    assert!(
                        (f64::from(*y) - e).abs() < 2e-4,
                        "{y} for {e}, {groups} groups"
                    );
                }
            }
        }
    }
}

#[test]
fn a_large_offset_does_not_cost_the_variance() {
    let data: Vec<f32> = (0..4096).map(|n| 1000.0 + (n % 2) as f32 * 0.5).collect();
    let x = Tensor::from_vec(data, (1, 1, 64, 64), &Device::Cpu).expect("x");
    let one = Tensor::ones(1, DType::F32, &Device::Cpu).expect("one");
    let zero = one.zeros_like().expect("zero");
    let y = group_norm(&Kernels::NONE, &x, &one, &zero, 1, 0.0).expect("y");
    assert!(values(&y).iter().all(|v| (v.abs() - 1.0).abs() < 1e-5));
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Tensor::zeros((1, 6, 2, 2), DType::F32, &Device::Cpu).expect("x");
    let six = Tensor::zeros(6, DType::F32, &Device::Cpu).expect("six");
    let five = Tensor::zeros(5, DType::F32, &Device::Cpu).expect("five");
    for (gain, groups) in [(&six, 4), (&six, 0), (&five, 3)] {
        assert!(group_norm(&Kernels::NONE, &x, gain, &six, groups, 1e-6).is_err());
    }
}
