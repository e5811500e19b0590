//! Whole commands on checkpoints as people have them: the same weights in another layout are the same, down to the
//! last bit of a LoRA; others are other encoders, and near.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::layouts::{Tensors, fp8, gguf, llama_cpp, part, save, single_file_world, small_files};
use crate::world::{World, tiny_sd3};

const ALL: [(&str, &str); 3] = [
    ("text_encoder", "text_encoders.clip_l.transformer."),
    ("text_encoder_2", "text_encoders.clip_g.transformer."),
    ("text_encoder_3", "text_encoders.t5xxl.transformer."),
];

/// How many entries `plumb encode` made: per encoder, and pictures.
pub(crate) fn encoded(world: &World) -> (Vec<u64>, u64) {
    let report: Value = world
        .run(&["encode", "exp.toml", "--json"])
        .expect(0)
        .json();
    let count = |v: &Value| v["encoded"].as_u64().expect("a number");
    let captions = report["captions"].as_array().expect("a list");
    (
        captions.iter().map(count).collect(),
        count(&report["pictures"]),
    )
}

/// A world on the folder, encoded and trained, and what a sample of it looks like.
fn folder_world() -> World {
    let world = World::new();
    assert_eq!(encoded(&world), (vec![5, 5, 5], 3));
    world.run(&["train", "exp.toml"]).expect(0);
    world
        .run(&["sample", "exp.toml", "--out", "samples"])
        .expect(0);
    world
}

