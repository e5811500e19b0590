//! Modules in our naming to a file of another.

use std::collections::BTreeMap;

use super::naming::{AiToolkitNaming, FusedPart, Naming, Spelling, flat};
use super::{Module, fuse};
use crate::lora::Error;
use crate::lora::file::{
    ADAPTER_METADATA, EncodedTensor, PEFT_COMPONENT, SaveDtype, adapter_metadata, commonest_rank,
    encode, fold, to_safetensors,
};
use crate::lora::peft::{StatedModule, config_file};

/// A naming that files are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// As diffusers writes and reads; ComfyUI reads it too for families of transformers.
    Diffusers,
    /// As kohya's scripts write; ComfyUI and most programs read it.
    Kohya,
    /// As ai-toolkit writes and reads.
    AiToolkit,
    /// As PEFT writes and reads: with a config in a file beside it.
    Peft,
}

/// What stands in front of the names of the authors' code.
const COMFY_COMPONENT: &str = "diffusion_model";

/// What decides how a file is written, besides its modules.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Whose naming to write.
    pub target: Target,
    /// How numbers are stored; `None`: as `source` if it holds them as they are, otherwise F32.
    pub dtype: Option<SaveDtype>,
    /// The dtype that the numbers came in.
    pub source: SaveDtype,
    /// What the file's metadata says besides what follows from its tensors.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor that is to be written: its name, shape, numbers, and what they are multiplied with.
struct TensorToWrite {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    factor: f64,
}

/// The bytes of a file with these modules, and how its numbers are stored.
///
/// # Errors
/// If the target would ignore a module, parts of a fused module do not fit each other, or a number is too large for
/// the dtype.
pub fn write(
    modules: Vec<Module>,
    naming: &Naming,
    options: &WriteOptions,
) -> Result<(Vec<u8>, SaveDtype), Error> {
    // First: a file that is read without an adapter works, and is not the LoRA that was converted.
    refuse_ignored(&modules, naming, options.target)?;
    let as_kohya = match options.target {
        Target::Diffusers | Target::Peft => false,
        Target::Kohya => true,
        Target::AiToolkit => naming.ai_toolkit == AiToolkitNaming::Kohya,
    };
    let is_native = match as_kohya {
        true => naming.kohya == Spelling::Native,
        false => {
            options.target == Target::AiToolkit && naming.ai_toolkit == AiToolkitNaming::Native
        }
    };
    let modules = match is_native {
        true => in_native_naming(modules, naming)?,
        false => modules,
    };
    let mut metadata = options.metadata.clone();
    // It describes the source's tensors.
    metadata.remove(ADAPTER_METADATA);
    let names = match is_native {
        true => naming.implementation,
        false => "diffusers",
    };
    if let Some(implementation) = metadata.get_mut("modelspec.implementation") {
        names.clone_into(implementation);
    }
    describe_network(&mut metadata, &modules, naming, options.target, as_kohya);
    describe_adapters(&mut metadata, &modules, naming, options.target);
    let tensors = modules.into_iter().flat_map(|module| {
        if as_kohya {
            return with_alpha(module);
        }
        match options.target {
            Target::Peft => as_they_are(module),
            Target::AiToolkit if naming.ai_toolkit != AiToolkitNaming::Diffusers => {
                folded(module, COMFY_COMPONENT)
            }
            _ => folded(module, naming.component),
        }
    });
    let (tensors, dtype) = encode_all(&tensors.collect::<Vec<_>>(), options)?;
    Ok((to_safetensors(metadata, tensors), dtype))
}

/// The text of the `adapter_config.json` that PEFT has beside a file of [`Target::Peft`].
pub fn peft_config(modules: &[Module], naming: &Naming) -> String {
    let stated: Vec<_> = modules
        .iter()
        .map(|m| StatedModule::new(m, m.alpha))
        .collect();
    let only = modules.iter().any(|m| naming.is_end_of_another(&m.name));
    config_file(&stated, only)
}

/// Ranks and alphas in the header, where diffusers looks for them. Of PEFT's files too: they can be parted from their config.
fn describe_adapters(
    metadata: &mut BTreeMap<String, String>,
    modules: &[Module],
    naming: &Naming,
    target: Target,
) {
    // alpha / rank is folded into the tensors.
    let folded = |module: &Module| module.rank() as f64;
    let kept = |module: &Module| module.alpha;
    let (component, alpha): (_, fn(&Module) -> f64) = match target {
        Target::Kohya | Target::AiToolkit => return,
        Target::Diffusers => (naming.component, folded),
        Target::Peft => (PEFT_COMPONENT, kept),
    };
    let stated: Vec<_> = modules
        .iter()
        .map(|m| StatedModule::new(m, alpha(m)))
        .collect();
    let json = adapter_metadata(&stated, component);
    metadata.insert(ADAPTER_METADATA.to_owned(), json);
}

impl<'a> StatedModule<'a> {
    fn new(module: &'a Module, alpha: f64) -> Self {
        Self {
            name: &module.name,
            rank: module.rank(),
            alpha,
        }
    }
}

