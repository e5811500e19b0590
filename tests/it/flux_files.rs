//! FLUX.1 as people have it: its authors' single file, with encoders and VAE beside it, and the same in GGUF.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::layouts::{Tensors, gguf, llama_cpp, original_vae, part_of, save};
use crate::single_files::{cosine, encoded, is_the_same};
use crate::world::{World, tiny_sd3};

/// The bundled miniature.
fn tiny_flux() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-flux")
}

fn part(name: &str) -> Tensors {
    part_of(&tiny_flux(), name)
}

/// Modules before and behind the blocks, in blocks of two streams, and in those of one: diffusers' name, the authors', and
/// which piece of a fused matrix it is.
const OUTER: [(&str, &str, usize); 10] = [
    ("x_embedder", "img_in", 0),
    ("context_embedder", "txt_in", 0),
    (
        "time_text_embed.timestep_embedder.linear_1",
        "time_in.in_layer",
        0,
    ),
    (
        "time_text_embed.timestep_embedder.linear_2",
        "time_in.out_layer",
        0,
    ),
    (
        "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.in_layer",
        0,
    ),
    (
        "time_text_embed.guidance_embedder.linear_2",
        "guidance_in.out_layer",
        0,
    ),
    (
        "time_text_embed.text_embedder.linear_1",
        "vector_in.in_layer",
        0,
    ),
    (
        "time_text_embed.text_embedder.linear_2",
        "vector_in.out_layer",
        0,
    ),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", 0),
    ("proj_out", "final_layer.linear", 0),
];
const DOUBLE: [(&str, &str, usize); 18] = [
    ("norm1.linear", "img_mod.lin", 0),
    ("norm1_context.linear", "txt_mod.lin", 0),
    ("attn.to_q", "img_attn.qkv", 0),
    ("attn.to_k", "img_attn.qkv", 1),
    ("attn.to_v", "img_attn.qkv", 2),
    ("attn.add_q_proj", "txt_attn.qkv", 0),
    ("attn.add_k_proj", "txt_attn.qkv", 1),
    ("attn.add_v_proj", "txt_attn.qkv", 2),
    ("attn.norm_q", "img_attn.norm.query_norm", 0),
    ("attn.norm_k", "img_attn.norm.key_norm", 0),
    ("attn.norm_added_q", "txt_attn.norm.query_norm", 0),
    ("attn.norm_added_k", "txt_attn.norm.key_norm", 0),
    ("attn.to_out.0", "img_attn.proj", 0),
    ("attn.to_add_out", "txt_attn.proj", 0),
    ("ff.net.0.proj", "img_mlp.0", 0),
    ("ff.net.2", "img_mlp.2", 0),
    ("ff_context.net.0.proj", "txt_mlp.0", 0),
    ("ff_context.net.2", "txt_mlp.2", 0),
];
const SINGLE: [(&str, &str, usize); 8] = [
    ("norm.linear", "modulation.lin", 0),
    ("attn.to_q", "linear1", 0),
    ("attn.to_k", "linear1", 1),
    ("attn.to_v", "linear1", 2),
    ("proj_mlp", "linear1", 3),
    ("attn.norm_q", "norm.query_norm", 0),
    ("attn.norm_k", "norm.key_norm", 0),
    ("proj_out", "linear2", 0),
];

/// Chroma's author's name for a tensor of the approximator.
fn of_approximator(part: &str) -> String {
    let part = part
        .replace("linear_1", "in_layer")
        .replace("linear_2", "out_layer");
    let part = match part.starts_with("norms.") {
        true => part.replace(".weight", ".scale"),
        false => part,
    };
    format!("distilled_guidance_layer.{part}")
}

