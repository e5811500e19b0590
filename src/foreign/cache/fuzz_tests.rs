//! Small files of each format, damaged at random: every one must be read or refused, without a panic and within bounds.

use super::archive::tests::zipped;
use super::npy::tests::npy;
use super::{crops, npy as numpy_file, read, torch};
use crate::foreign::fuzz_tests;

fn fuzz(whole: &[u8], reader: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    fuzz_tests::fuzz(&[whole], &[], 300, |_, bytes| reader(bytes));
}

fn f32s(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| (n as f32).to_le_bytes()).collect()
}

#[test]
fn a_damaged_npy_is_read_or_refused() {
    let whole = npy("'<f4'", "True", "(2, 3)", &f32s(6));
    fuzz(&whole, |bytes| {
        if let Ok(array) = numpy_file::read(bytes) {
            assert_eq!(array.values.len(), array.shape.iter().product::<usize>());
        }
    });
}

#[test]
fn a_damaged_npz_is_read_or_refused() {
    let t5 = npy("'<f4'", "False", "(2, 3)", &f32s(6));
    let flag = npy("'|b1'", "False", "()", &[1]);
    let whole = zipped(&[("t5_out.npy", &t5), ("apply.npy", &flag)], true);
    fuzz(&whole, |bytes| drop(read::numpy(bytes)));
}

#[test]
fn a_damaged_pt_is_read_or_refused() {
    let whole = zipped(
        &[
            ("a/data.pkl", torch::tests::PICKLE),
            ("a/byteorder", b"little"),
            ("a/data/0", &f32s(6)),
        ],
        false,
    );
    fuzz(&whole, |bytes| drop(torch::read(bytes)));
    // The pickle alone, which the zip file's checksum guards otherwise.
    fuzz(torch::tests::PICKLE, |pickle| {
        let parts: [(&str, &[u8]); 2] = [("a/data.pkl", pickle), ("a/data/0", &[0; 24])];
        drop(torch::read(&zipped(&parts, false)));
    });
}

#[test]
fn a_damaged_list_of_crops_is_read_or_refused() {
    let whole = br#"{"a/b.png": {"crop_coordinates": [0, 16], "target_size": [64, 64]}}"#;
    assert_eq!(crops::read(whole).map(|crops| crops.len()).ok(), Some(1));
    fuzz(whole, |bytes| drop(crops::read(bytes)));
}

#[test]
fn a_damaged_safetensors_file_is_read_or_refused() {
    let header = br#"{"__metadata__":{"caption1":"a cat"},"t5_vec_bfloat16":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}"#;
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(header);
    whole.extend_from_slice(&[0; 8]);
    assert!(read::safetensors(&whole).is_ok());
    fuzz(&whole, |bytes| drop(read::safetensors(bytes)));
}
