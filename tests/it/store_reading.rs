//! Errors of the system while a store is read: a file that cannot be opened or read now is neither absent nor damaged.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::store::{GcOptions, Lacking, Store};

use crate::store_util::{
    Fault, Faulty, ROOM, add, copy_dir, entry, files, readable, scratch, spec,
};
use crate::util::listing;

const USED: [&str; 3] = ["a", "b", "c"];
const OTHERS: [&str; 3] = ["d", "e", "f"];
const KINDS: [ErrorKind; 3] = [
    ErrorKind::PermissionDenied,
    ErrorKind::OutOfMemory,
    ErrorKind::Other,
];

/// A store in which everything there is can be found: copies, a damaged pack, one that was set aside, a misnamed spec.
fn scene() -> tempfile::TempDir {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &USED).expect("add");
    add(&store, 1, &["a", "d"]).expect("add");
    add(&store, 1, &["e", "f"]).expect("add");
    add(&store, 2, &USED).expect("add");
    let used: Vec<_> = [1, 2]
        .iter()
        .flat_map(|&n| USED.map(|c| (spec(n).0, entry(&spec(n).0, c).entry)))
        .collect();
    let extra = serde_json::json!({});
    (store.write_run("used", &used, extra, Lacking::Refuse)).expect("run");
    dir
}

fn content(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = listing(path).into_iter();
    files
        .filter(|name| name != "lock")
        .map(|name| (name.clone(), fs::read(path.join(name)).expect("there")))
        .collect()
}

fn collect_all() -> GcOptions {
    GcOptions {
        now: SystemTime::now() + Duration::from_secs(1_000_000),
        grace: Duration::from_secs(1),
        dry_run: false,
        without_runs: false,
    }
}

/// Damages the pack of e and f, in its last payload.
fn damage(path: &Path) {
    let (id, _) = spec(1);
    let reader = Store::open(path).expect("open").reader().expect("a reader");
    let record = reader.record(&id, &entry(&id, "e").entry).expect("read");
    let pack = record.expect("there").pack.to_string();
    let file = &files(path, &format!("{pack}.safetensors"))[0];
    let mut bytes = fs::read(file).expect("there");
    *bytes.last_mut().expect("some") ^= 1;
    fs::write(file, bytes).expect("write");
}

#[test]
fn whatever_cannot_be_read_ends_a_rebuild_and_costs_nothing() {
    for is_damaged in [false, true] {
        let scene = scene();
        if is_damaged {
            damage(scene.path());
        }
        let before = content(scene.path());
        let kept = readable(
            &Store::open(scene.path()).expect("open"),
            1,
            &[USED, OTHERS].concat(),
        );
        let mut failed = 0;
        for reading in 0.. {
            let copy = scratch();
            copy_dir(scene.path(), copy.path());
            let kind = KINDS[reading % KINDS.len()];
            let disk = Arc::new(Faulty::new(Fault::Reading(reading, kind)));
            let result = Store::rebuild_index_with(copy.path(), disk.clone(), &Silent);
            if disk.readings() <= reading {
                result.expect("no fault");
                break;
            }
            let case = format!("reading {reading}, {kind:?}, damaged: {is_damaged}");
            if let Err(e) = result {
                failed += 1;
                assert!(!e.to_string().contains("damage"), "{case}: {e}");
            }
            // Nothing is gone or renamed; only files may have been added.
            let after = content(copy.path());
            if !is_damaged {
                assert_eq!(after, before, "{case}");
            }
            let here = Store::open(copy.path()).expect("open");
            assert_eq!(readable(&here, 1, &[USED, OTHERS].concat()), kept, "{case}");
            Store::rebuild_index(copy.path(), &Silent).expect("rebuild");
            here.gc(&collect_all(), &Silent).expect("gc");
            for number in [1, 2] {
                assert_eq!(readable(&here, number, &USED), USED, "{case}");
            }
        }
        assert!(failed > 60, "only {failed} readings failed");
    }
}

#[test]
fn whatever_cannot_be_read_ends_a_collection_and_costs_nothing_that_is_used() {
    for room in [ROOM, 100] {
        collect_with_readings_that_fail(room);
    }
}

fn collect_with_readings_that_fail(room: usize) {
    let scene = scene();
    let mut failed = 0;
    for reading in 0.. {
        let copy = scratch();
        copy_dir(scene.path(), copy.path());
        let kind = KINDS[reading % KINDS.len()];
        let disk = Arc::new(Faulty::with_room(Fault::Reading(reading, kind), room));
        let Ok(store) = Store::open_with(copy.path(), disk.clone()) else {
            continue;
        };
        let result = store.gc(&collect_all(), &Silent);
        if disk.readings() <= reading {
            result.expect("no fault");
            break;
        }
        failed += usize::from(result.is_err());
        let here = Store::open(copy.path()).expect("open");
        for number in [1, 2] {
            assert_eq!(
                readable(&here, number, &USED),
                USED,
                "reading {reading}, {kind:?}"
            );
        }
        let report = Store::check(copy.path(), true, &Silent).expect("check");
        assert_eq!(report.problems, [], "reading {reading}, {kind:?}");
    }
    assert!(failed > 40, "only {failed} readings failed");
}

