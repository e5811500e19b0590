//! Bytes of a file to a tensor: casts and the check for non-finite values, in one parallel pass.

use candle_core::{DType, Device, Tensor, WithDType};
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements converted at a time: small enough for a buffer on the stack.
const CHUNK: usize = 2048;
/// Elements given to one thread at a time.
const TASK: usize = 64 * CHUNK;

pub(super) enum Failure {
    NonFinite { value: f32, index: usize },
    Device(candle_core::Error),
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error)
    }
}

/// Whether weights are read from this type.
pub(super) fn is_supported(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// A tensor of `to` on `device` from little-endian elements of `from` (a supported type).
pub(super) fn tensor(
    bytes: &[u8],
    from: Dtype,
    shape: &[usize],
    to: DType,
    device: &Device,
) -> Result<Tensor, Failure> {
    let on_cpu = match to {
        DType::F32 => Tensor::from_vec(collect(bytes, from, |x| x)?, shape, &Device::Cpu)?,
        DType::F16 => Tensor::from_vec(collect(bytes, from, f16::from_f32)?, shape, &Device::Cpu)?,
        DType::BF16 => {
            Tensor::from_vec(collect(bytes, from, bf16::from_f32)?, shape, &Device::Cpu)?
        }
        other => {
            let reason = format!(
                "weights are loaded as f32, f16 or bf16, not {}",
                other.as_str()
            );
            return Err(Failure::Device(candle_core::Error::Msg(reason)));
        }
    };
    Ok(on_cpu.to_device(device)?)
}

fn collect<T: WithDType>(
    bytes: &[u8],
    from: Dtype,
    cast: impl Fn(f32) -> T + Sync,
) -> Result<Vec<T>, Failure> {
    let element = from.bitsize() / 8;
    let mut values = vec![T::zero(); bytes.len() / element];
    let tasks = values
        .par_chunks_mut(TASK)
        .zip(bytes.par_chunks(TASK * element));
    let bad = tasks.enumerate().find_map_first(|(task, (values, bytes))| {
        let mut buffer = [0f32; CHUNK];
        let chunks = values.chunks_mut(CHUNK).zip(bytes.chunks(CHUNK * element));
        for (chunk, (values, bytes)) in chunks.enumerate() {
            let buffer = &mut buffer[..values.len()];
            widen(bytes, from, buffer);
            if let Some(at) = non_finite(buffer) {
                return Some((buffer[at], task * TASK + chunk * CHUNK + at));
            }
            for (value, &x) in values.iter_mut().zip(&*buffer) {
                *value = cast(x);
            }
        }
        None
    });
    match bad {
        Some((value, index)) => Err(Failure::NonFinite { value, index }),
        None => Ok(values),
    }
}

/// At most [`CHUNK`] elements to f32. Files do not align their tensors, so elements are copied out of bytes.
fn widen(bytes: &[u8], from: Dtype, into: &mut [f32]) {
    match from {
        Dtype::F32 => {
            for (x, b) in into.iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        Dtype::BF16 => {
            for (x, b) in into.iter_mut().zip(bytes.as_chunks().0) {
                *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Dtype::F16 => {
            let mut halves = [f16::ZERO; CHUNK];
            let halves = &mut halves[..into.len()];
            for (x, b) in halves.iter_mut().zip(bytes.as_chunks().0) {
                *x = f16::from_le_bytes(*b);
            }
            halves.convert_to_f32_slice(into);
        }
        _ =>
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
