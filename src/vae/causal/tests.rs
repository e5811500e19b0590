use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use super::*;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae_wan.safetensors")
}

/// The golden file: weights, what they are of, its metadata.
fn opened() -> (Weights, WanArchitecture, HashMap<String, String>) {
    let bytes = std::fs::read(golden()).expect("golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
    let metadata = header.metadata().clone().expect("metadata");
    let architecture = WanArchitecture::parse(&metadata["config"], "vae_wan").expect("config");
    let weights = Weights::open(&[golden()]).expect("opens");
    (weights, architecture, metadata)
}

/// The frames of the script's clips: `[t, 3, h, w]`.
fn wave(phase: f64, shape: [usize; 4]) -> Tensor {
    let count: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..count)
        .map(|n| (n as f64 * 1.3 + phase).sin() as f32)
        .collect();
    Tensor::from_vec(numbers, &shape, &Device::Cpu).expect("shape")
}

fn tensor(weights: &Weights, name: &str) -> Tensor {
    let name = format!("golden.{name}");
    let shape = weights.shape(&name).expect("there");
    weights.get(&shape, &name).expect("reads")
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (f, e) in found.iter().zip(&expected) {
        let error = (f - e).abs() / largest;
        assert!(error < 1e-5, "{what}: {f} for {e}");
    }
}

/// The latents of a clip that is read so many frames at a time.
fn encode(encoder: &Encoder, frames: &Tensor, at_a_time: usize) -> Tensor {
    let count = frames.dim(0).expect("frames");
    let mut encoding = encoder.begin();
    for start in (0..count).step_by(at_a_time) {
        let chunk = frames.narrow(0, start, at_a_time.min(count - start));
        encoding.push(&chunk.expect("chunk")).expect("encodes");
    }
    encoding.finish().expect("a clip").mean
}

fn decode(decoder: &Decoder, latents: &Tensor) -> Tensor {
    let mut frames = Vec::new();
    let mut keep = |frame| {
        frames.push(frame);
        Ok(())
    };
    decoder.decode(latents, &mut keep).expect("decodes");
    Tensor::stack(&frames, 2).expect("frames")
}

#[test]
fn encoding_equals_diffusers_for_stills_and_clips_and_odd_sizes() {
    let (weights, architecture, _) = opened();
    let encoder = Encoder::load(&architecture.encoder, &weights).expect("loads");
    let clip = wave(0.0, [17, 3, 16, 24]);
    let mean = tensor(&weights, "mean");
    for (frames, latents) in [(1, 1), (5, 2), (9, 3), (17, 5)] {
        let found = encode(&encoder, &clip.narrow(0, 0, frames).expect("part"), 4);
        let expected = mean.narrow(2, 0, latents).expect("part");
        assert_close(&found, &expected, &format!("{frames} frames"));
    }
    let odd = encode(&encoder, &wave(0.5, [5, 3, 24, 40]), 5);
    assert_close(&odd, &tensor(&weights, "odd"), "latents of 5 x 3");
}

#[test]
fn decoding_equals_diffusers_frame_by_frame() {
    let (weights, architecture, _) = opened();
    let decoder = Decoder::load(&architecture, &weights).expect("loads");
    let latents = wave(1.0, [5, 3, 1, 3]);
    let latents = latents.transpose(0, 1).and_then(|l| l.unsqueeze(0));
    let latents = latents.expect("a batch of one");
    let decoded = tensor(&weights, "decoded");
    for (count, frames) in [(1, 1), (2, 5), (3, 9), (5, 17)] {
        let found = decode(&decoder, &latents.narrow(2, 0, count).expect("part"));
        let expected = decoded.narrow(2, 0, frames).expect("part");
        assert_close(&found, &expected, &format!("{count} latent frames"));
    }
}

#[test]
fn how_many_frames_are_read_at_a_time_changes_no_bit() {
    let (weights, architecture, _) = opened();
    let encoder = Encoder::load(&architecture.encoder, &weights).expect("loads");
    let clip = wave(0.0, [9, 3, 16, 24]);
    let whole = values(&encode(&encoder, &clip, 9));
    for at_a_time in [1, 2, 3, 4, 7] {
        assert_eq!(values(&encode(&encoder, &clip, at_a_time)), whole);
    }
}

