//! The element types that weights are stored as.

use std::fmt;

use safetensors::Dtype;

/// How a file stores a tensor's numbers.
///
/// The names are those of safetensors and GGUF, and part of a digest's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ElementType {
    /// 64 bits; read into f32 like all others.
    F64,
    /// 32 bits: no rounding where weights are loaded as F32.
    F32,
    /// IEEE half: 5 bits of exponent, 10 of fraction.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// 8 bits, 4 of them exponent; no infinities (`float8_e4m3fn`).
    F8E4M3,
    /// 8 bits, 5 of them exponent: the upper half of an IEEE half.
    F8E5M2,
    /// GGUF: blocks of numbers that share a scale.
    Block(BlockType),
    /// A type of safetensors files that weights are not read from.
    Other(Dtype),
}

/// A block format of GGUF files (llama.cpp's names).
#[expect(missing_docs, reason = "the names are the formats'")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl From<Dtype> for ElementType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::F8_E4M3 => Self::F8E4M3,
            Dtype::F8_E5M2 => Self::F8E5M2,
            other => Self::Other(other),
        }
    }
}

impl ElementType {
    /// Whether weights are read from it.
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// Elements and bytes of a block. A plain type's block is one element, or 8 elements where it has fewer than 8 bits.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F64 => (1, 8),
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::F8E4M3 | Self::F8E5M2 => (1, 1),
            Self::Block(block) => block.size(),
            Self::Other(dtype) if dtype.bitsize() < 8 => (8, dtype.bitsize()),
            Self::Other(dtype) => (1, dtype.bitsize() / 8),
        }
    }

    /// Bytes of `elements` in a row; `None` if they do not fill whole blocks, or overflow.
    pub(super) fn bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(bytes)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F64 => f.write_str("F64"),
            Self::F32 => f.write_str("F32"),
            Self::F16 => f.write_str("F16"),
            Self::BF16 => f.write_str("BF16"),
            Self::F8E4M3 => f.write_str("F8_E4M3"),
            Self::F8E5M2 => f.write_str("F8_E5M2"),
            Self::Block(block) => f.write_str(block.name()),
            Self::Other(dtype) => write!(f, "{dtype}"),
        }
    }
}

impl BlockType {
    fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements and bytes of a block.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}
