//! Bytes to adapters.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{ADAPTER_METADATA, LoraFile, tensor_error};
use crate::lora::{AdapterSet, Error, LinearShape};

/// Reads a LoRA file. `component` as in [`FileOptions`]; names as PEFT itself writes them (`base_model.model.`) and
/// without a component are read too. Alpha is the module's `.alpha` tensor, or else what the metadata JSON
/// says, or else the rank. `origin` names the file in errors.
///
/// # Errors
/// If the bytes are no LoRA file of this naming, or a tensor is misshapen, alone, or not finite.
pub fn read(bytes: &[u8], origin: &str, component: &str) -> Result<LoraFile, Error> {
    let file_error = |what: String| Error::File {
        origin: origin.to_owned(),
        what,
    };
    let not_safetensors = |error| file_error(format!("not a safetensors file: {error}"));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
    let metadata: BTreeMap<_, _> = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let stored = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;

    let mut found: BTreeMap<String, Parts<'_>> = BTreeMap::new();
    for (name, view) in stored.iter() {
        let (module, part) =
            parse_name(name, component).map_err(|what| tensor_error(origin, name, what))?;
        let parts = found.entry(module.to_owned()).or_default();
        let slot = match part {
            Part::A => &mut parts.a,
            Part::B => &mut parts.b,
            Part::Alpha => &mut parts.alpha,
        };
        if slot.replace((name.to_owned(), view)).is_some() {
            return Err(Error::Duplicate(module.to_owned()));
        }
    }
    if found.is_empty() {
        return Err(file_error("expected adapters, found no tensor".to_owned()));
    }
    let stated = StatedAlphas::parse(&metadata, component).map_err(file_error)?;
    let mut shapes = Vec::new();
    let mut values = Vec::new();
    for (module, parts) in &found {
        let (a, b) = parts.pair(module).map_err(file_error)?;
        let [rank, inputs] = shape_of(&a.1).map_err(|what| tensor_error(origin, &a.0, what))?;
        let [outputs, rank_b] = shape_of(&b.1).map_err(|what| tensor_error(origin, &b.0, what))?;
        if rank_b != rank {
            let what = format!("expected rank {rank} as lora_A has, found {rank_b} columns");
            return Err(tensor_error(origin, &b.0, what));
        }
        let alpha = match &parts.alpha {
            Some((name, view)) => {
                alpha_of(view).map_err(|what| tensor_error(origin, name, what))?
            }
            None => stated.of(module).unwrap_or(rank as f64),
        };
        shapes.push((
            LinearShape {
                name: module.clone(),
                outputs,
                inputs,
                reached: true,
            },
            rank,
            alpha,
        ));
        for (name, view) in [a, b] {
            decode(view, &mut values).map_err(|what| tensor_error(origin, name, what))?;
        }
    }
    let mut adapters = AdapterSet::zeroed(shapes)?;
    adapters.set_values(values)?;
    Ok(LoraFile { adapters, metadata })
}

/// A tensor's name and content.
type Named<'a> = (String, TensorView<'a>);

#[derive(Default)]
struct Parts<'a> {
    a: Option<Named<'a>>,
    b: Option<Named<'a>>,
    alpha: Option<Named<'a>>,
}

impl<'a> Parts<'a> {
    fn pair(&self, module: &str) -> Result<(&Named<'a>, &Named<'a>), String> {
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => Ok((a, b)),
            (None, _) => Err(format!(
                "adapter on `{module}`: expected a lora_A tensor, found none"
            )),
            (_, None) => Err(format!(
                "adapter on `{module}`: expected a lora_B tensor, found none"
            )),
        }
    }
}

enum Part {
    A,
    B,
    Alpha,
}

fn parse_name<'n>(name: &'n str, component: &str) -> Result<(&'n str, Part), String> {
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
    let own = format!("{component}.");
    let bare = name
        .strip_prefix(&own)
        .or_else(|| name.strip_prefix("base_model.model."))
        .unwrap_or(name);
    let parts = [
        (".lora_A.weight", Part::A),
        (".lora_B.weight", Part::B),
        (".alpha", Part::Alpha),
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

fn shape_of(view: &TensorView<'_>) -> Result<[usize; 2], String> {
    match *view.shape() {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        ref other => Err(format!(
            "expected two dimensions, neither 0, found {other:?}"
        )),
    }
}

fn alpha_of(view: &TensorView<'_>) -> Result<f64, String> {
    let mut alpha = Vec::new();
    decode(view, &mut alpha)?;
    match alpha[..] {
        [alpha] => Ok(f64::from(alpha)),
        _ => Err(format!("expected one number, found {}", alpha.len())),
    }
}

fn decode(view: &TensorView<'_>, out: &mut Vec<f32>) -> Result<(), String> {
    let start = out.len();
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => {
            out.extend(
                bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&b| f32::from_le_bytes(b)),
            );
        }
        Dtype::F16 => {
            out.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&b| f16::from_le_bytes(b).to_f32()),
            );
        }
        Dtype::BF16 => {
            out.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&b| bf16::from_le_bytes(b).to_f32()),
            );
        }
        other => return Err(format!("expected F32, F16 or BF16, found {other:?}")),
    }
    match out[start..].iter().position(|value| !value.is_finite()) {
        Some(index) => Err(format!(
            "number {index} is {}, expected finite numbers",
            out[start + index]
        )),
        None => Ok(()),
    }
}

/// The alphas that the metadata JSON states.
#[derive(Default)]
struct StatedAlphas {
    default: Option<f64>,
    by_module: Vec<(String, f64)>,
}

impl StatedAlphas {
    fn parse(metadata: &BTreeMap<String, String>, component: &str) -> Result<Self, String> {
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
                .get(&format!("{component}.{key}"))
                .or_else(|| fields.get(key))
        };
        if get("use_dora").and_then(serde_json::Value::as_bool) == Some(true) {
            return Err(format!("{}: DoRA is not supported", field("use_dora")));
        }
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
    fn of(&self, module: &str) -> Option<f64> {
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