fn tensors(world: &World, file: &str) -> Vec<(String, Vec<f32>)> {
    let all = candle_core::safetensors::load(world.path(file), &Device::Cpu).expect("tensors");
    let values = |t: Tensor| {
        let wide = t.to_dtype(DType::F32).and_then(|t| t.flatten_all());
        wide.and_then(|t| t.to_vec1()).expect("numbers")
    };
    let mut list: Vec<_> = all.into_iter().map(|(n, t)| (n, values(t))).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

/// Checks that `single` holds the model of `folder`: nothing is encoded again in that one's store, and training and
/// sampling give the same bytes.
pub(crate) fn is_the_same(folder: &World, single: &World) {
    single.copy_folder(&folder.path("store"), "store");
    let (captions, pictures) = encoded(single);
    let again = captions.iter().sum::<u64>() + pictures;
    assert_eq!(again, 0, "the same fingerprints");
    single.run(&["train", "exp.toml"]).expect(0);
    let lora = "out/lora.safetensors";
    assert!(
        tensors(folder, lora) == tensors(single, lora),
        "another LoRA"
    );
    let base = |world: &World| {
        let lora = world.run(&["inspect", "lora", lora, "--json"]).expect(0);
        lora.json()["provenance"]["base"].clone()
    };
    assert_eq!(base(folder), base(single), "another base digest");
    assert!(base(folder).is_string());
    single
        .run(&["sample", "exp.toml", "--out", "samples"])
        .expect(0);
    for file in crate::util::listing(&folder.path("samples")) {
        let file = format!("samples/{file}");
        // Which file the model was read from is said in it.
        assert!(
            folder.sampled(&file) == single.sampled(&file),
            "another {file}"
        );
    }
}

#[test]
fn a_single_file_is_the_folder_with_everything_in_it_or_beside_it() {
    let folder = folder_world();
    is_the_same(&folder, &single_file_world(&ALL, &small_files()));

    let files = "clip_l = \"clip_l.safetensors\"\nclip_g = \"clip_g.safetensors\"\n\
                 t5 = \"t5xxl_fp16.safetensors\"\n";
    let world = single_file_world(&[], &(files.to_owned() + &small_files()));
    save(&part("text_encoder"), &world.path("clip_l.safetensors"));
    save(&part("text_encoder_2"), &world.path("clip_g.safetensors"));
    save(
        &part("text_encoder_3"),
        &world.path("t5xxl_fp16.safetensors"),
    );
    is_the_same(&folder, &world);

    // What T5 is stored as in GGUF without quantisation is the same numbers, and so the same encoder.
    let t5 = gguf(&llama_cpp(part("text_encoder_3")), "t5encoder", |_| None);
    world.write_bytes("t5xxl_fp16.safetensors", &t5);
    assert_eq!(
        encoded(&world),
        (vec![0, 0, 0], 0),
        "T5 in GGUF, under any file name"
    );
}

fn conditioning(world: &World) -> Tensors {
    world
        .run(&[
            "inspect",
            "conditioning",
            "exp.toml",
            "--caption",
            "a red circle",
            "--out",
            "c.safetensors",
        ])
        .expect(0);
    candle_core::safetensors::load(world.path("c.safetensors"), &Device::Cpu).expect("tensors")
}

/// The cosine between two tensors.
pub(crate) fn cosine(a: &Tensor, b: &Tensor) -> f32 {
    let dot = |a: &Tensor, b: &Tensor| {
        let sum = (a * b).and_then(|t| t.sum_all()?.to_scalar::<f32>());
        sum.expect("a number")
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn quantised_encoders_are_near_and_have_entries_of_their_own() {
    let exact = conditioning(&World::new());
    let world = single_file_world(&ALL[..2], &format!("t5 = \"t5\"\n{}", small_files()));
    let t5 = part("text_encoder_3");
    let q8 = |_: &str| Some(GgmlDType::Q8_0);
    type Write<'a> = &'a dyn Fn(&World);
    let save_fp8 = |scaled| save(&fp8(&t5, scaled), &world.path("t5"));
    let stored: [(&str, Write<'_>, f32); 3] = [
        ("fp8", &|_| save_fp8(false), 0.99),
        ("scaled fp8", &|_| save_fp8(true), 0.99),
        (
            "Q8_0",
            &|world| world.write_bytes("t5", &gguf(&llama_cpp(t5.clone()), "t5encoder", q8)),
            0.999,
        ),
    ];
    for (name, write, limit) in stored {
        write(&world);
        let kind = name.strip_prefix("scaled ").unwrap_or(name).to_uppercase();
        world.run(&["encode", "exp.toml"]).expect(0).says(&format!(
            "t5: its weights are stored as {}",
            kind.replace("FP8", "F8_E4M3")
        ));
        std::fs::remove_dir_all(world.path("store")).expect("removed");
        let (captions, encoded_pictures) = encoded(&world);
        assert_eq!(captions[2], 5, "{name}: an encoder of its own");
        assert_eq!(encoded_pictures, 3, "{name}");
        let made = conditioning(&world);
        let rows = |c: &Tensors| c["t5.hidden"].to_dtype(DType::F32).expect("f32");
        let near = cosine(&rows(&made), &rows(&exact));
        println!("{name}: cosine {near}");
        assert!((limit..1.0).contains(&near), "{name}: cosine {near}");
        let same = |name: &str| {
            let values = |c: &Tensors| {
                c[name]
                    .to_dtype(DType::F32)?
                    .flatten_all()?
                    .to_vec1::<f32>()
            };
            values(&made).expect("numbers") == values(&exact).expect("numbers")
        };
        assert!(same("clip_l.hidden") && same("clip_g.hidden"), "{name}");
    }
}

#[test]
fn a_denoiser_in_scaled_8_bits_trains_and_samples() {
    let world = single_file_world(&ALL, &small_files());
    let all = candle_core::safetensors::load(world.path("sd3.safetensors"), &Device::Cpu);
    let (mut denoiser, others): (Tensors, Tensors) = all
        .expect("tensors")
        .into_iter()
        .partition(|(name, _)| name.starts_with("model.diffusion_model."));
    denoiser = fp8(&denoiser, true);
    let mark = denoiser.remove("scaled_fp8").expect("a mark");
    denoiser.insert("model.diffusion_model.scaled_fp8".to_owned(), mark);
    denoiser.extend(others);
    save(&denoiser, &world.path("sd3.safetensors"));
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    world.run(&["sample", "exp.toml"]).expect(0);
    world
        .run(&["model", "check", "sd3.safetensors"])
        .says("x F8_E4M3 scaled");
}

#[test]
fn what_a_single_file_lacks_is_told_as_lines_to_add() {
    let world = single_file_world(&[("text_encoder", ALL[0].1)], "");
    let lines = [
        "exp.toml",
        "add under [model.files]: clip_l_tokenizer = \"...\"",
        "clip_g = \"...\"",
        "clip_g_tokenizer = \"...\"",
    ];
    let ran = world.run(&["encode", "exp.toml"]).expect(2);
    lines.into_iter().fold(ran, |ran, line| ran.says(line));
    // Nothing of the VAE, which is there.
    let ran = world.run(&["encode", "exp.toml"]);
    assert!(!ran.stderr.contains("vae"), "{}", ran.stderr);

    let world = single_file_world(
        &ALL,
        &small_files().replace("clip_l_tokenizer", "clip_g_tokenizer"),
    );
    assert_eq!(
        encoded(&world).0,
        [5, 5, 5],
        "both CLIPs share a vocabulary"
    );
    let text = small_files();
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with("t5_config"))
        .collect();
    let world = single_file_world(&ALL, &(lines.join("\n") + "\n"));
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("t5: ")
        .says("sd3.safetensors");
}

#[test]
fn damaged_files_of_every_kind_get_one_line() {
    let world = single_file_world(&ALL[..2], &format!("t5 = \"t5\"\n{}", small_files()));
    let whole = gguf(&llama_cpp(part("text_encoder_3")), "t5encoder", |_| None);
    let says = |bytes: &[u8], reason: &str| {
        world.write_bytes("t5", bytes);
        world
            .run(&["encode", "exp.toml"])
            .expect(1)
            .says("t5")
            .says(reason);
    };
    says(&whole[..whole.len() - 100], "cut short");
    says(&whole[..100], "cut short");
    says(b"GGUF\x09\0\0\0", "version is 9");
    says(b"PK\x03\x04\0\0archive/data.pkl", "PyTorch checkpoint");
    let mut scaled = fp8(&part("text_encoder_3"), true);
    let lost = "encoder.block.1.layer.0.SelfAttention.q.scale_weight";
    scaled.remove(lost).expect("a scale");
    save(&scaled, &world.path("t5"));
    world.run(&["encode", "exp.toml"]).expect(1).says(lost);
    let clip = tiny_sd3().join("text_encoder/model.safetensors");
    std::fs::copy(clip, world.path("t5")).expect("copied");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("has no T5 encoder");
}
