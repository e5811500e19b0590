//! Garbage collection keeps what runs use and what is young, whoever reads or writes beside.

use std::fs::File;
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::store::{Error, GcOptions, GcReport, Lacking, Store};

use crate::store_util::{add, copy_dir, entry, files, readable, reads_back, scratch, spec};
use crate::util::listing;

const DAY: Duration = Duration::from_secs(86_400);

fn options() -> GcOptions {
    GcOptions {
        now: SystemTime::now() + 10 * DAY,
        grace: DAY,
        dry_run: false,
        without_runs: false,
    }
}

fn gc(store: &Store, options: GcOptions) -> GcReport {
    let report = store.gc(&options, &Silent).expect("gc");
    assert_eq!(report.problems, []);
    let check = Store::check(store.path(), true, &Silent).expect("check");
    assert_eq!(check.problems, []);
    report
}

fn use_entries(store: &Store, run: &str, number: u32, captions: &[&str]) {
    let (id, _) = spec(number);
    let entries: Vec<_> = captions.iter().map(|c| (id, entry(&id, c).entry)).collect();
    store
        .write_run(run, &entries, serde_json::json!({}), Lacking::Refuse)
        .expect("run");
}

#[test]
fn what_runs_use_stays_and_the_rest_goes_when_it_is_old() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let all = ["a", "b", "c", "d", "e"];
    add(&store, 1, &all[..3]).expect("add");
    add(&store, 1, &all[3..]).expect("add");
    add(&store, 2, &all).expect("add");
    use_entries(&store, "cats", 1, &["a", "b"]);
    use_entries(&store, "dogs", 1, &["b", "c"]);
    let reader = store.reader().expect("a reader from before");
    let (id, _) = spec(1);
    let held = reader
        .get(&id, &entry(&id, "d").entry)
        .expect("sound")
        .expect("there");

    let young = gc(
        &store,
        GcOptions {
            grace: 20 * DAY,
            ..options()
        },
    );
    assert_eq!((young.entries_removed, young.packs_removed), (0, 0));
    let before = listing(dir.path());
    let planned = gc(
        &store,
        GcOptions {
            dry_run: true,
            ..options()
        },
    );
    assert_eq!(listing(dir.path()), before, "a dry run changes nothing");
    let done = gc(&store, options());
    assert_eq!((planned.entries_removed, done.entries_removed), (7, 7));
    assert_eq!((planned.packs_removed, done.packs_removed), (2, 2));
    assert_eq!(
        (planned.bytes_freed, done.bytes_freed),
        (planned.bytes_freed, planned.bytes_freed)
    );
    assert_eq!(readable(&store, 1, &all), ["a", "b", "c"]);
    assert_eq!(readable(&store, 2, &all), [""; 0]);
    assert!(reads_back(&reader, 1, "a") && !reads_back(&reader, 1, "d"));
    let payload = held.part("hidden").expect("it has one");
    let digest = plumb::digest::Digest::of(payload.bytes());
    assert_eq!(digest, payload.digest, "bytes handed out stay");

    use_entries(&store, "dogs", 1, &["c"]);
    std::fs::remove_file(dir.path().join("runs/cats.json")).expect("give up a run");
    let done = gc(&store, options());
    assert_eq!((done.entries_removed, done.packs_rewritten), (2, 1));
    assert_eq!(readable(&store, 1, &all), ["c"]);
    assert!(reads_back(&reader, 1, "c"), "what moved is found again");
    assert_eq!(
        gc(&store, options()).packs_removed,
        0,
        "nothing is left to do"
    );
}

#[test]
fn without_any_run_gc_refuses_unless_told() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a"]).expect("add");
    let said = store
        .gc(&options(), &Silent)
        .expect_err("no run")
        .to_string();
    assert!(
        said.contains("everything would go") && said.contains("--without-runs"),
        "{said}"
    );
    assert_eq!(readable(&store, 1, &["a"]), ["a"]);
    gc(
        &store,
        GcOptions {
            without_runs: true,
            ..options()
        },
    );
    assert_eq!(files(dir.path(), ".safetensors").len(), 0);
    assert_eq!(readable(&store, 1, &["a"]), [""; 0]);
}

#[test]
fn gc_waits_for_no_writer_and_a_writer_for_no_gc() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a"]).expect("add");
    use_entries(&store, "cats", 1, &["a"]);
    let writer = store.writer().expect("a writer");
    let busy = store
        .gc(&options(), &Silent)
        .expect_err("a writer is at work");
    assert!(
        matches!(busy, Error::Busy { .. }) && busy.to_string().contains("try again"),
        "{busy}"
    );
    assert!(Store::rebuild_index(dir.path(), &Silent).is_err());
    drop(writer);
    let lock = File::options()
        .write(true)
        .open(dir.path().join("lock"))
        .expect("the lock file");
    lock.lock().expect("as a cleaner in another process would");
    assert!(matches!(store.writer().err(), Some(Error::Busy { .. })));
    assert_eq!(readable(&store, 1, &["a"]), ["a"], "readers need no lock");
    drop(lock);
    gc(&store, options());
}

#[test]
fn an_unreadable_run_or_index_part_stops_gc_before_it_removes_anything() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("store")).expect("new");
    add(&store, 1, &["a"]).expect("add");
    add(&store, 1, &["b"]).expect("add");
    use_entries(&store, "cats", 1, &["a"]);
    for (victim, mend) in [
        ("runs/cats.json", "remove it"),
        (".parquet", "rebuild-index"),
    ] {
        let copy = scratch();
        copy_dir(store.path(), copy.path());
        std::fs::write(&files(copy.path(), victim)[0], "{}").expect("damage");
        let before = listing(copy.path());
        let store = Store::open(copy.path()).expect("open");
        let said = store
            .gc(&options(), &Silent)
            .expect_err("damaged")
            .to_string();
        assert!(said.contains(mend), "{said}");
        assert_eq!(listing(copy.path()), before);
    }
}

#[test]
fn copies_and_small_packs_are_merged() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let captions: Vec<String> = (0..40).map(|i| format!("caption {i}")).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    for one in captions.chunks(1) {
        add(&store, 1, one).expect("add");
    }
    add(&store, 1, &captions[..10]).expect("copies");
    use_entries(&store, "all", 1, &captions);
    let report = gc(&store, options());
    assert_eq!((report.entries_removed, report.entries_kept), (10, 40));
    assert_eq!(files(dir.path(), ".safetensors").len(), 1);
    assert_eq!(files(dir.path(), ".parquet").len(), 1);
    assert_eq!(readable(&store, 1, &captions), captions);
}

#[test]
fn leftovers_of_interrupted_writes_go_when_they_are_old() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["a"]).expect("add");
    use_entries(&store, "cats", 1, &["a"]);
    let pack_dir = files(dir.path(), ".safetensors")[0]
        .parent()
        .expect("inside")
        .to_owned();
    std::fs::write(pack_dir.join(".tmp-99-0"), "half").expect("write");
    assert_eq!(
        Store::check(dir.path(), false, &Silent)
            .expect("check")
            .temporary_files,
        1
    );
    assert_eq!(
        gc(
            &store,
            GcOptions {
                grace: 20 * DAY,
                ..options()
            }
        )
        .leftovers_removed,
        0
    );
    assert_eq!(gc(&store, options()).leftovers_removed, 1);
    assert_eq!(
        Store::check(dir.path(), false, &Silent)
            .expect("check")
            .temporary_files,
        0
    );
}
