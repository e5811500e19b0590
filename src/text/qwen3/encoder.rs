//! The network of a Qwen3, as far as hidden states are asked for.
//!
//! Pre-norm transformer with RMS norms, no biases, causal attention with an RMS norm of each head's queries and keys
//! before they are turned by their positions, and a gated feed-forward (Qwen3 Technical Report, 2025). Follows
//! `Qwen3Model` of transformers: positions count from 0 in every caption, pads on the right included.
//!
//! Shapes: r rows of a batch (`batch.rs`), c width of the residual stream, f width of the feed-forward, h heads of queries,
//! g heads of keys and values, d width of a head.

use candle_core::{D, Tensor};

use super::rotary::{Angles, neighbours, rows_of_neighbours};
use super::{Qwen3Architecture, Qwen3Network, Qwen3PadRows, names};
use crate::monitor::Stop;
use crate::nn::weights::Weights;
use crate::nn::{Inward, Kernels, Packed, rms_norm};
use crate::text::batch::{Batch, Sequence, batches_of, causal};
use crate::text::check::{check_vocabulary, go_on, positive};
use crate::text::names::refuse_unexpected;
use crate::text::spec::EncoderMask;
use crate::text::{Encoded, Error, LoadedNetwork, LocatedEncoder, Residency, Tokens};

/// Finds the model, and checks by the headers that all of it is there and nothing more. Layers behind the last one that is
/// taken are no part of what is digested and loaded.
pub(super) fn locate(network: &Qwen3Network, weights: &Weights) -> Result<LocatedEncoder, Error> {
    check(network)?;
    let (architecture, rules) = (&network.architecture, &network.forward);
    let found = names::locate(weights, architecture)?;
    let whole = names::tensors(architecture, architecture.num_hidden_layers, true);
    // By the files' names, as unexpected tensors are looked for among these.
    let stored: Vec<String> = whole
        .iter()
        .map(|(name, _)| names::stored(&found, name))
        .collect();
    let canonical = {
        let found = found.clone();
        weights.renamed(move |name: &str| names::stored(&found, name))
    };
    // The whole model: a file that lacks layers is another network's.
    canonical.require(&whole)?;
    refuse_unexpected(weights, &found.prefix, &stored, names::is_inert, |_| {
        format!(
            "num_hidden_layers is {}; check it against the checkpoint's own config.json",
            architecture.num_hidden_layers
        )
    })?;
    Ok(LocatedEncoder {
        weights: canonical,
        tensors: names::tensors(architecture, depth(network), rules.final_norm),
        tables: &[names::EMBEDDING],
        notes: vec![format!(
            "the weights do not tell the rotary base of a Qwen3: {} is taken, which is not that of Qwen3-4B-Instruct-2507",
            architecture.rope_theta
        )],
    })
}

/// How many layers are computed.
fn depth(network: &Qwen3Network) -> usize {
    let taken = network.forward.hidden_layers.iter();
    taken.max().copied().unwrap_or(0)
}

// Specs are also read from JSON, so that what `architecture::read` refuses is refused here again.
fn check(network: &Qwen3Network) -> Result<(), Error> {
    let (a, rules) = (&network.architecture, &network.forward);
    for (field, value) in [
        ("vocab_size", a.vocab_size),
        ("hidden_size", a.hidden_size),
        ("intermediate_size", a.intermediate_size),
        ("num_hidden_layers", a.num_hidden_layers),
        ("num_attention_heads", a.num_attention_heads),
        ("num_key_value_heads", a.num_key_value_heads),
        ("head_dim", a.head_dim),
    ] {
        positive(field, value)?;
    }
    let wrong = |reason: String| Err(Error::Spec(reason));
    if !a.num_attention_heads.is_multiple_of(a.num_key_value_heads) {
        return wrong(format!(
            "num_key_value_heads {} does not divide num_attention_heads {}",
            a.num_key_value_heads, a.num_attention_heads
        ));
    }
    if !a.head_dim.is_multiple_of(2) || a.num_attention_heads.saturating_mul(a.head_dim) > 1 << 28 {
        return wrong(format!("head_dim is {}", a.head_dim));
    }
    if !(a.rms_norm_eps >= 0.0 && a.rms_norm_eps.is_finite()) {
        return wrong(format!("rms_norm_eps is {}", a.rms_norm_eps));
    }
    if !(a.rope_theta > 1.0 && a.rope_theta.is_finite()) {
        return wrong(format!("rope_theta is {}", a.rope_theta));
    }
    if rules.hidden_layers.is_empty() {
        return wrong("the forward rules take no hidden state".into());
    }
    if let Some(layer) = rules
        .hidden_layers
        .iter()
        .find(|l| **l > a.num_hidden_layers)
    {
        return wrong(format!(
            "hidden_layers has {layer}; with {} layers it is 0 to {0}",
            a.num_hidden_layers
        ));
    }
    if rules.pad_rows == Qwen3PadRows::Drop && rules.mask == EncoderMask::None {
        return wrong("where pad rows are dropped, the mask changes nothing and is `pads`".into());
    }
    Ok(())
}

