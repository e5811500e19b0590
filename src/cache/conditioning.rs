//! Conditioning: what the denoiser receives for a caption, put together from the store's entries as the
//! recipe's assembly says. Training, sampling and `plumb inspect conditioning` all come through here.
//!
//! Shapes: `context` [tokens, width], `pooled` [width].

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Result, Tensor, bail};
use serde::Serialize;

use crate::models::ConditioningTensors;
use crate::recipe::Recipe;
use crate::recipe::rules::{Absent, AssembledPads, DenoiserMask, Unconditional};

/// One encoder's output for one caption, as f32.
#[derive(Clone, Debug)]
pub struct EncoderOutput {
    /// The sequence, [tokens, width].
    pub hidden: Option<Tensor>,
    /// The pooled vector, [width].
    pub pooled: Option<Tensor>,
    /// Ids before padding: rows from here on are pads.
    pub token_count: usize,
}

/// The outputs of a caption by the recipe's slots; absent encoders are left out.
pub type EncoderOutputs = BTreeMap<String, EncoderOutput>;

/// What the denoiser receives for one caption.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// The sequences of all encoders as the assembly joins them, [tokens, width]; width is the denoiser's.
    pub context: Tensor,
    /// [width]; [0] for a recipe without pooled input.
    pub pooled: Tensor,
    /// Rows of the context that the denoiser sees, the first so many, where the recipe has it mask pads.
    pub token_count: Option<usize>,
}

/// Several captions' conditioning for one call of the denoiser. All contexts are equally long, or their pads are masked: then the
/// shorter ones are filled up with rows that nothing sees.
///
/// # Errors
/// If they are neither, or are of different recipes.
pub fn batch(samples: &[&Conditioning]) -> Result<ConditioningTensors> {
    let stack = |part: &dyn Fn(&Conditioning) -> Tensor| {
        Tensor::stack(&samples.iter().map(|s| part(s)).collect::<Vec<_>>(), 0)
    };
    let counts: Vec<usize> = samples.iter().filter_map(|s| s.token_count).collect();
    // All or none: recipes mask pads or do not, so a mixture is of two recipes.
    let token_counts = match counts.len() {
        0 => None,
        all if all == samples.len() => Some(counts),
        some => bail!("{some} of {} contexts have masked pads", samples.len()),
    };
    let context = match token_counts {
        None => stack(&|s| s.context.clone())?,
        Some(_) => filled_up(samples)?,
    };
    Ok(ConditioningTensors {
        token_counts,
        ..ConditioningTensors::new(context, stack(&|s| s.pooled.clone())?)
    })
}

/// The contexts [tokens, width], each with rows of zeros behind it up to the longest.
fn filled_up(samples: &[&Conditioning]) -> Result<Tensor> {
    let rows = samples.iter().map(|s| s.context.dims()[0]).max();
    let longest = rows.unwrap_or(0);
    let filled = samples.iter().map(|sample| {
        let (rows, width) = sample.context.dims2()?;
        if rows == longest {
            return Ok(sample.context.clone());
        }
        let (dtype, device) = (sample.context.dtype(), sample.context.device());
        let unseen = Tensor::zeros((longest - rows, width), dtype, device)?;
        Tensor::cat(&[&sample.context, &unseen], 0)
    });
    Tensor::stack(&filled.collect::<Result<Vec<_>>>()?, 0)
}

/// Puts the outputs of a caption together. `context_width` is the denoiser's.
///
/// # Errors
/// If an output that the assembly needs is missing or does not fit.
pub fn assemble(
    recipe: &Recipe,
    outputs: &EncoderOutputs,
    context_width: usize,
) -> Result<Conditioning> {
    let assembly = recipe.assembly();
    let mut rows = Vec::new();
    for group in &assembly.context {
        let mut columns = Vec::new();
        for slot in group {
            let Some(output) = outputs.get(slot) else {
                columns.push(stand_in(recipe, slot, context_width)?);
                continue;
            };
            let Some(hidden) = &output.hidden else {
                bail!("the entry of `{slot}` has no sequence, which the recipe's context needs");
            };
            let zeroed = assembly.pads.get(slot) == Some(&AssembledPads::Zero);
            columns.push(if zeroed {
                let least = filled_rows(recipe, slot).unwrap_or(0);
                zero_rows_from(hidden, output.token_count, least)?
            } else {
                hidden.clone()
            });
        }
        rows.push(widen(&Tensor::cat(&columns, 1)?, context_width)?);
    }
    let mut pooled = Vec::new();
    for slot in &assembly.pooled {
        let Some(vector) = outputs.get(slot).and_then(|o| o.pooled.clone()) else {
            bail!("the entry of `{slot}` has no pooled vector, which the recipe needs");
        };
        pooled.push(vector);
    }
    // Empty instead of none, so that batches of every family stack alike.
    let pooled = match pooled.is_empty() {
        true => Tensor::from_vec(Vec::<f32>::new(), 0, &Device::Cpu)?,
        false => Tensor::cat(&pooled, 0)?,
    };
    let context = Tensor::cat(&rows, 0)?.contiguous()?;
    let token_count = match assembly.context.as_slice() {
        [group] => {
            let counts = group.iter().filter_map(|slot| outputs.get(slot));
            // Encoders side by side share rows: a row is a pad where it is one of all.
            let count = counts.map(|o| o.token_count).max();
            count.and_then(|n| assembly.mask.seen(n, context.dims()[0]))
        }
        // A recipe that masks pads has one group: `recipe::checks` refuses others.
        _ => None,
    };
    Ok(Conditioning {
        context,
        pooled,
        token_count,
    })
}

