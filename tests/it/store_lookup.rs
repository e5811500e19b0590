//! An index that need not be in memory: entries looked up batch after batch, and ranges of entries one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use plumb::digest::Fingerprint;
use plumb::inspect;
use plumb::monitor::Silent;
use plumb::store::{EntryRange, Store, StoreReader};

use crate::store_sweep::{RUN, ids, scene};
use crate::store_util::{
    Fault, Faulty, ROOM, add, add_all, captions, files, reads_back, records, scratch, spec,
};

/// A store with so much room in memory, and its disk.
fn with_room(path: &Path, room: usize) -> (Store, Arc<Faulty>) {
    let disk = Arc::new(Faulty::with_room(Fault::None, room));
    let store = Store::open_with(path, disk.clone());
    (store.expect("a store"), disk)
}

/// What two readers say of some entries is the same.
#[track_caller]
fn assert_alike(some: &StoreReader, all: &StoreReader, wanted: &[(Fingerprint, Fingerprint)]) {
    let mut by_spec: BTreeMap<Fingerprint, Vec<Fingerprint>> = BTreeMap::new();
    for (spec, entry) in wanted {
        assert_eq!(some.contains(spec, entry), all.contains(spec, entry));
        by_spec.entry(*spec).or_default().push(*entry);
    }
    for (spec, wanted) in by_spec {
        let records = |reader: &StoreReader| reader.records_of(&spec, &wanted).expect("read");
        assert_eq!(records(some), records(all));
    }
}

#[test]
fn entries_looked_up_batch_after_batch_are_those_of_the_index() {
    let dir = scratch();
    scene(dir.path());
    let batches: Vec<_> = (0..RUN + 500)
        .step_by(97)
        .map(|start| {
            let mut batch = ids(1, &captions(start..start + 97));
            batch.extend(ids(2, &["a".to_owned(), format!("not there {start}")]));
            batch
        })
        .collect();
    let readings = [ROOM, 0].map(|room| {
        let (store, disk) = with_room(dir.path(), room);
        let (lookup, all) = (store.lookup(), store.reader().expect("a reader"));
        let look = || {
            let before = disk.readings();
            for batch in &batches {
                let some = lookup.reader_of_entries(batch).expect("a reader");
                for caption in ["caption 97", "caption 2000"] {
                    let wanted = batch.contains(&ids(1, &[caption.to_owned()])[0]);
                    assert_eq!(reads_back(&some, 1, caption), wanted);
                }
            }
            disk.readings() - before
        };
        let readings = [look(), look()];
        for batch in &batches {
            let some = lookup.reader_of_entries(batch).expect("a reader");
            assert_alike(&some, &all, batch);
        }
        readings
    });
    // Where there is room, nothing is read twice of what tells which entries there are.
    let [much, none] = readings;
    assert!(much[1] < much[0] && much[1] < none[1] / 2, "{readings:?}");
}

#[test]
fn what_others_add_and_merge_is_looked_up_and_damage_is_told() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add_all(&store, 0..RUN);
    let lookup = Store::open(dir.path()).expect("a store").lookup();
    let count = |range: std::ops::Range<usize>| {
        let wanted = ids(1, &captions(range));
        let reader = lookup.reader_of_entries(&wanted).expect("a reader");
        let there = wanted.iter().filter(|(s, e)| reader.contains(s, e)).count();
        let problems = reader.problems().into_iter().map(|p| p.to_string());
        (there, problems.collect::<Vec<_>>())
    };
    assert_eq!(count(RUN - 10..RUN + 10), (10, vec![]));
    add_all(&store, RUN..RUN + 5);
    assert_eq!(count(RUN - 10..RUN + 10), (15, vec![]));
    // Parts that were read go, and others come that are known to be sorted.
    assert_eq!(store.compact().expect("merged").parts, 1);
    assert_eq!(count(RUN - 10..RUN + 10), (15, vec![]));
    add_all(&store, RUN + 5..2 * RUN);
    assert_eq!(count(RUN - 10..RUN + 10), (20, vec![]));
    assert_eq!(store.compact().expect("merged").parts, 1);
    assert_eq!(count(RUN - 10..RUN + 10), (20, vec![]));
    // A part that nobody read yet, and that is not what was written.
    add(&store, 1, &["one more"]).expect("added");
    let before = files(dir.path(), ".parquet");
    add(&store, 1, &["damaged"]).expect("added");
    let mut new = files(dir.path(), ".parquet");
    new.retain(|part| !before.contains(part));
    let mut bytes = fs::read(&new[0]).expect("read");
    bytes[50] ^= 1;
    fs::write(&new[0], bytes).expect("written");
    let wanted = ids(1, &["one more".to_owned(), "damaged".to_owned()]);
    let problems = |reader: StoreReader| {
        let there = wanted.iter().filter(|(s, e)| reader.contains(s, e)).count();
        (there, reader.problems())
    };
    let looked = problems(lookup.reader_of_entries(&wanted).expect("a reader"));
    let once = problems(store.reader_of_entries(&wanted).expect("a reader"));
    let all = problems(store.reader().expect("a reader"));
    assert_eq!((looked.0, looked.1.len()), (1, 1));
    assert!(looked == once && looked == all, "{looked:?} {all:?}");
}

