//! Files of `np.savez`: a zip file, not compressed, of one file of numpy for each array (numpy's `lib/format.py`, version 1.0).

use super::NumberType;
use super::archive;
use super::write::ToWrite;

/// The file.
///
/// # Errors
/// For numbers that numpy has no type of.
pub fn npz(arrays: &[ToWrite]) -> Result<Vec<u8>, String> {
    let mut parts = Vec::new();
    for array in arrays {
        parts.push((format!("{}.npy", array.name), npy(array)?));
    }
    archive::pack(&parts)
}

fn npy(array: &ToWrite) -> Result<Vec<u8>, String> {
    let descr = match array.stored {
        NumberType::F64 => "<f8",
        NumberType::F32 => "<f4",
        NumberType::F16 => "<f2",
        NumberType::I64 => "<i8",
        NumberType::Bool => "|b1",
        other => return Err(format!("numpy has no numbers of type {}", other.name())),
    };
    let shape: String = array.shape.iter().map(|n| format!("{n},")).collect();
    // Python's way to write a tuple: `(2, 3)`, but `(2,)`.
    let shape = match array.shape.len() {
        0 | 1 => shape,
        _ => shape.trim_end_matches(',').replace(',', ", "),
    };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version and length are 10 bytes; the numbers begin at a multiple of 64, after the line's end.
    let filled = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.push_str(&" ".repeat(filled - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| "too many dimensions".to_owned())?;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(&array.bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::{NumberType, npy, write::ToWrite};

    #[test]
    fn what_is_written_is_read_again() {
        let numbers: Vec<u8> = [1.5f32, -2.0, 0.25, 3.0, 4.0, 5.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        for shape in [vec![6], vec![2, 3], vec![1, 3, 2]] {
            let array = ToWrite::new("x", NumberType::F32, shape.clone(), numbers.clone());
            let file = super::npy(&array).expect("written");
            assert_eq!(file.len() % 64, 6 * 4);
            let read = npy::read(&file).expect("read");
            assert_eq!(read.shape, shape);
            assert_eq!(read.values, [1.5, -2.0, 0.25, 3.0, 4.0, 5.0]);
        }
        let read = npy::read(&super::npy(&ToWrite::flag("f", true)).expect("written"));
        let read = read.expect("read");
        assert_eq!((read.shape.len(), read.values), (0, vec![1.0]));
    }

    #[test]
    fn numpy_has_no_bf16() {
        let array = ToWrite::new("x", NumberType::Bf16, vec![1], vec![0, 0]);
        assert!(super::npy(&array).expect_err("refused").contains("bf16"));
    }
}
