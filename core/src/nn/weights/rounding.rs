//! Weights as they would be after a program stored them in 8 bits, as numbers of `float8_e4m3fn`: for comparison with what such a
//! program computed.

use candle_core::{DType, Device, Result, Tensor};
use float8::F8E4M3;
use rayon::prelude::*;
use serde::Serialize;

/// The largest number of `float8_e4m3fn`.
const LARGEST: f32 = 448.0;

/// How weights were rounded to `float8_e4m3fn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Every number as it is: ComfyUI's `t5xxl_fp8_e4m3fn.safetensors`, which kohya's scripts compute with under `--fp8_base`.
    Fp8,
    /// Matrices alone, each with one scale by which its largest number becomes 448, as files with `scale_weight` have it.
    Fp8Scaled,
    /// Matrices alone, with such a scale for each output: optimum-quanto's `qfloat8`, which ai-toolkit's `quantize_te` takes.
    Fp8Rows,
}

impl Rounding {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fp8, Self::Fp8Scaled, Self::Fp8Rows];

    /// As a person reads it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8 weights (e4m3)",
            Self::Fp8Scaled => "fp8 weights (e4m3 with a scale for each matrix)",
            Self::Fp8Rows => "fp8 weights (e4m3 with a scale for each output)",
        }
    }

    /// A tensor of f32, rounded. `is_table`: it is looked up by rows or added, and no matrix that is multiplied by.
    pub(super) fn of(self, tensor: &Tensor, is_table: bool) -> Result<Tensor> {
        let shape = tensor.dims();
        let (columns, is_matrix) = (shape.last().copied().unwrap_or(1), shape.len() == 2);
        let group = match (self, is_matrix && !is_table) {
            (Self::Fp8, _) => None,
            (_, false) => return Ok(tensor.clone()),
            (Self::Fp8Scaled, true) => Some(tensor.elem_count()),
            (Self::Fp8Rows, true) => Some(columns),
        };
        let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
        match group {
            None => values.par_iter_mut().for_each(|x| *x = rounded(*x)),
            Some(group) => values.par_chunks_mut(group.max(1)).for_each(round_scaled),
        }
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::F32)
    }
}

fn rounded(x: f32) -> f32 {
    F8E4M3::from_f32(x).to_f32()
}

fn round_scaled(group: &mut [f32]) {
    let largest = group.iter().fold(0f32, |most, x| most.max(x.abs()));
    let scale = largest / LARGEST;
    // One of zeros, or nearly so, stays as it is.
    if scale.is_normal() {
        for x in group {
            *x = rounded(*x / scale) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch: `x.to(torch.float8_e4m3fn).float()`, and the same of `x / s` times s with s = x.abs().amax() / 448.
    #[test]
    fn numbers_are_those_of_torch() {
        let x = [[0.3f32, -1.7, 0.0009, 300.0], [0.01, 0.02, -0.033, 0.04]];
        let x = Tensor::new(&x, &Device::Cpu).expect("a tensor");
        let of = |rounding: Rounding, is_table| {
            let made = rounding.of(&x, is_table).expect("rounded");
            made.flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("numbers")
        };
        let plain = [
            0.3125,
            -1.75,
            0.0,
            288.0,
            0.009_765_625,
            0.019_531_25,
            -0.031_25,
            0.039_062_5,
        ];
        assert_eq!(of(Rounding::Fp8, false), plain);
        assert_eq!(of(Rounding::Fp8, true), plain);
        let near = |found: Vec<f32>, wanted: Vec<f32>| {
            let pairs = found.iter().zip(wanted);
            assert!(
                pairs.clone().all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()),
                "{found:?}"
            );
        };
        let first = [0.292_968_75, -1.674_107_2, 0.001_307_896_2, 300.0];
        let second = [0.010_463_17, 0.019_618_444, -0.034_005_303, 0.039_236_89];
        near(of(Rounding::Fp8Scaled, false), [first, second].concat());
        let second = [0.01, 0.02, -0.034_285_713, 0.04];
        near(of(Rounding::Fp8Rows, false), [first, second].concat());
        let whole = x
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .expect("numbers");
        assert_eq!(
            of(Rounding::Fp8Rows, true),
            whole,
            "tables keep their numbers"
        );
    }
}
