//! A large index: its parts are merged into runs, and read in part.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plumb::digest::{Digest, Fingerprint, canonical_json};
use plumb::monitor::Silent;
use plumb::store::{Disk, Error, Store};
use serde_json::{Value, json};

use crate::store_util::{
    Fault, Faulty, add, add_all, captions, copy_dir, entry, files, reads_back, scratch, spec,
};
use crate::util::plumb;

/// Of two rows each: the fewest that make a run of more than one row group.
const RUN: usize = 2100;
/// Together they make a merged part of two row groups.
const ALL: usize = 2 * RUN;

/// A store with a run of the first captions, and the others as they were committed.
fn two_halves(path: &Path) -> Store {
    let store = Store::open_or_create(path).expect("new");
    add_all(&store, 0..RUN);
    assert_eq!(store.compact().expect("merged").parts, 1);
    add_all(&store, RUN..ALL - 100);
    add_all(&store, ALL - 100..ALL);
    store
}

/// A store of one run.
fn merged(path: &Path) -> Store {
    let store = two_halves(path);
    let report = store.compact().expect("merged");
    assert_eq!((report.parts_before, report.parts), (3, 1));
    store
}

fn ids(range: std::ops::Range<usize>) -> Vec<(Fingerprint, Fingerprint)> {
    let (id, _) = spec(1);
    let captions = captions(range);
    captions.iter().map(|c| (id, entry(&id, c).entry)).collect()
}

/// How many of these entries a reader of them alone finds.
fn found(store: &Store, wanted: &[(Fingerprint, Fingerprint)]) -> usize {
    let reader = store.reader_of_entries(wanted).expect("a reader");
    let there = wanted
        .iter()
        .filter(|(spec, entry)| reader.contains(spec, entry));
    there.count()
}

fn list(path: &Path) -> PathBuf {
    files(path, "parts.json").pop().expect("a list")
}

/// Writes a list of parts that vouches for itself.
fn write_list(path: &Path, mut content: Value) {
    if let Some(members) = content.as_object_mut() {
        members.remove("digest");
    }
    let digest = Digest::of(&canonical_json(&content));
    content["digest"] = json!(digest.to_string());
    fs::write(path, canonical_json(&content)).expect("written");
}

