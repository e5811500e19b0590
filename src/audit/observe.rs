//! An entry taken apart: which of its numbers each encoder gave.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use half::{bf16, f16};

use super::Error;
use super::run::Runner;
use crate::base_model::BaseModel;
use crate::foreign::cache::{Array, Entry, Role};
use crate::text::spec::Dtype;

/// What one encoder gave for one caption, as a cache has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Shape [rows, width].
    pub(super) hidden: Option<Tensor>,
    /// Shape [width].
    pub(super) pooled: Option<Tensor>,
    /// Token ids, pads included, where they are stored.
    pub(super) ids: Option<Vec<u32>>,
    /// How many rows the denoiser is shown, where the entry says so: those behind them are left out before it.
    pub(super) shown_rows: Option<usize>,
}

/// Everything in an entry, by slot.
pub(super) type SeenSlots = BTreeMap<String, Seen>;

/// One slot of the Experiment's recipe, and what its encoder gives.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) slot: String,
    /// Its folder in a checkpoint of diffusers.
    component: String,
    /// Channels of its sequence.
    width: Option<usize>,
    /// Rows of its sequence for the empty caption.
    rows: usize,
    /// Channels of its pooled vector.
    pooled: Option<usize>,
}

/// What the base model's encoders give, and how they are put together.
pub(super) struct Shapes {
    shapes: Vec<Shape>,
    context: Vec<Vec<String>>,
    pooled: Vec<String>,
}

