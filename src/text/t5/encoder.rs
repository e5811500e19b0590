//! The network of a T5 or UMT5 encoder.
//!
//! Pre-norm transformer with RMS norms, no biases, no scale in its attention, and a relative position bias
//! (Raffel et al. 2020), whose table all blocks share in T5 and each has for itself in UMT5. Follows `T5EncoderModel` and
//! `UMT5EncoderModel` of transformers, also in half precision: there `wo` and, from
//! it on, the residual stream stay f32 in f16, and what overflowed is clamped.
//!
//! Shapes: r rows of a batch (`batch.rs`), c width of the residual stream, f width of the feed-forward, h heads,
//! d width of a head.

use candle_core::{DType, Tensor};

use super::bias::PositionBias;
use super::{Stack, T5EncoderArchitecture, T5Mask, T5PadRows, names};
use crate::monitor::Stop;
use crate::nn::weights::{self, Weights};
use crate::nn::{AttentionMask, Inward, Kernels, Packed, attention, rms_norm};
use crate::text::batch::{Batch, Group, Sequence, batches_of};
use crate::text::check::{check_vocabulary, go_on, positive};
use crate::text::names::refuse_unexpected;
use crate::text::{Encoded, Error, LoadedNetwork, LocatedEncoder, Residency, Tokens};

/// Finds the encoder, and checks by the headers that all of it is there and nothing more. The rules need all of it.
pub(super) fn locate(stack: &Stack, weights: &Weights) -> Result<LocatedEncoder, Error> {
    check(stack)?;
    let architecture = &stack.architecture;
    let found = names::locate(weights, stack)?;
    let tensors = names::encoder(architecture, stack.tables);
    // By the files' names, as unexpected tensors are looked for among these.
    let stored: Vec<String> = tensors
        .iter()
        .map(|(name, _)| names::stored(&found, name))
        .collect();
    let canonical = {
        let found = found.clone();
        weights.renamed(move |name: &str| names::stored(&found, name))
    };
    canonical.require(&tensors)?;
    refuse_unexpected(weights, &found.prefix, &stored, names::is_inert, |_| {
        format!(
            "num_layers is {} and is_gated_act {}; check them against the checkpoint's own config.json",
            architecture.num_layers, architecture.is_gated_act
        )
    })?;
    Ok(LocatedEncoder {
        weights: canonical,
        tensors,
        tables: &[names::EMBEDDING],
        notes: Vec::new(),
    })
}

// Specs are also read from JSON, so that what `architecture::read` refuses is refused here again.
fn check(stack: &Stack) -> Result<(), Error> {
    let (a, rules) = (&stack.architecture, &stack.forward);
    for (field, value) in [
        ("vocab_size", a.vocab_size),
        ("d_model", a.d_model),
        ("d_kv", a.d_kv),
        ("d_ff", a.d_ff),
        ("num_layers", a.num_layers),
        ("num_heads", a.num_heads),
    ] {
        positive(field, value)?;
    }
    let wrong = |reason: String| Err(Error::Spec(reason));
    if !(a.layer_norm_epsilon >= 0.0 && a.layer_norm_epsilon.is_finite()) {
        return wrong(format!("layer_norm_epsilon is {}", a.layer_norm_epsilon));
    }
    let buckets = a.relative_attention_num_buckets;
    if buckets < 4 || !buckets.is_multiple_of(2) || buckets > 1 << 16 {
        return wrong(format!(
            "relative_attention_num_buckets is {buckets}, not even and at least 4"
        ));
    }
    if a.relative_attention_max_distance <= buckets / 4 {
        return wrong(format!(
            "relative_attention_max_distance is {}, not above a quarter of the {buckets} buckets",
            a.relative_attention_max_distance
        ));
    }
    if rules.pad_rows == T5PadRows::Drop && !rules.mask.hides_pads() {
        return wrong(
            "pad rows are dropped, but pads are attended: mask them or keep their rows".into(),
        );
    }
    Ok(())
}

/// One layer's weights.
#[derive(Clone)]
struct Block {
    attention_norm: Tensor,
    /// Queries, keys and values on top of each other: `[3 h d, c]`.
    qkv: Packed,
    out: Packed,
    feed_forward_norm: Tensor,
    /// `wi`, or `wi_0` and `wi_1`.
    inward: Vec<Packed>,
    outward: Packed,
}

