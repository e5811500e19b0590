//! The whole network: embeddings, double blocks, single blocks, and the projection back to latents.
//!
//! Shapes: b batch, n patches, r patches of a reference, m context tokens, d width.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::architecture::Architecture;
use super::block::{DoubleBlock, Half, Modulator, SingleBlock, Tokens};
use super::embed::{Rotary, pack, patches, unpack};
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::models::linear::Linear;
use crate::models::tables::LastTables;
use crate::models::transformer::{
    Embedder, Loaded, Loader, MLP_RATIO, Pass, TIME_CHANNELS, check_shapes, picture_dims,
    timestep_sinusoid,
};
use crate::models::{ConditioningTensors, Denoiser, Error, Source};
use crate::nn::{AttentionMask, Kernels};

/// The guidance scale is embedded as a timestep is: in thousandths.
const GUIDANCE_UNIT: f64 = 1000.0;

/// A FLUX.1 transformer with frozen weights, or one of its kin.
pub(in crate::models) struct Flux {
    architecture: Architecture,
    kernels: Kernels,
    conditioner: Box<dyn Conditioner>,
    context: Linear,
    picture: Linear,
    double_blocks: Vec<Arc<DoubleBlock>>,
    single_blocks: Vec<Arc<SingleBlock>>,
    norm_out: Modulator,
    proj_out: Linear,
    /// A tensor of the network's type on its device.
    like: Tensor,
    /// The tables of the last call, for pictures and context tokens of these numbers.
    rotary: LastTables<Extents, Rotary>,
}

/// Rows and columns of patches of the picture, and of its reference where there is one; and tokens of the context.
type Extents = (Vec<(usize, usize)>, usize);

/// What is done to timesteps and pooled vectors before the blocks: FLUX.1's embedders, and what its kin has in their place.
pub(in crate::models) trait Conditioner: Send + Sync {
    /// What the modulators take: [b, d], or vectors for the whole network [b, k, d]. `like` has the network's type and device.
    fn vector(
        &self,
        pass: Pass<'_>,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
        like: &Tensor,
    ) -> Result<Value>;
}

/// How a module is modulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum Modulated {
    /// The picture in this double block.
    Picture(usize),
    /// The context in this double block.
    Context(usize),
    /// This single block.
    Single(usize),
    /// The last norm.
    Last,
}

/// Makes the modulators of a network.
pub(in crate::models) type Modulators<'a> = dyn Fn(Modulated) -> Loaded<Modulator> + 'a;

/// FLUX.1's embedders.
struct Embedders {
    time: Embedder,
    guidance: Option<Embedder>,
    pooled: Embedder,
}

impl Conditioner for Embedders {
    /// Timesteps, guidance and pooled vector to the conditioning vector [b, d], activated, as every modulation takes
    /// it.
    fn vector(
        &self,
        pass: Pass<'_>,
        timesteps: &Tensor,
        conditioning: &ConditioningTensors,
        like: &Tensor,
    ) -> Result<Value> {
        let (tape, pooled) = (pass.tape, &conditioning.pooled);
        let told = |numbers: &Tensor| timestep_sinusoid(tape.kernels(), numbers, like);
        let mut vector = self.time.forward(pass, told(timesteps)?)?;
        if let (Some(embedder), Some(guidance)) = (&self.guidance, &conditioning.guidance) {
            let guidance = embedder.forward(pass, told(&(guidance * GUIDANCE_UNIT)?)?)?;
            vector = tape.add(&vector, &guidance)?;
        }
        let pooled = self.pooled.forward(pass, pooled.clone())?;
        tape.silu(&tape.add(&vector, &pooled)?)
    }
}

