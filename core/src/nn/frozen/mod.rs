//! Frozen weight matrices in one of these forms: in memory whole, packed for the processor's products, quantized, or in 8-bit floats that products
//! read as they are; or left in their file.
//!
//! A product, forward or backward, asks for the matrix by [`Frozen::matrix`] and drops it afterwards. So a network takes the memory
//! of its matrices in the form they are kept in, and of one whole matrix beside.
//!
//! A quantized matrix is bytes, a table, and a scale for each group of numbers: a byte is a place in the table, where one or two
//! numbers are. Dequantizing is a lookup and a product, whatever the format; see [`Quantization`] for the three there are.

mod prefetch;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

pub use prefetch::{DEPTH, Prefetch};

use self::prefetch::MatrixInFile;
use super::cpu::{self, by_kernel};
use super::fp8::Fp8Matrix;
use super::weights::{self, Weights};
use super::{Kernels, Packed};

/// A matrix `[outputs, inputs]` that never changes. Cheap to clone.
#[derive(Clone)]
pub struct Frozen(Storage);

#[derive(Clone)]
enum Storage {
    Whole(Tensor),
    Packed(Packed),
    Quantized(Arc<Quantized>),
    Fp8(Arc<Fp8Matrix>, DType),
    InFile(Prefetch, usize),
}

/// The format of a quantized matrix: how many bits a number has, and which numbers share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits: the numbers of `float8_e4m3fn`, a scale for each output by which its largest number becomes 448.
    Fp8,
    /// 8 bits: -127 to 127, a scale for each output.
    Int8,
    /// 4 bits: the 16 quantiles of QLoRA's NormalFloat (Dettmers et al., arXiv:2305.14314), a scale for each 64 numbers
    /// in a row, as bitsandbytes has it without double quantisation.
    Nf4,
}

struct Quantized {
    /// `[bytes]` u8, row major: places in `table`.
    codes: Tensor,
    /// `[256, numbers in a byte]` f32
    table: Tensor,
    /// `[groups, 1]` f32, in the order of the numbers.
    scales: Tensor,
    shape: [usize; 2],
    dtype: DType,
}

impl From<Tensor> for Frozen {
    fn from(whole: Tensor) -> Self {
        Self(Storage::Whole(whole))
    }
}

impl From<&Tensor> for Frozen {
    fn from(whole: &Tensor) -> Self {
        whole.clone().into()
    }
}

impl Frozen {
    /// `matrix` in the order in which products on a CPU read it, if it is f32 there: for many products. It takes the memory of the whole
    /// one, whose place it takes.
    ///
    /// # Errors
    ///
    /// If it is no matrix, and those of the backend.
    pub fn packed(matrix: &Tensor) -> Result<Self> {
        // Gradients are products with the transpose, which are not made of pairs of bf16.
        match matrix.dtype() {
            DType::F32 => Ok(Self(Storage::Packed(Packed::new(matrix)?))),
            _ => Ok(matrix.into()),
        }
    }

    /// The matrix `name` of `weights`, which stays in its file: read whenever it is used, ahead of time where `prefetch` guesses it.
    pub fn in_file(weights: &Weights, shape: [usize; 2], name: &str, prefetch: &Prefetch) -> Self {
        let id = prefetch.add(MatrixInFile {
            weights: weights.clone(),
            name: name.to_owned(),
            shape,
        });
        Self(Storage::InFile(prefetch.clone(), id))
    }

    /// `matrix` quantized, to be computed with in `dtype` on `device`.
    ///
    /// # Errors
    ///
    /// If its numbers do not fill whole groups, and those of the backend.
    pub fn quantized(
        quantization: Quantization,
        matrix: &Tensor,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (outputs, inputs) = matrix.dims2()?;
        let group = quantization.group(inputs);
        // On the CPU and in f32 whatever device computes, so that a matrix has the same codes everywhere.
        let values = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let values = values.flatten_all()?.to_vec1::<f32>()?;
        if group == 0 || !values.len().is_multiple_of(group) {
            bail!("a matrix {outputs} x {inputs} has no whole groups of {group} numbers");
        }
        let (codes, scales) = quantization.quantize(&values, group);
        let (bytes, groups) = (codes.len(), scales.len());
        let table = quantization.table();
        let names = table.len() / 256;
        Ok(Self(Storage::Quantized(Arc::new(Quantized {
            codes: Tensor::from_vec(codes, bytes, device)?,
            table: Tensor::from_vec(table, (256, names), device)?,
            scales: Tensor::from_vec(scales, (groups, 1), device)?,
            shape: [outputs, inputs],
            dtype,
        }))))
    }

