//! Tables of positions: made for the shape of a call, and kept for the next, which most often has the same.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};

use crate::nn::Kernels;

/// The tensors of which tables are.
pub(super) trait Tables: Clone {
    /// All of them.
    fn tensors(&self) -> Vec<&Tensor>;
}

/// The tables of the last call, with what they are of.
pub(super) struct LastTables<K, T>(Mutex<Option<(K, T)>>);

impl<K, T> Default for LastTables<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, T: Tables> LastTables<K, T> {
    /// The tables of `key`: the last ones, or new ones. A graph that is being recorded keeps them.
    ///
    /// # Errors
    /// If they cannot be made.
    pub(super) fn of(
        &self,
        kernels: &Kernels,
        key: K,
        make: impl FnOnce(&K) -> Result<T>,
    ) -> Result<T> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = match last.take() {
            Some((found, tables)) if found == key => tables,
            _ => {
                kernels.before_keeping()?;
                make(&key)?
            }
        };
        kernels.hold(&tables.tensors());
        *last = Some((key, tables.clone()));
        Ok(tables)
    }
}
