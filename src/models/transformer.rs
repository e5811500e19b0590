//! What diffusion transformers whose norms are modulated by one vector (DiT, Peebles and Xie, arXiv:2212.09748) share:
//! the modulation, heads with their norms, the feed-forward, and how modules are made of tensors.
//!
//! Shapes: b batch, n tokens, h heads, e channels of a head, d = h * e.

pub(super) mod activations;

use candle_core::{Result, Tensor, bail};

use super::linear::{Linear, Qkv};
use super::{Error, Source};
use crate::autograd::{Tape, Value};
use crate::lora::Bound;
use crate::nn::{Kernels, sinusoids};

/// Of every norm in these networks.
pub(super) const EPS: f64 = 1e-6;

/// Channels of the timestep's sinusoid.
pub(super) const TIME_CHANNELS: usize = 256;

/// How many times wider than the streams the feed-forwards are inside.
pub(super) const MLP_RATIO: usize = 4;

pub(super) type Loaded<T> = std::result::Result<T, Error>;

/// Builds the modules of a network of `width` channels from tensors by their canonical names. Sizes are (outputs, inputs).
#[derive(Clone, Copy)]
pub(super) struct Loader<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) width: usize,
    pub(super) head_channels: usize,
    /// Whether its linears have biases.
    pub(super) bias: bool,
}

impl Loader<'_> {
    /// A linear.
    pub(super) fn linear(&self, name: &str, size: (usize, usize)) -> Loaded<Linear> {
        Linear::load(self.source, name, size, self.bias)
    }

    /// A linear of `outputs` times `inputs` widths.
    pub(super) fn wide(&self, name: &str, (outputs, inputs): (usize, usize)) -> Loaded<Linear> {
        self.linear(name, (outputs * self.width, inputs * self.width))
    }

    /// Linears to heads of queries, keys and values, and the norms of each head's queries and keys, if it has those; `own` makes a part's
    /// name whole.
    pub(super) fn heads(
        &self,
        own: impl Fn(&str) -> String,
        [q, k, v]: [&str; 3],
        norms: Option<[&str; 2]>,
    ) -> Loaded<Heads> {
        let linear = |part: &str| self.wide(&own(part), (1, 1));
        let [norm_q, norm_k] = match norms {
            Some(norms) => norms.map(|part| Some(self.head_norm(&own(part)))),
            None => [None, None],
        };
        Ok(Heads {
            linears: Qkv::new([linear(q)?, linear(k)?, linear(v)?])?,
            norms: [norm_q.transpose()?, norm_k.transpose()?],
        })
    }

    /// The norm [e] of each head's channels.
    pub(super) fn head_norm(&self, name: &str) -> Loaded<Tensor> {
        let tensor = format!("{name}.weight");
        self.source.tensor(&[self.head_channels], &tensor)
    }

    /// diffusers' FeedForward.
    pub(super) fn feed_forward(&self, name: &str) -> Loaded<FeedForward> {
        self.feed_forward_of(name, MLP_RATIO * self.width)
    }

    /// diffusers' FeedForward of `inner` channels inside.
    pub(super) fn feed_forward_of(&self, name: &str, inner: usize) -> Loaded<FeedForward> {
        Ok(FeedForward {
            up: self.linear(&format!("{name}.net.0.proj"), (inner, self.width))?,
            down: self.linear(&format!("{name}.net.2"), (self.width, inner))?,
        })
    }

    /// diffusers' embedders of a timestep, a guidance scale or a pooled vector of `inputs` channels.
    pub(super) fn embedder(&self, name: &str, inputs: usize) -> Loaded<Embedder> {
        Ok(Embedder([
            self.linear(&format!("{name}.linear_1"), (self.width, inputs))?,
            self.wide(&format!("{name}.linear_2"), (1, 1))?,
        ]))
    }
}

/// What a pass through a block goes along with.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) tape: &'a Tape,
    pub(super) adapters: &'a Bound,
    pub(super) heads: usize,
}

impl Pass<'_> {
    /// Runs a block, keeping its inputs only: it is run again for its gradients.
    pub(super) fn checkpoint(
        self,
        inputs: &[&Value],
        block: impl Fn(Pass<'_>, &[Value]) -> Result<Vec<Value>> + 'static,
    ) -> Result<Vec<Value>> {
        let (adapters, heads) = (self.adapters.clone(), self.heads);
        self.tape.checkpoint(inputs, move |tape, inputs| {
            let pass = Pass {
                tape,
                adapters: &adapters,
                heads,
            };
            block(pass, inputs)
        })
    }
}

/// The parts [b, d] of a modulation [b, k * d]: shifts, scales and gates.
pub(super) struct Modulation(Vec<Value>);

impl Modulation {
    pub(super) fn new(pass: Pass<'_>, linear: &Linear, vector_bd: &Value) -> Result<Self> {
        let all = linear.forward(pass.tape, pass.adapters, vector_bd)?;
        let width = vector_bd.tensor().dim(1)?;
        let count = all.tensor().dim(1)? / width;
        Ok(Self(pass.tape.split(&all, 1, &vec![width; count])?))
    }

