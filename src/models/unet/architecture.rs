//! The numbers of a UNet, from diffusers' config.json or from the shapes in a single file.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::models::Error;
use crate::models::layout::{Component, read_json};
use crate::nn::weights::Weights;

/// No dimension of a network is larger; keeps hostile configs from overflowing.
const MAX_DIMENSION: usize = 1 << 16;

/// No network has more levels, layers or transformer blocks at one place; keeps the lists of their names small.
const MAX_COUNT: usize = 64;

/// What is needed to build the network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Architecture {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    /// Levels from the picture inwards; each but the last halves the picture's sides.
    pub(super) levels: Vec<Level>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub(super) layers: usize,
    /// Transformer blocks in the middle.
    pub(super) middle_depth: usize,
    /// Channels of the context.
    pub(super) context_width: usize,
    /// Whether transformers are entered and left by linears; else by convolutions of one pixel.
    pub(super) linear_projection: bool,
    /// What is added to the timestep's embedding, if anything.
    pub(super) addition: Option<Addition>,
    /// Groups of every group norm.
    pub(super) groups: usize,
    /// Epsilon of the group norms outside of transformers.
    pub(super) eps: f64,
}

/// One level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) width: usize,
    /// Transformer blocks beside each residual block; 0: none.
    pub(super) depth: usize,
    /// Heads of an attention (also of the middle's, at the last level).
    pub(super) heads: usize,
}

/// SDXL's embedding of the pooled vector and of six sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addition {
    /// Channels of the pooled vector.
    pub(super) pooled_width: usize,
    /// Channels of each size's sinusoid.
    pub(super) size_channels: usize,
}

/// Numbers of [`ConditioningTensors::time_ids`].
///
/// [`ConditioningTensors::time_ids`]: crate::models::ConditioningTensors::time_ids
pub(super) const SIZES: usize = 6;

/// The width of Stable Diffusion 2's context, that of OpenCLIP's ViT-H; Stable Diffusion 1 has 768.
const SD2_CONTEXT: usize = 1024;

/// How the channels of a level are split into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heads {
    /// So many heads, whatever the channels (SD1).
    Count(usize),
    /// Heads of so many channels (SD2, SDXL).
    Channels(usize),
}

/// What a family expects, and what no shape tells: a single file has the released models' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) family: &'static str,
    /// Whether it has an embedding of the pooled vector and sizes.
    pub(super) size_embedding: bool,
    pub(super) heads: Heads,
    pub(super) groups: usize,
    pub(super) size_channels: usize,
}

impl Architecture {
    /// Of the denoiser in `component`; `weights` are its weights with canonical names.
    pub(super) fn of(
        component: &Component,
        weights: &Weights,
        variant: Variant,
    ) -> Result<Self, Error> {
        let not_this = |reason| Error::NotThisFamily {
            path: component.weights.clone(),
            family: format!("`{}`", variant.family),
            reason,
        };
        let own = match &component.config {
            Some(config) => Self::from_config(config)?,
            None => Self::from_shapes(weights, variant).map_err(not_this)?,
        };
        match (own.addition.is_some(), variant.size_embedding) {
            (false, true) => Err(not_this(
                "its UNet has no embedding of pooled vectors and sizes, so it is not an SDXL"
                    .into(),
            )),
            (true, false) => Err(not_this(
                "its UNet has an embedding of pooled vectors and sizes, as SDXL has".into(),
            )),
            // Its text encoder is another one with other pads, and a single file's heads are split otherwise.
            (false, false) if own.context_width == SD2_CONTEXT => Err(not_this(
                "its UNet takes a context of width 1024, so it is a Stable Diffusion 2, which there is no recipe for".into(),
            )),
            _ => Ok(own),
        }
    }

    /// Of diffusers' UNet2DConditionModel.
    pub(super) fn from_config(path: &Path) -> Result<Self, Error> {
        let fields = Fields(read_json(path)?);
        let found = fields.architecture().and_then(|own| {
            own.check()?;
            Ok(own)
        });
        found.map_err(|what| Error::Config {
            path: path.to_owned(),
            what,
        })
    }

