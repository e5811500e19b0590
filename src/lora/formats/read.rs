//! A LoRA file of any known naming to modules in ours.

use std::collections::{BTreeMap, BTreeSet};

use super::experts::{self, Expert, OfExperts};
use super::fuse;
use super::keys::{Convention, ModuleAddress, TensorKey};
use super::naming::{NamedModule, Naming, stated};
use super::{Format, Module};
use crate::lora::Error;
use crate::lora::file::stored::{AdapterTensors, StoredTensors, TensorRole, group_by_module};
use crate::lora::file::{
    ADAPTER_METADATA, SaveDtype, alpha, header_bytes, metadata_config, names, tensor_error,
};
use crate::lora::peft::PeftConfig;
use crate::lora::targets;
use crate::shown;

/// What the caller knows about a file, and wants of it.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions<'n, 'f> {
    /// The namings of all families, among which the file's is found.
    pub namings: &'n [Naming],
    /// The family, where it is known; otherwise it is told from the module names.
    pub family: Option<&'f str>,
    /// Whether adapters of text encoders are left out. Otherwise a file that has some is refused.
    pub without_text_encoders: bool,
    /// PEFT's `adapter_config.json` from beside the file.
    pub config: Option<ConfigBeside<'f>>,
    /// Whose adapters are read of a file with those of two experts. Otherwise such a file is refused.
    pub expert: Option<Expert>,
    /// Whether a file that is not what plumb wrote is read all the same, to look at it.
    pub damaged: bool,
}

/// An `adapter_config.json` in the folder of a LoRA file.
#[derive(Clone, Copy, Debug)]
pub struct ConfigBeside<'f> {
    /// Its text.
    pub text: &'f str,
    /// Whether the LoRA file has the name that PEFT gives it. Under another name the two may have nothing to do with each
    /// other: then the names of the tensors decide.
    pub named_by_peft: bool,
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
    /// What does not fit in a file that is read all the same, each as half a sentence about it.
    pub damage: Option<String>,
    /// Hashes of other programs that do not fit, each as half a sentence about the file.
    pub problems: Vec<String>,
    /// What a person should know of the file, each as half a sentence about it.
    pub notes: Vec<String>,
    /// What the names in it say of two experts.
    pub experts: OfExperts,
    /// Whether PEFT's config from beside the file was used.
    pub has_config: bool,
}

pub(super) type Tensors<'v, 'a> = Vec<(
    &'v (String, safetensors::tensor::TensorView<'a>),
    ModuleAddress,
    TensorRole,
)>;

/// How many bytes of a file of `file_bytes` are its header, told by its first bytes.
///
/// # Errors
/// If it is no safetensors file.
pub fn header_of(first: &[u8], file_bytes: u64, origin: &str) -> Result<u64, Error> {
    header_bytes(first, file_bytes).map_err(|why| not_safetensors(origin, &why))
}

/// Whether a file may be a LoRA, told by its header: a base model of 24 GB need not be read to be refused.
///
/// # Errors
/// If the header is none, the file is not as long as it says, or a tensor is not a LoRA's.
pub fn check_header(header: &[u8], file_bytes: u64, origin: &str) -> Result<(), Error> {
    let names = names(header, file_bytes).map_err(|why| not_safetensors(origin, &why))?;
    names.iter().try_for_each(|name| match TensorKey::of(name) {
        TensorKey::Other(kind) => Err(other_kind(origin, name, kind)),
        _ => Ok(()),
    })
}

fn not_safetensors(origin: &str, why: &str) -> Error {
    Error::File {
        origin: origin.to_owned(),
        what: format!("not a safetensors file: {why}"),
    }
}

