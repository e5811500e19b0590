//! `encode --part`: the command lines of `deploy/`, several at once at one store, one of them killed.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plumb::store::Store;

use crate::encode_kill::content;
use crate::world::World;

/// A file of `deploy/`.
fn deployed(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

/// A shell in the world's folder, as a scheduler starts it, that finds this `plumb` on its path.
fn shell(world: &World, variables: &[(&str, &str)]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_plumb"));
    let folder = program.parent().expect("a folder").display();
    let path = std::env::var("PATH").expect("a path");
    let mut command = Command::new("bash");
    command
        .current_dir(world.path("."))
        .env("PATH", format!("{folder}:{path}"))
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // So that the script can be killed with what it started.
        .process_group(0);
    command
}

/// A task of the array.
fn task(world: &World, number: u32) -> Child {
    let number = number.to_string();
    let variables = [("SLURM_ARRAY_TASK_ID", &*number), ("PARTS", "4")];
    let mut command = shell(world, &variables);
    command.arg(deployed("encode.sbatch"));
    command.args(["exp.toml", "--captions", "captions.txt", "--device", "cpu"]);
    command.spawn().expect("bash")
}

#[track_caller]
fn ends_well(child: Child) {
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

fn packs(world: &World, store: &str) -> usize {
    let found = crate::util::listing(&world.path(store));
    found
        .iter()
        .filter(|file| file.starts_with("packs/"))
        .count()
}

fn runs(world: &World, store: &str) -> Vec<String> {
    let store = Store::open(&world.path(store)).expect("a store");
    store.runs().expect("runs")
}

#[test]
fn an_array_with_one_task_killed_and_sent_again_makes_the_store_of_one_process() {
    let world = World::new();
    let captions: Vec<String> = (0..300).map(|n| format!("a red circle, {n}")).collect();
    world.write("captions.txt", &captions.join("\n"));
    let whole = ["--json", "encode", "exp.toml", "--captions", "captions.txt"];
    world.run(&whole).expect(0);
    let expected = content(&world, "store");
    assert_eq!(expected.len(), 3 * captions.len());

    world.edit("path = \"store\"", "path = \"parts\"");
    let mut tasks: Vec<Child> = (1..=4).map(|number| task(&world, number)).collect();
    let mut victim = tasks.remove(2);
    while packs(&world, "parts") == 0 {
        assert!(victim.try_wait().expect("a status").is_none(), "too quick");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(victim.try_wait().expect("a status").is_none(), "too quick");
    let group = format!("-{}", victim.id());
    let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
    assert!(killed.expect("kill").success());
    victim.wait().expect("gone");
    tasks.into_iter().for_each(ends_well);
    let names = runs(&world, "parts");
    assert_eq!(names.len(), 3, "a run of each part that is done: {names:?}");

    // What those three wrote is theirs, whatever its age.
    let gc = ["store", "gc", "parts", "--grace-hours", "0"];
    world.run(&gc).expect(0);
    let before = content(&world, "parts").len();
    let of_victim = task(&world, 3);
    ends_well(of_victim);
    assert!(content(&world, "parts") == expected, "another store");
    assert!(before < expected.len() && before > expected.len() / 2);
    let names = runs(&world, "parts");
    assert_eq!(names.len(), 1, "of the whole: {names:?}");
    assert!(!names[0].contains("part"), "{names:?}");
    world.run(&gc).expect(0);
    // Any part may run twice, and nothing is left for the whole.
    ends_well(task(&world, 2));
    let report = world.run(&whole).expect(0).json();
    for stats in report["captions"].as_array().expect("a list") {
        assert_eq!(
            (&stats["encoded"], &stats["present"]),
            (&0.into(), &300.into())
        );
    }
    assert_eq!(runs(&world, "parts"), names);
}

/// The script of the Job, which begins after `- |`.
fn script_of_job() -> String {
    let text = std::fs::read_to_string(deployed("encode-job.yaml")).expect("the job");
    let (_, script) = text.split_once("- |\n").expect("a script");
    let indented = |line: &&str| line.starts_with("              ");
    script
        .lines()
        .take_while(indented)
        .map(str::trim_start)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_indexes_of_a_job_make_all_that_training_needs() {
    let world = World::new();
    // Of pictures that cannot be read each part tells, and is done all the same.
    for index in ["2", "0", "1"] {
        let job = [
            ("JOB_COMPLETION_INDEX", index),
            ("EXPERIMENT", "exp.toml"),
            ("PARTS", "3"),
        ];
        let mut command = shell(&world, &job);
        command.arg("-c").arg(script_of_job());
        ends_well(command.spawn().expect("bash"));
    }
    assert_eq!(runs(&world, "store").len(), 1);
    world
        .run(&["train", "exp.toml", "--stop-after", "1"])
        .expect(0);
    let part = ["--json", "encode", "exp.toml", "--part", "2/3"];
    let report = world.run(&part).expect(0).json();
    assert_eq!(report["part"]["part"], "2/3");
    assert_eq!(report["part"]["all_there"], true);
    // Three captions, a prompt and the empty caption by three encoders, and three latents.
    assert_eq!(report["part"]["of"], 18);
    let entries = report["part"]["entries"].as_u64().expect("a number");
    assert!(entries < 18);
    world
        .run(&["encode", "exp.toml", "--part", "3/3"])
        .expect(0)
        .says("of 18 entries; those of all parts are in the store");
    for wrong in ["0/4", "5/4", "a/b", "1/0", "1/4294967297"] {
        world
            .run(&["encode", "exp.toml", "--part", wrong])
            .expect(2)
            .says("expected I/N, part I of N parts");
    }
}
