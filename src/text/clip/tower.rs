//! The CLIP text tower.
//!
//! Pre-norm transformer with causal attention and learned positions (Radford et al. 2021). Follows
//! `CLIPTextModelWithProjection` of transformers, whose `hidden_states` has one entry more than there are
//! layers: `[0]` is the embeddings, `[i]` what layer `i` gives, before the final norm.
//!
//! Shapes: r rows of a batch (`batch.rs`), c width of the residual stream, i width of the MLP, h heads,
//! d width of a head.

use std::ops::Range;

use candle_core::Tensor;

use super::plan::TowerPlan;
use super::{ClipTextArchitecture, ClipTextNetwork, PooledRule, names};
use crate::monitor::Stop;
use crate::nn::weights::Weights;
use crate::nn::{Inward, Packed, layer_norm, linear};
use crate::text::batch::{Batch, Sequence, batches_of, causal, regroup};
use crate::text::check::check_vocabulary;
use crate::text::spec::EncoderMask;
use crate::text::{Encoded, Error, LoadedNetwork, Residency, Tokens};

/// One layer's weights.
#[derive(Clone)]
struct Block {
    norm1: [Tensor; 2],
    /// Queries, keys and values on top of each other: `[3 c, c]` and `[3 c]`.
    qkv: (Packed, Tensor),
    out: (Packed, Tensor),
    norm2: [Tensor; 2],
    fc1: (Packed, Tensor),
    fc2: (Packed, Tensor),
}

impl Block {
    fn load(
        architecture: &ClipTextArchitecture,
        weights: &Weights,
        layer: usize,
        residency: Residency,
    ) -> Result<Self, Error> {
        let (c, i) = (architecture.hidden_size, architecture.intermediate_size);
        let weights = weights.pp("text_model.encoder.layers").pp(layer);
        let pair = |name: &str, shape: &[usize]| -> Result<[Tensor; 2], Error> {
            let weights = weights.pp(name);
            Ok([
                weights.get(shape, "weight")?,
                weights.get(&shape[..1], "bias")?,
            ])
        };
        let [q, k, v] =
            ["q_proj", "k_proj", "v_proj"].map(|n| pair(&format!("self_attn.{n}"), &[c, c]));
        let (q, k, v) = (q?, k?, v?);
        let stack = |at: usize| Tensor::cat(&[&q[at], &k[at], &v[at]], 0);
        let dense = |[w, b]: [Tensor; 2]| -> Result<_, Error> { Ok((residency.matrix(&w)?, b)) };
        Ok(Self {
            norm1: pair("layer_norm1", &[c])?,
            qkv: dense([stack(0)?, stack(1)?])?,
            out: dense(pair("self_attn.out_proj", &[c, c])?)?,
            norm2: pair("layer_norm2", &[c])?,
            fc1: dense(pair("mlp.fc1", &[i, c])?)?,
            fc2: dense(pair("mlp.fc2", &[c, i])?)?,
        })
    }
}

/// A tower, ready to run.
pub(super) struct ClipTextTower {
    network: ClipTextNetwork,
    plan: TowerPlan,
    /// By canonical name.
    weights: Weights,
    /// Empty if layers are read when needed.
    resident: Vec<Block>,
    positions: Tensor,
    final_norm: Option<[Tensor; 2]>,
    projection: Option<Tensor>,
}

impl ClipTextTower {
    pub(super) fn load(
        network: &ClipTextNetwork,
        weights: &Weights,
        residency: Residency,
    ) -> Result<Self, Error> {
        let architecture = &network.architecture;
        let plan = TowerPlan::of(network)?;
        let c = architecture.hidden_size;
        let depth = match residency {
            Residency::Resident => plan.depth,
            Residency::Streamed => 0,
        };
        // Layers behind the last that is asked for are not even read.
        let resident = (0..depth)
            .map(|layer| Block::load(architecture, weights, layer, residency))
            .collect::<Result<_, _>>()?;
        let norm = |leaf: &str| weights.get(&[c], &format!("text_model.final_layer_norm.{leaf}"));
        let final_norm = if plan.norms {
            Some([norm("weight")?, norm("bias")?])
        } else {
            None
        };
        let projection = match architecture.projection_dim {
            Some(columns) if network.forward.projection => {
                Some(weights.get(&[columns, c], names::PROJECTION)?)
            }
            _ => None,
        };
        let positions = weights.get(
            &[architecture.max_position_embeddings, c],
            "text_model.embeddings.position_embedding.weight",
        )?;
        Ok(Self {
            resident,
            positions: positions.to_dtype(weights.activations())?,
            final_norm,
            projection,
            plan,
            network: network.clone(),
            weights: weights.clone(),
        })
    }
}

