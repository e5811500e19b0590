//! Bytes to adapters, in the naming of diffusers.

use std::collections::BTreeMap;

use super::stored::{StoredTensors, TensorRole, group_by_module};
use super::{ADAPTER_METADATA, LoraFile, Matrix, tensor_error};
use crate::lora::{AdapterSet, Error, LinearShape};

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
    let stated = StatedAlphas::parse(&stored.metadata, component).map_err(file_error)?;
    let mut shapes = Vec::new();
    let mut values = Vec::new();
    for (module, pair) in group_by_module(origin, named.into_iter(), String::clone)? {
        let rank = pair.rank();
        let alpha = pair.alpha.or_else(|| stated.of(&module));
        shapes.push((
            linear_shape(module, &pair.a.1, &pair.b.1),
            rank,
            alpha.unwrap_or(rank as f64),
        ));
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

/// The alphas that the metadata JSON states.
#[derive(Default)]
pub(in crate::lora) struct StatedAlphas {
    default: Option<f64>,
    by_module: Vec<(String, f64)>,
}

impl StatedAlphas {
    pub(in crate::lora) fn parse(
        metadata: &BTreeMap<String, String>,
        component: &str,
    ) -> Result<Self, String> {
        let Some(text) = metadata.get(ADAPTER_METADATA) else {
            return Ok(Self::default());
        };
        let field = |key: &str| format!("metadata `{ADAPTER_METADATA}`, `{component}.{key}`");
        let fields: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|error| {
                format!("metadata `{ADAPTER_METADATA}`: expected a JSON object: {error}")
            })?;
        let get = |key: &str| {
            fields
                // diffusers puts the component in front, PEFT alone does not.
                .get(&format!("{component}.{key}"))
                .or_else(|| fields.get(key))
        };
        if get("use_dora").and_then(serde_json::Value::as_bool) == Some(true) {
            return Err(format!("{}: DoRA is not supported", field("use_dora")));
        }
        // Their scale is alpha / sqrt(rank): read as plain LoRA, every update would be wrong by a factor.
        if get("use_rslora").and_then(serde_json::Value::as_bool) == Some(true) {
            return Err(format!(
                "{}: rank-stabilised scaling is not supported",
                field("use_rslora")
            ));
        }
        let number = |value: &serde_json::Value, key: &str| {
            value
                .as_f64()
                .ok_or_else(|| format!("{}: expected a number, found {value}", field(key)))
        };
        let default = get("lora_alpha")
            .map(|value| number(value, "lora_alpha"))
            .transpose()?;
        let mut by_module = Vec::new();
        match get("alpha_pattern") {
            None | Some(serde_json::Value::Null) => {}
            Some(serde_json::Value::Object(patterns)) => {
                for (pattern, value) in patterns {
                    by_module.push((pattern.clone(), number(value, "alpha_pattern")?));
                }
            }
            Some(other) => {
                return Err(format!(
                    "{}: expected an object, found {other}",
                    field("alpha_pattern")
                ));
            }
        }
        // PEFT takes these keys for regular expressions. Only plain names are matched below, so others would be passed over.
        let special = |c: char| "*+?()[]{}|\\$".contains(c);
        if let Some((pattern, _)) = by_module
            .iter()
            .find(|(pattern, _)| pattern.contains(special))
        {
            return Err(format!(
                "{}: expected module names, found the expression `{pattern}`",
                field("alpha_pattern")
            ));
        }
        Ok(Self { default, by_module })
    }

    /// As PEFT matches: a name that is the module's or its end after a dot; with `^` the module's only.
    pub(in crate::lora) fn of(&self, module: &str) -> Option<f64> {
        let fits = |pattern: &str| match pattern.strip_prefix('^') {
            Some(whole) => module == whole,
            None => module == pattern || module.ends_with(&format!(".{pattern}")),
        };
        self.by_module
            .iter()
            .find(|(pattern, _)| fits(pattern))
            .map(|(_, alpha)| *alpha)
            .or(self.default)
    }
}
