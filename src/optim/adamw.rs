//! AdamW (Loshchilov and Hutter, arXiv:1711.05101), with the arithmetic of `torch.optim.AdamW`.

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// The state of AdamW over one flat buffer of parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    options: AdamWOptions,
    num_steps: u64,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
}

impl AdamW {
    /// A fresh state for `num_parameters` parameters.
    pub fn new(options: AdamWOptions, num_parameters: usize) -> Self {
        Self {
            options,
            num_steps: 0,
            first_moment: vec![0.0; num_parameters],
            second_moment: vec![0.0; num_parameters],
        }
    }

    /// The state a checkpoint holds. The moments must be of equal length.
    pub fn from_state(
        options: AdamWOptions,
        num_steps: u64,
        first: Vec<f32>,
        second: Vec<f32>,
    ) -> Self {
        debug_assert_eq!(first.len(), second.len(), "moments of different buffers");
        Self {
            options,
            num_steps,
            first_moment: first,
            second_moment: second,
        }
    }

    /// Steps taken so far.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// The first and second moments, in the parameters' order.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.first_moment, &self.second_moment)
    }

    /// One step with `learning_rate` along `gradient`. All three buffers have one length.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], learning_rate: f64) {
        debug_assert_eq!(
            parameters.len(),
            gradient.len(),
            "a gradient of other parameters"
        );
        self.num_steps += 1;
        let AdamWOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.options;
        let exponent = self.num_steps.min(i32::MAX as u64) as i32;
        let step_size = (learning_rate / (1.0 - beta1.powi(exponent))) as f32;
        let root_correction = (1.0 - beta2.powi(exponent)).sqrt() as f32;
        let shrink = (1.0 - learning_rate * weight_decay) as f32;
        let (keep1, take1) = (beta1 as f32, (1.0 - beta1) as f32);
        let (keep2, take2) = (beta2 as f32, (1.0 - beta2) as f32);
        let epsilon = epsilon as f32;
        let moments = self.first_moment.iter_mut().zip(&mut self.second_moment);
        for ((p, &g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *m = keep1 * *m + take1 * g;
            *v = keep2 * *v + take2 * g * g;
            *p = shrink * *p - step_size * *m / (v.sqrt() / root_correction + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AdamW, AdamWOptions};

    /// ```python
    /// import torch
    /// p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    /// o = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05)
    /// for k in range(5):
    ///     p.grad = torch.tensor([0.3, -0.2 * k, 1e-4]); o.step()
    /// print(p.tolist())
    /// ```
    #[test]
    fn five_steps_equal_torch() {
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.05,
        };
        let mut parameters = [1.0f32, -2.0, 0.5];
        let mut adamw = AdamW::new(options, 3);
        for k in 0..5 {
            adamw.step(&mut parameters, &[0.3, -0.2 * k as f32, 1e-4], 0.1);
        }
        let torch = TORCH;
        for (ours, theirs) in parameters.iter().zip(torch) {
            assert!((ours - theirs).abs() < 2e-6, "{parameters:?} {torch:?}");
        }
    }

    const TORCH: [f32; 3] = [0.480_223_74, -1.619_716_5, -0.007_351_018_5];
}
