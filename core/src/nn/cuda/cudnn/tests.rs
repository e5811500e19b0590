//! Attention and convolutions by cuDNN against the CPU in f64. Without a GPU or the library they skip and say so.

use std::sync::{OnceLock, RwLockReadGuard};

use candle_core::{DType, Device, Result, Tensor};

use super::{Convolution, Cudnn, Direction};
use crate::device::{self, Choice};
use crate::nn::attention::{Parts, joint_attention, joint_attention_backward};
use crate::nn::cuda::{Kernels, cases};
use crate::nn::testing::{self, difference, normal};
use crate::nn::{self, AttentionMask};

/// Results and gradients: how far they may be off, in units of the largest.
const LIMITS: [f64; 4] = [6e-3, 2e-2, 2e-2, 2e-2];

/// A GPU with its kernels and cuDNN.
struct Gpu {
    device: Device,
    kernels: Kernels,
    cudnn: Cudnn,
}

/// It, and the right to use it beside others.
fn gpu() -> Option<(&'static Gpu, RwLockReadGuard<'static, ()>)> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || -> std::result::Result<Gpu, String> {
        let folders = device::cuda_folders(|name| std::env::var_os(name));
        let opened = device::open(Choice::Cuda(0), &folders).map_err(|e| e.to_string())?;
        let device = opened.device;
        let gpu = device.as_cuda_device().map_err(|e| e.to_string())?;
        let kernels = Kernels::compile(gpu).map_err(|e| e.to_string())?;
        let cudnn = Cudnn::open(&kernels, &folders).map_err(|e| e.to_string())?;
        Ok(Gpu {
            device,
            kernels,
            cudnn,
        })
    };
    let right = testing::beside_others();
    let gpu = GPU.get_or_init(|| open().map_err(|why| testing::without_gpu(&why)).ok());
    gpu.as_ref().map(|gpu| (gpu, right))
}

/// One attention, its inputs and the gradient of its results.
struct Case {
    inputs: [Tensor; 4],
    scale: f64,
    counts: Option<Vec<usize>>,
}

impl Case {
    fn new((queries, keys): (usize, usize), width: usize, counts: Option<Vec<usize>>) -> Self {
        let lengths = [queries, keys, keys, queries];
        let mut seed = 0;
        let inputs = lengths.map(|length| {
            seed += 1;
            let exact = normal(seed, &[2, length, 3, width]);
            exact.to_dtype(DType::BF16).unwrap()
        });
        Self {
            inputs,
            scale: 1.0 / (width as f64).sqrt(),
            counts,
        }
    }

    /// The results and the gradients of q, k and v by cuDNN, on the CPU.
    fn by_cuda(&self, gpu: &Gpu) -> Result<Vec<Tensor>> {
        let on_gpu: Vec<_> = self
            .inputs
            .iter()
            .map(|t| t.to_device(&gpu.device))
            .collect::<Result<_>>()?;
        let counts = match &self.counts {
            Some(counts) => {
                let counts: Vec<u32> = counts.iter().map(|&count| count as u32).collect();
                Some(Tensor::from_vec(counts, 2, &gpu.device)?)
            }
            None => None,
        };
        let (q, k, v, gradient) = (&on_gpu[0], &on_gpu[1], &on_gpu[2], &on_gpu[3]);
        let (scale, counts) = (self.scale, counts.as_ref());
        let Gpu { kernels, cudnn, .. } = gpu;
        let (out, stats) = cudnn.forward(kernels, (q, k, v), scale, counts)?;
        let kept = (&out, &stats);
        let back = cudnn.backward(kernels, (q, k, v), kept, gradient, scale, counts)?;
        let all = [vec![out], back.to_vec()].concat();
        all.iter().map(|t| t.to_device(&Device::Cpu)).collect()
    }

    /// The same by the CPU in f64.
    fn by_cpu(&self) -> Result<Vec<Tensor>> {
        let exact = |t: &Tensor| t.to_dtype(DType::F64);
        let parts = Parts {
            q: vec![exact(&self.inputs[0])?],
            k: vec![exact(&self.inputs[1])?],
            v: vec![exact(&self.inputs[2])?],
        };
        let mask = match &self.counts {
            Some(counts) => AttentionMask::KeyCounts(counts.clone()),
            None => AttentionMask::None,
        };
        let gradient = exact(&self.inputs[3])?.flatten_from(2)?;
        let none = nn::Kernels::NONE;
        let (outs, kept) = joint_attention(&none, &parts, self.scale, None, &mask)?;
        let back =
            joint_attention_backward(&none, &parts, self.scale, None, &mask, &kept, &[gradient])?;
        let out = outs[0].reshape(self.inputs[0].shape())?;
        let back = [back.q, back.k, back.v].concat();
        Ok([vec![out], back].concat())
    }

