//! Files of `torch.save`: a zip file with a pickle of what was saved and the numbers of each tensor beside it (PyTorch's
//! `torch/serialization.py`, the format since 1.6), as it is or in gzip.

use std::collections::BTreeMap;

use super::archive;
use super::array::{Array, ByteOrder, MAX_NUMBERS, count};
use crate::files::pickle::{self, Id, Pickle, Value};
use crate::shown;

/// How deep lists and dictionaries may be inside each other.
const MAX_DEPTH: usize = 8;

/// The most values that what was saved may have, where parts of it are named more than once.
const MAX_VALUES: usize = 4_000_000;

/// The most bytes of text in it, counted the same way.
const MAX_TEXT: usize = 1 << 26;

/// What was saved.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Saved {
    /// `None`, and what has no meaning in a cache.
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tensor(Array),
    List(Vec<Self>),
    Dict(BTreeMap<String, Self>),
}

/// What a zip file begins with, and a gzip file.
const ZIP: &[u8] = b"PK\x03\x04";
const GZIP: &[u8] = b"\x1f\x8b";

/// Reads a whole file.
///
/// # Errors
/// If it is not torch's, is damaged, or has anything in it but tensors and plain values.
pub(super) fn read(bytes: &[u8]) -> Result<Saved, String> {
    read_with(bytes, true)
}

/// The same without tensors, in whose places there is nothing: for who asks what an entry is of.
pub(super) fn read_without_numbers(bytes: &[u8]) -> Result<Saved, String> {
    read_with(bytes, false)
}

fn read_with(bytes: &[u8], with_numbers: bool) -> Result<Saved, String> {
    let unpacked;
    let bytes = match bytes.starts_with(GZIP) {
        true => {
            unpacked = archive::gunzip(bytes)?;
            &unpacked
        }
        false => bytes,
    };
    if !bytes.starts_with(ZIP) {
        return Err(match bytes.starts_with(b"\x80\x02\x8a\x0a") {
            true => "it is in torch's format from before 1.6; load and save it with a newer torch",
            false => "it is no file of torch.save, which is a zip file",
        }
        .to_owned());
    }
    let parts = archive::parts(bytes)?;
    let pickle = parts
        .iter()
        .find_map(|(name, content)| Some((name.strip_suffix("data.pkl")?, content)));
    let (folder, pickle) = pickle.ok_or("it has no `data.pkl`, as what torch.save writes has")?;
    let order = match parts.get(&format!("{folder}byteorder")).map(Vec::as_slice) {
        Some(b"big") => ByteOrder::Big,
        _ => ByteOrder::Little,
    };
    let pickle = pickle::read(pickle)?;
    let mut reader = Reader {
        pickle: &pickle,
        parts: &parts,
        folder,
        order,
        with_numbers,
        numbers: MAX_NUMBERS,
        values: MAX_VALUES,
        text: MAX_TEXT,
    };
    reader.saved(pickle.root(), MAX_DEPTH)
}

/// From values of a pickle to what they say, with what may still be made.
struct Reader<'a> {
    pickle: &'a Pickle,
    parts: &'a BTreeMap<String, Vec<u8>>,
    folder: &'a str,
    order: ByteOrder,
    with_numbers: bool,
    numbers: usize,
    values: usize,
    text: usize,
}

impl<'a> Reader<'a> {
    fn text(&mut self, text: &'a str) -> Result<String, String> {
        self.text = self
            .text
            .checked_sub(text.len())
            .ok_or_else(|| format!("what was saved has more than {MAX_TEXT} bytes of text"))?;
        Ok(text.to_owned())
    }

