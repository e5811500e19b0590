//! Gradients on their way through the tape.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::tape::{Id, Value};
use crate::nn::Kernels;
use crate::nn::pointwise::{add, add_in_place, copy};

/// A gradient, and whether its storage is nobody else's, so that it may be edited in place.
pub(crate) struct Gradient {
    tensor: Tensor,
    exclusive: bool,
}

impl Gradient {
    /// Of a tensor just made, which nobody else keeps.
    pub(crate) fn fresh(tensor: Tensor) -> Self {
        Self {
            tensor,
            exclusive: true,
        }
    }

    /// Of a tensor that others keep too.
    pub(crate) fn shared(tensor: Tensor) -> Self {
        Self {
            tensor,
            exclusive: false,
        }
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// The same gradient for two receivers.
    pub(crate) fn share(self) -> [Self; 2] {
        [Self::shared(self.tensor.clone()), Self::shared(self.tensor)]
    }

    /// A contiguous tensor with this gradient that kernels of the CPU may edit in place: a copy only if it must be one.
    /// What other devices compute is never in place.
    pub(crate) fn into_editable(self, kernels: &Kernels) -> Result<Tensor> {
        // A copy made to be contiguous is nobody else's.
        let copied = !self.tensor.is_contiguous();
        let tensor = kernels.contiguous(&self.tensor)?;
        if self.exclusive || copied {
            return Ok(tensor);
        }
        copy(&tensor)
    }

    /// The same numbers in another shape.
    pub(crate) fn reshape(self, kernels: &Kernels, shape: &[usize]) -> Result<Self> {
        let exclusive = self.exclusive || !self.tensor.is_contiguous();
        Ok(Self {
            tensor: kernels.contiguous(&self.tensor)?.reshape(shape)?,
            exclusive,
        })
    }

    fn plus(self, kernels: &Kernels, other: Self) -> Result<Self> {
        // x + y and y + x are the same bits, so the one that may be edited takes the sum.
        let (target, other) = if self.exclusive && self.tensor.is_contiguous() {
            (self, other)
        } else {
            (other, self)
        };
        let editable = target.exclusive && target.tensor.is_contiguous();
        if editable && add_in_place(&target.tensor, &other.tensor)? {
            return Ok(target);
        }
        Ok(Self::fresh(add(kernels, &target.tensor, &other.tensor)?))
    }
}

/// The gradients found so far, by the value they belong to.
pub(crate) struct Slots {
    found: HashMap<Id, Gradient>,
    kernels: Kernels,
}

impl Slots {
    pub(super) fn new(kernels: Kernels) -> Self {
        Self {
            found: HashMap::new(),
            kernels,
        }
    }

    /// The tape's, which its gradients are computed by.
    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Adds to the gradient of the value with id `to`, if it wants one.
    pub(crate) fn add(&mut self, to: Option<Id>, gradient: Gradient) -> Result<()> {
        let Some(id) = to else { return Ok(()) };
        let gradient = match self.found.remove(&id) {
            Some(earlier) => earlier.plus(&self.kernels, gradient)?,
            None => gradient,
        };
        self.found.insert(id, gradient);
        Ok(())
    }

    pub(super) fn take(&mut self, id: Id) -> Option<Gradient> {
        self.found.remove(&id)
    }

    /// The gradient of the value with id `to` so far, if it may be edited in place; it must be given back by
    /// `add`.
    pub(crate) fn take_editable(&mut self, to: Option<Id>) -> Option<Tensor> {
        let id = to?;
        let gradient = self.found.get(&id)?;
        if !gradient.exclusive || !gradient.tensor.is_contiguous() {
            return None;
        }
        self.found.remove(&id).map(|gradient| gradient.tensor)
    }
}

/// The gradients of the leaves of a tape.
pub struct Gradients(pub(super) Slots);

impl Gradients {
    /// The gradient of a leaf, in its shape and type; `None` if the loss does not depend on it (or it was taken
    /// before). Two leaves' gradients may share storage: read them, do not edit them in place.
    pub fn take(&mut self, leaf: &Value) -> Option<Tensor> {
        self.0.take(leaf.id()?).map(|gradient| gradient.tensor)
    }
}
