//! How many numbers a training step keeps of a forward pass, for the plan of its memory. Counted from what each operation
//! on the tape saves; tests hold the counts against the bytes that the tape really keeps.

use std::collections::BTreeMap;

use crate::vae::Extents;

/// What a step computes on.
#[derive(Clone, Debug)]
pub struct StepShape {
    /// Samples in a micro-batch.
    pub samples: usize,
    /// Those of the latents.
    pub latents: Extents,
    /// Those of the latents of each sample's reference picture, where there is one.
    pub reference: Option<Extents>,
    /// Tokens of the context.
    pub context: usize,
    /// The rank of each adapter, by the module it is on.
    pub adapted: BTreeMap<String, usize>,
    /// Whether attention keeps its results for the backward pass, as our kernels for GPUs do.
    pub attended: bool,
}

impl StepShape {
    /// Numbers kept for an adapter on `module` that sees `rows` rows of `width`: its input, and what is left of it
    /// after the first matrix. None without an adapter.
    pub(super) fn adapter(&self, module: &str, rows: usize, width: usize) -> u64 {
        (rows * width) as u64 * u64::from(self.has(module)) + self.down(module, rows)
    }

    /// As `adapter`, where attention's result is what it sees.
    pub(super) fn attended(&self, module: &str, rows: usize, width: usize) -> u64 {
        let kept = self.attended && !self.has(module);
        self.adapter(module, rows, width) + (rows * width) as u64 * u64::from(kept)
    }

    /// The second of the two.
    pub(super) fn down(&self, module: &str, rows: usize) -> u64 {
        (rows * self.adapted.get(module).copied().unwrap_or(0)) as u64
    }

    /// Whether there is an adapter on the module.
    pub(super) fn has(&self, module: &str) -> bool {
        self.adapted.contains_key(module)
    }
}

/// How many numbers are kept, in the type that is computed in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activations {
    /// Beside the blocks.
    pub outside: u64,
    /// Of each block, in the order in which blocks are numbered for recomputation.
    pub blocks: Vec<BlockActivations>,
    /// The most that an operation holds for a moment beside what is kept.
    pub passing: u64,
    /// Whether blocks hand on what they make and nobody else reads it, so that it can wait elsewhere.
    pub chained: bool,
}

/// How many numbers a block keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockActivations {
    /// What it is given: all that is kept of a block that is run again.
    pub inputs: u64,
    /// What its operations save, its inputs among it.
    pub inner: u64,
}

impl Activations {
    /// The most that is kept at a time where the first `again` blocks are run again for their gradients.
    pub fn kept(&self, again: usize) -> u64 {
        let again = again.min(self.blocks.len());
        let (first, rest) = self.blocks.split_at(again);
        let inner: u64 = rest.iter().map(|b| b.inner).sum();
        let inputs: u64 = first.iter().map(|b| b.inputs).sum();
        // When the last of them is run again, those behind it are gone.
        let largest = first.iter().map(|b| b.inner).max().unwrap_or(0);
        self.outside + inputs + inner.max(largest)
    }

    /// The most that is kept at a time where all blocks are run again and what they are given waits elsewhere; None where that
    /// frees nothing.
    pub fn kept_offloaded(&self) -> Option<u64> {
        let most = |count: fn(&BlockActivations) -> u64| self.blocks.iter().map(count).max();
        let held = most(|b| b.inner)? + most(|b| b.inputs)?;
        self.chained.then_some(self.outside + held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_falls_with_each_block_that_is_run_again() {
        let block = |inputs, inner| BlockActivations { inputs, inner };
        let all = Activations {
            outside: 5,
            blocks: vec![block(1, 10), block(1, 20), block(2, 30)],
            passing: 0,
            chained: true,
        };
        assert_eq!(all.kept_offloaded(), Some(5 + 30 + 2));
        let kept: Vec<u64> = (0..=4).map(|again| all.kept(again)).collect();
        assert_eq!(kept, [65, 56, 37, 39, 39]);
    }
}
