//! The whole network: embeddings, double blocks, single blocks, and the projection back to latents.
//!
//! Shapes: b batch, n patches of the picture and, behind them, of its reference, m context tokens, d width.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::Architecture;
use super::block::{DoubleBlock, Half, OF_DOUBLE, OF_SINGLE, SingleBlock, Tokens};
use super::embed::Rotary;
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::flux1::embed::{patches, unpack};
use crate::models::flux1::flux::{check_reference, mask_of, pictures, run_block, with_reference};
use crate::models::linear::Linear;
use crate::models::tables::LastTables;
use crate::models::transformer::{
    Embedder, Loaded, Loader, Modulation, Pass, TIME_CHANNELS, check_shapes, picture_dims,
    timestep_sinusoid,
};
use crate::models::{ConditioningTensors, Denoiser, Source};
use crate::nn::Kernels;

/// A FLUX.2 transformer with frozen weights.
pub(super) struct Flux2 {
    architecture: Architecture,
    kernels: Kernels,
    time: Embedder,
    context: Linear,
    picture: Linear,
    /// The modulations of all double blocks' pictures and contexts, and of all single blocks.
    modulations: [Linear; 3],
    double_blocks: Vec<Arc<DoubleBlock>>,
    single_blocks: Vec<Arc<SingleBlock>>,
    norm_out: Linear,
    proj_out: Linear,
    /// A tensor of the network's type on its device.
    like: Tensor,
    /// The tables of the last call, for pictures and context tokens of these numbers.
    rotary: LastTables<Extents, Rotary>,
}

/// Rows and columns of patches of the picture and of its reference; and tokens of the context.
type Extents = (Vec<(usize, usize)>, usize);

impl Flux2 {
    /// Builds it from tensors by canonical name.
    pub(super) fn build(architecture: Architecture, source: &dyn Source) -> Loaded<Self> {
        let (width, tokens) = (architecture.width(), architecture.token_channels);
        let loader = architecture.loader(source);
        let double = |i| double_block(loader, &architecture, i).map(Arc::new);
        let single = |i| single_block(loader, &architecture, i).map(Arc::new);
        Ok(Self {
            kernels: source.kernels(),
            time: loader.embedder("time_guidance_embed.timestep_embedder", TIME_CHANNELS)?,
            context: loader.linear("context_embedder", (width, architecture.context_width))?,
            picture: loader.linear("x_embedder", (width, tokens))?,
            modulations: [
                loader.wide("double_stream_modulation_img.linear", (OF_DOUBLE, 1))?,
                loader.wide("double_stream_modulation_txt.linear", (OF_DOUBLE, 1))?,
                loader.wide("single_stream_modulation.linear", (OF_SINGLE, 1))?,
            ],
            double_blocks: (0..architecture.num_double)
                .map(double)
                .collect::<Loaded<_>>()?,
            single_blocks: (0..architecture.num_single)
                .map(single)
                .collect::<Loaded<_>>()?,
            norm_out: loader.wide("norm_out.linear", (2, 1))?,
            proj_out: loader.linear("proj_out", (tokens, width))?,
            like: source.tensor(
                &[architecture.head_channels],
                "transformer_blocks.0.attn.norm_q.weight",
            )?,
            architecture,
            rotary: LastTables::default(),
        })
    }

    /// The rotary tables, which a run of pictures of one size makes once.
    fn rotary(&self, extents: Extents) -> Result<Rotary> {
        let (own, device) = (&self.architecture, self.like.device());
        let make = |(pictures, context): &Extents| Rotary::new(own, pictures, *context, device);
        self.rotary.of(&self.kernels, extents, make)
    }

