//! What goes into a file of a cache that another trainer is to read.

use super::NumberType;

/// A tensor to be written, its last dimension innermost.
#[derive(Clone, Debug, PartialEq)]
pub struct ToWrite {
    /// Its name in the file.
    pub name: String,
    /// What its bytes are.
    pub stored: NumberType,
    /// Its dimensions; none for a single number.
    pub shape: Vec<usize>,
    /// Its numbers, little-endian, as many as the shape says.
    pub bytes: Vec<u8>,
}

impl ToWrite {
    /// Whole numbers.
    pub fn whole(name: &str, shape: Vec<usize>, numbers: &[i64]) -> Self {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self::new(name, NumberType::I64, shape, bytes)
    }

    /// Numbers of torch's and numpy's double precision.
    pub fn doubles(name: &str, numbers: &[f64]) -> Self {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self::new(name, NumberType::F64, vec![numbers.len()], bytes)
    }

    /// A flag, an array without dimensions.
    pub fn flag(name: &str, value: bool) -> Self {
        Self::new(name, NumberType::Bool, Vec::new(), vec![u8::from(value)])
    }

    /// A flag for each of some rows: true for the first `count` of them.
    pub fn first_rows(name: &str, count: usize, rows: usize) -> Self {
        let bytes = (0..rows).map(|row| u8::from(row < count)).collect();
        Self::new(name, NumberType::Bool, vec![rows], bytes)
    }

    /// `bytes` as they are.
    pub fn new(name: &str, stored: NumberType, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            stored,
            shape,
            bytes,
        }
    }
}

/// A safetensors file.
///
/// # Errors
/// If a tensor's bytes do not fit its shape, or two have one name.
pub fn safetensors(tensors: &[ToWrite], metadata: &[(&str, String)]) -> Result<Vec<u8>, String> {
    use safetensors::tensor::TensorView;

    let mut views = Vec::new();
    for tensor in tensors {
        let dtype = match tensor.stored {
            NumberType::F32 => safetensors::Dtype::F32,
            NumberType::F16 => safetensors::Dtype::F16,
            NumberType::Bf16 => safetensors::Dtype::BF16,
            NumberType::I64 => safetensors::Dtype::I64,
            NumberType::Bool => safetensors::Dtype::BOOL,
            other => return Err(format!("numbers of type {} are not written", other.name())),
        };
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes);
        let view = view.map_err(|e| format!("tensor `{}`: {e}", tensor.name))?;
        views.push((tensor.name.as_str(), view));
    }
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    let metadata = (metadata.len() > 0).then(|| metadata.collect());
    safetensors::serialize(views, metadata).map_err(|e| e.to_string())
}
