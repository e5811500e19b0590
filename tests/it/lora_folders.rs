//! LoRAs in folders, as PEFT and diffusers save them, against these libraries; damaged LoRAs, and several at once.

use std::path::Path;

use plumb::convert::{ReadLora, read_lora};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use crate::cli_lora::tiny_lora;
use crate::peers::Script;
use crate::store_util::scratch;
use crate::util::plumb;
use crate::world::World;

/// The name of a module that flux1 has and no other family.
const MODULE: &str = "single_transformer_blocks.0.proj_mlp";

/// An adapter of rank 2 on [`MODULE`], with `prefix` in front of its name.
fn adapter(prefix: &str) -> Vec<u8> {
    let data = 1f32.to_le_bytes().repeat(8);
    let names = ["A", "B"].map(|part| format!("{prefix}{MODULE}.lora_{part}.weight"));
    let shapes = [vec![2, 4], vec![4, 2]];
    let views = names.iter().zip(shapes).map(|(name, shape)| {
        let view = TensorView::new(Dtype::F32, shape, &data).expect("a tensor");
        (name.as_str(), view)
    });
    safetensors::serialize(views, None).expect("bytes")
}

fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, bytes).expect("a file");
}

const PEFT: &str = "base_model.model.";

#[test]
fn a_folder_is_taken_for_the_lora_in_it() {
    let folder = scratch();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;
    write(&folder, "peft/adapter_model.safetensors", adapter(PEFT));
    write(&folder, "peft/adapter_config.json", config);
    write(
        &folder,
        "own/pytorch_lora_weights.safetensors",
        adapter("transformer."),
    );
    write(&folder, "any/x.safetensors", adapter("transformer."));
    write(&folder, "any/README.md", "");
    for (name, alpha) in [("peft", 4.0), ("own", 2.0), ("any", 2.0)] {
        let read = read_lora(&folder.path().join(name), &ReadLora::default()).expect(name);
        assert_eq!(read.lora.modules[0].alpha, alpha, "{name}");
        let import = ["import", "lora", name];
        plumb(folder.path(), &import)
            .expect(0)
            .says("flux1, 1 module of rank 2");
        plumb(folder.path(), &["inspect", "lora", name]).expect(0);
        assert!(
            folder
                .path()
                .join(format!("{name}-diffusers.safetensors"))
                .exists()
        );
    }
    // The file itself is the same as its folder, and without its config it is told how it was read.
    let file = "peft/adapter_model.safetensors";
    let read = read_lora(&folder.path().join(file), &ReadLora::default()).expect(file);
    assert_eq!(read.lora.modules[0].alpha, 4.0);
    write(&folder, "lone.safetensors", adapter(PEFT));
    plumb(folder.path(), &["import", "lora", "lone.safetensors"])
        .expect(0)
        .says("its alpha is taken to be the rank");
}

#[test]
fn what_is_no_lora_is_called_what_it_is() {
    let folder = scratch();
    let refused = |name: &str, text: &str| {
        for command in [["import", "lora", name], ["inspect", "lora", name]] {
            plumb(folder.path(), &command).expect(1).says(text);
        }
    };
    let dora = r#"{"r": 2, "lora_alpha": 2, "use_dora": true}"#;
    write(&folder, "dora/adapter_model.safetensors", adapter(PEFT));
    write(&folder, "dora/adapter_config.json", dora);
    refused("dora", "`use_dora`: found true: that is DoRA");
    write(
        &folder,
        "pickled/adapter_model.bin",
        b"PK\x03\x04....archive/data.pkl",
    );
    refused(
        "pickled",
        "only `adapter_model.bin`, pickles, which can run code",
    );
    write(&folder, "outer/style/adapter_config.json", "{}");
    refused("outer", "but in its folders `style`; name one of them");
    write(&folder, "two/a.safetensors", "");
    write(&folder, "two/b.safetensors", "");
    refused("two", "2 LoRAs in it, `a.safetensors`, `b.safetensors`");
    write(&folder, "none/x.txt", "");
    refused(
        "none",
        "no LoRA in it; expected `adapter_model.safetensors`",
    );
    write(&folder, "l.pt", b"PK\x03\x04....archive/data.pkl");
    refused("l.pt", "which can run code when it is opened");
    write(&folder, "l.safetensors", "<!DOCTYPE html>");
    refused("l.safetensors", "it is a web page");
    write(
        &folder,
        "p.safetensors",
        "version https://git-lfs.github.com/spec/v1\n",
    );
    refused("p.safetensors", "it is a Git LFS pointer");
    let whole = adapter(PEFT);
    write(&folder, "cut.safetensors", &whole[..whole.len() - 4]);
    refused("cut.safetensors", "it is cut short");
    write(&folder, "head.safetensors", &whole[..40]);
    refused("head.safetensors", "it is cut short");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero")).expect("a link");
        refused("zero", "found a device or a pipe");
    }
}

#[test]
fn a_damaged_lora_is_refused_and_shown_with_a_problem() {
    let world = World::new();
    let mut bytes = tiny_lora();
    world.write_bytes("sound.safetensors", &bytes);
    let last = bytes.len() - 3;
    bytes[last] ^= 4;
    world.write_bytes("bad.safetensors", &bytes);
    let what = "bad.safetensors: its tensors are not those of its `sshs_model_hash`";
    let sample = ["sample", "exp.toml", "--steps", "1", "--lora"];
    world
        .run(&[&sample[..], &["bad.safetensors"]].concat())
        .expect(1)
        .says(what);
    world
        .run(&["import", "lora", "bad.safetensors"])
        .expect(1)
        .says(what);
    world
        .run(&["export", "lora", "bad.safetensors", "--format", "kohya"])
        .expect(1)
        .says(what);
    world
        .run(&["inspect", "lora", "bad.safetensors"])
        .expect(3)
        .says(what)
        .says("sd3");
    world
        .run(&["inspect", "lora", "sound.safetensors"])
        .expect(0);
    world.edit("[adapter]", "[adapter]\nfrom = \"bad.safetensors\"");
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["train", "exp.toml"]).expect(1).says(what);
}

