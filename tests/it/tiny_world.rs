//! The bundled miniature through our whole chain, against what transformers and diffusers compute from the same
//! folder (`tools/goldens/tiny_sd3.py`).

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use plumb::autograd::{Tape, Value};
use plumb::base_model::BaseModel;
use plumb::cache::ModelCache;
use plumb::cache::{Conditioning, assemble};
use plumb::diffusion::Spacing;
use plumb::encode::{EncodeOptions, encode_captions, tokenize};
use plumb::experiment::Experiment;
use plumb::lora::Bound;
use plumb::models::{ConditioningTensors, Placement};
use plumb::monitor::{Silent, never};
use plumb::nn::Kernels;
use plumb::nn::weights::DigestMemo;
use plumb::sample::{SampleOptions, sample_from};
use plumb::store::Store;
use plumb::vae::Extents;

use crate::world::World;

const CAPTIONS: [&str; 3] = [
    "a big red heart in the center, on a cream background",
    "A small green star above a large blue circle!",
    "",
];

fn golden() -> HashMap<String, Tensor> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/tiny_sd3.safetensors"
    );
    candle_core::safetensors::load(path, &Device::Cpu).expect("the golden")
}

/// The largest difference, relative to the largest expected number.
fn error(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let number = |t: Tensor| {
        t.abs()
            .and_then(|t| t.max_all())
            .and_then(|t| t.to_scalar::<f32>())
            .expect("a number")
    };
    number((ours - theirs).expect("equal shapes")) / number(theirs.clone()).max(1e-12)
}

#[track_caller]
pub(crate) fn close(what: &str, ours: &Tensor, theirs: &Tensor, limit: f32) {
    let error = error(ours, theirs);
    assert!(
        error <= limit,
        "{what}: relative error {error:.1e}, at most {limit:.0e}"
    );
}

fn conditioning(world: &World, base: &BaseModel) -> Vec<Conditioning> {
    let store = Store::open_or_create(&world.path("store")).expect("a store");
    let captions: Vec<String> = CAPTIONS.map(str::to_owned).into();
    let options = EncodeOptions {
        device: Device::Cpu,
        kernels: Kernels::NONE,
        resident_limit_bytes: u64::MAX,
        wait: std::time::Duration::ZERO,
        clock: || 0.0,
        stop: never,
    };
    encode_captions(base, &store, &captions, &options, &Silent).expect("encoded");
    let texts = CAPTIONS.into_iter();
    let source = ModelCache::open_of(base, &store, texts, &[]).expect("a store");
    let golden = golden();
    let outputs = captions
        .iter()
        .map(|caption| source.outputs(caption).expect("encoded"));
    outputs
        .enumerate()
        .map(|(n, outputs)| {
            for (slot, name) in [("clip_l", "l"), ("clip_g", "g"), ("t5", "t5")] {
                let row = |part: &str| golden[&format!("{name}.{part}")].get(n).expect("a row");
                let output = &outputs[slot];
                close(
                    slot,
                    output.hidden.as_ref().expect("a sequence"),
                    &row("hidden"),
                    1e-5,
                );
                if let Some(pooled) = &output.pooled {
                    close(slot, pooled, &row("pooled"), 1e-5);
                }
            }
            assemble(source.recipe, &outputs, source.context_width).expect("assembled")
        })
        .collect()
}

fn open(world: &World) -> BaseModel {
    let experiment = Experiment::open(&world.path("exp.toml"), &Default::default()).expect("valid");
    BaseModel::open(&experiment, &mut DigestMemo::open(&world.path("memo.json")))
        .expect("the bundled model")
}

#[test]
fn token_ids_are_those_of_transformers() {
    let (world, golden) = (World::new(), golden());
    for (slot, name) in [("clip_l", "l"), ("clip_g", "g"), ("t5", "t5")] {
        let base = open(&world);
        let encoder = base
            .encoders
            .iter()
            .find(|e| e.slot == slot)
            .expect("an encoder");
        for (n, caption) in CAPTIONS.iter().enumerate() {
            let theirs = golden[&format!("ids.{name}")]
                .get(n)
                .and_then(|t| t.to_dtype(DType::U32));
            let theirs = theirs.and_then(|t| t.to_vec1::<u32>()).expect("ids");
            assert_eq!(
                tokenize(encoder, caption).expect("tokens").ids,
                theirs,
                "{slot} {caption}"
            );
        }
    }
}

