use candle_core::{DType, Device, Tensor};

use super::*;

fn rows(values: &[[f32; 2]]) -> Tensor {
    let flat: Vec<f32> = values.iter().flatten().copied().collect();
    Tensor::from_vec(flat, (values.len(), 2), &Device::Cpu).expect("a tensor")
}

fn output(values: &[[f32; 2]], token_count: usize, pooled: Option<[f32; 2]>) -> EncoderOutput {
    EncoderOutput {
        hidden: Some(rows(values)),
        pooled: pooled.map(|p| Tensor::from_slice(&p, 2, &Device::Cpu).expect("a tensor")),
        token_count,
    }
}

#[test]
fn true_tokens_pads_and_pooled_are_told_apart() {
    let first = output(&[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], 2, Some([1.0, 1.0]));
    let second = output(&[[1.0, 0.0], [0.0, 2.5], [-3.0, 3.0]], 2, Some([1.0, 1.0]));
    let found = compare_outputs((&first, None), (&second, None)).expect("compared");
    let hidden = found.hidden.both().expect("both have one");
    assert!(hidden.tokens.rows[0].difference.equal);
    assert_eq!(hidden.tokens.max_abs(), Some(0.5));
    assert_eq!(hidden.tokens.min_cosine(), Some(1.0));
    assert_eq!(hidden.tokens.relative(), Some(0.5 / 5f64.sqrt()));
    assert_eq!(hidden.pads.max_abs(), Some(6.0));
    assert_eq!(hidden.pads.mean_cosine(), Some(0.0));
    assert!(found.pooled.both().expect("both").equal);
    assert!(!found.equal());
    let same = compare_outputs((&first, None), (&first, None)).expect("compared");
    assert!(same.equal());
}

#[test]
fn a_cut_captions_end_is_compared_with_the_other_end() {
    // BOS a b EOS against BOS a b c EOS pad.
    let first = output(&[[1.0, 0.0]; 4], 4, None);
    let mut values = [[1.0, 0.0]; 6];
    values[3] = [9.0, 9.0];
    let second = output(&values, 5, None);
    let ids: [&[u32]; 2] = [&[8, 1, 2, 9], &[8, 1, 2, 3, 9, 0]];
    let found = compare_outputs((&first, Some(ids[0])), (&second, Some(ids[1]))).expect("compared");
    let hidden = found.hidden.both().expect("both");
    assert_eq!(hidden.tokens.only_second, [3]);
    assert_eq!(hidden.tokens.rows[3].rows, [3, 4]);
    assert_eq!(hidden.tokens.max_abs(), Some(0.0));
    assert_eq!(hidden.pads.only_second, [5]);
    assert!(!found.equal(), "a row of one side alone is a difference");
}

#[test]
fn rows_without_pads_on_one_side_are_said() {
    let first = output(&[[1.0, 0.0]; 2], 2, None);
    let second = output(&[[1.0, 0.0]; 5], 2, None);
    let found = compare_outputs((&first, None), (&second, None)).expect("compared");
    let hidden = found.hidden.both().expect("both");
    assert_eq!(hidden.pads.only_second, [2, 3, 4]);
    assert!(hidden.tokens.equal() && !found.equal());
}

#[test]
fn what_cannot_be_compared_has_no_number() {
    let zeros = output(&[[0.0, 0.0]], 1, None);
    let ones = output(&[[1.0, 1.0]], 1, Some([1.0, f32::NAN]));
    let found = compare_outputs((&zeros, None), (&ones, None)).expect("compared");
    let row = found.hidden.both().expect("both").tokens.rows[0].difference;
    assert_eq!((row.cosine, row.max_abs), (None, Some(1.0)));
    assert_eq!(found.pooled, Compared::OnlySecond);
    let found = compare_outputs((&ones, None), (&ones, None)).expect("compared");
    let pooled = found.pooled.both().expect("both");
    assert_eq!(
        (pooled.cosine, pooled.max_abs, pooled.non_finite),
        (None, None, 2)
    );
    assert!(!pooled.equal && !found.equal());
    let wide = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).expect("a tensor");
    let wide = EncoderOutput {
        hidden: Some(wide),
        ..zeros.clone()
    };
    let found = compare_outputs((&zeros, None), (&wide, None)).expect("compared");
    assert_eq!(found.hidden, Compared::Widths(2, 3));
}

#[test]
fn stored_types_are_compared_as_numbers() {
    let half = |dtype| EncoderOutput {
        hidden: Some(rows(&[[0.5, -2.0]]).to_dtype(dtype).expect("a type")),
        pooled: None,
        token_count: 1,
    };
    let found = compare_outputs((&half(DType::F16), None), (&half(DType::BF16), None));
    assert!(found.expect("compared").equal());
}

#[test]
fn tokens_are_aligned_by_what_they_share() {
    let pairs = |a: &[u32], b: &[u32]| -> Vec<([usize; 2], bool)> {
        let alignment = align(a, b);
        let counted =
            alignment.pairs.len() * 2 + alignment.only_first.len() + alignment.only_second.len();
        assert_eq!(counted, a.len() + b.len(), "each row once");
        let pairs = alignment.pairs.into_iter();
        pairs
            .map(|p| (p.rows, p.same_token == Some(true)))
            .collect()
    };
    // A word put in, a word replaced, nothing shared, nothing there.
    assert_eq!(
        pairs(&[1, 2, 3], &[1, 7, 2, 3]),
        [([0, 0], true), ([1, 2], true), ([2, 3], true)]
    );
    assert_eq!(
        pairs(&[1, 2, 3], &[1, 7, 3]),
        [([0, 0], true), ([1, 1], false), ([2, 2], true)]
    );
    assert_eq!(pairs(&[1, 2], &[3]), [([0, 0], false)]);
    assert_eq!(pairs(&[], &[3]), []);
    // Too long for a table: by place.
    let (a, b): (Vec<u32>, Vec<u32>) = ((0..5000).collect(), (0..5000).rev().collect());
    assert_eq!(pairs(&a, &b).len(), 5000);
}
