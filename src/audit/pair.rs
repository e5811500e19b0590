//! Which entry of a cache is of which caption: by the picture's name, by a hash of the caption, or by the row, as each trainer does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::report::Reading;
use super::search::Observation;
use crate::dataset::Item;
use crate::foreign::cache::{Cache, CacheFile, Key, caption_md5, stem_sha256};

/// The captions of an Experiment, each with the picture it is of.
pub(super) struct Known {
    pub(super) captions: Vec<Caption>,
    by_stem: BTreeMap<String, Vec<usize>>,
    by_key: BTreeMap<Key, usize>,
}

/// A caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caption {
    /// The picture; none for a prompt of previews, and the empty caption.
    pub(super) picture: Option<PathBuf>,
    pub(super) text: String,
    /// As it is written, without the trigger word.
    written: String,
}

impl Known {
    pub(super) fn new(items: &[Item], extra: Vec<String>) -> Self {
        let of_item = |item: &Item| {
            let picture = item.picture.clone();
            item.captions.first().map(|text| Caption {
                picture: Some(picture),
                text: text.clone(),
                written: item.written.clone(),
            })
        };
        let mut captions: Vec<Caption> = items.iter().filter_map(of_item).collect();
        // The windows of a clip follow each other, and have its caption.
        captions.dedup_by(|next, caption| next == caption);
        // The empty caption is in most caches, as what stands for none.
        captions.extend(
            extra
                .into_iter()
                .chain([String::new()])
                .map(|text| Caption {
                    picture: None,
                    written: text.clone(),
                    text,
                }),
        );
        let mut by_stem = BTreeMap::<String, Vec<usize>>::new();
        let mut by_key = BTreeMap::new();
        for (n, caption) in captions.iter().enumerate() {
            if let Some(picture) = &caption.picture {
                let stem = stem(picture);
                by_key
                    .entry(Key::StemSha256(stem_sha256(&stem)))
                    .or_insert(n);
                by_stem.entry(stem).or_default().push(n);
            }
            by_key
                .entry(Key::CaptionMd5(caption_md5(&caption.text)))
                .or_insert(n);
        }
        Self {
            captions,
            by_stem,
            by_key,
        }
    }

    /// The caption that an entry is of, and whether it could also be another one's.
    fn of(&self, file: &CacheFile, row_pictures: &[PathBuf]) -> Option<(usize, bool)> {
        match &file.key {
            Key::Stem(stem) => self.of_stem(stem, Some(&file.path)),
            Key::CaptionMd5(_) | Key::StemSha256(_) => {
                self.by_key.get(&file.key).map(|n| (*n, false))
            }
            Key::Row(row) => match row_pictures.get(*row) {
                Some(picture) => self.of_picture(picture),
                // In the order of the pictures' names, which is OneTrainer's as well.
                None => self
                    .captions
                    .get(*row)?
                    .picture
                    .as_ref()
                    .map(|_| (*row, true)),
            },
        }
    }

    fn of_picture(&self, picture: &Path) -> Option<(usize, bool)> {
        let same = |c: &Caption| c.picture.as_deref() == Some(picture);
        match self.captions.iter().position(same) {
            Some(n) => Some((n, false)),
            // The data set may have been moved since.
            None => self.of_stem(&stem(picture), Some(picture)),
        }
    }

    /// The picture of that name; of several the one that lies beside the entry.
    fn of_stem(&self, stem: &str, beside: Option<&Path>) -> Option<(usize, bool)> {
        let all = self.by_stem.get(stem)?;
        let [first, _, ..] = all.as_slice() else {
            return all.first().map(|n| (*n, false));
        };
        // ai-toolkit's caches lie in a folder beside the pictures.
        let folders = beside
            .into_iter()
            .flat_map(|p| p.ancestors().skip(1).take(2));
        let folders: Vec<&Path> = folders.collect();
        let is_beside = |n: &&usize| {
            let picture = self.captions[**n].picture.as_deref();
            picture
                .and_then(Path::parent)
                .is_some_and(|p| folders.contains(&p))
        };
        match all.iter().find(is_beside) {
            Some(n) => Some((*n, false)),
            None => Some((*first, true)),
        }
    }
}

