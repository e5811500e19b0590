use candle_core::{DType, Device, IndexOp as _};

use super::*;
use crate::recipe::latents::VaeConfig;

const PICTURES: Factors = Factors::of_pictures(8);
/// Those of the VAEs of Wan and Qwen-Image.
const VIDEOS: Factors = Factors {
    height: 8,
    width: 8,
    time: Some(4),
};

fn geometry(factors: Factors, statistics: LatentStatistics) -> LatentGeometry {
    LatentGeometry {
        channels: 4,
        factors,
        statistics,
        patch: 2,
    }
}

fn plain(factors: Factors) -> LatentGeometry {
    let (scale, shift) = (1.0, 0.0);
    geometry(factors, LatentStatistics::Shared { scale, shift })
}

fn per_channel() -> LatentStatistics {
    LatentStatistics::PerChannel {
        scale: 0.5,
        mean: vec![-1.5, 0.25, 3.0, 0.0],
        std: vec![8.0, 0.5, 2.0, 1.0],
    }
}

fn video(frames: usize, height: usize, width: usize) -> Extents {
    Extents {
        frames,
        height,
        width,
    }
}

fn numbers(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count).map(|i| (i % 37) as f32 * 0.3 - 4.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.flatten_all().and_then(|t| t.to_vec1());
    flat.expect("values")
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            (found - expected).abs() < 1e-6 * largest,
            "{found}, expected {expected}"
        );
    }
}

/// What candle says, without the backtrace that it adds where one is asked for.
fn message<T>(result: Result<T>) -> String {
    let error = result.err().expect("refused").to_string();
    error.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn statistics_of_each_channel_are_applied_as_diffusers_sdxl_pipelines_do() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/latent_statistics.safetensors"
    );
    let bytes = std::fs::read(path).expect("golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
    let config = &header.metadata().as_ref().expect("metadata")["config"];
    let config = VaeConfig::parse(config, "golden").expect("config");
    let statistics = config.statistics.expect("statistics");
    let geometry = LatentGeometry::new(&config.architecture, &statistics, 2);
    let golden = candle_core::safetensors::load(path, &Device::Cpu).expect("tensors");
    let given = geometry.normalize(&golden["encoded"]).expect("normalized");
    assert_close(&given, &golden["given"]);
    let decoded = geometry.denormalize(&golden["made"]).expect("denormalized");
    assert_close(&decoded, &golden["decoded"]);
}

#[test]
fn shared_statistics_are_one_affine_map() {
    let (scale, shift) = (1.5305, 0.0609);
    let geometry = geometry(PICTURES, LatentStatistics::Shared { scale, shift });
    let latents = numbers(&[2, 4, 4, 6]);
    let given = geometry.normalize(&latents).expect("normalized");
    let expected = latents.affine(scale, -shift * scale).expect("affine");
    assert_eq!(values(&given), values(&expected));
    assert_close(&geometry.denormalize(&given).expect("back"), &latents);
}

#[test]
fn channels_are_found_in_samples_and_batches_of_pictures_and_videos() {
    let (pictures, videos) = (
        geometry(PICTURES, per_channel()),
        geometry(VIDEOS, per_channel()),
    );
    let batch = numbers(&[2, 4, 3, 4, 6]);
    let whole = videos.normalize(&batch).expect("a batch of videos");
    assert_close(&videos.denormalize(&whole).expect("back"), &batch);
    for sample in 0..2 {
        let one = batch.i(sample).expect("a video");
        let found = videos.normalize(&one).expect("a video");
        assert_eq!(values(&found), values(&whole.i(sample).expect("a row")));
        for frame in 0..3 {
            let of = |t: &Tensor| {
                t.i((.., frame))
                    .and_then(|t| t.contiguous())
                    .expect("frame")
            };
            let found = pictures.normalize(&of(&one)).expect("a picture");
            assert_eq!(
                values(&found),
                values(&of(&whole.i(sample).expect("a row")))
            );
        }
    }
    let pictures_batch = batch.i((.., .., 0)).and_then(|t| t.contiguous());
    let found = pictures.normalize(&pictures_batch.expect("pictures"));
    let expected = whole.i((.., .., 0)).and_then(|t| t.contiguous());
    assert_eq!(
        values(&found.expect("a batch")),
        values(&expected.expect("a batch"))
    );
    assert_eq!(
        message(pictures.normalize(&batch)),
        "latents: expected shape [4, height, width], or a batch of it, found [2, 4, 3, 4, 6]"
    );
    assert_eq!(
        message(videos.denormalize(&numbers(&[4, 4, 6]))),
        "latents: expected shape [4, frames, height, width], or a batch of it, found [4, 4, 6]"
    );
}

