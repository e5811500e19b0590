//! Finding pictures and their captions. Everything that is wrong is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::budget::{DECODING_BYTES, map_within};
use super::caption::{self, Listed};
use super::clip::is_video_name;
use super::clip::samples::{self, Samples, Short};
use super::files::{self, Files, is_picture_name};
use super::left_out::{Reason, named};
use super::names::{tell_of_names, write_captions};
use super::picture::{PictureError, file_bytes};
use super::references::{self, Opened};
use super::trigger::with_trigger;
use super::{Dataset, Error, Folder, Item, PictureFile, Reference};
use crate::digest::Digest;
use crate::experiment::DatasetSettings;
use crate::monitor::Monitor;
use crate::recipe::latents::{Size, View};
use crate::shown;

/// A picture with its captions, and its reference if it has one.
struct Captioned {
    picture: PathBuf,
    /// With the trigger word, one a variant.
    as_encoded: Vec<String>,
    /// As the caption is written.
    written: String,
    reference: Option<PathBuf>,
}

/// One of the folder with this index.
type Found = (usize, Captioned);

/// References by their path, each opened once however many pictures share it, or why one cannot be.
type OpenedReferences<'a> = BTreeMap<&'a Path, Result<Opened<'a>, String>>;

impl Dataset {
    /// The captioned pictures of these folders.
    ///
    /// In a folder, a picture's caption is its line in `metadata.jsonl` or `metadata.csv` (`file_name` and `text`) or the file of
    /// its name with the extension `.txt` (else `.caption`). Every file is used, or named in one line of what was left and why.
    /// Each picture is read once, for its digest; none is decoded. So are clips, of which each window is an item, and reference pictures, found in a folder of their own by their
    /// names, or in a column of the list.
    ///
    /// # Errors
    /// If a folder cannot be read or has no picture, a picture or caption cannot be used, or a picture has no
    /// caption; all of it, not only the first.
    pub fn scan(folders: &[Folder], monitor: &dyn Monitor) -> Result<Self, Error> {
        let (dataset, broken) = Self::scan_usable(folders, monitor)?;
        match Error::of(broken) {
            Some(error) => Err(error),
            None => Ok(dataset),
        }
    }

    /// The same without the pictures that cannot be used, and what is wrong with each of those.
    ///
    /// # Errors
    /// As [`Self::scan`], but for pictures; and if none can be used.
    pub fn scan_usable(
        folders: &[Folder],
        monitor: &dyn Monitor,
    ) -> Result<(Self, Vec<Error>), Error> {
        let (mut found, mut errors): (Vec<Found>, _) = (Vec::new(), Vec::new());
        for (n, folder) in folders.iter().enumerate() {
            match captioned(folder, monitor) {
                Ok(pictures) => found.extend(pictures.into_iter().map(|p| (n, p))),
                Err(error) => errors.push(error),
            }
        }
        let references = found.iter().filter_map(|(_, of)| of.reference.as_deref());
        let references: BTreeSet<&Path> = references.collect();
        let work = found.len() + references.len();
        monitor.start("look at pictures", Some(work as u64));
        let references = opened(references, monitor);
        let bytes = |(_, of): &Found| match is_video_name(&of.picture.to_string_lossy()) {
            // Never all of it at once.
            true => 0,
            false => file_bytes(&of.picture),
        };
        let scanned = map_within(DECODING_BYTES, &found, bytes, |(n, of)| {
            let scanned = items(&folders[*n], of, &references);
            monitor.advance(1);
            scanned
        });
        monitor.finish();
        let (mut items, mut broken) = (Vec::new(), Vec::new());
        let mut short: Vec<Short> = folders.iter().map(|_| Short::default()).collect();
        for ((n, of), scanned) in found.iter().zip(scanned) {
            match scanned {
                Ok(Scanned::Items(found)) => items.extend(found),
                Ok(Scanned::Short(samples, found)) => {
                    short[*n].add(&folders[*n], &of.picture, &samples);
                    items.extend(found);
                }
                Err(error) => broken.push(error),
            }
        }
        if items.is_empty() {
            errors.extend(
                folders.iter().zip(&short).filter_map(|(folder, short)| {
                    Some(unusable(&folder.set.path, short.without()?))
                }),
            );
        }
        for (folder, short) in folders.iter().zip(&short) {
            short.tell(folder, monitor);
        }
        // With nothing left, what is wrong with the pictures is what is wrong.
        if !errors.is_empty() || items.is_empty() {
            errors.extend(broken);
            return Err(Error::of(errors)
                .unwrap_or_else(|| Error::Nothing("no folder of pictures is given".to_owned())));
        }
        references::tell(&items, monitor);
        Ok((Self { items }, broken))
    }
}

