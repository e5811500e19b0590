use candle_core::Device;

use super::*;

fn wave(shape: &[usize], phase: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|n| (n as f32 * 1.3 + phase).sin()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).expect("shape")
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

/// The definition, in f64, one product after the other.
fn oracle(x: &Tensor, weight: &Tensor, bias: &Tensor, options: Conv2dOptions) -> Vec<f64> {
    let x = if options.upsample {
        upsample_nearest_2x(&Kernels::NONE, x).expect("up")
    } else {
        x.clone()
    };
    let (b, i, h, w) = x.dims4().expect("x");
    let (o, _, kh, kw) = weight.dims4().expect("weight");
    let (x, weight, bias) = (values(&x), values(weight), values(bias));
    let p = options.padding;
    let out_h = (h + p.top + p.bottom - kh) / options.stride + 1;
    let out_w = (w + p.left + p.right - kw) / options.stride + 1;
    let mut out = Vec::new();
    for (n, o, y, column) in (0..b * o * out_h * out_w).map(|k| {
        (
            k / (o * out_h * out_w),
            k / (out_h * out_w) % o,
            k / out_w % out_h,
            k % out_w,
        )
    }) {
        let mut sum = f64::from(bias[o]);
        for (c, ky, kx) in (0..i * kh * kw).map(|k| (k / (kh * kw), k / kw % kh, k % kw)) {
            let (sy, sx) = (y * options.stride + ky, column * options.stride + kx);
            if sy >= p.top && sy - p.top < h && sx >= p.left && sx - p.left < w {
                let pixel = x[((n * i + c) * h + sy - p.top) * w + sx - p.left];
                sum += f64::from(pixel) * f64::from(weight[((o * i + c) * kh + ky) * kw + kx]);
            }
        }
        out.push(sum);
    }
    out
}

#[test]
fn it_equals_the_definition_for_every_kernel_stride_padding_and_size() {
    let odd = Conv2dOptions {
        stride: 2,
        padding: Padding {
            top: 2,
            bottom: 0,
            left: 1,
            right: 3,
        },
        upsample: false,
    };
    let wide_stride = Conv2dOptions {
        stride: 3,
        ..Conv2dOptions::SAME
    };
    for (h, w) in [(1, 1), (1, 9), (5, 3), (16, 33), (40, 24)] {
        for (i, o) in [(1, 1), (3, 8), (70, 5)] {
            for (k, options) in [
                (1, Conv2dOptions::POINTWISE),
                (3, Conv2dOptions::SAME),
                (3, Conv2dOptions::HALVE),
                (3, Conv2dOptions::DOUBLE),
                (3, odd),
                (3, wide_stride),
                (2, Conv2dOptions::HALVE),
            ] {
                let x = wave(&[2, i, h, w], 0.1);
                let (weight, bias) = (wave(&[o, i, k, k], 0.2), wave(&[o], 0.3));
                let fits = h + options.padding.top + options.padding.bottom >= k
                    && w + options.padding.left + options.padding.right >= k;
                let y = conv2d(&Kernels::NONE, &x, &weight, Some(&bias), options);
                assert_eq!(y.is_ok(), fits, "{h} x {w}, kernel {k}, {options:?}");
                let Ok(y) = y else { continue };
                let y = values(&y);
                let expected = oracle(&x, &weight, &bias, options);
                assert_eq!(y.len(), expected.len());
                for (y, e) in y.iter().zip(expected) {
                    let bound = 1e-5 * (i * k * k) as f64;
                    assert!(
                        (f64::from(*y) - e).abs() < bound,
                        "{y} for {e}: {h} x {w}, {options:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_picture_in_a_batch_equals_the_picture_alone_bit_for_bit() {
    let x = wave(&[3, 70, 30, 40], 0.5);
    let (weight, bias) = (wave(&[9, 70, 3, 3], 0.2), wave(&[9], 0.3));
    for options in [
        Conv2dOptions::SAME,
        Conv2dOptions::HALVE,
        Conv2dOptions::DOUBLE,
    ] {
        let all = conv2d(&Kernels::NONE, &x, &weight, Some(&bias), options).expect("batch");
        for n in 0..3 {
            let one = x.narrow(0, n, 1).expect("row");
            let alone = conv2d(&Kernels::NONE, &one, &weight, Some(&bias), options).expect("alone");
            assert_eq!(values(&all.narrow(0, n, 1).expect("row")), values(&alone));
        }
    }
}

#[test]
fn the_composition_used_elsewhere_computes_the_same() {
    let (x, weight, bias) = (
        wave(&[1, 4, 6, 5], 0.5),
        wave(&[3, 4, 3, 3], 0.2),
        wave(&[3], 0.3),
    );
    for options in [
        Conv2dOptions::SAME,
        Conv2dOptions::HALVE,
        Conv2dOptions::DOUBLE,
    ] {
        let slow = composed(&x, &weight, Some(&bias), options).expect("composition");
        let fast = conv2d(&Kernels::NONE, &x, &weight, Some(&bias), options).expect("fast");
        assert_eq!(slow.dims(), fast.dims());
        for (s, f) in values(&slow).iter().zip(values(&fast)) {
            assert!((s - f).abs() < 1e-5, "{f} for {s}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (x, weight) = (wave(&[1, 70, 40, 50], 0.5), wave(&[9, 70, 3, 3], 0.2));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("pool");
        values(
            &pool
                .install(|| conv2d(&Kernels::NONE, &x, &weight, None, Conv2dOptions::SAME))
                .expect("conv"),
        )
    };
    let one = with(1);
    for threads in [2, 3, 8] {
        assert!(with(threads) == one, "{threads} threads");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, weight, bias) = (
        wave(&[1, 4, 6, 5], 0.0),
        wave(&[3, 4, 3, 3], 0.0),
        wave(&[3], 0.0),
    );
    let zero = Conv2dOptions {
        stride: 0,
        ..Conv2dOptions::SAME
    };
    assert!(conv2d(&Kernels::NONE, &x, &weight, Some(&bias), zero).is_err());
    assert!(
        conv2d(
            &Kernels::NONE,
            &x,
            &wave(&[3, 5, 3, 3], 0.0),
            None,
            Conv2dOptions::SAME
        )
        .is_err()
    );
    assert!(
        conv2d(
            &Kernels::NONE,
            &x,
            &weight,
            Some(&wave(&[4], 0.0)),
            Conv2dOptions::SAME
        )
        .is_err()
    );
    assert!(
        conv2d(
            &Kernels::NONE,
            &x,
            &wave(&[3, 4, 9, 9], 0.0),
            None,
            Conv2dOptions::SAME
        )
        .is_err()
    );
}

#[test]
fn a_strip_of_rows_after_the_other_makes_the_same_picture() {
    let (x, weight) = (wave(&[2, 3, 11, 7], 0.0), wave(&[4, 3, 3, 2], 1.0));
    for stride in [1, 2, 3] {
        let whole = values(&in_strips(&x, &weight, stride, usize::MAX).expect("whole"));
        for strip_bytes in [0, 2000, 3000, 7000] {
            let strips = in_strips(&x, &weight, stride, strip_bytes).expect("strips");
            for (a, b) in values(&strips).iter().zip(&whole) {
                assert!((a - b).abs() < 1e-5, "stride {stride}: {a} {b}");
            }
        }
    }
}