    /// Whether a matrix of this shape can be multiplied by in 8-bit floats.
    pub fn fits_fp8(shape: [usize; 2]) -> bool {
        Fp8Matrix::fits(shape)
    }

    /// `matrix` in 8-bit floats, by which products in `dtype` on `device` are computed: inputs and gradients are rounded to 8 bits as well, each
    /// tensor with a scale of its own. `in_both_orders` keeps it a second time on a GPU, as its backward products read it.
    ///
    /// # Errors
    ///
    /// If [`Self::fits_fp8`] is false, `device` is a GPU that `kernels` are not of, and those of the backend.
    pub fn fp8(
        matrix: &Tensor,
        dtype: DType,
        (device, kernels): (&Device, &Kernels),
        in_both_orders: bool,
    ) -> Result<Self> {
        let matrix = Fp8Matrix::new(kernels, matrix, device, in_both_orders)?;
        Ok(Self(Storage::Fp8(Arc::new(matrix), dtype)))
    }

    /// Outputs and inputs, known without reading the matrix.
    ///
    /// # Errors
    ///
    /// If it was made of a tensor that is no matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match &self.0 {
            Storage::Whole(whole) => whole.dims2(),
            Storage::Packed(packed) => Ok(packed.shape().into()),
            Storage::Quantized(quantized) => Ok(quantized.shape.into()),
            Storage::Fp8(matrix, _) => matrix.shape().map(Into::into),
            Storage::InFile(prefetch, id) => Ok(prefetch.shape(*id).into()),
        }
    }

    /// The matrix, if it is in memory as a tensor.
    #[cfg(feature = "cuda")]
    pub(super) fn whole(&self) -> Option<Tensor> {
        match &self.0 {
            Storage::Whole(whole) => Some(whole.clone()),
            _ => None,
        }
    }

    /// The matrix to multiply by, in the type and on the device of the computation.
    ///
    /// # Errors
    ///
    /// If its file cannot be read any more, and those of the backend.
    pub fn matrix(&self) -> Result<Packed> {
        match &self.0 {
            Storage::Whole(whole) => Packed::whole(whole),
            Storage::Packed(packed) => Ok(packed.clone()),
            Storage::Quantized(quantized) => Packed::whole(&quantized.dense()?),
            Storage::Fp8(matrix, dtype) => Packed::fp8(Arc::clone(matrix), *dtype),
            Storage::InFile(prefetch, id) => Packed::whole(&prefetch.get(*id)?),
        }
    }
}

impl Quantized {
    fn dense(&self) -> Result<Tensor> {
        let wide = by_kernel!(
            &self.scales,
            _T => self.on_cpu()?,
            {
                let numbers = self.table.index_select(&self.codes, 0)?;
                numbers.reshape((self.scales.dim(0)?, ()))?.broadcast_mul(&self.scales)?
            }
        );
        // Rounded once, after the scale.
        wide.reshape(&self.shape[..])?.to_dtype(self.dtype)
    }

    fn on_cpu(&self) -> Result<Tensor> {
        let (codes, scales) = (
            cpu::elements::<u8>(&self.codes)?,
            cpu::elements::<f32>(&self.scales)?,
        );
        let (codes, scales): (&[u8], &[f32]) = (&codes, &scales);
        let table = self.table.flatten_all()?.to_vec1::<f32>()?;
        let names = table.len() / 256;
        // An empty matrix has no scales; the bounds keep it from a division by 0 and from chunks of 0, which rayon refuses.
        let group = self.shape.iter().product::<usize>() / scales.len().max(1);
        let mut out = vec![0f32; self.shape.iter().product()];
        let groups = out
            .par_chunks_mut(group.max(1))
            .zip(codes.par_chunks((group / names).max(1)))
            .zip(scales);
        groups.for_each(|((out, codes), &scale)| {
            for (out, &code) in out.chunks_exact_mut(names).zip(codes) {
                let numbers = &table[usize::from(code) * names..][..names];
                for (out, &number) in out.iter_mut().zip(numbers) {
                    *out = number * scale;
                }
            }
        });
        cpu::tensor(out, &self.shape)
    }
}

impl Quantization {
    /// Whether a matrix of this shape can be quantized.
    pub fn fits(self, [outputs, inputs]: [usize; 2]) -> bool {
        let group = self.group(inputs);
        group > 0 && (outputs * inputs).is_multiple_of(group)
    }