impl Block {
    fn load(
        architecture: &T5EncoderArchitecture,
        weights: &Weights,
        block: usize,
        residency: Residency,
    ) -> Result<Self, Error> {
        let (c, f) = (architecture.d_model, architecture.d_ff);
        let inner = architecture.num_heads * architecture.d_kv;
        let weights = weights.pp("encoder.block").pp(block).pp("layer");
        let get = |name: &str, shape: &[usize]| weights.pp(name).get(shape, "weight");
        let [q, k, v] = ["q", "k", "v"].map(|n| get(&format!("0.SelfAttention.{n}"), &[inner, c]));
        let matrix = |w: Result<Tensor, weights::Error>| -> Result<Packed, Error> {
            Ok(residency.matrix(&w?)?)
        };
        let inward = names::inward(architecture).iter();
        // `_keep_in_fp32_modules = ["wo"]` of `T5PreTrainedModel`; it holds for f16 only.
        let wide = match weights.dtype() {
            DType::F16 => weights.clone().with_dtype(DType::F32),
            _ => weights.clone(),
        };
        Ok(Self {
            attention_norm: get("0.layer_norm", &[c])?,
            qkv: residency.matrix(&Tensor::cat(&[q?, k?, v?], 0)?)?,
            out: matrix(get("0.SelfAttention.o", &[c, inner]))?,
            feed_forward_norm: get("1.layer_norm", &[c])?,
            inward: inward
                .map(|name| matrix(get(&format!("1.DenseReluDense.{name}"), &[f, c])))
                .collect::<Result<_, _>>()?,
            outward: matrix(wide.get(&[c, f], "1.DenseReluDense.wo.weight"))?,
        })
    }
}

/// An encoder, ready to run.
pub(super) struct T5Encoder {
    stack: Stack,
    /// By canonical name.
    weights: Weights,
    /// Empty if layers are read when needed.
    resident: Vec<Block>,
    /// One for all blocks, or one for each.
    biases: Vec<PositionBias>,
    final_norm: Tensor,
}

impl T5Encoder {
    pub(super) fn load(
        stack: Stack,
        weights: &Weights,
        residency: Residency,
    ) -> Result<Self, Error> {
        let architecture = &stack.architecture;
        let depth = match residency {
            Residency::Resident => architecture.num_layers,
            Residency::Streamed => 0,
        };
        let resident = (0..depth)
            .map(|block| Block::load(architecture, weights, block, residency))
            .collect::<Result<_, _>>()?;
        let tables = stack.tables.count(architecture.num_layers);
        let bias = |block| -> Result<PositionBias, Error> {
            let (buckets, heads) = (
                architecture.relative_attention_num_buckets,
                architecture.num_heads,
            );
            let table = weights.get(&[buckets, heads], &names::bias(block))?;
            let table = table.to_dtype(weights.activations())?;
            Ok(PositionBias::new(architecture, &table, tables)?)
        };
        Ok(Self {
            resident,
            biases: (0..tables).map(bias).collect::<Result<_, _>>()?,
            final_norm: weights.get(&[architecture.d_model], "encoder.final_layer_norm.weight")?,
            weights: weights.clone(),
            stack,
        })
    }
}

impl LoadedNetwork for T5Encoder {
    fn encode(&self, captions: &[Tokens], stop: Stop) -> Result<Vec<Encoded>, Error> {
        check_vocabulary(captions, self.stack.architecture.vocab_size)?;
        let batches = batches_of(self.sequences(captions));
        let mut states = batches
            .iter()
            .map(|p| self.embed(p))
            .collect::<Result<Vec<_>, _>>()?;
        for index in 0..self.stack.architecture.num_layers {
            let block = self.block(index)?;
            let bias = self.bias(index)?;
            for (batch, x_rc) in batches.iter().zip(&mut states) {
                go_on(stop)?;
                *x_rc = self.layer(&block, bias, batch, captions, x_rc)?;
            }
        }
        let mut encoded = vec![Encoded::default(); captions.len()];
        for (batch, x_rc) in batches.iter().zip(&states) {
            let x_rc = self.norm(x_rc, &self.final_norm)?;
            for (start, sequence) in batch.starts() {
                let rows = self.stack.forward.pad_rows.of(&captions[sequence.caption]);
                encoded[sequence.caption].hidden = Some(x_rc.narrow(0, start, rows)?.contiguous()?);
            }
        }
        Ok(encoded)
    }

