//! The tensors of a safetensors file, brought to f32 when asked for, and grouped by the module they belong to.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Matrix, SaveDtype, tensor_error};
use crate::lora::Error;

/// A file's metadata and its tensors by name.
pub(in crate::lora) struct StoredTensors<'a> {
    pub(in crate::lora) metadata: BTreeMap<String, String>,
    pub(in crate::lora) tensors: Vec<(String, TensorView<'a>)>,
}

impl<'a> StoredTensors<'a> {
    /// Opens the bytes of a safetensors file; `origin` names it in errors.
    pub(in crate::lora) fn open(bytes: &'a [u8], origin: &str) -> Result<Self, Error> {
        let not_safetensors = |error| Error::File {
            origin: origin.to_owned(),
            what: format!("not a safetensors file: {error}"),
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let stored = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
        let mut tensors = stored.tensors();
        // The library lists them as they lie in the file; an error should not depend on that.
        tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(Self {
            metadata: metadata.into_iter().collect(),
            tensors,
        })
    }

    /// The dtype of all A and B, or F32 where they have several.
    pub(in crate::lora) fn dtype(&self) -> SaveDtype {
        let all_are = |dtype| {
            let mut tensors = self.tensors.iter();
            // Many programs store alpha in f32 beside halves: it has no say.
            tensors.all(|(name, view)| view.dtype() == dtype || name.ends_with(".alpha"))
        };
        if all_are(Dtype::F16) {
            SaveDtype::F16
        } else if all_are(Dtype::BF16) {
            SaveDtype::Bf16
        } else {
            SaveDtype::F32
        }
    }
}

/// Which of a module's tensors it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lora) enum TensorRole {
    A,
    B,
    Alpha,
}

/// An adapter's tensors, each with its name in the file.
#[derive(Debug)]
pub(in crate::lora) struct AdapterTensors {
    pub(in crate::lora) a: (String, Matrix),
    pub(in crate::lora) b: (String, Matrix),
    pub(in crate::lora) alpha: Option<f64>,
}

impl AdapterTensors {
    /// Rows of A.
    pub(in crate::lora) fn rank(&self) -> usize {
        self.a.1.rows()
    }
}

#[derive(Default)]
struct AdapterViews<'v, 'a> {
    a: Option<(&'v str, &'v TensorView<'a>)>,
    b: Option<(&'v str, &'v TensorView<'a>)>,
    alpha: Option<(&'v str, &'v TensorView<'a>)>,
}

/// Groups tensors into adapters. Each tensor comes with a key of its module and the tensor's role there; `named` gives the module's
/// name for errors.
pub(in crate::lora) fn group_by_module<'v, 'a: 'v, K: Ord>(
    origin: &str,
    tensors: impl Iterator<Item = (&'v (String, TensorView<'a>), K, TensorRole)>,
    named: impl Fn(&K) -> String,
) -> Result<Vec<(K, AdapterTensors)>, Error> {
    let mut found: BTreeMap<K, AdapterViews<'v, 'a>> = BTreeMap::new();
    for ((name, view), key, part) in tensors {
        let module = named(&key);
        let parts = found.entry(key).or_default();
        let slot = match part {
            TensorRole::A => &mut parts.a,
            TensorRole::B => &mut parts.b,
            TensorRole::Alpha => &mut parts.alpha,
        };
        if slot.replace((name, view)).is_some() {
            return Err(Error::Duplicate(module));
        }
    }
    let pair = |(key, parts): (K, AdapterViews<'v, 'a>)| {
        let pair = parts.decode(origin, &named(&key))?;
        Ok((key, pair))
    };
    found.into_iter().map(pair).collect()
}

impl AdapterViews<'_, '_> {
    fn decode(&self, origin: &str, module: &str) -> Result<AdapterTensors, Error> {
        let missing = |part: &str| Error::File {
            origin: origin.to_owned(),
            what: format!("adapter on `{module}`: expected a {part} tensor, found none"),
        };
        let (a_name, a_view) = self.a.ok_or_else(|| missing("lora_A"))?;
        let (b_name, b_view) = self.b.ok_or_else(|| missing("lora_B"))?;
        let a_shape = shape_of(a_view).map_err(|what| tensor_error(origin, a_name, what))?;
        let b_shape = shape_of(b_view).map_err(|what| tensor_error(origin, b_name, what))?;
        let wrong = if b_shape[1] != a_shape[0] {
            Some(format!(
                "expected rank {} as lora_A has, found {} columns",
                a_shape[0], b_shape[1]
            ))
        } else if b_shape.len() != a_shape.len() || b_shape[2..].iter().any(|&side| side != 1) {
            Some(format!(
                "expected a window of one pixel where lora_A is a convolution's, and none elsewhere; found {b_shape:?} beside {a_shape:?}"
            ))
        } else {
            None
        };
        if let Some(what) = wrong {
            return Err(tensor_error(origin, b_name, what));
        }
        let decode = |name: &str, view: &TensorView<'_>, shape| {
            let values = decode(view).map_err(|what| tensor_error(origin, name, what))?;
            Ok::<_, Error>((name.to_owned(), Matrix { shape, values }))
        };
        let alpha = |(name, view): (&str, &TensorView<'_>)| {
            alpha_of(view).map_err(|what| tensor_error(origin, name, what))
        };
        Ok(AdapterTensors {
            a: decode(a_name, a_view, a_shape)?,
            b: decode(b_name, b_view, b_shape)?,
            alpha: self.alpha.map(alpha).transpose()?,
        })
    }
}

/// Rows and columns, and the sides of the window where it is a convolution's.
fn shape_of(view: &TensorView<'_>) -> Result<Vec<usize>, String> {
    let shape = view.shape();
    let is_square = matches!(shape.len(), 2 | 4) && shape.get(2) == shape.get(3);
    if is_square && !shape.contains(&0) {
        return Ok(shape.to_vec());
    }
    Err(format!(
        "expected two dimensions, or four of a square window, none 0, found {shape:?}"
    ))
}

fn alpha_of(view: &TensorView<'_>) -> Result<f64, String> {
    match decode(view)?[..] {
        [alpha] => Ok(f64::from(alpha)),
        ref other => Err(format!("expected one number, found {}", other.len())),
    }
}

/// A tensor's numbers, refused if one of them is not finite.
fn decode(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let bytes = view.data();
    let halves = || bytes.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|&b| f32::from_le_bytes(b)).collect()
        }
        Dtype::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        other => return Err(format!("expected F32, F16 or BF16, found {other:?}")),
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(format!(
            "number {index} is {}, expected finite numbers",
            values[index]
        )),
        None => Ok(values),
    }
}
