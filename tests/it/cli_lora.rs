//! `plumb export lora`, `plumb import lora` and what `plumb inspect lora` says of foreign files.

use std::collections::BTreeMap;
use std::path::Path;

use plumb::lora::SaveDtype;
use plumb::lora::formats::{self, Module, Target, WriteOptions};
use plumb::models::{self, lora_names::namings};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

use crate::lora_names::{adapters, network};
use crate::peers::Script;
use crate::store_util::scratch;
use crate::util::plumb;
use crate::world::{World, tiny_sd3};

/// A LoRA of a family in the naming of diffusers.
fn lora(family: &str, architecture: &str, modules: Vec<Module>) -> Vec<u8> {
    let naming = namings().iter().find(|naming| naming.family == family);
    let options = WriteOptions {
        target: Target::Diffusers,
        dtype: None,
        source: SaveDtype::F32,
        metadata: BTreeMap::from([("modelspec.architecture".to_owned(), architecture.to_owned())]),
    };
    let (bytes, _) = formats::write(modules, naming.expect("known"), &options).expect("bytes");
    bytes
}

fn write(folder: &TempDir, bytes: &[u8]) {
    std::fs::write(folder.path().join("lora.safetensors"), bytes).expect("a file");
}

/// Adapters on every linear of the bundled model.
fn tiny_modules() -> Vec<Module> {
    let family = models::family("sd3").expect("known");
    let components = family.components(&tiny_sd3()).expect("bundled");
    let opened = family.open(components).expect("bundled");
    let linears = opened.linears().iter().filter(|linear| linear.reached);
    let shapes = linears.map(|linear| (linear.name.clone(), vec![linear.outputs, linear.inputs]));
    adapters(shapes.collect(), usize::MAX, 3)
}

/// A LoRA for the bundled model.
pub(crate) fn tiny_lora() -> Vec<u8> {
    lora("sd3", "stable-diffusion-3-5-large/lora", tiny_modules())
}

/// A folder with it as `lora.safetensors`.
fn tiny() -> TempDir {
    let folder = scratch();
    write(&folder, &tiny_lora());
    folder
}

/// Names, shapes and bytes of a file's tensors.
fn tensors(folder: &TempDir, name: &str) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(folder.path().join(name)).expect(name);
    let stored = SafeTensors::deserialize(&bytes).expect(name);
    let of = |(name, view): (String, TensorView<'_>)| {
        (name, (view.shape().to_vec(), view.data().to_vec()))
    };
    stored.tensors().into_iter().map(of).collect()
}

#[test]
fn a_lora_goes_to_kohyas_naming_and_back_bit_for_bit() {
    let folder = tiny();
    let run = |args: &[&str]| plumb(folder.path(), args).expect(0);
    let count = tiny_modules().len();
    run(&["export", "lora", "lora.safetensors", "--format", "kohya"])
        .says(&format!(
            "lora-kohya.safetensors: sd3, {count} modules of rank 2, 3, F32"
        ))
        .says("from the naming of diffusers to that of kohya");
    let kohya = tensors(&folder, "lora-kohya.safetensors");
    assert!(kohya.contains_key("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha"));
    let report = run(&[
        "--json",
        "import",
        "lora",
        "lora-kohya.safetensors",
        "--out",
        "back/l.safetensors",
    ])
    .json();
    assert_eq!(
        (&report["family"], &report["from"], &report["modules"]),
        (&"sd3".into(), &"kohya".into(), &count.into())
    );
    assert!(tensors(&folder, "back/l.safetensors") == tensors(&folder, "lora.safetensors"));
    run(&["inspect", "lora", "lora-kohya.safetensors"])
        .says("sd3 in the naming of kohya")
        .says("converted by      plumb");
    run(&["inspect", "lora", "back/l.safetensors"])
        .says("from the naming of kohya")
        .says("modelspec.architecture: stable-diffusion-3-5-large/lora");
}

#[test]
fn numbers_are_stored_as_asked() {
    let folder = tiny();
    let run = |args: &[&str]| plumb(folder.path(), args).expect(0);
    run(&[
        "export",
        "lora",
        "lora.safetensors",
        "--format",
        "diffusers",
        "--dtype",
        "bf16",
        "--out",
        "half.safetensors",
    ])
    .says("BF16");
    run(&["export", "lora", "half.safetensors", "--format", "kohya"]).says("BF16");
    let bytes = std::fs::read(folder.path().join("half-kohya.safetensors")).expect("written");
    let stored = SafeTensors::deserialize(&bytes).expect("sound");
    let dtypes: Vec<_> = stored
        .iter()
        .map(|(name, view)| (name.ends_with(".alpha"), view.dtype()))
        .collect();
    assert!(
        dtypes
            .iter()
            .all(|&(alpha, dtype)| dtype == if alpha { Dtype::F32 } else { Dtype::BF16 })
    );
    run(&["import", "lora", "half-kohya.safetensors"]).says("BF16");
    assert!(
        tensors(&folder, "half-kohya-diffusers.safetensors")
            == tensors(&folder, "half.safetensors")
    );
}

