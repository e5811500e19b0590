//! Ctrl-C and SIGTERM: what ends, what is kept, and that whoever goes on makes what an uninterrupted command makes.

use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use plumb::encode::{self, EncodeOptions, EncodeReport, Part, Selection};
use plumb::experiment::Experiment;
use plumb::monitor::{Signal, Silent, Stop, never};
use plumb::nn::Kernels;
use plumb::nn::weights::DigestMemo;
use plumb::store::Store;

use crate::encode_kill::content;
use crate::world::World;

const LORA: &str = "out/lora.safetensors";
/// How a signal is named to `kill`, what the exit status is, and how the program names it.
const SIGNALS: [(&str, i32, &str); 2] = [("INT", 130, "SIGINT (Ctrl-C)"), ("TERM", 143, "SIGTERM")];
/// Beyond what any machine does in the time of a test.
const MANY: &str = "steps = 1000000\nkeep_checkpoints = 1";

/// A program at work, in a process group of its own, which does not outlive its test.
struct AtWork {
    child: Child,
    pipe: std::process::ChildStderr,
    /// What it said on standard error.
    said: Vec<u8>,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        // With what it started; it may have ended.
        self.send("KILL", true);
        let _ = self.child.wait();
    }
}

impl AtWork {
    fn start(world: &World, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plumb"))
            .args(args)
            .current_dir(world.path("."))
            .env(
                "XDG_CACHE_HOME",
                std::env::temp_dir().join("plumb-tests-cache"),
            )
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(world.path("stdout")).expect("a file"))
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("started");
        let pipe = child.stderr.take().expect("a pipe");
        let said = Vec::new();
        Self { child, pipe, said }
    }

    /// Sends a signal to it, or to its whole group, as a terminal does.
    fn send(&self, signal: &str, group: bool) {
        let id = self.child.id();
        let to = if group {
            format!("-{id}")
        } else {
            id.to_string()
        };
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), "--", &to])
            .stderr(Stdio::null())
            .status();
        assert!(sent.is_ok());
    }

    /// Waits until `is_so`; it has to be at work until then.
    #[track_caller]
    fn until(&mut self, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            let ended = self.child.try_wait().expect("a status");
            assert!(ended.is_none(), "too quick: {ended:?}");
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "nothing came of it"
            );
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Reads what it says until that has `text`.
    #[track_caller]
    fn says(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.said).contains(text) {
            let mut some = [0; 512];
            let read = self.pipe.read(&mut some).expect("read");
            assert!(read > 0, "`{text}` was not said: {}", self.all());
            self.said.extend_from_slice(&some[..read]);
        }
    }

    fn all(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Its end, and all that it said.
    fn ended(mut self) -> (ExitStatus, String) {
        self.pipe.read_to_end(&mut self.said).expect("read");
        let status = self.child.wait().expect("a status");
        let said = self.all();
        assert!(!said.contains("panicked"), "{said}");
        (status, said)
    }
}

/// The steps that the checkpoints of a run are of.
fn checkpoints(world: &World) -> Vec<u64> {
    let files = std::fs::read_dir(world.path("out/checkpoints"))
        .into_iter()
        .flatten()
        .flatten();
    let step = |name: String| {
        let number = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
        number.parse().ok()
    };
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter_map(step).collect()
}

/// After a training was ended: it goes on, by another command, to the LoRA of one that was not.
fn goes_on_alike(world: &World, more: &[&str]) {
    let kept = checkpoints(world);
    let [done] = kept[..] else {
        panic!("expected one checkpoint, found {kept:?}");
    };
    let metrics = String::from_utf8(world.read("out/metrics.jsonl")).expect("text");
    let lines = metrics
        .lines()
        .filter(|line| line.contains("learning_rate"));
    assert_eq!(lines.count() as u64, done, "steps that no checkpoint has");
    world.edit(MANY, &format!("steps = {}", done + 2));
    let train = ["train", "exp.toml"];
    let resumed = world.run(&[&train[..], more].concat()).expect(0);
    resumed.says(&format!("going on after step {done}"));
    let broken = world.read(LORA);
    world.run(&[&train[..], &["--restart"]].concat()).expect(0);
    assert!(
        world.read(LORA) == broken,
        "the run that was ended made another LoRA"
    );
    world.edit(&format!("steps = {}", done + 2), MANY);
    std::fs::remove_dir_all(world.path("out")).expect("removed");
}

