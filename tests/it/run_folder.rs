//! The folder of a run: one training at a time, and what is wrong with it is told before anything is computed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cli_disk::on_small_disk;
use crate::util::listing;
use crate::world::World;

fn encoded() -> World {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world
}

/// A training in a process of its own, at work when this returns.
fn at_work(world: &World) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_plumb"))
        .args(["train", "exp.toml"])
        .current_dir(world.path("."))
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    wait_for(&world.path("out/checkpoints/step-00000002.safetensors"));
    child
}

fn wait_for(path: &Path) {
    for _ in 0..3000 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{} never came", path.display());
}

#[test]
fn two_trainings_in_one_folder_are_refused_and_a_killed_one_leaves_it_free() {
    let world = encoded();
    world.edit("steps = 4", "steps = 1000000");
    let mut first = at_work(&world);
    for args in [
        &["train", "exp.toml"][..],
        &["train", "exp.toml", "--restart"],
    ] {
        world
            .run(args)
            .expect(1)
            .says("another training is at work in this folder")
            .says(&format!("(process {})", first.id()));
    }
    first.kill().expect("killed");
    first.wait().expect("ended");
    world.write(
        "out/checkpoints/.tmp-4294967294-0-held",
        "half a checkpoint",
    );
    world.write("out/.tmp-4294967294-1-held", "half a LoRA");
    world
        .run(&["train", "exp.toml", "--stop-after", "1"])
        .expect(0)
        .says("going on after step");
    let left = listing(&world.path("out"));
    assert!(
        !left
            .iter()
            .any(|f| f.contains(".tmp-") || f.contains("lock")),
        "{left:?}"
    );
    // Each step once.
    let metrics = String::from_utf8(world.read("out/metrics.jsonl")).expect("text");
    let steps = metrics.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line["step"].as_u64().expect("a step")
    });
    let steps: Vec<u64> = steps.collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_name_that_no_file_can_have_is_refused_before_anything_starts() {
    let world = World::new();
    for name in [
        &"x".repeat(300),
        "a\\u001bb",
        "style.",
        "style ",
        "CON",
        "a/b",
    ] {
        let named = format!("seed = 5\nname = \"{name}\"");
        world.edit("seed = 5", &named);
        let ran = world
            .run(&["train", "exp.toml"])
            .expect(2)
            .says("`train.name`");
        assert!(ran.stderr.len() < 600, "{}", ran.stderr);
        world.edit(&named, "seed = 5");
    }
    assert!(!world.path("out").exists() && !world.path("store").exists());
}

#[test]
fn a_refused_training_leaves_the_folder_as_it_was() {
    let world = encoded();
    // A file where a folder must be; then a base model that is not what it says.
    world.write("file", "x");
    world.edit("output = \"out\"", "output = \"file/out\"");
    world
        .run(&["train", "exp.toml"])
        .expect(1)
        .says("file: expected a folder");
    world.edit("output = \"file/out\"", "output = \"a/b/out\"");
    world.edit("steps = 4", "epochs = 2\nwarmup_steps = 50");
    world
        .run(&["train", "exp.toml"])
        .expect(2)
        .says("`train.warmup_steps`");
    assert!(!world.path("a").exists());
}

#[test]
fn what_a_given_up_run_made_is_not_taken_for_the_new_ones() {
    let world = encoded();
    world.edit("seed = 5", "seed = 5\nsample_every = 1");
    world.run(&["train", "exp.toml"]).expect(0);
    world.write("out/previews/mine.png", "of somebody else");
    world.write("out/other.safetensors", "of another name");
    world.edit("learning_rate = 0.01", "learning_rate = 0.02");
    world
        .run(&["train", "exp.toml", "--restart", "--stop-after", "1"])
        .expect(0)
        .says("caution: ./out/other.safetensors is not this run's");
    let left = listing(&world.path("out"));
    let previews: Vec<_> = left.iter().filter(|f| f.starts_with("previews/")).collect();
    let expected = ["mine.png", "step-00000000.png", "step-00000001.png"];
    assert_eq!(
        previews,
        expected
            .map(|name| format!("previews/{name}"))
            .iter()
            .collect::<Vec<_>>()
    );
    let curves = left
        .iter()
        .filter(|f| f.starts_with("tensorboard/"))
        .count();
    assert_eq!(curves, 1, "{left:?}");
    assert!(!left.contains(&"lora.safetensors".to_owned()), "{left:?}");
    world
        .run(&["train", "exp.toml"])
        .expect(0)
        .says("going on after step 1");
    assert!(world.path("out/lora.safetensors").exists());
}