#[test]
fn what_cannot_be_converted_is_said_in_one_line() {
    let folder = tiny();
    let refused = |args: &[&str], status, text: &str| {
        plumb(folder.path(), args).expect(status).says(text);
    };
    let export = ["export", "lora"];
    let with = |rest: &[&'static str]| [&export[..], rest].concat();
    refused(
        &with(&["none.safetensors", "--format", "kohya"]),
        1,
        "none.safetensors: cannot be read",
    );
    refused(&with(&["lora.safetensors"]), 2, "--format");
    refused(
        &with(&["lora.safetensors", "--format", "xlabs"]),
        2,
        "possible values: diffusers, kohya, ai-toolkit",
    );
    refused(
        &with(&[
            "lora.safetensors",
            "--format",
            "kohya",
            "--out",
            "./lora.safetensors",
        ]),
        1,
        "is the file to convert",
    );
    refused(
        &with(&["lora.safetensors", "--format", "ai-toolkit"]),
        1,
        "ai-toolkit would ignore 7 of",
    );
    refused(
        &with(&["lora.safetensors", "--format", "kohya", "--family", "sdxl"]),
        1,
        "no such module in family sdxl",
    );
    refused(
        &with(&["lora.safetensors", "--format", "kohya", "--family", "sd9"]),
        1,
        "expected one of `sd3`, `flux1`, `chroma`, `flux2`, `sdxl`, `sd1`, `zimage`, `wan`",
    );
    assert!(!folder.path().join("lora-ai-toolkit.safetensors").exists());

    std::fs::write(folder.path().join("bad.safetensors"), b"nonsense").expect("a file");
    refused(
        &["import", "lora", "bad.safetensors"],
        1,
        "bad.safetensors: not a safetensors file",
    );
    refused(
        &["inspect", "lora", "bad.safetensors"],
        1,
        "bad.safetensors: not a safetensors file",
    );
}

#[test]
fn adapters_of_text_encoders_are_left_out_by_name_only() {
    let folder = scratch();
    let data = 1f32.to_le_bytes().repeat(4);
    let path = "lora_unet_double_blocks_0_img_attn_proj";
    let names = [
        format!("{path}.lora_down.weight"),
        format!("{path}.lora_up.weight"),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight".to_owned(),
    ];
    let shapes = [vec![1, 4], vec![4, 1], vec![1, 4]];
    let views = names.iter().zip(shapes).map(|(name, shape)| {
        (
            name,
            TensorView::new(Dtype::F32, shape, &data).expect("a tensor"),
        )
    });
    let bytes = safetensors::serialize(views, None).expect("bytes");
    std::fs::write(folder.path().join("l.safetensors"), bytes).expect("a file");
    let args = ["import", "lora", "l.safetensors"];
    plumb(folder.path(), &args)
        .expect(1)
        .says("1 tensor of text encoders, the first is `lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight`")
        .says("--without-text-encoders");
    plumb(
        folder.path(),
        &[&args[..], &["--without-text-encoders"]].concat(),
    )
    .expect(0)
    .says("left out: 1 tensor of text encoders")
    .says("flux1, 1 module of rank 1");
    plumb(folder.path(), &["inspect", "lora", "l.safetensors"])
        .expect(0)
        .says("flux1 in the naming of kohya")
        .says("and 1 tensor of text encoders");
}

/// Runs the checks that need diffusers.
fn check(folder: &TempDir, args: &[&str]) {
    let script = Script::file("tools/check_lora_formats.py").in_folder(folder.path());
    args.iter().fold(script, Script::arg).run();
}

fn export_kohya(folder: &TempDir) {
    let args = ["export", "lora", "lora.safetensors", "--format", "kohya"];
    plumb(folder.path(), &args).expect(0);
}

#[test]
fn an_sd3_lora_for_comfyui_does_what_diffusers_does_with_ours() {
    let folder = tiny();
    export_kohya(&folder);
    let base = tiny_sd3().display().to_string();
    check(
        &folder,
        &["sd3", &base, "lora.safetensors", "lora-kohya.safetensors"],
    );
}

#[test]
fn diffusers_makes_our_flux_lora_of_the_one_for_kohya() {
    let folder = scratch();
    let mut modules = network("flux1-dev");
    // diffusers' converter knows FLUX in full size only, so a few blocks must do.
    let kept = |name: &str| {
        let block = name.split('.').find_map(|part| part.parse::<usize>().ok());
        block.is_none_or(|block| [0, 18, 37].contains(&block))
    };
    modules.retain(|name, _| kept(name));
    write(
        &folder,
        &lora("flux1", "flux-1-dev/lora", adapters(modules, usize::MAX, 2)),
    );
    export_kohya(&folder);
    check(
        &folder,
        &["flux1", "lora.safetensors", "lora-kohya.safetensors"],
    );
}

#[test]
fn an_sdxl_lora_for_kohya_is_loaded_by_diffusers_as_ours_is() {
    let folder = scratch();
    let modules = adapters(network("unet_tiny"), usize::MAX, 2);
    write(
        &folder,
        &lora("sdxl", "stable-diffusion-xl-v1-base/lora", modules),
    );
    export_kohya(&folder);
    // diffusers takes the alphas of a kohya file only where all ranks are the same.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora_modules.json");
    let golden = golden.display().to_string();
    check(
        &folder,
        &[
            "sdxl",
            &golden,
            "lora.safetensors",
            "lora-kohya.safetensors",
        ],
    );
}

#[test]
fn a_foreign_lora_is_sampled_with_as_ours_is() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.write_bytes("ours.safetensors", &tiny_lora());
    let export = ["export", "lora", "ours.safetensors", "--format", "kohya"];
    world.run(&export).expect(0);
    let sample = |lora: &[&str], folder: &str| {
        let args = ["sample", "exp.toml", "--steps", "1", "--out", folder];
        world.run(&[&args[..], lora].concat()).expect(0);
        world.sampled(&format!("{folder}/seed0-000.png"))
    };
    let ours = sample(&["--lora", "ours.safetensors"], "ours");
    assert!(sample(&["--lora", "ours-kohya.safetensors"], "theirs") == ours);
    assert!(sample(&[], "without") != ours);
}
