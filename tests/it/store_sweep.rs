//! Maintenance of an index that has no room in memory: it comes to what it comes to where there is room.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plumb::digest::Fingerprint;
use plumb::store::{GcOptions, Lacking, Store};
use serde_json::{Value, json};

use crate::store_util::{
    Fault, Faulty, ROOM, add, add_all, captions, copy_dir, entry, files, scratch, spec,
};
use crate::util::{Phases, listing};

/// Of two rows each: enough for a part that is read in part.
pub(crate) const RUN: usize = 2100;

pub(crate) fn ids(number: u32, captions: &[String]) -> Vec<(Fingerprint, Fingerprint)> {
    let (id, _) = spec(number);
    captions.iter().map(|c| (id, entry(&id, c).entry)).collect()
}

/// The pack that the index names for an entry.
fn pack_of(store: &Store, caption: &str) -> std::path::PathBuf {
    let reader = store.reader().expect("a reader");
    let (id, _) = spec(1);
    let record = reader.record(&id, &entry(&id, caption).entry);
    let record = record.expect("read").expect("there");
    store.pack_path(&record.pack)
}

/// A store with a run of the index, commits, copies of entries of which some are damaged, a pack that is lost, one that no row names, and
/// another spec.
pub(crate) fn scene(path: &Path) -> Store {
    let store = Store::open_or_create(path).expect("new");
    add_all(&store, 0..RUN);
    assert_eq!(store.compact().expect("merged").parts, 1);
    add_all(&store, RUN..RUN + 300);
    // Copies in two other packs; those of the second are written together with others.
    add_all(&store, 100..140);
    add_all(&store, 120..400);
    add(&store, 2, &["a", "b", "c"]).expect("added");
    add(&store, 1, &["lost 1", "lost 2"]).expect("added");
    add(&store, 1, &["damaged"]).expect("added");
    let used = [captions(50..130), captions(2000..2200)].concat();
    let mut run = ids(1, &used);
    run.extend(ids(2, &["a".to_owned()]));
    run.extend(ids(1, &["lost 1".to_owned(), "damaged".to_owned()]));
    let write = |id: &str, run: &[_]| {
        store
            .write_run(id, run, json!({}), Lacking::Refuse)
            .expect("a run");
    };
    write("one", &run);
    write("two", &ids(1, &captions(120..150)));
    fs::remove_file(pack_of(&store, "lost 1")).expect("removed");
    let damaged = pack_of(&store, "damaged");
    let mut bytes = fs::read(&damaged).expect("read");
    *bytes.last_mut().expect("some") ^= 1;
    fs::write(&damaged, bytes).expect("written");
    let before = files(path, ".parquet");
    add(&store, 1, &["named by nobody", "nor this"]).expect("added");
    let new = files(path, ".parquet")
        .into_iter()
        .find(|part| !before.contains(part));
    fs::remove_file(new.expect("a part")).expect("removed");
    store
}

fn options(dry_run: bool) -> GcOptions {
    GcOptions {
        now: SystemTime::now() + Duration::from_secs(1_000_000),
        grace: Duration::from_secs(1),
        dry_run,
        without_runs: false,
    }
}

/// What each command says in a room, and which files there are in the end.
fn maintain(path: &Path, room: usize, works: &[&str]) -> (Vec<Value>, Vec<String>) {
    let disk = || Arc::new(Faulty::with_room(Fault::None, room));
    let mut said = Vec::new();
    for work in works {
        let store = Store::open_with(path, disk()).expect("a store");
        let report = match *work {
            "check" => {
                let report = Store::check_with(path, disk(), true, &Phases::default());
                serde_json::to_value(report.expect("checked"))
            }
            "rebuild" => {
                let report = Store::rebuild_index_with(path, disk(), &Phases::default());
                serde_json::to_value(report.expect("made anew"))
            }
            "stats" => serde_json::to_value(store.stats().expect("counted")),
            work => serde_json::to_value(
                store
                    .gc(&options(work == "told"), &Phases::default())
                    .expect("collected"),
            ),
        };
        said.push(report.expect("JSON"));
    }
    (said, listing(path))
}

fn assert_same(works: &[&str], rooms: &[usize]) {
    assert_same_of(scene, works, rooms);
}

fn assert_same_of(scene: impl Fn(&Path) -> Store, works: &[&str], rooms: &[usize]) {
    let dir = scratch();
    let scene_path = dir.path().join("scene");
    scene(&scene_path);
    let outcome = |room: usize| {
        let path = dir.path().join(format!("room {room}"));
        copy_dir(&scene_path, &path);
        maintain(&path, room, works)
    };
    let (expected, expected_files) = outcome(ROOM);
    for &room in rooms {
        let (said, files) = outcome(room);
        for ((work, said), expected) in works.iter().zip(said).zip(&expected) {
            assert_eq!(&said, expected, "{work}, room {room}");
        }
        assert_eq!(files, expected_files, "{works:?}, room {room}");
    }
    // What is compared is worth comparing.
    let all = json!(expected).to_string();
    assert!(all.contains("lost") || all.contains("missing"), "{all}");
}

#[test]
fn a_collection_in_little_room_leaves_the_same_files() {
    assert_same(&["told", "collect", "check", "collect"], &[3000, 500]);
}

#[test]
fn an_index_made_anew_in_little_room_is_the_same() {
    assert_same(&["rebuild", "check", "told", "rebuild"], &[3000, 500]);
}

#[test]
fn a_check_in_little_room_finds_the_same() {
    let mixed_up = |path: &Path| {
        let store = scene(path);
        add(&store, 1, &["kept", "mixed up"]).expect("added");
        add(&store, 1, &["kept", "another"]).expect("added");
        // Packs of as many entries: what they have is not what is named.
        let [of, another] = ["mixed up", "another"].map(|caption| pack_of(&store, caption));
        fs::copy(another, of).expect("copied");
        store
    };
    assert_same_of(mixed_up, &["check", "check"], &[5000, 700, 90]);
    assert_same(&["collect", "check"], &[700, 90]);
}

#[test]
fn what_a_store_holds_is_counted_alike_in_little_room() {
    assert_same(&["stats", "check"], &[3000, 90]);
    let dir = scratch();
    let stats = scene(dir.path()).stats().expect("counted");
    let of_first = &stats.specs[&spec(1).0.to_string()];
    // The captions, two that are lost, and one that is damaged; some were made twice, and some three times.
    assert_eq!(of_first.entries as usize, RUN + 300 + 3);
    assert_eq!(of_first.duplicate_entries, 300);
}
