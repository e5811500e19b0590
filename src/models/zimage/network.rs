//! The whole network: embeddings, blocks over the picture and over the caption alone, blocks over both, and the projection back to
//! latents (`ZImageTransformer2DModel` of diffusers).
//!
//! Shapes: b batch, c channels, n the picture's tokens and m the caption's, with those that fill them up; d width.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::Architecture;
use super::block::{Block, Tokens};
use super::embed::{Extents, Positions, pack, patches, unpack};
use super::names::BLOCKS;
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::linear::Linear;
use crate::models::tables::LastTables;
use crate::models::transformer::{
    EPS, Loaded, Pass, TIME_CHANNELS, check_shapes, picture_dims, timestep_sinusoid,
};
use crate::models::{ConditioningTensors, Denoiser, Source};
use crate::nn::pointwise::mul;
use crate::nn::{AttentionMask, Kernels};

/// Channels between the two linears of the time's embedding.
const TIME_INNER: usize = 1024;

/// Timesteps of pure noise; the network counts from there: 0 is noise and 1 the picture.
const NOISE: f64 = 1000.0;

/// A Z-Image transformer with frozen weights.
pub(super) struct ZImage {
    own: Architecture,
    kernels: Kernels,
    time: [Linear; 2],
    picture: Linear,
    /// [context_width]
    context_norm: Tensor,
    context: Linear,
    /// What fills up pictures and captions, [1, d].
    fills: [Tensor; 2],
    /// Over the picture, over the caption, over both.
    blocks: [Vec<Arc<Block>>; 3],
    scale_out: Linear,
    proj_out: Linear,
    /// The tables of the last call.
    tables: LastTables<Extents, Positions>,
}

impl ZImage {
    /// Builds the network from tensors by canonical name.
    pub(super) fn build(own: &Architecture, source: &dyn Source) -> Loaded<Self> {
        let (d, v) = (own.width, own.vector());
        let linear =
            |name: &str, outputs, inputs| Linear::load(source, name, (outputs, inputs), true);
        let counts = [own.refiners, own.refiners, own.layers];
        let list = |at: usize| {
            let (name, modulated) = BLOCKS[at];
            let block = |i| Block::load(own, source, &format!("{name}.{i}"), modulated);
            let blocks = (0..counts[at]).map(|i| block(i).map(Arc::new));
            blocks.collect::<Loaded<Vec<_>>>()
        };
        Ok(Self {
            kernels: source.kernels(),
            time: [
                linear("t_embedder.mlp.0", TIME_INNER, TIME_CHANNELS)?,
                linear("t_embedder.mlp.2", v, TIME_INNER)?,
            ],
            picture: linear("all_x_embedder.2-1", d, own.token_channels())?,
            context_norm: source.tensor(&[own.context_width], "cap_embedder.0.weight")?,
            context: linear("cap_embedder.1", d, own.context_width)?,
            fills: [
                source.tensor(&[1, d], "x_pad_token")?,
                source.tensor(&[1, d], "cap_pad_token")?,
            ],
            blocks: [list(0)?, list(1)?, list(2)?],
            scale_out: linear("all_final_layer.2-1.adaLN_modulation.1", d, v)?,
            proj_out: linear("all_final_layer.2-1.linear", own.token_channels(), d)?,
            own: own.clone(),
            tables: LastTables::default(),
        })
    }

    fn extents(&self, latents: &Value, conditioning: &ConditioningTensors) -> Result<Extents> {
        let (_, _, h, w) = picture_dims(latents)?;
        let (b, m, _) = conditioning.context.dims3()?;
        let captions = match &conditioning.token_counts {
            None => vec![m; b],
            Some(counts) if counts.len() == b && counts.iter().all(|n| (1..=m).contains(n)) => {
                counts.clone()
            }
            Some(counts) => bail!(
                "denoiser input `token_counts`: expected {b} numbers of 1 to {m}, found {counts:?}"
            ),
        };
        Ok(Extents {
            patches: patches(h, w)?,
            captions,
        })
    }