fn opened<'a>(paths: BTreeSet<&'a Path>, monitor: &dyn Monitor) -> OpenedReferences<'a> {
    let paths: Vec<&Path> = paths.into_iter().collect();
    let bytes = |path: &&Path| file_bytes(path);
    let files = map_within(DECODING_BYTES, &paths, bytes, |&picture| {
        let file = PictureFile::open(picture).map_err(|e| e.to_string());
        monitor.advance(1);
        // Only digest and size are asked for later: the bytes of all at once would fill the memory.
        file.map(|file| Opened {
            picture,
            digest: file.digest,
            size: file.size,
        })
    });
    paths.into_iter().zip(files).collect()
}

/// What a picture or a clip gives.
enum Scanned {
    Items(Vec<Item>),
    /// The same of a clip that is too short for some window, or for all.
    Short(Samples, Vec<Item>),
}

fn items(
    folder: &Folder,
    found: &Captioned,
    references: &OpenedReferences<'_>,
) -> Result<Scanned, Error> {
    let path = &found.picture;
    let Some(settings) = folder.set.clip_settings() else {
        return Ok(Scanned::Items(vec![picture(folder, found, references)?]));
    };
    if !samples::is_clip(path) {
        match picture(folder, found, references) {
            Err(Error::Picture(PictureError::Animated { .. })) => {}
            item => return Ok(Scanned::Items(vec![item?])),
        }
    }
    let samples = samples::samples(folder, settings, path)?;
    let item =
        |views: &Vec<View>| item(folder, found, (samples.digest, samples.size), views.clone());
    let items = samples.views.iter().map(item).collect();
    Ok(match samples.short {
        None => Scanned::Items(items),
        Some(_) => Scanned::Short(samples, items),
    })
}

fn picture(
    folder: &Folder,
    found: &Captioned,
    references: &OpenedReferences<'_>,
) -> Result<Item, Error> {
    let file = PictureFile::open(&found.picture)?;
    let (digest, size) = (file.digest, file.size);
    let views = folder.view_rules.views(size);
    let views = views.map_err(|e| unusable(&found.picture, e.to_string()))?;
    let reference = reference(folder, found, &views, references)?;
    Ok(Item {
        reference,
        ..item(folder, found, (digest, size), views)
    })
}

fn item(
    folder: &Folder,
    found: &Captioned,
    (digest, size): (Digest, Size),
    views: Vec<View>,
) -> Item {
    Item {
        picture: found.picture.clone(),
        digest,
        size,
        captions: found.as_encoded.clone(),
        written: found.written.clone(),
        views,
        repeats: folder.set.repeats,
        held_out: false,
        reference: None,
    }
}

fn reference(
    folder: &Folder,
    found: &Captioned,
    views: &[View],
    references: &OpenedReferences<'_>,
) -> Result<Option<Reference>, Error> {
    let opened = found
        .reference
        .as_deref()
        .and_then(|path| references.get(path));
    let (Some(opened), Some(settings)) = (opened, &folder.set.references) else {
        return Ok(None);
    };
    match opened {
        Ok(opened) => {
            let (rule, own) = (settings.size, folder.own_size.as_ref());
            Ok(Some(references::beside(opened, rule, own, views)))
        }
        Err(why) => Err(unusable(
            &found.picture,
            format!("its reference cannot be used: {why}"),
        )),
    }
}

fn unusable(path: &Path, problem: String) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        problem,
    }
}