    /// How many neighbours in a row share a scale: a whole row (one output), or a block of NormalFloats.
    fn group(self, inputs: usize) -> usize {
        match self {
            Self::Fp8 | Self::Int8 => inputs,
            Self::Nf4 => NF4_GROUP,
        }
    }

    /// Bytes of memory that a quantized matrix of this shape takes, scales included, the small table not.
    pub fn bytes(self, [outputs, inputs]: [usize; 2]) -> usize {
        let numbers = outputs * inputs;
        let groups = numbers.div_ceil(self.group(inputs).max(1));
        match self {
            // 4: a scale is an f32.
            Self::Fp8 | Self::Int8 => numbers + 4 * groups,
            Self::Nf4 => numbers.div_ceil(2) + 4 * groups,
        }
    }

    /// The numbers that each of the 256 bytes stands for before the scale: one, or two for NormalFloats.
    fn table(self) -> Vec<f32> {
        match self {
            Self::Fp8 => (0..=255).map(weights::e4m3).collect(),
            Self::Int8 => (0..256).map(|code| code as f32 - INT8_ZERO).collect(),
            Self::Nf4 => (0..=255)
                .map(nf4_swapped)
                .flat_map(|code| [NF4[usize::from(code >> 4)], NF4[usize::from(code & 15)]])
                .collect(),
        }
    }

    /// The codes of all numbers, row major, and a scale for each `group` of them.
    fn quantize(self, values: &[f32], group: usize) -> (Vec<u8>, Vec<f32>) {
        let quantized: Vec<(Vec<u8>, f32)> = values
            .par_chunks(group)
            .map(|group| {
                let largest = group.iter().fold(0f32, |most, x| most.max(x.abs()));
                self.quantize_group(group, largest)
            })
            .collect();
        let scales = quantized.iter().map(|(_, scale)| *scale).collect();
        let codes = quantized.into_iter().flat_map(|(codes, _)| codes).collect();
        (codes, scales)
    }

    fn quantize_group(self, group: &[f32], largest: f32) -> (Vec<u8>, f32) {
        let scale = match self {
            // 448 is the largest number of float8_e4m3fn; without -128 the 8-bit integers are symmetric around 0.
            Self::Fp8 => largest / 448.0,
            Self::Int8 => largest / 127.0,
            Self::Nf4 => largest,
        };
        // The reciprocal of a subnormal scale may be infinite. Such a group, and one of zeros, becomes zeros.
        let over = if scale > 0.0 && scale.is_normal() {
            1.0 / scale
        } else {
            0.0
        };
        let codes = match self {
            Self::Fp8 => group
                .iter()
                .map(|x| float8::F8E4M3::from_f32(x * over).to_bits())
                .collect(),
            Self::Int8 => group
                .iter()
                // As torch.round, which the golden file was made with.
                .map(|x| ((x * over).round_ties_even() + INT8_ZERO) as u8)
                .collect(),
            Self::Nf4 => group
                .chunks(2)
                .map(|pair| {
                    // The first of two numbers is the upper half of a byte, as in bitsandbytes.
                    let code = |i: usize| pair.get(i).map_or(NF4_ZERO, |x| nf4(x * over));
                    nf4_swapped(code(0) << 4 | code(1))
                })
                .collect(),
        };
        (codes, if over == 0.0 { 0.0 } else { scale })
    }
}

// candle's `index_select` takes the largest index of its type, here 255, as padding and gives zeros for it. So no format may need
// that byte: the integers are stored plus 127, the NaN of float8 is never stored, and two NormalFloats of 0 exchange bytes with the
// pair that would have it.
const INT8_ZERO: f32 = 127.0;
const NF4_GROUP: usize = 64;
/// The place of 0 in [`NF4`].
const NF4_ZERO: u8 = 7;
const NF4_ZEROS: u8 = NF4_ZERO << 4 | NF4_ZERO;

/// The byte of a pair of codes, and back: 255 exchanged with the pair of zeros.
fn nf4_swapped(byte: u8) -> u8 {
    match byte {
        255 => NF4_ZEROS,
        NF4_ZEROS => 255,
        other => other,
    }
}