    fn check(&self) -> Result<(), String> {
        let dimensions = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("cross_attention_dim", self.context_width),
            ("norm_num_groups", self.groups),
        ];
        let counts = [
            ("layers_per_block", self.layers),
            ("block_out_channels", self.levels.len()),
            ("transformer_layers_per_block", self.middle_depth),
        ];
        let named = |list: &[(&'static str, usize)], most| {
            let one = |&(field, value)| (field, value, most);
            list.iter().map(one).collect::<Vec<_>>()
        };
        for (field, value, most) in
            [named(&dimensions, MAX_DIMENSION), named(&counts, MAX_COUNT)].concat()
        {
            if !(1..=most).contains(&value) {
                return Err(format!("`{field}`: expected 1 to {most}, found {value}"));
            }
        }
        if self.in_channels != self.out_channels {
            return Err(format!(
                "`in_channels`: expected out_channels = {}, found {}: models for inpainting are not supported",
                self.out_channels, self.in_channels
            ));
        }
        for level in &self.levels {
            let Level {
                width,
                depth,
                heads,
            } = *level;
            // Even, as the first width is that of the timestep's sinusoid: half cosines, half sines.
            if !(1..=MAX_DIMENSION).contains(&width) || width % self.groups != 0 || width % 2 != 0 {
                let groups = self.groups;
                return Err(format!(
                    "`block_out_channels`: expected even multiples of norm_num_groups = {groups}, found {width}"
                ));
            }
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(format!(
                    "`attention_head_dim`: {width} channels cannot be split into {heads} heads"
                ));
            }
            if depth > MAX_COUNT {
                return Err(format!(
                    "`transformer_layers_per_block`: expected at most {MAX_COUNT}, found {depth}"
                ));
            }
        }
        match self.addition {
            Some(added) if added.size_channels == 0 || added.size_channels % 2 != 0 => {
                Err(format!(
                    "`addition_time_embed_dim`: expected an even number above 0, found {}",
                    added.size_channels
                ))
            }
            _ => Ok(()),
        }
    }

    /// From the shapes of weights with canonical names.
    fn from_shapes(weights: &Weights, variant: Variant) -> Result<Self, String> {
        let shape = |name: &str| {
            weights
                .shape(name)
                .ok_or_else(|| format!("it has no tensor for `{name}`"))
        };
        let dim = |name: &str, axis: usize| {
            let shape = shape(name)?;
            let found = shape.get(axis).copied();
            found.ok_or_else(|| format!("`{name}`: expected more dimensions than {shape:?}"))
        };
        let count = |name: &dyn Fn(usize) -> String| {
            let there = |i: &usize| weights.contains(&name(*i));
            (0..MAX_COUNT).take_while(there).count()
        };
        let depth =
            |place: &str| count(&|k| format!("{place}.transformer_blocks.{k}.attn1.to_q.weight"));
        let resnet =
            |level: usize, i: usize| format!("down_blocks.{level}.resnets.{i}.conv1.weight");
        let levels = (0..count(&|level| resnet(level, 0))).map(|level| {
            let width = dim(&resnet(level, 0), 0)?;
            let heads = match variant.heads {
                Heads::Count(count) => count,
                Heads::Channels(channels) => width / channels,
            };
            let depth = depth(&format!("down_blocks.{level}.attentions.0"));
            Ok(Level {
                width,
                depth,
                heads,
            })
        });
        let middle = "mid_block.attentions.0";
        let added = weights.shape("add_embedding.linear_1.weight");
        let addition = added.map(|shape| {
            let inputs = shape.get(1).copied().unwrap_or(0);
            let pooled = inputs.checked_sub(SIZES * variant.size_channels);
            pooled.map(|pooled_width| Addition {
                pooled_width,
                size_channels: variant.size_channels,
            })
        });
        let own = Self {
            in_channels: dim("conv_in.weight", 1)?,
            out_channels: dim("conv_out.weight", 0)?,
            levels: levels.collect::<Result<_, String>>()?,
            layers: count(&|i| resnet(0, i)),
            middle_depth: depth(middle),
            context_width: dim(
                &format!("{middle}.transformer_blocks.0.attn2.to_k.weight"),
                1,
            )?,
            linear_projection: shape(&format!("{middle}.proj_in.weight"))?.len() == 2,
            addition: match addition {
                Some(None) => {
                    return Err("`add_embedding.linear_1.weight` has too few columns".to_owned());
                }
                Some(found) => found,
                None => None,
            },
            groups: variant.groups,
            // diffusers' default `norm_eps`, in no tensor either.
            eps: 1e-5,
        };
        own.check()?;
        Ok(own)
    }
}

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
struct Fields(Map<String, Value>);

impl Fields {
    fn architecture(&self) -> Result<Architecture, String> {
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

#[cfg(test)]
mod tests;
