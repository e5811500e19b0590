//! The whole network: embeddings, joint blocks, and the projection back to latents.
//!
//! Shapes: b batch, n patches, m context tokens, d width.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::Architecture;
use super::block::{Attention, ContextHalf, JointBlock, NextContext};
use super::embed::{PatchEmbed, unpatchify};
use crate::autograd::{Tape, Value};
use crate::lora::{Bound, LinearShape};
use crate::models::linear::Linear;
use crate::models::transformer::{
    Embedder, Loaded, Loader, Modulation, Pass, check_shapes, timestep_sinusoid,
};
use crate::models::{ConditioningTensors, Denoiser, Error, Source};

/// An MMDiT with frozen weights.
pub(super) struct MmDit {
    architecture: Architecture,
    linears: Vec<LinearShape>,
    patch_embed: PatchEmbed,
    time: Embedder,
    pooled: Embedder,
    context: Linear,
    blocks: Vec<Arc<JointBlock>>,
    norm_out: Linear,
    proj_out: Linear,
}

impl MmDit {
    /// Builds the network from tensors by canonical name.
    pub(super) fn build(architecture: Architecture, source: &dyn Source) -> Loaded<Self> {
        let linears = architecture.linears();
        let loader = Loader {
            linears: &linears,
            source,
        };
        let (width, side) = (architecture.width(), architecture.patch_size);
        let cells = architecture.max_patches * architecture.max_patches;
        let patch_embed = PatchEmbed::new(
            &architecture,
            &source.tensor(
                &[width, architecture.in_channels, side, side],
                "pos_embed.proj.weight",
            )?,
            source.tensor(&[width], "pos_embed.proj.bias")?,
            &source.tensor(&[1, cells, width], "pos_embed.pos_embed")?,
        );
        let patch_embed = patch_embed.map_err(|source| Error::Device {
            what: "loading `pos_embed`".to_owned(),
            source,
        })?;
        let blocks = (0..architecture.depth).map(|i| block(loader, &architecture, i).map(Arc::new));
        Ok(Self {
            patch_embed,
            time: loader.embedder("time_text_embed.timestep_embedder")?,
            pooled: loader.embedder("time_text_embed.text_embedder")?,
            context: loader.linear("context_embedder")?,
            blocks: blocks.collect::<Loaded<_>>()?,
            norm_out: loader.linear("norm_out.linear")?,
            proj_out: loader.linear("proj_out")?,
            linears,
            architecture,
        })
    }

    fn check_inputs(
        &self,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<()> {
        let own = &self.architecture;
        let (b, c, h, w) = latents.tensor().dims4()?;
        self.patch_embed.patches(h, w)?;
        let m = conditioning.context.dims3()?.1;
        check_shapes(&[
            (
                "latents",
                latents.tensor().dims(),
                &[b, own.in_channels, h, w][..],
            ),
            ("timesteps", timesteps.dims(), &[b]),
            (
                "context",
                conditioning.context.dims(),
                &[b, m, own.context_width],
            ),
            ("pooled", conditioning.pooled.dims(), &[b, own.pooled_width]),
        ])?;
        if m == 0 || c == 0 {
            bail!("denoiser input `context`: expected at least one token, found none");
        }
        Ok(())
    }

    /// Timesteps and pooled vector to the conditioning vector [b, d], activated, as every modulation takes it.
    fn vector(&self, pass: Pass<'_>, timesteps: &Tensor, pooled: &Tensor) -> Result<Value> {
        let tape = pass.tape;
        let time = timestep_sinusoid(timesteps, pooled)?;
        let time = self.time.forward(pass, time)?;
        let pooled = self.pooled.forward(pass, pooled.clone())?;
        tape.silu(&tape.add(&time, &pooled)?)
    }
}

impl Denoiser for MmDit {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        self.check_inputs(latents, timesteps, conditioning)?;
        let pass = Pass {
            tape,
            adapters,
            heads: self.architecture.heads,
        };
        let vector = self.vector(pass, timesteps, &conditioning.pooled)?;
        let context = Value::constant(conditioning.context.clone());
        let mut context = self.context.forward(tape, adapters, &context)?;
        let mut x = self.patch_embed.forward(tape, latents)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let (next, next_context) = if adapters.recomputes(i) {
                block.checkpointed(pass, &x, &context, &vector)?
            } else {
                block.forward(pass, &x, &context, &vector)?
            };
            x = next;
            context = next_context.unwrap_or(context);
        }
        let mods = Modulation::new(pass, &self.norm_out, &vector)?;
        let x = mods.norm(pass, &x, 1, 0)?;
        let x = self.proj_out.forward(tape, adapters, &x)?;
        let (_, _, h, w) = latents.tensor().dims4()?;
        let patches = self.patch_embed.patches(h, w)?;
        unpatchify(
            tape,
            &x,
            patches,
            self.architecture.patch_size,
            self.architecture.out_channels,
        )
    }

    fn linears(&self) -> &[LinearShape] {
        &self.linears
    }

    fn dtype(&self) -> DType {
        self.patch_embed.positions().dtype()
    }

    fn device(&self) -> &Device {
        self.patch_embed.positions().device()
    }
}

/// Block `i`.
fn block(loader: Loader<'_>, architecture: &Architecture, i: usize) -> Loaded<JointBlock> {
    let own = format!("transformer_blocks.{i}");
    let linear = |part: &str| loader.linear(&format!("{own}.{part}"));
    let heads = |part: &str, norm: Option<String>| {
        let norm = norm.filter(|_| architecture.qk_norm);
        let norm = norm
            .as_ref()
            .map(|norm| (norm.as_str(), architecture.head_channels));
        loader.heads(&format!("{own}.{part}"), norm)
    };
    let normed = |part: &str, norm: &str| heads(part, Some(format!("{own}.{norm}")));
    let attention = |name: &str| {
        Ok::<_, Error>(Attention {
            q: normed(&format!("{name}.to_q"), &format!("{name}.norm_q"))?,
            k: normed(&format!("{name}.to_k"), &format!("{name}.norm_k"))?,
            v: heads(&format!("{name}.to_v"), None)?,
            out: linear(&format!("{name}.to_out.0"))?,
        })
    };
    let next = || {
        Ok::<_, Error>(NextContext {
            q: normed("attn.add_q_proj", "attn.norm_added_q")?,
            out: linear("attn.to_add_out")?,
            feed_forward: loader.feed_forward(&format!("{own}.ff_context"))?,
        })
    };
    let last = architecture.is_last(i);
    let dual = architecture.dual_attention.contains(&i);
    Ok(JointBlock {
        modulation: linear("norm1.linear")?,
        attention: attention("attn")?,
        dual: dual.then(|| attention("attn2")).transpose()?,
        feed_forward: loader.feed_forward(&format!("{own}.ff"))?,
        context: ContextHalf {
            modulation: linear("norm1_context.linear")?,
            k: normed("attn.add_k_proj", "attn.norm_added_k")?,
            v: heads("attn.add_v_proj", None)?,
            next: (!last).then(next).transpose()?,
        },
    })
}
