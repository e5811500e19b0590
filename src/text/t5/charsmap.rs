//! SentencePiece's precompiled character map: a double-array trie and the texts it points into.
//!
//! The library that walks it indexes without asking, so a damaged map is refused here, before it is used.
//! Layout: little-endian `u32` size of the trie in bytes; the trie's `u32` units; the replacement texts, each
//! ended by NUL. Source: `Builder::CompileCharsMap` of SentencePiece, and the darts-clone units it stores.

/// A map that was checked.
pub(super) struct CharsMap {
    units: Vec<usize>,
    texts: String,
}

impl CharsMap {
    /// The map in `charsmap`, of which walking with any text stays inside.
    pub(super) fn of(charsmap: &[u8]) -> Result<Self, String> {
        let (units, texts) = read(charsmap)?;
        Ok(Self {
            units,
            texts: texts.to_owned(),
        })
    }

    /// The longest beginning of `text` that the map replaces: its length in bytes, and by what.
    pub(super) fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut at = offset(*self.units.first()?);
        let mut longest = None;
        for (index, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let unit = *self.units.get(at)?;
            if unit & ((1 << 31) | 0xFF) != usize::from(byte) {
                break;
            }
            at ^= offset(unit);
            if has_value(unit) {
                longest = Some((index + 1, self.units.get(at)? & 0x7FFF_FFFF));
            }
        }
        let (length, start) = longest?;
        let text = self.texts.get(start..)?;
        // Each text is ended by NUL.
        Some((length, text.split('\0').next().unwrap_or(text)))
    }
}

/// Checks that walking `charsmap` with any text stays inside it.
pub(super) fn check(charsmap: &[u8]) -> Result<(), String> {
    read(charsmap).map(|_| ())
}

fn read(charsmap: &[u8]) -> Result<(Vec<usize>, &str), String> {
    let damaged = |what: &str| format!("the precompiled character map is damaged: {what}");
    let (size, rest) = charsmap
        .split_first_chunk::<4>()
        .ok_or_else(|| damaged("it has no header"))?;
    // `spm_precompiled`, which walks it, counts whole units of 4 bytes too.
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    if size == 0 || size > rest.len() {
        return Err(damaged("the trie is empty or cut off"));
    }
    let (trie, texts) = rest.split_at(size);
    let texts = std::str::from_utf8(texts).map_err(|_| damaged("its texts are not UTF-8"))?;
    let units: Vec<usize> = trie
        .chunks_exact(4)
        .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize)
        .collect();
    check_trie(&units, texts).map_err(damaged)?;
    Ok((units, texts))
}

/// Visits every unit that some text can reach.
fn check_trie(units: &[usize], texts: &str) -> Result<(), &'static str> {
    // A damaged trie may link in a circle.
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(units[0])];
    while let Some(base) = open.pop() {
        // The children of a unit lie at base ^ 1 ..= base ^ 255, its value at base itself.
        if base | 255 >= units.len() {
            return Err("a link leaves the trie");
        }
        for label in 1..=255 {
            let child = base ^ label;
            let unit = units[child];
            // Bit 31 marks a unit that holds a value and has no label.
            if unit & ((1 << 31) | 0xFF) != label || std::mem::replace(&mut seen[child], true) {
                continue;
            }
            let below = child ^ offset(unit);
            if has_value(unit) {
                let value = units.get(below).ok_or("a value lies outside the trie")? & 0x7FFF_FFFF;
                if !texts.is_char_boundary(value) {
                    return Err("a value points outside the texts");
                }
            }
            open.push(below);
        }
    }
    Ok(())
}

// Bits as in `DoubleArrayUnit` of darts-clone.

fn has_value(unit: usize) -> bool {
    (unit >> 8) & 1 == 1
}

fn offset(unit: usize) -> usize {
    // Bit 9: the offset counts in steps of 256.
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}
