use candle_core::Device;

use super::*;
use crate::nn::{Conv2dOptions, Kernels, conv2d_sum};

fn wave(shape: &[usize], phase: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|n| (n as f32 * 1.3 + phase).sin()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).expect("shape")
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

/// Odd and even sides, one pixel, rows of tiles that fill several blocks, and clips that begin.
#[test]
fn it_equals_the_plain_convolution() {
    let (i, o, taps) = (32, 33, 3);
    let (weight, bias) = (wave(&[o, i, taps, 3, 3], 0.1), wave(&[o], 0.2));
    let ours = Winograd::new(&weight, &bias)
        .expect("reads")
        .expect("served");
    for (h, w) in [(1, 1), (2, 2), (5, 7), (3, 270), (21, 33)] {
        let plus = wave(&[1, o, h, w], 4.0);
        let frames: Vec<Tensor> = (0..taps).map(|n| wave(&[1, i, h, w], n as f32)).collect();
        for count in 1..=taps {
            let frames: Vec<&Tensor> = frames.iter().take(count).collect();
            let weights: Vec<Tensor> = (taps - count..taps)
                .map(|tap| weight.narrow(2, tap, 1).and_then(|w| w.squeeze(2)))
                .collect::<Result<_>>()
                .expect("weights");
            let terms: Vec<_> = frames.iter().copied().zip(&weights).collect();
            let plain = conv2d_sum(&Kernels::NONE, &terms, Some(&bias), Conv2dOptions::SAME);
            let plain = plain.expect("plain");
            let found = ours.forward(&frames, None).expect("ours");
            let plain = values(&plain);
            let largest = plain.iter().fold(0f32, |most, v| most.max(v.abs()));
            // Of up to 864 products of numbers up to 1, which partly cancel out; a tile's numbers are rounded together.
            let rounded = 4e-5 + 2e-6 * largest;
            for (f, e) in values(&found).iter().zip(plain) {
                assert!((f - e).abs() < rounded, "{f} for {e}, {count} of {w} x {h}");
            }
            let added = ours.forward(&frames, Some(&plus)).expect("ours");
            assert_eq!(values(&added), values(&(found + &plus).expect("sum")));
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (weight, bias) = (wave(&[32, 32, 1, 3, 3], 0.1), wave(&[32], 0.2));
    let ours = Winograd::new(&weight, &bias)
        .expect("reads")
        .expect("served");
    let x = wave(&[1, 32, 50, 60], 0.0);
    let by = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().expect("threads");
        values(&pool.install(|| ours.forward(&[&x], None)).expect("ours"))
    };
    assert_eq!(by(1), by(3));
}

#[test]
fn what_it_does_not_serve_or_fit_is_told() {
    let few = Winograd::new(&wave(&[32, 3, 1, 3, 3], 0.0), &wave(&[32], 0.0)).expect("reads");
    assert!(few.is_none(), "three channels");
    let pointwise = Winograd::new(&wave(&[32, 32, 3, 1, 1], 0.0), &wave(&[32], 0.0));
    assert!(pointwise.expect("reads").is_none(), "no window");
    let ours = Winograd::new(&wave(&[32, 32, 1, 3, 3], 0.0), &wave(&[32], 0.0));
    let ours = ours.expect("reads").expect("served");
    ours.forward(&[], None).expect_err("no frame");
    ours.forward(&[&wave(&[1, 33, 2, 2], 0.0)], None)
        .expect_err("33 channels");
    let plus = wave(&[1, 32, 2, 3], 0.0);
    ours.forward(&[&wave(&[1, 32, 2, 2], 0.0)], Some(&plus))
        .expect_err("another width");
}
