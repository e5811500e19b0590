//! `plumb model check`: what a checkpoint is, what is wrong with it, what it needs.

use std::path::Path;

use plumb::recipe::latents::WanArchitecture;
use plumb::vae::causal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::full_size;
use crate::layouts::{Tensors, fp8, gguf, llama_cpp, part, save, single_file_world};
use crate::util::{Ran, plumb};
use crate::world::{World, tiny_sd3};

fn check(dir: &Path, path: &str) -> Ran {
    plumb(dir, &["model", "check", path])
}

fn report(dir: &Path, path: &str) -> Value {
    plumb(dir, &["model", "check", path, "--json"])
        .expect(0)
        .json()
}

fn problems(dir: &Path, path: &str) -> Vec<String> {
    let ran = plumb(dir, &["model", "check", path, "--json"]).expect(3);
    let list = ran.json()["problems"].clone();
    serde_json::from_value(list).expect("lines")
}

fn keys(report: &Value, field: &str, key: &str) -> Vec<String> {
    let list = report[field].as_array().expect("a list");
    let name = |v: &Value| v[key].as_str().expect("a name").to_owned();
    list.iter().map(name).collect()
}

#[test]
fn a_folder_is_told_in_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_sd3().display().to_string();
    check(folder.path(), &model)
        .expect(0)
        .says("a model of family sd3, a folder as diffusers writes it")
        .says("3.5-large or 3.5-large-turbo")
        .says("plumb recipe show sd3/3.5-large\n")
        .says("every tensor is there and has its place")
        .says("not counted: what a batch of captions")
        .says("on a GPU in bf16 at 1024 x 1024 px")
        .says("activations");
    let report = report(folder.path(), &model);
    assert_eq!(
        keys(&report, "parts", "name"),
        ["denoiser", "clip_l", "clip_g", "t5", "vae"]
    );
    assert_eq!(report["needs"], json!([]));
    assert_eq!(report["flavors"], json!(["3.5-large", "3.5-large-turbo"]));
    // Weights of one network at a time; the denoiser in f32 and in bf16.
    let memory = &report["memory"];
    let sizes: Vec<u64> = memory["encode"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|u| u["bytes"].as_u64().expect("bytes"))
        .collect();
    assert_eq!(memory["encode_bytes"].as_u64(), sizes.iter().copied().max());
    let denoiser = report["parts"][0]["parameters"].as_u64().expect("a count");
    for (n, bytes) in [(0, 4), (1, 2)] {
        let train = &memory["train"][n];
        assert_eq!(train["stored"]["weights"], bytes * denoiser);
        let activations = |way: &str| train[way]["activations"].as_u64().expect("bytes");
        assert!(activations("checkpointed") < activations("stored"));
    }
}

#[test]
fn the_recipe_it_names_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = report(folder.path(), &tiny_sd3().display().to_string());
    for recipe in report["recipes"].as_array().expect("a list") {
        let name = recipe.as_str().expect("a name");
        plumb(folder.path(), &["recipe", "show", name]).expect(0);
    }
}

#[test]
fn a_single_file_tells_what_to_name_beside_it() {
    let world = single_file_world(&[("text_encoder", "text_encoders.clip_l.transformer.")], "");
    let report: Value = {
        let ran = world.run(&["model", "check", "sd3.safetensors", "--json"]);
        // The miniature's encoder and VAE are not of the published sizes.
        ran.expect(3).json()
    };
    assert_eq!(
        keys(&report, "needs", "key"),
        [
            "clip_l_tokenizer",
            "clip_g",
            "clip_g_tokenizer",
            "t5",
            "t5_tokenizer"
        ]
    );
    assert!(
        report["problems"][0]
            .as_str()
            .expect("a line")
            .contains("clip_l_config"),
        "{report}"
    );
    // What encode asks for is what was told.
    let ran = world.run(&["encode", "exp.toml"]).expect(2);
    for need in report["needs"].as_array().expect("a list") {
        let named = ran.stderr.contains(need["key"].as_str().expect("a key"));
        assert_eq!(named, need["optional"] == false, "{need}\n{}", ran.stderr);
    }
}

