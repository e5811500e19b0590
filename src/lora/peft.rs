//! What PEFT's `LoraConfig` says of a LoRA's tensors: rank and alpha of each module. It stands in `adapter_config.json` beside
//! the weights, or in a file's metadata as diffusers writes it.
//!
//! Read as PEFT's `from_pretrained` reads it. A field by which the result would be another than that of plain LoRA is
//! refused by name, and so is one that is not known here: passed over, it could be a silent change of every number.

mod ordered;
mod pattern;
mod stated;

use serde_json::Value;

use self::ordered::Json;
use self::pattern::Pattern;
pub(super) use self::stated::{StatedModule, config_file, stated};
use crate::shown;

/// PEFT's default of `lora_alpha`.
const DEFAULT_ALPHA: f64 = 8.0;

/// Modules that a config may name one by one.
const MAX_PATTERNS: usize = 100_000;

/// Fields that change nothing for tensors that are there. `fan_in_fan_out` is for transposed weights: PEFT itself takes it back
/// on a linear, and on a convolution it has no meaning. The `_config` fields here count with their `init_lora_weights` only.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Fields with which it is no plain LoRA, and what it then is.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("kasa_config", "KaSA"),
    ("arrow_config", "Arrow, a choice among several LoRAs"),
    ("velora_config", "VeLoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("lora_bias", "LoRA with a bias of its own"),
    (
        "alora_invocation_tokens",
        "a LoRA that single tokens turn on",
    ),
    ("trainable_token_indices", "trained rows of an embedding"),
    (
        "target_parameters",
        "LoRA on parameters that are no linears",
    ),
    ("modules_to_save", "whole modules beside the LoRA"),
    ("layer_replication", "a network with repeated layers"),
];

/// Values of `init_lora_weights` that leave the base model's weights as they are.
const SOUND_STARTS: &[&str] = &["gaussian", "eva", "orthogonal", "mica", "default"];

/// Rank and alpha of modules, as a `LoraConfig` has them.
#[derive(Debug)]
pub(super) struct PeftConfig {
    /// Where it stands, for errors.
    place: String,
    rank: Option<usize>,
    alpha: f64,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    rank_stabilised: bool,
}

impl PeftConfig {
    /// The `LoraConfig` in the JSON of a LoRA's metadata, where each key has the pipeline's component in front; PEFT alone
    /// writes keys without. None where it says nothing of this component.
    pub(super) fn of_metadata(
        text: &str,
        place: &str,
        component: &str,
    ) -> Result<Option<Self>, String> {
        let fields = object(text, place)?;
        let prefix = format!("{component}.");
        let own: Vec<_> = fields
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone())))
            .collect();
        let bare = fields.into_iter().filter(|(key, _)| !key.contains('.'));
        let (own, prefix) = match own.is_empty() {
            true => (bare.collect(), String::new()),
            false => (own, prefix),
        };
        if own.is_empty() {
            return Ok(None);
        }
        Self::of_fields(own, place, &prefix).map(Some)
    }

    /// The text of an `adapter_config.json`.
    pub(super) fn of_file(text: &str, place: &str) -> Result<Self, String> {
        Self::of_fields(object(text, place)?, place, "")
    }

    fn of_fields(fields: Vec<(String, Json)>, place: &str, prefix: &str) -> Result<Self, String> {
        let mut config = Self {
            place: place.to_owned(),
            rank: None,
            alpha: DEFAULT_ALPHA,
            ranks: Vec::new(),
            alphas: Vec::new(),
            rank_stabilised: false,
        };
        for (key, value) in fields {
            config
                .take(&key, value)
                .map_err(|what| format!("{place}, `{prefix}{}`: {what}", shown::text(&key)))?;
        }
        Ok(config)
    }

    fn take(&mut self, key: &str, value: Json) -> Result<(), String> {
        match key {
            "r" => self.rank = Some(rank(&value)?),
            "lora_alpha" => self.alpha = alpha(&value)?,
            "rank_pattern" => self.ranks = patterns(value, rank)?,
            "alpha_pattern" => self.alphas = patterns(value, alpha)?,
            "use_rslora" => {
                self.rank_stabilised = match &value {
                    Json::Plain(Value::Bool(on)) => *on,
                    Json::Plain(Value::Null) => false,
                    other => return Err(format!("expected true or false, found {other}")),
                }
            }
            "peft_type" => match value.text() {
                Some("LORA") => {}
                _ if value.is_off() => {}
                _ => return Err(format!("expected \"LORA\", found {value}")),
            },
            "bias" => match value.text() {
                Some("none") => {}
                _ if value.is_off() => {}
                _ => {
                    return Err(format!(
                        "found {value}: the base model's biases were trained too; plumb reads LoRAs with \"none\""
                    ));
                }
            },
            "init_lora_weights" => sound_start(&value)?,
            _ if value.is_off() || HARMLESS.contains(&key) => {}
            _ => return Err(not_plain(key, &value)),
        }
        Ok(())
    }

    /// The alpha of an adapter of `rank` on `module`, such that its update is alpha / rank times B A.
    ///
    /// # Errors
    /// If the config has another rank, or a pattern takes too long to match.
    pub(super) fn alpha_of(&self, module: &str, rank: usize) -> Result<f64, String> {
        // Where it says none, the tensors do. PEFT would take 8, and then refuse tensors of another rank.
        let stated = first(&self.ranks, module)?.or(self.rank).unwrap_or(rank);
        if stated != rank {
            return Err(format!(
                "expected rank {stated}, as {} says, found {rank}",
                self.place
            ));
        }
        let alpha = first(&self.alphas, module)?.unwrap_or(self.alpha);
        // PEFT divides by the root of the rank; everything else here by the rank.
        let factor = match self.rank_stabilised {
            true => (rank as f64).sqrt(),
            false => 1.0,
        };
        Ok(alpha * factor)
    }

    /// Where it stands, for messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }
}

