//! A LoRA file of any known naming to modules in ours.

use std::collections::BTreeMap;

use super::fuse;
use super::keys::{Convention, ModuleAddress, TensorKey};
use super::naming::{NamedModule, Naming};
use super::{Format, Module};
use crate::lora::Error;
use crate::lora::file::stored::{AdapterTensors, StoredTensors, TensorRole, group_by_module};
use crate::lora::file::{ADAPTER_METADATA, SaveDtype, StatedAlphas, tensor_error};
use crate::lora::targets;

/// What the caller knows about a file, and wants of it.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions<'n, 'f> {
    /// The namings of all families, among which the file's is found.
    pub namings: &'n [Naming],
    /// The family, where it is known; otherwise it is told from the module names.
    pub family: Option<&'f str>,
    /// Whether adapters of text encoders are left out. Otherwise a file that has some is refused.
    pub without_text_encoders: bool,
}

/// A LoRA file in our naming.
#[derive(Clone, Debug)]
pub struct Imported<'n> {
    /// The program whose naming the file had.
    pub format: Format,
    /// The naming of the family it is for.
    pub naming: &'n Naming,
    /// The adapters, by their names in order.
    pub modules: Vec<Module>,
    /// The file's metadata, as it is.
    pub metadata: BTreeMap<String, String>,
    /// The dtype of all its A and B, or F32 where they have several.
    pub dtype: SaveDtype,
    /// How many tensors of text encoders were left out.
    pub left_out: usize,
}

type Tensors<'v, 'a> = Vec<(
    &'v (String, safetensors::tensor::TensorView<'a>),
    ModuleAddress,
    TensorRole,
)>;

/// Reads a LoRA file whatever its naming. `origin` names it in errors. Alpha is the module's `.alpha` tensor, or else
/// what PEFT's metadata says, or else the rank.
///
/// # Errors
/// If the bytes are no LoRA file of a known naming and family, or a tensor is misshapen, alone, or not finite.
pub fn read<'n>(
    bytes: &[u8],
    origin: &str,
    options: &ReadOptions<'n, '_>,
) -> Result<Imported<'n>, Error> {
    let file_error = |what: String| Error::File {
        origin: origin.to_owned(),
        what,
    };
    let stored = StoredTensors::open(bytes, origin)?;
    let (named, left_out) = addresses(&stored, origin, options)?;
    let Some((_, first, _)) = named.first() else {
        return Err(file_error(
            "expected adapters of a denoiser, found none".to_owned(),
        ));
    };
    let format = format_of(first.convention, &stored.metadata);
    let naming = choose(&named, origin, &stored.metadata, options)?;
    let stated = StatedAlphas::parse(&stored.metadata, naming.component).map_err(file_error)?;
    let dtype = stored.dtype();
    let found = group_by_module(origin, named.into_iter(), |address| address.module.clone())?;
    let mut modules = BTreeMap::new();
    for (address, pair) in found {
        let places = places(naming, &address);
        // Two names in a file may be one module, by different conventions.
        for module in in_our_naming(pair, &places, &stated, origin)? {
            let name = module.name.clone();
            if modules.insert(name.clone(), module).is_some() {
                return Err(Error::Duplicate(name));
            }
        }
    }
    Ok(Imported {
        format,
        naming,
        modules: modules.into_values().collect(),
        metadata: stored.metadata,
        dtype,
        left_out,
    })
}

/// The denoiser's tensors with what their names say, and how many tensors of text encoders there are beside them.
fn addresses<'v, 'a>(
    stored: &'v StoredTensors<'a>,
    origin: &str,
    options: &ReadOptions<'_, '_>,
) -> Result<(Tensors<'v, 'a>, usize), Error> {
    let (mut named, mut text) = (Vec::new(), Vec::new());
    for tensor in &stored.tensors {
        match TensorKey::of(&tensor.0) {
            TensorKey::Denoiser(address, part) => named.push((tensor, address, part)),
            TensorKey::TextEncoder => text.push(&tensor.0),
            TensorKey::Other(kind) => {
                let what = format!(
                    "a tensor {kind}; expected plain LoRA, with names like `transformer.<module>.lora_A.weight` or `lora_unet_<module>.lora_down.weight`"
                );
                return Err(tensor_error(origin, &tensor.0, what));
            }
        }
    }
    match text.first() {
        Some(first) if !options.without_text_encoders => Err(Error::File {
            origin: origin.to_owned(),
            what: format!(
                "{} tensors of text encoders, the first is `{first}`: plumb reads adapters of the denoiser only; `plumb import lora --without-text-encoders` makes a file without them",
                text.len()
            ),
        }),
        _ => Ok((named, text.len())),
    }
}

fn format_of(convention: Convention, metadata: &BTreeMap<String, String>) -> Format {
    let software = metadata.get("software").map_or("", String::as_str);
    match convention {
        // ai-toolkit writes in either naming, by family, and says so in `software`.
        Convention::Component | Convention::Kohya if software.contains("ai-toolkit") => {
            Format::AiToolkit
        }
        Convention::Component => Format::Diffusers,
        Convention::Kohya => Format::Kohya,
        Convention::Peft => Format::Peft,
        Convention::Comfy => Format::Comfy,
        Convention::OneTrainer => Format::OneTrainer,
        Convention::Lycoris => Format::Lycoris,
        Convention::Bare if metadata.contains_key(ADAPTER_METADATA) => Format::Peft,
        Convention::Bare => Format::Bare,
    }
}