/// The pictures of a folder and their captions with the trigger word, in order.
fn captioned(folder: &Folder, monitor: &dyn Monitor) -> Result<Vec<Captioned>, Error> {
    let root = &folder.set.path;
    if folder.set.repeats == 0 {
        let problem = "`repeats` is 0, expected at least 1; leave the folder out instead";
        return Err(unusable(root, problem.to_owned()));
    }
    let mut files = files::find(&folder.set)?;
    let listed = lists(&folder.set, &files)?;
    references::leave_named(&mut files, &listed);
    files.take_clips(root, |name| listed.contains_key(name), monitor);
    let beside = beside(&files.pictures, &files.captions);
    let used: BTreeSet<&String> = beside.values().flatten().copied().collect();
    for name in files.captions.iter().filter(|name| !used.contains(name)) {
        files.left.add(Reason::Orphan, name.clone());
    }
    if files.pictures.is_empty() {
        return Err(no_picture(root, &files));
    }
    files.left.tell(root, monitor);
    tell_of_names(folder, &files, &beside, monitor);
    let (mut out, mut bare, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    let (mut errors, mut fixed) = (Vec::new(), Vec::new());
    let mut references = references::find(&folder.set, &files.pictures, &listed, monitor)
        .unwrap_or_else(|error| {
            errors.push(error);
            BTreeMap::new()
        });
    for name in &files.pictures {
        let path = root.join(name);
        let beside = beside.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        let (caption, source) = match own_caption(root, name, beside, listed.get(name)) {
            Ok(found) => found,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        match caption
            .filter(|c| !c.is_empty())
            .or_else(|| assumed(folder))
        {
            Some(caption) => match variants(folder, &caption) {
                Ok((as_encoded, varies)) => {
                    if !varies {
                        fixed.push(name);
                    }
                    out.push(Captioned {
                        reference: references.remove(name),
                        picture: path,
                        as_encoded,
                        written: caption,
                    });
                }
                Err(problem) => errors.push(unusable(&path, problem)),
            },
            None if source.is_empty() => bare.push(name.as_str()),
            None => empty.push(source),
        }
    }
    errors.extend(lacking(folder, &files, &bare, &empty));
    if let Some(error) = Error::of(errors) {
        return Err(error);
    }
    tell_of_tags(folder, &fixed, out.len(), monitor)?;
    Ok(out)
}

/// One error for all pictures without a caption, and one for all that have an empty one.
fn lacking(of: &Folder, files: &Files, bare: &[&str], empty: &[&str]) -> Vec<Error> {
    let mut errors = Vec::new();
    let folder = || of.set.path.clone();
    if !bare.is_empty() {
        errors.push(Error::NoCaption {
            folder: folder(),
            count: bare.len(),
            named: named(bare),
            remedy: write_captions(of, files, bare),
        });
    }
    if !empty.is_empty() {
        errors.push(Error::EmptyCaption {
            folder: folder(),
            count: empty.len(),
            named: named(empty),
        });
    }
    errors
}

/// The captions of a picture, and whether tags are shuffled or left out in them, if they are to be.
fn variants(folder: &Folder, caption: &str) -> Result<(Vec<String>, bool), String> {
    let (captions, varies) = match &folder.set.tags {
        None => (vec![caption.to_owned()], true),
        Some(tags) => (tags.variants(caption)?, tags.has_effect(caption)),
    };
    // After the tags were left out: the trigger word never is.
    let trigger = folder.set.trigger.as_deref();
    let captions = captions.iter().map(|text| with_trigger(text, trigger));
    Ok((captions.collect::<Result<_, _>>()?, varies))
}

/// Tells of captions in which there is nothing to shuffle or leave out; that there are no others is an error.
fn tell_of_tags(
    folder: &Folder,
    fixed: &[&String],
    pictures: usize,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    if fixed.is_empty() || folder.set.tags.is_none() {
        return Ok(());
    }
    let names: Vec<&str> = fixed.iter().map(|name| name.as_str()).collect();
    let told = format!(
        "no tags to shuffle or leave out in {}: {} (tags stand between commas; those that are kept do not count)",
        shown::part_of(fixed.len(), pictures, "caption"),
        named(&names)
    );
    if fixed.len() == pictures {
        let problem = format!("{told}: leave `shuffle_tags` and `tag_dropout` out");
        return Err(unusable(&folder.set.path, problem));
    }
    monitor.note(&format!("{}: {told}", shown::path(&folder.set.path)));
    Ok(())
}

/// The caption of pictures without one, if one is assumed.
fn assumed(folder: &Folder) -> Option<String> {
    let empty = folder.set.allow_empty_captions.then(String::new);
    folder.set.default_caption.clone().or(empty)
}

fn no_picture(root: &Path, files: &Files) -> Error {
    let mut hints = Vec::new();
    if !files.closed.is_empty() {
        hints.push("it has folders: set `recursive = true` to read them".to_owned());
    }
    hints.extend(files.left.instead());
    let hint = match hints.is_empty() {
        true => String::new(),
        false => format!(" ({})", hints.join("; ")),
    };
    unusable(root, format!("the folder has no picture{hint}"))
}

/// What all lists say, each line with the name of its list, by picture.
fn lists(
    set: &DatasetSettings,
    files: &Files,
) -> Result<BTreeMap<String, (Listed, String)>, Error> {
    let root = &set.path;
    let column = set.reference_column();
    let pictures: BTreeSet<&String> = files.pictures.iter().collect();
    let mut all: BTreeMap<String, (Listed, String)> = BTreeMap::new();
    for list in &files.lists {
        let folder = list.rsplit_once('/').map_or("", |(folder, _)| folder);
        let below_root = |name: &str| {
            let path = Path::new(folder).join(name);
            path.to_string_lossy().replace('\\', "/")
        };
        for (name, mut line) in caption::list(&root.join(list), column)? {
            let name = below_root(&name);
            line.reference = line.reference.as_deref().map(below_root);
            let fail = |problem: String| Err(unusable(&root.join(list), problem));
            let shown = shown::text(&name);
            // A misspelt name: its caption would be used for nothing, and nobody would know.
            if !pictures.contains(&name) && !files.left.has(&name) && !files.is_numbered(&name) {
                let hint = match name.contains('/') && !files.closed.is_empty() {
                    true => " (set `recursive = true` to read the folders inside)",
                    false => "",
                };
                return fail(format!("`{shown}` is not a picture in the folder{hint}"));
            }
            if let Some((_, other)) = all.get(&name) {
                return fail(format!(
                    "`{shown}` has a caption in {other} as well: remove one of them"
                ));
            }
            all.insert(name, (line, list.clone()));
        }
    }
    Ok(all)
}

/// The caption files of each picture that has some: those with its name and another extension.
fn beside<'a>(
    pictures: &'a [String],
    captions: &'a [String],
) -> BTreeMap<&'a str, Vec<&'a String>> {
    let stem = |name: &str| Path::new(name).with_extension("");
    let mut of_stem: BTreeMap<PathBuf, Vec<&String>> = BTreeMap::new();
    for name in captions {
        of_stem.entry(stem(name)).or_default().push(name);
    }
    let of = |picture: &String| -> Vec<&'a String> {
        let mut stems = vec![stem(picture)];
        // A point in a name without extension, as in `v1.5`.
        if !is_picture_name(picture) && stems[0] != Path::new(picture) {
            stems.push(picture.into());
        }
        let found = stems.iter().filter_map(|stem| of_stem.get(stem));
        found.flatten().copied().collect()
    };
    let pictures = pictures
        .iter()
        .map(|picture| (picture.as_str(), of(picture)));
    pictures
        .filter(|(_, captions)| !captions.is_empty())
        .collect()
}

/// A picture's own caption, and the file it stands in; nothing and no name if it has none.
fn own_caption<'a>(
    root: &Path,
    picture: &str,
    beside: &[&'a String],
    listed: Option<&'a (Listed, String)>,
) -> Result<(Option<String>, &'a str), Error> {
    let fail = |one: &str, other: &str| {
        let (one, other) = (shown::text(one), shown::text(other));
        let problem = format!("it has captions in {one} and in {other}: remove one of them");
        Err(unusable(&root.join(picture), problem))
    };
    // Of two captions the right one cannot be guessed.
    match (listed, beside) {
        (Some((_, list)), [file, ..]) => fail(list, file),
        (_, [one, other, ..]) => fail(one, other),
        (Some((line, list)), []) => Ok((Some(line.caption.clone()), list)),
        (None, [file]) => Ok((Some(caption::read(&root.join(file))?), file)),
        (None, []) => Ok((None, "")),
    }
}
