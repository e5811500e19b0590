//! Foreign text on its way to a terminal: names, values and metadata may hold escape sequences, line ends, marks of direction, or
//! megabytes. What is printed has none of these, and is short.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::util::{Ran, plumb_with};
use crate::world::{World, tiny_sd3};

const HOSTILE: &str = "x\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{202e}y\u{9b}31m";

/// Fails unless what was printed cannot steer a terminal, and a person can read it.
#[track_caller]
pub(crate) fn clean(ran: Ran) -> Ran {
    for (stream, text) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
        let found = text
            .chars()
            .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(
            found,
            None,
            "{stream}: {:?}",
            text.chars().take(3000).collect::<String>()
        );
        assert!(text.len() < 30_000, "{stream}: {} bytes", text.len());
    }
    assert!(ran.status > 0 || !ran.stdout.is_empty());
    ran
}

/// A file of tensors with these names and this metadata.
fn tensors(names: &[String], metadata: &[(&str, String)]) -> Vec<u8> {
    let bytes = vec![0; 16];
    let view = |name: &String| {
        let tensor = TensorView::new(Dtype::F32, vec![2, 2], &bytes).expect("a tensor");
        (name.clone(), tensor)
    };
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    serialize(names.iter().map(view), Some(metadata)).expect("a file")
}

#[test]
fn names_of_files_and_arguments() {
    let world = World::new();
    let name = HOSTILE.replace('\n', "");
    clean(world.run(&["encode", &format!("{name}.toml")]).expect(2));
    clean(world.run(&[&name]).expect(2));
    clean(
        world
            .run(&["sample", "exp.toml", "--lora", &name, "--prompt", &name])
            .expect(1),
    );
    clean(world.run(&["model", "check", &name]).expect(1));
    clean(world.run(&["store", "check", &name]).expect(1));
    clean(world.run(&["recipe", "show", &name]).expect(2));
    world.write(&format!("pictures/{name}.png"), "no picture");
    world.write(&format!("pictures/{name}.txt"), "a caption");
    clean(world.run(&["encode", "exp.toml"]).expect(3));
}

#[test]
fn values_of_an_experiment() {
    let world = World::new();
    let long = "z".repeat(3 << 20);
    for value in [HOSTILE, &long] {
        let quoted: String = value
            .chars()
            .map(|c| format!("\\U{:08x}", c as u32))
            .collect();
        let quoted = if value.len() > 1000 {
            value.to_owned()
        } else {
            quoted
        };
        let text = World::experiment();
        for line in [
            format!("\"{quoted}\" = 1\n{text}"),
            text.replace("path = \"store\"", &format!("path = \"{quoted}\"")),
            text.replace("rank = 2", &format!("rank = \"{quoted}\"")),
            text.replace("rank = 2", &format!("rank = 2\ntargets = [\"{quoted}\"]")),
            text.replace("\"sd3\"", &format!("\"{quoted}\"")),
            text.replace("\"reference\"", &format!("\"{quoted}\"")),
            text.replace(
                "[store]",
                &format!("[recipe.deviate]\n\"{quoted}\" = 1\n[store]"),
            ),
            text.replace("steps = 4", &format!("steps = 4\nname = \"{quoted}\"")),
        ] {
            world.write("exp.toml", &line);
            let ran = clean(world.run(&["train", "exp.toml"]));
            assert!([1, 2, 4].contains(&ran.status), "{}", ran.status);
        }
    }
}

#[test]
fn metadata_and_names_of_tensors() {
    let world = World::new();
    let long = "y".repeat(10 << 20);
    let lora = |module: &str| -> Vec<String> {
        ["lora_A", "lora_B"]
            .map(|part| format!("transformer.{module}.{part}.weight"))
            .into()
    };
    let module = "transformer_blocks.0.attn.to_q";
    for text in [HOSTILE.to_owned(), long] {
        let metadata = [("ss_x", text.clone()), (text.as_str(), "v".to_owned())];
        world.write_bytes("a.safetensors", &tensors(&lora(module), &metadata));
        clean(
            world
                .run(&["inspect", "lora", "a.safetensors", "--family", "sd3"])
                .expect(0),
        );
        world.write_bytes("b.safetensors", &tensors(&lora(&text), &[]));
        clean(world.run(&["inspect", "lora", "b.safetensors", "--family", "sd3"]));
        clean(world.run(&["import", "lora", "b.safetensors"]));
        clean(world.run(&["model", "check", "b.safetensors"]));
        clean(world.run(&["sample", "exp.toml", "--lora", "b.safetensors"]));
        let made = [("plumb", format!("{{\"tool\": {text:?}}}"))];
        world.write_bytes("c.safetensors", &tensors(&lora(module), &made));
        clean(world.run(&["inspect", "lora", "c.safetensors", "--family", "sd3"]));
    }
}

#[test]
fn configurations_of_a_model() {
    let world = World::new();
    world.copy_folder(&tiny_sd3(), "model");
    world.edit(
        &format!("{:?}", tiny_sd3().display().to_string()),
        "\"model\"",
    );
    for file in
        ["transformer", "vae", "text_encoder"].map(|part| format!("model/{part}/config.json"))
    {
        let sound = world.read(&file);
        let config: serde_json::Value = serde_json::from_slice(&sound).expect("JSON");
        for key in config.as_object().expect("an object").keys() {
            let mut changed = config.clone();
            changed[key] = HOSTILE.into();
            world.write(&file, &changed.to_string());
            clean(world.run(&["model", "check", "model"]));
        }
        let mut long = config.clone();
        long["z".repeat(5 << 20)] = HOSTILE.into();
        world.write(&file, &long.to_string());
        clean(world.run(&["model", "check", "model"]));
        world.write_bytes(&file, &sound);
    }
}

#[test]
fn an_error_of_the_tensor_library_has_no_backtrace() {
    let world = World::new();
    world.edit("steps = 2", "steps = 2\nwidth = 1024\nheight = 1024");
    let sample = ["sample", "exp.toml"];
    let folder = world.path("");
    let ran = plumb_with(&folder, &sample, &[("RUST_BACKTRACE", "1")]).expect(1);
    let error: Vec<&str> = ran
        .stderr
        .lines()
        .skip_while(|l| !l.starts_with("error"))
        .collect();
    assert!(
        error.len() == 1 && error[0].ends_with("48 x 48"),
        "{}",
        ran.stderr
    );
}
