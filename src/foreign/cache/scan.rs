//! Which files of a folder are entries of a cache, by their names as each trainer makes them.

use std::path::{Path, PathBuf};

use super::{Cache, CacheFile, Content, Error, Key, LeftOut, Trainer, read, shards};
use crate::shown;

/// The most files that are looked at, and how deep folders may be inside each other.
const MAX_FILES: usize = 4_000_000;
const MAX_DEPTH: usize = 16;

/// Length of ai-toolkit's hash: 16 bytes in Base64 without padding.
const AI_TOOLKIT_HASH: usize = 22;

/// Finds the entries under `path`.
pub(super) fn open(path: &Path) -> Result<Cache, Error> {
    let metadata = std::fs::metadata(path).map_err(|source| io(path, source))?;
    let mut found = Found::default();
    if metadata.is_dir() {
        found.walk(path, MAX_DEPTH)?;
    } else {
        found.add(path.to_owned());
    }
    let (entries, left_out) = shards::entries(std::mem::take(&mut found.shards))?;
    found.files.extend(entries);
    found.left_out.extend(left_out);
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found.left_out.sort_by(|a, b| a.path.cmp(&b.path));
    let row_pictures = match found.files.iter().any(|f| f.trainer == Trainer::Onetrainer) {
        true => row_pictures(path, &found.aggregates)?,
        false => Vec::new(),
    };
    if found.files.is_empty() {
        let why = match found.left_out.first() {
            Some(LeftOut { path, why }) => {
                format!("{}: {why}", shown::path(path))
            }
            None => "there is no entry of a cache of kohya, musubi, ai-toolkit, SimpleTuner, OneTrainer or diffusion-pipe, and no safetensors file of \
                     embeddings or latents"
                .to_owned(),
        };
        return Err(Error::Unreadable {
            path: path.to_owned(),
            why,
        });
    }
    Ok(Cache {
        files: found.files,
        left_out: found.left_out,
        row_pictures,
    })
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

#[derive(Default)]
struct Found {
    files: Vec<CacheFile>,
    left_out: Vec<LeftOut>,
    /// diffusion-pipe's shards.
    shards: Vec<PathBuf>,
    /// OneTrainer's `aggregate.pt` files.
    aggregates: Vec<PathBuf>,
    seen: usize,
}

impl Found {
    fn walk(&mut self, folder: &Path, depth: usize) -> Result<(), Error> {
        let Some(deeper) = depth.checked_sub(1) else {
            self.leave_out(folder, "folders are too deep inside each other");
            return Ok(());
        };
        for entry in std::fs::read_dir(folder).map_err(|source| io(folder, source))? {
            let entry = entry.map_err(|source| io(folder, source))?;
            let kind = entry.file_type().map_err(|source| io(folder, source))?;
            self.seen += 1;
            if self.seen > MAX_FILES {
                return Err(Error::Unreadable {
                    path: folder.to_owned(),
                    why: format!("there are more than {MAX_FILES} files"),
                });
            }
            if kind.is_dir() {
                self.walk(&entry.path(), deeper)?;
            } else {
                self.add(entry.path());
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.left_out.push(LeftOut {
            path: path.to_owned(),
            why: why.to_owned(),
        });
    }

    fn add(&mut self, path: PathBuf) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let found = match name.rsplit_once('.') {
            Some((stem, "npz")) => kohya(stem),
            Some((stem, "safetensors")) => safetensors(&path, stem),
            Some(("aggregate", "pt")) => {
                self.aggregates.push(path);
                return;
            }
            Some((stem, "pt")) => torch(&path, stem),
            Some((_, "bin")) => {
                if shards::content(&path).is_some() {
                    self.shards.push(path);
                }
                return;
            }
            Some((stem, "arrow"))
                if stem.starts_with("latents") || stem.starts_with("text_embeddings") =>
            {
                let why = "it is of diffusion-pipe from before November 2025, whose caches are files of Arrow, which plumb does not read; a \
                           newer diffusion-pipe makes the cache anew as shards (`--regenerate_cache`)";
                self.leave_out(&path, why);
                return;
            }
            _ => return,
        };
        match found {
            Ok(Some((trainer, content, key))) => {
                let (key, start) = of_clip(trainer, content, key);
                self.files.push(CacheFile {
                    path,
                    trainer,
                    content,
                    key,
                    start,
                    spans: Vec::new(),
                });
            }
            Ok(None) => {}
            Err(why) => self.leave_out(&path, why),
        }
    }
}

/// Whose it is, what it is of, and its key; `None` for what is no cache's; or why it is left out.
type Classified = Result<Option<(Trainer, Content, Key)>, &'static str>;

/// kohya's suffixes (`library/strategy_*.py`).
fn kohya(stem: &str) -> Classified {
    let entry =
        |content, stem: &str| Ok(Some((Trainer::Kohya, content, Key::Stem(stem.to_owned()))));
    for suffix in ["_te_outputs", "_sd3_te", "_flux_te"] {
        if let Some(stem) = stem.strip_suffix(suffix) {
            return entry(Content::Text, stem);
        }
    }
    for suffix in [
        "_lumina_te",
        "_anima_te",
        "_hi_te",
        "_lumina",
        "_anima",
        "_hi",
    ] {
        if stem.ends_with(suffix) {
            return Err("it is of kohya's for a base model that plumb does not have");
        }
    }
    for suffix in ["_sdxl", "_sd3", "_flux", "_sd"] {
        if let Some(rest) = stem.strip_suffix(suffix) {
            return entry(Content::Latents, without_size(rest));
        }
    }
    // What kohya wrote before its names had a suffix.
    entry(Content::Latents, stem)
}

/// `name_1024x0768` without its size.
fn without_size(stem: &str) -> &str {
    match stem.rsplit_once('_') {
        Some((rest, size))
            if size.split_once('x').is_some_and(|(w, h)| {
                [w, h]
                    .iter()
                    .all(|n| n.len() >= 4 && n.bytes().all(|b| b.is_ascii_digit()))
            }) =>
        {
            rest
        }
        _ => stem,
    }
}

/// The key of a clip without the window that musubi names behind it, `{clip}_{first:05}-{frames:03}`, and the window's first frame.
fn of_clip(trainer: Trainer, content: Content, key: Key) -> (Key, Option<u32>) {
    let Key::Stem(stem) = &key else {
        return (key, None);
    };
    let number = |text: &str, least: usize| {
        let digits = text.len() >= least && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u32>().ok().filter(|_| digits)
    };
    let window = stem.rsplit_once('_').and_then(|(clip, window)| {
        let (first, frames) = window.split_once('-')?;
        number(frames, 3)?;
        Some((clip.to_owned(), number(first, 5)?))
    });
    match window {
        Some((clip, first)) if (trainer, content) == (Trainer::Musubi, Content::Latents) => {
            (Key::Stem(clip), Some(first))
        }
        _ => (key, None),
    }
}

fn safetensors(path: &Path, stem: &str) -> Classified {
    let Some((trainer, content)) = read::kind_of_safetensors(path)? else {
        return Ok(None);
    };
    let stem = match (trainer, content) {
        // `{stem}_{architecture}_te`, and `{stem}_{W}x{H}_{architecture}`; the architecture has no underscore.
        (Trainer::Musubi, Content::Text) => {
            let stem = stem.strip_suffix("_te").unwrap_or(stem);
            stem.rsplit_once('_').map_or(stem, |(stem, _)| stem)
        }
        (Trainer::Musubi, Content::Latents) => {
            without_size(stem.rsplit_once('_').map_or(stem, |(stem, _)| stem))
        }
        (Trainer::AiToolkit, _) => without_hash(stem),
        _ => stem,
    };
    Ok(Some((trainer, content, Key::Stem(stem.to_owned()))))
}

/// `{stem}_{hash}`; the hash itself may have underscores.
fn without_hash(stem: &str) -> &str {
    let at = stem.len().checked_sub(AI_TOOLKIT_HASH + 1);
    match at.and_then(|at| stem.split_at_checked(at)) {
        Some((stem, hash)) if hash.starts_with('_') => stem,
        _ => stem,
    }
}

fn torch(path: &Path, stem: &str) -> Classified {
    let is_hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let parent = |n: usize| {
        let ancestor = path.ancestors().nth(n);
        ancestor
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy()
    };
    if parent(1).starts_with("variation-") {
        let Ok(row) = stem.parse::<usize>() else {
            return Ok(None);
        };
        // `{cache}/image|text/{hash}/variation-N/{row}.pt`
        let content = match &*parent(3) {
            "image" => Content::Latents,
            "text" => Content::Text,
            _ => {
                return Err(
                    "OneTrainer's caches lie in folders named `image` and `text`; give the folder above them",
                );
            }
        };
        return Ok(Some((Trainer::Onetrainer, content, Key::Row(row))));
    }
    if let Some((hash, _family)) = stem.split_once('-')
        && is_hex(hash, 32)
    {
        let key = Key::CaptionMd5(hash.to_owned());
        return Ok(Some((Trainer::Simpletuner, Content::Text, key)));
    }
    let key = match is_hex(stem, 64) {
        true => Key::StemSha256(stem.to_owned()),
        // Without `hash_filenames`.
        false => Key::Stem(stem.to_owned()),
    };
    Ok(Some((Trainer::Simpletuner, Content::Latents, key)))
}

/// The pictures that the rows of OneTrainer's cache are of: what the aggregates of the pictures say, where there is one.
fn row_pictures(root: &Path, aggregates: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let is_of = |path: &Path, name: &str| {
        let folder = path.ancestors().nth(3).and_then(Path::file_name);
        folder.is_some_and(|folder| folder == name)
    };
    // Given the folder of the texts, the pictures' lies beside it.
    let mut beside = Found::default();
    let texts = root.ancestors().take(3);
    let texts = texts
        .into_iter()
        .find(|p| p.file_name().is_some_and(|name| name == "text"));
    let sibling = texts.map(|p| p.with_file_name("image"));
    if let Some(sibling) = sibling.filter(|p| p.is_dir()) {
        beside.walk(&sibling, 3)?;
    }
    let all = aggregates.iter().chain(&beside.aggregates);
    let mut pictures: Vec<&PathBuf> = all.filter(|path| is_of(path, "image")).collect();
    pictures.sort();
    match pictures.as_slice() {
        [one] => {
            let rows = read::row_pictures(one)?;
            Ok(rows.into_iter().map(PathBuf::from).collect())
        }
        // With several groups or variations a row alone says nothing.
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Content, Key, Trainer, of_clip};

    #[test]
    fn a_window_of_a_clip_is_no_part_of_its_name() {
        let stem = |name: &str| Key::Stem(name.to_owned());
        let of = |name| of_clip(Trainer::Musubi, Content::Latents, stem(name));
        assert_eq!(of("a_clip_00016-017"), (stem("a_clip"), Some(16)));
        for other in ["a_clip", "a_16-17", "00016-017", "a_00016-01x"] {
            assert_eq!(of(other), (stem(other), None));
        }
        let text = of_clip(Trainer::Musubi, Content::Text, stem("a_00016-017"));
        assert_eq!(text, (stem("a_00016-017"), None));
    }
}
