//! Block swap: the weight matrices of a network stay in their file, and a thread reads each shortly before it is needed.
//!
//! Which matrix is needed next is guessed from the past: training steps ask for the matrices in the same order, forward and then
//! backward. So the guess is the matrix that followed the last time when the last two requests were the same as now. Two, because
//! after one request alone it is not clear whether the pass goes forward or backward.
//!
//! A wrong guess (in the first step, or around a validation) costs time only: the matrix is read when it is asked for.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use candle_core::{Error, Result, Tensor};

#[cfg(feature = "cuda")]
use crate::nn::cuda;
use crate::nn::weights::Weights;

/// How many matrices are read ahead: while one is copied to the GPU, the next is read from the file. A third would only take memory.
pub const DEPTH: usize = 2;

/// Where a matrix is read from.
pub(super) struct MatrixInFile {
    pub(super) weights: Weights,
    pub(super) name: String,
    pub(super) shape: [usize; 2],
}

impl MatrixInFile {
    fn read(&self) -> Result<Tensor> {
        let read = self.weights.get(&self.shape, &self.name);
        read.map_err(|error| Error::Msg(error.to_string()))
    }

    /// Reads the matrix on the prefetching thread. On a GPU with our kernels it comes back while it is still being copied.
    fn prefetch(&self, transfer: &mut Transfer) -> Result<Prefetched> {
        #[cfg(feature = "cuda")]
        if let Some(uploads) = transfer.to(&self.weights)? {
            let weights = self.weights.clone().on(&candle_core::Device::Cpu);
            let read = weights.get(&self.shape, &self.name);
            let read = read.map_err(|error| Error::Msg(error.to_string()))?;
            return Ok(Prefetched::InTransit(uploads.begin(&read)?));
        }
        // Unused in a build without CUDA.
        let _ = transfer;
        Ok(Prefetched::OnDevice(self.read()?))
    }
}

/// A prefetched matrix, on its device or being copied there.
enum Prefetched {
    OnDevice(Tensor),
    #[cfg(feature = "cuda")]
    InTransit(cuda::upload::Coming),
}

impl Prefetched {
    /// The matrix; what is computed from now on finds it whole.
    fn wait(self) -> Result<Tensor> {
        match self {
            Self::OnDevice(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::InTransit(coming) => coming.here(),
        }
    }
}

/// How the prefetching thread copies matrices to a GPU.
#[derive(Default)]
struct Transfer {
    /// `None` before the first matrix, `Some(None)` where the device has no uploads of ours.
    #[cfg(feature = "cuda")]
    uploads: Option<Option<cuda::upload::Uploads>>,
}

impl Transfer {
    #[cfg(feature = "cuda")]
    fn to(&mut self, weights: &Weights) -> Result<Option<&mut cuda::upload::Uploads>> {
        if self.uploads.is_none() {
            let kernels = weights.kernels().of(weights.device());
            self.uploads = Some(kernels.map(cuda::upload::Uploads::new).transpose()?);
        }
        Ok(self.uploads.as_mut().and_then(Option::as_mut))
    }
}

/// The matrices of one network that stay in their file, and the thread that prefetches them. Cheap to clone; the thread ends with
/// the last clone.
#[derive(Clone, Default)]
pub struct Prefetch(Arc<Handle>);

#[derive(Default)]
struct Handle {
    shared: Arc<Shared>,
    reader: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A matrix's index in [`State::matrices`].
type MatrixId = usize;

#[derive(Default)]
struct State {
    matrices: Vec<Arc<MatrixInFile>>,
    /// By two requests in a row, the request that followed them the last time.
    successors: HashMap<(MatrixId, MatrixId), MatrixId>,
    /// The last two requests, the older first; `None` before the first.
    last_two: Option<(MatrixId, MatrixId)>,
    /// What the thread is to read, the next first.
    queue: VecDeque<MatrixId>,
    reading: Option<MatrixId>,
    ready: HashMap<MatrixId, Result<Prefetched>>,
    closed: bool,
}

impl Prefetch {
    /// Takes a matrix in; the id is what to ask for it by.
    pub(super) fn add(&self, matrix: MatrixInFile) -> MatrixId {
        let mut state = self.0.shared.lock();
        state.matrices.push(Arc::new(matrix));
        state.matrices.len() - 1
    }

    pub(super) fn shape(&self, id: MatrixId) -> [usize; 2] {
        self.0.shared.lock().matrices[id].shape
    }

