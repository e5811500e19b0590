//! Damage for the readers of other trainers' files: every damaged file must be read or refused, without a panic, a hang or a message
//! that harms a terminal.
//!
//! A few seconds in each run of the tests; `PLUMB_FUZZ_SECONDS=3600` for longer, with other damage from another `PLUMB_FUZZ_SEED`.
//! What ever ends in a panic is printed, and belongs into `tests/corpus`, in a folder of its own, with a test.

use std::time::{Duration, Instant};

/// xorshift64*: good enough to choose bytes.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }

    /// Changes a few bytes, cuts, repeats or inserts; `words` are what may be inserted beside single bytes.
    pub(super) fn damage(&mut self, bytes: &mut Vec<u8>, words: &[&[u8]]) {
        let kinds = if words.is_empty() { 6 } else { 8 };
        for _ in 0..=self.next(4) {
            let at = self.next(bytes.len());
            match self.next(kinds) {
                0 => bytes.truncate(at),
                1 => {
                    let part = bytes[at..(at + 16).min(bytes.len())].to_vec();
                    let to = self.next(bytes.len());
                    bytes.splice(to..to, part);
                }
                2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.next(5)],
                3 if !bytes.is_empty() => bytes[at] ^= 1 << self.next(8),
                4 => bytes.insert(at, self.next(256) as u8),
                6 | 7 => {
                    let word = words[self.next(words.len())];
                    let times = [1, 1, 1, 2, 300][self.next(5)];
                    bytes.splice(at..at, word.repeat(times));
                }
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

/// The longest that a damaged file of a few kB may take, in a build without optimization on a busy machine.
const SLOW: Duration = Duration::from_secs(30);

/// Damages the `wholes` in turn, again and again, at least `least` times; what is read or refused is for `reader`, which gets the number
/// of the whole as well.
pub(super) fn fuzz(
    wholes: &[&[u8]],
    words: &[&[u8]],
    least: u64,
    reader: impl Fn(usize, &[u8]) + std::panic::RefUnwindSafe,
) {
    let time = Duration::from_secs(number("PLUMB_FUZZ_SECONDS", 2));
    let mut random = Random(number("PLUMB_FUZZ_SEED", 0x9e37_79b9_7f4a_7c15) | 1);
    let (start, mut runs) = (Instant::now(), 0u64);
    // Some at least, however slow the machine is.
    while runs < least || start.elapsed() < time {
        let which = random.next(wholes.len());
        let mut bytes = wholes[which].to_vec();
        random.damage(&mut bytes, words);
        let begin = Instant::now();
        let read = std::panic::catch_unwind(|| reader(which, &bytes));
        assert!(
            read.is_ok() && begin.elapsed() < SLOW,
            "run {runs}, of whole {which}, {:?}: {:?}",
            begin.elapsed(),
            bytes.escape_ascii().to_string()
        );
        runs += 1;
    }
}