fn refuse_ignored(modules: &[Module], naming: &Naming, target: Target) -> Result<(), Error> {
    let ignored = |module: &&Module| match target {
        Target::Diffusers | Target::Peft => false,
        Target::Kohya => naming.ours(&module.name).is_none(),
        Target::AiToolkit => {
            let mut marks = naming.ai_toolkit_modules.iter();
            naming.ours(&module.name).is_none() || !marks.any(|mark| module.name.contains(mark))
        }
    };
    let names: Vec<_> = modules
        .iter()
        .filter(ignored)
        .map(|module| format!("`{}`", module.name))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let program = match target {
        Target::Diffusers => "diffusers",
        Target::Peft => "PEFT",
        Target::Kohya => "kohya's scripts and ComfyUI",
        Target::AiToolkit => "ai-toolkit",
    };
    Err(Error::File {
        origin: "adapters to write".to_owned(),
        what: format!(
            "{program} would ignore {} of {} modules: {}; choose another format",
            names.len(),
            modules.len(),
            names.join(", ")
        ),
    })
}

/// Modules under their native names, parts of fused ones together. Each is known, as [`refuse_ignored`] saw to.
fn in_native_naming(modules: Vec<Module>, naming: &Naming) -> Result<Vec<Module>, Error> {
    let mut fused: BTreeMap<String, Vec<(FusedPart, Module)>> = BTreeMap::new();
    let mut native = Vec::new();
    for mut module in modules {
        let Some(place) = naming.ours(&module.name) else {
            continue;
        };
        if let Some(part) = place.part {
            fused.entry(place.native).or_default().push((part, module));
            continue;
        }
        if place.halves_swapped && module.has_two_halves() {
            module.swap_halves();
        }
        module.name = place.native;
        native.push(module);
    }
    for (name, mut parts) in fused {
        parts.sort_by_key(|(part, _)| part.index);
        native.push(fuse::fuse(name, parts).map_err(|what| Error::File {
            origin: "adapters to write".to_owned(),
            what,
        })?);
    }
    native.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(native)
}

/// What a file says about its network has to be true of the tensors written.
fn describe_network(
    metadata: &mut BTreeMap<String, String>,
    modules: &[Module],
    naming: &Naming,
    target: Target,
    as_kohya: bool,
) {
    let rank = commonest_rank(modules.iter().map(Module::rank));
    let alpha = modules
        .iter()
        .find(|module| (as_kohya || target == Target::Peft) && module.rank() == rank)
        .map_or(rank as f64, |module| module.alpha);
    metadata.insert("ss_network_dim".to_owned(), rank.to_string());
    // With a point, as Python writes a float: `8.0`.
    metadata.insert("ss_network_alpha".to_owned(), format!("{alpha:?}"));
    // By these keys tools expect kohya's names: in other files they would promise what is not there.
    for key in ["ss_network_module", "ss_network_args"] {
        metadata.remove(key);
    }
    if as_kohya {
        let module = naming.network_module.to_owned();
        metadata.insert("ss_network_module".to_owned(), module);
        metadata.insert("ss_network_args".to_owned(), "{}".to_owned());
    }
    if let Some(version) = naming.base_version {
        let stated = metadata.entry("ss_base_model_version".to_owned());
        stated.or_insert_with(|| version.to_owned());
    }
}

fn with_alpha(module: Module) -> Vec<TensorToWrite> {
    let path = format!("lora_unet_{}", flat(&module.name));
    let tensor = |suffix: &str, shape, values| TensorToWrite {
        name: format!("{path}.{suffix}"),
        shape,
        values,
        factor: 1.0,
    };
    vec![
        tensor("alpha", Vec::new(), vec![module.alpha as f32]),
        tensor("lora_down.weight", module.a.shape, module.a.values),
        tensor("lora_up.weight", module.b.shape, module.b.values),
    ]
}

fn as_they_are(module: Module) -> Vec<TensorToWrite> {
    with_component(module, PEFT_COMPONENT, (1.0, 1.0))
}

fn folded(module: Module, component: &str) -> Vec<TensorToWrite> {
    let factors = fold(module.scale());
    with_component(module, component, factors)
}

fn with_component(module: Module, component: &str, (on_a, on_b): (f64, f64)) -> Vec<TensorToWrite> {
    let path = format!("{component}.{}", module.name);
    let tensor = |part: char, matrix: super::Matrix, factor| TensorToWrite {
        name: format!("{path}.lora_{part}.weight"),
        shape: matrix.shape,
        values: matrix.values,
        factor,
    };
    vec![tensor('A', module.a, on_a), tensor('B', module.b, on_b)]
}

/// In the dtype asked for, or else in the source's if nothing is lost by it, or else in F32. Alphas are in F32.
fn encode_all(
    tensors: &[TensorToWrite],
    options: &WriteOptions,
) -> Result<(Vec<EncodedTensor>, SaveDtype), Error> {
    let in_dtype = |dtype: SaveDtype| -> Result<Vec<EncodedTensor>, Error> {
        let encode = |tensor: &TensorToWrite| {
            // Alphas: a half could round them, and with them every update.
            let dtype = if tensor.shape.is_empty() {
                SaveDtype::F32
            } else {
                dtype
            };
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            encode(name, shape, &tensor.values, tensor.factor, dtype)
        };
        tensors.iter().map(encode).collect()
    };
    if let Some(dtype) = options.dtype {
        return Ok((in_dtype(dtype)?, dtype));
    }
    match in_dtype(options.source) {
        Ok(encoded) if encoded.iter().all(|tensor| tensor.exact) => Ok((encoded, options.source)),
        _ => Ok((in_dtype(SaveDtype::F32)?, SaveDtype::F32)),
    }
}
