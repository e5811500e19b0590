//! SHA-256 (FIPS 180-4), for the hashes that other tools look for in a LoRA file.

/// The first 32 bits of the fractional parts of the square roots of the first 8 primes.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
const ROUND: [u32; 64] = {
    let mut table = [0; 64];
    let (mut prime, mut found) = (2u64, 0);
    while found < 64 {
        let mut divisor = 2;
        while divisor < prime && !prime.is_multiple_of(divisor) {
            divisor += 1;
        }
        if divisor == prime {
            table[found] = cube_root_fraction(prime);
            found += 1;
        }
        prime += 1;
    }
    table
};

/// floor(2^32 cbrt(n)) mod 2^32: the largest x with x^3 <= 2^96 n, by bisection on whole numbers.
const fn cube_root_fraction(n: u64) -> u32 {
    let (mut low, mut high) = (0u128, 8u128 << 32);
    while high - low > 1 {
        let middle = (low + high) / 2;
        // middle < 2^35, so its cube fits in 105 bits.
        if middle * middle * middle <= (n as u128) << 96 {
            low = middle;
        } else {
            high = middle;
        }
    }
    low as u32
}

/// The hash of `parts`, one after the other, as lower-case hex digits.
pub(in crate::lora) fn hex<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut state = START;
    let (mut pending, mut length) = (Vec::with_capacity(64), 0u64);
    for mut part in parts {
        length += part.len() as u64;
        if !pending.is_empty() {
            let taken = part.len().min(64 - pending.len());
            pending.extend(&part[..taken]);
            part = &part[taken..];
            if pending.len() < 64 {
                continue;
            }
        }
        let (blocks, rest) = part.as_chunks::<64>();
        let whole = pending.as_chunks::<64>().0;
        for block in whole.iter().chain(blocks) {
            compress(&mut state, block);
        }
        pending = rest.to_vec();
    }
    pending.push(0x80);
    while pending.len() % 64 != 56 {
        pending.push(0);
    }
    pending.extend((8 * length).to_be_bytes());
    for block in pending.as_chunks::<64>().0 {
        compress(&mut state, block);
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

fn compress(state: &mut [u32; 8], block: &[u8; 64]) {
    let mut w = [0u32; 64];
    for (word, bytes) in w.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    for t in 16..64 {
        let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ (w[t - 15] >> 3);
        let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ (w[t - 2] >> 10);
        w[t] = w[t - 16]
            .wrapping_add(s0)
            .wrapping_add(w[t - 7])
            .wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (&round, &word) in ROUND.iter().zip(&w) {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h
            .wrapping_add(s1)
            .wrapping_add(choice)
            .wrapping_add(round)
            .wrapping_add(word);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let t2 = s0.wrapping_add(majority);
        (h, g, f, e) = (g, f, e, d.wrapping_add(t1));
        (d, c, b, a) = (c, b, a, t1.wrapping_add(t2));
    }
    for (sum, word) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *sum = sum.wrapping_add(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of FIPS 180-4 and of NIST's test vectors.
    #[test]
    fn known_vectors() {
        let of = |text: &[u8]| hex(std::iter::once(text));
        assert_eq!(
            of(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            of(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            of(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        );
        assert_eq!(
            of(&[b'a'; 1_000_000]),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
    }

    #[test]
    fn how_the_bytes_are_cut_into_parts_makes_no_difference() {
        let bytes: Vec<u8> = (0..=255).collect();
        let whole = hex(std::iter::once(bytes.as_slice()));
        for size in [1, 3, 55, 63, 64, 65, 130, 256] {
            assert_eq!(hex(bytes.chunks(size)), whole, "{size}");
        }
    }
}
