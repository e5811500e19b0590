//! The names under which the trainers look for what they cached.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::values::Source;
use super::{Form, What, ai_toolkit, captions};
use crate::dataset::Item;
use crate::experiment::DatasetSettings;
use crate::foreign::cache::{caption_md5, stem_sha256};
use crate::models::cache_names::{AiToolkitNames, MusubiLatents, MusubiNames};

/// The data set that a picture is of: the innermost folder around it.
pub(in crate::convert) fn set_of<'a>(
    sets: &'a [DatasetSettings],
    item: &Item,
) -> Result<&'a DatasetSettings, String> {
    let around = sets.iter().filter(|s| item.picture.starts_with(&s.path));
    let innermost = around.max_by_key(|s| s.path.components().count());
    innermost.ok_or_else(|| "it lies in no folder of the Experiment's data sets".to_owned())
}

/// The files that a picture has in the cache, below its folder.
pub(super) fn files<'a>(
    source: &Source<'_>,
    set: &DatasetSettings,
    item: &'a Item,
) -> Result<Vec<(PathBuf, What<'a>)>, String> {
    let text = What::Text(&item.captions[0]);
    let below = item
        .picture
        .strip_prefix(&set.path)
        .unwrap_or(&item.picture);
    let folder = below.parent().unwrap_or(Path::new(""));
    let stem = utf8(item.picture.file_stem())?;
    let file_name = utf8(item.picture.file_name())?;
    let size = format!("{:04}x{:04}", item.size.width, item.size.height);
    Ok(match source.form {
        Form::Kohya(names) => {
            let latents = folder.join(format!("{stem}_{size}{}", names.latents));
            let texts = folder.join(format!("{stem}{}", names.texts));
            vec![(texts, text), (latents, What::Latents(item))]
        }
        // In one folder, whatever folder the picture is in.
        Form::Musubi(names) => musubi_files(source, names, item, (stem, &size)),
        Form::AiToolkit(names) => {
            ai_toolkit_files((source, names), set, item, (folder, stem, file_name))?
        }
        Form::Simpletuner(names) => {
            square(set)?;
            let family = names.name;
            let caption = captions::simpletuner(set, item)?;
            let named =
                |caption: &str| PathBuf::from(format!("text/{}-{family}.pt", caption_md5(caption)));
            let latents = Path::new("vae")
                .join(folder)
                .join(format!("{}.pt", stem_sha256(stem)));
            let mut files = vec![(named(&caption), text), (latents, What::Latents(item))];
            if source.has_blank && !caption.is_empty() {
                files.push((named(""), What::Text("")));
            }
            files
        }
    })
}

/// Of clips in a folder of their own: the tuner takes every file of a data set's folder for one of its own kind.
fn musubi_files<'a>(
    source: &Source<'_>,
    names: &MusubiNames,
    item: &'a Item,
    (stem, size): (&str, &str),
) -> Vec<(PathBuf, What<'a>)> {
    let (short, _) = names.architecture(source.flavor);
    let window = item.views.first().and_then(|view| view.window);
    let (folder, part) = match window {
        None => (Path::new(""), String::new()),
        Some(w) => (
            Path::new("clips"),
            format!("_{:05}-{:03}", w.start, w.frames),
        ),
    };
    let text = folder.join(format!("{stem}_{short}_te.safetensors"));
    let mut files = vec![(text, What::Text(&item.captions[0]))];
    // Of pairs it has no latents of a picture without its reference.
    if names.latents != MusubiLatents::Pairs || item.reference.is_some() {
        let latents = folder.join(format!("{stem}{part}_{size}_{short}.safetensors"));
        files.push((latents, What::Latents(item)));
    }
    files
}

/// SimpleTuner's buckets are its own, but that of a square is everybody's.
fn square(set: &DatasetSettings) -> Result<(), String> {
    let (width, height) = (set.resolution.width, set.resolution.height);
    if !set.bucket && width == height && width.is_multiple_of(64) {
        return Ok(());
    }
    Err(format!(
        "SimpleTuner sorts pictures into buckets of its own; the crops that both have are squares of a multiple of 64 px: \
         `bucket = false` and a `resolution` such as {}",
        (width.max(64) + 32) / 64 * 64
    ))
}

fn ai_toolkit_files<'a>(
    (source, names): (&Source<'_>, &AiToolkitNames),
    set: &DatasetSettings,
    item: &'a Item,
    (folder, stem, file_name): (&Path, &str, &str),
) -> Result<Vec<(PathBuf, What<'a>)>, String> {
    let arch = names.arch(source.flavor);
    // `get_bucket_divisibility`.
    let step = source.cache.geometry.factors.width as u32 * names.step;
    let crop = ai_toolkit::crop(item.size, set.resolution.width, step);
    let view = &item.views[0];
    if !crop.is(view) {
        return Err(format!(
            "ai-toolkit would crop it to {}x{} out of {}x{}, the Experiment to {}x{} out of {}x{}: pictures that need no crop, or \
             `bucket_step = {step}` and `no_upscale = true`, bring them together",
            crop.bucket.width,
            crop.bucket.height,
            crop.resized.width,
            crop.resized.height,
            view.bucket.width,
            view.bucket.height,
            view.resized.width,
            view.resized.height
        ));
    }
    let caption = captions::ai_toolkit(set, item)?;
    let texts = |caption: &str| {
        let key = ai_toolkit::text_key(caption, arch);
        folder.join(format!("_t_e_cache/{stem}_{key}.safetensors"))
    };
    let key = ai_toolkit::latents_key(file_name, &crop, names.latents.unwrap_or(arch));
    let latents = folder.join(format!("_latent_cache/{stem}_{key}.safetensors"));
    let mut files = vec![
        (texts(&caption), What::Text(&item.captions[0])),
        (latents, What::Latents(item)),
    ];
    // Read where its captions are dropped.
    if source.has_blank && !caption.is_empty() && set.trigger.is_none() {
        files.push((texts(""), What::Text("")));
    }
    Ok(files)
}

fn utf8(name: Option<&std::ffi::OsStr>) -> Result<&str, String> {
    let name = name.and_then(std::ffi::OsStr::to_str);
    name.ok_or_else(|| "its name is not UTF-8: rename it".to_owned())
}

/// Text as Python's `json.dumps` writes it: in ASCII.
pub(super) fn json_text(text: &str) -> String {
    let mut json = String::from("\"");
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(b'"') => json.push_str("\\\""),
            Ok(b'\\') => json.push_str("\\\\"),
            Ok(b'\n') => json.push_str("\\n"),
            Ok(b'\r') => json.push_str("\\r"),
            Ok(b'\t') => json.push_str("\\t"),
            Ok(8) => json.push_str("\\b"),
            Ok(12) => json.push_str("\\f"),
            Ok(ascii) if (0x20..0x7f).contains(&ascii) => json.push(char::from(ascii)),
            // Python leaves DEL as it is.
            Ok(0x7f) => json.push('\u{7f}'),
            _ => _ = write!(json, "\\u{unit:04x}"),
        }
    }
    json.push('"');
    json
}
