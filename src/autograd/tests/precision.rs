//! Gradients in f32 that are small differences of large numbers.

use super::*;

/// Before a group norm, moving all channels of a group by one number changes nothing: the gradients towards the channels' shifts
/// add up to 0 in each group. What an adapter sees of them (a sum over channels) is as small, so what does not cancel is its error.
#[test]
fn shifts_before_a_group_norm_have_gradients_that_cancel() {
    let (channels, groups) = (20, 2);
    let mut worst: f64 = 0.0;
    for side in [2, 8, 64] {
        for seed in 0..4 {
            let inputs = [
                // Far from a mean of 0, as pictures are in the middle of a UNet.
                (normal(seed, &[1, channels, side, side]) + 3.0).unwrap(),
                normal(seed + 9, &[1, channels, 1, 1]),
            ];
            let inputs = inputs.map(|t| t.to_dtype(DType::F32).unwrap());
            let found = gradients(&inputs, &|tape, v| {
                let (gain, bias) = (ones(channels), ones(channels));
                let moved = tape.add(&v[0], &v[1])?;
                Ok(vec![
                    tape.group_norm(&moved, &gain, &bias, groups, 1e-5, true)?,
                ])
            });
            let shifts = found[1].as_ref().unwrap().flatten_all().unwrap();
            let shifts = shifts.to_vec1::<f32>().unwrap();
            let largest = shifts
                .iter()
                .fold(0.0, |most: f64, x| most.max(f64::from(x.abs())));
            for group in shifts.chunks(channels / groups) {
                let sum: f64 = group.iter().copied().map(f64::from).sum();
                worst = worst.max(sum.abs() / largest);
            }
        }
    }
    assert!(worst < 3e-7, "{worst:e}");
}

fn ones(n: usize) -> Tensor {
    Tensor::ones(n, DType::F32, &Device::Cpu).unwrap()
}
