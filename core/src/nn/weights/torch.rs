//! Checkpoints of `torch.save`: a zip file, not compressed, with a pickle of what was saved and the numbers of each tensor beside
//! it (PyTorch's `torch/serialization.py`, the format since 1.6). The pickle is read as data: nothing that it names is run.
//!
//! Read is a dictionary from names to whole tensors, alone or as the `state_dict` of another. Whatever else was saved is refused, and
//! so are views with strides.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};

use safetensors::Dtype;
use zip::CompressionMethod;

use super::element::ElementType;
use super::file::{FileContents, TensorEntry, read_exact_at};
use crate::files::NumberType;
use crate::files::pickle::{self, Pickle, Value};
use crate::shown;

/// The most bytes of a pickle, and of the directory of a zip file. A state dict takes some hundred bytes a tensor.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// Where a zip file's directory ends is told in its last bytes, before a comment of up to 64 KiB.
const TAIL_BYTES: usize = (64 << 10) + 256;

/// Whether a file that begins with `first` is one.
pub(super) fn is_checkpoint(first: &[u8]) -> bool {
    first.starts_with(b"PK\x03\x04") && first.windows(4).any(|name| name == b".pkl")
}

/// A part of the zip file: where its bytes lie, if they lie there as they are.
struct Part {
    start: Option<u64>,
    length: u64,
}

/// What the pickle says of the tensors.
pub(super) fn read(file: &File, file_bytes: usize) -> Result<FileContents, String> {
    check_directory(file, file_bytes)?;
    let unreadable = |e: zip::result::ZipError| {
        let reason = e.to_string();
        format!("it is no whole zip file ({})", shown::text(&reason))
    };
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(unreadable)?;
    let mut parts = BTreeMap::new();
    let mut pickled = None;
    for index in 0..archive.len() {
        let mut part = archive.by_index(index).map_err(unreadable)?;
        let name = part.name().map_err(unreadable)?.into_owned();
        let stored = part.compression() == CompressionMethod::Stored;
        let length = part.size();
        let start = part.data_start().filter(|_| stored);
        if let Some(folder) = name.strip_suffix("data.pkl") {
            if length > MAX_LIST_BYTES {
                return Err(format!(
                    "its pickle has {length} bytes, expected at most {MAX_LIST_BYTES}"
                ));
            }
            let mut bytes = Vec::new();
            let read = part.by_ref().take(MAX_LIST_BYTES).read_to_end(&mut bytes);
            read.map_err(|e| {
                format!("its pickle cannot be read: {}", shown::text(&e.to_string()))
            })?;
            pickled = Some((folder.to_owned(), bytes));
        }
        parts.insert(name, Part { start, length });
    }
    let (folder, pickle) = pickled.ok_or("it has no `data.pkl`")?;
    check_byte_order(file, parts.get(&format!("{folder}byteorder")))?;
    let checkpoint = Checkpoint {
        pickle: pickle::read(&pickle)?,
        parts,
        folder,
        file_bytes: file_bytes as u64,
    };
    Ok(FileContents {
        tensors: checkpoint.tensors()?,
        metadata: BTreeMap::new(),
        data_start: 0,
    })
}

/// That the zip file's directory is of a size that a checkpoint's has: each part in it takes some hundred bytes of memory.
fn check_directory(file: &File, file_bytes: usize) -> Result<(), String> {
    let mut tail = vec![0; file_bytes.min(TAIL_BYTES)];
    let read = read_exact_at(file, file_bytes - tail.len(), &mut tail);
    read.map_err(|e| format!("its end cannot be read: {e}"))?;
    let last = |sign: &[u8]| {
        let at = tail.windows(sign.len()).rposition(|w| w == sign)?;
        tail.get(at..)
    };
    let end = last(b"PK\x05\x06").ok_or(
        "it is no whole zip file: its directory is missing, as where a download was not completed",
    )?;
    let small = end.get(12..16).and_then(|b| b.try_into().ok());
    let small = small.map_or(u32::MAX, u32::from_le_bytes);
    // Beyond 4 GiB the file says it in a longer record.
    let long = last(b"PK\x06\x06").and_then(|r| r.get(40..48)?.try_into().ok());
    let size = match (small, long) {
        (u32::MAX, Some(long)) => u64::from_le_bytes(long),
        _ => u64::from(small),
    };
    if size > MAX_LIST_BYTES {
        return Err(format!(
            "its directory has {size} bytes, expected at most {MAX_LIST_BYTES}"
        ));
    }
    Ok(())
}