impl Flux {
    /// Builds FLUX.1 from tensors by canonical name.
    pub(super) fn build(architecture: Architecture, source: &dyn Source) -> Loaded<Self> {
        let loader = architecture.loader(source);
        let embedder = |name: &str, inputs| {
            loader.embedder(&format!("time_text_embed.{name}_embedder"), inputs)
        };
        let guidance = architecture
            .guidance
            .then(|| embedder("guidance", TIME_CHANNELS));
        let conditioner = Embedders {
            time: embedder("timestep", TIME_CHANNELS)?,
            guidance: guidance.transpose()?,
            pooled: embedder("text", architecture.pooled_width)?,
        };
        let modulators = |of: Modulated| {
            let (name, parts) = match of {
                Modulated::Picture(i) => (format!("transformer_blocks.{i}.norm1.linear"), 6),
                Modulated::Context(i) => {
                    (format!("transformer_blocks.{i}.norm1_context.linear"), 6)
                }
                Modulated::Single(i) => (format!("single_transformer_blocks.{i}.norm.linear"), 3),
                Modulated::Last => ("norm_out.linear".to_owned(), 2),
            };
            Ok(Modulator::Linear(loader.wide(&name, (parts, 1))?))
        };
        Self::of(
            architecture.clone(),
            source,
            Box::new(conditioner),
            &modulators,
        )
    }

    /// Builds a network with this beginning and these modulators. The last norm's are (scale, shift).
    pub(in crate::models) fn of(
        architecture: Architecture,
        source: &dyn Source,
        conditioner: Box<dyn Conditioner>,
        modulators: &Modulators<'_>,
    ) -> Loaded<Self> {
        let (width, tokens) = (architecture.width(), architecture.token_channels);
        let loader = architecture.loader(source);
        let double = |i| double_block(loader, i, modulators).map(Arc::new);
        let single = |i| single_block(loader, i, modulators).map(Arc::new);
        Ok(Self {
            kernels: source.kernels(),
            conditioner,
            context: loader.linear("context_embedder", (width, architecture.context_width))?,
            picture: loader.linear("x_embedder", (width, tokens))?,
            double_blocks: (0..architecture.num_double)
                .map(double)
                .collect::<Loaded<_>>()?,
            single_blocks: (0..architecture.num_single)
                .map(single)
                .collect::<Loaded<_>>()?,
            norm_out: modulators(Modulated::Last)?,
            proj_out: loader.linear("proj_out", (tokens, width))?,
            like: source.tensor(&[width], "x_embedder.bias")?,
            architecture,
            rotary: LastTables::default(),
        })
    }

    /// The rotary tables, which a run of pictures of one size makes once.
    fn rotary(&self, extents: Extents) -> Result<Rotary> {
        let (axes, device) = (self.architecture.axes, self.like.device());
        let make = |(pictures, context): &Extents| Rotary::new(axes, pictures, *context, device);
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
        let m = conditioning.context.dims3()?.1;
        let guidance = conditioning.guidance.as_ref();
        check_reference(conditioning, b, own.latent_channels())?;
        check_shapes(&[
            (
                "latents",
                latents.tensor().dims(),
                &[b, own.latent_channels(), h, w][..],
            ),
            ("timesteps", timesteps.dims(), &[b]),
            (
                "context",
                conditioning.context.dims(),
                &[b, m, own.context_width],
            ),
            ("pooled", conditioning.pooled.dims(), &[b, own.pooled_width]),
            ("guidance", guidance.map_or(&[b], Tensor::dims), &[b]),
        ])?;
        conditioning.refuse_empty_context()?;
        match (own.guidance, guidance) {
            (true, None) => {
                bail!(
                    "denoiser input `guidance`: this model has a guidance embedding, found no input"
                )
            }
            (true, Some(_)) => Ok(()),
            (false, _) => conditioning.refuse_guidance(),
        }
    }

    fn tokens(&self, latents: &Value, conditioning: &ConditioningTensors) -> Result<Tokens> {
        let m = conditioning.context.dim(1)?;
        let pictures = pictures(latents.tensor(), conditioning)?;
        let num_patches = pictures.iter().map(|(rows, columns)| rows * columns).sum();
        let mask = mask_of(conditioning, num_patches)?;
        Ok(Tokens {
            rotary: self.rotary((pictures, m))?,
            num_patches,
            mask,
        })
    }

