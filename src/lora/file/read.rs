//! Bytes to adapters, in the naming of diffusers.

use std::collections::BTreeMap;

use super::stored::{AdapterTensors, StoredTensors, TensorRole, group_by_module};
use super::{ADAPTER_METADATA, LoraFile, Matrix, PEFT_COMPONENT, tensor_error};
use crate::lora::peft::PeftConfig;
use crate::lora::{AdapterSet, Error, LinearShape};
use crate::shown;

/// Reads a LoRA file. `component` as in [`FileOptions`](super::FileOptions); names as PEFT itself writes them
/// (`base_model.model.`) and without a component are read too. Alpha is the module's `.alpha` tensor, or else what the
/// metadata JSON says, or else the rank. `origin` names the file in errors.
///
/// Module names are taken as they are. [`formats::read`](crate::lora::formats::read) knows the names of each family and
/// reads other namings.
///
/// # Errors
/// If the bytes are no LoRA file of this naming, or a tensor is misshapen, alone, or not finite.
pub fn read(bytes: &[u8], origin: &str, component: &str) -> Result<LoraFile, Error> {
    let file_error = |what: String| Error::File {
        origin: origin.to_owned(),
        what,
    };
    let stored = StoredTensors::open(bytes, origin)?;
    let mut named = Vec::new();
    for tensor in &stored.tensors {
        let (module, part) = parse_name(&tensor.0, component)
            .map_err(|what| tensor_error(origin, &tensor.0, what))?;
        named.push((tensor, module.to_owned(), part));
    }
    if named.is_empty() {
        return Err(file_error("expected adapters, found no tensor".to_owned()));
    }
    if let Some(what) = stored.verdict.damage {
        return Err(Error::Damaged {
            origin: origin.to_owned(),
            what,
        });
    }
    let stated = metadata_config(&stored.metadata, component).map_err(file_error)?;
    let stated: Vec<_> = stated.iter().collect();
    let mut shapes = Vec::new();
    let mut values = Vec::new();
    for (module, pair) in group_by_module(origin, named.into_iter(), String::clone)? {
        let rank = pair.rank();
        let alpha =
            alpha(&pair, &module, &stated).map_err(|what| tensor_error(origin, &pair.a.0, what))?;
        shapes.push((linear_shape(module, &pair.a.1, &pair.b.1), rank, alpha));
        values.extend(pair.a.1.values);
        values.extend(pair.b.1.values);
    }
    let mut adapters = AdapterSet::zeroed(shapes)?;
    adapters.set_values(values)?;
    Ok(LoraFile {
        adapters,
        metadata: stored.metadata,
    })
}

/// The linear or convolution that an adapter of these matrices fits on.
pub(in crate::lora) fn linear_shape(name: String, a: &Matrix, b: &Matrix) -> LinearShape {
    LinearShape {
        name,
        outputs: b.rows(),
        inputs: a.shape.get(1).copied().unwrap_or(0),
        kernel: a.shape.get(2).copied(),
        reached: true,
    }
}

fn parse_name<'n>(name: &'n str, component: &str) -> Result<(&'n str, TensorRole), String> {
    let expected = format!("expected names like `{component}.<module>.lora_A.weight`");
    if name.starts_with("lora_unet_")
        || name.starts_with("lora_te")
        || name.ends_with(".lora_down.weight")
    {
        return Err(format!(
            "{expected}, found the naming of kohya's scripts; convert the file first"
        ));
    }
    if name.starts_with("text_encoder") {
        return Err(format!(
            "{expected}, found an adapter of a text encoder, which is not supported"
        ));
    }
    let prefix = format!("{component}.");
    let bare = name
        .strip_prefix(&prefix)
        .or_else(|| name.strip_prefix("base_model.model."))
        .unwrap_or(name);
    let parts = [
        (".lora_A.weight", TensorRole::A),
        (".lora_B.weight", TensorRole::B),
        (".alpha", TensorRole::Alpha),
    ];
    for (ending, part) in parts {
        if let Some(module) = bare.strip_suffix(ending) {
            if module.is_empty() {
                break;
            }
            return Ok((module, part));
        }
    }
    Err(format!("{expected}, found another kind of tensor"))
}

/// The `LoraConfig` in a file's metadata, as diffusers and PEFT write it.
pub(in crate::lora) fn metadata_config(
    metadata: &BTreeMap<String, String>,
    component: &str,
) -> Result<Option<PeftConfig>, String> {
    let Some(text) = metadata
        .get(ADAPTER_METADATA)
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let place = format!("metadata `{ADAPTER_METADATA}`");
    match PeftConfig::of_metadata(text, &place, component)? {
        None => PeftConfig::of_metadata(text, &place, PEFT_COMPONENT),
        found => Ok(found),
    }
}

/// The alpha of an adapter: what its tensor and the configs say, or else the rank. Where two say different things, programs
/// differ in which they take or refuse the file, as diffusers does.
pub(in crate::lora) fn alpha(
    adapter: &AdapterTensors,
    module: &str,
    configs: &[&PeftConfig],
) -> Result<f64, String> {
    let rank = adapter.rank();
    let mut known = adapter.alpha.map(|alpha| (alpha, "its `.alpha` tensor"));
    for config in configs {
        let stated = config.alpha_of(module, rank)?;
        match known {
            None => known = Some((stated, config.place())),
            // A tensor may have been rounded to 8 bits of precision.
            Some((alpha, _)) if (alpha - stated).abs() <= stated.abs() / 128.0 => {}
            Some((alpha, place)) => {
                return Err(format!(
                    "the alpha of `{}` is {alpha} by {place} and {stated} by {}; only one of them can be meant, remove the other",
                    shown::text(module),
                    config.place()
                ));
            }
        }
    }
    Ok(known.map_or(rank as f64, |(alpha, _)| alpha))
}
