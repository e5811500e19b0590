//! Block swap: weight matrices that stay in their file, prefetched by a thread while the one before is computed with.
//!
//! Every training step uses a network's matrices in the same order, forward and backward. So the matrix that followed the last
//! two requests in the step before is the one to prefetch. Where that guess is wrong (the first step, a validation in between), the
//! matrix is read when it is asked for: slower, with the same result.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use candle_core::{Error, Result, Tensor};

#[cfg(feature = "cuda")]
use crate::nn::cuda;
use crate::nn::weights::Weights;

/// Matrices that are prefetched at a time: the next one while one is copied to the GPU. More would only take memory.
pub const DEPTH: usize = 2;

/// A matrix of a file.
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

    /// Read on the reader's thread, which may have a transfer stream of its own to the device.
    fn prefetch(&self, transfer: &mut Transfer) -> Result<Prefetched> {
        #[cfg(feature = "cuda")]
        if let Some(uploads) = transfer.to(self.weights.device())? {
            let weights = self.weights.clone().on(&candle_core::Device::Cpu);
            let read = weights.get(&self.shape, &self.name);
            let read = read.map_err(|error| Error::Msg(error.to_string()))?;
            return Ok(Prefetched::InTransit(uploads.begin(&read)?));
        }
        let _ = transfer;
        Ok(Prefetched::OnDevice(self.read()?))
    }
}

/// A matrix that was prefetched: on its device, or on its way there.
enum Prefetched {
    OnDevice(Tensor),
    #[cfg(feature = "cuda")]
    InTransit(cuda::upload::Coming),
}

impl Prefetched {
    fn wait(self) -> Result<Tensor> {
        match self {
            Self::OnDevice(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::InTransit(coming) => coming.here(),
        }
    }
}

/// How the prefetching thread brings matrices to their device.
#[derive(Default)]
struct Transfer {
    /// Looked for at the first matrix; None inside where there is none.
    #[cfg(feature = "cuda")]
    uploads: Option<Option<cuda::upload::Uploads>>,
}

impl Transfer {
    #[cfg(feature = "cuda")]
    fn to(&mut self, device: &candle_core::Device) -> Result<Option<&mut cuda::upload::Uploads>> {
        if self.uploads.is_none() {
            self.uploads = Some(cuda::upload::Uploads::to(device)?);
        }
        Ok(self.uploads.as_mut().and_then(Option::as_mut))
    }
}

/// Reads the matrices of one network. Cheap to clone; its thread ends with the last clone.
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

/// A matrix, by its place in `State::matrices`.
type MatrixId = usize;

#[derive(Default)]
struct State {
    matrices: Vec<Arc<MatrixInFile>>,
    /// What was asked for after each two requests, the last time.
    successors: HashMap<(MatrixId, MatrixId), MatrixId>,
    /// The last two requests, the older first.
    last_two: Option<(MatrixId, MatrixId)>,
    /// To be read, the next first.
    queue: VecDeque<MatrixId>,
    reading: Option<MatrixId>,
    ready: HashMap<MatrixId, Result<Prefetched>>,
    closed: bool,
}

impl Prefetch {
    /// Takes a matrix in; it is asked for by the number.
    pub(super) fn add(&self, matrix: MatrixInFile) -> MatrixId {
        let mut state = self.0.shared.lock();
        state.matrices.push(Arc::new(matrix));
        state.matrices.len() - 1
    }

    pub(super) fn shape(&self, id: MatrixId) -> [usize; 2] {
        self.0.shared.lock().matrices[id].shape
    }

    /// A matrix, from what was read ahead if it is there.
    pub(super) fn get(&self, id: MatrixId) -> Result<Tensor> {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        state.record_request(id);
        if !state.queue.is_empty() {
            self.start_reader();
            shared.changed.notify_all();
        }
        while state.reading == Some(id) {
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(found) = state.ready.remove(&id) {
            return found?.wait();
        }
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

    /// Reads what is wanted until nobody will want anything.
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
            drop(state);
            let read = matrix.prefetch(&mut transfer);
            state = self.lock();
            state.reading = None;
            state.ready.insert(id, read);
            self.changed.notify_all();
        }
    }
}

impl State {
    /// Learns from a request and wants what is likely to follow it.
    fn record_request(&mut self, id: MatrixId) {
        let before = self.last_two.map_or(id, |(_, last)| last);
        if let Some(last) = self.last_two {
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
        self.ready
            .retain(|ready, _| *ready == id || likely.contains(ready));
        let is_there = |n: &MatrixId| self.ready.contains_key(n) || self.reading == Some(*n);
        // Twice the same in a row is read once.
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
            // Its panic would be a read's: the next request reads again and says why.
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