    /// All blocks: picture with reference [b, n + r, d] and context [b, m, d] to all of
    /// them, [b, n + r + m, d].
    fn blocks(
        &self,
        pass: Pass<'_>,
        tokens: Tokens,
        mut x: Value,
        mut context: Value,
        vector: &Value,
    ) -> Result<Value> {
        let tokens = Arc::new(tokens);
        for (i, block) in self.double_blocks.iter().enumerate() {
            let (block, tokens) = (Arc::clone(block), Arc::clone(&tokens));
            let run = move |pass: Pass<'_>, inputs: &[Value]| match inputs {
                [x, context, vector] => {
                    Ok(block.forward(pass, &tokens, x, context, vector)?.into())
                }
                _ => bail!("a double block has three inputs, found {}", inputs.len()),
            };
            [x, context] = run_block(pass, i, &[&x, &context, vector], run)?;
        }
        // diffusers has the context first. Attention does not care, and with the context last its pads are the last keys,
        // which a count of keys leaves out; the picture is then a view of the front.
        let mut whole = pass.tape.cat(&[&x, &context], 1)?;
        for (i, block) in self.single_blocks.iter().enumerate() {
            let (block, tokens) = (Arc::clone(block), Arc::clone(&tokens));
            let run = move |pass: Pass<'_>, inputs: &[Value]| match inputs {
                [x, vector] => Ok(vec![block.forward(pass, &tokens, x, vector)?]),
                _ => bail!("a single block has two inputs, found {}", inputs.len()),
            };
            [whole] = run_block(pass, self.double_blocks.len() + i, &[&whole, vector], run)?;
        }
        Ok(whole)
    }
}

/// Checks that a reference's latents, if there are some, are for `b` samples and of as many channels as the picture's.
pub(in crate::models) fn check_reference(
    conditioning: &ConditioningTensors,
    b: usize,
    channels: usize,
) -> Result<()> {
    let Some(reference) = &conditioning.reference else {
        return Ok(());
    };
    let (_, _, h, w) = picture_dims(&Value::constant(reference.clone()))?;
    check_shapes(&[("reference", reference.dims(), &[b, channels, h, w][..])])
}

/// Rows and columns of patches of the picture, and of its reference, if it has one.
pub(in crate::models) fn pictures(
    latents: &Tensor,
    conditioning: &ConditioningTensors,
) -> Result<Vec<(usize, usize)>> {
    let all = std::iter::once(latents).chain(&conditioning.reference);
    let sides = all.map(|picture| {
        let (_, _, h, w) = picture.dims4()?;
        patches(h, w)
    });
    sides.collect()
}

/// The picture's tokens [b, n, c], and behind them the reference's: [b, n + r, c].
pub(in crate::models) fn with_reference(
    tape: &Tape,
    latents: &Value,
    conditioning: &ConditioningTensors,
) -> Result<Value> {
    let picture = pack(tape, latents)?;
    let Some(reference) = &conditioning.reference else {
        return Ok(picture);
    };
    let reference = pack(tape, &Value::constant(reference.clone()))?;
    tape.cat(&[&picture, &reference], 1)
}

/// Which keys are seen of a picture's `num_patches` tokens and the context's behind them: all, or none of the context's pads.
pub(in crate::models) fn mask_of(
    conditioning: &ConditioningTensors,
    num_patches: usize,
) -> Result<AttentionMask> {
    let Some(counts) = &conditioning.token_counts else {
        return Ok(AttentionMask::None);
    };
    let (b, m, _) = conditioning.context.dims3()?;
    if counts.len() != b || counts.iter().any(|&count| count > m) {
        bail!(
            "denoiser input `token_counts`: expected {b} numbers of at most {m}, found {counts:?}"
        );
    }
    let seen = counts.iter().map(|count| num_patches + count);
    Ok(AttentionMask::KeyCounts(seen.collect()))
}