fn check_byte_order(file: &File, part: Option<&Part>) -> Result<(), String> {
    let Some(Part {
        start: Some(start),
        length: 3,
    }) = part
    else {
        return Ok(());
    };
    let mut order = [0; 3];
    let at = usize::try_from(*start).map_err(|_| "its byte order cannot be read")?;
    read_exact_at(file, at, &mut order)
        .map_err(|e| format!("its byte order cannot be read: {e}"))?;
    match &order {
        b"big" => Err("its numbers are big-endian, expected little-endian".to_owned()),
        _ => Ok(()),
    }
}

struct Checkpoint {
    pickle: Pickle,
    parts: BTreeMap<String, Part>,
    /// What all names of parts begin with.
    folder: String,
    file_bytes: u64,
}

impl Checkpoint {
    fn tensors(&self) -> Result<BTreeMap<String, TensorEntry>, String> {
        let mut pairs = self.dict(self.pickle.root())?;
        let inner = pairs.iter().find(
            |(key, _)| matches!(self.pickle.value(*key), Value::Text(name) if name == "state_dict"),
        );
        if let Some((_, inner)) = inner {
            pairs = self.dict(*inner)?;
        }
        let mut tensors = BTreeMap::new();
        for (key, value) in pairs {
            let Value::Text(name) = self.pickle.value(*key) else {
                return Err("a key of what was saved is no text".to_owned());
            };
            let entry = self
                .tensor(*value)
                .map_err(|why| format!("`{}` {why}", shown::text(name)))?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(format!("`{}` is there twice", shown::text(name)));
            }
        }
        Ok(tensors)
    }

    fn dict(&self, id: pickle::Id) -> Result<&[(pickle::Id, pickle::Id)], String> {
        match self.pickle.value(id) {
            Value::Dict(pairs) => Ok(pairs),
            _ => Err("what was saved is no dictionary of tensors (a state dict)".to_owned()),
        }
    }

    fn tensor(&self, id: pickle::Id) -> Result<TensorEntry, String> {
        let Value::Tensor {
            stored,
            storage,
            offset,
            shape,
            strides,
        } = self.pickle.value(id)
        else {
            return Err("is no tensor: what was saved is no state dict".to_owned());
        };
        let part = self.parts.get(&format!("{}data/{storage}", self.folder));
        let part = part
            .ok_or_else(|| format!("has no numbers: `data/{}` is missing", shown::text(storage)))?;
        let start = part
            .start
            .ok_or("is compressed, which torch.save never does")?;
        let mut count = 1_usize;
        // Row after row; what a dimension of one steps by does not matter.
        for (size, stride) in shape.iter().zip(strides).rev() {
            if *size != 1 && *stride != count {
                return Err("is a view with strides: save it `contiguous()`".to_owned());
            }
            count = count
                .checked_mul(*size)
                .ok_or("has more numbers than a file can hold")?;
        }
        if shape.len() != strides.len() {
            return Err("has another number of strides than dimensions".to_owned());
        }
        let bytes = stored.bytes();
        let range = || {
            let from = start.checked_add((*offset as u64).checked_mul(bytes as u64)?)?;
            let to = from.checked_add((count as u64).checked_mul(bytes as u64)?)?;
            let whole = to <= start.checked_add(part.length)? && to <= self.file_bytes;
            whole.then_some((usize::try_from(from).ok()?, usize::try_from(to).ok()?))
        };
        let (start, end) = range().ok_or("reaches beyond its numbers in the file")?;
        Ok(TensorEntry {
            dtype: element(*stored),
            shape: shape.clone(),
            start,
            end,
            scale: None,
        })
    }
}

fn element(stored: NumberType) -> ElementType {
    match stored {
        NumberType::F64 => ElementType::F64,
        NumberType::F32 => ElementType::F32,
        NumberType::F16 => ElementType::F16,
        NumberType::Bf16 => ElementType::BF16,
        NumberType::F8E4m3 => ElementType::F8E4M3,
        NumberType::F8E5m2 => ElementType::F8E5M2,
        NumberType::I64 => ElementType::Other(Dtype::I64),
        NumberType::I32 => ElementType::Other(Dtype::I32),
        NumberType::I16 => ElementType::Other(Dtype::I16),
        NumberType::I8 => ElementType::Other(Dtype::I8),
        NumberType::U8 => ElementType::Other(Dtype::U8),
        NumberType::Bool => ElementType::Other(Dtype::BOOL),
    }
}
