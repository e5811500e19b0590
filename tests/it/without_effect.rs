//! Options that would have no effect are refused by name, numbers are bounded on the command line too, and what is cut is told
//! every time.

use crate::util::plumb_with;
use crate::world::World;

#[test]
fn an_option_without_effect_is_refused_by_name() {
    let cases = [
        (
            "steps = 2\n",
            "steps = 2\nguidance = 1.0\nnegative_prompt = \"a\"\n",
            "sample.negative_prompt",
        ),
        (
            "steps = 2\n",
            "steps = 2\nguidance = 0\nnegative_prompt = \"a\"\n",
            "sample.guidance",
        ),
        (
            "seed = 5",
            "seed = 5\nvalidate_every = 2",
            "train.validate_every",
        ),
        (
            "seed = 5",
            "seed = 5\nvalidation_share = 0.3",
            "train.validation_share",
        ),
        (
            "seed = 5",
            "seed = 5\nwarmup_steps = 5",
            "train.warmup_steps",
        ),
        ("seed = 5", "seed = 5\nmode_scale = 1.0", "train.mode_scale"),
        (
            "seed = 5",
            "seed = 5\ntimestep_sampling = \"uniform\"\nlogit_std = 2.0",
            "train.logit_std",
        ),
        ("prompts = [\"a blue square\"]", "", "train.sample_every"),
        (
            "\"a blue square\"",
            "\"a blue square --w 768\"",
            "sample.prompts",
        ),
        (
            "resolution = 64",
            "resolution = 64\nbucket = false\nmax_bucket = 64",
            "dataset[0].max_bucket",
        ),
    ];
    let world = World::new();
    let sound = World::experiment().replace("seed = 5", "seed = 5\nsample_every = 4");
    for (from, to, field) in cases {
        assert!(sound.contains(from), "{from}");
        world.write("exp.toml", &sound.replace(from, to));
        world
            .run(&["train", "exp.toml"])
            .expect(2)
            .says(&format!("exp.toml: `{field}`: "));
    }
}

#[test]
fn numbers_of_the_command_line_are_bounded() {
    let world = World::new();
    let most = u64::MAX.to_string();
    world.run(&["encode", "exp.toml"]).expect(0);
    for (args, status) in [
        (vec!["sample", "exp.toml", "--steps", &most], 2),
        (vec!["sample", "exp.toml", "--steps", "0"], 2),
        (vec!["sample", "exp.toml", "--seed", &most], 2),
        (vec!["sample", "exp.toml", "--guidance", "nan"], 2),
        (vec!["sample", "exp.toml", "--guidance=-0.0"], 2),
        (vec!["sample", "exp.toml", "--guidance", "0.5"], 2),
        (vec!["sample", "exp.toml", "--prompt", "a --n b"], 2),
        (vec!["encode", "exp.toml", "--memory", "nan"], 2),
        (vec!["encode", "exp.toml", "--memory=-1"], 2),
        (vec!["encode", "exp.toml", "--memory", "1e300"], 2),
        (vec!["train", "exp.toml", "--dump-step", &most, "x"], 2),
        (vec!["train", "exp.toml", "--stop-after", "0"], 2),
        (vec!["store", "gc", "store", "--grace-hours", &most], 0),
        (vec!["train", "exp.toml", "--stop-after", &most], 0),
    ] {
        world.run(&args).expect(status);
    }
}

#[test]
fn a_rank_that_does_not_fit_is_what_is_advised_to_be_lowered() {
    let world = World::new();
    world.edit("rank = 2", "rank = 65536");
    world.run(&["encode", "exp.toml"]).expect(0);
    world
        .run(&["train", "exp.toml", "--memory", "0.5"])
        .expect(1)
        .says("what helps: lower `adapter.rank` (65536)");
}

#[test]
fn a_batch_that_no_bucket_fills_is_told_and_no_memory_is_planned_for_it() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    let planned = |from: &str, to: &str| {
        world.edit(from, to);
        let train = ["train", "exp.toml", "--restart", "--stop-after", "1"];
        let said = world.run(&train).expect(0).stderr;
        let memory = said.lines().find(|line| line.contains("memory: peak"));
        (memory.expect("a plan").to_owned(), said)
    };
    // Two of the three pictures are of one bucket.
    let (two, said) = planned("seed = 5", "seed = 6");
    assert!(!said.contains("train.batch_size"), "{said}");
    let (many, said) = planned("batch_size = 2", "batch_size = 4096");
    let told = "a micro-batch has at most 2 pictures, and not the 4096 of `train.batch_size`";
    assert!(said.contains(told), "{said}");
    assert_eq!(two, many);
}

#[test]
fn cut_captions_are_counted_each_time() {
    let world = World::new();
    world.write("pictures/p1.txt", &"word ".repeat(300));
    let cut = |args: &[&str]| -> Vec<u64> {
        let report = world.run(args).expect(0).json();
        let captions = report["captions"].as_array().expect("a list").clone();
        captions
            .iter()
            .map(|c| c["truncated"].as_u64().expect("a count"))
            .collect()
    };
    let first = cut(&["encode", "exp.toml", "--json"]);
    assert!(first.contains(&1), "{first:?}");
    assert_eq!(cut(&["encode", "exp.toml", "--json"]), first);
    assert_eq!(cut(&["train", "exp.toml", "--json"]), first);
    world
        .run(&["encode", "exp.toml"])
        .expect(0)
        .says("1 of them all is cut");
    world
        .run(&["train", "exp.toml", "--restart"])
        .expect(0)
        .says("1 of 5 captions is cut");
}

