//! A LoRA that lies frozen beneath the one that is trained: part of what the network computes while that is trained, and never
//! else. So are training adapters used, which take the distillation of a base model back for as long as something is trained on it
//! (`load_training_adapter` in ai-toolkit's `extensions_built_in/diffusion_models/z_image/z_image.py`, which merges it into the weights
//! and takes it off for pictures; beside them it changes neither, quantized or not).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::AdapterSet;
use crate::autograd::{Tape, Value};
use crate::nn::Frozen;

/// The frozen updates of a LoRA on linears. Cheap to clone.
#[derive(Clone, Default)]
pub struct Beneath {
    factors: Arc<BTreeMap<String, Factors>>,
}

/// Of one linear.
struct Factors {
    /// [rank, inputs]
    a: Frozen,
    /// [outputs, rank], with alpha / rank in it.
    b: Frozen,
}

impl fmt::Debug for Beneath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.factors.keys()).finish()
    }
}

impl Beneath {
    /// The adapters of `set`, in `dtype` on `device`.
    ///
    /// # Errors
    /// If one is on a convolution, or the device has no room.
    pub fn new(set: &AdapterSet, dtype: DType, device: &Device) -> Result<Self> {
        let mut factors = BTreeMap::new();
        for adapter in set.adapters() {
            if adapter.kernel.is_some() {
                bail!(
                    "`{}` is a convolution: a training adapter may be on linears alone",
                    adapter.name
                );
            }
            let matrix = |numbers: &[f32], shape: Vec<usize>, factor: f64| {
                let whole = Tensor::from_slice(numbers, shape, &Device::Cpu)?;
                (whole * factor)?.to_dtype(dtype)?.to_device(device)
            };
            let a = matrix(&set.values()[adapter.a()], adapter.a_shape(), 1.0)?;
            let b = matrix(
                &set.values()[adapter.b()],
                adapter.b_shape(),
                adapter.scale(),
            )?;
            let both = Factors {
                a: a.into(),
                b: b.into(),
            };
            factors.insert(adapter.name.clone(), both);
        }
        Ok(Self {
            factors: Arc::new(factors),
        })
    }

    /// Whether it has an update of the linear of that name.
    pub(super) fn is_on(&self, linear: &str) -> bool {
        self.factors.contains_key(linear)
    }

    /// `y`, the result [.., outputs] of the linear of that name on `x` [.., inputs], with its update.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device fails.
    pub(super) fn add(&self, tape: &Tape, linear: &str, x: &Value, y: Value) -> Result<Value> {
        let Some(Factors { a, b }) = self.factors.get(linear) else {
            return Ok(y);
        };
        let inner = tape.linear(x, a, None, None)?;
        tape.add(&y, &tape.linear(&inner, b, None, None)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::{Bound, LinearShape};
    use crate::nn::Kernels;

    fn set(kernel: Option<usize>) -> AdapterSet {
        let linear = LinearShape {
            name: "a".to_owned(),
            outputs: 2,
            inputs: 3,
            kernel,
            reached: true,
        };
        let mut set = AdapterSet::zeroed([(linear, 2, 4.0)]).expect("a set");
        let count = set.values().len();
        let values = (0..count).map(|i| i as f32 - 4.0).collect();
        set.set_values(values).expect("values");
        set
    }

    #[test]
    fn an_update_is_added_to_its_own_linear_and_gradients_pass_through() {
        let beneath = Beneath::new(&set(None), DType::F32, &Device::Cpu).expect("linears");
        let tape = Tape::recording(&Kernels::NONE);
        let x = tape.leaf(Tensor::new(&[[1f32, -1.0, 2.0]], &Device::Cpu).expect("x"));
        let y = Value::constant(Tensor::new(&[[10f32, 20.0]], &Device::Cpu).expect("y"));
        let bound = Bound::none().over(&beneath);
        let out = bound.beneath(&tape, "a", &x, y.clone()).expect("added");
        // A x = [-5, 1] and B = [[2, 3], [4, 5]], twice.
        let found = out.tensor().to_vec2::<f32>().expect("numbers");
        assert_eq!(found, [[10.0 - 14.0, 20.0 - 30.0]]);
        let other = bound.beneath(&tape, "b", &x, y).expect("not added");
        assert_eq!(
            other.tensor().to_vec2::<f32>().expect("numbers"),
            [[10.0, 20.0]]
        );
        let seed = Tensor::new(&[[1f32, 0.0]], &Device::Cpu).expect("a seed");
        let mut gradients = tape.backward_from(&[(&out, seed)]).expect("gradients");
        let found = gradients
            .take(&x)
            .expect("one")
            .to_vec2::<f32>()
            .expect("numbers");
        // 2 (2, 3) A.
        assert_eq!(found, [[-22.0, -12.0, -2.0]]);
    }

    #[test]
    fn convolutions_are_refused() {
        let error = Beneath::new(&set(Some(3)), DType::F32, &Device::Cpu).expect_err("refused");
        let said = error.to_string();
        assert!(said.starts_with("`a` is a convolution"), "{said}");
    }
}
