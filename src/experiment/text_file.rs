//! Small text files that a person writes: Experiments, lists of captions and of prompts. What is no such file is refused by its kind and
//! size, before it is read: a device has no end, and a pipe may never say anything.

use std::fs;
use std::path::Path;

use crate::files;

/// The prompts of a text, one a line; empty lines and those that begin with `#` are none.
pub fn prompt_lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The text of a file of at most `limit` bytes, without the byte order mark that some editors begin UTF-8 with.
///
/// # Errors
/// If it cannot be read, is no file, is larger, or is not UTF-8; in words that go behind the file's name.
pub fn read_text(file: &Path, limit: u64) -> Result<String, String> {
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    let metadata = fs::metadata(file).map_err(unreadable)?;
    if !metadata.is_file() {
        let found = match metadata.is_dir() {
            true => "a folder",
            false => "a device or a pipe",
        };
        return Err(format!("expected a text file, found {found}"));
    }
    let found = metadata.len();
    if found > limit {
        return Err(format!(
            "expected a text file of at most {limit} bytes, found {found} bytes"
        ));
    }
    decode(files::read(file, limit).map_err(unreadable)?)
}

fn decode(bytes: Vec<u8>) -> Result<String, String> {
    // Notepad's "Unicode", and what `>` writes in PowerShell.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("it is UTF-16 text; save the file as UTF-8".to_owned());
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        format!("line {line} is not UTF-8 text; save the file as UTF-8")
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::read_text;
    use std::path::Path;

    #[test]
    fn only_small_files_of_text_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.txt");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("written");
            read_text(&file, 20)
        };
        assert_eq!(read(b"\xef\xbb\xbfa\nb").as_deref(), Ok("a\nb"));
        for (bytes, why) in [
            (&b"\xff\xfea\0"[..], "UTF-16"),
            (b"a\n\xff", "line 2 is not UTF-8"),
            (b"123456789012345678901", "at most 20 bytes, found 21"),
        ] {
            let said = read(bytes).expect_err("refused");
            assert!(said.contains(why), "{said}");
        }
        let said = read_text(folder.path(), 20).expect_err("refused");
        assert!(said.contains("found a folder"), "{said}");
    }

    #[cfg(unix)]
    #[test]
    fn a_device_without_an_end_is_refused_at_once() {
        let said = read_text(Path::new("/dev/zero"), 20).expect_err("refused");
        assert!(said.contains("a device or a pipe"), "{said}");
    }
}