    fn check_inputs(
        &self,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<()> {
        conditioning.refuse_reference()?;
        let (b, _, h, w) = picture_dims(latents)?;
        let m = conditioning.context.dims3()?.1;
        check_shapes(&[
            (
                "latents",
                latents.tensor().dims(),
                &[b, self.own.channels, h, w][..],
            ),
            ("timesteps", timesteps.dims(), &[b]),
            (
                "context",
                conditioning.context.dims(),
                &[b, m, self.own.context_width],
            ),
            ("pooled", conditioning.pooled.dims(), &[b, 0]),
        ])?;
        conditioning.refuse_empty_context()?;
        conditioning.refuse_guidance()
    }

    /// The rotary tables, which a run of pictures of one size with one caption makes once.
    fn tables(&self, extents: &Extents) -> Result<Positions> {
        let make = |extents: &Extents| Positions::new(&self.own, extents, self.device());
        self.tables.of(&self.kernels, extents.clone(), make)
    }

    /// Timesteps [b] to the vector [b, v] that modulates.
    fn vector(&self, pass: Pass<'_>, timesteps: &Tensor, like: &Tensor) -> Result<Value> {
        let (tape, adapters) = (pass.tape, pass.adapters);
        // In this order, for diffusers rounds so.
        let time = timesteps.affine(-1.0, NOISE)?.affine(1.0 / NOISE, 0.0)?;
        let sinusoid = timestep_sinusoid(tape.kernels(), &(time * self.own.time_unit)?, like)?;
        let [first, second] = &self.time;
        let hidden = first.forward(tape, adapters, &Value::constant(sinusoid))?;
        second.forward(tape, adapters, &tape.silu(&hidden)?)
    }

    /// The picture's tokens [b, n, d].
    fn picture(&self, pass: Pass<'_>, latents: &Value, extents: &Extents) -> Result<Value> {
        let x = pack(pass.tape, latents)?;
        let x = self.picture.forward(pass.tape, pass.adapters, &x)?;
        let (b, patches, d) = x.tensor().dims3()?;
        let missing = extents.picture() - patches;
        if missing == 0 {
            return Ok(x);
        }
        let fill = pass
            .tape
            .kernels()
            .contiguous(&self.fills[0].broadcast_as((b, missing, d))?)?;
        pass.tape.cat(&[&x, &Value::constant(fill)], 1)
    }

    /// The captions' tokens [b, m, d].
    fn caption(&self, pass: Pass<'_>, context: &Tensor, extents: &Extents) -> Result<Value> {
        let (tape, longest) = (pass.tape, extents.caption());
        let (b, rows, width) = context.dims3()?;
        // Rows that are not the caption's own are replaced below.
        let context = match longest.checked_sub(rows) {
            None => tape.kernels().contiguous(&context.narrow(1, 0, longest)?)?,
            Some(0) => context.clone(),
            Some(missing) => {
                let zeros = Tensor::zeros((b, missing, width), context.dtype(), context.device())?;
                Tensor::cat(&[context, &zeros], 1)?
            }
        };
        let context = Value::constant(context);
        let normed = tape.rms_norm(&context, Some(&self.context_norm), self.own.eps)?;
        let x = self.context.forward(tape, pass.adapters, &normed)?;
        if extents.captions.iter().all(|&own| own == longest) {
            return Ok(x);
        }
        let (kernels, fill) = (tape.kernels(), &self.fills[1]);
        let own = extents
            .captions
            .iter()
            .flat_map(|&own| (0..longest).map(move |at| if at < own { 1f32 } else { 0.0 }));
        let own = kernels.constants(own.collect(), fill.device())?;
        let own = own.to_dtype(fill.dtype())?.reshape((b, longest, 1))?;
        let fill = fill.broadcast_as(x.dims())?;
        let fill = mul(
            kernels,
            &kernels.contiguous(&fill)?,
            &own.affine(-1.0, 1.0)?,
        )?;
        tape.add(
            &tape.mul(&x, &Value::constant(own))?,
            &Value::constant(fill),
        )
    }

    /// List `at` of the blocks, on `x` [b, tokens, d].
    fn blocks(
        &self,
        pass: Pass<'_>,
        at: usize,
        tokens: Tokens,
        mut x: Value,
        vector: &Value,
    ) -> Result<Value> {
        let tokens = Arc::new(tokens);
        let before: usize = self.blocks[..at].iter().map(Vec::len).sum();
        for (i, block) in self.blocks[at].iter().enumerate() {
            if !pass.adapters.recomputes(before + i) {
                x = block.forward(pass, &tokens, &x, vector)?;
                continue;
            }
            let (block, tokens) = (Arc::clone(block), Arc::clone(&tokens));
            let run = move |pass: Pass<'_>, inputs: &[Value]| match inputs {
                [x, vector] => Ok(vec![block.forward(pass, &tokens, x, vector)?]),
                _ => bail!("a block has two inputs, found {}", inputs.len()),
            };
            x = match &*pass.checkpoint(&[&x, vector], run)? {
                [x] => x.clone(),
                other => bail!("a block gave {} results", other.len()),
            };
        }
        Ok(x)
    }

