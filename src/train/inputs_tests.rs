use candle_core::{DType, IndexOp as _};

use super::*;
use crate::autograd::{Tape, Value};
use crate::diffusion::{Band, Prediction, Sampler, Shift, ShiftRule, Spacing, TimestepSampling};
use crate::lora::{AdapterSet, Bound, Recompute};
use crate::models::Denoiser;
use crate::nn::Kernels;
use crate::recipe::latents::LatentStatistics;
use crate::sample::{SampleOptions, sample};
use crate::train::step::Pass;
use crate::vae::{Extents, Factors};

/// As the VAEs of videos are.
fn geometry() -> LatentGeometry {
    LatentGeometry {
        channels: 2,
        factors: Factors {
            time: Some(4),
            ..Factors::of_pictures(8)
        },
        statistics: LatentStatistics::PerChannel {
            scale: 1.0,
            mean: vec![0.5, -1.0],
            std: vec![2.0, 0.25],
        },
        patch: 2,
    }
}

fn options() -> DrawOptions {
    DrawOptions {
        seed: 7,
        process: Process::new(Prediction::Flow),
        timesteps: TimestepSpec {
            sampling: TimestepSampling::Uniform,
            logit_mean: 0.0,
            logit_std: 1.0,
            mode_scale: 1.29,
            shift: Shift::By(ShiftRule::Resolution),
            band: Band::WHOLE,
        },
        weighting: LossWeighting::None,
        min_snr_gamma: None,
        noise_offset: 0.1,
        size_conditioning: false,
        embedded_guidance: None,
        caption_dropout: 0.0,
    }
}

const KEY: DrawKey = DrawKey {
    micro_batch: 3,
    sample: 1,
};

fn moments(shape: &[usize]) -> StoredLatents {
    let count = shape.iter().product::<usize>();
    let made = |stream| {
        let values = Rng::new(1, stream, 0, 0).normals(count);
        Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
    };
    StoredLatents {
        mean: made(Stream::Shuffle),
        logvar: Some(made(Stream::Caption)),
        time_ids: [0.0; 6],
    }
}

