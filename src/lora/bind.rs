//! Adapters on a tape, for one forward and backward pass.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Adapter, AdapterSet, Beneath};
use crate::autograd::{Gradients, LoraValues, Tape, Value};
use crate::nn::Kernels;
use crate::nn::dropout::mask;
use crate::nn::flat::{accumulate_all, gather};
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
    /// Where `a` lies beside those of its neighbours.
    row: Option<Row>,
}

/// The first of an adapter's rows among those of all its neighbours' first factors, `[sum of the ranks, in]`.
#[derive(Clone, Debug)]
struct Row {
    neighbours: Tensor,
    /// Where these begin among all numbers: no other neighbours begin there.
    start: usize,
    at: usize,
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
        // All at once: one pass, of which the leaves are views.
        let (values, places) = if values.dtype() != dtype && tape.kernels().are_there() {
            let (ranges, places) = laid_together(self.adapters());
            let laid = gather(tape.kernels(), values, &ranges, dtype)?;
            (laid, Some(places))
        } else {
            (values.to_dtype(dtype)?, None)
        };
        let leaves = self.leaves(tape, &values, places.as_deref())?;
        // Where nothing is dropped there is no mask: one of ones would cost a product for each adapter.
        let dropout = dropout.filter(|dropout| dropout.probability > 0.0);
        Ok(Bound {
            adapters: Arc::new(leaves),
            beneath: Beneath::default(),
            dropout,
            recompute: Recompute::Never,
            kernels: tape.kernels().clone(),
        })
    }

    /// Views of `values`, in which each adapter is at its place, or all lie as they do in [`Self::values`].
    fn leaves(
        &self,
        tape: &Tape,
        values: &Tensor,
        places: Option<&[Place]>,
    ) -> Result<BTreeMap<String, BoundAdapter>> {
        let view = |start: usize, shape: Vec<usize>| {
            let count = shape.iter().product();
            values.narrow(0, start, count)?.reshape(shape)
        };
        let leaf = |(number, adapter): (usize, &Adapter)| {
            let place = places.map(|places| &places[number]);
            let (a, b) = place.map_or((adapter.a().start, adapter.b().start), |at| (at.a, at.b));
            let row = |at: &Place| {
                let (start, rows) = at.neighbours;
                Ok::<_, candle_core::Error>(Row {
                    neighbours: view(start, vec![rows, adapter.inputs])?,
                    start,
                    at: (at.a - start) / adapter.inputs,
                })
            };
            let on_tape = BoundAdapter {
                number: number as u64,
                a: tape.leaf(view(a, adapter.a_shape())?),
                b: tape.leaf(view(b, adapter.b_shape())?),
                // Of a convolution there are no rows that a linear would read.
                row: place
                    .filter(|_| adapter.kernel.is_none())
                    .map(row)
                    .transpose()?,
                place: adapter.clone(),
            };
            Ok((adapter.name.clone(), on_tape))
        };
        self.adapters().iter().enumerate().map(leaf).collect()
    }
}

/// Where the factors of an adapter begin in a copy of all numbers in which the first factors of neighbours lie together, so that linears
/// of one input read them as one matrix.
struct Place {
    a: usize,
    b: usize,
    /// Where the first factors of its neighbours begin, its own among them, and how many rows they have.
    neighbours: (usize, usize),
}

/// The parts of [`AdapterSet::values`] in the order of the copy, and where each adapter is in it.
fn laid_together(adapters: &[Adapter]) -> (Vec<Range<usize>>, Vec<Place>) {
    let mut order: Vec<(Neighbours<'_>, usize)> = (adapters.iter().enumerate())
        .map(|(number, adapter)| (neighbours(adapter), number))
        .collect();
    order.sort_unstable();
    let (mut ranges, mut end) = (Vec::with_capacity(2 * adapters.len()), 0);
    let mut take = |range: Range<usize>| {
        let start = end;
        end += range.len();
        ranges.push(range);
        start
    };
    let mut places: Vec<(usize, Place)> = Vec::with_capacity(adapters.len());
    for together in order.chunk_by(|left, right| left.0 == right.0) {
        let each = || together.iter().map(|&(_, number)| &adapters[number]);
        let rows = each().map(|adapter| adapter.rank).sum();
        let firsts: Vec<usize> = each().map(|adapter| take(adapter.a())).collect();
        for (&(_, number), &a) in together.iter().zip(&firsts) {
            let place = Place {
                a,
                b: take(adapters[number].b()),
                neighbours: (firsts[0], rows),
            };
            places.push((number, place));
        }
    }
    places.sort_unstable_by_key(|&(number, _)| number);
    (ranges, places.into_iter().map(|(_, place)| place).collect())
}

/// Equal for adapters on linears of one module that have as many inputs, which may read the same. A convolution's window is the second.
type Neighbours<'a> = (&'a str, Option<usize>, usize);

fn neighbours(adapter: &Adapter) -> Neighbours<'_> {
    let module = adapter
        .name
        .rsplit_once('.')
        .map_or("", |(module, _)| module);
    (module, adapter.kernel, adapter.inputs)
}

