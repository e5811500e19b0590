//! Several at one store: a check beside writers, writers that wait for a cleaner, and what killed ones leave.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use plumb::monitor::{Recorder, Silent};
use plumb::store::{Error, GcOptions, Lacking, Store, collect_temporary_files};

use crate::store_util::{add, entry, put, readable, scratch, spec};
use crate::world::World;

#[test]
fn a_check_beside_writers_finds_nothing_wrong() {
    let dir = scratch();
    Store::open_or_create(dir.path()).expect("new");
    let done = AtomicBool::new(false);
    let path = dir.path();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|number| scope.spawn(move || write_and_merge(path, number)))
            .collect();
        let check = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                for read_data in [false, true] {
                    let report = Store::check(path, read_data, &Silent).expect("check");
                    assert_eq!(report.problems, [], "look {looks}");
                    looks += 1;
                }
            }
            looks
        });
        for writer in writers {
            writer.join().expect("written");
        }
        done.store(true, Ordering::Relaxed);
        assert!(check.join().expect("checked") > 4);
    });
    let report = Store::check(path, true, &Silent).expect("check");
    assert_eq!((report.problems, report.entries), (vec![], 2 * 150));
}

/// Adds entries one by one, with a run for each, and merges index parts now and then.
fn write_and_merge(path: &Path, number: u32) {
    let store = Store::open(path).expect("open");
    let captions: Vec<String> = (0..150).map(|i| format!("caption {i}")).collect();
    for (i, caption) in captions.iter().enumerate() {
        let mut writer = loop {
            match store.writer() {
                Err(Error::Busy { .. }) => std::thread::yield_now(),
                writer => break writer.expect("a writer"),
            }
        };
        put(&mut writer, number, &[caption]).expect("put");
        match i % 40 {
            39 => writer.finish().map(|_| ()),
            _ => writer.commit().map(|_| ()),
        }
        .expect("written");
        let (id, _) = spec(number);
        let used: Vec<_> = captions[..=i]
            .iter()
            .map(|c| (id, entry(&id, c).entry))
            .collect();
        let run = format!("run-{number}");
        let write = || store.write_run(&run, &used, serde_json::json!({}), Lacking::Refuse);
        plumb::store::when_free(Duration::from_secs(60), &Silent, write).expect("run");
    }
}

/// Holds the exclusive lock as a cleaner of another process does.
fn hold(path: &Path) -> File {
    let lock = File::options()
        .write(true)
        .open(path.join("lock"))
        .expect("the lock file");
    lock.lock().expect("locked");
    fs::write(
        path.join("lock"),
        "plumb store gc (process 77 on \u{1b}[31mhost)\n",
    )
    .expect("named");
    lock
}

#[test]
fn a_writer_waits_for_a_cleaner_and_says_for_whom() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a"]).expect("add");
    let lock = hold(dir.path());
    let seen = Recorder::default();
    let at_once = store
        .when_free(&seen, || store.writer())
        .err()
        .expect("busy");
    let said = at_once.to_string();
    assert!(
        said.contains("plumb store gc (process 77") && said.contains("--wait"),
        "{said}"
    );
    assert!(!said.contains('\u{1b}'), "{said}");
    assert_eq!(seen.notes(), [""; 0], "nothing is waited for");
    let patient = store.clone().waiting(Duration::from_secs(60));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| patient.when_free(&seen, || patient.writer()).map(|_| ()));
        while seen.notes().is_empty() {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        drop(lock);
        waiting
            .join()
            .expect("no panic")
            .expect("a writer, at last");
    });
    assert_eq!(seen.notes().len(), 1, "told once");
    assert!(
        seen.notes()[0].contains("plumb store gc (process 77"),
        "{:?}",
        seen.notes()
    );
    assert_eq!(
        fs::read(dir.path().join("lock")).expect("there"),
        b"",
        "a name of the dead goes"
    );
}

#[test]
fn whoever_holds_the_store_alone_says_so_while_it_does() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a"]).expect("add");
    // Seen from inside: each stage of the collection is told while it holds the lock.
    struct Looks<'a>(&'a Path, std::sync::Mutex<Vec<String>>);
    impl plumb::monitor::Monitor for Looks<'_> {
        fn start(&self, _: &str, _: Option<u64>) {
            let name = fs::read_to_string(self.0.join("lock")).expect("there");
            self.1.lock().expect("no panic").push(name);
        }
        fn advance(&self, _: u64) {}
        fn status(&self, _: &str) {}
        fn finish(&self) {}
        fn note(&self, _: &str) {}
        fn problem(&self, _: &str) {}
    }
    let looks = Looks(dir.path(), std::sync::Mutex::default());
    Store::rebuild_index(dir.path(), &looks).expect("rebuild");
    let names = looks.1.into_inner().expect("no panic");
    let process = format!("process {}", std::process::id());
    assert!(
        names[0].starts_with("plumb store rebuild-index") && names[0].contains(&process),
        "{names:?}"
    );
    assert_eq!(fs::read(dir.path().join("lock")).expect("there"), b"");
}

