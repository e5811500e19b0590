//! The whole network: patches, what the timestep and the caption are made of, the blocks, and back to latents.
//!
//! Shapes: b batch, c channels, f frames, h w latent height and width, i j patches down and across, n = f * i * j patches,
//! m context tokens, d width.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::{Architecture, PATCH};
use super::block::{self, Block, PARTS};
use super::positions::Rotary;
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::linear::Linear;
use crate::models::tables::LastTables;
use crate::models::transformer::{Embedder, Loaded, Loader, Pass, check_shapes};
use crate::models::{ConditioningTensors, Denoiser, Error, Source};
use crate::nn::{Frozen, Kernels, sinusoids};
use crate::shown;

/// A Wan transformer with frozen weights.
pub(super) struct Wan {
    architecture: Architecture,
    kernels: Kernels,
    /// A convolution whose stride is its kernel is a linear on flattened patches: [d, c * 2 * 2].
    patches: Frozen,
    /// [d]
    patches_bias: Tensor,
    time: Embedder,
    /// To the vectors of every block.
    time_vectors: Linear,
    text: [Linear; 2],
    blocks: Vec<Arc<Block>>,
    /// Shift and scale of the last norm: [1, 2 d].
    table: Tensor,
    proj_out: Linear,
    /// The tables of the last call, for patches of this many frames, rows and columns.
    rotary: LastTables<[usize; 3], Rotary>,
}

impl Wan {
    /// Builds the network from tensors by canonical name.
    pub(super) fn build(architecture: Architecture, source: &dyn Source) -> Loaded<Self> {
        let own = &architecture;
        let width = own.width();
        let loader = Loader {
            source,
            width,
            head_channels: own.head_channels,
            bias: true,
        };
        let patch = PATCH * PATCH;
        let kernel = source.tensor(
            &[width, own.channels, 1, PATCH, PATCH],
            "patch_embedding.weight",
        )?;
        let flat = kernel.flatten_from(1).map_err(|source| Error::Device {
            what: "reading `patch_embedding.weight`".to_owned(),
            source,
        })?;
        let within = |part: &str| format!("condition_embedder.{part}");
        Ok(Self {
            kernels: source.kernels(),
            patches: flat.into(),
            patches_bias: source.tensor(&[width], "patch_embedding.bias")?,
            time: loader.embedder(&within("time_embedder"), own.time_channels)?,
            time_vectors: loader.wide(&within("time_proj"), (PARTS, 1))?,
            text: [
                loader.linear(
                    &within("text_embedder.linear_1"),
                    (width, own.context_width),
                )?,
                loader.wide(&within("text_embedder.linear_2"), (1, 1))?,
            ],
            blocks: (0..own.num_blocks)
                .map(|i| Block::load(own, loader, i).map(Arc::new))
                .collect::<Loaded<_>>()?,
            table: block::table(source, 2, width, "scale_shift_table")?,
            proj_out: loader.linear("proj_out", (own.channels * patch, width))?,
            rotary: LastTables::default(),
            architecture,
        })
    }