/// A folder with a copy of the miniature's denoiser, changed.
fn damaged(change: impl FnOnce(&mut Tensors)) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = tiny_sd3().join("transformer");
    let to = folder.path().join("model/transformer");
    std::fs::create_dir_all(&to).expect("a folder");
    std::fs::copy(from.join("config.json"), to.join("config.json")).expect("copied");
    let mut tensors = part("transformer");
    change(&mut tensors);
    save(&tensors, &to.join("diffusion_pytorch_model.safetensors"));
    folder
}

#[test]
fn everything_that_is_wrong_is_listed_with_the_nearest_names() {
    let folder = damaged(|tensors| {
        let lost = tensors.remove("transformer_blocks.1.attn.to_q.bias");
        tensors.insert(
            "transformer_blocks.1.attn.to_qq.bias".to_owned(),
            lost.expect("there"),
        );
        let wrong = tensors["norm_out.linear.bias"].narrow(0, 0, 3);
        let wrong = wrong.and_then(|t| t.copy()).expect("narrowed");
        tensors.insert("norm_out.linear.bias".to_owned(), wrong);
        tensors.remove("context_embedder.weight").expect("there");
    });
    let problems = problems(folder.path(), "model");
    let says = |parts: &[&str]| {
        let found = problems
            .iter()
            .any(|p| parts.iter().all(|part| p.contains(part)));
        assert!(found, "{parts:?} not in {problems:#?}");
    };
    says(&[
        "`transformer_blocks.1.attn.to_q.bias` is missing",
        "nearest name there: `transformer_blocks.1.attn.to_qq.bias`",
    ]);
    says(&["norm_out.linear.bias", "has shape [3]", "expected [256]"]);
    says(&["`context_embedder.weight` is missing"]);
    says(&["no place for: `transformer_blocks.1.attn.to_qq.bias`"]);
    assert_eq!(problems.len(), 4);
    check(folder.path(), "model").expect(3).says("4 problems");
}

#[test]
fn encoders_vaes_and_loras_alone_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for (model, file, dtype, slot) in [
        ("clip_l", "clip_l.safetensors", "F16", "clip_l"),
        ("clip_g", "clip_g.safetensors", "F16", "clip_g"),
        ("t5_xxl", "t5xxl_fp8.safetensors", "F8_E4M3", "t5"),
    ] {
        full_size::write(&path(file), dtype, &full_size::names(model));
        check(folder.path(), file)
            .expect(0)
            .says(&format!("alone, which serves as {slot}\n"))
            .says(&format!("name it under [model.files]: {slot} = {file:?}"))
            .says("plumb recipe show sd3/3.5-large")
            .says(dtype);
    }
    full_size::write(&path("ae.safetensors"), "F32", &full_size::names("sd3_vae"));
    check(folder.path(), "ae.safetensors")
        .expect(0)
        .says("a VAE (AutoencoderKL) alone")
        .says("vae = \"ae.safetensors\"");
    let released = WanArchitecture::parse("{}", "defaults").expect("the released one");
    let mut tensors = causal::names::encoder_tensors(&released.encoder);
    tensors.extend(causal::names::decoder_tensors(&released));
    full_size::write(
        &path("wan.safetensors"),
        "F32",
        &tensors.into_iter().collect(),
    );
    check(folder.path(), "wan.safetensors")
        .expect(0)
        .says("a VAE (AutoencoderKLWan) alone")
        .says("vae = \"wan.safetensors\"");
    let encoder = tiny_sd3().join("text_encoder_3").display().to_string();
    check(folder.path(), &encoder)
        .expect(0)
        .says("a T5 encoder alone, which serves as t5");

    let mut lost = full_size::names("clip_g");
    lost.remove("text_model.encoder.layers.7.mlp.fc1.bias")
        .expect("there");
    full_size::write(&path("lost.safetensors"), "F16", &lost);
    check(folder.path(), "lost.safetensors")
        .expect(3)
        .says("a CLIP text encoder that is not whole");

    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    world
        .run(&["model", "check", "out/lora.safetensors"])
        .expect(0)
        .says("a LoRA of")
        .says("plumb inspect lora out/lora.safetensors");
}

