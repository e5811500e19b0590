//! The tensors of a safetensors file, brought to f32 when asked for, and grouped by the module they belong to.

use std::collections::BTreeMap;

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};

use super::{Matrix, SaveDtype, tensor_error};
use crate::lora::Error;
use crate::lora::seal::{self, Verdict};
use crate::nn::weights::header_length;

/// A file's metadata and its tensors by name.
pub(in crate::lora) struct StoredTensors<'a> {
    pub(in crate::lora) metadata: BTreeMap<String, String>,
    pub(in crate::lora) tensors: Vec<(String, TensorView<'a>)>,
    /// What the hashes in the metadata say of the file.
    pub(in crate::lora) verdict: Verdict,
}

/// How long a safetensors file's header is with the length before it, by its first bytes, and `file_bytes` in all.
///
/// # Errors
/// If it is none, with what it is instead.
pub(in crate::lora) fn header_bytes(first: &[u8], file_bytes: u64) -> Result<u64, String> {
    Ok(8 + header_length(first, file_bytes)? as u64)
}

/// The names of a file's tensors, by its header alone (with the length before it).
///
/// # Errors
/// If the header is none, or the file is not as long as it says.
pub(in crate::lora) fn names(header: &[u8], file_bytes: u64) -> Result<Vec<String>, String> {
    let parsed: Metadata = serde_json::from_slice(header.get(8..).unwrap_or_default())
        .map_err(|error| format!("its header cannot be read: {error}"))?;
    let (expected, found) = (
        parsed.data_len() as u64,
        file_bytes.saturating_sub(header.len() as u64),
    );
    if expected != found {
        let kind = if found < expected {
            "cut short"
        } else {
            "damaged"
        };
        return Err(format!(
            "its tensors have {expected} bytes by its header, {found} follow: it is {kind}"
        ));
    }
    let mut names: Vec<_> = parsed.tensors().into_keys().collect();
    names.sort_unstable();
    Ok(names)
}

impl<'a> StoredTensors<'a> {
    /// Opens the bytes of a safetensors file; `origin` names it in errors.
    pub(in crate::lora) fn open(bytes: &'a [u8], origin: &str) -> Result<Self, Error> {
        let not_safetensors = |error: &dyn std::fmt::Display| Error::File {
            origin: origin.to_owned(),
            what: format!("not a safetensors file: {error}"),
        };
        let length = bytes.len() as u64;
        let header = header_bytes(bytes, length).map_err(|why| not_safetensors(&why))?;
        names(&bytes[..header as usize], length).map_err(|why| not_safetensors(&why))?;
        let (_, parsed) = SafeTensors::read_metadata(bytes).map_err(|e| not_safetensors(&e))?;
        let metadata = parsed.metadata().clone().unwrap_or_default();
        let metadata: BTreeMap<_, _> = metadata.into_iter().collect();
        let stored = SafeTensors::deserialize(bytes).map_err(|e| not_safetensors(&e))?;
        let mut tensors = stored.tensors();
        // The library lists them as they lie in the file; an error should not depend on that.
        tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
        let entries = parsed.tensors();
        let entries = entries.iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let dtype = format!("{:?}", info.dtype);
            (name.as_str(), dtype, &info.shape[..], [start, end])
        });
        let verdict = seal::verify(&metadata, entries.collect(), &bytes[header as usize..]);
        Ok(Self {
            metadata,
            tensors,
            verdict,
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

/// Trainers store an alpha in any type, whole numbers and doubles too.
fn alpha_of(view: &TensorView<'_>) -> Result<f64, String> {
    let count: usize = view.shape().iter().product();
    if count != 1 {
        return Err(format!("expected one number, found {count}"));
    }
    fn bytes<const N: usize>(view: &TensorView<'_>) -> [u8; N] {
        // As long as the type and the count of one say: the library has checked that.
        view.data().first_chunk().copied().unwrap_or([0; N])
    }
    let alpha = match view.dtype() {
        Dtype::F64 => f64::from_le_bytes(bytes(view)),
        Dtype::I64 => i64::from_le_bytes(bytes(view)) as f64,
        Dtype::U64 => u64::from_le_bytes(bytes(view)) as f64,
        Dtype::I32 => i32::from_le_bytes(bytes(view)).into(),
        Dtype::U32 => u32::from_le_bytes(bytes(view)).into(),
        Dtype::I16 => i16::from_le_bytes(bytes(view)).into(),
        Dtype::U16 => u16::from_le_bytes(bytes(view)).into(),
        Dtype::I8 => i8::from_le_bytes(bytes(view)).into(),
        Dtype::U8 => u8::from_le_bytes(bytes(view)).into(),
        _ => f64::from(decode(view)?[0]),
    };
    match alpha.is_finite() {
        true => Ok(alpha),
        false => Err(format!("expected a finite number, found {alpha}")),
    }
}

/// A tensor's numbers, refused if one of them is not finite. Doubles are rounded, as every program does that uses them.
fn decode(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let bytes = view.data();
    let halves = || bytes.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F64 => {
            let doubles = bytes.as_chunks::<8>().0.iter();
            doubles.map(|&b| f64::from_le_bytes(b) as f32).collect()
        }
        Dtype::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|&b| f32::from_le_bytes(b)).collect()
        }
        Dtype::F16 => halves().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F8_E4M3 => {
            let numbers = bytes.iter();
            numbers.map(|&b| F8E4M3::from_bits(b).to_f32()).collect()
        }
        Dtype::F8_E5M2 => {
            let numbers = bytes.iter();
            numbers.map(|&b| F8E5M2::from_bits(b).to_f32()).collect()
        }
        other => {
            return Err(format!(
                "expected F64, F32, F16, BF16 or F8, found {other:?}"
            ));
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(format!(
            "number {index} is {}, expected finite numbers",
            values[index]
        )),
        None => Ok(values),
    }
}
