//! Ranges of runs, read by their places and as a whole.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::store::Local;
use crate::store::run::run_bytes;

struct World {
    _folder: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(folder.path(), Arc::new(Local));
        fs::create_dir_all(store.layout.runs()).expect("a folder");
        Self {
            _folder: folder,
            store,
        }
    }

    fn write(&self, bytes: &[u8]) {
        fs::write(self.store.layout.run("one"), bytes).expect("a run");
    }

    fn lists(&self) -> RunLists {
        self.store.run_lists("one").expect("a run").1
    }

    fn within(&self, lists: &RunLists, range: EntryRange) -> Entries {
        self.store.run_within(lists, range).expect("the run")
    }
}

fn id(number: usize) -> Fingerprint {
    Fingerprint::of(&number)
}

/// So many entries of as many specs.
fn entries(counts: &[usize]) -> Vec<(Fingerprint, Fingerprint)> {
    let specs = counts.iter().enumerate();
    let all = specs.flat_map(|(n, &count)| (0..count).map(move |m| (id(n), id(1_000_000 + m))));
    all.collect()
}

fn expected(all: &[(Fingerprint, Fingerprint)], range: EntryRange) -> Entries {
    let mut expected = Entries::new();
    for (spec, entry) in all {
        let list = expected.entry(*spec).or_default();
        list.extend(range.has(entry).then_some(*entry));
    }
    for list in expected.values_mut() {
        list.sort();
    }
    expected
}

fn some_ranges(all: &[(Fingerprint, Fingerprint)]) -> Vec<EntryRange> {
    let mut ranges: Vec<EntryRange> = EntryRange::for_rows(7, 1).collect();
    ranges.push(EntryRange::all());
    for (_, entry) in all.iter().step_by(97) {
        let (first, last) = (*entry, *entry);
        ranges.push(EntryRange { first, last });
    }
    ranges
}

/// The bytes of a run as `change` makes them of its members.
fn changed(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Value {
    let mut json = serde_json::from_slice(bytes).expect("JSON");
    change(&mut json);
    json
}

#[test]
fn a_range_is_what_the_whole_run_has_of_it() {
    let world = World::new();
    for counts in [&[][..], &[1], &[1023, 1024], &[1025, 1, 5000]] {
        let all = entries(counts);
        let written = run_bytes("one", &all, json!({"entries": {}}));
        let old = changed(&written, |json| {
            json.as_object_mut().expect("members").remove("digest");
        });
        let unsorted = changed(&old.to_string().into_bytes(), |json| {
            let lists = json["entries"].as_object_mut().expect("lists");
            for list in lists.values_mut() {
                list.as_array_mut().expect("a list").reverse();
            }
        });
        let spaced = serde_json::to_vec_pretty(&old).expect("JSON");
        let places = [written.clone(), old.to_string().into_bytes()];
        let none = [spaced, unsorted.to_string().into_bytes()];
        let each = places.iter().map(|b| (b, true));
        for (bytes, has_places) in each.chain(none.iter().map(|b| (b, false))) {
            world.write(bytes);
            let lists = world.lists();
            let is_plain = all.len() < 2 && !bytes.contains(&b' ');
            assert_eq!(lists.lists.is_some(), has_places || is_plain);
            assert_eq!(lists.num_entries, all.len() as u64);
            for range in some_ranges(&all) {
                assert_eq!(world.within(&lists, range), expected(&all, range));
            }
        }
    }
}

#[test]
fn little_of_a_run_is_read_for_a_range() {
    let world = World::new();
    let all = entries(&[100_000]);
    let bytes = run_bytes("one", &all, Value::Null);
    world.write(&bytes);
    let lists = world.lists().lists.expect("as it is written");
    let most = 2 * (BLOCK + 100_000 / 50) * LISTED_BYTES;
    for range in EntryRange::for_rows(50, 1) {
        let read = |offset: u64, count: u64| {
            assert!(count < most as u64, "{count}");
            Ok(Some(bytes[offset as usize..][..count as usize].to_vec()))
        };
        let found = lists[&id(0)].within(range, read).expect("read");
        assert_eq!(found, expected(&all, range).remove(&id(0)));
    }
}

#[test]
fn a_run_that_is_another_by_now_is_read_as_it_is() {
    let world = World::new();
    let all = entries(&[3000, 1]);
    let others = [
        &all[1..],
        &all[..2999],
        &[all[0]],
        &entries(&[3001, 1])[1..],
    ];
    for other in others {
        world.write(&run_bytes("one", &all, Value::Null));
        let lists = world.lists();
        world.write(&run_bytes("one", other, Value::Null));
        for range in some_ranges(&all) {
            assert_eq!(world.within(&lists, range), expected(other, range));
        }
    }
    let lists = world.lists();
    fs::remove_file(world.store.layout.run("one")).expect("to remove it");
    let found = world.store.run_within(&lists, EntryRange::all());
    assert!(found.is_err_and(|e| e.is_gone()));
}

#[test]
fn a_run_that_was_damaged_since_is_refused() {
    let world = World::new();
    let all = entries(&[5000]);
    let mut bytes = run_bytes("one", &all, Value::Null);
    world.write(&bytes);
    let lists = world.lists();
    let mut sorted: Vec<Fingerprint> = all.iter().map(|(_, entry)| *entry).collect();
    sorted.sort();
    let digits = sorted[2500].to_string();
    let place = bytes.windows(64).position(|some| some == digits.as_bytes());
    let last = place.expect("its digits") + 63;
    bytes[last] = if bytes[last] == b'0' { b'1' } else { b'0' };
    world.write(&bytes);
    for (at, is_damaged) in [(2500, true), (2400, true), (1, false), (4999, false)] {
        let (first, last) = (sorted[at], sorted[at]);
        let found = world.store.run_within(&lists, EntryRange { first, last });
        assert_eq!(found.is_err_and(|e| e.is_content()), is_damaged, "{at}");
    }
}
