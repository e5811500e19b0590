//! Between tensors and the store's bytes.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16};

use crate::recipe::spec::Dtype;
use crate::store::{self, ElementType, Payload, TensorBytes};

/// A tensor as the store keeps it, in `dtype`.
///
/// # Errors
/// If the tensor cannot be brought to the CPU or to the type.
pub fn to_bytes(tensor: &Tensor, dtype: Dtype) -> Result<TensorBytes> {
    let shape = tensor.dims().to_vec();
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (dtype, candle) = match dtype {
        Dtype::F32 => (ElementType::F32, DType::F32),
        Dtype::F16 => (ElementType::F16, DType::F16),
        Dtype::Bf16 => (ElementType::Bf16, DType::BF16),
    };
    let tensor = tensor.to_dtype(candle)?;
    let (storage, layout) = tensor.storage_and_layout();
    // `contiguous` leaves a tensor that is a contiguous part of a larger one where it is.
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a contiguous tensor has gaps");
    };
    // Little-endian on every machine, as the store's format says.
    let bytes = match &*storage {
        Storage::Cpu(CpuStorage::F32(v)) => {
            v[start..end].iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        Storage::Cpu(CpuStorage::F16(v)) => {
            v[start..end].iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        Storage::Cpu(CpuStorage::BF16(v)) => {
            v[start..end].iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        _ => bail!(
            "expected floating-point numbers on the CPU, found {:?}",
            tensor.dtype()
        ),
    };
    Ok(TensorBytes {
        dtype,
        shape,
        bytes,
    })
}

/// A stored tensor as f32 on the CPU.
///
/// # Errors
/// If it does not hold floating-point numbers.
pub fn to_tensor(payload: &Payload) -> Result<Tensor> {
    let values = to_f32(payload.dtype, payload.bytes())?;
    Tensor::from_vec(values, payload.shape.as_slice(), &Device::Cpu)
}

/// Writes tensors as a safetensors file with metadata.
///
/// # Errors
/// If the device fails or the file cannot be written.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> std::result::Result<(), super::Error> {
    let contiguous: Vec<(&String, Tensor)> = tensors
        .iter()
        .map(|(name, t)| Ok((name, t.contiguous()?)))
        .collect::<candle_core::Result<_>>()?;
    let metadata = metadata
        .iter()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let bytes = safetensors::serialize(contiguous.iter().map(|(n, t)| (n, t)), Some(metadata))
        .map_err(candle_core::Error::wrap)?;
    Ok(store::write_file(path, &[&bytes])?)
}

/// Little-endian numbers as f32; bytes beyond the last whole number are passed over.
///
/// # Errors
/// If they are no floating-point numbers.
pub fn to_f32(dtype: ElementType, bytes: &[u8]) -> Result<Vec<f32>> {
    Ok(match dtype {
        ElementType::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        ElementType::F16 => bytes
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        ElementType::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        other => bail!("expected floating-point numbers, found {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::{to_bytes, to_f32};
    use crate::recipe::spec::Dtype;
    use candle_core::{Device, Tensor};

    #[test]
    fn numbers_survive_in_every_precision_that_can_hold_them() {
        let values = [0.0f32, -1.5, 2.0, 0.25];
        let tensor = Tensor::from_slice(&values, (2, 2), &Device::Cpu).expect("a tensor");
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let bytes = to_bytes(&tensor.t().expect("a view"), dtype).expect("bytes");
            assert_eq!(bytes.shape, [2, 2]);
            assert_eq!(
                to_f32(bytes.dtype, &bytes.bytes).expect("floats"),
                [0.0, 2.0, -1.5, 0.25]
            );
        }
    }
}
