//! The kernels against plain tensor operations in f64, and the promises about rows and threads.

use candle_core::{DType, Result, Tensor};

use super::testing::{composed, difference, normal};
use super::*;

const NONE: Kernels = Kernels::NONE;

fn f32_of(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F32).unwrap()
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    a.dims() == b.dims() && flat(a) == flat(b)
}

/// `op` on f64 against `oracle`, then on f32, for inputs in order and with strides.
fn check(
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    oracle: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let want = oracle(inputs).unwrap();
    let strided: Vec<_> = inputs
        .iter()
        .map(|t| {
            let last = t.rank() - 1;
            let twin = Tensor::stack(&[t, t], t.rank()).unwrap();
            twin.narrow(last + 1, 0, 1)
                .unwrap()
                .squeeze(last + 1)
                .unwrap()
        })
        .collect();
    let single = |inputs: &[Tensor]| inputs.iter().map(f32_of).collect::<Vec<_>>();
    for inputs in [inputs, &strided] {
        let wide = difference(&op(inputs).unwrap(), &want);
        assert!(wide < 1e-12, "f64 is off by {wide}");
        let narrow = difference(&op(&single(inputs)).unwrap(), &want);
        assert!(narrow < 2e-6, "f32 is off by {narrow}");
    }
}

#[test]
fn linear_is_a_product_and_a_bias() {
    for (lead, inner, out) in [
        (vec![1], 1, 1),
        (vec![2, 3], 5, 7),
        (vec![3, 1, 5], 130, 65),
    ] {
        let x = normal(1, &[lead.clone(), vec![inner]].concat());
        let (w, b) = (normal(2, &[out, inner]), normal(3, &[out]));
        check(
            &[x, w, b],
            |t| linear(&NONE, &t[0], &t[1], Some(&t[2])),
            |t| t[0].broadcast_matmul(&t[1].t()?)?.broadcast_add(&t[2]),
        );
    }
    let x = normal(1, &[2, 3]);
    assert!(linear(&NONE, &x, &normal(2, &[4, 5]), None).is_err());
    assert!(linear(&NONE, &x, &normal(2, &[4, 3]), Some(&normal(3, &[3]))).is_err());
}

#[test]
fn norms_equal_their_formulas() {
    for shape in [vec![1, 1], vec![3, 5], vec![2, 3, 129]] {
        let n = *shape.last().unwrap();
        let inputs = [normal(1, &shape), normal(2, &[n]), normal(3, &[n])];
        check(
            &inputs,
            |t| layer_norm(&NONE, &t[0], Some(&t[1]), Some(&t[2]), 1e-5),
            |t| composed(|| layer_norm(&NONE, &t[0], Some(&t[1]), Some(&t[2]), 1e-5)),
        );
        check(
            &inputs[..2],
            |t| rms_norm(&NONE, &t[0], Some(&t[1]), 1e-6),
            |t| composed(|| rms_norm(&NONE, &t[0], Some(&t[1]), 1e-6)),
        );
        check(
            &inputs[..1],
            |t| layer_norm(&NONE, &t[0], None, None, 1e-6),
            |t| composed(|| layer_norm(&NONE, &t[0], None, None, 1e-6)),
        );
    }
    assert!(
        layer_norm(
            &NONE,
            &normal(1, &[2, 3]),
            Some(&normal(1, &[4])),
            None,
            1e-5
        )
        .is_err()
    );
    assert!(rms_norm(&NONE, &normal(1, &[2, 0]), None, 1e-5).is_err());
}

#[test]
fn a_large_mean_costs_layer_norm_no_digits() {
    let x = (normal(1, &[4, 256]) + 1000.0).unwrap();
    let x = f32_of(&x).to_dtype(DType::F64).unwrap();
    let want = composed(|| layer_norm(&NONE, &x, None, None, 1e-6)).unwrap();
    let found = layer_norm(&NONE, &f32_of(&x), None, None, 1e-6).unwrap();
    assert!(
        difference(&found, &want) < 2e-5,
        "{}",
        difference(&found, &want)
    );
}

#[test]
fn activations_equal_their_formulas() {
    let all = [
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
    ];
    for activation in all {
        let inputs = [(normal(1, &[3, 701]) * 3.0).unwrap(), normal(2, &[3, 701])];
        check(
            &inputs[..1],
            |t| activation.apply(&NONE, &t[0]),
            |t| activation.composed(&t[0]),
        );
        check(
            &inputs,
            |t| activation.apply_gated(&NONE, &t[0], &t[1]),
            |t| activation.composed(&t[0])? * &t[1],
        );
        check(
            &inputs,
            |t| activation.backward(&NONE, &t[0], t[1].copy()?.contiguous()?),
            |t| activation.composed_slope(&t[0])? * &t[1],
        );
    }
}

fn attention_inputs(b: usize, n: usize, m: usize, h: usize, d: usize, e: usize) -> [Tensor; 4] {
    let q = normal(1, &[b, n, h, d]);
    [
        q,
        normal(2, &[b, m, h, d]),
        normal(3, &[b, m, h, e]),
        normal(4, &[1, h, n, m]),
    ]
}