    /// Latents and context through all blocks: the picture's tokens [b, patches, d].
    fn trunk(
        &self,
        pass: Pass<'_>,
        latents: &Value,
        context: &Tensor,
        vector: &Value,
        extents: &Extents,
    ) -> Result<Value> {
        let tables = self.tables(extents)?;
        let (n, m) = (extents.picture(), extents.caption());
        // Behind a caption and what fills it up there are rows in a batch with a longer one, which nothing sees.
        let mask = |before: usize| match extents.filled().all(|filled| filled == m) {
            true => AttentionMask::None,
            false => AttentionMask::KeyCounts(extents.filled().map(|f| before + f).collect()),
        };
        let tokens = |rotary, mask| Tokens { rotary, mask };
        let x = self.picture(pass, latents, extents)?;
        let all = AttentionMask::None;
        let x = self.blocks(pass, 0, tokens(tables.picture, all), x, vector)?;
        let caption = self.caption(pass, context, extents)?;
        let of_caption = tokens(tables.caption, mask(0));
        let caption = self.blocks(pass, 1, of_caption, caption, vector)?;
        let x = pass.tape.cat(&[&x, &caption], 1)?;
        drop(caption);
        let x = self.blocks(pass, 2, tokens(tables.both, mask(n)), x, vector)?;
        let (rows, columns) = extents.patches;
        pass.tape.narrow(&x, 1, 0, rows * columns)
    }
}

impl Denoiser for ZImage {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        self.check_inputs(latents, timesteps, conditioning)?;
        let extents = self.extents(latents, conditioning)?;
        let pass = Pass {
            tape,
            adapters,
            heads: self.own.heads,
        };
        let vector = self.vector(pass, timesteps, latents.tensor())?;
        let x = self.trunk(pass, latents, &conditioning.context, &vector, &extents)?;
        let scale = self
            .scale_out
            .forward(tape, adapters, &tape.silu(&vector)?)?;
        let shift = Value::constant(scale.tensor().zeros_like()?);
        let x = tape.modulate(&x, &scale, &shift, EPS)?;
        let x = self.proj_out.forward(tape, adapters, &x)?;
        // What it predicts goes from noise to picture, the other way than a flow's velocity.
        let x = tape.scale(&x, -1.0)?;
        unpack(tape, &x, extents.patches, self.own.channels)
    }

    fn dtype(&self) -> DType {
        self.context_norm.dtype()
    }

    fn device(&self) -> &Device {
        self.context_norm.device()
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}
