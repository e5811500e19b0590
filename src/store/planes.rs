//! Packs in shared form: fewer bytes for the way to object storage and back, nothing lost. Of floats the exponents, which are nearly
//! all alike, are put side by side and packed; sign and mantissa, which look like noise, stand as they are.
//!
//! ```text
//! "plumb planes 1\n"  the pack's length (u64)
//! blocks: kind (u8)  length of its bytes in the pack (u32)  its planes, the most significant byte's last:
//!         packed (u8: 0 as it is, 1 zstd)  length here (u32)  bytes
//! ```
//! Numbers are little endian. Kind 1 is bytes as they are, in one plane. Kinds 2 and 4 are floats of so many bytes, each turned left by
//! one bit, so that its last plane is a whole exponent (of F16: the exponent and three bits), and as many planes.

use safetensors::{Dtype, SafeTensors};

use super::pack::PACK_LIMIT_BYTES;

const MAGIC: &[u8] = b"plumb planes 1\n";
/// Bytes of the pack in a block: so many that what packs them learns enough, and few enough to stay in a core's cache.
const BLOCK_BYTES: usize = 1 << 18;
/// A plane that shrinks by less is kept as it is: unpacking would cost more than it saves.
const WORTH: f64 = 0.97;
const LEVEL: i32 = 1;
/// A block's own numbers, of at most four planes.
const BLOCK_HEADER_BYTES: usize = 5 + 4 * 5;

/// The largest pack in shared form.
pub(super) const LIMIT_BYTES: u64 = (PACK_LIMIT_BYTES
    + (PACK_LIMIT_BYTES / BLOCK_BYTES + 64) * BLOCK_HEADER_BYTES
    + MAGIC.len()
    + 8) as u64;

/// A pack in shared form. What is no safetensors file comes back too, only larger.
///
/// # Errors
/// If the packing library refuses.
pub fn encode(pack: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(pack.len() / 4 * 3);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(pack.len() as u64).to_le_bytes());
    let mut at = 0;
    let mut packer = zstd::bulk::Compressor::new(LEVEL).map_err(|e| e.to_string())?;
    for (kind, end) in regions(pack) {
        let region = pack.get(at..end).unwrap_or_default();
        for block in region.chunks(BLOCK_BYTES) {
            encode_block(kind, block, &mut packer, &mut out)?;
        }
        at = end.max(at);
    }
    Ok(out)
}

/// Where bytes of each kind end, in order: the header, floats by their size, the rest.
fn regions(pack: &[u8]) -> Vec<(u8, usize)> {
    let read = super::contain(|| SafeTensors::read_metadata(pack).map_err(|e| e.to_string()));
    let Ok((header_bytes, header)) = read else {
        return vec![(1, pack.len())];
    };
    let start = 8 + header_bytes;
    let mut tensors: Vec<_> = header.tensors().into_values().collect();
    tensors.sort_by_key(|tensor| tensor.data_offsets);
    let mut regions = vec![(1, start.min(pack.len()))];
    for tensor in tensors {
        let kind = match tensor.dtype {
            Dtype::BF16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
            _ => 1,
        };
        let end = (start + tensor.data_offsets.1).min(pack.len());
        match regions.last_mut() {
            Some((last, ends)) if *last == kind => *ends = end.max(*ends),
            _ => regions.push((kind, end)),
        }
    }
    regions.push((1, pack.len()));
    regions
}

fn encode_block(
    kind: u8,
    block: &[u8],
    packer: &mut zstd::bulk::Compressor<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    // A pack of somebody else's may end within a float.
    let kind = if block.len().is_multiple_of(kind.into()) {
        kind
    } else {
        1
    };
    out.push(kind);
    out.extend_from_slice(&(block.len() as u32).to_le_bytes());
    let planes = match kind {
        2 => split::<2>(block, |bytes| {
            u16::from_le_bytes(bytes).rotate_left(1).to_le_bytes()
        }),
        4 => split::<4>(block, |bytes| {
            u32::from_le_bytes(bytes).rotate_left(1).to_le_bytes()
        }),
        _ => vec![block.to_vec()],
    };
    for plane in planes {
        let packed = packer.compress(&plane).map_err(|e| e.to_string())?;
        let (how, bytes) = match (packed.len() as f64) < plane.len() as f64 * WORTH {
            true => (1, packed),
            false => (0, plane),
        };
        out.push(how);
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

fn split<const N: usize>(block: &[u8], turn: fn([u8; N]) -> [u8; N]) -> Vec<Vec<u8>> {
    let mut planes = vec![vec![0; block.len() / N]; N];
    for (at, bytes) in block.as_chunks::<N>().0.iter().enumerate() {
        for (plane, byte) in planes.iter_mut().zip(turn(*bytes)) {
            plane[at] = byte;
        }
    }
    planes
}

/// The pack of which `shared` is the shared form.
///
/// # Errors
/// What in it is not as the format says. Nothing larger than a pack is ever taken into memory.
pub fn decode(shared: &[u8]) -> Result<Vec<u8>, String> {
    let mut rest = shared
        .strip_prefix(MAGIC)
        .ok_or("no pack in shared form, by its first bytes")?;
    let length = u64::from_le_bytes(*take(&mut rest)?);
    let length = usize::try_from(length)
        .ok()
        .filter(|n| *n <= PACK_LIMIT_BYTES);
    let length = length.ok_or("a pack that is larger than a pack can be")?;
    let mut pack = vec![0; length];
    let mut unpacker = zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?;
    let mut buffers = [const { Vec::new() }; 4];
    let mut at = 0;
    while at < length {
        let [kind] = *take(&mut rest)?;
        let bytes = u32::from_le_bytes(*take(&mut rest)?) as usize;
        let block = pack.get_mut(at..at + bytes.min(length));
        let block = block.filter(|block| block.len() == bytes && bytes <= BLOCK_BYTES);
        let block = block.ok_or("a block that lies beyond the pack's end")?;
        if bytes == 0 || !matches!(kind, 1 | 2 | 4) || !bytes.is_multiple_of(kind.into()) {
            return Err(format!("a block of kind {kind} and {bytes} bytes"));
        }
        let count = usize::from(kind);
        let mut planes = [&[][..]; 4];
        for (plane, buffer) in planes.iter_mut().zip(&mut buffers).take(count) {
            *plane = read_plane(&mut rest, bytes / count, &mut unpacker, buffer)?;
        }
        join(block, planes);
        at += bytes;
    }
    match rest.is_empty() {
        true => Ok(pack),
        false => Err(format!("{} bytes too many", rest.len())),
    }
}

/// A plane of `expected` bytes: where it stands, or unpacked into `buffer`.
fn read_plane<'p, 'a: 'p>(
    rest: &mut &'a [u8],
    expected: usize,
    unpacker: &mut zstd::bulk::Decompressor<'_>,
    buffer: &'p mut Vec<u8>,
) -> Result<&'p [u8], String> {
    let [how] = *take(rest)?;
    let length = u32::from_le_bytes(*take(rest)?) as usize;
    let (bytes, behind) = rest.split_at_checked(length).ok_or("it is cut short")?;
    *rest = behind;
    let plane = match how {
        0 => bytes,
        1 => {
            // Not a byte more is written.
            buffer.resize(expected, 0);
            let unpacked = unpacker.decompress_to_buffer(bytes, &mut buffer[..]);
            let unpacked = unpacked.map_err(|e| format!("a plane that cannot be unpacked: {e}"))?;
            &buffer[..unpacked]
        }
        how => return Err(format!("a plane packed in a way ({how}) that is not known")),
    };
    match plane.len() == expected {
        true => Ok(plane),
        false => Err(format!("a plane that is not of {expected} bytes")),
    }
}

