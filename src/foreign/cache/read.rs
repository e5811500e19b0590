//! One file of a cache: its tensors with what they are, its caption, and what else it says.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use safetensors::{Dtype, SafeTensors};

use super::array::{Array, ByteOrder, MAX_NUMBERS, NumberType};
use super::torch::Saved;
use super::{CacheFile, Content, Entry, Error, Role, Tensor, Trainer};
use super::{archive, names, npy, torch};
use crate::files;
use crate::shown;

/// The longest of the facts that are kept: captions can be long.
const MAX_FACT_CHARS: usize = 64 << 10;

/// Reads an entry.
pub(super) fn entry(file: &CacheFile) -> Result<Entry, Error> {
    let unreadable = |why| unreadable(&file.path, why);
    let ending = file.path.extension().and_then(|e| e.to_str());
    let mut read = match (ending, file.spans.is_empty()) {
        (_, false) => joined(file),
        (Some("npz"), true) => numpy(&bytes(&file.path)?),
        (Some("safetensors"), true) => safetensors(&bytes(&file.path)?),
        (_, true) => torch::read(&bytes(&file.path)?).and_then(|s| saved(s, file.content)),
    }
    .map_err(unreadable)?;
    place_facts(&mut read);
    let wanted = |role: &Role| match file.content {
        Content::Latents => matches!(role, Role::Latents(_)),
        Content::Text => matches!(
            role,
            Role::Hidden(_) | Role::Pooled(_) | Role::Context | Role::ContextPooled
        ),
    };
    if !read.tensors.iter().any(|t| wanted(&t.role)) {
        let names: Vec<&str> = read.tensors.iter().map(|t| t.name.as_str()).collect();
        let names = names.join(", ");
        let of = match file.content {
            Content::Text => "embeddings",
            Content::Latents => "latents",
        };
        let what = match read.facts.iter().find(|(key, _)| key == "architecture") {
            Some((_, name)) => {
                let name = shown::text(name);
                format!(
                    " (it is for {name}, for whose text encoder plumb has no base model, if it is whole)"
                )
            }
            None => String::new(),
        };
        return Err(unreadable(format!(
            "it has no {of} by a name that plumb knows, but {}{what}",
            shown::text(&names)
        )));
    }
    Ok(read)
}