/// One layer's weights. Within a head of queries or keys the dimensions lie in the order of [`neighbours`].
#[derive(Clone)]
struct Layer {
    attention_norm: Tensor,
    q: Packed,
    k: Packed,
    v: Packed,
    q_norm: Tensor,
    k_norm: Tensor,
    out: Packed,
    feed_forward_norm: Tensor,
    gate: Packed,
    up: Packed,
    down: Packed,
}

impl Layer {
    fn load(
        a: &Qwen3Architecture,
        weights: &Weights,
        layer: usize,
        residency: Residency,
    ) -> Result<Self, Error> {
        let (c, f, d) = (a.hidden_size, a.intermediate_size, a.head_dim);
        let (queries, keys) = (a.num_attention_heads * d, a.num_key_value_heads * d);
        let weights = weights.pp("layers").pp(layer);
        let get = |name: &str, shape: &[usize]| weights.pp(name).get(shape, "weight");
        let ordered = |tensor: Tensor, order: Vec<u32>| {
            tensor.index_select(&Tensor::new(order, tensor.device())?, 0)
        };
        let heads = |name: &str, heads: usize| -> Result<Packed, Error> {
            let rows = get(name, &[heads * d, c])?;
            Ok(residency.matrix(&ordered(rows, rows_of_neighbours(heads, d))?)?)
        };
        let matrix = |name: &str, shape: &[usize]| -> Result<Packed, Error> {
            Ok(residency.matrix(&get(name, shape)?)?)
        };
        let norm =
            |name: &str| -> Result<Tensor, Error> { Ok(ordered(get(name, &[d])?, neighbours(d))?) };
        Ok(Self {
            attention_norm: get("input_layernorm", &[c])?,
            q: heads("self_attn.q_proj", a.num_attention_heads)?,
            k: heads("self_attn.k_proj", a.num_key_value_heads)?,
            v: matrix("self_attn.v_proj", &[keys, c])?,
            q_norm: norm("self_attn.q_norm")?,
            k_norm: norm("self_attn.k_norm")?,
            out: matrix("self_attn.o_proj", &[c, queries])?,
            feed_forward_norm: get("post_attention_layernorm", &[c])?,
            gate: matrix("mlp.gate_proj", &[f, c])?,
            up: matrix("mlp.up_proj", &[f, c])?,
            down: matrix("mlp.down_proj", &[c, f])?,
        })
    }
}

/// A model, ready to run.
pub(super) struct Qwen3Encoder {
    network: Qwen3Network,
    /// By canonical name.
    weights: Weights,
    /// Empty if layers are read when needed.
    resident: Vec<Layer>,
    final_norm: Option<Tensor>,
}

impl Qwen3Encoder {
    pub(super) fn load(
        network: &Qwen3Network,
        weights: &Weights,
        residency: Residency,
    ) -> Result<Self, Error> {
        let architecture = &network.architecture;
        let count = match residency {
            Residency::Resident => depth(network),
            Residency::Streamed => 0,
        };
        let resident = (0..count)
            .map(|layer| Layer::load(architecture, weights, layer, residency))
            .collect::<Result<_, _>>()?;
        let norm = || weights.get(&[architecture.hidden_size], names::FINAL_NORM);
        Ok(Self {
            resident,
            final_norm: network.forward.final_norm.then(norm).transpose()?,
            network: network.clone(),
            weights: weights.clone(),
        })
    }
}