/// Where an encoder's sequence stands in the context: the rows it has from row `row` on, and the channels from `channel` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncoderPlace {
    /// Its slot in the recipe.
    pub slot: String,
    /// The first row.
    pub row: usize,
    /// How many rows, pads included.
    pub rows: usize,
    /// The first channel.
    pub channel: usize,
    /// How many channels.
    pub channels: usize,
    /// How many of the rows are of true tokens, the first so many.
    pub tokens: usize,
}

/// Where each encoder's sequence stands in the context that [`assemble`] makes of the same outputs. Encoders without one are left out.
///
/// # Errors
/// As [`assemble`].
pub fn places(
    recipe: &Recipe,
    outputs: &EncoderOutputs,
    context_width: usize,
) -> Result<Vec<EncoderPlace>> {
    let (mut places, mut row) = (Vec::new(), 0);
    for group in &recipe.assembly().context {
        let (mut channel, mut group_rows) = (0, 0);
        for slot in group {
            let output = outputs.get(slot);
            let Some(hidden) = output.and_then(|output| output.hidden.as_ref()) else {
                group_rows = stand_in(recipe, slot, context_width)?.dim(0)?;
                channel += context_width;
                continue;
            };
            let (rows, channels) = hidden.dims2()?;
            let rows = rows.max(filled_rows(recipe, slot).unwrap_or(0));
            let tokens = output.map_or(0, |output| output.token_count.min(rows));
            places.push(EncoderPlace {
                slot: slot.clone(),
                row,
                rows,
                channel,
                channels,
                tokens,
            });
            channel += channels;
            group_rows = rows;
        }
        row += group_rows;
    }
    Ok(places)
}

/// The outputs with those of the `dropped` slots replaced by what stands for "no caption": those of the
/// empty caption, or zeros, as the recipe says.
///
/// # Errors
/// If the empty caption's output is needed and not given.
pub fn drop_caption(
    recipe: &Recipe,
    outputs: &EncoderOutputs,
    empty: Option<&EncoderOutputs>,
    dropped: &BTreeSet<&str>,
) -> Result<EncoderOutputs> {
    // Of the same shape, so that contexts of a batch stay equally long.
    let zeros = |t: &Option<Tensor>| t.as_ref().map(Tensor::zeros_like).transpose();
    let mut replaced = outputs.clone();
    for (slot, output) in &mut replaced {
        if !dropped.contains(slot.as_str()) {
            continue;
        }
        *output = match recipe.assembly().unconditional {
            Unconditional::Zeros => EncoderOutput {
                hidden: zeros(&output.hidden)?,
                pooled: zeros(&output.pooled)?,
                token_count: output.token_count,
            },
            Unconditional::EncodedEmpty => match empty.and_then(|e| e.get(slot)) {
                Some(empty) => empty.clone(),
                None => bail!("the entry of the empty caption is missing for `{slot}`"),
            },
        };
    }
    Ok(replaced)
}

/// Rows for an encoder that the user does not have.
fn stand_in(recipe: &Recipe, slot: &str, width: usize) -> Result<Tensor> {
    match recipe.encoder(slot).map(|e| e.rules.absent) {
        // As wide as the context, since no encoder tells a width.
        Some(Absent::ZeroRows(count)) => Tensor::zeros((count, width), DType::F32, &Device::Cpu),
        _ => bail!("there is no entry of `{slot}`, and the recipe does not do without"),
    }
}

/// How many rows a slot has at least, zeros behind those of its true tokens, where its pads become zeros that the denoiser sees:
/// whether the store has rows of pads or not, it sees as many.
pub(super) fn filled_rows(recipe: &Recipe, slot: &str) -> Option<usize> {
    let assembly = recipe.assembly();
    let zeroed = assembly.pads.get(slot) == Some(&AssembledPads::Zero);
    let seen = assembly.mask == DenoiserMask::None;
    let encoder = recipe.encoder(slot).filter(|_| zeroed && seen)?;
    Some(encoder.rules.tokens.min_tokens)
}

/// `hidden` with zeros in its rows from `count` on, and `least` rows at least.
fn zero_rows_from(hidden: &Tensor, count: usize, least: usize) -> Result<Tensor> {
    let (rows, width) = hidden.dims2()?;
    let (count, rows) = (count.min(rows), rows.max(least));
    if count >= rows {
        return Ok(hidden.clone());
    }
    let pads = Tensor::zeros((rows - count, width), hidden.dtype(), hidden.device())?;
    Tensor::cat(&[&hidden.narrow(0, 0, count)?, &pads], 0)
}

