//! The architecture as diffusers' `unet/config.json` tells it. A field that would change the network and is not read is refused.

use serde_json::{Map, Value, json};

use super::{Addition, Architecture, Level, MAX_COUNT, MAX_DIMENSION, SIZES};

/// Fields that change the network and have one value here, as JSON; others are refused.
const FIXED: &[(&str, &str)] = &[
    ("act_fn", "\"silu\""),
    ("addition_embed_type_num_heads", "64"),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dropout", "0.0"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("flip_sin_to_cos", "true"),
    ("freq_shift", "0"),
    ("mid_block_scale_factor", "1"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\""),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1.0"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_cond_proj_dim", "null"),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
];

/// Fields that are read, or change nothing in f32.
const READ: &[&str] = &[
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "in_channels",
    "layers_per_block",
    "mid_block_only_cross_attention",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "out_channels",
    "projection_class_embeddings_input_dim",
    "sample_size",
    "transformer_layers_per_block",
    "up_block_types",
    "upcast_attention",
    "use_linear_projection",
];

/// `unet/config.json`; what is missing has the default of diffusers' UNet2DConditionModel.
pub(super) struct Fields(pub(super) Map<String, Value>);

impl Fields {
    pub(super) fn architecture(&self) -> Result<Architecture, String> {
        self.check_fixed()?;
        let widths = self.numbers("block_out_channels", &[320, 640, 1280, 1280], None)?;
        let count = widths.len();
        let attends = self.levels_that_attend(count)?;
        let depths = self.numbers("transformer_layers_per_block", &[1], Some(count))?;
        // Early configs have the number of heads under the other name, and diffusers reads it so.
        let heads_field = match self.0.get("num_attention_heads") {
            None | Some(Value::Null) => "attention_head_dim",
            Some(_) => "num_attention_heads",
        };
        let heads = self.numbers(heads_field, &[8], Some(count))?;
        let levels = (0..count).map(|i| Level {
            width: widths[i],
            depth: if attends[i] { depths[i] } else { 0 },
            heads: heads[i],
        });
        Ok(Architecture {
            in_channels: self.number("in_channels", 4)?,
            out_channels: self.number("out_channels", 4)?,
            levels: levels.collect(),
            layers: self.number("layers_per_block", 2)?,
            middle_depth: depths.last().copied().unwrap_or(0),
            context_width: self.number("cross_attention_dim", 1280)?,
            linear_projection: self.get("use_linear_projection") == json!(true),
            addition: self.addition()?,
            groups: self.number("norm_num_groups", 32)?,
            eps: match self.get("norm_eps") {
                Value::Null => 1e-5,
                value => value
                    .as_f64()
                    .filter(|eps| *eps > 0.0)
                    .ok_or_else(|| wrong("norm_eps", "a number above 0", &value))?,
            },
        })
    }

    fn get(&self, field: &str) -> Value {
        self.0.get(field).cloned().unwrap_or(Value::Null)
    }

    fn check_fixed(&self) -> Result<(), String> {
        match self.0.get("_class_name").and_then(Value::as_str) {
            Some("UNet2DConditionModel") | None => {}
            Some(other) => {
                return Err(format!(
                    "`_class_name`: expected `UNet2DConditionModel`, found `{other}`"
                ));
            }
        }
        for (field, value) in &self.0 {
            if field.starts_with('_') || READ.contains(&field.as_str()) {
                continue;
            }
            match FIXED.iter().find(|(name, _)| name == field) {
                Some((_, expected)) if same(value, expected) => {}
                // Fields that came later are null in configs that were written before.
                Some(_) if value.is_null() => {}
                Some((_, expected)) => {
                    return Err(wrong(field, expected, value));
                }
                None => return Err(format!("`{field}`: unknown field")),
            }
        }
        Ok(())
    }

    fn number(&self, field: &str, default: usize) -> Result<usize, String> {
        match self.get(field) {
            Value::Null => Ok(default),
            value => whole(&value).ok_or_else(|| wrong(field, "a whole number", &value)),
        }
    }

