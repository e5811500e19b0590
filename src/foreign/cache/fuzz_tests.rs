//! Small files of each format, damaged at random: every one must be read or refused, without a panic and within bounds.
//!
//! A few seconds in each run of the tests; `PLUMB_FUZZ_SECONDS=3600` for longer, with other damage from another `PLUMB_FUZZ_SEED`.
//! What ever ends in a panic is printed, and belongs into `tests/corpus`, in a folder `caches` of its own, with a test.

use std::time::{Duration, Instant};

use super::archive::tests::zipped;
use super::npy::tests::npy;
use super::{npy as numpy_file, read, torch};

/// xorshift64*: good enough to choose bytes.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }

    /// Changes a few bytes, cuts, repeats or inserts.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.next(4) {
            let at = self.next(bytes.len());
            match self.next(6) {
                0 => bytes.truncate(at),
                1 => {
                    let part = bytes[at..(at + 16).min(bytes.len())].to_vec();
                    let to = self.next(bytes.len());
                    bytes.splice(to..to, part);
                }
                2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.next(5)],
                3 if !bytes.is_empty() => bytes[at] ^= 1 << self.next(8),
                4 => bytes.insert(at, self.next(256) as u8),
                _ if !bytes.is_empty() => {
                    bytes.remove(at);
                }
                _ => {}
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// Damages `whole` again and again; what is read or refused is for `reader`.
fn fuzz(whole: &[u8], reader: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let time = Duration::from_secs(number("PLUMB_FUZZ_SECONDS", 2));
    let mut random = Random(number("PLUMB_FUZZ_SEED", 0x9e37_79b9_7f4a_7c15) | 1);
    let (start, mut runs) = (Instant::now(), 0u64);
    // At least some hundred, however slow the machine is.
    while runs < 300 || start.elapsed() < time {
        let mut bytes = whole.to_vec();
        random.damage(&mut bytes);
        let read = std::panic::catch_unwind(|| reader(&bytes));
        assert!(read.is_ok(), "run {runs}: {bytes:?}");
        runs += 1;
    }
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
fn a_damaged_safetensors_file_is_read_or_refused() {
    let header = br#"{"__metadata__":{"caption1":"a cat"},"t5_vec_bfloat16":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}"#;
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(header);
    whole.extend_from_slice(&[0; 8]);
    assert!(read::safetensors(&whole).is_ok());
    fuzz(&whole, |bytes| drop(read::safetensors(bytes)));
}
