//! Bytes of a file to a tensor: casts and the check for non-finite values, in one parallel pass.

use candle_core::{DType, Device, Tensor, WithDType};
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use rayon::prelude::*;

use super::blocks;
use super::content::Content;
use super::element::ElementType;

/// Elements converted at a time: small enough for a buffer on the stack, and whole blocks of every type.
const CHUNK: usize = 2048;
/// Elements given to one thread at a time; a multiple of [`CHUNK`], so that blocks stay whole.
const TASK: usize = 64 * CHUNK;

pub(super) enum CastError {
    NonFinite { value: f32, index: usize },
    Unread(super::Error),
    Device(candle_core::Error),
}

impl From<candle_core::Error> for CastError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error)
    }
}

/// A tensor's numbers as a file has them.
#[derive(Clone, Copy)]
pub(super) struct StoredNumbers<'a> {
    /// Little-endian, whole blocks.
    pub(super) content: &'a Content<'a>,
    /// Never [`ElementType::Other`].
    pub(super) dtype: ElementType,
    pub(super) scale: Option<f32>,
}

/// A tensor of `to` on `device`: each number is widened to f32, multiplied by the scale, and rounded once.
pub(super) fn tensor(
    from: StoredNumbers<'_>,
    shape: &[usize],
    to: DType,
    device: &Device,
) -> Result<Tensor, CastError> {
    let on_cpu = match to {
        DType::F32 => Tensor::from_vec(collect(from, |x| x)?, shape, &Device::Cpu)?,
        DType::F16 => Tensor::from_vec(collect(from, f16::from_f32)?, shape, &Device::Cpu)?,
        DType::BF16 => Tensor::from_vec(collect(from, bf16::from_f32)?, shape, &Device::Cpu)?,
        other => {
            let reason = format!(
                "weights are loaded as f32, f16 or bf16, not {}",
                other.as_str()
            );
            return Err(CastError::Device(candle_core::Error::Msg(reason)));
        }
    };
    Ok(on_cpu.to_device(device)?)
}

fn collect<T: WithDType>(
    from: StoredNumbers<'_>,
    cast: impl Fn(f32) -> T + Sync,
) -> Result<Vec<T>, CastError> {
    let (block, block_bytes) = from.dtype.block();
    let bytes_of = |elements: usize| elements / block * block_bytes;
    let mut values = vec![T::zero(); from.content.len() / block_bytes * block];
    let tasks = values.par_chunks_mut(TASK).enumerate();
    // The first in order, not the first found: the message is the same for any number of threads.
    let bad = tasks.find_map_first(|(task, values)| {
        // Each task reads what it converts, so that no tensor is in memory as its file has it as well.
        let (at, count) = (task * bytes_of(TASK), bytes_of(values.len()));
        let convert = |bytes: &[u8]| convert(from, bytes, values, &cast);
        match from.content.with(at, count, convert) {
            Ok(bad) => bad.map(|(value, at)| CastError::NonFinite {
                value,
                index: task * TASK + at,
            }),
            Err(error) => Some(CastError::Unread(error)),
        }
    });
    match bad {
        Some(error) => Err(error),
        None => Ok(values),
    }
}

/// One task's numbers; the first that is not finite, and its place among them.
fn convert<T>(
    from: StoredNumbers<'_>,
    bytes: &[u8],
    values: &mut [T],
    cast: &impl Fn(f32) -> T,
) -> Option<(f32, usize)> {
    let (block, block_bytes) = from.dtype.block();
    let mut buffer = [0f32; CHUNK];
    let pieces = bytes.chunks(CHUNK / block * block_bytes);
    for (chunk, (values, bytes)) in values.chunks_mut(CHUNK).zip(pieces).enumerate() {
        let buffer = &mut buffer[..values.len()];
        widen(bytes, from.dtype, buffer);
        if let Some(scale) = from.scale {
            for x in buffer.iter_mut() {
                *x *= scale;
            }
        }
        // Before the cast: what is too large for f16 becomes infinite without the file being damaged.
        if let Some(at) = non_finite(buffer) {
            return Some((buffer[at], chunk * CHUNK + at));
        }
        for (value, &x) in values.iter_mut().zip(&*buffer) {
            *value = cast(x);
        }
    }
    None
}

/// At most [`CHUNK`] elements to f32. Files do not align their tensors, so elements are copied out of bytes.
fn widen(bytes: &[u8], from: ElementType, into: &mut [f32]) {
    match from {
        ElementType::F32 => {
            for (x, b) in into.iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        ElementType::BF16 => {
            for (x, b) in into.iter_mut().zip(bytes.as_chunks().0) {
                // A bfloat16 is the upper half of an f32.
                *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        ElementType::F16 => {
            // By the slice: it uses the processor's own conversion where it has one.
            let mut halves = [f16::ZERO; CHUNK];
            let halves = &mut halves[..into.len()];
            for (x, b) in halves.iter_mut().zip(bytes.as_chunks().0) {
                *x = f16::from_le_bytes(*b);
            }
            halves.convert_to_f32_slice(into);
        }
        ElementType::F8E4M3 => {
            for (x, &b) in into.iter_mut().zip(bytes) {
                *x = e4m3(b);
            }
        }
        ElementType::F8E5M2 => {
            for (x, &b) in into.iter_mut().zip(bytes) {
                *x = e5m2(b);
            }
        }
        ElementType::Block(block) => blocks::decode(bytes, block, into),
        // Unsupported types were refused before (`Weights::checked`); if not, the check for NaN refuses them.
        ElementType::Other(_) => into.fill(f32::NAN),
        ElementType::F64 =>
        {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "f64 weights are computed with as f32"
            )]
            for (x, b) in into.iter_mut().zip(bytes.as_chunks().0) {
                *x = f64::from_le_bytes(*b) as f32;
            }
        }
    }
}

/// The number that a byte of `float8_e4m3fn` stands for.
pub(in crate::nn) fn e4m3(byte: u8) -> f32 {
    E4M3[usize::from(byte)]
}

/// The number that a byte of `float8_e5m2` stands for.
pub(in crate::nn) fn e5m2(byte: u8) -> f32 {
    // It is the upper half of an f16.
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// The numbers of `float8_e4m3fn`: bias 7, subnormals of 2^-9, one NaN of each sign and no infinity.
const E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        let (exponent, mantissa) = (bits >> 3 & 15, bits & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            (0, m) => m as f32 * (1.0 / 512.0),
            // 120 = 127 - 7: from e4m3's bias to f32's.
            (e, m) => f32::from_bits((e as u32 + 120) << 23 | (m as u32) << 20),
        };
        table[bits] = if bits < 128 { magnitude } else { -magnitude };
        bits += 1;
    }
    table
};

fn non_finite(values: &[f32]) -> Option<usize> {
    // Without a branch per element, so that the usual case (none) is one vectorised pass.
    let exponent = f32::INFINITY.to_bits();
    let any = values
        .iter()
        .fold(false, |any, x| any | (x.to_bits() & exponent == exponent));
    any.then(|| values.iter().position(|x| !x.is_finite()))
        .flatten()
}

/// The transpose of a `rows` x `columns` matrix of `element`-byte values.
pub(super) fn transpose(bytes: &[u8], rows: usize, columns: usize, element: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for (i, value) in bytes.chunks_exact(element).take(rows * columns).enumerate() {
        let at = (i % columns * rows + i / columns) * element;
        out[at..at + element].copy_from_slice(value);
    }
    out
}
