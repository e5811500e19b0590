//! Reads micro-batches ahead: while a step runs, a thread takes the next ones from the store, checks them, draws their noise and
//! puts them together. What a micro-batch holds depends on its number alone, so only the time to wait changes.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::inputs::{self, DenoiserBatch, DrawOptions};
use super::{Error, TrainingSet};
use crate::dataset::Item;

/// Micro-batches that are ready and not yet asked for, at most; one more is being made. Each is held in memory.
const READY: usize = 2;

/// The step's end of the thread that makes micro-batches.
pub(super) struct Loader {
    ready: Receiver<Result<Vec<DenoiserBatch>, Error>>,
}

impl Loader {
    /// Runs `consume` beside a thread that makes micro-batches. Each of `batches` is the number that its random draws are keyed by,
    /// and its samples in the set.
    pub(super) fn with<R>(
        set: &TrainingSet<'_>,
        mut batches: impl Iterator<Item = (u64, Vec<usize>)> + Send,
        draws: &DrawOptions,
        consume: impl FnOnce(Self) -> R,
    ) -> R {
        thread::scope(|scope| {
            let (send, ready) = sync_channel(READY);
            scope.spawn(move || {
                batches.try_for_each(|(number, samples)| {
                    let items: Vec<&Item> = samples.iter().map(|&s| set.item(s)).collect();
                    let made = inputs::micro_batch(set.source(), &items, number, draws);
                    // Fails where the training has ended and nobody receives any more: that ends the thread.
                    send.send(made)
                })
            });
            // `consume` drops the receiver before the scope waits for the thread, which may be waiting to send.
            consume(Self { ready })
        })
    }

    /// The next micro-batch; waits for it.
    pub(super) fn next(&self) -> Result<Vec<DenoiserBatch>, Error> {
        match self.ready.recv() {
            Ok(made) => made,
            Err(_) => Err(Error::Tensor(candle_core::Error::Msg(
                "a step asked for a micro-batch beyond the last".to_owned(),
            ))),
        }
    }
}