impl LoadedNetwork for ClipTextTower {
    // The largest of these are done with many captions in minutes.
    fn encode(&self, captions: &[Tokens], _: Stop) -> Result<Vec<Encoded>, Error> {
        let Some(chunks) = &self.network.forward.chunks else {
            return self.encode_windows(captions);
        };
        let windows: Vec<Vec<Tokens>> = captions.iter().map(|t| chunks.windows(t)).collect();
        let mut encoded = self.encode_windows(&windows.concat())?.into_iter();
        let join = |of_one: &Vec<Tokens>| {
            let outputs: Vec<Encoded> = encoded.by_ref().take(of_one.len()).collect();
            Ok(chunks.joined(&outputs)?)
        };
        windows.iter().map(join).collect()
    }
}

impl ClipTextTower {
    /// Encodes sequences that fit into the table of positions.
    fn encode_windows(&self, captions: &[Tokens]) -> Result<Vec<Encoded>, Error> {
        let pooled_rows = self.check_tokens(captions)?;
        let shortest: Vec<usize> = pooled_rows.iter().map(|row| row + 1).collect();
        let longest: Vec<usize> = match self.plan.hidden {
            Some(_) => captions.iter().map(|t| t.ids.len()).collect(),
            // Without a sequence nobody reads a row behind the pooled one.
            None => shortest.clone(),
        };
        let batches = batches_of(self.sequences(captions, &longest));
        let states = batches
            .iter()
            .map(|p| self.embed(p))
            .collect::<Result<Vec<_>, _>>()?;
        let last = self.plan.hidden.unwrap_or(self.plan.depth);
        let states = self.run(&batches, states, 0..last)?;

        let mut encoded = vec![Encoded::default(); captions.len()];
        if self.plan.hidden.is_some() {
            self.keep(&batches, &states, &mut encoded)?;
        }
        if self.plan.pools {
            let (batches, states) = if last < self.plan.depth {
                // Later layers keep nothing else: they are computed no further than to the pooled row.
                let short = batches_of(self.sequences(captions, &shortest));
                let states = regroup(&batches, &states, &short)?;
                let states = self.run(&short, states, last..self.plan.depth)?;
                (short, states)
            } else {
                (batches, states)
            };
            for (batch, x_rc) in batches.iter().zip(&states) {
                self.pool(batch, x_rc, &pooled_rows, &mut encoded)?;
            }
        }
        Ok(encoded)
    }

    /// The residual stream of each batch after `layers`.
    fn run(
        &self,
        batches: &[Batch],
        mut states: Vec<Tensor>,
        layers: Range<usize>,
    ) -> Result<Vec<Tensor>, Error> {
        for layer in layers {
            let block = self.block(layer)?;
            for (batch, x_rc) in batches.iter().zip(&mut states) {
                *x_rc = self.layer(&block, batch, x_rc)?;
            }
        }
        Ok(states)
    }

    /// Gives each caption its rows of the hidden state.
    fn keep(
        &self,
        batches: &[Batch],
        states: &[Tensor],
        encoded: &mut [Encoded],
    ) -> Result<(), Error> {
        for (batch, x_rc) in batches.iter().zip(states) {
            let x_rc = if self.network.forward.final_norm {
                self.normed(x_rc)?
            } else {
                x_rc.clone()
            };
            for (start, sequence) in batch.starts() {
                encoded[sequence.caption].hidden =
                    Some(x_rc.narrow(0, start, sequence.ids.len())?.contiguous()?);
            }
        }
        Ok(())
    }

    /// Checks the tokens and gives the row that each caption is pooled at.
    fn check_tokens(&self, captions: &[Tokens]) -> Result<Vec<usize>, Error> {
        let architecture = &self.network.architecture;
        check_vocabulary(captions, architecture.vocab_size)?;
        let limit = architecture.max_position_embeddings;
        let mut rows = Vec::with_capacity(captions.len());
        for (caption, tokens) in captions.iter().enumerate() {
            if tokens.ids.len() > limit {
                return Err(Error::TooLong {
                    caption,
                    tokens: tokens.ids.len(),
                    limit,
                });
            }
            let row = pooled_row(
                self.network.forward.pooled,
                architecture.eos_token_id,
                tokens,
            );
            rows.push(row.map_err(|id| {
                Error::OfKind(format!(
                    "caption {caption} has no end-of-text token {id} to pool at: the tokenizer does not belong to \
                     this encoder"
                ))
            })?);
        }
        Ok(rows)
    }

