//! numpy's file of one array, as `np.savez` puts them into a zip file (numpy's `lib/format.py`, versions 1.0 to 3.0).
//!
//! Refused: object arrays, which are pickles and can run anything, and records.

use super::array::{Array, ByteOrder, NumberType, count};
use crate::shown;

const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest header: a plain array's has 128 bytes.
const MAX_HEADER: usize = 1 << 16;

/// What the header says.
struct Header {
    stored: NumberType,
    order: ByteOrder,
    fortran: bool,
    shape: Vec<usize>,
}

/// Reads a whole file.
///
/// # Errors
/// If it is not numpy's, its numbers are no plain numbers, or its bytes are not as many as its shape says.
pub(super) fn read(bytes: &[u8]) -> Result<Array, String> {
    let (header, data) = split(bytes)?;
    let header = parse(header)?;
    if !header.fortran {
        return Array::of_bytes(header.stored, header.order, header.shape, data);
    }
    if count(&header.shape)? * header.stored.bytes() != data.len() {
        let bytes = data.len();
        return Err(format!(
            "{bytes} bytes do not fit its shape {:?}",
            header.shape
        ));
    }
    let mut strides = Vec::new();
    let mut step = 1;
    for n in &header.shape {
        strides.push(step);
        step *= n;
    }
    let numbers = (header.stored, header.order);
    Array::of_storage(numbers, header.shape, &strides, 0, data)
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let rest = bytes.strip_prefix(MAGIC);
    let rest = rest.ok_or("it does not begin as numpy's arrays do (\\x93NUMPY)")?;
    let short = || "it ends inside its header".to_owned();
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => return Err(format!("its format version is {other}, expected 1 to 3")),
    };
    if length > MAX_HEADER {
        return Err(format!(
            "its header claims {length} bytes, expected at most {MAX_HEADER}"
        ));
    }
    rest.split_at_checked(length).ok_or_else(short)
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (77, 768), }`.
fn parse(header: &[u8]) -> Result<Header, String> {
    let text = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    let wrong = |what: &str| {
        let text = text.trim_end();
        format!("its header has no {what}: `{}`", shown::text(text))
    };
    let after = |key: &str| {
        let (_, rest) = text.split_once(key)?;
        Some(rest.trim_start().strip_prefix(':')?.trim_start())
    };
    let descr = after("'descr'").ok_or_else(|| wrong("'descr'"))?;
    let (stored, order) = number_type(descr).map_err(|found| {
        let found = shown::text(&found).to_string();
        match found.contains('O') {
            true => format!(
                "it is an array of Python objects ({found}), that is a pickle, which plumb never runs"
            ),
            false => format!("its numbers are {found}, which is no plain type of number"),
        }
    })?;
    let fortran = match after("'fortran_order'") {
        Some(rest) if rest.starts_with("False") => false,
        Some(rest) if rest.starts_with("True") => true,
        _ => return Err(wrong("'fortran_order'")),
    };
    let shape = after("'shape'").and_then(|rest| rest.strip_prefix('(')?.split_once(')'));
    let (shape, _) = shape.ok_or_else(|| wrong("'shape'"))?;
    let numbers = shape.split(',').map(str::trim).filter(|n| !n.is_empty());
    let shape: Result<Vec<usize>, _> = numbers.map(str::parse).collect();
    let shape = shape.map_err(|_| wrong("'shape' of whole numbers"))?;
    Ok(Header {
        stored,
        order,
        fortran,
        shape,
    })
}

/// The type behind numpy's `'<f4'`; else what stands there.
fn number_type(descr: &str) -> Result<(NumberType, ByteOrder), String> {
    let inner = descr
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''));
    // A record's is a list.
    let Some((word, _)) = inner else {
        return Err(descr.chars().take(40).collect());
    };
    let order = match word.as_bytes().first() {
        Some(b'>') => ByteOrder::Big,
        _ => ByteOrder::Little,
    };
    let stored = match word.trim_start_matches(['<', '>', '|', '=']) {
        "f8" => NumberType::F64,
        "f4" => NumberType::F32,
        "f2" => NumberType::F16,
        "i8" => NumberType::I64,
        "i4" => NumberType::I32,
        "i2" => NumberType::I16,
        "i1" => NumberType::I8,
        "u1" => NumberType::U8,
        "b1" => NumberType::Bool,
        _ => return Err(word.to_owned()),
    };
    Ok((stored, order))
}

#[cfg(test)]
pub(super) mod tests {
    use super::read;

    /// A file as numpy writes it.
    pub(in super::super) fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let length = u16::try_from(header.len()).expect("a short header");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn both_orders_of_numbers_and_bytes_are_read() {
        let data = f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let rows = read(&npy("'<f4'", "False", "(2, 3)", &data)).expect("read");
        assert_eq!((rows.shape, rows.values[1]), (vec![2, 3], 2.0));
        let columns = read(&npy("'<f4'", "True", "(2, 3)", &data)).expect("read");
        assert_eq!(columns.values, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        let big: Vec<u8> = [258i64].iter().flat_map(|v| v.to_be_bytes()).collect();
        let single = read(&npy("'>i8'", "False", "()", &big)).expect("read");
        assert_eq!(
            (single.shape, single.values),
            (Vec::<usize>::new(), vec![258.0])
        );
        let flag = read(&npy("'|b1'", "False", "()", &[1])).expect("read");
        assert_eq!(flag.values, [1.0]);
    }

    #[test]
    fn what_is_no_plain_array_is_refused_in_words() {
        let cases = [
            (npy("'|O'", "False", "(1,)", b"x"), "Python objects"),
            (
                npy("[('a', '<f4')]", "False", "(1,)", b"abcd"),
                "no plain type",
            ),
            (npy("'<c8'", "False", "(1,)", &[0; 8]), "no plain type"),
            (npy("'<f4'", "False", "(3,)", &[0; 8]), "8 bytes do not fit"),
            (npy("'<f4'", "True", "(3,)", &[0; 8]), "8 bytes do not fit"),
            (
                npy("'<f4'", "False", "(99999999999, 9)", b""),
                "more than 67108864 numbers",
            ),
            (
                npy("'<f4'", "False", "(-1,)", b""),
                "'shape' of whole numbers",
            ),
            (npy("'<f4'", "Maybe", "(1,)", &[0; 4]), "no 'fortran_order'"),
            (b"PK\x03\x04".to_vec(), "NUMPY"),
            (b"\x93NUMPY\x09\x00".to_vec(), "version is 9"),
            (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "inside its header"),
            (
                b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(),
                "at most 65536",
            ),
        ];
        for (bytes, says) in cases {
            let why = read(&bytes).expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }
}
