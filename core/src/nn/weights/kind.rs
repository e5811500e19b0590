//! What a file is that was taken for weights, by its first bytes.
//!
//! A safetensors file has no magic number: it begins with the length of its header. Whatever else begins with eight bytes gets
//! called "a header too large", which helps nobody who saved a web page or has a pickle.

use super::header::MAX_HEADER_BYTES;
use crate::shown;

/// How many of a file's first bytes [`other_kind`] looks at.
pub const KIND_BYTES: usize = 512;

/// What the file is that begins with `first`, as a clause about it, if it is not a safetensors or GGUF file but of a kind that
/// people take for one. `first` are its first [`KIND_BYTES`], or all where it has fewer.
pub fn other_kind(first: &[u8]) -> Option<String> {
    let first = first.get(..KIND_BYTES).unwrap_or(first);
    if is_safetensors(first) || first.starts_with(super::gguf::MAGIC) {
        return None;
    }
    if first.is_empty() {
        return Some("it is empty".to_owned());
    }
    if first.len() >= 16 && first.iter().all(|&b| b == 0) {
        let clause = "it begins with nothing but zeros: the download or copy was not completed";
        return Some(clause.to_owned());
    }
    // torch.save writes a ZIP archive since PyTorch 1.6, the pickle first.
    if first.starts_with(b"PK\x03\x04") && first.windows(4).any(|name| name == b".pkl") {
        return Some(PICKLE.to_owned());
    }
    let by_magic = MAGICS.iter().find(|(magic, _)| first.starts_with(magic));
    if let Some((_, clause)) = by_magic {
        return Some((*clause).to_owned());
    }
    if first.get(257..262) == Some(b"ustar") {
        return Some(ARCHIVE.to_owned());
    }
    // A pickle of protocol 2 to 5.
    if matches!(first, [0x80, 2..=5, ..]) {
        return Some(PICKLE.to_owned());
    }
    text_kind(first)
}

const PICKLE: &str = "it is a PyTorch checkpoint or another pickle (.ckpt, .pt, .pth, .bin), which can run code when it is opened; \
     use the model's safetensors file";
const ARCHIVE: &str = "it is an archive: unpack it, and name the safetensors file";
const PICTURE: &str = "it is a picture";
const OLD_GGML: &str = "it is an old GGML file from before GGUF: use a GGUF or safetensors file";

const MAGICS: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", ARCHIVE),
    (b"PK\x05\x06", ARCHIVE),
    (b"\x1f\x8b", ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (b"Rar!\x1a\x07", ARCHIVE),
    (b"\x28\xb5\x2f\xfd", ARCHIVE),
    (b"\xfd7zXZ\0", ARCHIVE),
    (
        b"\x89HDF\r\n\x1a\n",
        "it is an HDF5 file (Keras, TensorFlow): use the model's safetensors file",
    ),
    (
        b"\x93NUMPY",
        "it is a NumPy array: use the model's safetensors file",
    ),
    (b"\x89PNG\r\n\x1a\n", PICTURE),
    (b"\xff\xd8\xff", PICTURE),
    (b"tjgg", OLD_GGML),
    (b"lmgg", OLD_GGML),
    (b"fmgg", OLD_GGML),
];

/// Whether a header of a length that the format allows follows, and is a JSON object: a length of 640 begins with the bytes of
/// a pickle.
fn is_safetensors(first: &[u8]) -> bool {
    let Some((length, rest)) = first.split_first_chunk::<8>() else {
        return false;
    };
    let length = u64::from_le_bytes(*length);
    (2..=MAX_HEADER_BYTES).contains(&length) && rest.first() == Some(&b'{')
}

fn text_kind(first: &[u8]) -> Option<String> {
    const POINTER: &[u8] = b"version https://git-lfs";
    if first.starts_with(POINTER) {
        let clause =
            "it is a Git LFS pointer: the weights themselves were not downloaded (`git lfs pull`)";
        return Some(clause.to_owned());
    }
    let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    let text = text.trim_ascii_start();
    let begins = |word: &str| {
        let start = text.get(..word.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    if ["<!doctype", "<html", "<head", "<body", "<!--"]
        .iter()
        .any(|word| begins(word))
    {
        return Some("it is a web page: the download was not let through".to_owned());
    }
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    // Eight bytes of text read as a length give more than any file has.
    if text.len() < 4 || !text.iter().take(16).all(is_text) {
        return None;
    }
    let line = text.split(|&b| b == b'\n').next().unwrap_or(text);
    let line = String::from_utf8_lossy(line.get(..80).unwrap_or(line));
    let kind = if begins("{") || begins("[") {
        "JSON"
    } else if begins("<") {
        "XML, such as a server's error"
    } else {
        "text"
    };
    Some(format!(
        "it is {kind}, not weights: `{}`",
        shown::text(line.trim())
    ))
}

#[cfg(test)]
mod tests {
    use super::other_kind;

    #[test]
    fn what_people_take_for_weights_is_called_what_it_is() {
        let mut tar = vec![b'a'; 512];
        tar[4..257].fill(0);
        tar[257..262].copy_from_slice(b"ustar");
        let cases: &[(&[u8], &str)] = &[
            (b"PK\x03\x04\0\0\x08\x08archive/data.pkl", "PyTorch"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "PyTorch"),
            (b"\x80\x03}q\0.", "pickle"),
            (b"\x80\x05\x95\0\0", "pickle"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"<!doctype html>\n<html class=\"\">", "a web page"),
            (b"\xef\xbb\xbf \r\n<HTML lang=en>", "a web page"),
            (
                b"<?xml version=\"1.0\"?><Error><Code>AccessDenied",
                "it is XML",
            ),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
                "Git LFS",
            ),
            (
                b"{\"error\":\"Repository not found\"}",
                "JSON, not weights: `{\"error\"",
            ),
            (b"Entry not found", "text, not weights: `Entry not found`"),
            (
                b"Invalid username or password.\n\x1b[2J",
                "`Invalid username or password.`",
            ),
            (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
            (b"PK\x03\x04\x14\0model.safetensors", "archive"),
            (b"\x1f\x8b\x08\0", "archive"),
            (&tar, "archive"),
            (b"\x89PNG\r\n\x1a\n", "picture"),
            (b"tjgg\x03\0\0\0", "GGML"),
            (b"", "empty"),
            (&[0; 64], "zeros"),
        ];
        for (first, clause) in cases {
            let found = other_kind(first).unwrap_or_default();
            assert!(found.contains(clause), "{first:?}: {found}");
        }
    }

    #[test]
    fn weights_are_no_other_kind() {
        // Lengths of headers that begin as pickles, archives and texts do.
        for length in [
            2u64,
            0x0280,
            0x0480,
            0x0580,
            0x8b1f,
            0x7b7b,
            0x5b,
            0x0403_4b50,
        ] {
            let mut file = length.to_le_bytes().to_vec();
            file.extend(b"{\"a\":{\"dtype\":\"F32\"");
            assert_eq!(other_kind(&file), None, "{length}");
        }
        assert_eq!(other_kind(b"GGUF\x03\0\0\0"), None);
        // Nothing that is known.
        assert_eq!(other_kind(&[0xfe; 64]), None);
    }
}
