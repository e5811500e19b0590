//! Tensors as the store sees them: an element type, a shape, and bytes. What they mean is the caller's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::shown;

/// The type of a tensor's elements, named as in safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 8-bit integer.
    U8,
}

impl ElementType {
    /// Every type that the format has.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::I64,
        Self::I32,
        Self::U32,
        Self::U8,
    ];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    /// The name in safetensors files and in the index.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::U8 => "U8",
        }
    }

    pub(super) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        use safetensors::Dtype as D;
        Some(match dtype {
            D::F32 => Self::F32,
            D::F16 => Self::F16,
            D::BF16 => Self::Bf16,
            D::I64 => Self::I64,
            D::I32 => Self::I32,
            D::U32 => Self::U32,
            D::U8 => Self::U8,
            _ => return None,
        })
    }

    fn for_each(self, bytes: &[u8], mut f: impl FnMut(f64)) {
        fn chunks<const N: usize>(bytes: &[u8], mut f: impl FnMut([u8; N])) {
            for &chunk in bytes.as_chunks::<N>().0 {
                f(chunk);
            }
        }
        match self {
            Self::F32 => chunks(bytes, |b| f(f64::from(f32::from_le_bytes(b)))),
            Self::F16 => chunks(bytes, |b| f(f64::from(half::f16::from_le_bytes(b)))),
            Self::Bf16 => chunks(bytes, |b| f(f64::from(half::bf16::from_le_bytes(b)))),
            Self::I64 => chunks(bytes, |b| f(i64::from_le_bytes(b) as f64)),
            Self::I32 => chunks(bytes, |b| f(f64::from(i32::from_le_bytes(b)))),
            Self::U32 => chunks(bytes, |b| f(f64::from(u32::from_le_bytes(b)))),
            Self::U8 => chunks(bytes, |[b]| f(f64::from(b))),
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ElementType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == text)
            .ok_or_else(|| format!("unknown element type `{}`", shown::text(text)))
    }
}

/// The bytes that a tensor of `dtype` and `shape` has, unless that is more than there can be.
pub(super) fn size_bytes(dtype: ElementType, shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(dtype.size_bytes(), |n, &d| n.checked_mul(d))
}

/// A tensor: little endian, row major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorBytes {
    /// The type of each element.
    pub dtype: ElementType,
    /// The size of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// The elements' bytes; as many as `dtype` and `shape` say.
    pub bytes: Vec<u8>,
}

impl TensorBytes {
    /// A tensor of `values`, row major; their number must be the product of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        Self {
            dtype: ElementType::F32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// What keeps this from being stored, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        match size_bytes(self.dtype, &self.shape) {
            Some(0) => Some(format!(
                "expected at least one element, found shape {:?}",
                self.shape
            )),
            Some(expected) if expected == self.bytes.len() => None,
            expected => Some(format!(
                "expected {} bytes for {} of shape {:?}, found {}",
                expected.map_or("fewer".to_owned(), |n| n.to_string()),
                self.dtype,
                self.shape,
                self.bytes.len()
            )),
        }
    }
}

/// Statistics of a payload's values, for a person to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The mean of the elements.
    pub mean: f32,
    /// Their standard deviation (of the population).
    pub std: f32,
    /// The smallest element.
    pub min: f32,
    /// The largest element.
    pub max: f32,
    /// The root of the mean square.
    pub rms: f32,
    /// How many are NaN or infinite; they are left out of the other numbers. Always 0 in a store: such a
    /// tensor is refused.
    pub non_finite: u64,
}

impl Summary {
    /// The statistics of the elements in `bytes`.
    pub fn of(dtype: ElementType, bytes: &[u8]) -> Self {
        let (mut count, mut non_finite) = (0u64, 0u64);
        // In f64: a T5's output has millions of values, whose squares an f32 cannot add up.
        let (mut sum, mut squares) = (0.0, 0.0);
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        dtype.for_each(bytes, |x| {
            if x.is_finite() {
                count += 1;
                sum += x;
                squares += x * x;
                min = min.min(x);
                max = max.max(x);
            } else {
                non_finite += 1;
            }
        });
        if count == 0 {
            // JSON has no infinities, and the pack's header is JSON.
            (min, max) = (0.0, 0.0);
        }
        let n = count.max(1) as f64;
        let (mean, mean_square) = (sum / n, squares / n);
        Self {
            mean: mean as f32,
            // Rounding can make the difference of equal values negative.
            std: (mean_square - mean * mean).max(0.0).sqrt() as f32,
            min: min as f32,
            max: max as f32,
            rms: mean_square.sqrt() as f32,
            non_finite,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_holds_the_numbers_of_its_definition() {
        let t = TensorBytes::from_f32(&[4], &[1.0, -1.0, 3.0, f32::NAN]);
        let s = Summary::of(t.dtype, &t.bytes);
        assert_eq!((s.mean, s.min, s.max, s.non_finite), (1.0, -1.0, 3.0, 1));
        assert!((s.std - (8.0f32 / 3.0).sqrt()).abs() < 1e-6, "{}", s.std);
        assert!((s.rms - (11.0f32 / 3.0).sqrt()).abs() < 1e-6, "{}", s.rms);
    }

    #[test]
    fn every_element_type_reads_its_own_bytes() {
        let cases: [(ElementType, Vec<u8>); 7] = [
            (ElementType::F32, 2.0f32.to_le_bytes().to_vec()),
            (
                ElementType::F16,
                half::f16::from_f32(2.0).to_le_bytes().to_vec(),
            ),
            (
                ElementType::Bf16,
                half::bf16::from_f32(2.0).to_le_bytes().to_vec(),
            ),
            (ElementType::I64, 2i64.to_le_bytes().to_vec()),
            (ElementType::I32, 2i32.to_le_bytes().to_vec()),
            (ElementType::U32, 2u32.to_le_bytes().to_vec()),
            (ElementType::U8, vec![2]),
        ];
        for (dtype, bytes) in cases {
            assert_eq!(bytes.len(), dtype.size_bytes(), "{dtype}");
            assert_eq!(Summary::of(dtype, &bytes).mean, 2.0, "{dtype}");
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
    }

    #[test]
    fn a_tensor_whose_bytes_do_not_fit_its_shape_is_at_fault() {
        let mut t = TensorBytes::from_f32(&[2, 2], &[0.0; 4]);
        assert_eq!(t.fault(), None);
        for shape in [vec![3], vec![0, 4], vec![usize::MAX, 8]] {
            t.shape = shape;
            assert!(t.fault().is_some(), "{:?}", t.shape);
        }
    }
}
