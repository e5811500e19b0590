//! The block formats of GGUF files: numbers as small integers with shared scales, as llama.cpp's `ggml-quants.c`
//! defines them.
//!
//! Each decoder takes whole blocks and writes their numbers, with the operations in that code's order, so that
//! results are equal bit for bit.

use half::f16;

use super::element::BlockType;

/// Decodes whole blocks: `bytes` has as many as fill `into`.
pub(super) fn decode(bytes: &[u8], from: BlockType, into: &mut [f32]) {
    let (elements, size) = from.size();
    let decode: fn(&[u8], &mut [f32]) = match from {
        // In front of the numbers: a scale, an offset where there is one (Q4_1, Q5_1), and the fifth bits (Q5). `b[n..]` is
        // where numbers begin.
        BlockType::Q4_0 => |b, y| small(y, &b[2..], None, |q| (q - 8.0) * half_at(b, 0)),
        BlockType::Q4_1 => |b, y| small(y, &b[4..], None, |q| q * half_at(b, 0) + half_at(b, 2)),
        BlockType::Q5_0 => |b, y| small(y, &b[6..], fifth(b, 2), |q| (q - 16.0) * half_at(b, 0)),
        BlockType::Q5_1 => |b, y| {
            small(y, &b[8..], fifth(b, 4), |q| {
                q * half_at(b, 0) + half_at(b, 2)
            });
        },
        BlockType::Q8_0 => |b, y| {
            let scale = half_at(b, 0);
            for (y, q) in y.iter_mut().zip(&b[2..]) {
                *y = f32::from(q.cast_signed()) * scale;
            }
        },
        BlockType::Q2K => q2_k,
        BlockType::Q3K => q3_k,
        BlockType::Q4K => q4_k,
        BlockType::Q5K => q5_k,
        BlockType::Q6K => q6_k,
    };
    for (block, into) in bytes
        .chunks_exact(size)
        .zip(into.chunks_exact_mut(elements))
    {
        decode(block, into);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The 32 fifth bits of a block.
fn fifth(block: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes([
        block[at],
        block[at + 1],
        block[at + 2],
        block[at + 3],
    ]))
}

/// 32 numbers of 4 bits, the first 16 in the lower halves, with an optional fifth bit each.
fn small(y: &mut [f32], nibbles: &[u8], fifth: Option<u32>, value: impl Fn(f32) -> f32) {
    // The first half of a block in the lower halves of its bytes, the second in the upper: not neighbours in one byte.
    let high = |n: usize| fifth.map_or(0, |bits| ((bits >> n) as u8 & 1) << 4);
    for (j, byte) in nibbles[..16].iter().enumerate() {
        y[j] = value(f32::from(byte & 15 | high(j)));
        y[j + 16] = value(f32::from(byte >> 4 | high(j + 16)));
    }
}

/// 16 groups of 16 numbers of 2 bits; 4 bits of scale and of offset each.
fn q2_k(block: &[u8], y: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, offset) = (half_at(block, 80), half_at(block, 82));
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let (d, m) = (
            scale * f32::from(scales[group] & 15),
            offset * f32::from(scales[group] >> 4),
        );
        let (start, shift) = place_of_two_bits(group);
        for (y, q) in y.iter_mut().zip(&quants[start..]) {
            *y = d * f32::from(q >> shift & 3) - m;
        }
    }
}

/// Where the two-bit numbers of a group of 16 are: the first byte, and the shift. Each 32 bytes hold 4 times 32
/// numbers.
fn place_of_two_bits(group: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2)
}

/// 16 groups of 16 numbers of 3 bits, the third apart; 6 bits of scale each.
fn q3_k(block: &[u8], y: &mut [f32]) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let lower = scales[group % 8] >> (group / 8 * 4) & 15;
        let upper = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        // Six bits of scale in two places: four in a nibble of the first 8 bytes, two in the last 4 bytes.
        let d = scale * (f32::from(lower | upper << 4) - 32.0);
        let (start, shift) = place_of_two_bits(group);
        let high = &high[group % 2 * 16..];
        for ((y, q), high) in y.iter_mut().zip(&quants[start..]).zip(high) {
            let third = high >> (group / 2) & 1;
            // The third bit is stored inverted: where it is not set, 4 is taken away.
            *y = d * (f32::from(q >> shift & 3) - if third == 0 { 4.0 } else { 0.0 });
        }
    }
}

/// The 6 bits of scale and of offset of group `j` of 8.
fn scale_and_offset(quantized: &[u8], j: usize) -> (f32, f32) {
    // The first four groups have their six bits in one byte; the others four bits there and the two that the first ones leave
    // free.
    let (scale, offset) = if j < 4 {
        (quantized[j] & 63, quantized[j + 4] & 63)
    } else {
        (
            quantized[j + 4] & 15 | quantized[j - 4] >> 6 << 4,
            quantized[j + 4] >> 4 | quantized[j] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(offset))
}

/// 8 groups of 32 numbers of 4 bits; two groups share their bytes.
fn q4_k(block: &[u8], y: &mut [f32]) {
    four_bits(block, y, &block[16..144], |_, _| 0);
}

/// As [`q4_k`], and a fifth bit for each number.
fn q5_k(block: &[u8], y: &mut [f32]) {
    let high = &block[16..48];
    four_bits(block, y, &block[48..176], |group, n| {
        (high[n] >> group & 1) << 4
    });
}

fn four_bits(block: &[u8], y: &mut [f32], quants: &[u8], fifth: impl Fn(usize, usize) -> u8) {
    let (scale, offset) = (half_at(block, 0), half_at(block, 2));
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (s, o) = scale_and_offset(&block[4..16], group);
        let (d, m) = (scale * s, offset * o);
        let quants = &quants[group / 2 * 32..];
        for (n, (y, q)) in y.iter_mut().zip(quants).enumerate() {
            let low = q >> (group % 2 * 4) & 15;
            *y = d * f32::from(low | fifth(group, n)) - m;
        }
    }
}

/// 16 groups of 16 numbers of 6 bits, the upper two apart; 8 bits of scale each.
fn q6_k(block: &[u8], y: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let d = scale * f32::from(scales[group].cast_signed());
        // Halves of 128 numbers: four quarters of 32, of two groups each.
        let (half, quarter, at) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[half * 64 + quarter % 2 * 32 + at..];
        let high = &high[half * 32 + at..];
        for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
            let q = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
            *y = d * (f32::from(q) - 32.0);
        }
    }
}