/// Reads a LoRA file whatever its naming. `origin` names it in errors. Alpha is the module's `.alpha` tensor, or what PEFT's
/// config says in the metadata or beside the file, or else the rank.
///
/// # Errors
/// If the bytes are no LoRA file of a known naming and family, a tensor is misshapen, alone, or not finite, a config says that
/// it is no plain LoRA, two places have different alphas, or the file is not what plumb wrote.
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
    let (named, experts) = experts::of_one(named, options.expert, origin)?;
    let Some((_, first, _)) = named.first() else {
        return Err(file_error(
            "expected adapters of a denoiser, found none".to_owned(),
        ));
    };
    let convention = first.convention;
    let format = format_of(convention, &stored.metadata);
    let (naming, taken_to_be) = choose(&named, origin, &stored.metadata, options)?;
    if let (Some(what), false) = (&stored.verdict.damage, options.damaged) {
        return Err(Error::Damaged {
            origin: origin.to_owned(),
            what: what.clone(),
        });
    }
    let inside = metadata_config(&stored.metadata, naming.component).map_err(file_error)?;
    let has_alphas = named.iter().any(|(_, _, role)| *role == TensorRole::Alpha);
    let is_told = has_alphas || inside.is_some();
    let mut notes = stored.verdict.notes.clone();
    notes.extend(taken_to_be);
    let beside =
        config_beside(options.config, convention, is_told, &mut notes).map_err(file_error)?;
    let configs: Vec<_> = inside.iter().chain(&beside).collect();
    let dtype = stored.dtype();
    let found = group_by_module(origin, named.into_iter(), |address| address.module.clone())?;
    let mut modules = BTreeMap::new();
    for (address, pair) in found {
        // Two names in a file may be one module, by different conventions.
        for module in in_our_naming(pair, naming, &address, &configs, origin)? {
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
        damage: stored.verdict.damage,
        problems: stored.verdict.problems,
        notes,
        experts,
        has_config: beside.is_some(),
    })
}

