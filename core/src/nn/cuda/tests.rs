//! The kernels against the CPU in f64. Without a GPU they skip and say so.

use std::sync::{OnceLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{DType, Device, Result, Tensor};

use super::cases::{self, Case};
use crate::nn::flat::accumulate_all;
use crate::nn::fp8::{Float8, Rounded};
use crate::nn::testing::{self, normal};
use crate::nn::{Graph, Kernels, Recorded, rms_norm};

/// A GPU with its kernels, and the right to use it beside others.
fn gpu() -> Option<(
    &'static Device,
    &'static Kernels,
    RwLockReadGuard<'static, ()>,
)> {
    static GPU: OnceLock<Option<(Device, Kernels)>> = OnceLock::new();
    let right = testing::beside_others();
    let (device, kernels) = GPU.get_or_init(testing::gpu).as_ref()?;
    Some((device, kernels, right))
}

fn hold(cases: Result<Vec<Case>>) {
    let Some((gpu, kernels, _right)) = gpu() else {
        return;
    };
    for case in cases.unwrap() {
        assert_eq!(case.fault(gpu, kernels).unwrap(), None);
    }
}

#[test]
fn they_serve_their_own_gpu_and_two_types() {
    let Some((gpu, kernels, _right)) = gpu() else {
        return;
    };
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
fn products_in_fp8() {
    let Some((gpu, kernels, _right)) = gpu() else {
        return;
    };
    let Ok(kernels) = kernels.clone().with_fp8() else {
        println!("a GPU that multiplies no 8-bit floats");
        return;
    };
    for case in cases::in_fp8().unwrap() {
        assert_eq!(case.fault(gpu, &kernels).unwrap(), None);
    }
    let refused = cases::in_fp8().unwrap()[0].fault(gpu, &Kernels::NONE);
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("--own-kernels"), "{why}");
}

#[test]
fn numbers_become_the_codes_of_the_cpu() {
    let Some((gpu, kernels, _right)) = gpu() else {
        return;
    };
    let some = |i: u32| f32::from_bits(i << 16 | (i % 3) << 14) * 1e-20;
    let all: Vec<f32> = (0..0x7f80).map(some).collect();
    // Those half way between two codes, where nothing is scaled: the largest is the largest there is.
    let halves = |format: Float8, smallest: f32| {
        let step = format.largest() as f32 / 1792.0;
        let large = (0..=1792).map(move |i| i as f32 * step);
        let small = (0..64).map(move |i| i as f32 * smallest / 2.0);
        large.chain(small).collect::<Vec<_>>()
    };
    let four = halves(Float8::E4M3, 1.0 / 512.0);
    let five = halves(Float8::E5M2, 1.0 / 65536.0);
    let zeros = vec![0f32; 48];
    let tiny = vec![-3e-14f32; 5];
    let bad = |x: f32| [vec![1f32; 30], vec![x, 2.0]].concat();
    let inputs = [
        all,
        four,
        five,
        zeros,
        tiny,
        bad(f32::NAN),
        bad(f32::NEG_INFINITY),
    ];
    for format in [Float8::E4M3, Float8::E5M2] {
        for x in &inputs {
            for dtype in [DType::F32, DType::BF16] {
                let x = Tensor::new(&x[..], &Device::Cpu).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                let want = Rounded::new(&Kernels::NONE, &x, format).unwrap();
                let found = Rounded::new(kernels, &x.to_device(gpu).unwrap(), format).unwrap();
                let scale = |x: &Rounded| x.scale.to_vec1::<f32>().unwrap()[0];
                let codes = |x: &Rounded| x.codes.flatten_all().unwrap().to_vec1::<u8>().unwrap();
                if scale(&want).is_nan() {
                    assert!(scale(&found).is_nan());
                } else {
                    assert_eq!(scale(&found), scale(&want));
                    assert_eq!(codes(&found), codes(&want), "{format:?} {dtype:?}");
                }
            }
        }
    }
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
fn errors_and_what_networks_are_told_by() {
    hold(cases::losses());
    hold(cases::told());
}

#[test]
fn a_gpu_is_known_by_what_computes_there() {
    let Some((_, kernels, _right)) = gpu() else {
        return;
    };
    let identity = kernels.identity().unwrap().expect("kernels");
    assert_eq!(kernels.clone().identity().unwrap(), Some(identity.clone()));
    for part in ["compute capability", "driver", "NVRTC", "cuBLAS"] {
        assert!(identity.contains(part), "{identity}");
    }
}

/// The comparison itself: a GPU that is off by a hundredth, gives no number, another type, or other numbers each time is found.
#[test]
fn what_is_wrong_is_told() {
    let Some((gpu, kernels, _right)) = gpu() else {
        return;
    };
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

/// Tensors that a graph reads and writes, all f32: `[4, 40]`, and as many numbers flat.
struct Places {
    from: Tensor,
    to: Tensor,
}

impl Places {
    fn new(gpu: &Device) -> Self {
        Self {
            from: Tensor::zeros((4, 40), DType::F32, gpu).unwrap(),
            to: Tensor::zeros(160, DType::F32, gpu).unwrap(),
        }
    }

    /// Adds the normed rows, each half of them apart, to what is there, by a table of places.
    fn work(&self, kernels: &Kernels) -> Result<()> {
        let normed = rms_norm(kernels, &self.from, None, 1e-6)?;
        let half = |i: usize| normed.narrow(0, 2 * i, 2)?.flatten_all();
        kernels.clear(&self.to)?;
        accumulate_all(kernels, &self.to, &[(80, half(0)?), (0, half(1)?)], 0.5)
    }

    fn found(&self) -> Vec<f32> {
        self.to.to_vec1().unwrap()
    }
}

fn made(recorded: Result<Recorded>) -> Graph {
    match recorded.unwrap() {
        Recorded::Graph(graph) => graph,
        Recorded::Refused(why) => panic!("refused: {why}"),
    }
}

/// A GPU with a stream of its own, where no other test is recorded along, and the right to record there.
fn with_graphs() -> Option<(Device, Kernels, RwLockWriteGuard<'static, ()>)> {
    let right = testing::alone();
    let (device, kernels) = testing::gpu()?;
    Some((device, kernels.with_graphs().unwrap(), right))
}

#[test]
fn a_graph_computes_on_what_is_there_by_then() {
    let Some((gpu, kernels, _right)) = with_graphs() else {
        return;
    };
    let places = Places::new(&gpu);
    places.work(&kernels).unwrap();
    let nothing = places.found();
    let mut graph = made(kernels.record(|| places.work(&kernels)));
    assert_eq!(places.found(), nothing, "recorded, not computed");
    // Uploads of others come and go between.
    drop(Tensor::new(vec![7i64; 512], &gpu).unwrap());
    for seed in [1, 2, 3] {
        let numbers = normal(seed, &[4, 40]).to_dtype(DType::F32).unwrap();
        kernels.overwrite(&places.from, &numbers).unwrap();
        places.work(&kernels).unwrap();
        let want = places.found();
        kernels.clear(&places.to).unwrap();
        graph.launch().unwrap();
        assert_eq!(places.found(), want);
        kernels.give_back().unwrap();
    }
}

/// What a recording was told to hold is there although its owner is gone, and what it allocates is not mixed up with other memory.
#[test]
fn a_graph_keeps_what_it_holds() {
    let Some((gpu, kernels, _right)) = with_graphs() else {
        return;
    };
    let out = Tensor::zeros(40, DType::F32, &gpu).unwrap();
    let table = Tensor::ones(40, DType::F32, &gpu).unwrap();
    let work = |table: &Tensor| {
        kernels.hold(&[table]);
        kernels.clear(&out)?;
        accumulate_all(&kernels, &out, &[(0, table.clone())], 3.0)
    };
    work(&table).unwrap();
    let mut graph = made(kernels.record(|| work(&table)));
    drop(table);
    let others: Vec<Tensor> = (0..8)
        .map(|_| Tensor::zeros(40, DType::F32, &gpu).unwrap())
        .collect();
    graph.launch().unwrap();
    assert_eq!(out.to_vec1::<f32>().unwrap(), vec![3.0; 40]);
    drop(others);
}

#[test]
fn what_cannot_be_asked_for_again_is_not_recorded() {
    let _right = testing::alone();
    let Some((gpu, unprepared)) = testing::gpu() else {
        return;
    };
    let kernels = unprepared.clone().with_graphs().unwrap();
    let places = Places::new(&gpu);
    places.work(&kernels).unwrap();
    let why = |work: &dyn Fn() -> Result<()>| {
        let Recorded::Refused(why) = kernels.record(work).unwrap() else {
            panic!("recorded");
        };
        // And all is as before.
        places.work(&kernels).unwrap();
        assert_eq!(places.found(), vec![0.0; 160]);
        why
    };
    let copies = why(&|| {
        Tensor::new(&[1f32, 2.0], &gpu)?;
        places.work(&kernels)
    });
    assert_eq!(copies, "it has 1 copies between host and GPU");
    why(&|| places.to.to_vec1::<f32>().map(|_| ()));
    why(&|| kernels.give_back());
    assert!(why(&|| candle_core::bail!("enough")).starts_with("enough"));
    assert!(why(&|| kernels.before_keeping()).starts_with("a tensor that stays"));
    assert!(why(&|| kernels.record(|| Ok(())).map(|_| ())).contains("one is being recorded"));
    // What is left behind would be read by who comes next, with nothing in it.
    let left = kernels.record(|| {
        let normed = rms_norm(&kernels, &places.from, None, 1e-6)?;
        let _left = std::mem::ManuallyDrop::new(normed);
        Ok(())
    });
    let left = left.err().expect("an error").to_string();
    assert!(
        left.starts_with("a graph allocates 1 tensors and frees 0"),
        "{left}"
    );
    assert!(unprepared.record(|| Ok(())).is_err());
}