fn problems(path: &Path) -> Vec<String> {
    let report = Store::check(path, false, &Silent).expect("checked");
    report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn of_a_merged_index_only_what_may_have_the_entries_is_read_and_all_that_is_read_is_compared() {
    let dir = scratch();
    let store = merged(dir.path());
    let all = ids(0..ALL);
    assert_eq!(found(&store, &all), ALL);
    assert_eq!(found(&store, &ids(ALL..ALL + 50)), 0);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    let (low, high) = (&sorted[..3], &sorted[ALL - 3..]);
    // Payloads, token counts and records of some are those of the whole.
    let reader = store.reader_of_entries(&all[10..20]).expect("a reader");
    for caption in captions(10..20) {
        assert!(reads_back(&reader, 1, &caption), "{caption}");
    }
    assert!(!reads_back(&reader, 1, "caption 9"), "it was not asked for");
    let whole = store.reader().expect("a reader");
    for (spec, entry) in &all[10..20] {
        let record = reader.record(spec, entry).expect("read").expect("there");
        assert_eq!(Some(record), whole.record(spec, entry).expect("read"));
    }
    let (id, _) = spec(1);
    let some: Vec<_> = all[10..20].iter().map(|(_, entry)| *entry).collect();
    assert_eq!(reader.records_of(&id, &some).expect("read").len(), 10);
    // A flipped bit in what tells of the lowest entries: the highest are read without it, the lowest are not, and it is told.
    let part = files(dir.path(), ".parquet").pop().expect("a part");
    let mut bytes = fs::read(&part).expect("read");
    bytes[100] ^= 1;
    fs::write(&part, &bytes).expect("written");
    assert_eq!((found(&store, high), found(&store, low)), (3, 0));
    let reader = store.reader_of_entries(low).expect("a reader");
    let told = reader.problems()[0].to_string();
    assert!(
        told.contains("content with the digest in the name"),
        "{told}"
    );
    assert!(
        store
            .reader_of_entries(high)
            .expect("a reader")
            .problems()
            .is_empty()
    );
    // In the footer it costs all of the part, as it does without a list.
    bytes[100] ^= 1;
    let footer = bytes.len() - 100;
    bytes[footer] ^= 1;
    fs::write(&part, &bytes).expect("written");
    assert_eq!((found(&store, high), found(&store, low)), (0, 0));
}

#[test]
fn a_list_of_parts_is_never_needed_and_never_believed_to_be_a_file() {
    let dir = scratch();
    let store = merged(dir.path());
    let all = ids(0..ALL);
    let list = list(dir.path());
    let sound: Value = serde_json::from_slice(&fs::read(&list).expect("read")).expect("JSON");
    let part = files(dir.path(), ".parquet").pop().expect("a part");
    let name = part
        .file_stem()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let other = "ab".repeat(32);
    let with = |key: &str, value: Value| {
        let mut content = sound.clone();
        content["parts"][&name][key] = value;
        content
    };
    let renamed = |to: &str| {
        let mut content = sound.clone();
        let known = content["parts"][&name].take();
        content["parts"] = json!({ to: known });
        content
    };
    let pieces = sound["parts"][&name]["pieces"].as_str().expect("text");
    let hostile = [
        renamed("../../../etc/passwd"),
        renamed(&other),
        renamed(&name.to_uppercase()),
        with("bytes", json!(u64::MAX)),
        with("bytes", json!(0)),
        with("bytes", json!(1u64 << 60)),
        with("rows", json!(u64::MAX)),
        with("rows", json!(0)),
        with("rows", json!(7)),
        with("sorted_rows", json!(0)),
        with("sorted_rows", json!(u64::MAX)),
        with("pieces", json!("")),
        with("pieces", json!("0".repeat(pieces.len()))),
        with("pieces", json!("\u{e9}".repeat(pieces.len() / 2))),
        with("pieces", json!(&pieces[64..])),
        with("first", sound["parts"][&name]["last"].clone()),
        with("more", json!(1)),
        json!({"version": 2, "parts": {}}),
        json!({"version": 1, "parts": []}),
        json!([]),
    ];
    for (i, content) in hostile.into_iter().enumerate() {
        match content.is_object() {
            true => write_list(&list, content.clone()),
            false => fs::write(&list, content.to_string()).expect("written"),
        }
        // Where it says too little of a part to find an entry, it says so of what it is not the list of.
        let expected = if content["parts"][&name]["first"] == content["parts"][&name]["last"]
            && content["parts"][&name]["first"].is_string()
        {
            1
        } else {
            ALL
        };
        assert_eq!(found(&store, &all), expected, "{i}: {content}");
    }
    // What it says wrongly of a part that is there is told, and so is a list that is none.
    write_list(&list, with("first", sound["parts"][&name]["last"].clone()));
    assert!(problems(dir.path())[0].contains("says otherwise of 1 index part than"));
    fs::write(&list, "{").expect("written");
    assert!(problems(dir.path())[0].contains("parts.json: no list of parts"));
    assert_eq!(found(&store, &all), ALL);
    // Without it all is there, and merging makes it anew without writing a part.
    fs::remove_file(&list).expect("removed");
    assert_eq!((found(&store, &all), problems(dir.path())), (ALL, vec![]));
    store.compact().expect("merged");
    let anew: Value = serde_json::from_slice(&fs::read(&list).expect("read")).expect("JSON");
    assert_eq!(anew["parts"][&name], sound["parts"][&name]);
    assert!(part.exists());
}

#[test]
fn merging_may_be_killed_at_every_step_and_the_disk_may_be_full() {
    let dir = scratch();
    let before = dir.path().join("before");
    two_halves(&before);
    let all = ids(0..ALL);
    let copy = dir.path().join("store");
    for step in 0.. {
        let mut done = false;
        let faults = [Fault::Crash(step), Fault::Full(step)];
        // A full disk is the rarer one, and the looks are the dearer.
        let is_fourth = step.is_multiple_of(4);
        for fault in faults.into_iter().take(1 + usize::from(is_fourth)) {
            let _ = fs::remove_dir_all(&copy);
            copy_dir(&before, &copy);
            let disk: Arc<dyn Disk> = Arc::new(Faulty::new(fault));
            let store = Store::open_with(&copy, disk).expect("opened");
            done |= store.compact().is_ok();
            let store = Store::open(&copy).expect("opened");
            assert_eq!(found(&store, &all), ALL, "step {step}");
            if is_fourth {
                let reader = store.reader().expect("a reader");
                assert_eq!(reader.entries(&spec(1).0).len(), ALL);
                assert_eq!(problems(&copy), [""; 0], "step {step}");
            }
            // And it goes on to its end; a part of a commit may be left that was not removed, whose rows are there twice.
            assert!(store.compact().expect("merged").parts <= 2, "step {step}");
            assert_eq!(found(&store, &all), ALL, "step {step}");
        }
        if done {
            assert!(step > 10, "{step}");
            return;
        }
    }
}

#[test]
fn two_may_merge_at_once_while_others_add_and_look() {
    let dir = scratch();
    let store = two_halves(dir.path());
    let all = ids(0..ALL);
    let again = |work: &dyn Fn() -> Result<(), Error>| {
        while let Err(e) = work() {
            assert!(matches!(e, Error::Busy { .. }), "{e}");
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| again(&|| store.compact().map(|_| ())));
        }
        scope.spawn(|| again(&|| add(&store, 1, &["one more"])));
        scope.spawn(|| {
            for _ in 0..5 {
                assert_eq!(found(&store, &all), ALL);
            }
        });
    });
    again(&|| store.compact().map(|_| ()));
    // What is too little to be read in part stays beside the rest.
    assert!(files(dir.path(), ".parquet").len() <= 2);
    let reader = store.reader().expect("a reader");
    assert_eq!(reader.entries(&spec(1).0).len(), ALL + 1);
    assert!(reads_back(&reader, 1, "one more") && reads_back(&reader, 1, "caption 0"));
}

#[test]
fn a_store_is_merged_by_command() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("store")).expect("new");
    for caption in ["a", "b", "c"] {
        add(&store, 1, &[caption]).expect("added");
    }
    plumb(dir.path(), &["store", "compact", "store"])
        .expect(0)
        .says("store: 1 index part, before 3");
    let again = plumb(dir.path(), &["store", "compact", "store", "--json"]).expect(0);
    assert_eq!(again.json()["parts_before"], 1);
    plumb(dir.path(), &["store", "compact", "nowhere"]).expect(1);
}
