//! The whole network: embeddings, joint blocks, and the projection back to latents.
//!
//! Shapes: b batch, n patches, m context tokens, d width.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::Architecture;
use super::block::{Attention, ContextHalf, JointBlock, NextContext, Then};
use super::embed::{PatchEmbed, unpatchify};
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::linear::{Fused, Linear};
use crate::models::transformer::{
    Embedder, Loaded, Loader, Modulation, Pass, TIME_CHANNELS, check_shapes, picture_dims,
    timestep_sinusoid,
};
use crate::models::{ConditioningTensors, Denoiser, Error, Source};
use crate::nn::Kernels;

/// An MMDiT with frozen weights.
pub(super) struct MmDit {
    architecture: Architecture,
    kernels: Kernels,
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
        let (width, side) = (architecture.width(), architecture.patch_size);
        let loader = Loader {
            source,
            width,
            head_channels: architecture.head_channels,
            bias: true,
        };
        let cells = architecture.max_patches * architecture.max_patches;
        let patch_embed = PatchEmbed::new(
            &architecture,
            &source.tensor(
                &[width, architecture.in_channels, side, side],
                "pos_embed.proj.weight",
            )?,
            source.tensor(&[width], "pos_embed.proj.bias")?,
            source.tensor(&[1, cells, width], "pos_embed.pos_embed")?,
        );
        let patch_embed = patch_embed.map_err(|source| Error::Device {
            what: "loading `pos_embed`".to_owned(),
            source,
        })?;
        let blocks = (0..architecture.depth).map(|i| block(loader, &architecture, i).map(Arc::new));
        let embedder = |name: &str, inputs| {
            loader.embedder(&format!("time_text_embed.{name}_embedder"), inputs)
        };
        Ok(Self {
            kernels: source.kernels(),
            patch_embed,
            time: embedder("timestep", TIME_CHANNELS)?,
            pooled: embedder("text", architecture.pooled_width)?,
            context: loader.linear("context_embedder", (width, architecture.context_width))?,
            blocks: blocks.collect::<Loaded<_>>()?,
            norm_out: loader.wide("norm_out.linear", (2, 1))?,
            proj_out: loader
                .linear("proj_out", (side * side * architecture.out_channels, width))?,
            architecture,
        })
    }

    fn check_inputs(
        &self,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<()> {
        conditioning.refuse_reference()?;
        let own = &self.architecture;
        let (b, c, h, w) = picture_dims(latents)?;
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
        let time = timestep_sinusoid(tape.kernels(), timesteps, pooled)?;
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
        // The last modulation of diffusers is (scale, shift); those of the blocks begin with the shift.
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

    fn dtype(&self) -> DType {
        self.patch_embed.positions().dtype()
    }

    fn device(&self) -> &Device {
        self.patch_embed.positions().device()
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

/// Block `i`.
fn block(loader: Loader<'_>, architecture: &Architecture, i: usize) -> Loaded<JointBlock> {
    let own = |part: &str| format!("transformer_blocks.{i}.{part}");
    let linear = |part: &str, outputs: usize| loader.wide(&own(part), (outputs, 1));
    let attention = |[q, k, v, norm_q, norm_k, out]: [&str; 6]| {
        let norms = architecture.qk_norm.then_some([norm_q, norm_k]);
        Ok::<_, Error>(Attention {
            heads: loader.heads(own, [q, k, v], norms)?,
            out: linear(out, 1)?,
        })
    };
    let within = |attn: &str| {
        let parts = ["to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0"];
        let parts = parts.map(|part| format!("{attn}.{part}"));
        attention(parts.each_ref().map(String::as_str))
    };
    let next = || {
        Ok::<_, Error>(Then::Next(Box::new(NextContext {
            attention: attention([
                "attn.add_q_proj",
                "attn.add_k_proj",
                "attn.add_v_proj",
                "attn.norm_added_q",
                "attn.norm_added_k",
                "attn.to_add_out",
            ])?,
            feed_forward: loader.feed_forward(&own("ff_context"))?,
        })))
    };
    let looked_at = || {
        let norm = (architecture.qk_norm).then(|| loader.head_norm(&own("attn.norm_added_k")));
        Ok::<_, Error>(Then::LookedAt {
            linears: Fused::new([linear("attn.add_k_proj", 1)?, linear("attn.add_v_proj", 1)?])?,
            norm: norm.transpose()?,
        })
    };
    let last = architecture.is_last(i);
    let dual = architecture.dual_attention.contains(&i);
    if last {
        unread_queries(loader, architecture, i)?;
    }
    Ok(JointBlock {
        modulation: linear("norm1.linear", if dual { 9 } else { 6 })?,
        attention: within("attn")?,
        dual: dual.then(|| within("attn2")).transpose()?,
        feed_forward: loader.feed_forward(&own("ff"))?,
        context: ContextHalf {
            modulation: linear("norm1_context.linear", if last { 2 } else { 6 })?,
            then: if last { looked_at()? } else { next()? },
        },
    })
}

/// The last block has its context's queries too, but drops what they find.
fn unread_queries(loader: Loader<'_>, architecture: &Architecture, i: usize) -> Loaded<()> {
    let attn = format!("transformer_blocks.{i}.attn");
    let (width, head) = (architecture.width(), architecture.head_channels);
    let unread =
        |shape: &[usize], name: &str| loader.source.unread(shape, &format!("{attn}.{name}"));
    unread(&[width, width], "add_q_proj.weight")?;
    unread(&[width], "add_q_proj.bias")?;
    match architecture.qk_norm {
        true => unread(&[head], "norm_added_q.weight"),
        false => Ok(()),
    }
}