fn places(naming: &Naming, address: &ModuleAddress) -> Vec<NamedModule> {
    let (spellings, flat) = address.convention.spellings();
    let found = spellings
        .iter()
        .map(|&spelling| {
            let mut found = naming.find(&address.module, spelling, flat);
            if spelling == super::Spelling::Diffusers {
                // Under our name a part is a module of its own.
                for place in &mut found {
                    place.part = None;
                    place.halves_swapped = false;
                }
            }
            found
        })
        .find(|found| !found.is_empty());
    found.unwrap_or_default()
}

/// The family whose modules these are.
fn choose<'n>(
    named: &Tensors<'_, '_>,
    origin: &str,
    metadata: &BTreeMap<String, String>,
    options: &ReadOptions<'n, '_>,
) -> Result<&'n Naming, Error> {
    let file_error = |what: String| Error::File {
        origin: origin.to_owned(),
        what,
    };
    let asked = |naming: &&Naming| options.family.is_none_or(|family| family == naming.family);
    let mut fitting = Vec::new();
    let mut nearest: Option<(usize, &Naming, &str)> = None;
    for naming in options.namings.iter().filter(asked) {
        let unknown = || {
            named
                .iter()
                .filter(|(_, address, _)| places(naming, address).is_empty())
        };
        match unknown().next() {
            None => fitting.push(naming),
            Some(((name, _), ..)) => {
                // Counted only for the message: most families are ruled out by their first unknown name.
                let count = unknown().count();
                if nearest.is_none_or(|(least, ..)| count < least) {
                    nearest = Some((count, naming, name));
                }
            }
        }
    }
    let families = |namings: &[&Naming]| {
        let quoted = namings.iter().map(|naming| format!("`{}`", naming.family));
        quoted.collect::<Vec<_>>().join(", ")
    };
    match fitting[..] {
        [naming] => Ok(naming),
        [] => match nearest {
            Some((count, naming, name)) => {
                let near = near(naming, name);
                let what = format!(
                    "no such module in family {}, which fits best; {count} of {} tensors are not known{near}",
                    naming.family,
                    named.len()
                );
                Err(tensor_error(origin, name, what))
            }
            None => Err(file_error(format!(
                "family: expected one of {}, found `{}`",
                families(&options.namings.iter().collect::<Vec<_>>()),
                options.family.unwrap_or_default()
            ))),
        },
        _ => stated_family(named, metadata, &fitting).ok_or_else(|| {
            file_error(format!(
                "its modules are there in several families, {}, and nothing in it says which is meant; name one with --family",
                families(&fitting)
            ))
        }),
    }
}

/// Of several families with these modules the one that has them in this size, or else that the file's metadata names.
fn stated_family<'a>(
    named: &Tensors<'_, '_>,
    metadata: &BTreeMap<String, String>,
    fitting: &[&'a Naming],
) -> Option<&'a Naming> {
    let stated: String = ["modelspec.architecture", "ss_base_model_version"]
        .iter()
        .filter_map(|key| metadata.get(*key).map(String::as_str))
        .collect();
    let has_mark = |naming: &&&Naming| {
        let mut marks = naming.metadata_marks.iter();
        marks.any(|mark| stated.contains(mark))
    };
    let has_width = |naming: &&&Naming| {
        named.iter().any(|((_, view), address, part)| {
            let place = places(naming, address).into_iter().next();
            let mut widths = naming.widths.iter();
            *part == TensorRole::A
                && place.is_some_and(|place| {
                    widths.any(|(end, width)| {
                        place.ours.ends_with(end) && view.shape().get(1) == Some(width)
                    })
                })
        })
    };
    let only = |found: Vec<&&'a Naming>| match found[..] {
        [naming] => Some(*naming),
        _ => None,
    };
    // Widths first: a tensor's shape cannot be wrong, a file's metadata can.
    only(fitting.iter().filter(has_width).collect())
        .or_else(|| only(fitting.iter().filter(has_mark).collect()))
}

fn near(naming: &Naming, name: &str) -> String {
    let TensorKey::Denoiser(address, _) = TensorKey::of(name) else {
        return String::new();
    };
    let (spellings, flat) = address.convention.spellings();
    let known: Vec<_> = naming
        .rows
        .iter()
        .flat_map(|row| spellings.iter().map(move |&s| row.text(s, flat)))
        .map(|name| name.replace("{}", "N"))
        .collect();
    let known = known.iter().map(String::as_str);
    format!("; near it: {}", targets::near(&address.module, known))
}

/// An adapter of a file in our naming: several adapters where it is on a fused module.
fn in_our_naming(
    pair: AdapterTensors,
    places: &[NamedModule],
    stated: &StatedAlphas,
    origin: &str,
) -> Result<Vec<Module>, Error> {
    let Some(first) = places.first() else {
        return Ok(Vec::new());
    };
    let b_name = pair.b.0.clone();
    let rank = pair.rank() as f64;
    let alpha = pair.alpha.or_else(|| stated.of(&first.ours));
    let mut module = Module {
        name: first.ours.clone(),
        a: pair.a.1,
        b: pair.b.1,
        alpha: alpha.unwrap_or(rank),
    };
    // Only then are the outputs a scale and a shift; the same module of another block may have more.
    if first.halves_swapped && module.has_two_halves() {
        module.swap_halves();
    }
    match first.part {
        Some(part) => {
            let names: Vec<_> = places.iter().map(|place| place.ours.clone()).collect();
            fuse::split(&module, &names, part.units)
                .map_err(|what| tensor_error(origin, &b_name, what))
        }
        None => Ok(vec![module]),
    }
}