    /// A list of whole numbers; one number stands for `count` of them.
    fn numbers(
        &self,
        field: &str,
        default: &[usize],
        count: Option<usize>,
    ) -> Result<Vec<usize>, String> {
        let value = self.get(field);
        let list: Vec<usize> = match &value {
            Value::Null => default.to_vec(),
            Value::Array(values) => values.iter().map_while(whole).collect(),
            value => whole(value).into_iter().collect(),
        };
        let list = match (count, &list[..]) {
            (Some(count), &[one]) if !value.is_array() => vec![one; count],
            _ => list,
        };
        let expected = count
            .or(value.as_array().map(Vec::len))
            .unwrap_or(list.len());
        if list.len() != expected || !(1..=MAX_COUNT).contains(&list.len()) {
            let what = format!("a list of {expected} whole numbers");
            return Err(wrong(field, &what, &value));
        }
        Ok(list)
    }

    /// Which levels have transformers, from the picture inwards.
    fn levels_that_attend(&self, count: usize) -> Result<Vec<bool>, String> {
        let kinds = |field: &str, attending: &str, plain: &str, default: &[&str]| {
            let value = match self.get(field) {
                Value::Null => json!(default),
                value => value,
            };
            let kind = |kind: &Value| match kind.as_str() {
                Some(kind) if kind == attending => Some(true),
                Some(kind) if kind == plain => Some(false),
                _ => None,
            };
            let list = value.as_array().map_or(&[][..], Vec::as_slice);
            let kinds: Vec<bool> = list.iter().map_while(kind).collect();
            match kinds.len() == count && list.len() == count {
                true => Ok(kinds),
                false => {
                    let what = format!("{count} of `{attending}` and `{plain}`");
                    Err(wrong(field, &what, &value))
                }
            }
        };
        let (down, plain) = ("CrossAttnDownBlock2D", "DownBlock2D");
        let downs = kinds("down_block_types", down, plain, &[down, down, down, plain])?;
        let (up, plain) = ("CrossAttnUpBlock2D", "UpBlock2D");
        let mut ups = kinds("up_block_types", up, plain, &[plain, up, up, up])?;
        ups.reverse();
        match ups == downs {
            true => Ok(downs),
            false => Err("`up_block_types`: expected the reverse of `down_block_types`".to_owned()),
        }
    }

    fn addition(&self) -> Result<Option<Addition>, String> {
        match self.get("addition_embed_type") {
            Value::Null => return Ok(None),
            Value::String(kind) if kind == "text_time" => {}
            other => {
                return Err(wrong(
                    "addition_embed_type",
                    "null or \"text_time\"",
                    &other,
                ));
            }
        }
        let size_channels = self.number("addition_time_embed_dim", 0)?;
        let inputs = self.number("projection_class_embeddings_input_dim", 0)?;
        let sizes = size_channels.saturating_mul(SIZES);
        match inputs.checked_sub(sizes) {
            Some(pooled_width) if inputs <= MAX_DIMENSION && sizes > 0 => Ok(Some(Addition {
                pooled_width,
                size_channels,
            })),
            _ => Err(format!(
                "`projection_class_embeddings_input_dim`: expected {SIZES} * addition_time_embed_dim = {sizes} and the pooled vector's channels, at most {MAX_DIMENSION}, found {inputs}"
            )),
        }
    }
}

/// Whether a value is what this JSON says; 1 and 1.0 are the same.
fn same(value: &Value, expected: &str) -> bool {
    let expected: Option<Value> = serde_json::from_str(expected).ok();
    match (value.as_f64(), expected.as_ref().and_then(Value::as_f64)) {
        (Some(found), Some(expected)) => found == expected,
        _ => expected.as_ref() == Some(value),
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn wrong(field: &str, expected: &str, found: &Value) -> String {
    format!("`{field}`: expected {expected}, found {found}")
}