#[test]
fn a_training_ends_after_a_step_and_goes_on_to_the_same_lora() {
    let world = World::encoded();
    world.edit("steps = 4", MANY);
    // A checkpoint of the signal, and none beside.
    world.edit("checkpoint_every = 2", "checkpoint_every = 1000000");
    let begun = || std::fs::metadata(world.path("out/metrics.jsonl")).is_ok_and(|m| m.len() > 400);
    for (signal, status, name) in SIGNALS {
        let mut run = AtWork::start(&world, &["train", "exp.toml"], &[]);
        run.until(begun);
        run.send(signal, true);
        let (found, said) = run.ended();
        assert_eq!(found.code(), Some(status), "{name}: {said}");
        let told = "ending after this step, with a checkpoint; a second time ends at once";
        assert!(said.contains(told), "{said}");
        let report = String::from_utf8(world.read("stdout")).expect("text");
        let told =
            format!("ended by {name}, with a checkpoint: run the same command again to go on");
        assert!(report.contains(&told), "{report}");
        goes_on_alike(&world, &[]);
    }
    let mut run = AtWork::start(&world, &["--json", "train", "exp.toml"], &[]);
    run.until(begun);
    run.send("INT", false);
    assert_eq!(run.ended().0.code(), Some(130));
    let report: serde_json::Value = serde_json::from_slice(&world.read("stdout")).expect("JSON");
    assert_eq!(
        (&report["stopped"], &report["lora"]),
        (&"SIGINT".into(), &serde_json::Value::Null)
    );
    assert_eq!(
        checkpoints(&world),
        [report["step"].as_u64().expect("a step")]
    );
}

#[test]
fn ranks_end_after_the_same_step_whoever_of_them_is_told() {
    let world = World::encoded();
    world.edit("steps = 4", MANY);
    let begun = || !checkpoints(&world).is_empty();
    // One command with two more that it starts: told alone, and with them, as by a terminal.
    for (group, (signal, status, name)) in [false, true].into_iter().zip(SIGNALS) {
        let mut run = AtWork::start(&world, &["train", "exp.toml", "--processes", "3"], &[]);
        run.until(begun);
        run.send(signal, group);
        let (found, said) = run.ended();
        assert_eq!(found.code(), Some(status), "{name}: {said}");
        assert_eq!(said.matches("a second time").count(), 1, "{said}");
        goes_on_alike(&world, &["--processes", "2"]);
    }
    // Two that a launcher started, of which rank 1 alone is told.
    let port = crate::ranks::free_port();
    let rank = |number: &str| {
        let variables = [
            ("RANK", number),
            ("WORLD_SIZE", "2"),
            ("LOCAL_RANK", number),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &*port),
        ];
        AtWork::start(&world, &["train", "exp.toml"], &variables)
    };
    let (mut first, second) = (rank("0"), rank("1"));
    first.until(begun);
    second.send("TERM", false);
    for rank in [second, first] {
        let (found, said) = rank.ended();
        assert_eq!(found.code(), Some(143), "{said}");
    }
    goes_on_alike(&world, &[]);
}

#[test]
fn a_signal_before_the_first_step_ends_at_once() {
    let world = World::encoded();
    // A step of minutes.
    world.edit("gradient_accumulation = 3", "gradient_accumulation = 65536");
    let mut run = AtWork::start(&world, &["train", "exp.toml"], &[]);
    run.says("micro-batches an epoch");
    run.send("INT", false);
    let (found, said) = run.ended();
    assert_eq!(found.signal(), Some(2), "{found:?}: {said}");
    assert_eq!(checkpoints(&world), [0_u64; 0]);
}

