//! diffusion-pipe's caches since November 2025 (tdrussell/diffusion-pipe at 8f83dbf, `utils/cache.py`): folders `latents` and
//! `text_embeddings_1`, `_2`, ... (one for each encoder) of shards, which are files of `torch.save` one behind the other.
//!
//! Where each begins stands in a `metadata.db` of sqlite beside them, which is not read: the end of a zip file says how long it is.
//! The parts of a picture in the folders of several encoders become one entry.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::archive::MAX_BYTES;
use super::torch::{self, Saved};
use super::{CacheFile, Content, Error, Key, LeftOut, Span, Trainer, caption_md5};
use crate::files;

/// How many bytes of a shard are looked at at once.
const CHUNK: u64 = 1 << 22;

/// What a zip file ends with, and what stands before that in one with 64-bit places, as torch writes it.
const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const LOCATOR: &[u8] = b"PK\x06\x07";
const LOCATOR_BYTES: usize = 20;
const END_64: &[u8] = b"PK\x06\x06";
const END_64_BYTES: usize = 56;

/// Whether a file is a shard, and of what.
pub(super) fn content(path: &Path) -> Option<Content> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix("shard_")?.strip_suffix(".bin")?;
    number.parse::<u64>().ok()?;
    match path.parent()?.file_name()?.to_str()? {
        "latents" => Some(Content::Latents),
        folder if folder.starts_with("text_embeddings") => Some(Content::Text),
        _ => None,
    }
}

/// The entries of shards, and what of them is left out.
pub(super) fn entries(mut shards: Vec<PathBuf>) -> Result<(Vec<CacheFile>, Vec<LeftOut>), Error> {
    // `shard_10` after `shard_9`: that is the order in which a picture's captions come.
    shards.sort_by_key(|path| (path.parent().map(Path::to_owned), number(path)));
    let mut found = Found::default();
    for shard in shards {
        let io = |source| Error::Io {
            path: shard.clone(),
            source,
        };
        let (spans, rest) = spans(&shard).map_err(io)?;
        if rest > 0 {
            let why = format!("its last {rest} bytes are no whole entry");
            found.leave_out(shard.clone(), why);
        }
        for (n, range) in spans.into_iter().enumerate() {
            found.add(&shard, n, range)?;
        }
    }
    Ok((found.files.into_values().collect(), found.left_out))
}

fn number(path: &Path) -> u64 {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let number = stem.rsplit('_').next().and_then(|n| n.parse().ok());
    number.unwrap_or(u64::MAX)
}

#[derive(Default)]
struct Found {
    /// By the folder above that of the shard, what they are of and their key.
    files: BTreeMap<(PathBuf, bool, Key), CacheFile>,
    left_out: Vec<LeftOut>,
}

impl Found {
    fn leave_out(&mut self, path: PathBuf, why: String) {
        self.left_out.push(LeftOut { path, why });
    }

    fn add(&mut self, shard: &Path, n: usize, range: Range<u64>) -> Result<(), Error> {
        let path = shard.join(n.to_string());
        let span = Span {
            path: shard.to_owned(),
            offset: range.start,
            length: range.end - range.start,
        };
        let key = span.read().and_then(|bytes| key(&bytes));
        let key = match key {
            Ok(key) => key,
            Err(why) => {
                self.leave_out(path, why);
                return Ok(());
            }
        };
        let content = content(shard).unwrap_or(Content::Text);
        let above = shard.ancestors().nth(2).unwrap_or(shard).to_owned();
        let place = (above, content == Content::Text, key.clone());
        let file = self.files.entry(place).or_insert_with(|| CacheFile {
            path: path.clone(),
            trainer: Trainer::DiffusionPipe,
            content,
            key,
            start: None,
            spans: Vec::new(),
        });
        let folder = shard.parent();
        if file.spans.iter().any(|s| s.path.parent() == folder) {
            let why = "it is of a further caption of its picture; the first one is compared";
            self.leave_out(path, why.to_owned());
        } else {
            file.spans.push(span);
        }
        Ok(())
    }
}

impl Span {
    /// Its bytes, within the bound of a cache's file.
    pub(super) fn read(&self) -> Result<Vec<u8>, String> {
        if self.length > MAX_BYTES {
            return Err(format!(
                "it has {} bytes, expected at most {MAX_BYTES}",
                self.length
            ));
        }
        let read = || {
            let mut file = files::open(&self.path)?;
            file.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = Vec::new();
            file.take(self.length).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|e: std::io::Error| format!("it cannot be read: {e}"))
    }
}