impl Bound {
    /// No adapters: the base model as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether no module has an adapter.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
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

    /// Whether [`Self::beneath`] adds something to this linear's result.
    pub fn has_beneath(&self, linear: &str) -> bool {
        self.beneath.is_on(linear)
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

    /// As [`Self::on`] for each of several linears whose input is `x`; and the adapters' `a` as one matrix, if they lie one behind the other.
    ///
    /// # Errors
    /// As there.
    pub fn on_each(
        &self,
        linears: &[String],
        x: &Value,
    ) -> Result<(Vec<Option<LoraValues>>, Option<Tensor>)> {
        let each = linears.iter().map(|name| self.on(name, x));
        Ok((each.collect::<Result<_>>()?, self.stacked(linears)?))
    }

    fn stacked(&self, linears: &[String]) -> Result<Option<Tensor>> {
        let found = linears.iter().filter_map(|name| self.adapters.get(name));
        let found: Vec<&BoundAdapter> = found.collect();
        let rows = found.iter().map(|adapter| adapter.row.as_ref());
        let Some(rows) = rows.collect::<Option<Vec<&Row>>>() else {
            return Ok(None);
        };
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let mut end = first.at;
        for (adapter, row) in found.iter().zip(&rows) {
            if row.start != first.start || row.at != end {
                return Ok(None);
            }
            end += adapter.place.rank;
        }
        first
            .neighbours
            .narrow(0, first.at, end - first.at)
            .map(Some)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::LinearShape;

    /// Names, inputs and ranks; outputs are 3. The last is of a convolution.
    const ADAPTERS: [(&str, usize, usize); 8] = [
        ("block.attn.to_k", 5, 2),
        ("block.attn.to_out.0", 5, 1),
        ("block.attn.to_q", 5, 3),
        ("block.attn.to_v", 5, 4),
        ("block.cross.to_k", 7, 2),
        ("block.cross.to_q", 5, 2),
        ("block.cross.to_v", 7, 2),
        ("conv", 5, 2),
    ];

    fn set() -> AdapterSet {
        let adapters = ADAPTERS.map(|(name, inputs, rank)| {
            let linear = LinearShape {
                name: name.to_owned(),
                outputs: 3,
                inputs,
                kernel: (name == "conv").then_some(2),
                reached: true,
            };
            (linear, rank, 1.0)
        });
        let mut set = AdapterSet::zeroed(adapters).expect("a set");
        let count = set.values().len();
        let values = (0..count).map(|i| i as f32).collect();
        set.set_values(values).expect("values");
        set
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32")
    }

    #[test]
    fn adapters_keep_their_numbers_where_neighbours_lie_together() {
        let (set, kernels) = (set(), Kernels::NONE);
        let (tape, values) = (Tape::recording(&kernels), set.to_device(&Device::Cpu));
        let (ranges, places) = laid_together(set.adapters());
        let laid = gather(&kernels, &values.expect("values"), &ranges, DType::F32).expect("laid");
        assert_eq!(laid.elem_count(), set.values().len());
        let leaves = set.leaves(&tape, &laid, Some(&places)).expect("leaves");
        for adapter in set.adapters() {
            let found = &leaves[&adapter.name];
            assert_eq!(found.a.dims(), adapter.a_shape());
            assert_eq!(numbers(found.a.tensor()), set.values()[adapter.a()]);
            assert_eq!(numbers(found.b.tensor()), set.values()[adapter.b()]);
        }
        let bound = Bound {
            adapters: Arc::new(leaves),
            ..Bound::none()
        };
        let stacked = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            bound
                .stacked(&names)
                .expect("views")
                .map(|t| (t.dims().to_vec(), numbers(&t)))
        };
        let rows = |names: &[&str]| {
            let each = names
                .iter()
                .map(|name| set.values()[set.get(name).expect("one").a()].to_vec());
            each.collect::<Vec<_>>().concat()
        };
        let own = ["block.attn.to_k", "block.attn.to_q", "block.attn.to_v"];
        assert_eq!(stacked(&own), Some((vec![9, 5], rows(&own))));
        // One that has no adapter is left out.
        let some = ["block.attn.to_k", "elsewhere", "block.attn.to_q"];
        let both = ["block.attn.to_k", "block.attn.to_q"];
        assert_eq!(stacked(&some), Some((vec![5, 5], rows(&both))));
        let seen = ["block.cross.to_k", "block.cross.to_v"];
        assert_eq!(stacked(&seen), Some((vec![4, 7], rows(&seen))));
        // In another order, of two modules, or with another between them they do not lie as asked.
        for apart in [
            ["block.attn.to_q", "block.attn.to_k"],
            ["block.attn.to_k", "block.attn.to_v"],
            ["block.attn.to_v", "block.cross.to_q"],
            ["block.attn.to_v", "conv"],
        ] {
            assert_eq!(stacked(&apart), None, "{apart:?}");
        }
        assert_eq!(stacked(&["elsewhere"]), None);
    }
}