    /// Frames, rows and columns of patches, where the inputs fit the network.
    fn check_inputs(
        &self,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<[usize; 3]> {
        let own = &self.architecture;
        let &[b, c, f, h, w] = latents.tensor().dims() else {
            bail!(
                "denoiser input `latents`: expected videos of shape [batch, channels, frames, height, width], found {:?}",
                latents.tensor().dims()
            );
        };
        conditioning.refuse_reference()?;
        let m = conditioning.context.dims3()?.1;
        check_shapes(&[
            ("latents", &[b, c, f, h, w], &[b, own.channels, f, h, w][..]),
            ("timesteps", timesteps.dims(), &[b]),
            (
                "context",
                conditioning.context.dims(),
                &[b, m, own.context_width],
            ),
            ("pooled", conditioning.pooled.dims(), &[b, 0]),
        ])?;
        conditioning.refuse_empty_context()?;
        conditioning.refuse_guidance()?;
        if conditioning.token_counts.is_some() {
            bail!(
                "denoiser input `token_counts`: this model sees all rows of its context, found a mask"
            );
        }
        if b == 0
            || f == 0
            || h == 0
            || w == 0
            || !h.is_multiple_of(PATCH)
            || !w.is_multiple_of(PATCH)
        {
            bail!(
                "latents of {} of {h} x {w}: expected a height and a width that are multiples of {PATCH}",
                shown::counted(f, "frame")
            );
        }
        let extents = [f, h / PATCH, w / PATCH];
        if extents.iter().any(|&count| count > own.max_positions) {
            bail!(
                "latents of {f} frames of {h} x {w}: this model has positions for {} frames, rows and columns of patches",
                own.max_positions
            );
        }
        Ok(extents)
    }

    /// The rotary tables, which a run of videos of one size makes once.
    fn rotary(&self, extents: [usize; 3]) -> Result<Rotary> {
        let make = |&of: &[usize; 3]| Rotary::new(self.architecture.axes(), of, self.device());
        self.rotary.of(&self.kernels, extents, make)
    }

    /// [b, c, f, h, w] to [b, n, d].
    fn embed(&self, tape: &Tape, latents: &Value, [f, i, j]: [usize; 3]) -> Result<Value> {
        let (b, c) = (latents.tensor().dim(0)?, self.architecture.channels);
        let x_kipjp = tape.reshape(latents, &[b * c * f, i, PATCH, j, PATCH])?;
        let x_kijpp = tape.permute(&x_kipjp, &[0, 1, 3, 2, 4])?;
        let x_bcfk = tape.reshape(&x_kijpp, &[b, c, f * i * j, PATCH * PATCH])?;
        let x_bnck = tape.permute(&x_bcfk, &[0, 2, 1, 3])?;
        let x_bnk = tape.reshape(&x_bnck, &[b, f * i * j, c * PATCH * PATCH])?;
        tape.linear(&x_bnk, &self.patches, Some(&self.patches_bias), None)
    }

    /// [b, n, 2 * 2 * c] to [b, c, f, h, w].
    fn unpatch(&self, tape: &Tape, x: &Value, [f, i, j]: [usize; 3]) -> Result<Value> {
        let (b, c) = (x.tensor().dim(0)?, self.architecture.channels);
        let x_bnkc = tape.reshape(x, &[b, f * i * j, PATCH * PATCH, c])?;
        let x_bcnk = tape.permute(&x_bnkc, &[0, 3, 1, 2])?;
        let x_kijpp = tape.reshape(&x_bcnk, &[b * c * f, i, j, PATCH, PATCH])?;
        let x_kipjp = tape.permute(&x_kijpp, &[0, 1, 3, 2, 4])?;
        tape.reshape(&x_kipjp, &[b, c, f, i * PATCH, j * PATCH])
    }

    /// The context [b, m, d] of the caption's rows.
    fn context(&self, pass: Pass<'_>, rows: &Tensor) -> Result<Value> {
        let [first, second] = &self.text;
        let hidden = first.gelu(pass.tape, pass.adapters, &Value::constant(rows.clone()))?;
        second.forward(pass.tape, pass.adapters, &hidden)
    }

    fn blocks(
        &self,
        pass: Pass<'_>,
        rotary: Rotary,
        mut x: Value,
        context: &Value,
        vectors: &Value,
    ) -> Result<Value> {
        let rotary = Arc::new(rotary);
        for (i, block) in self.blocks.iter().enumerate() {
            if !pass.adapters.recomputes(i) {
                x = block.forward(pass, &rotary, &x, context, vectors)?;
                continue;
            }
            let (block, rotary) = (Arc::clone(block), Arc::clone(&rotary));
            let run = move |pass: Pass<'_>, inputs: &[Value]| match inputs {
                [x, context, vectors] => {
                    Ok(vec![block.forward(pass, &rotary, x, context, vectors)?])
                }
                _ => bail!("a block has three inputs, found {}", inputs.len()),
            };
            let mut outputs = pass.checkpoint(&[&x, context, vectors], run)?;
            match (outputs.pop(), outputs.is_empty()) {
                (Some(next), true) => x = next,
                _ => bail!("a block did not give one result"),
            }
        }
        Ok(x)
    }
}

impl Denoiser for Wan {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        let extents = self.check_inputs(latents, timesteps, conditioning)?;
        let own = &self.architecture;
        let pass = Pass {
            tape,
            adapters,
            heads: own.heads,
        };
        let told = sinusoids(
            tape.kernels(),
            timesteps,
            own.time_channels,
            &self.patches_bias,
        )?;
        let time = self.time.forward(pass, told)?;
        let vectors = self
            .time_vectors
            .forward(tape, adapters, &tape.silu(&time)?)?;
        let context = self.context(pass, &conditioning.context)?;
        let x = self.embed(tape, latents, extents)?;
        let x = self.blocks(pass, self.rotary(extents)?, x, &context, &vectors)?;
        // The timestep itself, beside the vectors that are made of it.
        let twice = tape.cat(&[&time, &time], 1)?;
        let x = block::parts(pass, &twice, &self.table, 2)?.norm(pass, &x, 0, 1)?;
        let x = self.proj_out.forward(tape, adapters, &x)?;
        self.unpatch(tape, &x, extents)
    }

    fn dtype(&self) -> DType {
        self.patches_bias.dtype()
    }

    fn device(&self) -> &Device {
        self.patches_bias.device()
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}