#[test]
fn conditioning_latents_prediction_and_samples_are_those_of_diffusers() {
    let (world, golden) = (World::new(), golden());
    let base = open(&world);
    let made = conditioning(&world, &base);
    close("context", &made[0].context, &golden["context.0"], 1e-5);
    for (n, made) in made.iter().enumerate() {
        close(
            "pooled",
            &made.pooled,
            &golden["pooled"].get(n).expect("a row"),
            1e-5,
        );
    }

    let vae = base
        .vae
        .load_encoder(&Device::Cpu, &Kernels::NONE)
        .expect("the VAE");
    let pixels = golden["vae.picture_hwc"]
        .permute((2, 0, 1))
        .and_then(|t| t.to_dtype(DType::F32));
    let pixels = pixels
        .and_then(|t| t.affine(1.0 / 127.5, -1.0))
        .and_then(|t| t.unsqueeze(0)?.contiguous());
    let moments = vae.encode(&pixels.expect("pixels")).expect("encoded");
    close("mean", &moments.mean, &golden["vae.mean"], 1e-5);
    close("logvar", &moments.logvar, &golden["vae.logvar"], 1e-4);
    let decoder = base
        .vae
        .load_decoder(&Device::Cpu, &Kernels::NONE)
        .expect("the VAE");
    let mut decoded = Vec::new();
    let mut keep = |frame| {
        decoded.push(frame);
        Ok(())
    };
    decoder
        .decode(&golden["vae.decode.latents"], &mut keep)
        .expect("decoded");
    close("pixels", &decoded[0], &golden["vae.decode.pixels"], 1e-4);

    let denoiser = base
        .denoiser
        .load(&Placement::default())
        .expect("the denoiser");
    let stack = |f: &dyn Fn(&Conditioning) -> Tensor| {
        Tensor::stack(&[f(&made[0]), f(&made[1])], 0).expect("stacked")
    };
    let inputs =
        ConditioningTensors::new(stack(&|c| c.context.clone()), stack(&|c| c.pooled.clone()));
    let latents = Value::constant(golden["denoiser.latents"].clone());
    let prediction = denoiser
        .forward(
            &Tape::off(&Kernels::NONE),
            &Bound::none(),
            &latents,
            &golden["denoiser.timesteps"],
            &inputs,
        )
        .expect("predicted");
    close(
        "prediction",
        prediction.tensor(),
        &golden["denoiser.out"],
        1e-4,
    );

    let sigmas = golden["sample.sigmas"].to_vec1::<f32>().expect("numbers");
    let shift = shift_of(&sigmas);
    let options = SampleOptions {
        pixels: Extents::picture(128, 128),
        process: base.settings.process,
        sampler: base.flavor.sampler,
        steps: 8,
        guidance: 3.5,
        guidance_rescale: 0.0,
        shift,
        size_conditioning: false,
        reference: None,
        embedded_guidance: None,
        spacing: Spacing::Trained,
        seed: 0,
        number: 0,
    };
    let noise = golden["sample.noise"].clone();
    let sampled = sample_from(
        denoiser.as_ref(),
        &Bound::none(),
        noise,
        &made[0],
        Some(&made[2]),
        &options,
        &|| (),
    )
    .expect("sampled");
    close("sample", &sampled, &golden["sample.latents"], 1e-3);
}

/// The shift whose Euler levels these are.
fn shift_of(sigmas: &[f32]) -> f64 {
    let same = |shift: &&f64| {
        let ours = plumb::diffusion::euler_sigmas(sigmas.len() - 1, **shift, Spacing::Trained);
        ours.iter()
            .zip(sigmas)
            .all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5)
    };
    *[1.0, 2.0, 3.0].iter().find(same).expect("a whole shift")
}
