//! One block: attention within the video, attention to the context, feed-forward.
//!
//! Shapes: b batch, n patches, m context tokens, h heads, e channels of a head, d = h * e.

use candle_core::{Result, Tensor};

use super::architecture::Architecture;
use super::positions::Rotary;
use crate::autograd::Value;
use crate::models::Source;
use crate::models::linear::{Linear, Projections};
use crate::models::transformer::{EPS, FeedForward, Loaded, Loader, Modulation, Pass};
use crate::nn::AttentionMask;

/// Shifts, scales and gates of a block: of attention, then of the feed-forward.
pub(super) const PARTS: usize = 6;

struct Attention {
    into: Projections,
    /// Of queries and of keys, over all heads' channels: [d].
    norms: [Tensor; 2],
    out: Linear,
}

/// A block.
pub(super) struct Block {
    of_video: Attention,
    of_context: Attention,
    /// Weight and bias [d] of the norm of what asks the context.
    asking: Option<(Tensor, Tensor)>,
    feed_forward: FeedForward,
    /// What is added to the timestep's vectors: [1, 6 d].
    table: Tensor,
}

impl Block {
    pub(super) fn load(
        architecture: &Architecture,
        loader: Loader<'_>,
        block: usize,
    ) -> Loaded<Self> {
        let own = |part: &str| format!("blocks.{block}.{part}");
        let (source, width) = (loader.source, loader.width);
        let vector = |part: &str| source.tensor(&[width], &own(part));
        let asking = || -> Loaded<_> { Ok((vector("norm2.weight")?, vector("norm2.bias")?)) };
        Ok(Self {
            of_video: Attention::load(loader, &own("attn1"), Projections::of_one)?,
            of_context: Attention::load(loader, &own("attn2"), Projections::of_two)?,
            asking: architecture.cross_attn_norm.then(asking).transpose()?,
            feed_forward: loader.feed_forward_of(&own("ffn"), architecture.feed_forward)?,
            table: table(source, PARTS, width, &own("scale_shift_table"))?,
        })
    }

    /// Video [b, n, d], context [b, m, d] and the timestep's vectors [b, 6 d] to the next video.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        rotary: &Rotary,
        x: &Value,
        context: &Value,
        vectors: &Value,
    ) -> Result<Value> {
        let tape = pass.tape;
        let mods = parts(pass, vectors, &self.table, PARTS)?;
        let y = mods.norm(pass, x, 0, 1)?;
        let y = self.of_video.forward(pass, &y, &y, Some(rotary))?;
        let x = mods.gate(pass, x, 2, &y)?;
        let asking = match &self.asking {
            Some((weight, bias)) => tape.layer_norm(&x, Some(weight), Some(bias), EPS)?,
            None => x.clone(),
        };
        let found = self.of_context.forward(pass, &asking, context, None)?;
        let x = tape.add(&x, &found)?;
        self.feed_forward.residual(pass, &mods, &x)
    }
}

/// The tensor `name` of `parts` vectors, [1, parts, d] in files, as [1, parts * d].
pub(super) fn table(source: &dyn Source, parts: usize, width: usize, name: &str) -> Loaded<Tensor> {
    let table = source.tensor(&[1, parts, width], name)?;
    table
        .flatten_from(1)
        .map_err(|source| crate::models::Error::Device {
            what: format!("reading `{name}`"),
            source,
        })
}

/// The `count` parts [b, d] of the vectors [b, count * d], with `table` [1, count * d] added.
pub(super) fn parts(
    pass: Pass<'_>,
    vectors: &Value,
    table: &Tensor,
    count: usize,
) -> Result<Modulation> {
    let all = pass.tape.add(vectors, &Value::constant(table.clone()))?;
    let width = all.tensor().dim(1)? / count;
    Ok(Modulation::of(pass.tape.split(
        &all,
        1,
        &vec![width; count],
    )?))
}

fn heads(pass: Pass<'_>, x: &Value) -> Result<Value> {
    let (b, n, d) = x.tensor().dims3()?;
    pass.tape.reshape(x, &[b, n, pass.heads, d / pass.heads])
}

impl Attention {
    fn load(
        loader: Loader<'_>,
        name: &str,
        into: impl Fn([Linear; 3]) -> Loaded<Projections>,
    ) -> Loaded<Self> {
        let linear = |part: &str| loader.wide(&format!("{name}.{part}"), (1, 1));
        let norm = |part: &str| {
            let tensor = format!("{name}.{part}.weight");
            loader.source.tensor(&[loader.width], &tensor)
        };
        Ok(Self {
            into: into([linear("to_q")?, linear("to_k")?, linear("to_v")?])?,
            norms: [norm("norm_q")?, norm("norm_k")?],
            out: linear("to_out.0")?,
        })
    }

    /// What `x` [b, n, d] finds in `seen` [b, m, d].
    fn forward(
        &self,
        pass: Pass<'_>,
        x: &Value,
        seen: &Value,
        rotary: Option<&Rotary>,
    ) -> Result<Value> {
        let tape = pass.tape;
        let [q, k, v] = self.into.forward(tape, pass.adapters, x, seen)?;
        let normed = |y: &Value, norm| heads(pass, &tape.rms_norm(y, Some(norm), EPS)?);
        let (mut q, mut k) = (normed(&q, &self.norms[0])?, normed(&k, &self.norms[1])?);
        let v = heads(pass, &v)?;
        if let Some(rotary) = rotary {
            q = tape.rope(&q, &rotary.cos, &rotary.sin)?;
            k = tape.rope(&k, &rotary.cos, &rotary.sin)?;
        }
        let scale = 1.0 / (q.tensor().dim(3)? as f64).sqrt();
        let found = tape.attention(&q, &k, &v, scale, None, &AttentionMask::None)?;
        self.out.forward(tape, pass.adapters, &found)
    }
}
