//! Adapters on a tape, for one forward and backward pass.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Adapter, AdapterSet, Beneath};
use crate::autograd::{Gradients, LoraValues, Tape, Value};
use crate::nn::Kernels;
use crate::nn::dropout::mask;
use crate::nn::flat::accumulate_all;
use crate::rng::{Rng, Stream};

/// Zeroing of an adapter's inputs with a probability, the others scaled up. The numbers depend on these three fields
/// and the adapter's place among the names only, so a block that is run again for its gradients drops the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share of inputs that is zeroed, in [0, 1).
    pub probability: f64,
    /// The experiment's seed.
    pub seed: u64,
    /// A number that no other pass of the experiment has: counts micro-batches.
    pub pass: u64,
}

impl Dropout {
    /// The key of an adapter's numbers.
    fn key(self, adapter: u64) -> [u8; 32] {
        Rng::key(self.seed, Stream::AdapterDropout, self.pass, adapter)
    }
}

/// What a forward pass needs beside its inputs: the adapters as leaves of one tape, their dropout, and which blocks
/// keep their inputs only and are run again for their gradients. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    adapters: Arc<BTreeMap<String, BoundAdapter>>,
    beneath: Beneath,
    dropout: Option<Dropout>,
    recompute: Recompute,
    /// The tape's.
    kernels: Kernels,
}

#[derive(Clone, Debug)]
struct BoundAdapter {
    place: Adapter,
    number: u64,
    a: Value,
    b: Value,
}

/// Which blocks keep only their inputs on the tape (less memory, one more forward of the block).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Every block keeps what its gradients read.
    #[default]
    Never,
    /// Every block is run again.
    EveryBlock,
    /// The blocks with these numbers, from 0 in the order of the network, are run again.
    Blocks(BTreeSet<usize>),
}

impl AdapterSet {
    /// A copy of [`Self::values`] on a device: `[n]` in f32.
    ///
    /// # Errors
    /// If the device has no room for them.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(self.values(), self.values().len(), device)
    }

    /// Puts the adapters on a tape as leaves, in `dtype` on `device`.
    ///
    /// # Errors
    /// If the dropout's probability is not in [0, 1), or the device fails.
    pub fn bind(
        &self,
        tape: &Tape,
        dtype: DType,
        device: &Device,
        dropout: Option<Dropout>,
    ) -> Result<Bound> {
        self.bind_to(&self.to_device(device)?, tape, dtype, dropout)
    }

    /// As [`Self::bind`], with `values` `[n]` in place of the set's own numbers, on their device. Where `dtype` is theirs
    /// the leaves are views of them, so they may be edited only when the tape is done with.
    ///
    /// # Errors
    /// As there, or if there are too few values.
    pub fn bind_to(
        &self,
        values: &Tensor,
        tape: &Tape,
        dtype: DType,
        dropout: Option<Dropout>,
    ) -> Result<Bound> {
        if let Some(Dropout { probability, .. }) = dropout
            && !(0.0..1.0).contains(&probability)
        {
            bail!(
                "adapter dropout: expected a probability of at least 0 and below 1, found {probability}"
            );
        }
        // All at once: one cast, of which the leaves below are views.
        let values = values.to_dtype(dtype)?;
        let mut adapters = BTreeMap::new();
        for (number, place) in self.adapters().iter().enumerate() {
            let leaf = |range: Range<usize>, shape: Vec<usize>| {
                let tensor = values.narrow(0, range.start, range.len())?.reshape(shape)?;
                Ok::<_, candle_core::Error>(tape.leaf(tensor))
            };
            let on_tape = BoundAdapter {
                number: number as u64,
                a: leaf(place.a(), place.a_shape())?,
                b: leaf(place.b(), place.b_shape())?,
                place: place.clone(),
            };
            adapters.insert(place.name.clone(), on_tape);
        }
        // Where nothing is dropped there is no mask: one of ones would cost a product for each adapter.
        let dropout = dropout.filter(|dropout| dropout.probability > 0.0);
        Ok(Bound {
            adapters: Arc::new(adapters),
            beneath: Beneath::default(),
            dropout,
            recompute: Recompute::Never,
            kernels: tape.kernels().clone(),
        })
    }
}

impl Bound {
    /// No adapters: the base model as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// The same, with some blocks run again for their gradients.
    #[must_use]
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        self.recompute = recompute;
        self
    }

    /// The same, above a LoRA that is not trained.
    #[must_use]
    pub fn over(mut self, beneath: &Beneath) -> Self {
        self.beneath = beneath.clone();
        self
    }

    /// `y`, a linear's result on `x`, with what lies beneath the adapters on it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device fails.
    pub fn beneath(&self, tape: &Tape, linear: &str, x: &Value, y: Value) -> Result<Value> {
        self.beneath.add(tape, linear, x, y)
    }

    /// Whether block `i` keeps its inputs only.
    pub fn recomputes(&self, i: usize) -> bool {
        match &self.recompute {
            Recompute::Never => false,
            Recompute::EveryBlock => true,
            Recompute::Blocks(blocks) => blocks.contains(&i),
        }
    }

    /// The adapter on a linear or convolution whose input is `x`, if there is one.
    ///
    /// # Errors
    /// If the device fails.
    pub fn on(&self, linear: &str, x: &Value) -> Result<Option<LoraValues>> {
        let Some(adapter) = self.adapters.get(linear) else {
            return Ok(None);
        };
        let drawn = |dropout: Dropout| {
            let key = dropout.key(adapter.number);
            mask(&self.kernels, key, dropout.probability, x.tensor())
        };
        Ok(Some(LoraValues {
            a: adapter.a.clone(),
            b: adapter.b.clone(),
            scale: adapter.place.scale(),
            dropout: self.dropout.map(drawn).transpose()?,
        }))
    }

    /// Adds the gradients of all adapters, times `factor`, to `into`, an f32 tensor laid out as [`AdapterSet::values`],
    /// in place. A tensor that the result does not depend on adds nothing.
    ///
    /// # Errors
    /// If `into` is too short, or the device fails.
    pub fn collect(&self, gradients: &mut Gradients, factor: f64, into: &Tensor) -> Result<()> {
        // Gathered first: on a GPU one launch adds those of all adapters.
        let mut found = Vec::with_capacity(2 * self.adapters.len());
        for adapter in self.adapters.values() {
            for (leaf, range) in [
                (&adapter.a, adapter.place.a()),
                (&adapter.b, adapter.place.b()),
            ] {
                let gradient = gradients.take(leaf);
                found.extend(gradient.map(|gradient| (range.start, gradient)));
            }
        }
        accumulate_all(&self.kernels, into, &found, factor)
    }
}
