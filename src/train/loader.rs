//! Micro-batches ahead of their step: read from the store, verified, drawn and put together on a thread of their own while
//! the step before runs. What a micro-batch holds depends on its number alone, so nothing changes but the wait.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::inputs::{self, DrawOptions, Part};
use super::{Error, TrainingSet};
use crate::dataset::Item;

/// Micro-batches that are ready and not yet asked for, at most; one more is being made.
const READY: usize = 2;

/// Gives micro-batches in order.
pub(super) struct Loader {
    parts: Receiver<Result<Vec<Part>, Error>>,
}

impl Loader {
    /// Runs `consume` beside a thread that makes micro-batches: each a number, which its draws are keyed by, and samples of
    /// the set.
    pub(super) fn with<R>(
        set: &TrainingSet<'_>,
        mut batches: impl Iterator<Item = (u64, Vec<usize>)> + Send,
        draws: &DrawOptions,
        consume: impl FnOnce(Self) -> R,
    ) -> R {
        thread::scope(|scope| {
            let (send, parts) = sync_channel(READY);
            scope.spawn(move || {
                batches.try_for_each(|(number, samples)| {
                    let items: Vec<&Item> = samples.iter().map(|&s| set.item(s)).collect();
                    let made = inputs::micro_batch(set.source(), &items, number, draws);
                    // Nobody waits any more where the loop has ended.
                    send.send(made)
                })
            });
            // Dropped by `consume` before the scope waits for the thread.
            consume(Self { parts })
        })
    }

    /// The next micro-batch; waits for it.
    pub(super) fn next(&self) -> Result<Vec<Part>, Error> {
        match self.parts.recv() {
            Ok(made) => made,
            Err(_) => Err(Error::Tensor(candle_core::Error::Msg(
                "a step asked for a micro-batch beyond the last".to_owned(),
            ))),
        }
    }
}