#[test]
fn a_step_that_is_not_reached_is_not_dumped_in_silence() {
    let world = encoded();
    let dump = |stop: &str, step: &str, file: &str| {
        let stop = ["train", "exp.toml", "--stop-after", stop];
        world.run(&[&stop[..], &["--dump-step", step, file]].concat())
    };
    let why = "step 4 cannot be dumped: --stop-after ends this call after step 3";
    dump("3", "4", "step.st").expect(2).says(why);
    dump("1", "1", "exp.toml/step.st")
        .expect(1)
        .says("cannot write exp.toml/step.st");
    assert!(!world.path("out").exists(), "nothing was computed");
    dump("3", "3", "step.st").expect(0);
    // Counted from where the run goes on.
    dump("1", "4", "step4.st").expect(0);
    assert!(world.path("step4.st").exists());
}

#[test]
fn pictures_that_could_not_be_written_are_not_sampled() {
    let world = encoded();
    let ran = world.run(&["sample", "exp.toml", "--out", "exp.toml/drawn"]);
    let ran = ran
        .expect(1)
        .says("cannot write exp.toml/drawn/seed0-000.png");
    assert!(!ran.stderr.contains("sampling"), "{}", ran.stderr);
    let sizes = [
        (
            "width = 40\nsteps = 2",
            "`sample.width`: expected a multiple of 16 px for this model, found 40",
        ),
        (
            "height = 72\nsteps = 2",
            "`sample.height`: expected a multiple of 16 px for this model, found 72",
        ),
    ];
    for (line, why) in sizes {
        world.edit("steps = 2", line);
        world.run(&["sample", "exp.toml"]).expect(2).says(why);
        world.edit("seed = 5", "seed = 5\nsample_every = 2");
        world.run(&["train", "exp.toml"]).expect(2).says(why);
        world.edit("seed = 5\nsample_every = 2", "seed = 5");
        world.edit(line, "steps = 2");
    }
    let seed = ["sample", "exp.toml", "--seed", "18446744073709551615"];
    world
        .run(&seed)
        .expect(2)
        .says("expected 0 to 9007199254740991, found 18446744073709551615");
}

#[test]
fn a_disk_that_is_full_or_may_not_be_written_is_told_before_the_first_step() {
    let world = encoded();
    let script = "
        $PLUMB train exp.toml; test $? = 1 || exit 9
        test -z \"$(ls out)\" || exit 8
        dd if=/dev/zero of=out/filler bs=4k 2>/dev/null
        $PLUMB train exp.toml; test $? = 1 || exit 7
        rm out/filler
        mount -o remount,size=64m,ro out
        $PLUMB train exp.toml; test $? = 1 || exit 6
        mount -o remount,rw out
        $PLUMB train exp.toml || exit 5
        test -z \"$(ls out | grep lock)\"";
    let Some((well, said)) = on_small_disk(&world, "out", "64k", script) else {
        return;
    };
    assert!(well, "{said}");
    assert!(
        said.contains("the disk has 0.1 MB free, and the run needs"),
        "{said}"
    );
    assert!(said.contains("out: cannot be written: "), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(!said.contains("going on after"), "{said}");
}

#[test]
fn a_disk_that_fills_up_costs_no_sound_checkpoint() {
    let world = encoded();
    world.edit("steps = 4", "steps = 1000000");
    let script = "
        $PLUMB train exp.toml & child=$!
        while ! ls out/checkpoints/step-* >/dev/null 2>&1; do sleep 0.05; done
        while kill -0 $child 2>/dev/null; do
            dd if=/dev/zero of=out/filler.$((n += 1)) bs=4k 2>/dev/null; sleep 0.05
        done
        wait $child; test $? = 1 || exit 9
        ls -A out/checkpoints | grep tmp && exit 8
        rm out/filler.*
        $PLUMB train exp.toml --stop-after 1";
    let Some((well, said)) = on_small_disk(&world, "out", "8m", script) else {
        return;
    };
    assert!(well, "{said}");
    assert!(said.contains("No space left"), "{said}");
    assert!(
        said.contains("going on after step") && !said.contains("problem"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}