#[test]
fn quantised_encoders_are_told_with_their_types() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tiny_sd3().join("text_encoder_3/config.json");
    std::fs::copy(config, folder.path().join("config.json")).expect("copied");
    let t5 = part("text_encoder_3");
    save(&fp8(&t5, true), &folder.path().join("scaled.safetensors"));
    check(folder.path(), "scaled.safetensors")
        .expect(0)
        .says("a T5 encoder alone")
        .says("14 x F8_E4M3 scaled");
    let q4 = |_: &str| Some(candle_core::quantized::GgmlDType::Q8_0);
    let file = gguf(&llama_cpp(t5), "t5encoder", q4);
    std::fs::write(folder.path().join("t5.gguf"), file).expect("written");
    check(folder.path(), "t5.gguf").expect(0).says("15 x Q8_0");
}

#[test]
fn a_denoiser_in_gguf_is_the_one_of_the_safetensors_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let single = golden.join("flux1_dev_single.safetensors");
    let tensors = candle_core::safetensors::load(&single, &candle_core::Device::Cpu);
    let path = folder.path().join("flux.gguf");
    std::fs::write(&path, gguf(&tensors.expect("tensors"), "flux", |_| None)).expect("written");
    check(folder.path(), "flux.gguf")
        .expect(0)
        .says("a model of family flux1, a GGUF file")
        .says("flavor    dev or kontext: only the values of the weights differ");
    let family = plumb::models::family("flux1").expect("there");
    let digest = |path: &Path| {
        let components = family.components(path).expect("found");
        let opened = family.open(components).expect("a denoiser");
        opened.check_whole().expect("whole");
        opened.weights().digest(opened.tensors()).expect("read")
    };
    assert_eq!(digest(&path), digest(&single));
}

#[test]
fn what_is_no_model_gets_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let says = |path: &str, text: &str| {
        let ran = check(folder.path(), path).expect(1).says(path).says(text);
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
    };
    says("missing.safetensors", "No such file");
    std::fs::create_dir(folder.path().join("empty")).expect("a folder");
    says("empty", "no model here");
    let write = |bytes: &[u8]| {
        std::fs::write(folder.path().join("file"), bytes).expect("written");
    };
    write(b"{}");
    says("file", "not a valid safetensors file");
    write(b"PK\x03\x04\0\0archive/data.pkl");
    says("file", "PyTorch checkpoint");
    write(b"GGUF\x03\0\0\0");
    says("file", "not a valid GGUF file");
    let other = [("some.weight".to_owned(), vec![2, 2])].into();
    full_size::write(&folder.path().join("file"), "F32", &other);
    says(
        "file",
        "not a model, text encoder, VAE or LoRA that plumb knows",
    );
}

/// Checks a model in a process that may have no more than 600 MB of its own (mapped files do not count).
#[cfg(target_os = "linux")]
fn check_in_little_memory(dir: &Path, path: &str) {
    let program = env!("CARGO_BIN_EXE_plumb");
    let script = format!("ulimit -d 600000; exec {program} model check {path}");
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(dir)
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path}: {text}");
}

/// A full-size model: its files as (path, golden), the path to check, and what must be said of it.
struct FullSize {
    files: &'static [(&'static str, &'static str)],
    path: &'static str,
    family: &'static str,
    flavors: &'static [&'static str],
    parts: &'static [&'static str],
    needs: &'static [&'static str],
    /// Billions of the denoiser's parameters, as published.
    billions: f64,
}

const SD35: &[&str] = &["3.5-large", "3.5-large-turbo"];