impl Shapes {
    pub(super) fn of(base: &BaseModel, runner: &mut Runner<'_>) -> Result<Self, Error> {
        let mut shapes = Vec::new();
        for part in &base.encoders {
            let outputs = runner.captions(part, &[""])?;
            let output = outputs.first();
            let hidden = output.and_then(|o| o.hidden.as_ref());
            let hidden = hidden.map(Tensor::dims2).transpose()?;
            let pooled = output.and_then(|o| o.pooled.as_ref());
            let recipe = base.recipe.encoder(&part.slot);
            shapes.push(Shape {
                slot: part.slot.clone(),
                component: recipe.map_or_else(String::new, |r| r.component.clone()),
                width: hidden.map(|(_, width)| width),
                rows: hidden.map_or(0, |(rows, _)| rows),
                pooled: pooled.map(Tensor::dims1).transpose()?,
            });
        }
        let assembly = base.recipe.assembly();
        Ok(Self {
            shapes,
            context: assembly.context.clone(),
            pooled: assembly.pooled.clone(),
        })
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &str> {
        self.shapes.iter().map(|shape| shape.slot.as_str())
    }

    /// The shape of a slot, by its own name or its component's.
    fn get(&self, name: &str) -> Option<&Shape> {
        let is_it = |shape: &&Shape| shape.slot == name || shape.component == name;
        self.shapes.iter().find(is_it)
    }

    /// Takes an entry apart.
    ///
    /// # Errors
    /// If its tensors are not as wide as the base model's encoders give.
    pub(super) fn split(&self, entry: &Entry) -> Result<SeenSlots, String> {
        let mut seen = SeenSlots::new();
        for tensor in &entry.tensors {
            let named = |why: String| format!("tensor `{}`: {why}", tensor.name);
            let array = &tensor.array;
            match &tensor.role {
                Role::Hidden(slots) => self.hidden(&mut seen, slots, array).map_err(named)?,
                Role::Pooled(slots) => self.vector(&mut seen, slots, array).map_err(named)?,
                Role::ContextPooled => {
                    self.vector(&mut seen, &self.pooled, array).map_err(named)?;
                }
                Role::Context => self.context(&mut seen, array).map_err(named)?,
                Role::Ids(slot) => {
                    if let Some(shape) = self.get(slot) {
                        let ids = array.values.iter().map(|id| *id as u32).collect();
                        seen.entry(shape.slot.clone()).or_default().ids = Some(ids);
                    }
                }
                Role::Mask(_) | Role::Latents(_) | Role::Other => {}
            }
        }
        if let [only] = self.shapes.as_slice()
            && let Some(seen) = seen.get_mut(&only.slot)
        {
            seen.shown_rows = shown_rows(entry);
        }
        Ok(seen)
    }

    /// Sequences of encoders side by side.
    fn hidden(&self, seen: &mut SeenSlots, slots: &[String], array: &Array) -> Result<(), String> {
        let (rows, width) = matrix(array)?;
        self.columns(seen, slots, array, (0, rows), width)
    }

    /// The sequences of all encoders: groups of rows below each other, each of encoders side by side.
    fn context(&self, seen: &mut SeenSlots, array: &Array) -> Result<(), String> {
        let (rows, width) = matrix(array)?;
        let mut from = 0;
        for (n, group) in self.context.iter().enumerate() {
            let is_last = n + 1 == self.context.len();
            let count = match is_last {
                true => rows - from,
                false => self.rows_of(group, array, (from, rows), width),
            };
            if count > 0 {
                self.columns(seen, group, array, (from, count), width)?;
            }
            from += count;
        }
        Ok(())
    }

    /// How many rows a group has that another follows: those with zeros to its right, where it is narrower than the context.
    fn rows_of(
        &self,
        group: &[String],
        array: &Array,
        (from, rows): (usize, usize),
        width: usize,
    ) -> usize {
        let usual = group.iter().filter_map(|slot| self.get(slot));
        let usual = usual.map(|shape| shape.rows).max().unwrap_or(0);
        let own: usize = group.iter().filter_map(|slot| self.get(slot)?.width).sum();
        let right_of_it = |row: usize| &array.values[row * width + own..(row + 1) * width];
        let narrow = match own < width {
            true => (from..rows)
                .take_while(|row| right_of_it(*row).iter().all(|v| *v == 0.0))
                .count(),
            false => 0,
        };
        // Where zeros stand for the encoder below as well, they do not tell where it begins.
        match narrow > 0 && from + narrow < rows {
            true => narrow,
            false => usual.min(rows - from),
        }
    }

    fn columns(
        &self,
        seen: &mut SeenSlots,
        slots: &[String],
        array: &Array,
        (from, rows): (usize, usize),
        width: usize,
    ) -> Result<(), String> {
        let shapes: Vec<&Shape> = slots.iter().filter_map(|slot| self.get(slot)).collect();
        let own: usize = shapes.iter().filter_map(|shape| shape.width).sum();
        let right = |row: usize| &array.values[row * width + own.min(width)..(row + 1) * width];
        let is_filled = (from..from + rows).all(|row| right(row).iter().all(|v| *v == 0.0));
        if own > width || !is_filled {
            return Err(other_model(width, own, slots));
        }
        let mut left = 0;
        for shape in shapes {
            let Some(wide) = shape.width else { continue };
            let part = |row: usize| {
                let at = row * width + left;
                array.values[at..at + wide].iter().copied()
            };
            let values: Vec<f32> = (from..from + rows).flat_map(part).collect();
            let tensor = Tensor::from_vec(values, (rows, wide), &Device::Cpu);
            let seen = seen.entry(shape.slot.clone()).or_default();
            seen.hidden = Some(tensor.map_err(|e| e.to_string())?);
            left += wide;
        }
        Ok(())
    }

    fn vector(&self, seen: &mut SeenSlots, slots: &[String], array: &Array) -> Result<(), String> {
        let shapes: Vec<&Shape> = slots.iter().filter_map(|slot| self.get(slot)).collect();
        // kohya's scripts put zeros where Chroma has no CLIP.
        if shapes.is_empty() && array.values.iter().all(|value| *value == 0.0) {
            return Ok(());
        }
        let Some(width) = array.vector() else {
            return Err(format!(
                "expected one vector, found shape {:?}",
                array.shape
            ));
        };
        // A variant may take a pooled vector of an encoder where the Experiment's recipe takes none.
        let wide = |shape: &Shape| shape.pooled.or(shape.width).unwrap_or(0);
        let own: usize = shapes.iter().map(|shape| wide(shape)).sum();
        if own != width {
            return Err(other_model(width, own, slots));
        }
        let mut left = 0;
        for shape in shapes {
            let values = array.values[left..left + wide(shape)].to_vec();
            left += wide(shape);
            let tensor = Tensor::from_vec(values, wide(shape), &Device::Cpu);
            let seen = seen.entry(shape.slot.clone()).or_default();
            seen.pooled = Some(tensor.map_err(|e| e.to_string())?);
        }
        Ok(())
    }
}

/// That a tensor of encoders in `slots` has `width` channels where the base model's have `own`.
fn other_model(width: usize, own: usize, slots: &[String]) -> String {
    let slots = slots.join(" and ");
    let what = match own {
        0 => format!("the base model has no {slots}"),
        own => format!("it has {width} channels, the base model's {slots} give {own}"),
    };
    format!("{what}: it was made for another base model")
}

/// How many rows an entry of one encoder says are shown: diffusion-pipe's `seq_lens`, or a mask that is 1 up to them.
fn shown_rows(entry: &Entry) -> Option<usize> {
    let told = entry.facts.iter().find(|(key, _)| key == "seq_lens");
    if let Some((_, count)) = told {
        return count.parse().ok();
    }
    let is_mask = |t: &&crate::foreign::cache::Tensor| matches!(t.role, Role::Mask(_));
    let mask = entry.tensors.iter().find(is_mask)?;
    let values = &mask.array.values;
    let count = values.iter().take_while(|v| **v == 1.0).count();
    let is_one = mask.array.vector() == Some(values.len());
    (is_one && values[count..].iter().all(|v| *v == 0.0)).then_some(count)
}

fn matrix(array: &Array) -> Result<(usize, usize), String> {
    array
        .matrix()
        .ok_or_else(|| format!("expected [rows, width], found shape {:?}", array.shape))
}

impl Seen {
    /// How many rows of zeros its sequence ends with.
    pub(super) fn zeros(&self) -> candle_core::Result<usize> {
        let Some(hidden) = &self.hidden else {
            return Ok(0);
        };
        let largest = hidden.abs()?.max(1)?.to_vec1::<f32>()?;
        Ok(largest.iter().rev().take_while(|row| **row == 0.0).count())
    }

    /// The precision that its numbers have, whatever type they are stored in: bf16 in f32 is what numpy makes of it.
    pub(super) fn precision(&self) -> candle_core::Result<Dtype> {
        let mut values = Vec::new();
        if let Some(hidden) = &self.hidden {
            values.extend(hidden.flatten_all()?.to_vec1::<f32>()?);
        }
        if let Some(pooled) = &self.pooled {
            values.extend(pooled.to_vec1::<f32>()?);
        }
        let all = |rounded: fn(f32) -> f32| values.iter().all(|v| rounded(*v) == *v);
        Ok(match () {
            () if all(|v| bf16::from_f32(v).to_f32()) => Dtype::Bf16,
            () if all(|v| f16::from_f32(v).to_f32()) => Dtype::F16,
            () => Dtype::F32,
        })
    }
}