/// A picture's file name without its extension.
pub(super) fn stem(picture: &Path) -> String {
    let stem = picture.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// An entry with the caption it should be of.
#[derive(Clone, Debug)]
pub(super) struct Paired<'a> {
    pub(super) file: &'a CacheFile,
    /// Its place in [`Known::captions`].
    pub(super) caption: usize,
    pub(super) text: &'a str,
}

/// Entries and captions, as far as they belong together.
pub(super) struct Pairing<'a> {
    pub(super) paired: Vec<Paired<'a>>,
    /// Entries of no caption.
    pub(super) strangers: Vec<&'a CacheFile>,
    /// Pictures whose caption has no entry, as places in [`Known::captions`].
    pub(super) without_entry: Vec<usize>,
    /// How many entries were paired by a name that several pictures have, or by their place in the list alone.
    pub(super) uncertain: usize,
}

/// Pairs entries with captions.
pub(super) fn pair<'a>(
    cache: &'a Cache,
    files: Vec<&'a CacheFile>,
    known: &'a Known,
) -> Pairing<'a> {
    let (mut paired, mut strangers, mut uncertain) = (Vec::new(), Vec::new(), 0);
    let mut texts = BTreeSet::new();
    let mut pictures = BTreeSet::new();
    for file in files {
        match known.of(file, &cache.row_pictures) {
            Some((caption, is_uncertain)) => {
                uncertain += usize::from(is_uncertain);
                let text = known.captions[caption].text.as_str();
                pictures.insert(caption);
                if matches!(file.key, Key::CaptionMd5(_)) {
                    texts.insert(text);
                }
                paired.push(Paired {
                    file,
                    caption,
                    text,
                });
            }
            None => strangers.push(file),
        }
    }
    let lacks = |n: &usize| {
        let caption = &known.captions[*n];
        // A cache by captions has one entry for all pictures of a caption.
        caption.picture.is_some() && !pictures.contains(n) && !texts.contains(caption.text.as_str())
    };
    let without_entry = match paired.is_empty() {
        true => Vec::new(),
        false => (0..known.captions.len()).filter(lacks).collect(),
    };
    Pairing {
        paired,
        strangers,
        without_entry,
        uncertain,
    }
}

/// `count` entries spread over the lengths of captions, the shortest and the longest among them: long ones show where an encoder cuts.
pub(super) fn spread<'a>(paired: &[Paired<'a>], count: usize) -> Vec<Paired<'a>> {
    let mut ordered: Vec<&Paired<'a>> = paired.iter().collect();
    ordered.sort_by(|a, b| {
        let lengths = a.text.len().cmp(&b.text.len());
        lengths.then_with(|| a.file.path.cmp(&b.file.path))
    });
    let (all, count) = (ordered.len(), count.max(1).min(ordered.len()));
    let place = |n: usize| match count {
        1 => all - 1,
        _ => n * (all - 1) / (count - 1),
    };
    (0..count).map(|n| ordered[place(n)].clone()).collect()
}

/// The entries with the texts that a trainer may have read instead of the Experiment's captions; `keeps_ends`: whether it is one that keeps
/// the line's end of a caption's file.
pub(super) fn other_readings<'a>(
    observed: &[Observation<'a>],
    known: &Known,
    keeps_ends: bool,
) -> Vec<(Reading, Vec<Observation<'a>>)> {
    let mut readings = Vec::new();
    if let Some(raw) = as_in_files(observed, known) {
        readings.push((Reading::CaptionFiles, raw));
    }
    if keeps_ends {
        let ended = observed.iter().map(|o| {
            let is_of_file = known.captions[o.paired.caption].picture.is_some();
            let end = if is_of_file { "\n" } else { "" };
            Observation {
                text: format!("{}{end}", o.text),
                ..o.clone()
            }
        });
        readings.push((Reading::LineEnds, ended.collect()));
    }
    readings
}