#[test]
fn a_caption_that_is_a_book_is_refused_before_anything_is_encoded() {
    let world = World::new();
    world.write("captions.txt", &format!("a cat\n{}\n", "a".repeat(70_000)));
    world
        .run(&["encode", "exp.toml", "--captions", "captions.txt"])
        .expect(1)
        .says("captions.txt: line 2: expected a caption of at most 65536 bytes, found 70000");
    assert!(!world.path("store/packs").exists());
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_read() {
    let world = World::new();
    world
        .run(&["encode", "/dev/zero"])
        .expect(2)
        .says("a device or a pipe");
    world
        .run(&["encode", "exp.toml", "--captions", "/dev/zero"])
        .expect(1)
        .says("/dev/zero: expected a text file");
    world
        .run(&["sample", "exp.toml", "--prompts-file", "/dev/zero"])
        .expect(2)
        .says("/dev/zero: expected a text file");
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced() {
    use std::os::unix::fs::FileTypeExt as _;

    let world = World::new();
    world.write_bytes("lora.safetensors", &crate::cli_lora::tiny_lora());
    let pipe = world.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    std::fs::create_dir(world.path("peft")).expect("a folder");
    let weights = world.path("peft/adapter_model.safetensors");
    std::os::unix::fs::symlink(&pipe, weights).expect("a link");
    let written = |args: &[&str], status: i32| {
        let ran = world.run(args).expect(status);
        let ran = ran.says("it is a device, a pipe or a socket; name a file");
        assert!(!ran.stderr.contains("encod"), "late: {}", ran.stderr);
        let kind = pipe.symlink_metadata().expect("there").file_type();
        assert!(kind.is_fifo(), "{args:?}");
    };
    let inspect = |args: &[&str]| written(&[&["inspect"], args].concat(), 2);
    let caption = ["--caption", "a", "--out", "pipe"];
    inspect(&[&["conditioning", "exp.toml"], &caption[..]].concat());
    let picture = ["--picture", "pictures/p0.png", "--out", "pipe"];
    inspect(&[&["latents", "exp.toml"], &picture[..]].concat());
    inspect(&["manifest", "exp.toml", "--out", "pipe"]);
    inspect(&["report", "exp.toml", "--html", "pipe"]);
    inspect(&["export", "exp.toml", "--parquet", "pipe"]);
    written(&["probe", "exp.toml", "--out", "pipe"], 2);
    let export = ["export", "lora", "lora.safetensors", "--format"];
    for to in [["kohya", "--out", "pipe"], ["peft", "--out", "peft"]] {
        written(&[&export[..], &to[..]].concat(), 1);
    }
    let import = ["import", "lora", "lora.safetensors", "--out", "pipe"];
    written(&import, 1);
}

#[test]
fn prompts_of_a_file_are_sampled() {
    let world = World::new();
    world.write(
        "prompts.txt",
        "# two of them\na red square\n\n  a blue circle  \n",
    );
    world.edit(
        "prompts = [\"a blue square\"]",
        "prompts_file = \"prompts.txt\"",
    );
    let sample = ["sample", "exp.toml", "--out", "a"];
    let ran = world.run(&sample).expect(0).says("a red square");
    assert_eq!(ran.stdout.lines().count(), 2);
    world.write("other.txt", "a green square --d 5\n");
    world
        .run(&["sample", "exp.toml", "--prompts-file", "other.txt"])
        .expect(2)
        .says("`--d` in `a green square --d 5`");
}

#[test]
fn paths_may_name_the_home_folder_and_variables() {
    let world = World::new();
    world.edit("path = \"pictures\"", "path = \"~/pictures\"");
    world.edit("path = \"store\"", "path = \"${PLUMB_TEST_STORE}/store\"");
    let folder = world.path("");
    let text = folder.display().to_string();
    let elsewhere = folder.join("there").display().to_string();
    let variables = [("HOME", text.as_str()), ("PLUMB_TEST_STORE", &elsewhere)];
    plumb_with(&folder, &["encode", "exp.toml"], &variables).expect(0);
    assert!(world.path("there/store/store.json").exists());
    world
        .run(&["encode", "exp.toml"])
        .expect(2)
        .says("exp.toml: `store.path`: the variable `$PLUMB_TEST_STORE` is not set");
}

#[test]
fn a_deviation_that_changes_nothing_is_told() {
    let world = World::new();
    // This recipe's T5 cuts no caption, so that where it would cut does not count.
    let idle = "t5.tokens.truncation = \"whole_words\"";
    let text = World::experiment() + "\n[recipe.deviate]\n" + idle + "\nclip_l.tokens.pad = 0\n";
    world.write("exp.toml", &text);
    let told = "t5.tokens.truncation changes nothing";
    let encoded = world.run(&["encode", "exp.toml"]).expect(0).says(told);
    assert!(!encoded.stderr.contains("clip_l.tokens.pad changes"));
    world.run(&["train", "exp.toml"]).expect(0).says(told);
}
