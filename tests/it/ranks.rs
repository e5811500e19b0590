//! `train` by several processes: the LoRA of one, whatever becomes of them.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::world::World;

const LORA: &str = "out/lora.safetensors";

/// Lines of metrics without what is of the clock.
fn metrics(world: &World) -> Vec<String> {
    let text = String::from_utf8(world.read("out/metrics.jsonl")).expect("text");
    let timeless = |line: &str| line.split(",\"seconds\"").next().map(str::to_owned);
    text.lines().filter_map(timeless).collect()
}

fn checkpoint(world: &World, step: u32) -> Vec<u8> {
    world.read(&format!("out/checkpoints/step-{step:08}.safetensors"))
}

/// A process that does not outlive its test.
struct Process(Option<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Process {
    fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().expect("started")))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("a child")
    }

    /// Its exit status and what it said. It has to end by itself; seconds are enough, but for a machine that does much else.
    #[track_caller]
    fn ended(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        while self.child().try_wait().expect("a status").is_none() {
            assert!(begun.elapsed() < Duration::from_secs(240), "it did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let child = self.0.take().expect("a child");
        let Output { status, stderr, .. } = child.wait_with_output().expect("its output");
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(!said.contains("panicked"), "{said}");
        (status.code(), said)
    }
}

/// The command as a launcher starts rank `rank`.
fn rank(world: &World, variables: &[(&str, &str)], args: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plumb"));
    command
        .arg("train")
        .args(args)
        .current_dir(world.path("."))
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .envs(variables.iter().copied());
    Process::start(&mut command)
}

/// As torchrun starts it, of two on one machine.
fn of_two(world: &World, number: &str, port: &str, args: &[&str]) -> Process {
    let variables = [
        ("RANK", number),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", number),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", port),
    ];
    rank(world, &variables, args)
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> String {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    socket.local_addr().expect("an address").port().to_string()
}

#[test]
fn any_number_of_processes_and_any_change_of_it_makes_the_lora_of_one() {
    let world = World::encoded();
    world.edit(
        "seed = 5",
        "seed = 5\nvalidation_share = 0.6\nvalidate_every = 4",
    );
    world.run(&["train", "exp.toml"]).expect(0);
    let (lora, lines) = (world.read(LORA), metrics(&world));
    let checkpoints = [2, 4].map(|step| checkpoint(&world, step));
    assert_eq!(lines.len(), 4 + 2, "{lines:?}");

    let by = |processes: &str, more: &[&str]| {
        let command = ["train", "exp.toml", "--processes", processes];
        world.run(&[&command[..], more].concat()).expect(0)
    };
    by("3", &["--restart"])
        .says("3 ranks: each computes 1 micro-batch of the 3 of a step")
        .says("4 steps done by 3 ranks");
    assert!(
        world.read(LORA) == lora,
        "three processes made another LoRA"
    );
    assert_eq!(metrics(&world), lines);
    for (step, bytes) in [2, 4].into_iter().zip(&checkpoints) {
        assert!(checkpoint(&world, step) == *bytes, "step {step}");
    }
    // Two, then one, then three.
    by("2", &["--restart", "--stop-after", "1"])
        .says("2 ranks: each computes 2 micro-batches of the 3 of a step, but for 1 rank, which computes 1 and then waits; none would with `train.gradient_accumulation = 4`");
    world
        .run(&["train", "exp.toml", "--stop-after", "2"])
        .expect(0)
        .says("going on after step 1");
    let report = by("3", &["--json"]).says("going on after step 3").json();
    assert_eq!(
        (&report["ranks"], &report["resumed_from"]),
        (&3.into(), &3.into())
    );
    assert!(
        world.read(LORA) == lora,
        "a changed number of processes made another LoRA"
    );
    assert_eq!(metrics(&world), lines);
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_its_run_goes_on() {
    let world = World::encoded();
    // Steps enough to be in the middle of.
    world.edit("steps = 4", "steps = 4000\nkeep_checkpoints = 1");
    let port = free_port();
    let first = of_two(&world, "0", &port, &["exp.toml"]);
    let mut second = of_two(&world, "1", &port, &["exp.toml"]);
    while !world
        .path("out/checkpoints/step-00000002.safetensors")
        .exists()
    {
        assert!(
            second.child().try_wait().expect("a status").is_none(),
            "too quick"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(second);
    let (status, said) = first.ended();
    assert_eq!(status, Some(1), "{said}");
    let last = said.lines().last().expect("a line");
    assert!(
        last.starts_with("error: rank 1 was lost: its process ended"),
        "{said}"
    );
    assert!(
        last.ends_with("run the same command again to go on from the last checkpoint"),
        "{said}"
    );
    let kept = std::fs::read_dir(world.path("out/checkpoints")).expect("a folder");
    assert_eq!(kept.count(), 1);

    // With as many steps as there were to be, and three processes.
    let done = metrics(&world)
        .iter()
        .filter(|line| line.contains("learning_rate"))
        .count();
    world.edit("steps = 4000", &format!("steps = {}", done + 2));
    let more = ["train", "exp.toml", "--processes", "3"];
    world
        .run(&more)
        .expect(0)
        .says(&format!("going on after step {done}"));
    let broken = world.read(LORA);
    world.run(&["train", "exp.toml", "--restart"]).expect(0);
    assert!(
        world.read(LORA) == broken,
        "the run that broke off made another LoRA"
    );
}

#[test]
fn ranks_that_would_train_something_else_are_refused_by_name() {
    let world = World::encoded();
    let other = String::from_utf8(world.read("exp.toml")).expect("text");
    // Where checkpoints are written decides no number.
    let other = other.replace("seed = 5", "seed = 6");
    let other = other.replace("checkpoint_every = 2", "checkpoint_every = 3");
    world.write("other.toml", &other);
    let port = free_port();
    let first = of_two(&world, "0", &port, &["exp.toml"]);
    let second = of_two(&world, "1", &port, &["other.toml"]);
    let why = "rank 1 would not train the same LoRA as rank 0: `train.seed`: rank 1 6, rank 0 5; start all ranks";
    for (child, begins) in [
        (second, "error: rank 1: rank 0 ended: "),
        (first, "error: "),
    ] {
        let (status, said) = child.ended();
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(&format!("{begins}{why}")), "{said}");
    }
    assert!(!world.path("out").exists(), "a folder was left behind");
}

#[test]
fn what_cannot_be_started_is_told_in_one_line() {
    let world = World::encoded();
    let refused = |args: &[&str], status: i32, why: &str| {
        world
            .run(&[&["train", "exp.toml"], args].concat())
            .expect(status)
            .says(why);
    };
    refused(
        &["--processes", "4"],
        2,
        "`train.gradient_accumulation`: expected at least 4, a micro-batch of each step for every rank, found 3",
    );
    refused(
        &["--processes", "2", "--dump-step", "1", "x"],
        2,
        "step 1 cannot be dumped: a rank sees its own part of it",
    );
    refused(&["--processes", "2", "--device", "cuda"], 2, "--gpus N");
    refused(&["--gpus", "0"], 2, "--gpus");
    let started = |variables: &[(&str, &str)], args: &[&str], status: i32, why: &str| {
        let (found, said) = rank(&world, variables, &[&["exp.toml"], args].concat()).ended();
        assert_eq!(found, Some(status), "{said}");
        assert!(said.contains(why), "{said}");
    };
    let two = [("RANK", "0"), ("WORLD_SIZE", "2")];
    started(&two, &[], 2, "WORLD_SIZE is 2 and MASTER_ADDR is not set");
    let addressed = [&two[..], &[("MASTER_ADDR", "127.0.0.1")]].concat();
    started(
        &addressed,
        &[],
        2,
        "WORLD_SIZE is 2 and LOCAL_RANK is not set",
    );
    let placed = [&addressed[..], &[("LOCAL_RANK", "0")]].concat();
    started(
        &placed,
        &["--processes", "2"],
        2,
        "--processes starts the ranks itself",
    );
    let beyond = [&placed[1..], &[("RANK", "2")]].concat();
    started(
        &beyond,
        &[],
        2,
        "RANK: expected a number up to 1, found `2`",
    );
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = socket.local_addr().expect("an address").port().to_string();
    let taken = [&placed[..], &[("MASTER_PORT", &*port)]].concat();
    started(
        &taken,
        &[],
        1,
        &format!("rank 0 cannot listen at 127.0.0.1:{port}"),
    );
    let free = free_port();
    let alone = [&placed[..], &[("MASTER_PORT", &*free)]].concat();
    started(
        &alone,
        &["--ranks-wait", "1"],
        1,
        "of 2 ranks, rank 1 did not come within 1 s",
    );
    // One rank is no rank, and Slurm's tasks without an address train alone.
    started(
        &[("RANK", "0"), ("WORLD_SIZE", "1")],
        &["--stop-after", "1"],
        0,
        "micro-batches an epoch",
    );
    started(
        &[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8")],
        &["--stop-after", "1"],
        0,
        "going on",
    );
}

#[test]
fn half_of_a_launchers_variables_is_no_rank_and_no_training_alone() {
    let world = World::encoded();
    let refused = |variables: &[(&str, &str)], why: &str| {
        let args = ["exp.toml", "--stop-after", "1"];
        let (found, said) = rank(&world, variables, &args).ended();
        assert_eq!(found, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(&[("WORLD_SIZE", "2")], "WORLD_SIZE is set and RANK is not");
    refused(&[("RANK", "0")], "RANK is set and WORLD_SIZE is not");
    let open_mpi = [("OMPI_COMM_WORLD_SIZE", "2")];
    refused(&open_mpi, "OMPI_COMM_WORLD_RANK is not");
    let none = [("RANK", "0"), ("WORLD_SIZE", "0")];
    refused(
        &none,
        "WORLD_SIZE: expected the number of ranks, at least 1, found 0",
    );
    assert!(!world.path("out").exists());
}

/// What one process may use, two share.
#[test]
fn processes_of_one_command_share_its_memory() {
    let world = World::encoded();
    let by = |processes: &str, memory: &str| {
        let limit = ["--restart", "--stop-after", "1", "--memory", memory];
        let args = [&["exp.toml", "--processes", processes][..], &limit].concat();
        rank(&world, &[], &args).ended()
    };
    let (status, said) = by("1", "0.006");
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = by("2", "0.006");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("3.0 MB free"), "{said}");
}

/// The script for Slurm, with an `srun` of two tasks on one machine.
fn script(world: &World, args: &[&str]) -> Process {
    let srun = "#!/bin/bash\nfor i in 1 0; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 \"$@\" & echo $! >> tasks; done\nwait -n && wait -n\n";
    world.write("bin/srun", srun);
    world.write(
        "bin/scontrol",
        "#!/bin/bash\necho \"$@\" >> asked\necho 127.0.0.1\n",
    );
    for name in ["bin/srun", "bin/scontrol"] {
        use std::os::unix::fs::PermissionsExt as _;
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(world.path(name), all).expect("set");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_plumb"))
        .parent()
        .expect("a folder");
    let path = std::env::var("PATH").expect("a path");
    let path = format!(
        "{}:{}:{path}",
        world.path("bin").display(),
        program.display()
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/train.sbatch");
    let mut command = Command::new("bash");
    command
        .arg(script)
        .args(["exp.toml", "--device", "cpu"])
        .args(args)
        .current_dir(world.path("."))
        .env("PATH", path)
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .env("SLURM_JOB_NODELIST", "node[1-2]")
        .env("SLURM_JOB_ID", free_port());
    Process::start(&mut command)
}

#[test]
fn the_script_for_slurm_trains_on_all_its_tasks() {
    let world = World::encoded();
    let (status, said) = script(&world, &["--stop-after", "1"]).ended();
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("2 ranks: each computes 2 micro-batches"),
        "{said}"
    );
    checkpoint(&world, 1);
}

#[test]
fn a_job_whose_time_is_up_asks_for_its_turn_again() {
    let world = World::encoded();
    world.edit("steps = 4", "steps = 1000000\nkeep_checkpoints = 1");
    let job = script(&world, &[]);
    let begun = Instant::now();
    while !world
        .path("out/checkpoints/step-00000002.safetensors")
        .exists()
    {
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    // As Slurm does: to all tasks.
    for task in String::from_utf8(world.read("tasks"))
        .expect("text")
        .lines()
    {
        let sent = Command::new("kill").args(["-TERM", task]).status();
        assert!(sent.expect("kill").success());
    }
    let (status, said) = job.ended();
    assert_eq!(status, Some(143), "{said}");
    let asked = String::from_utf8(world.read("asked")).expect("text");
    assert!(
        asked.lines().any(|line| line.starts_with("requeue ")),
        "{asked}"
    );
    let kept = std::fs::read_dir(world.path("out/checkpoints")).expect("a folder");
    assert_eq!(kept.count(), 1);
}