    fn held(&self, gpu: &Gpu) {
        let (want, found) = (self.by_cpu().unwrap(), self.by_cuda(gpu).unwrap());
        let repeated = self.by_cuda(gpu).unwrap();
        let case_name = format!("{:?} by {:?}", self.inputs[0].dims(), self.inputs[1].dims());
        for (i, limit) in LIMITS.into_iter().enumerate() {
            assert_eq!(found[i].dtype(), DType::BF16);
            let off = difference(&found[i], &want[i]);
            println!(
                "{case_name}, counts {:?}, result {i}: off by {off}",
                self.counts
            );
            assert!(off < limit, "{case_name}, result {i}: off by {off}");
            assert_eq!(
                difference(&found[i], &repeated[i]),
                0.0,
                "{case_name}, result {i} changes"
            );
        }
    }
}

#[test]
fn attention_and_its_gradients() {
    let Some((gpu, _right)) = gpu() else {
        return;
    };
    for width in [64, 128] {
        for lengths in [(1536, 1536), (333 + 64, 333 + 64), (63, 65), (1, 77)] {
            let keys: usize = lengths.1;
            for counts in [None, Some(vec![keys, keys.div_ceil(3)])] {
                Case::new(lengths, width, counts).held(gpu);
            }
        }
    }
}

/// Keys beyond a count have no influence, and no gradient at all.
#[test]
fn keys_that_are_not_seen() {
    let Some((gpu, _right)) = gpu() else {
        return;
    };
    let seen = 33;
    let mut case = Case::new((70, 150), 64, Some(vec![seen, 150]));
    let found = case.by_cuda(gpu).unwrap();
    for gradient in &found[2..] {
        let unseen = gradient.narrow(0, 0, 1).unwrap();
        let unseen = unseen.narrow(1, seen, 150 - seen).unwrap();
        let nothing = unseen.zeros_like().unwrap();
        assert_eq!(difference(&unseen, &nothing), 0.0);
    }
    for i in [1, 2] {
        let all = &case.inputs[i];
        let (first, second) = (all.narrow(0, 0, 1).unwrap(), all.narrow(0, 1, 1).unwrap());
        let kept = first.narrow(1, 0, seen).unwrap();
        let other = (first.narrow(1, seen, 150 - seen).unwrap() * 3.0).unwrap();
        let first = Tensor::cat(&[&kept, &other], 1).unwrap();
        case.inputs[i] = Tensor::cat(&[&first, &second], 0).unwrap();
    }
    let repeated = case.by_cuda(gpu).unwrap();
    for (found, repeated) in found.iter().zip(&repeated) {
        let rows = |t: &Tensor| t.narrow(0, 0, 1).unwrap();
        assert_eq!(difference(&rows(found), &rows(repeated)), 0.0);
    }
}

/// One query and one key: the key has all the weight.
#[test]
fn one_key() {
    let Some((gpu, _right)) = gpu() else {
        return;
    };
    let case = Case::new((1, 1), 64, None);
    let found = case.by_cuda(gpu).unwrap();
    let nothing = found[1].zeros_like().unwrap();
    let want = [&case.inputs[2], &nothing, &nothing, &case.inputs[3]];
    for (found, want) in found.iter().zip(want) {
        assert_eq!(difference(found, want), 0.0);
    }
}

#[test]
fn what_is_not_served() {
    let Some((gpu, _right)) = gpu() else {
        return;
    };
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &gpu.device).unwrap();
    let q = zeros(&[1, 4, 2, 64], DType::BF16);
    let refused = |q: &Tensor, k: &Tensor| {
        let made = gpu.cudnn.forward(&gpu.kernels, (q, k, k), 1.0, None);
        made.is_err()
    };
    assert!(refused(&q, &zeros(&[1, 4, 2, 64], DType::F32)));
    assert!(refused(&q, &zeros(&[1, 4, 3, 64], DType::BF16)));
    let narrow = zeros(&[1, 4, 2, 4], DType::BF16);
    assert!(refused(&narrow, &narrow));
}

/// Every convolution that kernels of ours are tried with, and their gradients.
#[test]
fn convolutions_and_gradients_of_pictures() {
    let Some((gpu, _right)) = gpu() else {
        return;
    };
    let folders = device::cuda_folders(|name| std::env::var_os(name));
    let with = gpu.kernels.clone().with_cudnn(&folders).unwrap();
    let kernels = nn::Kernels::of_gpu(with);
    for case in cases::convolutions().unwrap() {
        assert_eq!(case.fault(&gpu.device, &kernels).unwrap(), None);
    }
}

/// They are by cuDNN, not by what would serve as well.
#[test]
fn a_convolution_has_a_plan() {
    let Some((gpu, _right)) = gpu() else {
        return;
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::BF16, &gpu.device).unwrap();
    let convolution = Convolution {
        batch: 1,
        weight: (4, 3, 3, 3),
        size: (5, 7),
        out: (3, 4),
        stride: cases::STRIDED.stride,
        padding: cases::STRIDED.padding,
    };
    let weight = zeros(&[4, 3, 3, 3]);
    let (picture, following) = ([1, 3, 5, 7], [1, 4, 3, 4]);
    for (direction, given, made) in [
        (Direction::Forward, picture, following),
        (Direction::TowardsPicture, following, picture),
    ] {
        let found = (gpu.cudnn)
            .convolve(
                &gpu.kernels,
                &convolution,
                direction,
                &zeros(&given),
                &weight,
            )
            .unwrap();
        assert_eq!(found.expect("a plan").dims(), made);
    }
}
