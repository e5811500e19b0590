//! The header of a GGUF file, versions 2 and 3 (little-endian), as llama.cpp and the converters of image models
//! write it.
//!
//! It is a list of named values and a list of tensors with their places. Nothing of it is believed: every length
//! is checked against the bytes that follow, so a hostile file makes us allocate no more than its own header's
//! size, and that is limited; places must be aligned, in the file, and not overlap.

use std::collections::BTreeMap;

use super::element::{BlockType, ElementType};
use super::file::{FileContents, TensorEntry};
use crate::shown;

/// The first bytes of every GGUF file, of any version.
pub(super) const MAGIC: &[u8] = b"GGUF";

const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 16;
/// Longer text values are not kept: licences and chat templates, which nobody asks for.
const MAX_TEXT: usize = 256;
/// The shape that a tensor had before it was reshaped to fill whole blocks, by tensor.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// What is kept of the header's named values.
#[derive(Default)]
struct HeaderValues {
    alignment: Option<u64>,
    shapes: BTreeMap<String, Vec<usize>>,
    text: BTreeMap<String, String>,
}

/// A tensor as the header lists it.
struct TensorListing {
    name: String,
    dtype: ElementType,
    shape: Vec<usize>,
    /// In bytes from the start of the data, not of the file.
    offset: usize,
}

/// Why a header was not read.
pub(super) enum Unread {
    /// It goes on behind the bytes that were given; the reason is for where none are left.
    Longer(String),
    Wrong(String),
}

/// Reads and checks the header of a file of `file_bytes`, of which `first` are the first.
pub(super) fn read(first: &[u8], file_bytes: usize) -> Result<FileContents, Unread> {
    let mut cursor = Cursor {
        bytes: first,
        at: MAGIC.len(),
        ran_out: false,
    };
    let read = read_header(&mut cursor, file_bytes);
    read.map_err(|reason| match cursor.ran_out {
        true => Unread::Longer(reason),
        false => Unread::Wrong(reason),
    })
}

fn read_header(cursor: &mut Cursor<'_>, file_bytes: usize) -> Result<FileContents, String> {
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(format!(
            "its version is {version}, expected 2 or 3 (little-endian)"
        ));
    }
    let (tensors, values) = (cursor.u64()?, cursor.u64()?);
    let mut known = HeaderValues::default();
    for _ in 0..values {
        let key = cursor.text()?.to_owned();
        cursor.value(&key, &mut known)?;
    }
    // No capacity by the claimed count, here and below: it may be anything, and the bytes run out first.
    let mut listed = Vec::new();
    for _ in 0..tensors {
        listed.push(cursor.tensor()?);
    }
    let alignment = known.alignment.unwrap_or(DEFAULT_ALIGNMENT as u64);
    let alignment = usize::try_from(alignment)
        .ok()
        .filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT)
        .ok_or_else(|| {
            format!(
                "`general.alignment` is {alignment}, expected a power of 2 up to {MAX_ALIGNMENT}"
            )
        })?;
    // As gguf-py and llama.cpp: the data begin at the next aligned byte after the list.
    let data_start = cursor.at.next_multiple_of(alignment);
    let tensors = check_places(listed, &known.shapes, data_start, file_bytes, alignment)?;
    Ok(FileContents {
        tensors,
        metadata: known.text,
        data_start,
    })
}

/// Checks that the tensors lie in the file of `length` bytes, each by itself, and gives their places.
fn check_places(
    mut listed: Vec<TensorListing>,
    shapes: &BTreeMap<String, Vec<usize>>,
    data_start: usize,
    length: usize,
    alignment: usize,
) -> Result<BTreeMap<String, TensorEntry>, String> {
    // By place, so that one pass finds overlaps; by name after it, so that a message does not depend on the list's order.
    listed.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    let mut entries = BTreeMap::new();
    let mut reached = 0;
    for tensor in listed {
        let TensorListing {
            name,
            dtype,
            shape,
            offset,
        } = tensor;
        let shown = shown::text(&name);
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // Blocks lie along the rows, so a row has whole ones.
        let row = shape.last().copied().unwrap_or(1);
        let bytes = elements
            .filter(|_| dtype.bytes(row).is_some())
            .and_then(|n| dtype.bytes(n));
        let Some(bytes) = bytes else {
            return Err(format!(
                "tensor `{shown}` cannot be {dtype} of shape {shape:?}"
            ));
        };
        if !offset.is_multiple_of(alignment) || offset < reached {
            return Err(format!(
                "tensor `{shown}` starts at byte {offset} of the data, expected a multiple of {alignment} not below {reached}"
            ));
        }
        let start = data_start.checked_add(offset);
        let place = start.and_then(|start| Some((start, start.checked_add(bytes)?)));
        let Some((start, end)) = place.filter(|(_, end)| *end <= length) else {
            return Err(format!(
                "tensor `{shown}` has {bytes} bytes from byte {offset} of the data, the file has {length} bytes: it is cut short"
            ));
        };
        reached = offset + bytes;
        let shape = original_shape(&name, shape, shapes.get(&name))?;
        let entry = TensorEntry {
            dtype,
            shape,
            start,
            end,
            scale: None,
        };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor `{}` is listed twice", shown::text(&name)));
        }
    }
    Ok(entries)
}

