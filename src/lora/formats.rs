//! LoRA files as other programs name them: reading them into our naming, and writing them from it, without loss.
//!
//! - [`naming`]: the two names of each module, as data that a family gives
//! - `keys`: what programs put in front of a module's name and behind it
//! - `experts`: files with the adapters of two networks
//! - `fuse`: adapters on parts of a fused module, as one on the whole, and back
//! - [`read`], [`write`]: a whole file
//!
//! A file is a list of [`Module`]s here, and not an [`AdapterSet`](super::AdapterSet): it can be converted without the
//! network that it was made for.

mod experts;
mod fuse;
mod keys;
pub mod naming;
mod read;
mod write;

use std::collections::BTreeMap;

pub use experts::{Expert, OfExperts};
pub use naming::{AiToolkitNaming, FusedPart, Naming, Row, Spelling};
pub use read::{ConfigBeside, Imported, ReadOptions, check_header, header_of, read};
pub use write::{Target, WriteOptions, peft_config, write};

use super::file::{self, Matrix};
use super::{AdapterSet, Error};

/// An adapter as a file has it: the update is alpha / rank * B A.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// The module's name in diffusers, such as `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// [rank, inputs], of a convolution [rank, inputs, height, width].
    pub a: Matrix,
    /// [outputs, rank], of a convolution [outputs, rank, 1, 1].
    pub b: Matrix,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
}

impl Module {
    /// The rank: rows of A, columns of B.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// Numbers of A and B.
    pub fn parameters(&self) -> usize {
        self.a.values.len() + self.b.values.len()
    }

    /// The factor of the update, alpha / rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }

    /// Brings alpha / rank into the numbers, after which it is 1.
    ///
    /// # Errors
    /// If a number becomes too large.
    fn fold(&mut self) -> Result<(), String> {
        self.set_alpha(self.rank() as f64)
    }

    /// Takes another alpha, above 0, and scales the numbers so that the update stays as it is.
    ///
    /// # Errors
    /// If a number becomes too large.
    pub fn set_alpha(&mut self, alpha: f64) -> Result<(), String> {
        let (on_a, on_b) = file::fold(self.alpha / alpha);
        for (matrix, factor) in [(&mut self.a, on_a), (&mut self.b, on_b)] {
            for value in &mut matrix.values {
                *value = (f64::from(*value) * factor) as f32;
                if !value.is_finite() {
                    return Err(format!("`{}` times {factor} is not finite", self.name));
                }
            }
        }
        self.alpha = alpha;
        Ok(())
    }

    /// Whether its outputs are a scale and a shift for its inputs, and nothing more.
    fn has_two_halves(&self) -> bool {
        self.b.rows() == 2 * self.a.row_len()
    }

    /// Exchanges the halves of the outputs.
    fn swap_halves(&mut self) {
        let half = self.b.values.len() / 2;
        self.b.values.rotate_left(half);
    }
}

/// Whose naming a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// diffusers, whose module names are ours too.
    Diffusers,
    /// PEFT without diffusers.
    Peft,
    /// kohya's scripts; ComfyUI reads it.
    Kohya,
    /// ai-toolkit, which uses diffusers' or kohya's names by family and says so in the metadata.
    AiToolkit,
    /// ComfyUI's own, `diffusion_model.` in front.
    Comfy,
    /// OneTrainer's own, `lora_transformer_` in front.
    OneTrainer,
    /// LyCORIS as SimpleTuner uses it, `lycoris_` in front.
    Lycoris,
    /// Module names and nothing before them.
    Bare,
}

impl Format {
    /// The program's name, for messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Peft => "peft",
            Self::Kohya => "kohya",
            Self::AiToolkit => "ai-toolkit",
            Self::Comfy => "comfyui",
            Self::OneTrainer => "onetrainer",
            Self::Lycoris => "lycoris",
            Self::Bare => "bare module names",
        }
    }
}

/// The modules as adapters, for use on a network.
///
/// # Errors
/// If a module is there twice.
pub fn adapters(modules: Vec<Module>) -> Result<AdapterSet, Error> {
    let mut shapes = Vec::new();
    let mut values = BTreeMap::new();
    for module in modules {
        let (rank, alpha) = (module.rank(), module.alpha);
        let shape = file::linear_shape(module.name.clone(), &module.a, &module.b);
        shapes.push((shape, rank, alpha));
        values.insert(module.name, [module.a.values, module.b.values]);
    }
    let mut set = AdapterSet::zeroed(shapes)?;
    set.set_values(values.into_values().flatten().flatten().collect())?;
    Ok(set)
}

#[cfg(test)]
mod tests;