/// Of the memory itself: `cargo bench -- vae ours`.
#[test]
fn a_longer_clip_keeps_no_more_frames() {
    let (weights, architecture, _) = opened();
    let encoder = Encoder::load(&architecture.encoder, &weights).expect("loads");
    let mut encoding = encoder.begin();
    let mut kept = Vec::new();
    for n in 0..25 {
        encoding
            .push(&wave(f64::from(n), [1, 3, 8, 8]))
            .expect("encodes");
        kept.push(encoding.states.iter().map(State::frames).sum::<usize>());
    }
    // Two frames for each of the convolutions over three frames; what halves the frames keeps up to two as well.
    assert_eq!(kept[8], kept[24]);
    assert!(
        kept[12..].iter().all(|count| *count <= kept[8] + 4),
        "{kept:?}"
    );
}

#[test]
fn a_clip_of_another_number_of_frames_is_refused() {
    let (weights, architecture, _) = opened();
    let encoder = Encoder::load(&architecture.encoder, &weights).expect("loads");
    for frames in [2, 3, 4, 6] {
        let mut encoding = encoder.begin();
        encoding
            .push(&wave(0.0, [frames, 3, 8, 8]))
            .expect("encodes");
        let error = encoding.finish().expect_err("a part of a chunk is left");
        let expected = format!(
            "a clip of {frames} frames: the number of frames must be 1 more than a multiple of 4"
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    let error = encoder.begin().push(&wave(0.0, [1, 3, 8, 7]));
    let error = error.expect_err("less than a latent").to_string();
    assert!(
        error.contains("at least 8 x 8 pixels, found 7 x 8"),
        "{error}"
    );
    encoder.begin().finish().expect_err("no frame at all");
}

#[test]
fn the_authors_names_load_to_the_identical_output() {
    let (weights, architecture, metadata) = opened();
    let original: HashMap<String, String> =
        serde_json::from_str(&metadata["original_names"]).expect("names");
    let tensors: HashMap<String, Tensor> = original
        .iter()
        .map(|(name, original)| {
            let shape = weights.shape(name).expect("shape");
            (original.clone(), weights.get(&shape, name).expect("reads"))
        })
        .collect();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("wan_2.1_vae.safetensors");
    candle_core::safetensors::save(&tensors, &path).expect("saves");
    let file = Weights::open(&[path]).expect("opens");
    let named = names::canonical(&file).expect("the authors' names");
    let ours = Encoder::load(&architecture.encoder, &weights).expect("loads");
    let theirs = Encoder::load(&architecture.encoder, &named).expect("loads");
    Decoder::load(&architecture, &named).expect("loads");
    assert_eq!(file.unused(), Vec::<String>::new());
    let clip = wave(0.0, [5, 3, 8, 8]);
    assert_eq!(
        values(&encode(&ours, &clip, 5)),
        values(&encode(&theirs, &clip, 5))
    );
    // Of a file with other channels than the released one nobody knows the statistics.
    assert_eq!(names::architecture(&named), None);
}

#[test]
fn the_released_architecture_is_told_by_the_shapes_of_a_file() {
    let released = WanArchitecture::parse("{}", "vae").expect("config");
    let mut small = released.clone();
    small.encoder.base_dim = 2;
    small.decoder_base_dim = 2;
    let tensors: HashMap<String, Tensor> = names::encoder_tensors(&small.encoder)
        .into_iter()
        .chain(names::decoder_tensors(&small))
        .map(|(name, shape)| {
            let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu);
            (name, zeros.expect("zeros"))
        })
        .collect();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("vae.safetensors");
    candle_core::safetensors::save(&tensors, &path).expect("saves");
    let weights = Weights::open(&[path]).expect("opens");
    assert_eq!(names::architecture(&weights), Some(small));
    let parameters: usize = names::encoder_tensors(&released.encoder)
        .iter()
        .chain(&names::decoder_tensors(&released))
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    // Of `Wan2.1_VAE.pth`, 508 MB in f32.
    assert_eq!(parameters, 126_892_531);
}

#[test]
fn the_lists_of_tensors_are_what_the_file_has() {
    let (weights, architecture, _) = opened();
    let mut listed = names::encoder_tensors(&architecture.encoder);
    listed.extend(names::decoder_tensors(&architecture));
    weights.require(&listed).expect("shapes");
    let mut listed: Vec<_> = listed.into_iter().map(|(name, _)| name).collect();
    listed.sort();
    let stored = weights.names().into_iter();
    let stored: Vec<_> = stored.filter(|n| !n.starts_with("golden.")).collect();
    assert_eq!(listed, stored);
}