const FULL_SIZE: &[FullSize] = &[
    FullSize {
        files: &[("sd3.5_large.safetensors", "sd35_large_single")],
        path: "sd3.5_large.safetensors",
        family: "sd3",
        flavors: SD35,
        parts: &["denoiser", "vae"],
        needs: &[
            "clip_l",
            "clip_l_tokenizer",
            "clip_g",
            "clip_g_tokenizer",
            "t5",
            "t5_tokenizer",
        ],
        billions: 8.1,
    },
    FullSize {
        files: &[
            (
                "sd3/transformer/diffusion_pytorch_model.safetensors",
                "sd35_large",
            ),
            ("sd3/vae/diffusion_pytorch_model.safetensors", "sd3_vae"),
            ("sd3/text_encoder/model.safetensors", "clip_l"),
            ("sd3/text_encoder_2/model.safetensors", "clip_g"),
            ("sd3/text_encoder_3/model.safetensors", "t5_xxl"),
        ],
        path: "sd3",
        family: "sd3",
        flavors: SD35,
        parts: &["denoiser", "clip_l", "clip_g", "t5", "vae"],
        needs: &["clip_l_tokenizer", "clip_g_tokenizer", "t5_tokenizer"],
        billions: 8.1,
    },
    FullSize {
        files: &[("flux1-dev.safetensors", "flux1_dev_single")],
        path: "flux1-dev.safetensors",
        family: "flux1",
        flavors: &["dev", "kontext"],
        parts: &["denoiser"],
        needs: &["t5", "t5_tokenizer", "clip_l", "clip_l_tokenizer", "vae"],
        billions: 11.9,
    },
    FullSize {
        files: &[(
            "flux/transformer/diffusion_pytorch_model.safetensors",
            "flux1_dev",
        )],
        path: "flux",
        family: "flux1",
        flavors: &["dev", "kontext"],
        parts: &["denoiser"],
        needs: &["t5", "t5_tokenizer", "clip_l", "clip_l_tokenizer", "vae"],
        billions: 11.9,
    },
    FullSize {
        files: &[("chroma1-hd.safetensors", "chroma1_single")],
        path: "chroma1-hd.safetensors",
        family: "chroma",
        flavors: &["hd", "base"],
        parts: &["denoiser"],
        needs: &["t5", "t5_tokenizer", "vae"],
        billions: 8.9,
    },
    FullSize {
        files: &[(
            "chroma/transformer/diffusion_pytorch_model.safetensors",
            "chroma1",
        )],
        path: "chroma",
        family: "chroma",
        flavors: &["hd", "base"],
        parts: &["denoiser"],
        needs: &["t5", "t5_tokenizer", "vae"],
        billions: 8.9,
    },
    FullSize {
        files: &[("z_image_turbo_bf16.safetensors", "z_image_single")],
        path: "z_image_turbo_bf16.safetensors",
        family: "zimage",
        flavors: &["base", "turbo"],
        parts: &["denoiser"],
        needs: &["qwen3", "qwen3_tokenizer", "vae"],
        billions: 6.2,
    },
    FullSize {
        files: &[
            (
                "zimage/transformer/diffusion_pytorch_model.safetensors",
                "z_image",
            ),
            ("zimage/text_encoder/model.safetensors", "qwen3_4b"),
        ],
        path: "zimage",
        family: "zimage",
        flavors: &["base", "turbo"],
        parts: &["denoiser", "qwen3"],
        needs: &["qwen3_tokenizer", "vae"],
        billions: 6.2,
    },
    FullSize {
        files: &[("flux-2-klein-base-4b.safetensors", "klein_4b_single")],
        path: "flux-2-klein-base-4b.safetensors",
        family: "flux2",
        flavors: &["klein-base-4b", "klein-4b"],
        parts: &["denoiser"],
        needs: &["qwen3", "qwen3_tokenizer", "vae"],
        billions: 3.9,
    },
    FullSize {
        files: &[
            (
                "klein/transformer/diffusion_pytorch_model.safetensors",
                "klein_9b",
            ),
            ("klein/vae/diffusion_pytorch_model.safetensors", "flux2_vae"),
            ("klein/text_encoder/model.safetensors", "qwen3_8b"),
        ],
        path: "klein",
        family: "flux2",
        flavors: &["klein-base-9b", "klein-9b"],
        parts: &["denoiser", "qwen3", "vae"],
        needs: &["qwen3_tokenizer"],
        billions: 9.1,
    },
    FullSize {
        files: &[
            (
                "wan/transformer/diffusion_pytorch_model.safetensors",
                "wan_1_3b",
            ),
            ("wan/vae/diffusion_pytorch_model.safetensors", "wan_vae"),
            ("wan/text_encoder/model.safetensors", "umt5_xxl_comfy"),
        ],
        path: "wan",
        family: "wan",
        flavors: &["t2v-1.3b"],
        parts: &["denoiser", "umt5", "vae"],
        needs: &["umt5_tokenizer"],
        billions: 1.42,
    },
    FullSize {
        files: &[("wan2.1_t2v_14B_fp16.safetensors", "wan_14b_single")],
        path: "wan2.1_t2v_14B_fp16.safetensors",
        family: "wan",
        flavors: &["t2v-14b"],
        parts: &["denoiser"],
        needs: &["umt5", "umt5_tokenizer", "vae"],
        billions: 14.29,
    },
    FullSize {
        files: &[(
            "wan2.2_t2v_high_noise_14B_fp16.safetensors",
            "wan_14b_single",
        )],
        path: "wan2.2_t2v_high_noise_14B_fp16.safetensors",
        family: "wan",
        flavors: &["2.2-t2v-a14b-high"],
        parts: &["denoiser"],
        needs: &["low_noise", "umt5", "umt5_tokenizer", "vae"],
        billions: 14.29,
    },
    FullSize {
        files: &[("Wan2.2-T2V-A14B-LowNoise.safetensors", "wan_14b_single")],
        path: "Wan2.2-T2V-A14B-LowNoise.safetensors",
        family: "wan",
        flavors: &["2.2-t2v-a14b-low"],
        parts: &["denoiser"],
        needs: &["high_noise", "umt5", "umt5_tokenizer", "vae"],
        billions: 14.29,
    },
    FullSize {
        files: &[("sd_xl_base_1.0.safetensors", "sdxl_single")],
        path: "sd_xl_base_1.0.safetensors",
        family: "sdxl",
        flavors: &[
            "base-1.0",
            "illustrious-0.1",
            "illustrious-1.0",
            "illustrious-2.0",
            "noobai-1.1",
            "noobai-vpred-1.0",
            "pony-v6",
            "animagine-4.0",
        ],
        parts: &["denoiser", "clip_l", "clip_g", "vae"],
        needs: &["clip_l_tokenizer", "clip_g_tokenizer"],
        billions: 2.6,
    },
    FullSize {
        files: &[("sdxl/unet/diffusion_pytorch_model.safetensors", "sdxl")],
        path: "sdxl",
        family: "sdxl",
        flavors: &[
            "base-1.0",
            "illustrious-0.1",
            "illustrious-1.0",
            "illustrious-2.0",
            "noobai-1.1",
            "noobai-vpred-1.0",
            "pony-v6",
            "animagine-4.0",
        ],
        parts: &["denoiser"],
        needs: &[
            "clip_l",
            "clip_l_tokenizer",
            "clip_g",
            "clip_g_tokenizer",
            "vae",
        ],
        billions: 2.6,
    },
];

#[test]
fn full_size_models_are_checked_by_their_headers() {
    let folder = tempfile::tempdir().expect("a folder");
    for model in FULL_SIZE {
        let path = model.path;
        for (file, golden) in model.files {
            full_size::write(&folder.path().join(file), "BF16", &full_size::names(golden));
        }
        let report = report(folder.path(), path);
        assert_eq!(report["problems"], json!([]), "{path}");
        assert_eq!(report["family"], model.family, "{path}");
        assert_eq!(report["flavors"], json!(model.flavors), "{path}");
        // In the order of the recipe, whichever that is.
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let expected = |names: &[&str]| sorted(names.iter().map(|n| (*n).to_owned()).collect());
        let found = |field, key| sorted(keys(&report, field, key));
        assert_eq!(found("parts", "name"), expected(model.parts), "{path}");
        assert_eq!(found("needs", "key"), expected(model.needs), "{path}");
        let parameters = report["parts"][0]["parameters"].as_f64().expect("a count") / 1e9;
        assert!(
            (parameters - model.billions).abs() < 0.06,
            "{path}: {parameters}"
        );
        #[cfg(target_os = "linux")]
        check_in_little_memory(folder.path(), path);
    }
}