    fn rows(&self, tokens: &Tokens) -> usize {
        let keys = self.stack.forward.mask.keys(tokens.count, tokens.ids.len());
        // What is attended is computed, kept or not.
        self.stack.forward.pad_rows.of(tokens).max(keys)
    }
}

impl T5Encoder {
    fn sequences(&self, captions: &[Tokens]) -> Vec<Sequence> {
        let mask = self.stack.forward.mask;
        let sequence = |(caption, tokens): (usize, &Tokens)| {
            let all = tokens.ids.len();
            let keys = mask.keys(tokens.count, all);
            Sequence {
                caption,
                ids: tokens.ids[..self.rows(tokens)].to_vec(),
                keys,
            }
        };
        captions.iter().enumerate().map(sequence).collect()
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor, Error> {
        let architecture = &self.stack.architecture;
        let size = (architecture.vocab_size, architecture.d_model);
        let rows = self.weights.rows(size, names::EMBEDDING, &batch.ids())?;
        Ok(rows.to_dtype(self.weights.activations())?)
    }

    fn kernels(&self) -> &Kernels {
        self.weights.kernels()
    }

    fn block(&self, block: usize) -> Result<Block, Error> {
        match self.resident.get(block) {
            Some(block) => Ok(block.clone()),
            None => Block::load(
                &self.stack.architecture,
                &self.weights,
                block,
                Residency::Streamed,
            ),
        }
    }

    /// The position bias of a block.
    fn bias(&self, block: usize) -> candle_core::Result<&PositionBias> {
        let own = self.biases.get(block).or(self.biases.first());
        own.ok_or_else(|| candle_core::Error::msg("an encoder without a position bias"))
    }

    fn layer(
        &self,
        block: &Block,
        bias: &PositionBias,
        batch: &Batch,
        captions: &[Tokens],
        x_rc: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let architecture = &self.stack.architecture;
        let (heads, width) = (architecture.num_heads, architecture.d_kv);
        let kernels = self.kernels();
        let normed_rc = self.norm(x_rc, &block.attention_norm)?;
        let qkv = block.qkv.linear(kernels, &normed_rc, None)?;
        let qkv_r3hd = qkv.reshape((qkv.dim(0)?, 3, heads, width))?;
        let mut y_rc = batch.attention(&qkv_r3hd, |group, q, k, v| {
            self.attend(bias, group, q, k, v)
        })?;
        if self.stack.forward.mask == T5Mask::PadsUniform {
            let v_rc = qkv_r3hd.narrow(1, 2, 1)?.reshape(y_rc.shape())?;
            y_rc = with_uniform_pads(batch, captions, &y_rc, &v_rc)?;
        }
        // After each half, as `T5Block.forward`.
        let x_rc = clamped(onto(kernels, x_rc, &y_rc, &block.out)?)?;
        let y_rc = self.norm(&x_rc, &block.feed_forward_norm)?;
        clamped(self.feed_forward(block, &x_rc, &y_rc)?)
    }

    fn attend(
        &self,
        bias: &PositionBias,
        group: &Group,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let bias = bias.get(group.length, group.keys)?;
        attention(
            self.kernels(),
            q,
            k,
            v,
            // No 1 / sqrt(d): T5 has it in the initialization of q (`T5PreTrainedModel._init_weights`).
            1.0,
            Some(&bias),
            &AttentionMask::None,
        )
    }

    /// The residual stream and the feed-forward of `y_rc`, `[r, c]`.
    fn feed_forward(
        &self,
        block: &Block,
        x_rc: &Tensor,
        y_rc: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let (kernels, activation) = (self.kernels(), self.stack.architecture.activation);
        let inward = match block.inward.as_slice() {
            [gate, up] => Inward::Gated { gate, up },
            [wi] => Inward::Plain(wi, None),
            _ => candle_core::bail!("a feed-forward with {} inward matrices", block.inward.len()),
        };
        let wide = block.outward.dtype() == DType::F32;
        if x_rc.dtype() == y_rc.dtype() && (!wide || y_rc.dtype() == DType::F32) {
            let outward = (&block.outward, None);
            return activation.feed_forward(kernels, (x_rc, y_rc), inward, outward);
        }
        let inner_rf = activation.inner(kernels, y_rc, inward)?;
        // As `T5DenseGatedActDense.forward`, for `wo` in f32.
        let inner_rf = match wide {
            true => inner_rf.to_dtype(DType::F32)?,
            false => inner_rf,
        };
        onto(kernels, x_rc, &inner_rf, &block.outward)
    }

    /// The RMS norm; its result has the type of what is multiplied next, as in transformers, whatever the residual stream's.
    fn norm(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        let eps = self.stack.architecture.layer_norm_epsilon;
        if x.dtype() == self.weights.activations() {
            return rms_norm(self.kernels(), x, Some(weight), eps);
        }
        rms_norm(self.kernels(), x, None, eps)?
            .to_dtype(weight.dtype())?
            .broadcast_mul(weight)
    }
}

/// `y_rc`, attention's result, with what pads find by [`T5Mask::PadsUniform`]: the mean of the values `v_rc` of the whole
/// sequence. Pads have one embedding and find the same in every layer, so their values are equal, and those of the pads
/// that are not computed need not be known.
fn with_uniform_pads(
    batch: &Batch,
    captions: &[Tokens],
    y_rc: &Tensor,
    v_rc: &Tensor,
) -> candle_core::Result<Tensor> {
    let wide = |t: Tensor| t.to_dtype(DType::F32);
    let width = y_rc.dim(1)?;
    let mut rows = Vec::new();
    for (start, sequence) in batch.starts() {
        let Tokens { ids, count, .. } = &captions[sequence.caption];
        let (count, pads) = (*count, sequence.ids.len() - count);
        rows.push(y_rc.narrow(0, start, count)?);
        if pads > 0 {
            let of_tokens = wide(v_rc.narrow(0, start, count)?)?.sum_keepdim(0)?;
            let of_pad = wide(v_rc.narrow(0, start + count, 1)?)?;
            let sum = (of_tokens + (of_pad * (ids.len() - count) as f64)?)?;
            let mean = (sum / ids.len() as f64)?.to_dtype(y_rc.dtype())?;
            rows.push(mean.broadcast_as((pads, width))?);
        }
    }
    Tensor::cat(&rows, 0)
}

/// The residual stream and `y w^T`, in the wider of the two types.
fn onto(kernels: &Kernels, x: &Tensor, y: &Tensor, w: &Packed) -> candle_core::Result<Tensor> {
    if x.dtype() == y.dtype() {
        return w.linear_onto(kernels, x, y, None);
    }
    let wide = if x.dtype() == DType::F32 {
        DType::F32
    } else {
        w.dtype()
    };
    x.to_dtype(wide)? + w.linear(kernels, y, None)?.to_dtype(wide)?
}

/// In f16, what overflowed becomes the largest finite value less 1000 (transformers' `T5Block`).
fn clamped(x: Tensor) -> candle_core::Result<Tensor> {
    if x.dtype() != DType::F16 {
        return Ok(x);
    }
    let largest = x
        .to_dtype(DType::F32)?
        .abs()?
        .max_all()?
        .to_scalar::<f32>()?;
    if largest.is_finite() {
        return Ok(x);
    }
    let limit = f64::from(half::f16::MAX) - 1000.0;
    x.clamp(-limit, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn f16_overflow_is_clamped_and_nothing_else_is() {
        let tensor = |values: &[f16]| Tensor::new(values, &candle_core::Device::Cpu).expect("made");
        let values = |t: Tensor| t.to_vec1::<f16>().expect("f16");
        let large = [f16::MAX, f16::MIN, f16::ONE];
        assert_eq!(values(clamped(tensor(&large)).expect("clamped")), large);
        let over = [f16::INFINITY, f16::NEG_INFINITY, f16::MAX, f16::ONE];
        let limit = f16::from_f32(64504.0);
        let found = values(clamped(tensor(&over)).expect("clamped"));
        assert_eq!(found, [limit, -limit, limit, f16::ONE]);
    }
}