#[test]
fn a_second_signal_ends_ranks_at_once() {
    let world = World::encoded();
    // Steps of seconds, of which none is kept.
    world.edit("gradient_accumulation = 3", "gradient_accumulation = 200");
    world.edit("steps = 4", "steps = 1000000");
    world.edit("checkpoint_every = 2", "checkpoint_every = 1000000");
    let ranks = ["train", "exp.toml", "--processes", "2"];
    let mut run = AtWork::start(&world, &ranks, &[]);
    let metrics = world.path("out/metrics.jsonl");
    run.until(|| std::fs::metadata(&metrics).is_ok_and(|m| m.len() > 0));
    // Into the second.
    std::thread::sleep(Duration::from_millis(300));
    run.send("TERM", false);
    run.says("a second time ends at once");
    run.send("INT", false);
    let (found, said) = run.ended();
    assert_eq!(found.signal(), Some(2), "{found:?}: {said}");
    assert_eq!(checkpoints(&world), [0_u64; 0]);
}

#[test]
fn an_encoding_ends_with_what_it_has_and_goes_on() {
    let world = World::new();
    let captions: Vec<String> = (0..1200).map(|n| format!("a red circle, {n}")).collect();
    world.write("captions.txt", &captions.join("\n"));
    let encode = ["encode", "exp.toml", "--captions", "captions.txt"];
    world.run(&encode).expect(0);
    let whole = content(&world, "store");
    for (signal, status, name) in SIGNALS {
        let store = signal.to_lowercase();
        world.edit("path = \"store\"", &format!("path = \"{store}\""));
        let mut run = AtWork::start(&world, &encode, &[]);
        let packs = || {
            let files = crate::util::listing(&world.path(&store));
            files.iter().any(|file| file.starts_with("index/"))
        };
        run.until(packs);
        run.send(signal, true);
        let (found, said) = run.ended();
        assert_eq!(found.code(), Some(status), "{name}: {said}");
        let some = content(&world, &store);
        assert!(
            some.len() < whole.len() && some.is_subset(&whole),
            "{}",
            some.len()
        );
        let checked = Store::check(&world.path(&store), true, &Silent).expect("a store");
        assert_eq!(checked.problems, []);
        // All that was made is there, and a run keeps it.
        let gc = ["store", "gc", &store, "--grace-hours", "0"];
        world.run(&gc).expect(0).says("0 entries removed");
        let report = world
            .run(&[&["--json"], &encode[..]].concat())
            .expect(0)
            .json();
        let encoders = report["captions"].as_array().expect("encoders");
        let made = encoders
            .iter()
            .filter_map(|e| e["encoded"].as_u64())
            .sum::<u64>();
        assert_eq!(made as usize, whole.len() - some.len());
        assert!(content(&world, &store) == whole, "another store");
        world.edit(&format!("path = \"{store}\""), "path = \"store\"");
    }
}

/// How often it was asked whether the work is to end.
static ASKED: AtomicU64 = AtomicU64::new(0);

#[test]
fn an_encoder_larger_than_memory_ends_between_two_layers_and_stores_nothing_of_them() {
    let world = World::new();
    world.write("captions.txt", "a red circle\na blue square\n");
    let file = world.path("exp.toml");
    let experiment = Experiment::open(&file, &Default::default()).expect("valid");
    let captions = world.path("captions.txt");
    let selection = Selection {
        captions: Some(&captions),
        part: Part::WHOLE,
    };
    let encode = |stop: Stop| {
        let options = EncodeOptions {
            device: Device::Cpu,
            kernels: Kernels::NONE,
            resident_limit_bytes: 0,
            wait: Duration::ZERO,
            clock: || 0.0,
            stop,
        };
        let mut memo = DigestMemo::open(&world.path("memo.json"));
        let report = encode::run(&experiment, selection, &options, &mut memo, &Silent);
        report.expect("encoded")
    };
    // Once before each of three encoders, and then before the first layer of the last.
    let stopped = encode(|| {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        (asked >= 3).then_some(Signal::Terminate)
    });
    let encoded = |report: &EncodeReport| -> Vec<u64> {
        report.captions.iter().map(|stats| stats.encoded).collect()
    };
    assert_eq!(
        (encoded(&stopped), stopped.stopped),
        (vec![2, 2, 0], Some(Signal::Terminate))
    );
    assert_eq!(ASKED.load(Ordering::Relaxed), 4);
    let store = Store::open(&world.path("store")).expect("a store");
    assert_eq!(
        Store::check(store.path(), true, &Silent)
            .expect("checked")
            .problems,
        []
    );
    let rest = encode(never);
    assert_eq!((encoded(&rest), rest.stopped), (vec![0, 0, 2], None));
}