impl LoadedNetwork for Qwen3Encoder {
    fn encode(&self, captions: &[Tokens], stop: Stop) -> Result<Vec<Encoded>, Error> {
        check_vocabulary(captions, self.network.architecture.vocab_size)?;
        let batches = batches_of(self.sequences(captions));
        let mut states = batches
            .iter()
            .map(|batch| self.embed(batch))
            .collect::<Result<Vec<_>, _>>()?;
        let angles = batches
            .iter()
            .zip(&states)
            .map(|(batch, x)| Angles::new(&self.network.architecture, &batch.positions(), x))
            .collect::<Result<Vec<_>, _>>()?;
        // By how many layers they come after; those that are taken, of each batch.
        let mut taken: Vec<Vec<Tensor>> = vec![Vec::new(); depth(&self.network) + 1];
        self.take(&mut taken[0], 0, &states)?;
        for layer in 0..depth(&self.network) {
            let block = self.layer(layer)?;
            for ((batch, angles), x_rc) in batches.iter().zip(&angles).zip(&mut states) {
                go_on(stop)?;
                *x_rc = self.forward(&block, batch, angles, x_rc)?;
            }
            self.take(&mut taken[layer + 1], layer + 1, &states)?;
        }
        let mut encoded = vec![Encoded::default(); captions.len()];
        for (at, batch) in batches.iter().enumerate() {
            for (start, sequence) in batch.starts() {
                let rows = |layer: &usize| taken[*layer][at].narrow(0, start, sequence.ids.len());
                let layers = self.network.forward.hidden_layers.iter();
                let parts = layers.map(rows).collect::<Result<Vec<_>, _>>()?;
                encoded[sequence.caption].hidden = Some(match parts.as_slice() {
                    [single] => single.contiguous()?,
                    // Side by side, in the recipe's order.
                    several => Tensor::cat(several, D::Minus1)?,
                });
            }
        }
        Ok(encoded)
    }

    fn rows(&self, tokens: &Tokens) -> usize {
        self.network.forward.pad_rows.of(tokens)
    }
}

impl Qwen3Encoder {
    fn sequences(&self, captions: &[Tokens]) -> Vec<Sequence> {
        let rules = &self.network.forward;
        let sequence = |(caption, tokens): (usize, &Tokens)| {
            let rows = self.rows(tokens);
            Sequence {
                caption,
                ids: tokens.ids[..rows].to_vec(),
                keys: match rules.mask {
                    EncoderMask::None => rows,
                    EncoderMask::Pads => tokens.count,
                },
            }
        };
        captions.iter().enumerate().map(sequence).collect()
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor, Error> {
        let architecture = &self.network.architecture;
        let size = (architecture.vocab_size, architecture.hidden_size);
        let rows = self.weights.rows(size, names::EMBEDDING, &batch.ids())?;
        Ok(rows.to_dtype(self.weights.activations())?)
    }

    /// Keeps the states behind so many layers, if they are taken.
    fn take(&self, kept: &mut Vec<Tensor>, layers: usize, states: &[Tensor]) -> Result<(), Error> {
        if !self.network.forward.hidden_layers.contains(&layers) {
            return Ok(());
        }
        for x_rc in states {
            kept.push(match &self.final_norm {
                Some(weight) => self.norm(x_rc, weight)?,
                None => x_rc.clone(),
            });
        }
        Ok(())
    }

    fn kernels(&self) -> &Kernels {
        self.weights.kernels()
    }

    fn layer(&self, layer: usize) -> Result<Layer, Error> {
        match self.resident.get(layer) {
            Some(layer) => Ok(layer.clone()),
            None => Layer::load(
                &self.network.architecture,
                &self.weights,
                layer,
                Residency::Streamed,
            ),
        }
    }

    fn forward(
        &self,
        layer: &Layer,
        batch: &Batch,
        angles: &Angles,
        x_rc: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let (a, kernels) = (&self.network.architecture, self.kernels());
        let y_rc = self.norm(x_rc, &layer.attention_norm)?;
        let heads = |weight: &Packed, heads: usize| {
            let y = weight.linear(kernels, &y_rc, None)?;
            y.reshape((y.dim(0)?, heads, a.head_dim))
        };
        let turned = |x: Tensor, norm| angles.turn(kernels, &self.norm(&x, norm)?);
        let q = turned(heads(&layer.q, a.num_attention_heads)?, &layer.q_norm)?;
        let k = turned(heads(&layer.k, a.num_key_value_heads)?, &layer.k_norm)?;
        let v = heads(&layer.v, a.num_key_value_heads)?;
        let attend = |group: &_, q: &_, k: &_, v: &_| causal(kernels, group, q, k, v);
        let y_rc = batch.grouped_attention(&q, [&k, &v], attend)?;
        let x_rc = layer.out.linear_onto(kernels, x_rc, &y_rc, None)?;
        let y_rc = self.norm(&x_rc, &layer.feed_forward_norm)?;
        let inward = Inward::Gated {
            gate: &layer.gate,
            up: &layer.up,
        };
        let outward = (&layer.down, None);
        a.hidden_act
            .feed_forward(kernels, (&x_rc, &y_rc), inward, outward)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        let eps = self.network.architecture.rms_norm_eps;
        rms_norm(self.kernels(), x, Some(weight), eps)
    }
}