    /// Of vectors [b, k, d] that were made for the whole network, those with these numbers.
    pub(super) fn among(pass: Pass<'_>, vectors_bkd: &Value, numbers: &[usize]) -> Result<Self> {
        let (b, _, d) = vectors_bkd.tensor().dims3()?;
        let vector = |&number: &usize| {
            let one = pass.tape.narrow(vectors_bkd, 1, number, 1)?;
            pass.tape.reshape(&one, &[b, d])
        };
        Ok(Self(numbers.iter().map(vector).collect::<Result<_>>()?))
    }

    /// Of parts [b, d] that were made elsewhere.
    pub(super) fn of(parts: Vec<Value>) -> Self {
        Self(parts)
    }

    /// The norm of `x` [b, n, d], times 1 + the `scale`th part, plus the `shift`th.
    pub(super) fn norm(
        &self,
        pass: Pass<'_>,
        x: &Value,
        shift: usize,
        scale: usize,
    ) -> Result<Value> {
        pass.tape.modulate(x, &self.0[scale], &self.0[shift], EPS)
    }

    /// `x + gate * y`, with the `gate`th part.
    pub(super) fn gate(&self, pass: Pass<'_>, x: &Value, gate: usize, y: &Value) -> Result<Value> {
        pass.tape.gated_residual(x, &self.0[gate], y)
    }
}

/// Linears to queries, keys and values, and the norms [e] of each head's queries and keys.
pub(super) struct Heads {
    linears: Qkv,
    norms: [Option<Tensor>; 2],
}

impl Heads {
    /// [b, n, d] to queries, keys and values [b, n, h, e].
    pub(super) fn forward(&self, pass: Pass<'_>, x: &Value) -> Result<[Value; 3]> {
        let [q, k, v] = self.linears.forward(pass.tape, pass.adapters, x)?;
        let [norm_q, norm_k] = &self.norms;
        Ok([
            split_heads(pass, &q, norm_q.as_ref())?,
            split_heads(pass, &k, norm_k.as_ref())?,
            split_heads(pass, &v, None)?,
        ])
    }
}

/// [b, n, d] to [b, n, h, e], each head's channels normed by `norm` [e] if there is one.
pub(super) fn split_heads(pass: Pass<'_>, y: &Value, norm: Option<&Tensor>) -> Result<Value> {
    let (b, n, d) = y.tensor().dims3()?;
    let y_bnhe = pass.tape.reshape(y, &[b, n, pass.heads, d / pass.heads])?;
    match norm {
        Some(weight) => pass.tape.rms_norm(&y_bnhe, Some(weight), EPS),
        None => Ok(y_bnhe),
    }
}

/// Two linears with a GELU (tanh form) between.
pub(super) struct FeedForward {
    up: Linear,
    down: Linear,
}

impl FeedForward {
    /// `x` [b, n, d] plus its own result: normed with parts 3 and 4, gated by part 5.
    pub(super) fn residual(&self, pass: Pass<'_>, mods: &Modulation, x: &Value) -> Result<Value> {
        let y = mods.norm(pass, x, 3, 4)?;
        let y = self.up.gelu(pass.tape, pass.adapters, &y)?;
        mods.gate(
            pass,
            x,
            5,
            &self.down.forward(pass.tape, pass.adapters, &y)?,
        )
    }
}

/// Two linears with a SiLU between.
pub(super) struct Embedder([Linear; 2]);

impl Embedder {
    pub(super) fn forward(&self, pass: Pass<'_>, x: Tensor) -> Result<Value> {
        let [first, second] = &self.0;
        let hidden = first.forward(pass.tape, pass.adapters, &Value::constant(x))?;
        second.forward(pass.tape, pass.adapters, &pass.tape.silu(&hidden)?)
    }
}

/// Checks what a denoiser is given: name, shape found, shape expected.
pub(super) fn check_shapes(inputs: &[(&str, &[usize], &[usize])]) -> Result<()> {
    for (what, found, expected) in inputs {
        if found != expected {
            bail!("denoiser input `{what}`: expected shape {expected:?}, found {found:?}");
        }
    }
    Ok(())
}

/// Batch, channels, height and width of latents of pictures.
///
/// # Errors
/// If they are not [b, c, h, w], such as a video's [b, c, f, h, w].
pub(super) fn picture_dims(latents: &Value) -> Result<(usize, usize, usize, usize)> {
    match *latents.tensor().dims() {
        [b, c, h, w] => Ok((b, c, h, w)),
        ref found => bail!(
            "denoiser input `latents`: expected pictures of shape [batch, channels, height, width], found {found:?}"
        ),
    }
}

/// Timesteps [b] to [b, 256], of the type and on the device of `like`.
pub(super) fn timestep_sinusoid(
    kernels: &Kernels,
    timesteps: &Tensor,
    like: &Tensor,
) -> Result<Tensor> {
    sinusoids(kernels, timesteps, TIME_CHANNELS, like)
}
