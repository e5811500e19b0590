//! Real processes on one store: killed at random moments, and two at once.
//!
//! The victim is this test binary itself, started on the test `victim` with a task in its environment. To kill
//! a real `plumb encode` instead, change [`start`]: everything else only looks at the store.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::rng::{Rng, Stream};
use plumb::store::{GcOptions, Store};

use crate::store_util::{Fault, Faulty, entry, put, reads_back, records, scratch, spec};

const TASK: &str = "PLUMB_TEST_VICTIM_TASK";
const STORE: &str = "PLUMB_TEST_VICTIM_STORE";
const CAPTIONS: usize = 3000;
const BATCH: usize = 4;
/// So many processes are killed before they were done.
const KILLS: u64 = 50;

fn captions() -> Vec<String> {
    (0..CAPTIONS).map(|i| format!("caption {i}")).collect()
}

/// Does a task when this process was started by [`start`]; else there is nothing to test.
#[test]
fn victim() {
    let (Ok(task), Ok(path)) = (std::env::var(TASK), std::env::var(STORE)) else {
        return;
    };
    let path = Path::new(&path);
    // Room for few rows, so that sorting them takes files.
    let disk = || Arc::new(Faulty::with_room(Fault::None, 2000));
    match task.as_str() {
        "encode" => encode(path),
        "rebuild" => _ = Store::rebuild_index(path, &Silent).expect("rebuild"),
        "rebuild in little room" => {
            Store::rebuild_index_with(path, disk(), &Silent).expect("rebuild");
        }
        task => {
            let options = GcOptions {
                now: SystemTime::now(),
                grace: Duration::from_secs(3600),
                dry_run: false,
                without_runs: true,
            };
            let store = match task {
                "gc" => Store::open(path),
                _ => Store::open_with(path, disk()),
            };
            store.expect("a store").gc(&options, &Silent).expect("gc");
        }
    }
}

/// What `plumb encode` does: skips what is there, puts the rest, commits every few.
fn encode(path: &Path) {
    let store = Store::open_or_create(path).expect("a store");
    let reader = store.reader().expect("a reader");
    let mut writer = store.writer().expect("a writer");
    let (id, _) = spec(1);
    let captions = captions();
    let missing: Vec<&str> = captions
        .iter()
        .map(String::as_str)
        .filter(|c| !reader.contains(&id, &entry(&id, c).entry))
        .collect();
    for batch in missing.chunks(BATCH) {
        put(&mut writer, 1, batch).expect("put");
        writer.commit().expect("commit");
    }
    writer.finish().expect("finish");
}

fn start(path: &Path, task: &str) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["store_kill::victim", "--exact"])
        .env(TASK, task)
        .env(STORE, path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

#[track_caller]
fn wait(child: Child) {
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn killed_at_any_moment_a_store_is_sound_and_the_finished_run_equals_an_uninterrupted_one() {
    let dir = scratch();
    let (killed, whole) = (dir.path().join("killed"), dir.path().join("whole"));
    let mut rng = Rng::new(1, Stream::Shuffle, 0, 0);
    let mut num_killed = 0;
    let mut before = 0;
    for round in 0.. {
        if num_killed == KILLS {
            break;
        }
        assert!(
            round < 10 * KILLS,
            "only {num_killed} of {round} were still running when killed"
        );
        let task = match round % 12 {
            4 => "rebuild",
            5 => "gc",
            10 => "rebuild in little room",
            11 => "gc in little room",
            _ => "encode",
        };
        let mut child = start(&killed, task);
        std::thread::sleep(Duration::from_micros(rng.below(40_000)));
        if child.try_wait().expect("its state").is_none() {
            child.kill().expect("SIGKILL");
            num_killed += 1;
        }
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "round {round}, {task}: {said}");
        if killed.join("store.json").exists() {
            let report = Store::check(&killed, true, &Silent).expect("check");
            assert_eq!(report.problems, [], "round {round}, {task}");
            assert!(
                report.entries >= before,
                "round {round}, {task}: committed entries are gone"
            );
            before = report.entries;
        }
    }
    wait(start(&killed, "encode"));
    wait(start(&whole, "encode"));
    let report = Store::check(&killed, true, &Silent).expect("check");
    assert_eq!((report.problems, report.entries), (vec![], CAPTIONS as u64));
    assert_equal(&killed, &whole);
}

#[test]
fn two_processes_at_once_make_the_store_that_one_makes() {
    let dir = scratch();
    let (shared, whole) = (dir.path().join("shared"), dir.path().join("whole"));
    let children = [start(&shared, "encode"), start(&shared, "encode")];
    for child in children {
        wait(child);
    }
    wait(start(&whole, "encode"));
    assert_eq!(
        Store::check(&shared, true, &Silent)
            .expect("check")
            .problems,
        []
    );
    assert_equal(&shared, &whole);
}

/// The same entries with the same bytes and rows, wherever they lie.
#[track_caller]
fn assert_equal(a: &Path, b: &Path) {
    let (id, _) = spec(1);
    let rows = |path: &Path| {
        let reader = Store::open(path)
            .expect("a store")
            .reader()
            .expect("a reader");
        assert_eq!(reader.problems(), []);
        let captions = captions();
        let lost: Vec<_> = captions
            .iter()
            .filter(|c| !reads_back(&reader, 1, c))
            .collect();
        assert!(lost.is_empty(), "{}: {lost:?}", path.display());
        let mut records = records(&reader, &id);
        for record in &mut records {
            record.pack = plumb::digest::Digest::of(b"");
            record.parts.iter_mut().for_each(|p| p.offset = 0);
        }
        records
    };
    assert!(rows(a) == rows(b), "the rows differ");
}