/// Runs block number `i`, once, or again for its gradients.
pub(in crate::models) fn run_block<const N: usize>(
    pass: Pass<'_>,
    i: usize,
    inputs: &[&Value],
    run: impl Fn(Pass<'_>, &[Value]) -> Result<Vec<Value>> + 'static,
) -> Result<[Value; N]> {
    let outputs = if pass.adapters.recomputes(i) {
        pass.checkpoint(inputs, run)?
    } else {
        let inputs: Vec<Value> = inputs.iter().map(|&value| value.clone()).collect();
        run(pass, &inputs)?
    };
    match outputs.try_into() {
        Ok(outputs) => Ok(outputs),
        Err(other) => bail!("a block gave {} results", other.len()),
    }
}

impl Denoiser for Flux {
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
        let tokens = self.tokens(latents, conditioning)?;
        let like = latents.tensor();
        let vector = self
            .conditioner
            .vector(pass, timesteps, conditioning, like)?;
        let x = with_reference(tape, latents, conditioning)?;
        let x = self.picture.forward(tape, adapters, &x)?;
        let context = Value::constant(conditioning.context.clone());
        let context = self.context.forward(tape, adapters, &context)?;
        let x = self.blocks(pass, tokens, x, context, &vector)?;
        let (_, c, h, w) = like.dims4()?;
        let (rows, columns) = patches(h, w)?;
        // The reference's tokens are given, not predicted.
        let x = tape.narrow(&x, 1, 0, rows * columns)?;
        let mods = self.norm_out.parts(pass, &vector)?;
        // The last modulation of diffusers' FLUX.1 is (scale, shift); those of the blocks begin with the shift.
        let x = mods.norm(pass, &x, 1, 0)?;
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
fn double_block(loader: Loader<'_>, i: usize, modulators: &Modulators<'_>) -> Loaded<DoubleBlock> {
    let own = |part: &str| format!("transformer_blocks.{i}.{part}");
    // Queries, keys, values, both norms, the output and the feed-forward.
    let half = |of, [q, k, v, norm_q, norm_k, out, feed_forward]: [&str; 7]| {
        let attn = |part: &str| own(&format!("attn.{part}"));
        Ok::<_, Error>(Half {
            modulation: modulators(of)?,
            heads: loader.heads(attn, [q, k, v], Some([norm_q, norm_k]))?,
            out: loader.wide(&attn(out), (1, 1))?,
            feed_forward: loader.feed_forward(&own(feed_forward))?,
        })
    };
    Ok(DoubleBlock {
        picture: half(
            Modulated::Picture(i),
            ["to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0", "ff"],
        )?,
        context: half(
            Modulated::Context(i),
            [
                "add_q_proj",
                "add_k_proj",
                "add_v_proj",
                "norm_added_q",
                "norm_added_k",
                "to_add_out",
                "ff_context",
            ],
        )?,
    })
}

/// Single block `i`.
fn single_block(loader: Loader<'_>, i: usize, modulators: &Modulators<'_>) -> Loaded<SingleBlock> {
    let own = |part: &str| format!("single_transformer_blocks.{i}.{part}");
    let (linears, norms) = (
        ["attn.to_q", "attn.to_k", "attn.to_v"],
        ["attn.norm_q", "attn.norm_k"],
    );
    Ok(SingleBlock {
        modulation: modulators(Modulated::Single(i))?,
        heads: loader.heads(own, linears, Some(norms))?,
        up: loader.wide(&own("proj_mlp"), (MLP_RATIO, 1))?,
        // Attention's results beside the feed-forward's.
        out: loader.wide(&own("proj_out"), (1, 1 + MLP_RATIO))?,
    })
}