fn object(text: &str, place: &str) -> Result<Vec<(String, Json)>, String> {
    match serde_json::from_str(text) {
        Ok(Json::Object(fields)) => Ok(fields),
        Ok(other) => Err(format!("{place}: expected a JSON object, found {other}")),
        Err(error) => Err(format!("{place}: expected a JSON object: {error}")),
    }
}

fn rank(value: &Json) -> Result<usize, String> {
    match value {
        Json::Plain(Value::Number(number)) => number
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .filter(|&number| number > 0)
            .ok_or_else(|| format!("expected a whole number above 0, found {number}")),
        other => Err(format!("expected a whole number above 0, found {other}")),
    }
}

fn alpha(value: &Json) -> Result<f64, String> {
    match value {
        Json::Plain(Value::Number(number)) => number
            .as_f64()
            .filter(|number| number.is_finite())
            .ok_or_else(|| format!("expected a number, found {number}")),
        other => Err(format!("expected a number, found {other}")),
    }
}

fn patterns<T>(
    value: Json,
    read: impl Fn(&Json) -> Result<T, String>,
) -> Result<Vec<(Pattern, T)>, String> {
    let fields = match value {
        Json::Object(fields) => fields,
        other if other.is_off() => return Ok(Vec::new()),
        other => return Err(format!("expected an object, found {other}")),
    };
    if fields.len() > MAX_PATTERNS {
        let found = fields.len();
        return Err(format!(
            "expected at most {MAX_PATTERNS} entries, found {found}"
        ));
    }
    let entry = |(pattern, value): (String, Json)| {
        let value = read(&value).map_err(|what| format!("`{}`: {what}", shown::text(&pattern)))?;
        Ok((Pattern::new(&pattern)?, value))
    };
    fields.into_iter().map(entry).collect()
}

/// The value of the first pattern that fits, in the order of the file: as PEFT's `get_pattern_key` has it.
fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.fits(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// That the base model's weights were not changed before the training: then the tensors are all there is to the LoRA.
fn sound_start(value: &Json) -> Result<(), String> {
    let is_sound = match value {
        Json::Plain(Value::Bool(_) | Value::Null) => true,
        other => other
            .text()
            .is_some_and(|text| SOUND_STARTS.contains(&text.to_lowercase().as_str())),
    };
    if is_sound {
        return Ok(());
    }
    Err(format!(
        "found {value}, a start for which PEFT changes the base model's weights; save the adapter with `path_initial_model_for_weight_conversion`, which makes a plain LoRA of it"
    ))
}

fn not_plain(key: &str, value: &Json) -> String {
    match OTHER_KINDS.iter().find(|(field, _)| *field == key) {
        Some((_, kind)) => format!("found {value}: that is {kind}; plumb reads plain LoRA"),
        None => format!(
            "found {value}: plumb does not know this field, and what it does to the numbers"
        ),
    }
}

#[cfg(test)]
mod tests;