/// The numbers of NormalFloat (appendix E of the paper).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of the number of NormalFloat nearest to `x`; of two equally near ones the lower, as in bitsandbytes.
fn nf4(x: f32) -> u8 {
    let above = |pair: &[f32]| x > (pair[0] + pair[1]) * 0.5;
    NF4.windows(2).take_while(|pair| above(pair)).count() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{composed, normal};

    const ALL: [(Quantization, f64); 3] = [
        (Quantization::Fp8, 0.04),
        (Quantization::Int8, 0.015),
        (Quantization::Nf4, 0.12),
    ];

    fn matrix(outputs: usize, inputs: usize) -> Tensor {
        let wide = normal(3, &[outputs, inputs]);
        wide.to_dtype(DType::F32).unwrap()
    }

    fn quantized(quantization: Quantization, matrix: &Tensor) -> Result<Frozen> {
        Frozen::quantized(quantization, matrix, DType::F32, &Device::Cpu)
    }

    fn dense(kept: &Frozen) -> Tensor {
        kept.matrix().unwrap().tensor().unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.to_dtype(DType::F32)
            .and_then(|t| t.flatten_all()?.to_vec1())
            .unwrap()
    }

    #[test]
    fn a_quantized_matrix_is_near_and_the_same_by_kernel_and_composed() {
        let whole = matrix(6, 128);
        for (quantization, limit) in ALL {
            let kept = quantized(quantization, &whole).unwrap();
            let whole_again = dense(&kept);
            let by_operations = composed(|| values(&dense(&kept)));
            assert_eq!(values(&whole_again), by_operations);
            assert_eq!(kept.dims2().unwrap(), (6, 128));
            let spread = |t: Tensor| {
                t.sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap()
            };
            let off =
                f64::from(spread((&whole_again - &whole).unwrap()) / spread(whole.clone())).sqrt();
            assert!(off < limit && off > limit / 10.0, "{quantization:?}: {off}");
            let Storage::Quantized(parts) = &kept.0 else {
                panic!("{quantization:?} is not quantized")
            };
            let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
            let all = bytes(&parts.codes) + bytes(&parts.table) + bytes(&parts.scales);
            let table = 1024
                * if quantization == Quantization::Nf4 {
                    2
                } else {
                    1
                };
            assert_eq!(all - table, quantization.bytes([6, 128]));
        }
    }

    /// tools/goldens/quantizations.py
    #[test]
    fn quantizing_equals_bitsandbytes_and_torch() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/golden/quantizations.safetensors"
        );
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        for name in ["normal", "small", "outliers", "coarse", "zeros"] {
            let kinds = [
                (Quantization::Nf4, "nf4"),
                (Quantization::Fp8, "fp8"),
                (Quantization::Int8, "int8"),
            ];
            for (quantization, kind) in kinds {
                let found = values(&dense(&quantized(quantization, &golden[name]).unwrap()));
                let want = values(&golden[&format!("{name}.{kind}")]);
                let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (i, (found, want)) in found.iter().zip(&want).enumerate() {
                    let off = (found - want).abs();
                    assert!(off <= 1e-6 * largest, "{name} {kind} {i}: {found} {want}");
                }
            }
        }
    }

    #[test]
    fn what_is_quantized_once_is_quantized_again_without_loss() {
        for (quantization, _) in ALL {
            let once = dense(&quantized(quantization, &matrix(4, 64)).unwrap());
            let twice = dense(&quantized(quantization, &once).unwrap());
            let off = (twice - &once).unwrap().abs().unwrap();
            let off = off.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-6, "{quantization:?}: {off}");
        }
    }

    #[test]
    fn zeros_and_tiny_numbers_stay_finite() {
        for (quantization, _) in ALL {
            for value in [0f32, 1e-40, -1e-38] {
                let whole = Tensor::full(value, (2, 64), &Device::Cpu).unwrap();
                let kept = quantized(quantization, &whole).unwrap();
                let all = values(&dense(&kept));
                assert!(
                    all.iter().all(|x| x.abs() < 1e-37),
                    "{quantization:?} {value}"
                );
            }
        }
        assert!(!Quantization::Nf4.fits([3, 17]));
        assert!(quantized(Quantization::Nf4, &matrix(3, 17)).is_err());
    }

    #[test]
    fn a_quantized_matrix_is_dense_in_the_type_that_is_computed_in() {
        for (quantization, _) in ALL {
            let kept = Frozen::quantized(quantization, &matrix(4, 64), DType::BF16, &Device::Cpu);
            assert_eq!(dense(&kept.unwrap()).dtype(), DType::BF16);
        }
    }

    #[test]
    fn a_packed_matrix_is_the_same_whole_again() {
        for (outputs, inputs) in [(6, 128), (33, 770), (1, 1)] {
            let whole = matrix(outputs, inputs);
            let packed = Frozen::packed(&whole).unwrap();
            assert_eq!(packed.dims2().unwrap(), (outputs, inputs));
            assert_eq!(values(&dense(&packed)), values(&whole));
        }
    }
}