    /// The first `rows` of each caption: no row sees a later one.
    fn sequences(&self, captions: &[Tokens], rows: &[usize]) -> Vec<Sequence> {
        let sequence = |(caption, (tokens, &rows)): (usize, (&Tokens, &usize))| Sequence {
            caption,
            ids: tokens.ids[..rows].to_vec(),
            keys: match self.network.forward.mask {
                EncoderMask::None => rows,
                EncoderMask::Pads => tokens.count.min(rows),
            },
        };
        captions
            .iter()
            .zip(rows)
            .enumerate()
            .map(sequence)
            .collect()
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor, Error> {
        let architecture = &self.network.architecture;
        let tokens_rc = self.weights.rows(
            (architecture.vocab_size, architecture.hidden_size),
            names::TABLE,
            &batch.ids(),
        )?;
        let tokens_rc = tokens_rc.to_dtype(self.weights.activations())?;
        let positions = Tensor::new(batch.positions(), self.positions.device())?;
        Ok((tokens_rc + self.positions.index_select(&positions, 0)?)?)
    }

    fn block(&self, layer: usize) -> Result<Block, Error> {
        match self.resident.get(layer) {
            Some(block) => Ok(block.clone()),
            None => Block::load(
                &self.network.architecture,
                &self.weights,
                layer,
                Residency::Streamed,
            ),
        }
    }

    fn layer(&self, block: &Block, batch: &Batch, x_rc: &Tensor) -> candle_core::Result<Tensor> {
        let architecture = &self.network.architecture;
        let (c, heads) = (architecture.hidden_size, architecture.num_attention_heads);
        let kernels = self.weights.kernels();
        let norm = |x: &Tensor, [w, b]: &[Tensor; 2]| {
            layer_norm(kernels, x, Some(w), Some(b), architecture.layer_norm_eps)
        };

        let (qkv, b) = &block.qkv;
        let qkv = qkv.linear(kernels, &norm(x_rc, &block.norm1)?, Some(b))?;
        let qkv_r3hd = qkv.reshape((qkv.dim(0)?, 3, heads, c / heads))?;
        let y_rc = batch.attention(&qkv_r3hd, |group, q, k, v| causal(kernels, group, q, k, v))?;
        let (out, b) = &block.out;
        let x_rc = out.linear_onto(kernels, x_rc, &y_rc, Some(b))?;
        let y_rc = norm(&x_rc, &block.norm2)?;
        let ((fc1, b1), (fc2, b2)) = (&block.fc1, &block.fc2);
        let (inward, outward) = (Inward::Plain(fc1, Some(b1)), (fc2, Some(b2)));
        let activation = architecture.hidden_act;
        activation.feed_forward(kernels, (&x_rc, &y_rc), inward, outward)
    }

    fn normed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let kernels = self.weights.kernels();
        match &self.final_norm {
            Some([w, b]) => layer_norm(
                kernels,
                x,
                Some(w),
                Some(b),
                self.network.architecture.layer_norm_eps,
            ),
            None => Ok(x.clone()),
        }
    }

    fn pool(
        &self,
        batch: &Batch,
        x_rc: &Tensor,
        rows: &[usize],
        encoded: &mut [Encoded],
    ) -> candle_core::Result<()> {
        let at: Vec<u32> = batch
            .starts()
            // Beyond every row, so that the lookup fails instead of this.
            .map(|(start, s)| u32::try_from(start + rows[s.caption]).unwrap_or(u32::MAX))
            .collect();
        let at = Tensor::new(at, x_rc.device())?;
        let mut pooled = self.normed(&x_rc.index_select(&at, 0)?)?;
        if let Some(projection) = &self.projection {
            pooled = linear(self.weights.kernels(), &pooled, projection, None)?;
        }
        for (i, sequence) in batch.sequences.iter().enumerate() {
            encoded[sequence.caption].pooled = Some(pooled.get(i)?.contiguous()?);
        }
        Ok(())
    }
}

/// The row that `rule` pools at; the id that was looked for if there is none.
fn pooled_row(rule: PooledRule, eos: Option<u32>, tokens: &Tokens) -> Result<usize, u32> {
    let first = |id: u32| tokens.ids.iter().position(|&other| other == id);
    let largest = || {
        // The first of equals, as `torch.argmax`: pads may have the same id.
        let max = tokens.ids.iter().max().copied().unwrap_or_default();
        first(max).unwrap_or_default()
    };
    match rule {
        PooledRule::None => Ok(0),
        PooledRule::ArgmaxId => Ok(largest()),
        // transformers: 2 is the id that configurations wrongly had when the rule was argmax.
        PooledRule::ConfigEos => Ok(match eos {
            None | Some(2) => largest(),
            // `argmax` of no match is row 0.
            Some(id) => first(id).unwrap_or(0),
        }),
        PooledRule::FirstEos => {
            // A tokenizer always ends the sequence with its end token, before the pads.
            let id = eos.unwrap_or_else(|| tokens.ids[tokens.count - 1]);
            first(id).ok_or(id)
        }
    }
}