fn caption() -> Conditioning {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
    Conditioning {
        context: zeros(&[3, 4]),
        pooled: zeros(&[0]),
        token_count: None,
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.flatten_all().and_then(|t| t.to_vec1());
    flat.expect("values")
}

/// Predicts half of what it is given, of any shape.
struct Half;

impl Denoiser for Half {
    fn forward(
        &self,
        tape: &Tape,
        _: &Bound,
        latents: &Value,
        _: &Tensor,
        _: &ConditioningTensors,
    ) -> Result<Value> {
        tape.scale(latents, 0.5)
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn kernels(&self) -> &Kernels {
        &Kernels::NONE
    }
}

#[test]
fn latents_with_frames_go_from_the_store_to_the_loss() {
    let shape = [2, 3, 4, 6];
    let drawn = draw_from(&geometry(), &moments(&shape), KEY, &options()).expect("drawn");
    assert_eq!(drawn.latents.dims(), shape);
    let samples = vec![(drawn, caption())];
    let batches = denoiser_batches(samples, &options()).expect("batches");
    let [batch] = batches.as_slice() else {
        panic!("{} batches", batches.len());
    };
    for tensor in [&batch.latents, &batch.noise, &batch.noisy, &batch.target] {
        assert_eq!(tensor.dims(), [1, 2, 3, 4, 6]);
    }
    let adapters = AdapterSet::new(&[], 1, 1.0, 0).expect("no adapters");
    let pass = Pass {
        denoiser: &Half,
        adapters: &adapters,
        values: &Tensor::zeros(0, DType::F32, &Device::Cpu).expect("none"),
        dropout: (0.0, 0),
        recompute: Recompute::Never,
        offload: false,
    };
    let errors = values(&batch.noisy)
        .into_iter()
        .zip(values(&batch.target))
        .map(|(noisy, target)| f64::from(0.5 * noisy - target).powi(2));
    let expected = errors.sum::<f64>() / 144.0;
    let loss = pass.loss(batch).expect("a loss");
    assert!((loss - expected).abs() < 1e-6 * expected, "{loss}");
}

#[test]
fn the_shift_of_noise_levels_grows_with_frames() {
    let level = |shape: &[usize]| {
        let drawn = draw_from(&geometry(), &moments(shape), KEY, &options());
        drawn.expect("drawn").level.sigma
    };
    assert!(level(&[2, 9, 64, 64]) > level(&[2, 1, 64, 64]));
    // As many tokens.
    assert_eq!(level(&[2, 1, 64, 32]), level(&[2, 2, 32, 32]));
}

#[test]
fn a_picture_of_one_frame_is_drawn_as_one_without_an_axis_for_frames() {
    let pictures = LatentGeometry {
        factors: Factors::of_pictures(8),
        ..geometry()
    };
    let video = draw_from(&geometry(), &moments(&[2, 1, 4, 6]), KEY, &options());
    let picture = draw_from(&pictures, &moments(&[2, 4, 6]), KEY, &options());
    let (video, picture) = (video.expect("drawn"), picture.expect("drawn"));
    for (with, without) in [
        (&video.latents, &picture.latents),
        (&video.noise, &picture.noise),
    ] {
        assert_eq!(with.dims(), [2, 1, 4, 6]);
        assert_eq!(without.dims(), [2, 4, 6]);
        assert_eq!(values(with), values(without));
    }
    assert_eq!(video.level, picture.level);
}

#[test]
fn the_noise_offset_moves_a_channel_in_all_frames_alike() {
    let drawn = |noise_offset| {
        let options = DrawOptions {
            noise_offset,
            ..options()
        };
        let drawn = draw_from(&geometry(), &moments(&[2, 3, 4, 6]), KEY, &options);
        drawn.expect("drawn").noise
    };
    let moved = (drawn(0.5) - drawn(0.0)).expect("a difference");
    for channel in 0..2 {
        let by = values(&moved.i(channel).expect("a channel"));
        assert!(
            by.iter()
                .all(|one| (one - by[0]).abs() < 1e-6 && *one != 0.0)
        );
    }
}

#[test]
fn a_video_is_sampled_from_noise_of_its_own_shape() {
    let options = |pixels| SampleOptions {
        pixels,
        process: Process::new(Prediction::Flow),
        sampler: Sampler::Euler,
        steps: 2,
        guidance: 3.0,
        guidance_rescale: 0.0,
        embedded_guidance: None,
        shift: 1.0,
        spacing: Spacing::Even,
        size_conditioning: false,
        reference: None,
        seed: 1,
        number: 0,
    };
    let made = |geometry: &LatentGeometry, pixels| {
        let (with, without) = (caption(), caption());
        sample(
            &Half,
            &Bound::none(),
            geometry,
            &with,
            Some(&without),
            &options(pixels),
            &|| (),
        )
    };
    let clip = Extents {
        frames: 9,
        height: 32,
        width: 48,
    };
    let video = made(&geometry(), clip).expect("sampled");
    assert_eq!(video.dims(), [1, 2, 3, 4, 6]);
    let pictures = LatentGeometry {
        factors: Factors::of_pictures(8),
        ..geometry()
    };
    let still = Extents::picture(32, 48);
    let (video, picture) = (made(&geometry(), still), made(&pictures, still));
    let (video, picture) = (video.expect("sampled"), picture.expect("sampled"));
    assert_eq!(video.dims(), [1, 2, 1, 4, 6]);
    assert_eq!(picture.dims(), [1, 2, 4, 6]);
    assert_eq!(values(&video), values(&picture));
    let refused = made(&pictures, clip).expect_err("refused").to_string();
    assert!(refused.contains("this model makes pictures"), "{refused}");
}