    /// The matrix, prefetched or read now.
    pub(super) fn get(&self, id: MatrixId) -> Result<Tensor> {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        // Before the matrix is taken: so the thread reads the next ones while this one is waited for and computed with.
        state.record_request(id);
        if !state.queue.is_empty() {
            self.start_reader();
            shared.changed.notify_all();
        }
        // The thread is at it: waiting is shorter than reading it a second time.
        while state.reading == Some(id) {
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(found) = state.ready.remove(&id) {
            return found?.wait();
        }
        // A wrong guess. Read here and now, without the lock, so that the thread can go on.
        let matrix = Arc::clone(&state.matrices[id]);
        drop(state);
        matrix.read()
    }

    fn start_reader(&self) {
        let mut reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.is_none() {
            let shared = Arc::clone(&self.0.shared);
            *reader = Some(thread::spawn(move || shared.prefetch_loop()));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is queued until the last handle is dropped.
    fn prefetch_loop(&self) {
        let mut transfer = Transfer::default();
        let mut state = self.lock();
        while !state.closed {
            let Some(id) = state.queue.pop_front() else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.reading = Some(id);
            let matrix = Arc::clone(&state.matrices[id]);
            // Not held while reading: requests must find what is ready.
            drop(state);
            // A panic must not leave `reading` set, on which a request would wait for ever. It will be met again by the
            // request, which then reads the matrix itself.
            let read = catch_unwind(AssertUnwindSafe(|| matrix.prefetch(&mut transfer)));
            state = self.lock();
            state.reading = None;
            if let Ok(read) = read {
                state.ready.insert(id, read);
            }
            self.changed.notify_all();
        }
    }
}

impl State {
    /// Learns the order of requests from this one, and queues those that are likely to follow.
    fn record_request(&mut self, id: MatrixId) {
        let before = self.last_two.map_or(id, |(_, last)| last);
        if let Some(last) = self.last_two {
            // The newest order wins: what a validation changed is right again after one training step.
            self.successors.insert(last, id);
        }
        self.last_two = Some((before, id));
        let mut at = (before, id);
        let mut likely = Vec::with_capacity(DEPTH);
        while likely.len() < DEPTH
            && let Some(&next) = self.successors.get(&at)
        {
            likely.push(next);
            at = (at.1, next);
        }
        // What was prefetched by a wrong guess gives its memory back.
        self.ready
            .retain(|ready, _| *ready == id || likely.contains(ready));
        let is_there = |n: &MatrixId| self.ready.contains_key(n) || self.reading == Some(*n);
        // A guess of the same matrix twice in a row is read once.
        likely.dedup();
        self.queue = likely.into_iter().filter(|n| !is_there(n)).collect();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        let reader = self
            .reader
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = reader.take() {
            // If the thread panicked, this drop must not panic as well.
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn weights(folder: &std::path::Path, count: usize) -> Weights {
        let tensors = (0..count).map(|i| {
            let values: Vec<f32> = (0..6).map(|j| (10 * i + j) as f32).collect();
            let tensor = Tensor::from_vec(values, (2, 3), &Device::Cpu).expect("a matrix");
            (format!("m{i}"), tensor)
        });
        let path = folder.join("model.safetensors");
        candle_core::safetensors::save(&tensors.collect(), &path).expect("written");
        let opened = Weights::open(&[path]).expect("opened");
        opened.with_dtype(DType::F32)
    }

    fn network(weights: &Weights, count: usize) -> Prefetch {
        let ahead = Prefetch::default();
        for i in 0..count {
            let (weights, name) = (weights.clone(), format!("m{i}"));
            ahead.add(MatrixInFile {
                weights,
                name,
                shape: [2, 3],
            });
        }
        ahead
    }

    fn first_number(t: &Tensor) -> f32 {
        t.to_vec2::<f32>().expect("values")[0][0]
    }

    #[test]
    fn every_request_gets_its_matrix_in_whatever_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let ahead = network(&weights(folder.path(), 7), 7);
        let forth_and_back = (0..7).chain((0..7).rev());
        let twice = [3, 3, 3, 0, 6, 6, 1, 2, 3, 1, 2, 4, 1, 2, 3];
        for number in forth_and_back.clone().chain(forth_and_back).chain(twice) {
            let found = ahead.get(number).expect("a matrix");
            assert_eq!(first_number(&found), 10.0 * number as f32);
        }
    }

    #[test]
    fn the_second_time_the_likely_next_ones_are_wanted() {
        let mut state = State::default();
        for number in [0, 1, 2, 3, 2, 1, 0] {
            state.record_request(number);
            assert!(state.queue.is_empty(), "nothing is known yet");
        }
        state.record_request(0);
        state.record_request(1);
        assert_eq!(state.queue, [2, 3]);
        state
            .ready
            .insert(5, Err(Error::Msg("a wrong guess".to_owned())));
        state.record_request(2);
        assert_eq!(state.queue, [3, 2]);
        assert!(state.ready.is_empty(), "it gives its room back");
        state.record_request(3);
        assert_eq!(state.queue, [2, 1], "and now on the transfer back");
    }

    #[test]
    fn a_panic_while_prefetching_is_met_by_the_request_and_nobody_waits_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = weights(folder.path(), 2);
        let ahead = network(&files, 2);
        let broken = files.renamed(|name| -> String { panic!("asked for {name}") });
        ahead.add(MatrixInFile {
            weights: broken,
            name: "m2".to_owned(),
            shape: [2, 3],
        });
        for _ in 0..3 {
            for id in [0, 1] {
                ahead.get(id).expect("a matrix");
            }
            catch_unwind(AssertUnwindSafe(|| ahead.get(2))).expect_err("a panic");
        }
    }

    #[test]
    fn a_matrix_that_cannot_be_read_says_so_each_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let ahead = network(&weights(folder.path(), 2), 3);
        for number in [0, 1, 0, 1, 0, 1] {
            ahead.get(number).expect("a matrix");
        }
        for _ in 0..3 {
            for number in [0, 1] {
                ahead.get(number).expect("a matrix");
            }
            let error = ahead.get(2).expect_err("it is in no file").to_string();
            assert!(error.contains("m2"), "{error}");
        }
    }
}