fn start(world: &World, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_plumb"))
        .args(args)
        .current_dir(world.path("."))
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

#[test]
fn commands_wait_and_with_wait_0_fail_at_once() {
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    world.write("new.txt", "a new caption\n");
    let lock = hold(&world.path("store"));
    let encode = ["encode", "exp.toml", "--captions", "new.txt"];
    let commands = [
        &encode[..],
        &["train", "exp.toml", "--stop-after", "1"],
        &["store", "gc", "store"],
        &["store", "rebuild-index", "store"],
    ];
    for command in commands {
        let args = [command, &["--wait", "0"]].concat();
        world
            .run(&args)
            .expect(1)
            .says("is busy: plumb store gc (process 77");
    }
    let children: Vec<Child> = commands
        .iter()
        .map(|command| start(&world, command))
        .collect();
    std::thread::sleep(Duration::from_millis(1500));
    drop(lock);
    for (child, command) in children.into_iter().zip(commands) {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        assert!(
            said.contains("waiting for the store: "),
            "{command:?}: {said}"
        );
    }
    world
        .run(&["store", "check", "store", "--read-data"])
        .expect(0);
}

#[test]
fn a_refused_training_leaves_no_run() {
    let world = World::new();
    world.write("new.txt", "a caption of no picture\n");
    world
        .run(&["encode", "exp.toml", "--captions", "new.txt"])
        .expect(0);
    world.run(&["train", "exp.toml"]).expect(4);
    let check = ["store", "check", "store", "--read-data"];
    world.run(&check).expect(0);
    let runs = crate::util::listing(&world.path("store/runs"));
    assert!(
        runs.iter().all(|run| run.starts_with("encode-")),
        "{runs:?}"
    );
}

#[test]
fn a_gc_waits_until_packs_have_their_rows() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let mut writer = store.writer().expect("a writer");
    writer.set_pack_limit_bytes(1);
    put(&mut writer, 1, &["a", "b", "c"]).expect("packs without rows");
    let options = GcOptions {
        now: std::time::SystemTime::now() + Duration::from_secs(1_000_000),
        grace: Duration::ZERO,
        dry_run: false,
        without_runs: true,
    };
    assert!(matches!(
        store.gc(&options, &Silent),
        Err(Error::Busy { .. })
    ));
    writer.commit().expect("commit");
    assert_eq!(readable(&store, 1, &["a", "b", "c"]), ["a", "b", "c"]);
}

#[test]
fn temporary_files_of_dead_writers_go_with_the_next_writer_and_run() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a"]).expect("add");
    let runs = dir.path().join("runs");
    fs::create_dir_all(&runs).expect("a folder");
    let pack_dir = fs::read_dir(dir.path().join("packs"))
        .expect("there")
        .next();
    let pack_dir = pack_dir.expect("one").expect("there").path();
    let dead = |folder: &Path| folder.join(".tmp-12345-0-held");
    let foreign = [".tmp-notes", ".tmp-1-2-held.txt"].map(|name| pack_dir.join(name));
    for file in [dead(&runs), dead(&pack_dir), dead(dir.path())]
        .iter()
        .chain(&foreign)
    {
        fs::write(file, "half").expect("written");
    }
    let alive = pack_dir.join(".tmp-12345-1-held");
    let held = File::create(&alive).expect("written");
    held.lock().expect("locked");
    let report = Store::check(dir.path(), true, &Silent).expect("check");
    assert_eq!(
        report.temporary_files, 3,
        "the writer at work has left none"
    );
    let used = [(spec(1).0, entry(&spec(1).0, "a").entry)];
    let extra = serde_json::json!({});
    (store.write_run("a", &used, extra, Lacking::Refuse)).expect("run");
    assert!(!dead(&runs).exists() && dead(&pack_dir).exists());
    store
        .writer()
        .expect("a writer")
        .finish()
        .expect("finished");
    assert!(!dead(&pack_dir).exists() && !dead(dir.path()).exists());
    assert!(alive.exists() && foreign.iter().all(|f| f.exists()));
    drop(held);
    assert_eq!(collect_temporary_files(&pack_dir).expect("collected"), 1);
}