/// PEFT's config beside the file, where the file is PEFT's. `is_told`: whether the file itself says its alphas.
fn config_beside(
    config: Option<ConfigBeside<'_>>,
    convention: Convention,
    is_told: bool,
    notes: &mut Vec<String>,
) -> Result<Option<PeftConfig>, String> {
    let of_peft = match convention {
        Convention::Peft => true,
        // PEFT writes these too, and so does diffusers for a single network.
        Convention::Bare => !is_told,
        _ => false,
    };
    match config {
        Some(config) if config.named_by_peft || of_peft => {
            PeftConfig::of_file(config.text, "adapter_config.json").map(Some)
        }
        Some(_) if !is_told => {
            notes.push("its alpha is taken to be the rank, as its naming has it; the adapter_config.json beside it belongs to files of PEFT and was not read".to_owned());
            Ok(None)
        }
        None if !is_told && convention == Convention::Peft => {
            notes.push("its alpha is taken to be the rank, as diffusers does: PEFT keeps it in an adapter_config.json, and there is none beside it".to_owned());
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// The denoiser's tensors with what their names say, and how many tensors of text encoders there are beside them.
fn addresses<'v, 'a>(
    stored: &'v StoredTensors<'a>,
    origin: &str,
    options: &ReadOptions<'_, '_>,
) -> Result<(Tensors<'v, 'a>, usize), Error> {
    let (mut named, mut text) = (Vec::new(), Vec::new());
    let mut adapters = BTreeSet::new();
    for tensor in &stored.tensors {
        match TensorKey::of(&tensor.0) {
            TensorKey::Denoiser(address, part, adapter) => {
                adapters.extend(adapter);
                named.push((tensor, address, part));
            }
            TensorKey::TextEncoder => text.push(&tensor.0),
            TensorKey::Other(kind) => return Err(other_kind(origin, &tensor.0, kind)),
        }
    }
    if adapters.len() > 1 {
        let names: Vec<_> = adapters
            .iter()
            .take(3)
            .map(|name| format!("`{}`", shown::text(name)))
            .collect();
        return Err(Error::File {
            origin: origin.to_owned(),
            what: format!(
                "{} adapters in one file ({}), expected one; save each for itself",
                adapters.len(),
                names.join(", ")
            ),
        });
    }
    match text.first() {
        Some(first) if !options.without_text_encoders => Err(Error::File {
            origin: origin.to_owned(),
            what: format!(
                "{}, the first is `{first}`: plumb reads adapters of the denoiser only; `plumb import lora --without-text-encoders` makes a file without them",
                shown::counted(text.len(), "tensor of text encoders")
            ),
        }),
        _ => Ok((named, text.len())),
    }
}

fn other_kind(origin: &str, tensor: &str, kind: &str) -> Error {
    let what = format!(
        "a tensor {kind}; expected plain LoRA, with names like `transformer.<module>.lora_A.weight` or `lora_unet_<module>.lora_down.weight`"
    );
    tensor_error(origin, tensor, what)
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

/// The family whose modules these are, and a note where nothing in the file says so and another fits as well.
fn choose<'n>(
    named: &Tensors<'_, '_>,
    origin: &str,
    metadata: &BTreeMap<String, String>,
    options: &ReadOptions<'n, '_>,
) -> Result<(&'n Naming, Option<String>), Error> {
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
        [naming] => Ok((naming, None)),
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
        _ => stated_family(named, metadata, &of_this_size(named, &fitting))
            .map(|naming| (naming, None))
            .or_else(|| {
                let naming = unless_stated(&of_this_size(named, &fitting))?;
                let note = format!(
                    "nothing in it says its family: it is taken for one of {}, and could be of another of {}; --family says otherwise",
                    naming.family,
                    families(&fitting)
                );
                Some((naming, Some(note)))
            })
            .ok_or_else(|| {
                file_error(format!(
                    "its modules are there in several families, {}, and nothing in it says which is meant; name one with --family, or for `plumb audit --lora` an Experiment",
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
    let has_width = |naming: &&&Naming| widths(named, naming).any(|is_listed| is_listed);
    let only = |found: Vec<&&'a Naming>| match found[..] {
        [naming] => Some(*naming),
        _ => None,
    };
    // Widths first: a tensor's shape cannot be wrong, a file's metadata can.
    only(fitting.iter().filter(has_width).collect()).or_else(|| stated(metadata, fitting))
}

/// Whether each linear of a listed name has a width that the family lists for it.
fn widths<'a>(
    named: &'a Tensors<'_, '_>,
    naming: &'a Naming,
) -> impl Iterator<Item = bool> + use<'a> {
    named.iter().filter_map(|((_, view), address, part)| {
        let place = places(naming, address).into_iter().next()?;
        let of_it = || {
            let listed = naming.widths.iter();
            listed.filter(|(end, _)| place.ours.ends_with(end))
        };
        let width = view.shape().get(1);
        let is_told = *part == TensorRole::A && of_it().next().is_some();
        is_told.then(|| of_it().any(|(_, listed)| Some(listed) == width))
    })
}

/// Those families of which no linear has another width than they list; all, where there are none.
fn of_this_size<'a>(named: &Tensors<'_, '_>, fitting: &[&'a Naming]) -> Vec<&'a Naming> {
    let fits = |naming: &&&Naming| widths(named, naming).all(|is_listed| is_listed);
    let found: Vec<_> = fitting.iter().filter(fits).copied().collect();
    match found.is_empty() {
        true => fitting.to_vec(),
        false => found,
    }
}

/// Of several families with these modules, the one that needs no word of it.
fn unless_stated<'a>(fitting: &[&'a Naming]) -> Option<&'a Naming> {
    let mut unsaid = fitting.iter().filter(|naming| !naming.only_where_stated);
    match (unsaid.next(), unsaid.next()) {
        (Some(naming), None) => Some(naming),
        _ => None,
    }
}

fn near(naming: &Naming, name: &str) -> String {
    let TensorKey::Denoiser(address, ..) = TensorKey::of(name) else {
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
    naming: &Naming,
    address: &ModuleAddress,
    configs: &[&PeftConfig],
    origin: &str,
) -> Result<Vec<Module>, Error> {
    let places = places(naming, address);
    let Some(first) = places.first() else {
        return Ok(Vec::new());
    };
    let b_name = pair.b.0.clone();
    let (_, is_flat) = address.convention.spellings();
    // PEFT's patterns are for the names of the network that was trained, whosever they are.
    let name = if is_flat {
        &first.ours
    } else {
        &address.module
    };
    let alpha =
        alpha(&pair, name, configs).map_err(|what| tensor_error(origin, &pair.a.0, what))?;
    let mut module = Module {
        name: first.ours.clone(),
        a: pair.a.1,
        b: pair.b.1,
        alpha,
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
