//! An array of numbers out of a foreign file: how it was stored, and its values as f32.

use half::{bf16, f16};

pub use crate::files::NumberType;
use crate::files::pickle::MAX_DIMENSIONS;
use crate::shown;

/// The most numbers that are read of one file, 256 MiB as f32. A FLUX caption of 512 tokens has two million.
pub(super) const MAX_NUMBERS: usize = 1 << 26;

/// One number, little-endian, of as many bytes as [`NumberType::bytes`] says; zeros stand for what is missing.
fn number(stored: NumberType, bytes: &[u8]) -> f32 {
    fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    let byte = bytes.first().copied().unwrap_or(0);
    match stored {
        NumberType::F64 => f64::from_le_bytes(first(bytes)) as f32,
        NumberType::F32 => f32::from_le_bytes(first(bytes)),
        NumberType::F16 => f16::from_le_bytes(first(bytes)).to_f32(),
        NumberType::Bf16 => bf16::from_le_bytes(first(bytes)).to_f32(),
        NumberType::F8E4m3 => float8::F8E4M3::from_bits(byte).to_f32(),
        NumberType::F8E5m2 => float8::F8E5M2::from_bits(byte).to_f32(),
        // Token ids and masks: exact up to 16 million.
        NumberType::I64 => i64::from_le_bytes(first(bytes)) as f32,
        NumberType::I32 => i32::from_le_bytes(first(bytes)) as f32,
        NumberType::I16 => f32::from(i16::from_le_bytes(first(bytes))),
        NumberType::I8 => f32::from(i8::from_le_bytes(first(bytes))),
        NumberType::U8 => f32::from(byte),
        NumberType::Bool => f32::from(u8::from(byte != 0)),
    }
}

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// An array as a file has it, its last dimension innermost.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// How the file stores each number.
    pub stored: NumberType,
    /// Its dimensions; none for a single number.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: Vec<f32>,
}

impl Array {
    /// Of bytes that hold it from the first number to the last.
    pub(super) fn of_bytes(
        stored: NumberType,
        order: ByteOrder,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> Result<Self, String> {
        let numbers = count(&shape)?;
        let needed = numbers * stored.bytes();
        if bytes.len() != needed {
            return Err(format!(
                "{} bytes do not fit {} of shape {shape:?}, expected {needed}",
                bytes.len(),
                stored.name()
            ));
        }
        let values = bytes
            .chunks_exact(stored.bytes())
            .map(|number| value(stored, order, number))
            .collect();
        Ok(Self {
            stored,
            shape,
            values,
        })
    }

    /// Of a storage that it lies in with gaps or in another order: torch's views, numpy's Fortran order. `strides` and `offset`
    /// count numbers.
    pub(super) fn of_storage(
        (stored, order): (NumberType, ByteOrder),
        shape: Vec<usize>,
        strides: &[usize],
        offset: usize,
        storage: &[u8],
    ) -> Result<Self, String> {
        let numbers = count(&shape)?;
        if strides.len() != shape.len() {
            return Err(format!(
                "{} dimensions have {} strides",
                shape.len(),
                strides.len()
            ));
        }
        let held = storage.len() / stored.bytes();
        let last = shape.iter().zip(strides).try_fold(offset, |at, (n, step)| {
            at.checked_add(n.saturating_sub(1).checked_mul(*step)?)
        });
        if numbers > 0 && last.is_none_or(|last| last >= held) {
            return Err(format!(
                "shape {shape:?} with strides {strides:?} at {offset} reaches beyond the {held} numbers of its storage"
            ));
        }
        let mut values = Vec::with_capacity(numbers);
        let mut place = vec![0usize; shape.len()];
        for _ in 0..numbers {
            let at = offset + place.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>();
            let number = &storage[at * stored.bytes()..(at + 1) * stored.bytes()];
            values.push(value(stored, order, number));
            for (i, n) in place.iter_mut().zip(&shape).rev() {
                *i += 1;
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
        Ok(Self {
            stored,
            shape,
            values,
        })
    }

    /// Its rows: `(rows, width)` of a matrix, whatever dimensions of one stand before; `None` for what is none.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        let (width, before) = self.shape.split_last()?;
        let (rows, ones) = before.split_last()?;
        ones.iter().all(|n| *n == 1).then_some((*rows, *width))
    }

    /// The length of a vector, whatever dimensions of one stand before; `None` for what is none.
    pub fn vector(&self) -> Option<usize> {
        let (width, before) = self.shape.split_last()?;
        before.iter().all(|n| *n == 1).then_some(*width)
    }

    /// How many of its numbers are infinite or not a number.
    pub fn not_finite(&self) -> usize {
        self.values.iter().filter(|v| !v.is_finite()).count()
    }
}

fn value(stored: NumberType, order: ByteOrder, bytes: &[u8]) -> f32 {
    if order == ByteOrder::Little || bytes.len() == 1 {
        return number(stored, bytes);
    }
    let mut turned = [0; 8];
    for (to, from) in turned.iter_mut().zip(bytes.iter().rev()) {
        *to = *from;
    }
    number(stored, &turned[..bytes.len().min(8)])
}

/// How many numbers a shape has, which are few enough to be read.
pub(super) fn count(shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_DIMENSIONS {
        let n = shape.len();
        return Err(format!(
            "it has {n} dimensions, at most {MAX_DIMENSIONS} can be"
        ));
    }
    let numbers = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    numbers.filter(|n| *n <= MAX_NUMBERS).ok_or_else(|| {
        let shape = format!("{shape:?}");
        format!(
            "shape {} has more than {MAX_NUMBERS} numbers",
            shown::text(&shape)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Array, ByteOrder, NumberType};

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn a_view_is_read_by_its_strides_and_never_beyond_its_storage() {
        let storage = bytes(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let f32s = (NumberType::F32, ByteOrder::Little);
        let turned = Array::of_storage(f32s, vec![2, 3], &[1, 2], 0, &storage).expect("read");
        assert_eq!(turned.values, [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let part = Array::of_storage(f32s, vec![2], &[2], 1, &storage).expect("read");
        assert_eq!(part.values, [1.0, 3.0]);
        for (shape, strides, offset) in [
            (vec![2, 3], vec![3, 1], 1),
            (vec![7], vec![1], 0),
            (vec![2], vec![usize::MAX], 1),
            (vec![1 << 40, 1 << 40], vec![0, 0], 0),
            (vec![2], vec![], 0),
        ] {
            let read = Array::of_storage(f32s, shape.clone(), &strides, offset, &storage);
            assert!(read.is_err(), "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn big_endian_numbers_are_turned() {
        let big: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| v.to_be_bytes())
            .collect();
        let read = Array::of_bytes(NumberType::F32, ByteOrder::Big, vec![2], &big).expect("read");
        assert_eq!(read.values, [1.5, -2.0]);
        let short = Array::of_bytes(NumberType::F32, ByteOrder::Big, vec![3], &big);
        assert!(short.is_err());
    }

    #[test]
    fn dimensions_of_one_before_a_matrix_do_not_count() {
        let array = |shape: &[usize]| Array {
            stored: NumberType::F32,
            values: vec![0.0; shape.iter().product()],
            shape: shape.to_vec(),
        };
        assert_eq!(array(&[1, 77, 8]).matrix(), Some((77, 8)));
        assert_eq!(array(&[77, 8]).matrix(), Some((77, 8)));
        assert_eq!(array(&[2, 77, 8]).matrix(), None);
        assert_eq!(array(&[1, 8]).vector(), Some(8));
        assert_eq!(array(&[]).vector(), None);
    }
}