#[test]
fn several_loras_are_added_up_in_any_order() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.write_bytes("a.safetensors", &tiny_lora());
    let export = ["export", "lora", "a.safetensors", "--format", "kohya"];
    world.run(&export).expect(0);
    let sample = |loras: &[&str]| {
        let mut args = vec!["sample", "exp.toml", "--steps", "1", "--out", "out"];
        args.extend(loras.iter().flat_map(|lora| ["--lora", lora]));
        world.run(&args).expect(0);
        world.sampled("out/seed0-000.png")
    };
    let (none, one) = (sample(&[]), sample(&["a.safetensors"]));
    assert!(none != one);
    assert!(sample(&["a.safetensors:0"]) == none);
    assert!(sample(&["a.safetensors:1"]) == one);
    assert!(sample(&["a.safetensors:-1"]) != one);
    // Three quarters and a quarter are rounded apart: a color that lies between two may fall to the other.
    let pixels = |png: &[u8]| {
        let picture = image::load_from_memory(png).expect("a PNG");
        picture.to_rgb8().into_raw()
    };
    for [first, second] in [
        ["a.safetensors:0.75", "a-kohya.safetensors:0.25"],
        ["a-kohya.safetensors:0.25", "a.safetensors:0.75"],
    ] {
        let (found, want) = (pixels(&sample(&[first, second])), pixels(&one));
        let mut pairs = found.iter().zip(&want);
        assert!(
            pairs.all(|(a, b)| a.abs_diff(*b) <= 1),
            "{first} and {second}"
        );
    }
    assert!(sample(&["a.safetensors:2", "a-kohya.safetensors:-2"]) == none);
    let wrong = ["sample", "exp.toml", "--lora", "a.safetensors:1000"];
    world
        .run(&wrong)
        .expect(2)
        .says("expected a strength from -100 to 100, found 1000");
    let missing = ["sample", "exp.toml", "--lora", "none.safetensors:0.5"];
    world
        .run(&missing)
        .expect(1)
        .says("none.safetensors: cannot be read");
}

#[test]
fn a_lora_goes_to_pefts_folder_and_back_bit_for_bit() {
    let folder = scratch();
    write(&folder, "lora.safetensors", tiny_lora());
    let run = |args: &[&str]| plumb(folder.path(), args).expect(0);
    let read = |name: &str| read_lora(&folder.path().join(name), &ReadLora::default()).expect(name);
    // Of kohya's naming too, which has alphas beside the ranks.
    run(&["export", "lora", "lora.safetensors", "--format", "kohya"]);
    for (name, made) in [("lora", "lora-peft"), ("lora-kohya", "lora-kohya-peft")] {
        let file = format!("{name}.safetensors");
        run(&["export", "lora", &file, "--format", "peft"])
            .says(&format!("{made}: sd3, "))
            .says("to that of peft");
        let (before, after) = (read(&file).lora, read(made).lora);
        assert_eq!(before.modules, after.modules, "{name}");
        assert_eq!(after.format.name(), "peft");
        run(&["inspect", "lora", made]).says("converted by      plumb");
    }
    // The weights alone say the same, and another config beside them is not believed.
    let alone = folder
        .path()
        .join("lora-kohya-peft/adapter_model.safetensors");
    std::fs::copy(alone, folder.path().join("alone.safetensors")).expect("copied");
    let kohya = read("lora-kohya.safetensors").lora.modules;
    assert_eq!(read("alone.safetensors").lora.modules, kohya);
    let config = r#"{"peft_type": "LORA", "lora_alpha": 64}"#;
    write(&folder, "lora-kohya-peft/adapter_config.json", config);
    plumb(folder.path(), &["import", "lora", "lora-kohya-peft"])
        .expect(1)
        .says("only one of them can be meant");
    // Again into the same folder: what was in it is replaced as a whole.
    run(&[
        "export",
        "lora",
        "lora-kohya.safetensors",
        "--format",
        "peft",
    ]);
    assert_eq!(read("lora-kohya-peft").lora.modules, kohya);
    let out = ["--format", "peft", "--out", "x.safetensors"];
    let export = ["export", "lora", "lora.safetensors"];
    plumb(folder.path(), &[&export[..], &out].concat())
        .expect(1)
        .says("expected the name of a folder");
    let same = [
        "export",
        "lora",
        "lora-peft",
        "--format",
        "peft",
        "--out",
        "lora-peft",
    ];
    plumb(folder.path(), &same)
        .expect(1)
        .says("is the file to convert");
}

#[test]
fn adapters_of_peft_and_diffusers_change_what_these_libraries_change() {
    let folder = scratch();
    let run = |mode: &str| {
        Script::file("tools/check_adapters.py")
            .arg(mode)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-sdxl"))
            .arg(folder.path())
            .run()
    };
    let Some(made) = run("make") else { return };
    for name in made.lines() {
        let out = format!("{name}.plumb.safetensors");
        let args = [
            "import", "lora", name, "--family", "sdxl", "--dtype", "f32", "--out", &out,
        ];
        plumb(folder.path(), &args).expect(0);
        let (from, out) = (["export", "lora", name], format!("{name}.peft"));
        let to = ["--format", "peft", "--family", "sdxl", "--out", &out];
        plumb(folder.path(), &[&from[..], &to].concat()).expect(0);
    }
    println!("{}", run("compare").expect("Python"));
}
