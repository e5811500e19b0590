//! The whole network: embeddings, joint blocks, and the projection back to latents.
//!
//! Shapes: b batch, n patches, m context tokens, d width.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::architecture::Architecture;
use super::block::{
    Attention, ContextHalf, FeedForward, Heads, JointBlock, Modulation, NextContext, Pass,
};
use super::embed::{PatchEmbed, timestep_sinusoid, unpatchify};
use super::names::Named;
use crate::autograd::{Tape, Value};
use crate::lora::{Bound, LinearShape};
use crate::models::linear::Linear;
use crate::models::{ConditioningTensors, Denoiser, Error};

type Loaded<T> = std::result::Result<T, Error>;

/// Gives a tensor of a shape by its canonical name.
pub(super) type Get<'a> = dyn Fn(&[usize], &str) -> Loaded<Tensor> + 'a;

/// An MMDiT with frozen weights.
pub(super) struct MmDit {
    architecture: Architecture,
    linears: Vec<LinearShape>,
    patch_embed: PatchEmbed,
    /// Two linears with a SiLU between, for the timestep and for the pooled vector.
    time: [Linear; 2],
    pooled: [Linear; 2],
    context: Linear,
    blocks: Vec<Arc<JointBlock>>,
    norm_out: Linear,
    proj_out: Linear,
}

impl MmDit {
    pub(super) fn load(named: &Named) -> Loaded<Self> {
        Self::build(named.architecture.clone(), &|shape, name| {
            named.get(shape, name)
        })
    }

    /// Builds the network from tensors by canonical name.
    pub(super) fn build(architecture: Architecture, get: &Get<'_>) -> Loaded<Self> {
        let linears = architecture.linears();
        let loader = Loader {
            architecture: &architecture,
            linears: &linears,
            get,
        };
        let embed = "time_text_embed";
        let (width, side) = (architecture.width(), architecture.patch_size);
        let cells = architecture.max_patches * architecture.max_patches;
        let patch_embed = PatchEmbed::new(
            &architecture,
            &get(
                &[width, architecture.in_channels, side, side],
                "pos_embed.proj.weight",
            )?,
            get(&[width], "pos_embed.proj.bias")?,
            &get(&[1, cells, width], "pos_embed.pos_embed")?,
        );
        let patch_embed = patch_embed.map_err(|source| Error::Device {
            what: "loading `pos_embed`".to_owned(),
            source,
        })?;
        let pair = |name: &str| {
            Ok::<_, Error>([
                loader.linear(&format!("{embed}.{name}.linear_1"))?,
                loader.linear(&format!("{embed}.{name}.linear_2"))?,
            ])
        };
        let blocks = (0..architecture.depth).map(|i| loader.block(i).map(Arc::new));
        Ok(Self {
            patch_embed,
            time: pair("timestep_embedder")?,
            pooled: pair("text_embedder")?,
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
        for (what, found, expected) in [
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
        ] {
            if found != expected {
                bail!("denoiser input `{what}`: expected shape {expected:?}, found {found:?}");
            }
        }
        if m == 0 || c == 0 {
            bail!("denoiser input `context`: expected at least one token, found none");
        }
        Ok(())
    }

    /// Timesteps and pooled vector to the conditioning vector [b, d], activated, as every modulation takes it.
    fn vector(&self, pass: Pass<'_>, timesteps: &Tensor, pooled: &Tensor) -> Result<Value> {
        let tape = pass.tape;
        let mlp = |[first, second]: &[Linear; 2], x: Tensor| {
            let hidden = first.forward(tape, pass.adapters, &Value::constant(x))?;
            second.forward(tape, pass.adapters, &tape.silu(&hidden)?)
        };
        let time = mlp(&self.time, timestep_sinusoid(timesteps, pooled.dtype())?)?;
        let pooled = mlp(&self.pooled, pooled.clone())?;
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
}

/// Builds modules from tensors.
struct Loader<'a> {
    architecture: &'a Architecture,
    linears: &'a [LinearShape],
    get: &'a Get<'a>,
}

impl Loader<'_> {
    fn linear(&self, name: &str) -> Loaded<Linear> {
        let shape = self.linears.iter().find(|linear| linear.name == name);
        let (outputs, inputs) = shape.map_or((0, 0), |shape| (shape.outputs, shape.inputs));
        let weight = (self.get)(&[outputs, inputs], &format!("{name}.weight"))?;
        let bias = (self.get)(&[outputs], &format!("{name}.bias"))?;
        Ok(Linear::new(name.to_owned(), weight, Some(bias)))
    }

    fn block(&self, i: usize) -> Loaded<JointBlock> {
        let own = format!("transformer_blocks.{i}");
        let linear = |part: &str| self.linear(&format!("{own}.{part}"));
        let norm = |part: &str| {
            let shape = [self.architecture.head_channels];
            let wanted = self.architecture.qk_norm;
            wanted
                .then(|| (self.get)(&shape, &format!("{own}.{part}.weight")))
                .transpose()
        };
        let heads = |part: &str, norm_part: Option<&str>| {
            let norm = norm_part.map(norm).transpose()?.flatten();
            Ok::<_, Error>(Heads {
                linear: linear(part)?,
                norm,
            })
        };
        let attention = |name: &str| {
            Ok::<_, Error>(Attention {
                q: heads(&format!("{name}.to_q"), Some(&format!("{name}.norm_q")))?,
                k: heads(&format!("{name}.to_k"), Some(&format!("{name}.norm_k")))?,
                v: heads(&format!("{name}.to_v"), None)?,
                out: linear(&format!("{name}.to_out.0"))?,
            })
        };
        let feed_forward = |name: &str| {
            Ok::<_, Error>(FeedForward {
                up: linear(&format!("{name}.net.0.proj"))?,
                down: linear(&format!("{name}.net.2"))?,
            })
        };
        let next = || {
            Ok::<_, Error>(NextContext {
                q: heads("attn.add_q_proj", Some("attn.norm_added_q"))?,
                out: linear("attn.to_add_out")?,
                feed_forward: feed_forward("ff_context")?,
            })
        };
        let last = self.architecture.is_last(i);
        let dual = self.architecture.dual_attention.contains(&i);
        Ok(JointBlock {
            modulation: linear("norm1.linear")?,
            attention: attention("attn")?,
            dual: dual.then(|| attention("attn2")).transpose()?,
            feed_forward: feed_forward("ff")?,
            context: ContextHalf {
                modulation: linear("norm1_context.linear")?,
                k: heads("attn.add_k_proj", Some("attn.norm_added_k"))?,
                v: heads("attn.add_v_proj", None)?,
                next: (!last).then(next).transpose()?,
            },
        })
    }
}