/// What OneTrainer's `aggregate.pt` says: the picture of each row, in order.
pub(super) fn row_pictures(path: &Path) -> Result<Vec<String>, Error> {
    let saved = torch::read(&bytes(path)?).map_err(|why| unreadable(path, why))?;
    let Saved::List(rows) = saved else {
        return Err(unreadable(path, "it is no list of rows".to_owned()));
    };
    let picture = |row: &Saved| match row {
        Saved::Dict(row) => match row.get("image_path") {
            Some(Saved::Text(path)) => Some(path.clone()),
            _ => None,
        },
        _ => None,
    };
    // One for text has rows that say nothing.
    Ok(rows.iter().map_while(picture).collect())
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    files::read(path, archive::MAX_BYTES).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn unreadable(path: &Path, why: String) -> Error {
    Error::Unreadable {
        path: path.to_owned(),
        why,
    }
}

/// kohya's: arrays, and flags that are arrays of one number.
pub(super) fn numpy(bytes: &[u8]) -> Result<Entry, String> {
    let mut entry = empty();
    let mut left = MAX_NUMBERS;
    for (part, content) in archive::parts(bytes)? {
        let name = part.strip_suffix(".npy").unwrap_or(&part).to_owned();
        let shown = || format!("array `{}`", shown::text(&name));
        let array = npy::read(&content).map_err(|why| format!("{}: {why}", shown()))?;
        left = left
            .checked_sub(array.values.len())
            .ok_or_else(|| format!("its arrays have more than {MAX_NUMBERS} numbers"))?;
        add(&mut entry, name, array);
    }
    Ok(entry)
}

/// musubi's, ai-toolkit's, and anybody's.
pub(super) fn safetensors(bytes: &[u8]) -> Result<Entry, String> {
    let wrong = |e: safetensors::SafeTensorError| {
        let reason = e.to_string();
        format!("it is no safetensors file ({})", shown::text(&reason))
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(wrong)?;
    let mut entry = empty();
    let mut left = MAX_NUMBERS;
    for (name, view) in tensors.iter() {
        let shown = || format!("tensor `{}`", shown::text(name));
        let Some(stored) = number_type(view.dtype()) else {
            return Err(format!(
                "{} has numbers of type {}, which no cache has",
                shown(),
                view.dtype()
            ));
        };
        let shape = view.shape().to_vec();
        let array = Array::of_bytes(stored, ByteOrder::Little, shape, view.data());
        let array = array.map_err(|why| format!("{}: {why}", shown()))?;
        left = left
            .checked_sub(array.values.len())
            .ok_or_else(|| format!("its tensors have more than {MAX_NUMBERS} numbers"))?;
        add(&mut entry, name.to_owned(), array);
    }
    for (key, value) in header.metadata().iter().flatten() {
        match key.as_str() {
            // musubi's, and what plumb writes.
            "caption1" | "caption" => entry.caption = Some(value.clone()),
            _ => add_fact(&mut entry, key, value.clone()),
        }
    }
    entry.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    entry.facts.sort();
    Ok(entry)
}

/// diffusion-pipe's: the tensors of all parts.
fn joined(file: &CacheFile) -> Result<Entry, String> {
    let mut entry = empty();
    for span in &file.spans {
        let mut part = saved(torch::read(&span.read()?)?, file.content)?;
        entry.tensors.append(&mut part.tensors);
        entry.facts.append(&mut part.facts);
    }
    let caption = entry.facts.iter().find(|(key, _)| key == "caption");
    entry.caption = caption.map(|(_, caption)| caption.clone());
    entry.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entry)
}

/// SimpleTuner's and OneTrainer's: a dictionary of tensors, or one tensor of latents.
fn saved(saved: Saved, content: Content) -> Result<Entry, String> {
    let mut entry = empty();
    let dict = match saved {
        Saved::Dict(dict) => dict,
        Saved::Tensor(array) if content == Content::Latents => {
            BTreeMap::from([("latents".to_owned(), Saved::Tensor(array))])
        }
        _ => return Err("it holds no dictionary of tensors".to_owned()),
    };
    for (name, value) in dict {
        match value {
            Saved::Tensor(array) => add(&mut entry, name, array),
            Saved::Text(text) => add_fact(&mut entry, &name, text),
            Saved::Bool(value) => add_fact(&mut entry, &name, value.to_string()),
            Saved::Int(value) => add_fact(&mut entry, &name, value.to_string()),
            Saved::Float(value) => add_fact(&mut entry, &name, value.to_string()),
            Saved::List(items) => {
                let numbers = items.iter().map(|item| match item {
                    Saved::Int(value) => Some(value.to_string()),
                    Saved::Float(value) => Some(value.to_string()),
                    Saved::Tensor(array) if array.values.len() == 1 => {
                        Some(array.values[0].to_string())
                    }
                    _ => None,
                });
                if let Some(numbers) = numbers.collect::<Option<Vec<_>>>() {
                    add_fact(&mut entry, &name, numbers.join(","));
                }
            }
            Saved::None | Saved::Dict(_) => {}
        }
    }
    Ok(entry)
}

fn empty() -> Entry {
    Entry {
        caption: None,
        tensors: Vec::new(),
        facts: Vec::new(),
    }
}

/// A tensor, or a fact where it is a single number or a short list of whole numbers.
fn add(entry: &mut Entry, name: String, array: Array) {
    let role = names::role(&name);
    let is_short = array.shape.len() < 2 && array.values.len() <= 8;
    if role == Role::Other && is_short {
        let number = |v: &f32| match array.stored {
            NumberType::Bool => (*v != 0.0).to_string(),
            _ => v.to_string(),
        };
        let numbers: Vec<String> = array.values.iter().map(number).collect();
        add_fact(entry, &name, numbers.join(","));
        return;
    }
    entry.tensors.push(Tensor { name, role, array });
}

fn add_fact(entry: &mut Entry, key: &str, value: String) {
    if value.len() <= MAX_FACT_CHARS {
        entry.facts.push((key.to_owned(), value));
    }
}

/// Puts what stands beside latents into their roles: kohya's `crop_ltrb_8x8` and `original_size_8x8`, OneTrainer's and ai-toolkit's names.
fn place_facts(entry: &mut Entry) {
    let facts: BTreeMap<&str, &str> = entry
        .facts
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let px = |key: &str| facts.get(key).and_then(|text| listed::<u32>(text));
    let numbers = |key: &str| facts.get(key).and_then(|text| listed::<f32>(text));
    let pair = |first: &str, second: &str| match (&*px(first)?, &*px(second)?) {
        (&[first], &[second]) => Some([first, second]),
        _ => None,
    };
    for tensor in &mut entry.tensors {
        let Role::Latents(of) = &mut tensor.role else {
            continue;
        };
        // Top and left (mgds `ScaleCropImage`).
        of.crop = pair("crop_x", "crop_y").or_else(|| match *px("crop_offset")? {
            [top, left] => Some([left, top]),
            _ => None,
        });
        of.resized = pair("scale_to_width", "scale_to_height");
        of.upside_down = facts.get("flip_y") == Some(&"true");
        if facts.get("flip_x") == Some(&"true") {
            of.flipped = true;
            // ai-toolkit mirrors before it crops.
            if let (Some([left, _]), Some([wide, _]), Some([kept, _])) =
                (&mut of.crop, of.resized, pair("crop_width", "crop_height"))
            {
                *left = wide.saturating_sub(left.saturating_add(kept));
            }
        }
        let suffix = names::resolution(&tensor.name);
        if let (None, Some(ltrb), [.., high, wide]) = (
            of.crop,
            px(&format!("crop_ltrb{suffix}")),
            &*tensor.array.shape,
        ) {
            of.crop = kohya_crop(&ltrb, [*wide, *high]);
        }
        let original = &mut of.original;
        *original = numbers(&format!("original_size{suffix}"));
        if original.is_none() {
            // Height and width.
            *original = numbers("original_resolution")
                .filter(|size| size.len() == 2)
                .map(|size| vec![size[1], size[0]])
                .or_else(|| {
                    let side = |key: &str| numbers(key)?.first().copied();
                    Some(vec![side("width")?, side("height")?])
                });
        }
    }
}

/// Numbers between commas.
fn listed<T: FromStr>(text: &str) -> Option<Vec<T>> {
    text.split(',').map(|n| n.parse().ok()).collect()
}

/// Left and top of kohya's `crop_ltrb`, where that is a part of the resized picture as large as the latents: so plumb writes it. kohya
/// itself writes what SDXL is told of a crop, computed from the sizes alone and never beyond the latents' own size.
fn kohya_crop(ltrb: &[u32], latents: [usize; 2]) -> Option<[u32; 2]> {
    let &[left, top, right, bottom] = ltrb else {
        return None;
    };
    let is_side = |begin: u32, end: u32, side: usize| {
        let px = end.checked_sub(begin).and_then(|n| usize::try_from(n).ok());
        px.is_some() && px == side.checked_mul(8)
    };
    let is_whole = is_side(left, right, latents[0]) && is_side(top, bottom, latents[1]);
    (is_whole && (left, top) != (0, 0)).then_some([left, top])
}

fn number_type(dtype: Dtype) -> Option<NumberType> {
    Some(match dtype {
        Dtype::F64 => NumberType::F64,
        Dtype::F32 => NumberType::F32,
        Dtype::F16 => NumberType::F16,
        Dtype::BF16 => NumberType::Bf16,
        Dtype::F8_E4M3 => NumberType::F8E4m3,
        Dtype::F8_E5M2 => NumberType::F8E5m2,
        Dtype::I64 => NumberType::I64,
        Dtype::I32 => NumberType::I32,
        Dtype::I16 => NumberType::I16,
        Dtype::I8 => NumberType::I8,
        Dtype::U8 => NumberType::U8,
        Dtype::BOOL => NumberType::Bool,
        _ => return None,
    })
}

/// Whose a safetensors file is and what it is of, by its header; `None` for none of a cache's.
///
/// # Errors
/// Why it is no safetensors file, or cannot be read.
pub(super) fn kind_of_safetensors(path: &Path) -> Result<Option<(Trainer, Content)>, &'static str> {
    use std::io::Read as _;
    const CUT: &str = "it is cut off, or no safetensors file: its header is longer than the file";
    let mut file = files::open(path).map_err(|_| "it cannot be read")?;
    let size = file.metadata().map_err(|_| "it cannot be read")?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| CUT)?;
    let length = u64::from_le_bytes(length);
    if length > size.saturating_sub(8) {
        return Err(CUT);
    }
    // A cache's file has a few tensors and a caption.
    if length > 1 << 20 {
        return Ok(None);
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|_| CUT)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header)
        .map_err(|_| "it is damaged, or no safetensors file: its header is no JSON object")?;
    let of_musubi = header.get("__metadata__").is_some_and(|metadata| {
        let has = |key: &str| metadata.get(key).is_some();
        has("architecture") && has("format_version")
    });
    let names = || header.keys().filter(|name| *name != "__metadata__");
    let roles: Vec<Role> = names().map(|name| names::role(name)).collect();
    let is_text = |role: &Role| {
        matches!(
            role,
            Role::Hidden(_) | Role::Pooled(_) | Role::Context | Role::ContextPooled
        )
    };
    let text_name = path.to_string_lossy().ends_with("_te.safetensors");
    let content = if roles.iter().any(is_text) || of_musubi && text_name {
        Content::Text
    } else if roles.iter().any(|role| matches!(role, Role::Latents(_))) || of_musubi {
        Content::Latents
    } else {
        return Ok(None);
    };
    let own = ["text_embed", "text_embed_0", "latent"];
    let of_ai_toolkit = names().any(|name| own.contains(&name.as_str()));
    Ok(Some(match () {
        () if of_musubi => (Trainer::Musubi, content),
        () if of_ai_toolkit => (Trainer::AiToolkit, content),
        () => (Trainer::Safetensors, content),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::{NumberType, ToWrite, safetensors};
    use super::Role;

    #[test]
    fn a_picture_that_was_turned_upside_down_is_known() {
        let latents = ToWrite::new("latent", NumberType::F32, vec![1, 1, 1], vec![0; 4]);
        let facts = [("flip_y", "true".to_owned())];
        let file = safetensors(&[latents], &facts).expect("a file");
        let mut entry = super::safetensors(&file).expect("a file of ai-toolkit's");
        super::place_facts(&mut entry);
        let Role::Latents(facts) = &entry.tensors[0].role else {
            panic!("{:?}", entry.tensors[0].role);
        };
        assert!(facts.upside_down && !facts.flipped);
    }
}