fn original_shape(
    name: &str,
    stored: Vec<usize>,
    original: Option<&Vec<usize>>,
) -> Result<Vec<usize>, String> {
    let shown = shown::text(name);
    let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match original {
        None => Ok(stored),
        Some(original) if count(original) == count(&stored) => Ok(original.clone()),
        Some(original) => Err(format!(
            "tensor `{shown}` has shape {stored:?}, and `{ORIGINAL_SHAPE}{shown}` says {original:?}: not as many numbers"
        )),
    }
}

/// The element type with this number in `ggml_type`; the error names those that are not read.
fn element_type(number: u32) -> Result<ElementType, String> {
    Ok(match number {
        0 => ElementType::F32,
        1 => ElementType::F16,
        2 => ElementType::Block(BlockType::Q4_0),
        3 => ElementType::Block(BlockType::Q4_1),
        6 => ElementType::Block(BlockType::Q5_0),
        7 => ElementType::Block(BlockType::Q5_1),
        8 => ElementType::Block(BlockType::Q8_0),
        10 => ElementType::Block(BlockType::Q2K),
        11 => ElementType::Block(BlockType::Q3K),
        12 => ElementType::Block(BlockType::Q4K),
        13 => ElementType::Block(BlockType::Q5K),
        14 => ElementType::Block(BlockType::Q6K),
        28 => ElementType::F64,
        30 => ElementType::BF16,
        other => {
            const NAMES: &[(u32, &str)] = &[
                (16, " (IQ2_XXS)"),
                (17, " (IQ2_XS)"),
                (18, " (IQ3_XXS)"),
                (19, " (IQ1_S)"),
                (20, " (IQ4_NL)"),
                (21, " (IQ3_S)"),
                (22, " (IQ2_S)"),
                (23, " (IQ4_XS)"),
                (29, " (IQ1_M)"),
            ];
            let name = NAMES.iter().find(|(n, _)| *n == other).map_or("", |n| n.1);
            return Err(format!(
                "of GGML type {other}{name}, expected F32, F16, BF16, Q8_0, Q4_0 to Q5_1 or Q2_K to Q6_K: use another quantisation of the model"
            ));
        }
    })
}

/// A place in the header's bytes; every read is checked against their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether more bytes were wanted than there are.
    ran_out: bool,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        self.ran_out |= taken.is_none();
        let taken = taken.ok_or_else(|| {
            format!(
                "its header wants {count} bytes at byte {}, and has {}: the file is cut short or damaged",
                self.at,
                self.bytes.len()
            )
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, String> {
        usize::try_from(self.u64()?).map_err(|_| "a length overflows".to_owned())
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.length()?;
        let at = self.at;
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| format!("a name at byte {at} of its header is not UTF-8"))
    }

    /// Reads a value, and keeps it if it is one that weights are read by.
    fn value(&mut self, key: &str, known: &mut HeaderValues) -> Result<(), String> {
        const TEXT: u32 = 8;
        const ARRAY: u32 = 9;
        let kind = self.u32()?;
        match kind {
            TEXT => {
                let length = self.length()?;
                // Values may have any bytes; only a tensor's name must be text.
                let text = String::from_utf8_lossy(self.take(length)?);
                if text.len() <= MAX_TEXT {
                    known.text.insert(key.to_owned(), text.into_owned());
                }
            }
            ARRAY => {
                let (of, count) = (self.u32()?, self.length()?);
                // Tokenizers' vocabularies are lists of texts: passed over one by one, as their lengths are not known
                // beforehand.
                if of == TEXT {
                    for _ in 0..count {
                        let length = self.length()?;
                        self.take(length)?;
                    }
                    return Ok(());
                }
                let size = number_bytes(of, key)?;
                let bytes = count
                    .checked_mul(size)
                    .ok_or_else(|| format!("the length of `{}` overflows", shown::text(key)))?;
                let bytes = self.take(bytes)?;
                if let Some(tensor) = key.strip_prefix(ORIGINAL_SHAPE) {
                    let shape = bytes.chunks_exact(size).map(unsigned).collect();
                    known.shapes.insert(tensor.to_owned(), shape);
                }
            }
            number => {
                let bytes = self.take(number_bytes(number, key)?)?;
                if key == "general.alignment" {
                    known.alignment = Some(unsigned(bytes) as u64);
                }
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<TensorListing, String> {
        // ggml's own limit (GGML_MAX_DIMS).
        const MAX_DIMENSIONS: u32 = 4;
        let name = self.text()?.to_owned();
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!(
                "tensor `{}` has {dimensions} dimensions, at most {MAX_DIMENSIONS} can be",
                shown::text(&name)
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.length()?);
        }
        // GGUF lists the fastest dimension first, the tensors here the slowest.
        shape.reverse();
        let dtype = element_type(self.u32()?)
            .map_err(|what| format!("tensor `{}` is {what}", shown::text(&name)))?;
        let offset = self.length()?;
        Ok(TensorListing {
            name,
            dtype,
            shape,
            offset,
        })
    }
}

/// Bytes of a number or truth value of this kind (`gguf_type` in llama.cpp).
fn number_bytes(kind: u32, key: &str) -> Result<usize, String> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        other => Err(format!(
            "the value `{}` is of kind {other}, which is not known",
            shown::text(key)
        )),
    }
}

/// A little-endian whole number; one that is negative or too large becomes one that fits nothing.
fn unsigned(bytes: &[u8]) -> usize {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX)
}
