//! Passes as graphs beside the same passes one operation after the other. Without a GPU they skip and say so.

#![expect(clippy::unwrap_used, reason = "tests end there")]

use std::sync::RwLockWriteGuard;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::autograd::{Tape, Value};
use crate::lora::{AdapterSet, Bound, LinearShape, Recompute};
use crate::models::Denoiser;
use crate::nn::Frozen;
use crate::nn::testing::{alone, gpu, normal};

/// Numbers of a sample.
const WIDTH: usize = 48;

/// What a network does that a graph of it would not do again.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    None,
    /// It multiplies by a number of the host that is another in every pass.
    Counting,
    /// It reads the timesteps on the host.
    Reading,
}

/// A linear with an adapter, times the mean of the timesteps as the GPU has it.
struct Network {
    device: Device,
    kernels: Kernels,
    weight: Frozen,
    habit: Habit,
    passes: AtomicU32,
}

impl Network {
    /// It, and the right to record there.
    fn new(habit: Habit) -> Option<(Self, RwLockWriteGuard<'static, ()>)> {
        let right = alone();
        let (device, kernels) = gpu()?;
        let weight = normal(1, &[WIDTH, WIDTH]).to_dtype(DType::BF16).unwrap();
        let network = Self {
            weight: weight.to_device(&device).unwrap().into(),
            kernels: kernels.with_graphs().unwrap(),
            device,
            habit,
            passes: AtomicU32::new(0),
        };
        Some((network, right))
    }
}

impl Denoiser for Network {
    fn forward(
        &self,
        tape: &Tape,
        adapters: &Bound,
        latents: &Value,
        timesteps: &Tensor,
        _conditioning: &ConditioningTensors,
    ) -> Result<Value> {
        let lora = adapters.on("linear", latents)?;
        let y = tape.linear(latents, &self.weight, None, lora.as_ref())?;
        let told = timesteps.to_dtype(self.dtype())?.reshape(((), 1))?;
        let told = Value::constant(self.kernels.contiguous(&told.broadcast_as(y.dims())?)?);
        let y = tape.mul(&y, &told)?;
        match self.habit {
            Habit::None => Ok(y),
            Habit::Counting => {
                let passes = self.passes.fetch_add(1, Ordering::Relaxed);
                tape.scale(&y, f64::from(passes + 1))
            }
            Habit::Reading => {
                let read = timesteps.to_vec1::<f32>()?;
                tape.scale(&y, f64::from(read[0]))
            }
        }
    }

    fn dtype(&self) -> DType {
        DType::BF16
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}

fn batch(number: u64, samples: usize) -> DenoiserBatch {
    let single = |seed: u64, shape: &[usize]| {
        let numbers = normal(16 * number + seed, shape);
        numbers.to_dtype(DType::F32).unwrap()
    };
    let latents = single(0, &[samples, WIDTH]);
    let numbers = || single(1, &[samples]).abs().unwrap();
    DenoiserBatch {
        noise: latents.clone(),
        noisy: latents.clone(),
        latents,
        target: single(2, &[samples, WIDTH]),
        sigmas: numbers(),
        timesteps: numbers(),
        weights: numbers(),
        conditioning: ConditioningTensors::new(
            single(3, &[samples, 1, 8]),
            Tensor::zeros((samples, 0), DType::F32, &Device::Cpu).unwrap(),
        ),
        share: 1.0,
    }
}

/// The losses and the sum of the gradients of passes with these numbers of samples, as graphs where asked, and what was told.
fn trained(network: &Network, graphs: bool, sizes: &[usize]) -> (Vec<f64>, Vec<u32>, Vec<String>) {
    network.passes.store(0, Ordering::Relaxed);
    let linear = LinearShape {
        name: "linear".to_owned(),
        outputs: WIDTH,
        inputs: WIDTH,
        kernel: None,
        reached: true,
    };
    let mut adapters = AdapterSet::new(&[linear], 4, 4.0, 0).unwrap();
    let numbers = normal(7, &[adapters.values().len()]);
    let numbers = numbers.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    adapters.set_values(numbers).unwrap();
    let values = adapters.to_device(&network.device).unwrap();
    let pass = Pass {
        denoiser: network,
        adapters: &adapters,
        values: &values,
        dropout: (0.0, 0),
        recompute: Recompute::Never,
        offload: false,
    };
    let (mut own, _) = Graphs::of(&pass).unwrap();
    let (mut losses, mut told) = (Vec::new(), Vec::new());
    let gradient = values.zeros_like().unwrap();
    for (number, &samples) in (0..).zip(sizes) {
        let batch = batch(number, samples);
        let loss = match &mut own {
            Some(own) if graphs => own.backward(&pass, &batch, number, 0.3, &gradient),
            _ => (pass.backward(&batch, number, 0.3, &gradient)).map(|result| result.loss),
        };
        losses.push(loss.unwrap());
        told.extend(own.iter_mut().flat_map(Graphs::notes));
    }
    let bits = gradient.to_vec1::<f32>().unwrap();
    (losses, bits.into_iter().map(f32::to_bits).collect(), told)
}

#[test]
fn graphs_of_two_shapes_give_the_same_bits() {
    let Some((network, _right)) = Network::new(Habit::None) else {
        return;
    };
    let sizes = [2, 3, 2, 2, 3, 3, 3, 2, 5];
    let (losses, gradient, told) = trained(&network, true, &sizes);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("gives the same bits"), "{told:?}");
    let (wanted, sum, told) = trained(&network, false, &sizes);
    assert!(told.is_empty());
    assert_eq!(losses, wanted);
    assert_eq!(gradient, sum);
}

#[test]
fn a_number_that_the_host_changes_is_found_before_a_graph_is_used() {
    let Some((network, _right)) = Network::new(Habit::Counting) else {
        return;
    };
    let (_, _, told) = trained(&network, true, &[2, 2, 2, 2]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("please report this"), "{told:?}");
}

#[test]
fn what_is_read_on_the_host_is_not_recorded() {
    let Some((network, _right)) = Network::new(Habit::Reading) else {
        return;
    };
    let sizes = [2, 2, 2];
    let (losses, gradient, told) = trained(&network, true, &sizes);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("CUDA graphs are not used for steps of this shape"));
    let (wanted, sum, _) = trained(&network, false, &sizes);
    assert_eq!((losses, gradient), (wanted, sum));
}

#[test]
fn dropout_and_offloading_are_computed_without() {
    let Some((network, _right)) = Network::new(Habit::None) else {
        return;
    };
    let adapters = AdapterSet::new(&[], 1, 1.0, 0).unwrap();
    let values = Tensor::zeros(1, DType::F32, &network.device).unwrap();
    for (probability, offload) in [(0.1, false), (0.0, true)] {
        let pass = Pass {
            denoiser: &network,
            adapters: &adapters,
            values: &values,
            dropout: (probability, 0),
            recompute: Recompute::Never,
            offload,
        };
        let (graphs, why) = Graphs::of(&pass).unwrap();
        assert!(graphs.is_none());
        assert!(why.is_some_and(|why| why.starts_with("CUDA graphs are not used: ")));
    }
}