#[test]
fn statistics_keep_the_type_of_the_latents() {
    let geometry = geometry(PICTURES, per_channel());
    let latents = numbers(&[4, 2, 2]).to_dtype(DType::BF16).expect("bf16");
    let given = geometry.normalize(&latents).expect("normalized");
    assert_eq!(given.dtype(), DType::BF16);
}

#[test]
fn latents_have_the_extents_of_their_pixels_by_the_factors() {
    let pictures = plain(PICTURES);
    let wide = Extents::picture(96, 160);
    assert_eq!(pictures.latents(wide), Extents::picture(12, 20));
    assert_eq!(pictures.tokens(pictures.latents(wide)), 60);
    assert_eq!(pictures.shape(Extents::picture(12, 20)), [4, 12, 20]);
    let videos = plain(VIDEOS);
    // Wan's 81 frames of 832 x 480 px; a picture is a video of one frame.
    let clip = videos.latents(video(81, 480, 832));
    assert_eq!(clip, video(21, 60, 104));
    assert_eq!(videos.tokens(clip), 21 * 30 * 52);
    assert_eq!(videos.shape(clip), [4, 21, 60, 104]);
    let picture = videos.latents(wide);
    assert_eq!(picture, Extents::picture(12, 20));
    assert_eq!(videos.shape(picture), [4, 1, 12, 20]);
}

#[test]
fn extents_are_read_off_what_has_the_shape() {
    for (geometry, extents) in [
        (plain(PICTURES), Extents::picture(4, 6)),
        (plain(VIDEOS), Extents::picture(4, 6)),
        (plain(VIDEOS), video(3, 4, 6)),
    ] {
        let shape = geometry.shape(extents);
        let batch = [&[2], shape.as_slice()].concat();
        for shape in [shape, batch] {
            let found = geometry.extents(&numbers(&shape)).expect("extents");
            assert_eq!(found, extents, "{shape:?}");
        }
    }
    let line = message(plain(PICTURES).extents(&numbers(&[4])));
    assert!(line.contains("found [4]"), "{line}");
}

#[test]
fn pixels_that_do_not_become_whole_tokens_are_one_line() {
    let oblong = Factors {
        height: 4,
        width: 8,
        time: None,
    };
    for (factors, pixels, line) in [
        (
            PICTURES,
            Extents::picture(64, 72),
            "a picture of 72 x 64 px: both sides must be multiples of 16",
        ),
        (
            PICTURES,
            Extents::picture(0, 64),
            "a picture of 64 x 0 px: both sides must be multiples of 16",
        ),
        (
            oblong,
            Extents::picture(8, 24),
            "a picture of 24 x 8 px: the width must be a multiple of 16, the height of 8",
        ),
        (
            PICTURES,
            video(5, 64, 64),
            "a video of 5 frames of 64 x 64 px: this model makes pictures, of 1 frame",
        ),
        (
            VIDEOS,
            video(8, 64, 64),
            "a video of 8 frames of 64 x 64 px: the number of frames must be 1 more than a multiple of 4",
        ),
        (
            VIDEOS,
            video(0, 64, 64),
            "a video of 0 frames of 64 x 64 px: the number of frames must be 1 more than a multiple of 4",
        ),
    ] {
        assert_eq!(message(plain(factors).check(pixels)), line);
    }
    for (factors, pixels) in [
        (PICTURES, Extents::picture(64, 160)),
        (oblong, Extents::picture(8, 16)),
        (VIDEOS, Extents::picture(64, 64)),
        (VIDEOS, video(81, 480, 832)),
    ] {
        plain(factors).check(pixels).expect("whole");
    }
}

#[test]
fn one_step_of_buckets_serves_both_sides() {
    let sides = |height, width| Factors {
        height,
        width,
        time: None,
    };
    for (factors, multiple) in [
        (PICTURES, 16),
        (sides(4, 8), 16),
        (sides(6, 4), 24),
        (sides(3, 5), 30),
    ] {
        assert_eq!(plain(factors).side_multiple(), multiple);
    }
}