    fn check_inputs(
        &self,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<()> {
        let own = &self.architecture;
        let (b, _, h, w) = picture_dims(latents)?;
        let context = &conditioning.context;
        let m = context.dims3()?.1;
        check_reference(conditioning, b, own.latent_channels())?;
        check_shapes(&[
            (
                "latents",
                latents.tensor().dims(),
                &[b, own.latent_channels(), h, w][..],
            ),
            ("timesteps", timesteps.dims(), &[b]),
            ("context", context.dims(), &[b, m, own.context_width]),
            ("pooled", conditioning.pooled.dims(), &[b, 0]),
        ])?;
        conditioning.refuse_empty_context()?;
        conditioning.refuse_guidance()
    }

    /// The modulations [b, k, d] of all double blocks' pictures and contexts, and of all single blocks, of the conditioning vector
    /// [b, d].
    fn modulations(&self, pass: Pass<'_>, vector: &Value) -> Result<[Value; 3]> {
        let (b, d) = vector.tensor().dims2()?;
        let of = |linear: &Linear, parts: usize| {
            let all = linear.forward(pass.tape, pass.adapters, vector)?;
            pass.tape.reshape(&all, &[b, parts, d])
        };
        let [picture, context, single] = &self.modulations;
        Ok([
            of(picture, OF_DOUBLE)?,
            of(context, OF_DOUBLE)?,
            of(single, OF_SINGLE)?,
        ])
    }

    /// All blocks: picture [b, n, d] and context [b, m, d] to both, [b, n + m, d].
    fn blocks(
        &self,
        pass: Pass<'_>,
        tokens: Tokens,
        mut x: Value,
        mut context: Value,
        modulations: &[Value; 3],
    ) -> Result<Value> {
        let tokens = Arc::new(tokens);
        let [of_picture, of_context, of_single] = modulations;
        for (i, block) in self.double_blocks.iter().enumerate() {
            let (block, tokens) = (Arc::clone(block), Arc::clone(&tokens));
            let run = move |pass: Pass<'_>, inputs: &[Value]| match inputs {
                [x, context, of_picture, of_context] => {
                    let (streams, mods) = ([x, context], [of_picture, of_context]);
                    Ok(block.forward(pass, &tokens, streams, mods)?.into())
                }
                _ => bail!("a double block has four inputs, found {}", inputs.len()),
            };
            [x, context] = run_block(pass, i, &[&x, &context, of_picture, of_context], run)?;
        }
        // diffusers has the context first. Attention does not care, as each token keeps its position, and with the context last its
        // pads are the last keys, which a count of keys leaves out; the picture is then a view of the front.
        let mut whole = pass.tape.cat(&[&x, &context], 1)?;
        for (i, block) in self.single_blocks.iter().enumerate() {
            let (block, tokens) = (Arc::clone(block), Arc::clone(&tokens));
            let run = move |pass: Pass<'_>, inputs: &[Value]| match inputs {
                [x, mods] => Ok(vec![block.forward(pass, &tokens, x, mods)?]),
                _ => bail!("a single block has two inputs, found {}", inputs.len()),
            };
            let number = self.double_blocks.len() + i;
            [whole] = run_block(pass, number, &[&whole, of_single], run)?;
        }
        Ok(whole)
    }
}

impl Denoiser for Flux2 {
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
        let like = latents.tensor();
        let (_, c, h, w) = like.dims4()?;
        let pictures = pictures(like, conditioning)?;
        let num_patches = pictures.iter().map(|(rows, columns)| rows * columns).sum();
        let num_context = conditioning.context.dim(1)?;
        let tokens = Tokens {
            rotary: self.rotary((pictures, num_context))?,
            num_patches,
            num_context,
            mask: mask_of(conditioning, num_patches)?,
        };
        let vector = self
            .time
            .forward(pass, timestep_sinusoid(tape.kernels(), timesteps, like)?)?;
        // Activated, as every modulation takes it.
        let vector = tape.silu(&vector)?;
        let modulations = self.modulations(pass, &vector)?;
        let x = with_reference(tape, latents, conditioning)?;
        let x = self.picture.forward(tape, adapters, &x)?;
        let context = Value::constant(conditioning.context.clone());
        let context = self.context.forward(tape, adapters, &context)?;
        let x = self.blocks(pass, tokens, x, context, &modulations)?;
        // The reference's tokens are given, not predicted.
        let (rows, columns) = patches(h, w)?;
        let x = tape.narrow(&x, 1, 0, rows * columns)?;
        // The last modulation of diffusers is (scale, shift); those of the blocks begin with the shift.
        let x = Modulation::new(pass, &self.norm_out, &vector)?.norm(pass, &x, 1, 0)?;
        let x = self.proj_out.forward(tape, adapters, &x)?;
        unpack(tape, &x, (rows, columns), c)
    }

    fn dtype(&self) -> DType {
        self.like.dtype()
    }

    fn device(&self) -> &Device {
        self.like.device()
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

/// Double block `i`.
fn double_block(loader: Loader<'_>, own: &Architecture, i: usize) -> Loaded<DoubleBlock> {
    let name = |part: &str| format!("transformer_blocks.{i}.{part}");
    let (width, inner) = (own.width(), own.inner);
    // Queries, keys, values, both norms, the output and the feed-forward.
    let half = |[q, k, v, norm_q, norm_k, out, ff]: [&str; 7]| {
        let attn = |part: &str| name(&format!("attn.{part}"));
        Loaded::Ok(Half {
            heads: loader.heads(attn, [q, k, v], Some([norm_q, norm_k]))?,
            out: loader.wide(&attn(out), (1, 1))?,
            up: loader.linear(&name(&format!("{ff}.linear_in")), (2 * inner, width))?,
            down: loader.linear(&name(&format!("{ff}.linear_out")), (width, inner))?,
        })
    };
    Ok(DoubleBlock {
        picture: half(["to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0", "ff"])?,
        context: half([
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "norm_added_q",
            "norm_added_k",
            "to_add_out",
            "ff_context",
        ])?,
    })
}

/// Single block `i`.
fn single_block(loader: Loader<'_>, own: &Architecture, i: usize) -> Loaded<SingleBlock> {
    let name = |part: &str| format!("single_transformer_blocks.{i}.attn.{part}");
    let (width, inner) = (own.width(), own.inner);
    let norm = |part: &str| {
        let weight = format!("{}.weight", name(part));
        loader.source.tensor(&[own.head_channels], &weight)
    };
    Ok(SingleBlock {
        into: loader.linear(&name("to_qkv_mlp_proj"), (3 * width + 2 * inner, width))?,
        norm_q: norm("norm_q")?,
        norm_k: norm("norm_k")?,
        out: loader.linear(&name("to_out"), (width, width + inner))?,
    })
}