/// The authors' name for a tensor, and its piece.
fn place(name: &str) -> (String, usize) {
    if let Some(part) = name.strip_prefix("distilled_guidance_layer.") {
        return (of_approximator(part), 0);
    }
    let (module, kind) = name.rsplit_once('.').expect("a module");
    let (blocks, table, inner): (String, &[_], &str) = match module.split('.').collect::<Vec<_>>()[..]
    {
        ["transformer_blocks", n, ..] => (
            format!("double_blocks.{n}."),
            &DOUBLE,
            &module[20 + n.len()..],
        ),
        ["single_transformer_blocks", n, ..] => (
            format!("single_blocks.{n}."),
            &SINGLE,
            &module[27 + n.len()..],
        ),
        _ => (String::new(), &OUTER, module),
    };
    let found = table.iter().find(|(ours, ..)| *ours == inner);
    let (_, theirs, piece) = found.unwrap_or_else(|| panic!("no place for {name}"));
    let kind = if theirs.ends_with("_norm") {
        "scale"
    } else {
        kind
    };
    (format!("{blocks}{theirs}.{kind}"), *piece)
}

/// The transformer, of Chroma too, under its authors' names: queries, keys and values in one matrix, the last modulation turned round.
pub(crate) fn authors(from: Tensors) -> Tensors {
    let mut pieces: HashMap<String, BTreeMap<usize, Tensor>> = HashMap::new();
    for (name, tensor) in from {
        let (theirs, piece) = place(&name);
        let swapped = theirs.starts_with("final_layer.adaLN");
        let tensor = match swapped {
            true => {
                let halves = tensor.chunk(2, 0).expect("halves");
                Tensor::cat(&[&halves[1], &halves[0]], 0).expect("swapped")
            }
            false => tensor,
        };
        pieces.entry(theirs).or_default().insert(piece, tensor);
    }
    let fused = |(name, parts): (String, BTreeMap<usize, Tensor>)| {
        let parts: Vec<Tensor> = parts.into_values().collect();
        (name, Tensor::cat(&parts, 0).expect("fused"))
    };
    pieces.into_iter().map(fused).collect()
}

/// An Experiment on the miniature at `path`, a line of TOML.
fn world(path: &str) -> World {
    let world = World::new();
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        path,
    );
    world.edit("family = \"sd3\"", "family = \"flux1\"");
    world.edit("flavor = \"3.5-large\"", "flavor = \"dev\"");
    world.edit("steps = 4", "steps = 2");
    world.edit(
        "seed = 5",
        "seed = 5\nvalidation_share = 0.3\nvalidate_every = 2",
    );
    world
}

fn folder_world() -> World {
    world(&format!("path = {:?}", tiny_flux().display().to_string()))
}

/// The same with the denoiser in `file`, and the other parts in files of their own.
fn files_world(file: &str) -> World {
    let beside = |name: &str| format!("{:?}", tiny_flux().join(name).display().to_string());
    let lines = [
        ("clip_l", "\"clip_l.safetensors\"".to_owned()),
        ("t5", "\"t5xxl.safetensors\"".to_owned()),
        ("vae", "\"ae.safetensors\"".to_owned()),
        ("clip_l_config", beside("text_encoder/config.json")),
        ("t5_config", beside("text_encoder_2/config.json")),
        ("vae_config", beside("vae/config.json")),
        ("clip_l_tokenizer", beside("tokenizer")),
        ("t5_tokenizer", beside("tokenizer_2")),
    ];
    let lines = lines
        .map(|(key, value)| format!("{key} = {value}\n"))
        .concat();
    let world = world(&format!("path = {file:?}\n[model.files]\n{lines}"));
    save(&part("text_encoder"), &world.path("clip_l.safetensors"));
    save(&part("text_encoder_2"), &world.path("t5xxl.safetensors"));
    save(&original_vae(part("vae")), &world.path("ae.safetensors"));
    world
}

