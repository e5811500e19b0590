//! Bad input to whole commands: each gets one clear line and the right exit status, never a panic.

use std::collections::HashMap;

use crate::world::{World, tiny_sd3};

/// A world whose base model is a copy that may be damaged.
pub(crate) fn with_own_model() -> World {
    let world = World::new();
    world.copy_folder(&tiny_sd3(), "model");
    world.edit(
        &format!("path = {:?}", tiny_sd3().display().to_string()),
        "path = \"model\"",
    );
    world
}

type Tensors = HashMap<String, candle_core::Tensor>;

/// Changes the tensors of a file of the model.
pub(crate) fn change(world: &World, file: &str, change: impl FnOnce(&mut Tensors)) {
    let path = world.path(file);
    let mut tensors =
        candle_core::safetensors::load(&path, &candle_core::Device::Cpu).expect("tensors");
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, &path).expect("saved");
}

#[test]
fn captions_that_cannot_be_used() {
    let world = World::new();
    std::fs::remove_file(world.path("pictures/p1.txt")).expect("removed");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("p1.png")
        .says("allow_empty_captions");
    world.edit(
        "path = \"pictures\"",
        "path = \"pictures\"\nallow_empty_captions = true",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.write_bytes("pictures/p1.txt", &[b'a', 0xff, 0xfe]);
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("p1.txt")
        .says("UTF-8");
    world.write_bytes("captions.txt", &[b'a', b'\n', 0xff]);
    world
        .run(&["encode", "exp.toml", "--captions", "captions.txt"])
        .expect(1)
        .says("captions.txt: line 2");
}

#[test]
fn pictures_that_cannot_be_used_are_told_all_at_once() {
    let world = World::new();
    let whole = world.read("pictures/p0.png");
    world.write_bytes("pictures/p0.png", &whole[..20]);
    world.write_bytes("pictures/p1.png", b"not a picture");
    world
        .run(&["encode", "exp.toml"])
        .expect(3)
        .says("p0.png")
        .says("p1.png")
        .says("2 pictures could not be used");
    // With fewer pictures it would be another training.
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("p0.png")
        .says("p1.png");
}

#[test]
fn an_empty_trigger_is_told() {
    let world = World::new();
    world.edit(
        "path = \"pictures\"",
        "path = \"pictures\"\ntrigger = \" \"",
    );
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("exp.toml: `dataset[0].trigger` is empty and changes no caption");
}

/// Its header is whole, so that only who decodes it sees that it is not.
#[test]
fn a_picture_that_breaks_off_is_no_reason_to_encode_again_and_again() {
    let world = World::new();
    let whole = world.read("pictures/p1.png");
    world.write_bytes("pictures/p1.png", &whole[..whole.len() / 2]);
    let encode = ["encode", "exp.toml"];
    world
        .run(&encode)
        .expect(3)
        .says("1 picture could not be used, see above: repair it, or move it out of the folder");
    let refused = world.run(&["train", "exp.toml"]).expect(4);
    let lines: Vec<&str> = refused.stderr.lines().collect();
    let problem = lines.iter().find(|line| line.contains("p1.png: "));
    assert!(
        problem.is_some_and(|line| line.contains("not whole")),
        "{}",
        refused.stderr
    );
    refused.says("to mend it: repair what cannot be read, or move it out of its folder");
    // And that is what helps.
    world.write_bytes("pictures/p1.png", &whole);
    let train = ["train", "exp.toml"];
    let refused = world.run(&train).expect(4);
    assert!(!refused.stderr.contains("repair"), "{}", refused.stderr);
    world.run(&encode).expect(0);
    world.run(&train).expect(0);
}

#[test]
fn a_picture_that_breaks_off_is_reported_and_the_others_are_encoded() {
    let world = World::new();
    let whole = world.read("pictures/p2.png");
    world.write_bytes("pictures/p2.png", &whole[..whole.len() - 30]);
    let ran = world.run(&["encode", "exp.toml"]);
    let status = ran.status;
    assert!([1, 3].contains(&status), "status {status}");
    ran.says("p2.png");
}

#[test]
fn a_folder_that_is_not_there_or_has_no_pictures() {
    let world = World::new();
    world.edit("path = \"pictures\"", "path = \"nowhere\"");
    world.run(&["encode", "exp.toml"]).expect(1).says("nowhere");
    std::fs::create_dir(world.path("nowhere")).expect("a folder");
    world.run(&["encode", "exp.toml"]).expect(1).says("nowhere");
}

#[test]
fn a_checkpoint_with_a_wrong_tensor_names_it() {
    let world = with_own_model();
    let file = "model/text_encoder/model.safetensors";
    let name = "text_model.encoder.layers.0.mlp.fc1.bias";
    let original = world.read(file);
    change(&world, file, |t| {
        _ = t.remove(name).expect("a known tensor");
    });
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("model.safetensors")
        .says("layers.0.mlp.fc1.bias");
    world.write_bytes(file, &original);
    change(&world, file, |t| {
        let tensor = t
            .get(name)
            .expect("a known tensor")
            .narrow(0, 0, 1)
            .expect("narrowed");
        t.insert(name.to_owned(), tensor.contiguous().expect("contiguous"));
    });
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("layers.0.mlp.fc1.bias")
        .says("expected");
    world.write_bytes(file, &original);
    change(&world, file, |t| {
        let tensor = (t.get(name).expect("a known tensor") * f64::NAN).expect("scaled");
        t.insert(name.to_owned(), tensor);
    });
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("layers.0.mlp.fc1.bias");
    world.write_bytes(file, &original[..original.len() / 2]);
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("model.safetensors");
    world.write_bytes(file, &u64::MAX.to_le_bytes());
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("model.safetensors");
}

#[test]
fn a_denoiser_with_an_extra_or_missing_tensor_is_refused() {
    let world = with_own_model();
    world.run(&["encode", "exp.toml"]).expect(0);
    let file = "model/transformer/diffusion_pytorch_model.safetensors";
    let original = world.read(file);
    change(&world, file, |t| {
        let extra = t.values().next().expect("a tensor").clone();
        t.insert("nobody.knows.me".to_owned(), extra);
    });
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("nobody.knows.me");
    world.write_bytes(file, &original);
    change(&world, file, |t| {
        _ = t.remove("proj_out.weight").expect("a known tensor");
    });
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("proj_out.weight");
}

#[test]
fn another_familys_or_flavors_model_is_told_apart() {
    let world = with_own_model();
    world.edit("flavor = \"3.5-large\"", "flavor = \"3-medium\"");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("3-medium");
    world.edit("flavor = \"3-medium\"", "flavor = \"4\"");
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("exp.toml: `model.flavor`: model flavor of family `sd3`: expected one of")
        .says("3.5-large");
    world.edit("family = \"sd3\"", "family = \"sd9\"");
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("exp.toml: `model.family`: expected one of `sd3`")
        .says("found `sd9`");
}

#[test]
fn a_tokenizer_that_does_not_fit_the_embedding_table_is_refused() {
    let world = with_own_model();
    let file = "model/text_encoder/config.json";
    let config = String::from_utf8(world.read(file)).expect("UTF-8");
    let mut json: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    json["vocab_size"] = 300.into();
    world.write(file, &json.to_string());
    world.run(&["encode", "exp.toml"]).expect(2).says("300");
}

#[test]
fn a_store_that_is_newer_or_something_else_is_left_alone() {
    let world = World::new();
    world.write(
        "store/store.json",
        "{\"format\":\"plumb-store\",\"version\":99}",
    );
    world.run(&["encode", "exp.toml"]).expect(1).says("store");
    world.write("other/readme.txt", "not a store");
    world.edit("path = \"store\"", "path = \"other\"");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("store.json");
}

/// `plumb encode`, which mends what is missing elsewhere, cannot make a store over http, nor one in a folder of other things.
#[test]
fn a_store_that_encode_cannot_make_is_not_one_that_lacks_entries() {
    use std::io::{Read as _, Write as _};

    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    let world = World::new();
    let commands: [&[&str]; 3] = [
        &["train", "exp.toml"],
        &["encode", "exp.toml"],
        &["inspect", "manifest", "exp.toml"],
    ];
    world.write("other/holiday.txt", "sun");
    let [with_tls, without] = ["https", "http"].map(|scheme| format!("{scheme}://{address}/data"));
    for (from, to, said) in [
        ("store", with_tls.clone(), "the server speaks no TLS there"),
        (&with_tls, without.clone(), "store push --contents"),
        (&without, "other".to_owned(), "holds no store.json"),
    ] {
        world.edit(&format!("path = \"{from}\""), &format!("path = \"{to}\""));
        for command in commands {
            let ran = world.run(command);
            assert!([1, 2].contains(&ran.status), "{}", ran.status);
            assert!(!ran.says(said).stderr.contains("to mend it"));
        }
    }
}

#[test]
fn options_that_cannot_be() {
    let world = World::new();
    world
        .run(&["train", "nowhere.toml"])
        .expect(2)
        .says("nowhere.toml");
    world
        .run(&["train", "exp.toml", "--dump-step", "0", "f"])
        .expect(2)
        .says("--dump-step");
    world
        .run(&["sample", "exp.toml", "--lora", "pictures/p0.png"])
        .expect(1)
        .says("p0.png");
    world
        .run(&["inspect", "lora", "pictures/p0.png"])
        .expect(1)
        .says("p0.png");
    let out = ["--out", "x.safetensors"];
    world
        .run(
            &[
                &["inspect", "latents", "exp.toml", "--picture", "exp.toml"],
                &out[..],
            ]
            .concat(),
        )
        .expect(1)
        .says("exp.toml");
    for clip in ["pictures", "clip.mp4"] {
        let look = ["inspect", "latents", "exp.toml", "--picture", clip];
        let ran = world.run(&[&look[..], &out].concat()).expect(1);
        ran.says("it is a clip, and this command shows a picture's latents alone");
    }
    world.edit("rank = 2", "rank = 2\ntargets = [\"attn.to_qq\"]");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("attn.to_qq")
        .says("to_q");
    world.edit("variant = \"reference\"", "variant = \"koyha\"");
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("koyha")
        .says("kohya");
}

#[test]
fn a_training_that_diverges_says_so() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.edit("learning_rate = 0.01", "learning_rate = 1e30");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("learning_rate");
}

#[test]
fn a_component_that_the_recipe_does_not_have_is_refused_by_name() {
    let world = World::new();
    world.edit(
        "[store]",
        "[model.files]\nclip_x = \"clip.safetensors\"\n\n[store]",
    );
    let encode = || world.run(&["encode", "exp.toml"]).expect(2);
    encode()
        .says("`model.files.clip_x`: recipe sd3/3.5-large has no such component")
        .says("there are `clip_l`, `clip_g`, `t5`, `vae`");
    world.edit(
        "clip_x = \"clip.safetensors\"",
        "vae_tokenizer = \"folder\"",
    );
    encode().says("`model.files.vae`: a VAE has no tokenizer");
}