/// The entries with the texts of their caption files as they are, without the Experiment's trigger word; `None` where these are the
/// Experiment's captions.
fn as_in_files<'a>(observed: &[Observation<'a>], known: &Known) -> Option<Vec<Observation<'a>>> {
    let mut differs = false;
    let raw = observed.iter().map(|o| {
        let caption = &known.captions[o.paired.caption];
        // What the entry itself says it is of has no other writing.
        let text = match o.text == caption.text {
            true => caption.written.clone(),
            false => o.text.clone(),
        };
        differs |= text != o.text;
        Observation { text, ..o.clone() }
    });
    let raw = raw.collect();
    differs.then_some(raw)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Caption, Known, Paired, pair, spread};
    use crate::foreign::cache::{Cache, CacheFile, Content, Key, Trainer, caption_md5};

    fn known(captions: &[(&str, &str)]) -> Known {
        let mut known = Known::new(&[], Vec::new());
        let caption = |(picture, text): &(&str, &str)| Caption {
            picture: Some(PathBuf::from(picture)),
            text: (*text).to_owned(),
            written: (*text).to_owned(),
        };
        known.captions = captions.iter().map(caption).collect();
        known.by_stem.clear();
        known.by_key.clear();
        for (n, (picture, text)) in captions.iter().enumerate() {
            let stem = super::stem(&PathBuf::from(picture));
            known.by_stem.entry(stem).or_default().push(n);
            known.by_key.insert(Key::CaptionMd5(caption_md5(text)), n);
        }
        known
    }

    fn file(path: &str, key: Key) -> CacheFile {
        CacheFile {
            path: PathBuf::from(path),
            trainer: Trainer::Kohya,
            content: Content::Text,
            key,
            start: None,
            spans: Vec::new(),
        }
    }

    fn cache(files: Vec<CacheFile>, rows: &[&str]) -> Cache {
        Cache {
            files,
            left_out: Vec::new(),
            row_pictures: rows.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn entries_are_found_by_name_hash_and_row() {
        let known = known(&[("a/1.png", "one"), ("b/1.png", "uno"), ("a/2.png", "two")]);
        let stem = |path: &str, stem: &str| file(path, Key::Stem(stem.to_owned()));
        let cache = cache(
            vec![
                stem("b/1_te_outputs.npz", "1"),
                stem("b/_t_e_cache/1_x.safetensors", "1"),
                stem("c/1.npz", "1"),
                file("x.pt", Key::CaptionMd5(caption_md5("two"))),
                file("y.pt", Key::CaptionMd5(caption_md5("gone"))),
                file("0.pt", Key::Row(0)),
                file("7.pt", Key::Row(7)),
            ],
            &["elsewhere/2.png"],
        );
        let pairing = pair(&cache, cache.files.iter().collect(), &known);
        let texts: Vec<&str> = pairing.paired.iter().map(|p| p.text).collect();
        assert_eq!(texts, ["uno", "uno", "one", "two", "two"]);
        assert_eq!(pairing.uncertain, 1, "two pictures are called 1");
        let strangers: Vec<String> = pairing
            .strangers
            .iter()
            .map(|f| f.path.display().to_string())
            .collect();
        assert_eq!(strangers, ["y.pt", "7.pt"]);
        assert!(pairing.without_entry.is_empty());
    }

    #[test]
    fn a_sample_has_the_shortest_and_the_longest_caption() {
        let known = known(&[("1.png", "a")]);
        let files: Vec<CacheFile> = (0..9).map(|n| file(&n.to_string(), Key::Row(n))).collect();
        let texts = ["ccc", "a", "bb", "dddd", "eeeee", "f", "gg", "hhh", "iiii"];
        let paired: Vec<Paired<'_>> = (files.iter().zip(&texts))
            .map(|(file, text)| Paired {
                file,
                caption: 0,
                text,
            })
            .collect();
        let texts = |count| {
            spread(&paired, count)
                .iter()
                .map(|p| p.text)
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(3), ["a", "ccc", "eeeee"]);
        assert_eq!(texts(1), ["eeeee"]);
        assert_eq!(texts(100).len(), 9);
        drop(known);
    }
}
