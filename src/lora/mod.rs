//! Low-rank adapters: y = W x + b + (alpha / rank) * B (A x), with W frozen (Hu et al. 2021, arXiv 2106.09685).
//! On a convolution, A is a convolution to `rank` channels with the same window, stride and padding, and B one of a
//! single pixel, as in PEFT.
//!
//! An [`AdapterSet`] is ordered by module name and keeps all its numbers in one flat f32 buffer (the masters),
//! so an optimizer sees one slice of parameters and one of gradients. [`AdapterSet::bind`] puts them on a tape
//! for one forward pass; [`Bound::collect`] brings the gradients back into a flat buffer of the same layout.
//!
//! - [`targets`]: which linears of a network get an adapter, by pattern
//! - [`bind`]: adapters on a tape
//! - [`Beneath`]: a LoRA that lies frozen below those that are trained
//! - [`file`]: the bytes of a LoRA file in the naming of diffusers and PEFT
//!
//! This module knows no family: names, shapes and presets come in as data. It opens no file.

mod beneath;
pub mod bind;
pub mod file;
pub mod formats;
pub mod metadata;
mod peft;
mod seal;
mod sum;
pub mod targets;

use std::ops::Range;

pub use beneath::Beneath;
pub use bind::{Bound, Dropout, Recompute};
pub use file::{FileOptions, LoraFile, SaveDtype};
pub use targets::{LinearShape, Preset};

use crate::rng::{Rng, Stream};

/// Why adapters could not be made, read or matched to a network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rank of 0.
    #[error("adapter rank: expected at least 1, found 0")]
    ZeroRank,
    /// An alpha that is no finite number.
    #[error("adapter alpha: expected a finite number, found {0}")]
    Alpha(f64),
    /// A strength that is no finite number.
    #[error("LoRA strength: expected a finite number, found {0}")]
    Strength(f64),
    /// A pattern that no linear's name fits.
    #[error("adapter target `{pattern}` fits none of the {count} linears; near it: {near}")]
    NoSuchTarget {
        /// The pattern as it was given.
        pattern: String,
        /// How many linears the network has.
        count: usize,
        /// Names that look like it.
        near: String,
    },
    /// A pattern that fits only linears whose result is thrown away.
    #[error(
        "adapter target `{0}` fits only linears that do not reach the output, so it could learn nothing; leave it out"
    )]
    Unreached(String),
    /// The list of patterns is empty.
    #[error("adapter targets: expected at least one pattern or preset, found none")]
    NoTargets,
    /// Two adapters are on the same module.
    #[error("adapter on `{0}` is there twice")]
    Duplicate(String),
    /// An adapter for a module that the network does not have.
    #[error("adapter on `{name}`: the network has no such linear; near it: {near}")]
    NoSuchModule {
        /// The adapter's module.
        name: String,
        /// Names that look like it.
        near: String,
    },
    /// An adapter that does not fit its linear.
    #[error(
        "adapter on `{name}`: expected {expected}, found {found}; it was made for another base model"
    )]
    Misfit {
        /// The adapter's module.
        name: String,
        /// Outputs and inputs of the linear.
        expected: String,
        /// Those of the adapter.
        found: String,
    },
    /// Not a LoRA file of a kind that is read here.
    #[error("{origin}: {what}")]
    File {
        /// The file.
        origin: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// One tensor of a LoRA file is wrong.
    #[error("{origin}: tensor `{tensor}`: {what}")]
    FileTensor {
        /// The file.
        origin: String,
        /// The tensor's name.
        tensor: String,
        /// Expected and found.
        what: String,
    },
    /// A LoRA file that is not what plumb wrote.
    #[error(
        "{origin}: {what}: it is damaged, or another program changed it without its hashes; get it anew, or make it again"
    )]
    Damaged {
        /// The file.
        origin: String,
        /// What does not fit.
        what: String,
    },
    /// A number of masters that does not fit the layout.
    #[error("adapter values: expected {expected} numbers, found {found}")]
    ValueCount {
        /// Numbers that A and B of all adapters have.
        expected: usize,
        /// Numbers that were given.
        found: usize,
    },
}

/// Where one adapter's tensors are in the flat buffer. A is [rank, inputs], B is [outputs, rank], of a convolution
/// [rank, inputs, kernel, kernel] and [outputs, rank, 1, 1]; row major, A before B.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The linear's name in the network, such as `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// Rows of A, columns of B; at least 1.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The linear's outputs, or a convolution's output channels.
    pub outputs: usize,
    /// The linear's inputs, or a convolution's input channels.
    pub inputs: usize,
    /// The side of a convolution's window; none for a linear.
    pub kernel: Option<usize>,
    start: usize,
}

impl Adapter {
    /// The shape of A: two dimensions, of a convolution four.
    pub fn a_shape(&self) -> Vec<usize> {
        let window = self.kernel.map_or(vec![], |side| vec![side; 2]);
        [vec![self.rank, self.inputs], window].concat()
    }

    /// The shape of B: two dimensions, of a convolution four, the last two 1.
    pub fn b_shape(&self) -> Vec<usize> {
        let pixel = self.kernel.map_or(vec![], |_| vec![1; 2]);
        [vec![self.outputs, self.rank], pixel].concat()
    }