/// FLUX.1 Fill takes a noisy picture, a masked one and a mask: refused by name, in a file as in a folder.
#[test]
fn fill_is_refused_by_name() {
    let world = World::new();
    let mut fill = authors(part("transformer"));
    let wide = Tensor::zeros((128, 384), DType::F32, &Device::Cpu).expect("a matrix");
    fill.insert("img_in.weight".to_owned(), wide);
    save(&fill, &world.path("fill.safetensors"));
    world
        .run(&["model", "check", "fill.safetensors"])
        .expect(1)
        .says("found 384 (FLUX.1 Fill, which is given a masked picture and its mask beside the noisy one; plumb does not train it)");
    world.copy_folder(&tiny_flux(), "folder");
    let config = String::from_utf8(world.read("folder/transformer/config.json")).expect("UTF-8");
    let config = config.replace(
        "\"in_channels\": 64",
        "\"in_channels\": 384, \"out_channels\": 64",
    );
    let config = config.replace("\"out_channels\": null,", "");
    world.write("folder/transformer/config.json", &config);
    world
        .run(&["model", "check", "folder"])
        .expect(1)
        .says("transformer/config.json: `in_channels`: expected as many as go out, 64, found 384 (FLUX.1 Fill");
    let other = config.replace("FluxTransformer2DModel", "PixArtTransformer2DModel");
    world.write("folder/transformer/config.json", &other);
    world.run(&["model", "check", "folder"]).expect(1).says(
        "`_class_name`: `PixArtTransformer2DModel` is a network of no family that plumb knows",
    );
}

#[test]
fn the_authors_file_with_its_companions_is_the_folder() {
    let folder = folder_world();
    encoded(&folder);
    folder.run(&["train", "exp.toml"]).expect(0);
    folder
        .run(&["sample", "exp.toml", "--out", "samples"])
        .expect(0);
    let files = files_world("flux1-dev.safetensors");
    save(
        &authors(part("transformer")),
        &files.path("flux1-dev.safetensors"),
    );
    is_the_same(&folder, &files);
}

/// The first step, and the validation loss after two.
fn trained(world: &World) -> (HashMap<String, Tensor>, f64) {
    encoded(world);
    world
        .run(&["train", "exp.toml", "--dump-step", "1", "step.safetensors"])
        .expect(0);
    let step = candle_core::safetensors::load(world.path("step.safetensors"), &Device::Cpu);
    let lines = String::from_utf8(world.read("out/metrics.jsonl")).expect("UTF-8");
    let mut lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let last = lines.rfind(|line| line["kind"] == "validation");
    let loss = last.expect("a validation")["loss"]
        .as_f64()
        .expect("a loss");
    (step.expect("a step"), loss)
}

#[test]
fn a_denoiser_and_t5_in_gguf_train_near_the_whole_model() {
    let (exact, loss) = trained(&folder_world());
    let world = files_world("flux1-dev-Q8_0.gguf");
    // As converters do: the small matrices around the blocks stay as they are.
    let blocks = |name: &str| name.contains("blocks.").then_some(GgmlDType::Q8_0);
    let denoiser = gguf(&authors(part("transformer")), "flux", blocks);
    world.write_bytes("flux1-dev-Q8_0.gguf", &denoiser);
    let every = |_: &str| Some(GgmlDType::Q8_0);
    let t5 = gguf(&llama_cpp(part("text_encoder_2")), "t5encoder", every);
    world.write_bytes("t5xxl.safetensors", &t5);
    world
        .run(&["model", "check", "flux1-dev-Q8_0.gguf"])
        .says("flux1/dev")
        .says("Q8_0");
    let (near, near_loss) = trained(&world);
    for name in ["context", "prediction"] {
        let along = cosine(&near[name], &exact[name]);
        assert!((0.999..1.0).contains(&along), "{name}: cosine {along}");
    }
    let off = (near_loss / loss - 1.0).abs();
    assert!(off > 0.0 && off < 0.01, "{near_loss}, and {loss} whole");
    world
        .run(&["sample", "exp.toml", "--lora", "out/lora.safetensors"])
        .expect(0);
}
