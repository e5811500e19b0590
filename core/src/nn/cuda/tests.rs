//! The kernels against the CPU in f64. Without a GPU they skip and say so.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

use super::cases::{self, Case};
use crate::device::{self, Choice};
use crate::nn::Kernels;
use crate::nn::testing::normal;

/// A GPU and its kernels.
type Gpu = (Device, Kernels);

fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        let folders = device::cuda_folders(|name| std::env::var_os(name));
        match device::open(Choice::Cuda(0), &folders) {
            Ok(opened) => {
                let kernels = Kernels::compile(&opened.device).expect("kernels for the GPU");
                Some((opened.device, kernels))
            }
            Err(why) => {
                println!("skipped: {why}");
                None
            }
        }
    });
    gpu.as_ref()
}

fn hold(cases: Result<Vec<Case>>) {
    let Some((gpu, kernels)) = gpu() else { return };
    for case in cases.unwrap() {
        assert_eq!(case.fault(gpu, kernels).unwrap(), None);
    }
}

#[test]
fn they_serve_their_own_gpu_and_two_types() {
    let Some((gpu, kernels)) = gpu() else { return };
    let serves = |kernels: &Kernels, dtype, device: &Device| {
        let tensor = Tensor::zeros(3, dtype, device).unwrap();
        kernels.serving(&tensor).is_some()
    };
    assert!(serves(kernels, DType::F32, gpu) && serves(kernels, DType::BF16, gpu));
    assert!(!serves(kernels, DType::U32, gpu) && !serves(kernels, DType::F32, &Device::Cpu));
    assert!(!serves(&Kernels::NONE, DType::F32, gpu));
}

#[test]
fn attention_at_every_width_and_length() {
    hold(cases::attentions());
}

#[test]
fn gradients_of_attention_in_parts() {
    hold(cases::attention_gradients());
}

#[test]
fn attention_of_large_scores() {
    hold(cases::large_scores());
}

#[test]
fn norms_forward_and_backward() {
    hold(cases::norms());
    hold(cases::norms_of(&[1]));
}

#[test]
fn views_in_one_piece() {
    hold(cases::views());
}

#[test]
fn linear_layers_with_a_bias() {
    hold(cases::linears());
}

#[test]
fn adapters_and_their_gradients() {
    hold(cases::adapters());
}

#[test]
fn fused_linear_layers_and_numbers_laid_together() {
    hold(cases::fused());
    hold(cases::with_gelus());
    hold(cases::gathered());
}

#[test]
fn sums_of_many_numbers_and_adamw() {
    hold(cases::flat());
}

#[test]
fn convolutions_forward_and_backward() {
    hold(cases::convolutions());
    hold(cases::channels());
}

#[test]
fn group_norms_of_one_and_of_many_pieces() {
    hold(cases::group_norms());
}

#[test]
fn dropout_draws_what_the_host_draws() {
    hold(cases::dropouts());
}

#[test]
fn single_numbers_and_rotations() {
    hold(cases::pointwise_operations());
}

#[test]
fn a_gpu_is_known_by_what_computes_there() {
    let Some((_, kernels)) = gpu() else { return };
    let identity = kernels.identity().unwrap().expect("kernels");
    assert_eq!(kernels.clone().identity().unwrap(), Some(identity.clone()));
    for part in ["compute capability", "driver", "NVRTC", "cuBLAS"] {
        assert!(identity.contains(part), "{identity}");
    }
}

/// The comparison itself: a GPU that is off by a hundredth, gives no number, another type, or other numbers each time is found.
#[test]
fn what_is_wrong_is_told() {
    let Some((gpu, kernels)) = gpu() else { return };
    let told = |wrong: fn(&Tensor) -> Result<Tensor>| {
        let limits = [(DType::F32, 1e-3)];
        let case = Case::new("scaling", vec![normal(1, &[2, 5])], &limits, move |_, x| {
            Ok(vec![match x[0].device() {
                Device::Cpu => x[0].clone(),
                _ => wrong(&x[0])?,
            }])
        });
        case.fault(gpu, kernels).unwrap()
    };
    assert_eq!(told(|x| x * 1.0001), None);
    let off = told(|x| x * 1.01).expect("a fault");
    assert!(
        off.starts_with("scaling in f32, result 0: off by 1.0e-2"),
        "{off}"
    );
    assert!(told(|x| x * f64::NAN).is_some());
    let of_bf16 = told(|x| x.to_dtype(DType::BF16)).expect("a fault");
    assert!(of_bf16.ends_with("it is of bf16"), "{of_bf16}");
    static CALLS: OnceLock<()> = OnceLock::new();
    let changing = told(|x| x * if CALLS.set(()).is_ok() { 1.0 } else { 1.0001 });
    assert!(changing.is_some_and(|why| why.ends_with("the second time")));
}