    /// A's numbers in the flat buffer.
    pub fn a(&self) -> Range<usize> {
        self.start..self.start + self.a_shape().iter().product::<usize>()
    }

    /// B's numbers in the flat buffer, right after A's.
    pub fn b(&self) -> Range<usize> {
        let a_end = self.a().end;
        a_end..a_end + self.outputs * self.rank
    }

    /// `alpha / rank`, the factor of the update.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// All adapters of a network, ordered by module name, with their f32 masters in one buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterSet {
    adapters: Vec<Adapter>,
    values: Vec<f32>,
}

impl AdapterSet {
    /// New adapters on `linears`: A from kaiming-uniform with a = sqrt(5), that is uniform in
    /// +-1/sqrt(inputs) (of a window), and B zero, as PEFT and kohya start. The numbers depend on the seed and on an
    /// adapter's place among the names, on nothing else.
    ///
    /// # Errors
    /// If the rank is 0, alpha is not finite, or a name is there twice.
    pub fn new(linears: &[LinearShape], rank: usize, alpha: f64, seed: u64) -> Result<Self, Error> {
        let mut set = Self::zeroed(linears.iter().map(|linear| (linear.clone(), rank, alpha)))?;
        for (number, adapter) in set.adapters.iter().enumerate() {
            // torch's fan-in: of a convolution all numbers of a window.
            let inputs = adapter.a().len() / adapter.rank;
            let bound = 1.0 / (inputs as f64).sqrt();
            let mut rng = Rng::new(seed, Stream::AdapterInit, 0, number as u64);
            for value in &mut set.values[adapter.a()] {
                *value = ((2.0 * rng.uniform() - 1.0) * bound) as f32;
            }
        }
        Ok(set)
    }

    /// Adapters of the given ranks and alphas, all zero.
    ///
    /// # Errors
    /// If a rank is 0, an alpha is not finite, or a name is there twice.
    pub fn zeroed(
        adapters: impl IntoIterator<Item = (LinearShape, usize, f64)>,
    ) -> Result<Self, Error> {
        // By name, whatever order the network lists them in: an adapter's place decides its random numbers
        // and where a checkpoint has it.
        let mut wanted: Vec<_> = adapters.into_iter().collect();
        wanted.sort_by(|(left, ..), (right, ..)| left.name.cmp(&right.name));
        let mut set = Self::default();
        for (linear, rank, alpha) in wanted {
            if rank == 0 {
                return Err(Error::ZeroRank);
            }
            if !alpha.is_finite() {
                return Err(Error::Alpha(alpha));
            }
            if set
                .adapters
                .last()
                .is_some_and(|last| last.name == linear.name)
            {
                return Err(Error::Duplicate(linear.name));
            }
            let adapter = Adapter {
                name: linear.name,
                rank,
                alpha,
                outputs: linear.outputs,
                inputs: linear.inputs,
                kernel: linear.kernel,
                start: set.values.len(),
            };
            set.values.resize(adapter.b().end, 0.0);
            set.adapters.push(adapter);
        }
        Ok(set)
    }

    /// The adapters in the order of their names.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// The adapter on the module with this name, if it has one.
    pub fn get(&self, name: &str) -> Option<&Adapter> {
        let found = self
            .adapters
            .binary_search_by(|adapter| adapter.name.as_str().cmp(name));
        found.ok().map(|index| &self.adapters[index])
    }

    /// All numbers, adapter after adapter, A before B.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// As [`Self::values`], for the optimizer to step on in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Replaces all numbers, as a checkpoint does.
    ///
    /// # Errors
    /// If their count is not the layout's.
    pub fn set_values(&mut self, values: Vec<f32>) -> Result<(), Error> {
        if values.len() != self.values.len() {
            return Err(Error::ValueCount {
                expected: self.values.len(),
                found: values.len(),
            });
        }
        self.values = values;
        Ok(())
    }

    /// Each tensor's name (`<module>.lora_A.weight`), shape, and range in [`Self::values`], in the buffer's order.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>, Range<usize>)> {
        self.adapters.iter().flat_map(|adapter| {
            let name = |part| format!("{}.lora_{part}.weight", adapter.name);
            [
                (name('A'), adapter.a_shape(), adapter.a()),
                (name('B'), adapter.b_shape(), adapter.b()),
            ]
        })
    }

    /// Checks that every adapter sits on a linear of the network and fits it.
    ///
    /// # Errors
    /// For the first adapter that does not.
    pub fn check(&self, linears: &[LinearShape]) -> Result<(), Error> {
        for adapter in &self.adapters {
            let name = &adapter.name;
            let Some(linear) = linears.iter().find(|linear| linear.name == *name) else {
                let near = targets::near(name, linears.iter().map(|linear| linear.name.as_str()));
                return Err(Error::NoSuchModule {
                    name: name.clone(),
                    near,
                });
            };
            let sides = |outputs, inputs, kernel: Option<usize>| {
                let window = kernel.map_or(String::new(), |k| format!(" in a window of {k} x {k}"));
                format!("{outputs} outputs and {inputs} inputs{window}")
            };
            // Compared as they would be told: whatever differs is in the message.
            let expected = sides(linear.outputs, linear.inputs, linear.kernel);
            let found = sides(adapter.outputs, adapter.inputs, adapter.kernel);
            if expected != found {
                return Err(Error::Misfit {
                    name: name.clone(),
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