/// What an entry is filed under: the picture that its `image_spec` names (an archive, or none, and a path), or its caption.
fn key(bytes: &[u8]) -> Result<Key, String> {
    let Saved::Dict(entry) = torch::read_without_numbers(bytes)? else {
        return Err("it holds no dictionary".to_owned());
    };
    let stem = |path: &str| {
        let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
        let stem = Path::new(name).file_stem().unwrap_or_default();
        Key::Stem(stem.to_string_lossy().into_owned())
    };
    let empty = || Key::CaptionMd5(caption_md5(""));
    match (
        entry.get("image_spec"),
        entry.get("image_file"),
        entry.get("caption"),
    ) {
        (Some(Saved::List(spec)), _, _) => match spec.last() {
            Some(Saved::Text(path)) => Ok(stem(path)),
            // What stands for no caption.
            Some(Saved::None) => Ok(empty()),
            _ => Err("its `image_spec` names no picture".to_owned()),
        },
        (_, Some(Saved::Text(path)), _) => Ok(stem(path)),
        (_, _, Some(Saved::Text(caption))) => Ok(Key::CaptionMd5(caption_md5(caption))),
        _ => Err("it names no picture (`image_spec`) and no caption".to_owned()),
    }
}

/// The places of whole zip files one behind the other, and how many bytes are left behind the last.
fn spans(path: &Path) -> std::io::Result<(Vec<Range<u64>>, u64)> {
    let mut file = files::open(path)?;
    let mut found = Vec::new();
    // Of the file from `base` on; `from` is the first byte that no end was looked for at.
    let (mut window, mut base, mut from, mut start) = (Vec::new(), 0u64, 0usize, 0u64);
    loop {
        let count = file.by_ref().take(CHUNK).read_to_end(&mut window)?;
        let until = (window.len() + 1).saturating_sub(END_BYTES);
        for at in from..until.max(from) {
            if window[at..].starts_with(END) && is_end(&window, base, at, start) {
                let end = base + (at + END_BYTES) as u64;
                found.push(start..end);
                start = end;
            }
        }
        if count == 0 {
            let all = base + window.len() as u64;
            return Ok((found, all - start));
        }
        // Behind the next places to look at, what may belong to the end of a zip file.
        from = until.max(from);
        let gone = from.saturating_sub(END_64_BYTES + LOCATOR_BYTES);
        window.drain(..gone);
        (base, from) = (base + gone as u64, from - gone);
    }
}

/// Whether the zip file that begins at `start` of the file ends with what stands at `at` of the window: whether its directory ends where
/// this begins.
fn is_end(window: &[u8], base: u64, at: usize, start: u64) -> bool {
    let number = |at: usize, bytes: usize| {
        let mut all = [0; 8];
        all[..bytes].copy_from_slice(window.get(at..at + bytes)?);
        Some(u64::from_le_bytes(all))
    };
    let ends = |size: Option<u64>, offset: Option<u64>, place: usize| {
        let end = size
            .zip(offset)
            .and_then(|(size, offset)| start.checked_add(offset)?.checked_add(size));
        end == Some(base + place as u64)
    };
    let has_comment = number(at + 20, 2) != Some(0);
    let record = at.checked_sub(LOCATOR_BYTES + END_64_BYTES);
    let record = record.filter(|record| {
        window[*record..].starts_with(END_64) && window[at - LOCATOR_BYTES..].starts_with(LOCATOR)
    });
    let is_whole = match record {
        Some(record) => ends(number(record + 40, 8), number(record + 48, 8), record),
        None => ends(number(at + 12, 4), number(at + 16, 4), at),
    };
    is_whole && !has_comment
}

#[cfg(test)]
mod tests {
    use super::super::archive::tests::zipped;
    use super::super::{Cache, Content};
    use super::spans;

    #[test]
    fn zip_files_one_behind_the_other_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("shard_0.bin");
        let one = zipped(&[("a", b"abc")], false);
        // With the end of a zip file among its bytes, and longer than what is looked at at once.
        let mut long = vec![7; 5 << 20];
        long.extend_from_slice(&one);
        let other = zipped(&[("b", &long)], false);
        let all = [&one[..], &other, &one, b"PK\x03"].concat();
        std::fs::write(&path, all).expect("written");
        let (found, rest) = spans(&path).expect("read");
        let (one, other) = (one.len() as u64, other.len() as u64);
        assert_eq!(
            found,
            [0..one, one..one + other, one + other..2 * one + other]
        );
        assert_eq!(rest, 3);
    }

    #[test]
    fn the_parts_of_a_caption_are_one_entry() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/foreign/diffusion-pipe-sd3-bf16");
        let cache = Cache::open(&path).expect("opened");
        assert_eq!(cache.left_out, []);
        let texts = cache.files.iter().filter(|f| f.content == Content::Text);
        let texts: Vec<_> = texts.collect();
        let [text] = texts[..] else {
            panic!("one caption, found {}", texts.len());
        };
        let entry = text.read().expect("read");
        assert_eq!(entry.caption.as_deref(), Some("a red circle"));
        let names: Vec<&str> = entry.tensors.iter().map(|t| t.name.as_str()).collect();
        let wanted = [
            "pooled_prompt_2_embed",
            "pooled_prompt_embed",
            "prompt_2_embed",
            "prompt_embed",
            "t5_prompt_embed",
        ];
        assert_eq!(names, wanted);
        assert_eq!(cache.files.len() - 1, 2, "latents of two pictures");
    }
}
