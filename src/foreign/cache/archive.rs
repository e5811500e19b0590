//! Zip files as numpy and torch write them, unpacked in memory within bounds.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};

use crate::shown;

/// The most bytes of a cache's file, and the most that its parts may unpack to.
pub(super) const MAX_BYTES: u64 = 1 << 28;

/// The most parts. A caption's file has ten, an aggregate of a data set one for each tensor.
const MAX_PARTS: usize = 10_000;

/// What the header of each part in a zip file's directory begins with.
const PART: &[u8] = b"PK\x01\x02";

/// The parts of a zip file, stored or deflated, by name.
///
/// # Errors
/// If it is none, is damaged, or has more parts or bytes than a cache's file can have.
pub(super) fn parts(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, String> {
    // Before the directory is read, as every part of it takes some hundred bytes of memory.
    let parts = bytes.windows(PART.len()).filter(|w| *w == PART).count();
    if parts > MAX_PARTS {
        return Err(format!(
            "it has {parts} parts, expected at most {MAX_PARTS}"
        ));
    }
    let unreadable = |e: zip::result::ZipError| {
        let reason = e.to_string();
        format!("it is no whole zip file ({})", shown::text(&reason))
    };
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    let mut left = MAX_BYTES;
    let mut parts = BTreeMap::new();
    for index in 0..archive.len() {
        let mut part = archive.by_index(index).map_err(unreadable)?;
        let name = part.name().map_err(unreadable)?.into_owned();
        let mut content = Vec::new();
        // Not what it claims to have: what comes out.
        let read = part.by_ref().take(left + 1).read_to_end(&mut content);
        read.map_err(|e| {
            let reason = e.to_string();
            let (name, reason) = (shown::text(&name), shown::text(&reason));
            format!("its part `{name}` is damaged ({reason})")
        })?;
        left = left
            .checked_sub(content.len() as u64)
            .ok_or_else(too_large)?;
        if parts.insert(name.clone(), content).is_some() {
            return Err(format!("its part `{}` is there twice", shown::text(&name)));
        }
    }
    Ok(parts)
}

/// The content of a gzip file.
///
/// # Errors
/// If it is damaged or too large.
pub(super) fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = flate2::read::GzDecoder::new(bytes)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut content);
    read.map_err(|e| {
        let reason = e.to_string();
        format!("its gzip is damaged ({})", shown::text(&reason))
    })?;
    match content.len() as u64 > MAX_BYTES {
        true => Err(too_large()),
        false => Ok(content),
    }
}

fn too_large() -> String {
    format!("it unpacks to more than {MAX_BYTES} bytes")
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Cursor, Write as _};

    use zip::write::SimpleFileOptions;

    use super::{MAX_BYTES, gunzip, parts};

    /// A zip file with these parts, deflated or stored.
    pub(in super::super) fn zipped(parts: &[(&str, &[u8])], deflated: bool) -> Vec<u8> {
        let method = match deflated {
            true => zip::CompressionMethod::Deflated,
            false => zip::CompressionMethod::Stored,
        };
        let options = SimpleFileOptions::default().compression_method(method);
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in parts {
            writer.start_file(*name, options).expect("a part");
            writer.write_all(content).expect("written");
        }
        writer.finish().expect("finished").into_inner()
    }

    #[test]
    fn stored_and_deflated_parts_come_out_alike_and_damage_is_told() {
        for deflated in [false, true] {
            let bytes = zipped(&[("a.npy", b"abc"), ("b", &[7; 1000])], deflated);
            let read = parts(&bytes).expect("read");
            assert_eq!(
                (read["a.npy"].as_slice(), read["b"].len()),
                (&b"abc"[..], 1000)
            );
            assert!(parts(&bytes[..bytes.len() - 30]).is_err());
        }
        let mut bytes = zipped(&[("a", b"abcdefgh")], false);
        let at = bytes.windows(8).position(|w| w == b"abcdefgh");
        bytes[at.expect("the content")] ^= 1;
        assert!(
            parts(&bytes)
                .expect_err("damaged")
                .contains("`a` is damaged")
        );
    }

    #[test]
    fn a_bomb_is_refused_before_it_fills_memory() {
        let zeros = vec![0; 1 << 24];
        let many: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|n| (n.as_str(), &zeros[..])).collect();
        let bytes = zipped(&many, true);
        assert!(bytes.len() < 1 << 20);
        let why = parts(&bytes).expect_err("320 MiB");
        assert!(why.contains("more than 268435456"), "{why}");
        let listed = b"PK\x01\x02".repeat(10_001);
        assert!(parts(&listed).expect_err("many").contains("10001 parts"));
    }

    #[test]
    fn gzip_is_unpacked_within_the_same_bound() {
        let packed = |content: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).expect("written");
            encoder.finish().expect("finished")
        };
        assert_eq!(gunzip(&packed(b"abc")).expect("read"), b"abc");
        let bomb = packed(&vec![0; MAX_BYTES as usize + 1]);
        assert!(gunzip(&bomb).expect_err("a bomb").contains("more than"));
        assert!(gunzip(&packed(b"abc")[..12]).is_err());
    }
}
