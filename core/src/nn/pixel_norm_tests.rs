use candle_core::Device;

use super::*;

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

/// More pixels than a thread takes at a time, one of them all zeros.
#[test]
fn it_equals_the_formula_in_f64() {
    let (b, c, h, w) = (2, 6, 23, 29);
    let mut data: Vec<f32> = (0..b * c * h * w)
        .map(|n| (n as f32 * 0.7).sin() * 3.0 + 1.0)
        .collect();
    for channel in 0..c {
        data[channel * h * w + 5] = 0.0;
    }
    let gain: Vec<f32> = (0..c).map(|n| (n as f32 * 1.7).cos()).collect();
    let x = Tensor::from_slice(&data, (b, c, h, w), &Device::Cpu).expect("x");
    let gain_t = Tensor::from_slice(&gain, c, &Device::Cpu).expect("gain");
    for silu in [false, true] {
        let ours = forward(&Kernels::NONE, &x, &gain_t, silu).expect("ours");
        let slow = composed(&x, &gain_t, silu).expect("composition");
        for found in [values(&ours), values(&slow)] {
            for (n, y) in found.iter().enumerate() {
                let (picture, channel, pixel) = (n / (c * h * w), n / (h * w) % c, n % (h * w));
                let of = |k: usize| f64::from(data[(picture * c + k) * h * w + pixel]);
                let length = (0..c).map(|k| of(k) * of(k)).sum::<f64>().sqrt().max(EPS);
                let e = of(channel) / length * (c as f64).sqrt() * f64::from(gain[channel]);
                let e = if silu { e / (1.0 + (-e).exp()) } else { e };
                assert!((f64::from(*y) - e).abs() < 2e-6, "{y} for {e} at {n}");
            }
        }
    }
}

#[test]
fn a_gain_of_other_channels_is_refused() {
    let x = Tensor::zeros((1, 3, 2, 2), DType::F32, &Device::Cpu).expect("x");
    let gain = Tensor::zeros(2, DType::F32, &Device::Cpu).expect("gain");
    let error = pixel_norm(&Kernels::NONE, &x, &gain).expect_err("two gains for three channels");
    assert!(error.to_string().contains("does not fit"), "{error}");
}
