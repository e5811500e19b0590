//! AdamW (Loshchilov and Hutter, arXiv:1711.05101), with the arithmetic of `torch.optim.AdamW`.

use std::fmt;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::StateTensor;
use crate::nn::Kernels;
use crate::nn::flat::AdamWUpdate;

/// The constants of AdamW; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment per step, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment per step, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// AdamW with its state for one flat tensor.
#[derive(Clone, Debug)]
pub struct AdamW {
    options: AdamWOptions,
    num_steps: u64,
    /// Both moments `[n]` in f32 on the parameters' device, edited in place.
    first_moment: Tensor,
    second_moment: Tensor,
}

impl Default for AdamWOptions {
    /// Those of torch.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        }
    }
}

impl fmt::Display for AdamWOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self;
        write!(
            f,
            "AdamW(betas=({beta1:?}, {beta2:?}), eps={epsilon:?}, weight_decay={weight_decay:?})"
        )
    }
}

impl AdamW {
    /// The names are those of checkpoints.
    pub(super) fn state_tensors(num_parameters: usize) -> [StateTensor; 2] {
        ["first_moment", "second_moment"].map(|name| StateTensor {
            name,
            dtype: DType::F32,
            length: num_parameters,
        })
    }

    pub(super) fn new(
        options: AdamWOptions,
        num_parameters: usize,
        device: &Device,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros(num_parameters, DType::F32, device);
        Ok(Self::from_state(options, 0, (zeros()?, zeros()?)))
    }

    /// With the moments, in f32 and of one length, that there were after `num_steps` steps.
    pub(super) fn from_state(
        options: AdamWOptions,
        num_steps: u64,
        (first_moment, second_moment): (Tensor, Tensor),
    ) -> Self {
        Self {
            options,
            num_steps,
            first_moment,
            second_moment,
        }
    }

    pub(super) fn state(&self) -> [(&'static str, Tensor); 2] {
        let [first, second] = Self::state_tensors(self.first_moment.elem_count());
        [
            (first.name, self.first_moment.clone()),
            (second.name, self.second_moment.clone()),
        ]
    }

    pub(super) fn step(
        &mut self,
        kernels: &Kernels,
        parameters: &Tensor,
        gradient: &Tensor,
        learning_rate: f64,
    ) -> Result<()> {
        if parameters.dims() != gradient.dims() || parameters.dims() != self.first_moment.dims() {
            bail!(
                "a gradient {:?} for parameters {:?} with moments {:?}",
                gradient.dims(),
                parameters.dims(),
                self.first_moment.dims()
            );
        }
        self.num_steps += 1;
        let AdamWOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.options;
        // `powi` takes an i32. Long before that many steps both corrections are 1.
        let exponent = self.num_steps.min(i32::MAX as u64) as i32;
        // As torch: computed in f64 from the step's number and rounded once, where a running product would drift.
        let update = AdamWUpdate {
            keep1: beta1 as f32,
            take1: (1.0 - beta1) as f32,
            keep2: beta2 as f32,
            take2: (1.0 - beta2) as f32,
            // Decoupled from the gradient (torch's `param.mul_(1 - lr * weight_decay)`).
            shrink: (1.0 - learning_rate * weight_decay) as f32,
            step_size: (learning_rate / (1.0 - beta1.powi(exponent))) as f32,
            // Torch divides the root by it and adds epsilon after; the other order weighs epsilon differently in early steps.
            root_correction: (1.0 - beta2.powi(exponent)).sqrt() as f32,
            epsilon: epsilon as f32,
        };
        let moments = (&self.first_moment, &self.second_moment);
        update.apply(kernels, parameters, gradient, moments)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{AdamW, AdamWOptions};
    use crate::nn::Kernels;
    use crate::nn::testing::composed;

    /// ```python
    /// import torch
    /// p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    /// o = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05)
    /// for k in range(5):
    ///     p.grad = torch.tensor([0.3, -0.2 * k, 1e-4]); o.step()
    /// print(p.tolist())
    /// ```
    const TORCH: [f32; 3] = [0.480_223_74, -1.619_716_5, -0.007_351_018_5];

    #[test]
    fn five_steps_equal_torch() {
        let check = || {
            let options = AdamWOptions {
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay: 0.05,
            };
            let tensor = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).expect("a tensor");
            let parameters = tensor([1.0, -2.0, 0.5]);
            let mut adamw = AdamW::new(options, 3, &Device::Cpu).expect("a state");
            for k in 0..5 {
                let gradient = tensor([0.3, -0.2 * k as f32, 1e-4]);
                adamw
                    .step(&Kernels::NONE, &parameters, &gradient, 0.1)
                    .expect("a step");
            }
            let ours = parameters.to_vec1::<f32>().expect("values");
            for (ours, theirs) in ours.iter().zip(TORCH) {
                assert!((ours - theirs).abs() < 2e-6, "{ours} {theirs}");
            }
            assert!(
                adamw
                    .step(
                        &Kernels::NONE,
                        &tensor([0.0; 3]),
                        &Tensor::new(&[0f32], &Device::Cpu).expect("one"),
                        0.1
                    )
                    .is_err()
            );
        };
        check();
        composed(check);
    }
}
