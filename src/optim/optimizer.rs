//! What a training asks of any optimizer: a step, its state by name, how large that is, and how to call it.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{AdamW, AdamWOptions};
use crate::nn::Kernels;

/// Which optimizer, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerOptions {
    /// [`AdamW`].
    AdamW(AdamWOptions),
}

/// An optimizer of one flat f32 tensor of parameters, with its state on their device.
#[derive(Clone, Debug)]
pub enum Optimizer {
    /// [`AdamW`].
    AdamW(AdamW),
}

/// A flat tensor of an optimizer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// Its name in checkpoints: it may never change, and `parameters` is taken.
    pub name: &'static str,
    /// The type of its numbers.
    pub dtype: DType,
    /// Its number of elements.
    pub length: usize,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self::AdamW(AdamWOptions::default())
    }
}

impl OptimizerOptions {
    /// The tensors of the state for `num_parameters` parameters.
    pub fn state_tensors(&self, num_parameters: usize) -> Vec<StateTensor> {
        match self {
            Self::AdamW(_) => AdamW::state_tensors(num_parameters).into(),
        }
    }

    /// Bytes of the state for `num_parameters` parameters.
    pub fn state_bytes(&self, num_parameters: usize) -> usize {
        let bytes = |tensor: &StateTensor| tensor.length * tensor.dtype.size_in_bytes();
        self.state_tensors(num_parameters).iter().map(bytes).sum()
    }
}

/// The class of torch or of its author, with the arguments that differ from one training to another.
impl fmt::Display for OptimizerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdamW(options) => options.fmt(f),
        }
    }
}

impl Optimizer {
    /// With a fresh state for `num_parameters` parameters.
    ///
    /// # Errors
    ///
    /// If the device has no room for it.
    pub fn new(options: OptimizerOptions, num_parameters: usize, device: &Device) -> Result<Self> {
        match options {
            OptimizerOptions::AdamW(options) => {
                Ok(Self::AdamW(AdamW::new(options, num_parameters, device)?))
            }
        }
    }

    /// With the state that [`Self::state`] gave after `num_steps` steps.
    ///
    /// # Errors
    ///
    /// If a tensor of [`OptimizerOptions::state_tensors`] is missing or another, or the device has no room for them.
    pub fn from_state(
        options: OptimizerOptions,
        num_parameters: usize,
        num_steps: u64,
        state: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        let get = |tensor: StateTensor| tensor.find(state)?.to_device(device);
        match options {
            OptimizerOptions::AdamW(options) => {
                let [first, second] = AdamW::state_tensors(num_parameters);
                let moments = (get(first)?, get(second)?);
                Ok(Self::AdamW(AdamW::from_state(options, num_steps, moments)))
            }
        }
    }

    /// The state's tensors by name. The next step changes them in place.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let tensors = match self {
            Self::AdamW(adamw) => adamw.state(),
        };
        let owned = |(name, tensor): (&str, Tensor)| (name.to_owned(), tensor);
        tensors.into_iter().map(owned).collect()
    }

    /// One step with `learning_rate` along `gradient`, on `parameters` in place; both `[n]` in f32.
    ///
    /// # Errors
    ///
    /// If they are not as many as the state is for, and those of the backend.
    pub fn step(
        &mut self,
        kernels: &Kernels,
        parameters: &Tensor,
        gradient: &Tensor,
        learning_rate: f64,
    ) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.step(kernels, parameters, gradient, learning_rate),
        }
    }
}

impl StateTensor {
    fn find(self, state: &BTreeMap<String, Tensor>) -> Result<&Tensor> {
        let Self {
            name,
            dtype,
            length,
        } = self;
        match state.get(name) {
            Some(found) if (found.dtype(), found.dims()) == (dtype, &[length]) => Ok(found),
            Some(found) => bail!(
                "optimizer state `{name}`: expected {length} numbers in {dtype:?}, found {:?} in {:?}",
                found.dims(),
                found.dtype()
            ),
            None => bail!("optimizer state `{name}` is missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{Optimizer, OptimizerOptions};
    use crate::nn::Kernels;

    fn steps(optimizer: &mut Optimizer, parameters: &Tensor, count: usize) {
        for k in 0..count {
            let gradient = Tensor::new(&[0.5f32, -0.1 * k as f32], &Device::Cpu).expect("two");
            optimizer
                .step(&Kernels::NONE, parameters, &gradient, 0.1)
                .expect("a step");
        }
    }

    #[test]
    fn from_its_state_an_optimizer_goes_on_bit_for_bit() {
        let options = OptimizerOptions::default();
        let parameters = Tensor::new(&[1f32, -2.0], &Device::Cpu).expect("two");
        let mut first = Optimizer::new(options, 2, &Device::Cpu).expect("a state");
        steps(&mut first, &parameters, 3);
        let state = first.state().into_iter();
        let state = state.map(|(name, t)| (name, t.copy().expect("a copy")));
        let state = state.collect();
        let copied = parameters.copy().expect("a copy");
        steps(&mut first, &parameters, 2);

        let second = Optimizer::from_state(options, 2, 3, &state, &Device::Cpu);
        steps(&mut second.expect("its state"), &copied, 2);
        let bits = |t: &Tensor| -> Vec<u32> {
            let values = t.to_vec1::<f32>().expect("values");
            values.into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(bits(&parameters), bits(&copied));
        assert!(Optimizer::from_state(options, 3, 3, &state, &Device::Cpu).is_err());
    }

    #[test]
    fn the_state_is_what_was_announced() {
        let options = OptimizerOptions::default();
        let state = Optimizer::new(options, 5, &Device::Cpu)
            .expect("a state")
            .state();
        let announced = options.state_tensors(5);
        assert_eq!(announced.len(), state.len());
        for tensor in announced {
            tensor.find(&state).expect("announced");
        }
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let bytes: usize = state.values().map(bytes).sum();
        assert_eq!(options.state_bytes(5), bytes);
    }
}
