//! The bundled miniatures of FLUX.1 and SDXL through our whole chain, against what diffusers' own pipelines make of the
//! same folders (`tools/goldens/tiny_pipelines.py`). SD3's is `tiny_world.rs`.

use std::collections::{BTreeSet, HashMap};

use candle_core::{Device, Tensor};
use plumb::base_model::BaseModel;
use plumb::cache::ModelCache;
use plumb::cache::{Conditioning, assemble, drop_caption};
use plumb::encode::{EncodeOptions, encode_captions};
use plumb::experiment::Experiment;
use plumb::lora::Bound;
use plumb::models::Placement;
use plumb::monitor::{Silent, never};
use plumb::nn::Kernels;
use plumb::nn::weights::DigestMemo;
use plumb::sample::previews;
use plumb::sample::sample_from;
use plumb::store::Store;

use crate::tiny_world::close;
use crate::world::{World, tiny_sd3};

struct Kind {
    family: &'static str,
    flavor: &'static str,
    model: &'static str,
}

const FLUX: Kind = Kind {
    family: "flux1",
    flavor: "dev",
    model: "tiny-flux",
};

const SDXL: Kind = Kind {
    family: "sdxl",
    flavor: "base-1.0",
    model: "tiny-sdxl",
};

impl Kind {
    fn golden(&self) -> (HashMap<String, Tensor>, Vec<String>) {
        let name = self.model.replace('-', "_");
        let path = format!(
            "{}/tests/golden/{name}.safetensors",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(&path).expect("the golden");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
        let captions = &header.metadata().as_ref().expect("metadata")["captions"];
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("the golden");
        (tensors, serde_json::from_str(captions).expect("a list"))
    }

    /// An Experiment that samples as the golden was.
    fn world(&self) -> World {
        let world = World::new();
        let bundled = tiny_sd3().display().to_string();
        world.edit(&bundled, &bundled.replace("tiny-sd3", self.model));
        world.edit("\"sd3\"", &format!("{:?}", self.family));
        world.edit("\"3.5-large\"", &format!("{:?}", self.flavor));
        world.edit("\"reference\"", "\"diffusers\"");
        world.edit("resolution = 64", "resolution = 128");
        world.edit("]\nsteps = 2", "]\nsteps = 8\nguidance = 3.5");
        world
    }

    fn check(&self) {
        let (world, (golden, captions)) = (self.world(), self.golden());
        let experiment =
            Experiment::open(&world.path("exp.toml"), &Default::default()).expect("valid");
        let mut memo = DigestMemo::open(&world.path("memo.json"));
        let base = BaseModel::open(&experiment, &mut memo).expect("the bundled model");
        let store = Store::open_or_create(&world.path("store")).expect("a store");
        let options = EncodeOptions {
            device: Device::Cpu,
            kernels: Kernels::NONE,
            resident_limit_bytes: u64::MAX,
            wait: std::time::Duration::ZERO,
            clock: || 0.0,
            stop: never,
        };
        encode_captions(&base, &store, &captions, &options, &Silent).expect("encoded");
        let texts = captions.iter().map(String::as_str).chain([""]);
        let source = ModelCache::open_of(&base, &store, texts, &[]).expect("a store");
        let said: Vec<Conditioning> = captions.iter().map(|c| conditioning(&source, c)).collect();
        for (n, said) in said.iter().enumerate() {
            let theirs = golden["context"].get(n).expect("a row");
            let rows = theirs.dim(0).expect("rows");
            let ours = said.context.narrow(0, 0, rows).expect("as many rows");
            close("context", &ours, &theirs, 2e-5);
            let theirs = golden["pooled"].get(n).expect("a row");
            close("pooled", &said.pooled, &theirs, 2e-5);
        }
        let unconditional = golden.contains_key("unconditional.context").then(|| {
            let made = without_caption(&source);
            let theirs = |name: &str| golden[name].squeeze(0).expect("a row");
            let zeros = |t: &Tensor| t.abs().and_then(|t| t.sum_all()?.to_scalar::<f32>());
            for (ours, name) in [(&made.context, "context"), (&made.pooled, "pooled")] {
                let theirs = theirs(&format!("unconditional.{name}"));
                assert_eq!(ours.dims(), theirs.dims());
                assert_eq!(zeros(&theirs).expect("a number"), 0.0);
                assert_eq!(zeros(ours).expect("a number"), 0.0);
            }
            made
        });

        let placement = Placement::default();
        let denoiser = base.denoiser.load(&placement).expect("the denoiser");
        let options = previews::options(&base);
        let latents = sample_from(
            denoiser.as_ref(),
            &Bound::none(),
            golden["noise"].clone(),
            &said[0],
            unconditional.as_ref(),
            &options,
            &|| (),
        );
        let latents = latents.expect("sampled");
        close("latents", &latents, &golden["latents"], 1e-3);
        let decoder = base
            .vae
            .load_decoder(&Device::Cpu, &Kernels::NONE)
            .expect("the VAE");
        let latents = source
            .geometry
            .denormalize(&golden["latents"])
            .expect("latents");
        let mut pixels = Vec::new();
        let mut keep = |frame| {
            pixels.push(frame);
            Ok(())
        };
        decoder.decode(&latents, &mut keep).expect("a picture");
        close("pixels", &pixels[0], &golden["pixels"], 1e-4);
    }
}

fn conditioning(source: &ModelCache<'_>, caption: &str) -> Conditioning {
    let outputs = source.outputs(caption).expect("encoded");
    assemble(source.recipe, &outputs, source.context_width).expect("assembled")
}

/// What stands for no caption.
fn without_caption(source: &ModelCache<'_>) -> Conditioning {
    let empty = source.outputs("").expect("encoded");
    let all: BTreeSet<&str> = empty.keys().map(String::as_str).collect();
    let dropped = drop_caption(source.recipe, &empty, Some(&empty), &all).expect("outputs");
    assemble(source.recipe, &dropped, source.context_width).expect("assembled")
}

#[test]
fn flux_is_what_its_pipeline_makes() {
    FLUX.check();
}

#[test]
fn sdxl_is_what_its_pipeline_makes() {
    SDXL.check();
}

/// 20 steps from pure noise, with the flavor's own sampler and rescaled guidance: what `sdxl_vpred` of the script does.
#[test]
fn v_prediction_from_pure_noise_is_what_its_pipeline_makes() {
    let kind = Kind {
        flavor: "noobai-vpred-1.0",
        ..SDXL
    };
    let world = kind.world();
    world.edit("]\nsteps = 8", "]\nguidance_rescale = 0.2\nsteps = 20");
    world.edit(
        "[recipe]",
        "[model.files]\nscheduler = \"scheduler.json\"\n[recipe]",
    );
    let scheduler = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/assets/tiny-sdxl/scheduler/scheduler_config.json"
    );
    let scheduler = std::fs::read_to_string(scheduler).expect("the asset");
    let scheduler = scheduler
        .replace("\"epsilon\"", "\"v_prediction\"")
        .replace(
            "\"rescale_betas_zero_snr\": false",
            "\"rescale_betas_zero_snr\": true",
        );
    world.write("scheduler.json", &scheduler);
    let (_, captions) = SDXL.golden();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/tiny_sdxl_vpred.safetensors"
    );
    let golden = candle_core::safetensors::load(path, &Device::Cpu).expect("the golden");
    let experiment = Experiment::open(&world.path("exp.toml"), &Default::default()).expect("valid");
    let mut memo = DigestMemo::open(&world.path("memo.json"));
    let base = BaseModel::open(&experiment, &mut memo).expect("the bundled model");
    let store = Store::open_or_create(&world.path("store")).expect("a store");
    let options = EncodeOptions {
        device: Device::Cpu,
        kernels: Kernels::NONE,
        resident_limit_bytes: u64::MAX,
        wait: std::time::Duration::ZERO,
        clock: || 0.0,
        stop: never,
    };
    encode_captions(&base, &store, &captions, &options, &Silent).expect("encoded");
    let texts = captions.iter().map(String::as_str).chain([""]);
    let source = ModelCache::open_of(&base, &store, texts, &[]).expect("a store");
    let denoiser = base
        .denoiser
        .load(&Placement::default())
        .expect("the denoiser");
    let latents = sample_from(
        denoiser.as_ref(),
        &Bound::none(),
        golden["noise"].clone(),
        &conditioning(&source, &captions[0]),
        Some(&without_caption(&source)),
        &previews::options(&base),
        &|| (),
    );
    close(
        "latents",
        &latents.expect("sampled"),
        &golden["latents"],
        1e-3,
    );
}