fn widen(rows: &Tensor, width: usize) -> Result<Tensor> {
    let (count, have) = rows.dims2()?;
    if have > width {
        bail!(
            "the encoders give {have} channels, the denoiser takes {width}; this recipe is not this model's"
        );
    }
    if have == width {
        return Ok(rows.clone());
    }
    // On the right, as `F.pad` in diffusers' SD3 pipeline widens CLIP's rows to T5's.
    let fill = Tensor::zeros((count, width - have), rows.dtype(), rows.device())?;
    Tensor::cat(&[rows, &fill], 1)
}

#[cfg(test)]
mod tests {
    use super::{EncoderOutput, EncoderOutputs, assemble, drop_caption};
    use crate::recipe::Recipe;
    use candle_core::{Device, Tensor};
    use std::collections::BTreeSet;

    fn output(rows: usize, width: usize, pooled: usize, value: f32) -> EncoderOutput {
        let full = |shape: &[usize]| {
            Tensor::from_vec(vec![value; shape.iter().product()], shape, &Device::Cpu)
                .expect("a tensor")
        };
        let pooled = (pooled > 0).then(|| full(&[pooled]));
        EncoderOutput {
            hidden: Some(full(&[rows, width])),
            pooled,
            token_count: 2,
        }
    }

    fn outputs(t5: bool) -> EncoderOutputs {
        let mut all = EncoderOutputs::from([
            ("clip_l".to_owned(), output(3, 2, 2, 1.0)),
            ("clip_g".to_owned(), output(3, 3, 3, 2.0)),
        ]);
        if t5 {
            all.insert("t5".to_owned(), output(4, 6, 0, 3.0));
        }
        all
    }

    fn recipe(variant: &str) -> Recipe {
        Recipe::resolve("sd3", "3.5-large", variant, &toml::Table::new()).expect("shipped")
    }

    #[test]
    fn sd3_joins_the_clips_by_channel_fills_with_zeros_and_puts_t5_below() {
        let made = assemble(&recipe("reference"), &outputs(true), 6).expect("assembled");
        assert_eq!(made.context.dims(), [7, 6]);
        let rows = made.context.to_vec2::<f32>().expect("values");
        assert_eq!(rows[0], [1.0, 1.0, 2.0, 2.0, 2.0, 0.0]);
        assert_eq!(rows[3], [3.0; 6]);
        assert_eq!(
            made.pooled.to_vec1::<f32>().expect("values"),
            [1.0, 1.0, 2.0, 2.0, 2.0]
        );
    }

    #[test]
    fn zeros_that_the_denoiser_sees_are_there_whether_the_store_has_them_or_not() {
        let wan = Recipe::resolve("wan", "t2v-1.3b", "reference", &toml::Table::new());
        let wan = wan.expect("shipped");
        for stored in [2, 5] {
            let outputs = EncoderOutputs::from([("umt5".to_owned(), output(stored, 6, 0, 3.0))]);
            let made = assemble(&wan, &outputs, 6).expect("assembled");
            assert_eq!(made.context.dims(), [512, 6]);
            let rows = made.context.to_vec2::<f32>().expect("values");
            assert_eq!((rows[1][0], rows[2][0], rows[511][5]), (3.0, 0.0, 0.0));
            assert_eq!((made.token_count, made.pooled.dims()), (None, &[0][..]));
        }
    }

    #[test]
    fn an_absent_t5_is_what_the_variant_says() {
        let made = assemble(&recipe("kohya"), &outputs(false), 6).expect("assembled");
        assert_eq!(made.context.dims(), [3 + 77, 6]);
        assert_eq!(made.context.to_vec2::<f32>().expect("values")[3], [0.0; 6]);
    }

    #[test]
    fn a_dropped_encoder_is_the_empty_caption_or_zeros() {
        let dropped = BTreeSet::from(["clip_g"]);
        let empty: EncoderOutputs = outputs(true)
            .into_keys()
            .map(|slot| (slot, output(3, 3, 3, 9.0)))
            .collect();
        let value = |o: &EncoderOutputs, slot: &str| {
            o[slot]
                .pooled
                .as_ref()
                .and_then(|t| t.to_vec1::<f32>().ok())
                .map(|v| v[0])
        };
        let made = drop_caption(&recipe("reference"), &outputs(true), Some(&empty), &dropped)
            .expect("made");
        assert_eq!(
            (value(&made, "clip_l"), value(&made, "clip_g")),
            (Some(1.0), Some(9.0))
        );
        let made =
            drop_caption(&recipe("onetrainer"), &outputs(true), None, &dropped).expect("made");
        assert_eq!(value(&made, "clip_g"), Some(0.0));
        assert!(drop_caption(&recipe("reference"), &outputs(true), None, &dropped).is_err());
    }
}