#[test]
fn check_tells_what_cannot_be_read_from_what_is_damaged() {
    let scene = scene();
    let mut told = 0;
    for reading in 0.. {
        let disk = Arc::new(Faulty::new(Fault::Reading(
            reading,
            ErrorKind::PermissionDenied,
        )));
        let result = Store::check_with(scene.path(), disk.clone(), true, &Silent);
        if disk.readings() <= reading {
            assert_eq!(result.expect("no fault").problems, []);
            break;
        }
        for problem in result.map(|r| r.problems).unwrap_or_default() {
            let problem = problem.to_string();
            assert!(
                problem.contains("permission denied"),
                "{reading}: {problem}"
            );
            assert!(
                problem.contains("nothing is to be rebuilt"),
                "{reading}: {problem}"
            );
            told += 1;
        }
    }
    assert!(told > 20, "{told} problems");
}

#[test]
fn something_else_in_a_pack_s_place_is_no_damage() {
    let scene = scene();
    let pack = files(scene.path(), ".safetensors").remove(0);
    let elsewhere = scene.path().join("elsewhere");
    fs::rename(&pack, &elsewhere).expect("moved");
    fs::create_dir(&pack).expect("a folder");
    let before = content(scene.path());
    let said = Store::rebuild_index(scene.path(), &Silent).expect_err("a folder");
    assert!(said.to_string().contains("no regular file"), "{said}");
    assert_eq!(content(scene.path()), before);
    fs::remove_dir(&pack).expect("removed");
    fs::rename(&elsewhere, &pack).expect("back");
    let report = Store::check(scene.path(), true, &Silent).expect("check");
    assert_eq!(report.problems, []);
}

/// Does what `PLUMB_TEST_FEW_FILES` says in a process that may open few files; else there is nothing to test.
#[test]
fn with_few_files() {
    if let Ok(path) = std::env::var("PLUMB_TEST_FEW_FILES") {
        let path = PathBuf::from(path);
        let mut held: Vec<_> = (0..)
            .map_while(|_| fs::File::open("/dev/null").ok())
            .collect();
        assert!(held.len() < 400);
        for _ in 0..12 {
            let said = Store::rebuild_index(&path, &Silent);
            if let Err(e) = said {
                assert!(e.to_string().contains("os error 24"), "{e}");
            }
            held.pop();
        }
    }
}

#[cfg(unix)]
#[test]
fn too_many_open_files_are_no_damage() {
    let scene = scene();
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 200; exec \"$0\" store_reading::with_few_files --exact",
        ])
        .arg(std::env::current_exe().expect("this test"))
        .env("PLUMB_TEST_FEW_FILES", scene.path())
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let store = Store::open(scene.path()).expect("open");
    let all = [USED, OTHERS].concat();
    assert_eq!(readable(&store, 1, &all), all);
    assert_eq!(files(scene.path(), ".damaged").len(), 0);
}

#[test]
fn what_an_earlier_version_set_aside_though_it_was_sound_comes_back_and_is_never_collected() {
    let scene = scene();
    let pack = files(scene.path(), ".safetensors").remove(0);
    let aside = PathBuf::from(format!("{}.damaged", pack.display()));
    let before = readable(&Store::open(scene.path()).expect("open"), 1, &USED);
    fs::rename(&pack, &aside).expect("set aside");
    let store = Store::open(scene.path()).expect("open");
    let report = store.gc(&collect_all(), &Silent).expect("gc");
    assert!(
        aside.exists() && report.problems[0].what.contains("sound"),
        "{report:?}"
    );
    let report = Store::rebuild_index(scene.path(), &Silent).expect("rebuild");
    assert_eq!((report.packs_restored, report.problems.len()), (1, 0));
    assert!(pack.exists() && !aside.exists());
    let store = Store::open(scene.path()).expect("open");
    assert_eq!(readable(&store, 1, &USED), before);
    let report = Store::check(scene.path(), true, &Silent).expect("check");
    assert_eq!(report.problems, []);
}

#[test]
fn a_damaged_pack_with_entries_that_runs_lack_is_not_collected() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a", "b"]).expect("add");
    let ids = ["a", "b"].map(|c| (spec(1).0, entry(&spec(1).0, c).entry));
    let extra = serde_json::json!({});
    (store.write_run("used", &ids, extra, Lacking::Refuse)).expect("run");
    let pack = files(dir.path(), ".safetensors").remove(0);
    let mut bytes = fs::read(&pack).expect("there");
    *bytes.last_mut().expect("some") ^= 1;
    fs::write(format!("{}.damaged", pack.display()), bytes).expect("write");
    fs::remove_file(pack).expect("removed");
    fs::remove_file(&files(dir.path(), ".parquet")[0]).expect("removed");
    let report = store.gc(&collect_all(), &Silent).expect("gc");
    assert!(
        report.problems[0].what.contains("nowhere else"),
        "{report:?}"
    );
    assert_eq!(files(dir.path(), ".damaged").len(), 1);
    Store::rebuild_index(dir.path(), &Silent).expect("rebuild");
    let saved = readable(&store, 1, &["a", "b"]);
    assert_eq!(saved.len(), 1);
}