#[test]
fn ranges_of_entries_have_what_the_index_has() {
    let dir = scratch();
    scene(dir.path());
    for room in [ROOM, 3000, 90] {
        let (store, _) = with_room(dir.path(), room);
        let all = store.reader().expect("a reader");
        let specs = store.specs().expect("specs");
        assert_eq!(specs, all.specs().expect("specs"));
        let ranges: Vec<EntryRange> = store.ranges().expect("ranges").collect();
        assert_eq!(ranges.len() > 1, room < ROOM, "{}", ranges.len());
        let mut lost: Vec<String> = Vec::new();
        let mut sums = vec![Vec::new(); specs.len()];
        for range in &ranges {
            let some = store.reader_of_range(&specs, *range).expect("a reader");
            for (sum, spec) in sums.iter_mut().zip(&specs) {
                let entries = some.entries(spec);
                assert!(entries.iter().all(|entry| range.has(entry)));
                let bytes = some.entry_bytes(spec).expect("read");
                assert!(bytes.iter().map(|(entry, _)| entry).eq(&entries));
                sum.extend(bytes);
                let these: Vec<_> = entries.iter().map(|entry| (*spec, *entry)).collect();
                assert_alike(&some, &all, &these);
            }
            lost.extend(some.problems().into_iter().map(|problem| problem.file));
        }
        for (sum, spec) in sums.iter().zip(&specs) {
            assert_eq!(sum, &all.entry_bytes(spec).expect("read"));
            assert_eq!(store.num_entries(spec).expect("counted"), sum.len() as u64);
            assert!(store.has_entries(spec).expect("looked"));
            let bytes: BTreeMap<_, u64> = records(&all, spec)
                .into_iter()
                .map(|r| (r.entry, r.parts.iter().map(|part| part.length).sum()))
                .collect();
            assert!(sum.iter().all(|(entry, found)| bytes[entry] == *found));
        }
        // A pack that is lost is told wherever entries of it are looked for.
        lost.dedup();
        let told = all.problems().into_iter().map(|problem| problem.file);
        assert_eq!(lost, told.collect::<Vec<_>>());
        let nobody = Fingerprint::from_bytes([7; 32]);
        assert!(!store.has_entries(&nobody).expect("looked"));
        assert_eq!(store.num_entries(&nobody).expect("counted"), 0);
        // By the first digits.
        let (id, _) = spec(1);
        let entries = all.entries(&id);
        for entry in [entries[0], entries[1000], entries[entries.len() - 1]] {
            for digits in [&entry.to_string()[..2], &entry.to_string()] {
                let range = EntryRange::beginning(digits).expect("digits");
                let some = store.reader_of_range(&specs, range).expect("a reader");
                let alike = entries.iter().filter(|e| e.to_string().starts_with(digits));
                assert!(some.entries(&id).iter().eq(alike), "{digits}");
            }
        }
    }
}

#[test]
fn what_a_store_holds_and_who_uses_it_is_the_same_in_little_room() {
    let dir = scratch();
    scene(dir.path());
    fs::write(dir.path().join("runs/odd.json"), "{}").expect("written");
    let told = |room| {
        let (store, _) = with_room(dir.path(), room);
        inspect::store(&store, &Silent).expect("told")
    };
    let expected = told(ROOM);
    for room in [3000, 90] {
        let (found, expected) = [&told(room), &expected]
            .map(|report| serde_json::to_value(report).expect("JSON"))
            .into();
        assert_eq!(found, expected, "room {room}");
    }
    // And what it has to be: counted from the index and the runs, one by one.
    let store = Store::open(dir.path()).expect("a store");
    let reader = store.reader().expect("a reader");
    let runs = ["one", "two"].map(|id| store.run(id).expect("a run"));
    let users = |spec: &Fingerprint, entry: &Fingerprint| {
        let lists = runs.iter().filter_map(|run| run.entries.get(spec));
        lists.filter(|list| list.contains(entry)).count()
    };
    for spec in &expected.specs {
        let entries = reader.entries(&spec.spec);
        let used = |n: std::ops::RangeInclusive<usize>| {
            let those = entries.iter().filter(|e| n.contains(&users(&spec.spec, e)));
            those.count() as u64
        };
        assert_eq!(spec.entries, entries.len() as u64);
        assert_eq!((spec.orphans, spec.shared), (used(0..=0), used(2..=2)));
        assert!(spec.bytes > spec.orphan_bytes && !spec.runs.is_empty());
    }
    assert_eq!(expected.shared, 10);
    let of_runs: Vec<_> = (expected.runs.iter())
        .map(|run| (&*run.run.id, run.entries, run.alone, run.missing))
        .collect();
    assert_eq!(
        of_runs,
        [
            ("odd", None, 0, 0),
            ("one", Some(283), 273, 1),
            ("two", Some(30), 20, 0)
        ]
    );
    assert!(expected.problems.iter().any(|what| what.contains("odd")));
}
