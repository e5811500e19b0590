//! Numbers as short texts: base64 of little-endian integers, which the page's script unpacks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What stands for no number among [`units`].
const NONE: u16 = u16::MAX;

/// Ids, three bytes each.
pub(super) fn ids(ids: &[u32]) -> String {
    let bytes = ids
        .iter()
        .flat_map(|id| id.to_le_bytes().into_iter().take(3));
    base64(&bytes.collect::<Vec<u8>>())
}

/// Numbers from 0 to `most`, two bytes each.
pub(super) fn parts(numbers: &[f32], most: f32) -> String {
    let part = |number: &f32| match most > 0.0 {
        true => (f64::from(*number) / f64::from(most)).clamp(0.0, 1.0) * f64::from(NONE),
        false => 0.0,
    };
    words(numbers.iter().map(|number| part(number).round() as u16))
}

/// Numbers from -1 to 1, two bytes each; there may be none.
pub(super) fn units(numbers: &[Option<f64>]) -> String {
    let unit = |number: f64| ((number.clamp(-1.0, 1.0) + 1.0) / 2.0 * f64::from(NONE - 1)).round();
    let word = |number: &Option<f64>| number.map_or(NONE, |number| unit(number) as u16);
    words(numbers.iter().map(word))
}

fn words(words: impl Iterator<Item = u16>) -> String {
    base64(&words.flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
}

/// Bytes as base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::{base64, ids, parts, units};

    #[test]
    fn numbers_are_packed_as_the_script_unpacks_them() {
        assert_eq!(ids(&[1, 49407]), base64(&[1, 0, 0, 0xff, 0xc0, 0]));
        assert_eq!(
            parts(&[0.0, 2.0, 9.0], 2.0),
            base64(&[0, 0, 255, 255, 255, 255])
        );
        assert_eq!(parts(&[3.0], 0.0), base64(&[0, 0]));
        let cosines = [Some(-1.0), Some(1.0), None];
        assert_eq!(units(&cosines), base64(&[0, 0, 254, 255, 255, 255]));
    }
}