/// Puts the planes of a block together. They have as many bytes as it takes.
fn join(block: &mut [u8], [a, b, c, d]: [&[u8]; 4]) {
    let count = block.len() / a.len().max(1);
    match count {
        2 => {
            for ((out, a), b) in block.as_chunks_mut::<2>().0.iter_mut().zip(a).zip(b) {
                *out = u16::from_le_bytes([*a, *b]).rotate_right(1).to_le_bytes();
            }
        }
        4 => {
            let ends = c.iter().zip(d);
            let all = a.iter().zip(b).zip(ends);
            for (out, ((a, b), (c, d))) in block.as_chunks_mut::<4>().0.iter_mut().zip(all) {
                let turned = u32::from_le_bytes([*a, *b, *c, *d]);
                *out = turned.rotate_right(1).to_le_bytes();
            }
        }
        _ => block.copy_from_slice(a),
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], String> {
    let (first, behind) = rest.split_first_chunk().ok_or("it is cut short")?;
    *rest = behind;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// A pack with tensors of several types, whose floats look like what encoders make.
    fn pack() -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..200_000).map(|_| next() * next() * next()).collect();
        let bf16: Vec<u8> = values
            .iter()
            .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
            .collect();
        let f16: Vec<u8> = values[..999]
            .iter()
            .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
            .collect();
        let f32: Vec<u8> = values[..70_001]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let i64: Vec<u8> = (0..77i64).flat_map(i64::to_le_bytes).collect();
        let view = |dtype, bytes, n| TensorView::new(dtype, vec![n], bytes).expect("a view");
        let tensors = [
            ("a", view(Dtype::I64, &i64, 77)),
            ("b", view(Dtype::F32, &f32, 70_001)),
            ("c", view(Dtype::BF16, &bf16, 200_000)),
            ("d", view(Dtype::F16, &f16, 999)),
            ("e", view(Dtype::U8, &i64[..5], 5)),
        ];
        safetensors::serialize(tensors, None).expect("serialized")
    }

    #[test]
    fn what_was_packed_comes_back() {
        let pack = pack();
        let shared = encode(&pack).expect("encoded");
        assert_eq!(decode(&shared).expect("decoded"), pack);
        assert!(
            (shared.len() as f64) < 0.9 * pack.len() as f64,
            "{} of {}",
            shared.len(),
            pack.len()
        );
        for bytes in [&b""[..], b"x", &pack[..pack.len() - 3], &[7; 600_001]] {
            let shared = encode(bytes).expect("encoded");
            assert!(shared.len() as u64 <= LIMIT_BYTES);
            assert_eq!(decode(&shared).expect("decoded"), bytes);
        }
    }

    #[test]
    fn what_is_damaged_or_hostile_ends_in_an_error_or_in_other_bytes() {
        let pack = pack();
        let shared = encode(&pack).expect("encoded");
        for cut in (0..shared.len()).step_by(40_009).chain([shared.len() - 1]) {
            assert!(decode(&shared[..cut]).is_err(), "{cut}");
        }
        let mut longer = shared.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        for at in (0..shared.len()).step_by(20_011).chain(0..60) {
            let mut changed = shared.clone();
            changed[at] ^= 1 << (at % 8);
            // A bit of a plane that stands as it is shows in the digest only.
            assert!(decode(&changed).map_or(true, |found| found != pack));
        }
        let mut huge = MAGIC.to_vec();
        huge.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode(&huge).is_err());
    }
}