    fn saved(&mut self, id: Id, depth: usize) -> Result<Saved, String> {
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(format!(
                "what was saved is more than {MAX_DEPTH} lists deep"
            ));
        };
        self.values = self
            .values
            .checked_sub(1)
            .ok_or_else(|| format!("what was saved has more than {MAX_VALUES} values"))?;
        Ok(match self.pickle.value(id) {
            Value::None | Value::Known(_) | Value::Storage(..) => Saved::None,
            Value::Bool(value) => Saved::Bool(*value),
            Value::Int(value) => Saved::Int(*value),
            Value::Float(value) => Saved::Float(*value),
            Value::Text(text) => Saved::Text(self.text(text)?),
            Value::List(items) => {
                let items = items.iter().map(|item| self.saved(*item, deeper));
                Saved::List(items.collect::<Result<_, _>>()?)
            }
            Value::Dict(pairs) => {
                let mut dict = BTreeMap::new();
                for (key, value) in pairs {
                    let key = match self.pickle.value(*key) {
                        Value::Text(text) => self.text(text)?,
                        Value::Int(number) => number.to_string(),
                        _ => return Err("a key of what was saved is no text".to_owned()),
                    };
                    dict.insert(key, self.saved(*value, deeper)?);
                }
                Saved::Dict(dict)
            }
            Value::Tensor { .. } if !self.with_numbers => Saved::None,
            Value::Tensor {
                stored,
                storage,
                offset,
                shape,
                strides,
            } => {
                let numbers = count(shape)?;
                self.numbers = self
                    .numbers
                    .checked_sub(numbers)
                    .ok_or_else(|| format!("its tensors have more than {MAX_NUMBERS} numbers"))?;
                let bytes = self.parts.get(&format!("{}data/{storage}", self.folder));
                let bytes = bytes.ok_or_else(|| {
                    format!(
                        "the numbers `data/{}` of a tensor are missing",
                        shown::text(storage)
                    )
                })?;
                let numbers = (*stored, self.order);
                let array = Array::of_storage(numbers, shape.clone(), strides, *offset, bytes);
                Saved::Tensor(array.map_err(|why| format!("a tensor: {why}"))?)
            }
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::archive::tests::zipped;
    use super::{Saved, read};

    /// `torch.save({"x": torch.arange(6.).reshape(2, 3).T})`: a view with strides, as torch 2 wrote its pickle.
    pub(in super::super) const PICKLE: &[u8] = b"\x80\x02}q\x00X\x01\x00\x00\x00xq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00K\x03K\x02\x86q\x08K\x01K\x03\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.";

    fn numbers(count: usize) -> Vec<u8> {
        (0..count).flat_map(|n| (n as f32).to_le_bytes()).collect()
    }

    #[test]
    fn a_view_of_a_storage_is_read() {
        let bytes = zipped(&[("a/data.pkl", PICKLE), ("a/data/0", &numbers(6))], false);
        let Saved::Dict(dict) = read(&bytes).expect("read") else {
            panic!("a dictionary");
        };
        let Saved::Tensor(x) = &dict["x"] else {
            panic!("a tensor");
        };
        assert_eq!(x.shape, [3, 2]);
        assert_eq!(x.values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let file = |pickle: &[u8], count: usize| {
            zipped(
                &[("a/data.pkl", pickle), ("a/data/0", &numbers(count))],
                false,
            )
        };
        let deep = [&b"]".repeat(20)[..], &b"a".repeat(19), b"."].concat();
        // A list inside itself.
        let circle = b"]q\x00h\x00a.";
        let cases = [
            (file(PICKLE, 5), "reaches beyond the 5 numbers"),
            (
                zipped(&[("a/data.pkl", PICKLE)], false),
                "`data/0` of a tensor are missing",
            ),
            (zipped(&[("a/x", PICKLE)], false), "no `data.pkl`"),
            (file(&deep, 1), "lists deep"),
            (file(circle, 1), "lists deep"),
            (b"\x80\x02\x8a\x0al\xfc".to_vec(), "before 1.6"),
            (b"{}".to_vec(), "no file of torch.save"),
            (b"PK\x03\x04".to_vec(), "no whole zip"),
        ];
        for (bytes, says) in cases {
            let why = read(&bytes).expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn a_text_named_again_and_again_does_not_fill_memory() {
        let text = [&b"X\x00\x00\x01\x00"[..], &[b'a'; 1 << 16], b"q\x00"].concat();
        let pickle = [&text[..], b"](", &b"h\x00".repeat(2000), b"e."].concat();
        let bytes = zipped(&[("a/data.pkl", &pickle)], false);
        let why = read(&bytes).expect_err("too much");
        assert!(why.contains("bytes of text"), "{why}");
    }

    #[test]
    fn parts_named_again_and_again_do_not_fill_memory() {
        // Ten lists, each of ten times the one before.
        let mut pickle = b"]q\x00".to_vec();
        for level in 1..7u8 {
            pickle.extend([b']', b'q', level, b'(']);
            pickle.extend([b'h', level - 1].repeat(50));
            pickle.push(b'e');
        }
        pickle.push(b'.');
        let bytes = zipped(&[("a/data.pkl", &pickle)], false);
        let why = read(&bytes).expect_err("too many");
        assert!(why.contains("more than 4000000 values"), "{why}");
    }
}
