//! What a sampled picture's file says of its making, as Pillow reads it.

use serde_json::{Value, json};

use crate::peers::Script;
use crate::world::World;

const READ: &str = r#"
import json, sys
from PIL import Image
said = []
for path in sys.argv[1:]:
    image = Image.open(path)
    exif = image.getexif()
    comment = exif.get_ifd(0x8769).get(0x9286, b"")
    words = image.info.get("parameters") or comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    image.seek(getattr(image, "n_frames", 1) - 1)
    said.append([json.loads(image.info.get("plumb") or exif[0x010e]), words, image.size])
print(json.dumps(said))
"#;

fn read(world: &World, files: &[&str]) -> Option<Vec<Value>> {
    let script = Script::code(READ);
    let script = files
        .iter()
        .fold(script, |script, file| script.arg(world.path(file)));
    Some(serde_json::from_str(&script.run()?).expect("JSON"))
}

#[test]
fn a_picture_says_all_that_makes_it() {
    let world = World::new();
    world.edit(
        "steps = 2",
        "steps = 2\nguidance = 3.5\nnegative_prompt = \"blurry, \u{732b}\"",
    );
    world.edit(
        "[\"a blue square\"]",
        "[\"a blue square\", \"caf\u{e9} \u{1f680}\"]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(0);
    let lora = ["--lora", "out/lora.safetensors:0.5", "--out", "made"];
    world
        .run(&[&["sample", "exp.toml"], &lora[..]].concat())
        .expect(0);
    let Some(said) = read(&world, &["made/seed0-000.png", "made/seed0-001.png"]) else {
        return;
    };
    let second = &said[1];
    let json = &second[0];
    for (field, expected) in [
        ("prompt", json!("caf\u{e9} \u{1f680}")),
        ("negative_prompt", json!("blurry, \u{732b}")),
        ("number", json!(1)),
        ("seed", json!(0)),
        ("steps", json!(2)),
        ("guidance", json!(3.5)),
        ("sampler", json!("euler")),
        ("width", json!(64)),
        ("frames", Value::Null),
    ] {
        assert_eq!(json[field], expected, "{field}: {json}");
    }
    assert_eq!(json["model"]["file"], "tiny-sd3");
    assert_eq!(json["recipe"]["name"], "sd3/3.5-large");
    assert_eq!(json["loras"][0]["file"], "lora.safetensors");
    assert_eq!(json["loras"][0]["strength"], 0.5);
    let words = second[1].as_str().expect("words");
    let expected = "caf\u{e9} \u{1f680}\nNegative prompt: blurry, \u{732b}\nSteps: 2, Sampler: euler, CFG scale: 3.5, Seed: 0, Size: 64x64, Model: tiny-sd3, Shift: 3, Loras: \"lora.safetensors:0.5\", Version: plumb";
    assert!(words.starts_with(expected), "{words}");
    assert_eq!(said[0][0]["number"], 0);
    // Nothing is steered away from without guidance, so no negative prompt made the picture.
    world.edit(
        "guidance = 3.5\nnegative_prompt = \"blurry, \u{732b}\"",
        "guidance = 1.0",
    );
    world
        .run(&["sample", "exp.toml", "--out", "plain"])
        .expect(0);
    let said = read(&world, &["plain/seed0-000.png"]).expect("read");
    assert_eq!(said[0][0]["negative_prompt"], Value::Null);
    assert_eq!(said[0][0]["loras"], Value::Null);
    assert!(!said[0][1].as_str().expect("words").contains("Negative"));
}

#[test]
fn a_clip_and_a_picture_beside_a_reference_say_so() {
    let world = crate::wan::world();
    world
        .run(&["sample", "exp.toml", "--out", "made"])
        .expect(0);
    let Some(said) = read(&world, &["made/seed0-000.webp"]) else {
        return;
    };
    let json = &said[0][0];
    assert_eq!(
        (&json["frames"], &json["frame_rate"]),
        (&json!(5), &json!("16"))
    );
    let negative = json["negative_prompt"].as_str().expect("the authors' own");
    let words = said[0][1].as_str().expect("words");
    assert!(words.contains(negative) && !negative.is_ascii(), "{words}");

    let world = crate::kontext::world();
    let sample = [
        "sample",
        "exp.toml",
        "--reference",
        "references/p2.jpg",
        "--out",
        "made",
    ];
    world.run(&sample).expect(0);
    let said = read(&world, &["made/seed0-000.png"]).expect("read");
    let json = &said[0][0];
    assert_eq!(json["reference"]["file"], "p2.jpg");
    assert_eq!(
        (&json["width"], &said[0][2]),
        (&json!(80), &json!([80, 48]))
    );
    assert_eq!(json["embedded_guidance"], 2.5);
}