#[test]
fn attention_equals_its_formula() {
    for (b, n, m, h, d, e) in [
        (1, 1, 1, 1, 1, 1),
        (2, 5, 7, 3, 4, 6),
        (2, 70, 131, 2, 8, 8),
    ] {
        let inputs = attention_inputs(b, n, m, h, d, e);
        let mut masks = vec![AttentionMask::None, AttentionMask::Causal];
        masks.push(AttentionMask::KeyCounts(
            (0..b).map(|i| m - i * m / 3).collect(),
        ));
        for mask in &masks {
            for with_bias in [false, true] {
                let bias = |t: &[Tensor]| with_bias.then(|| t[3].clone());
                check(
                    &inputs,
                    |t| attention(&NONE, &t[0], &t[1], &t[2], 0.4, bias(t).as_ref(), mask),
                    |t| {
                        composed(|| {
                            attention(&NONE, &t[0], &t[1], &t[2], 0.4, bias(t).as_ref(), mask)
                        })
                    },
                );
            }
        }
    }
}

#[test]
fn attention_reads_heads_inside_a_joint_projection() {
    let (b, n, h, d) = (2, 9, 3, 4);
    let qkv = f32_of(&normal(1, &[b, n, 3, h, d]));
    let part = |i| qkv.narrow(2, i, 1).unwrap().squeeze(2).unwrap();
    let copied = |i| part(i).contiguous().unwrap();
    let mask = AttentionMask::None;
    let inside = attention(&NONE, &part(0), &part(1), &part(2), 0.5, None, &mask).unwrap();
    let apart = attention(&NONE, &copied(0), &copied(1), &copied(2), 0.5, None, &mask).unwrap();
    assert!(same(&inside, &apart));
}

#[test]
fn misfits_are_errors() {
    let [q, k, v, bias] = attention_inputs(2, 5, 4, 3, 4, 4);
    let run = |bias: Option<&Tensor>, mask| attention(&NONE, &q, &k, &v, 1.0, bias, &mask);
    assert!(run(None, AttentionMask::Causal).is_err());
    assert!(run(None, AttentionMask::KeyCounts(vec![1])).is_err());
    assert!(run(None, AttentionMask::KeyCounts(vec![1, 0])).is_err());
    assert!(run(None, AttentionMask::KeyCounts(vec![1, 5])).is_err());
    assert!(run(Some(&bias.narrow(1, 0, 2).unwrap()), AttentionMask::None).is_err());
    assert!(
        attention(
            &NONE,
            &q,
            &v,
            &k.narrow(1, 0, 3).unwrap(),
            1.0,
            None,
            &AttentionMask::None
        )
        .is_err()
    );
    assert!(Activation::Silu.apply(&NONE, &f32_of(&q)).is_ok());
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() {
    let (b, n, m, h, d) = (3, 70, 77, 2, 16);
    let [q, k, v, bias] = attention_inputs(b, n, m, h, d, d).map(|t| f32_of(&t));
    let counts = [20, 77, 3];
    let mask = AttentionMask::KeyCounts(counts.to_vec());
    let all = attention(&NONE, &q, &k, &v, 0.25, None, &mask).unwrap();
    for (row, &count) in counts.iter().enumerate() {
        let at = |t: &Tensor| t.narrow(0, row, 1).unwrap();
        let seen = |t: &Tensor| at(t).narrow(1, 0, count).unwrap();
        let alone = attention(
            &NONE,
            &at(&q),
            &seen(&k),
            &seen(&v),
            0.25,
            None,
            &AttentionMask::None,
        );
        assert!(same(&alone.unwrap(), &at(&all)), "key counts, row {row}");
    }
    let mask = AttentionMask::None;
    let all = attention(&NONE, &q, &k, &v, 0.25, Some(&bias), &mask).unwrap();
    let x = f32_of(&normal(7, &[b, n, 640]));
    let (w, bias_n) = (f32_of(&normal(8, &[48, 640])), f32_of(&normal(9, &[48])));
    let y = linear(&NONE, &x, &w, Some(&bias_n)).unwrap();
    for row in 0..b {
        let at = |t: &Tensor| t.narrow(0, row, 1).unwrap();
        let alone = attention(&NONE, &at(&q), &at(&k), &at(&v), 0.25, Some(&bias), &mask).unwrap();
        assert!(same(&alone, &at(&all)), "bias, row {row}");
        assert!(
            same(&linear(&NONE, &at(&x), &w, Some(&bias_n)).unwrap(), &at(&y)),
            "linear, row {row}"
        );
        let one = at(&x).narrow(1, 3, 1).unwrap();
        let want = at(&y).narrow(1, 3, 1).unwrap();
        assert!(
            same(&linear(&NONE, &one, &w, Some(&bias_n)).unwrap(), &want),
            "one token, row {row}"
        );
    }
}

#[test]
fn a_causal_row_does_not_depend_on_what_follows() {
    let [q, k, v, _] = attention_inputs(1, 77, 77, 2, 8, 8).map(|t| f32_of(&t));
    let all = attention(&NONE, &q, &k, &v, 0.3, None, &AttentionMask::Causal).unwrap();
    let cut = |t: &Tensor| t.narrow(1, 0, 30).unwrap();
    let mask = AttentionMask::Causal;
    let some = attention(&NONE, &cut(&q), &cut(&k), &cut(&v), 0.3, None, &mask).unwrap();
    assert!(difference(&some, &cut(&all)) < 1e-6);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let [q, k, v, bias] = attention_inputs(2, 133, 90, 3, 16, 16).map(|t| f32_of(&t));
    let x = f32_of(&normal(5, &[7, 33, 500]));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mask = AttentionMask::None;
            let a = attention(&NONE, &q, &k, &v, 0.3, Some(&bias), &mask).unwrap();
            (
                a,
                Activation::GeluErf
                    .apply(&NONE, &layer_norm(&NONE, &x, None, None, 1e-5).unwrap())
                    .unwrap(),
            )
        })
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        let many = run(threads);
        assert!(
            same(&one.0, &many.0) && same(&one.1, &many.1),
            "{threads} threads"
        );
    }
}
