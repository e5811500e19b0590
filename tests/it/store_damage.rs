//! {flip, truncate, delete, swap} x {pack, index, spec, store.json}: what stays readable, what is told, and
//! what mends it.

use std::fs;
use std::path::{Path, PathBuf};

use plumb::monitor::Silent;
use plumb::store::Store;

use crate::store_util::{add, files, readable, scratch, spec};
use crate::util::plumb;

const AB: [&str; 2] = ["a", "b"];
const CD: [&str; 2] = ["c", "d"];
const ALL: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Flip,
    Truncate,
    Delete,
    Swap,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Pack,
    Index,
    Spec,
    Marker,
}

/// A store with a and b in one pack, c and d in another, all again under a second spec; and the files to damage:
/// those of a and b under the first spec, and those to swap them with.
struct Scene {
    dir: tempfile::TempDir,
    store: Store,
    pack: [PathBuf; 2],
    index: [PathBuf; 2],
}

fn scene() -> Scene {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let mut new_files = {
        let mut known = Vec::new();
        let root = dir.path().to_owned();
        move |end: &str| -> PathBuf {
            let new = files(&root, end)
                .into_iter()
                .find(|f| !known.contains(f))
                .expect("a new file");
            known.push(new.clone());
            new
        }
    };
    add(&store, 1, &AB).expect("add");
    let (pack_ab, index_ab) = (new_files(".safetensors"), new_files(".parquet"));
    add(&store, 1, &CD).expect("add");
    let (pack_cd, _) = (new_files(".safetensors"), new_files(".parquet"));
    add(&store, 2, &ALL).expect("add");
    let index_2 = new_files(".parquet");
    Scene {
        dir,
        store,
        pack: [pack_ab, pack_cd],
        index: [index_ab, index_2],
    }
}

impl Scene {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn spec_file(&self, number: u32) -> PathBuf {
        self.path().join(format!("specs/{}.json", spec(number).0))
    }

    fn damage(&self, damage: Damage, place: Place) {
        let [victim, other] = match place {
            Place::Pack => self.pack.clone(),
            Place::Index => self.index.clone(),
            Place::Spec => [self.spec_file(1), self.spec_file(2)],
            Place::Marker => [self.path().join("store.json"), self.spec_file(1)],
        };
        let bytes = fs::read(&victim).expect("there");
        match damage {
            Damage::Flip => {
                let mut bytes = bytes;
                // The last byte of a pack is a payload's; elsewhere the middle.
                let at = if place == Place::Pack {
                    bytes.len() - 1
                } else {
                    bytes.len() / 2
                };
                bytes[at] ^= 1;
                fs::write(&victim, bytes).expect("write");
            }
            Damage::Truncate => fs::write(&victim, &bytes[..bytes.len() / 2]).expect("write"),
            Damage::Delete => fs::remove_file(&victim).expect("remove"),
            Damage::Swap => {
                let others = fs::read(&other).expect("there");
                fs::write(&victim, others).expect("write");
                fs::write(&other, bytes).expect("write");
            }
        }
    }

    fn problems(&self) -> Vec<String> {
        let report = Store::check(self.path(), true, &Silent).expect("check");
        report.problems.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn every_damage_costs_no_more_than_it_must_and_is_mended() {
    for place in [Place::Pack, Place::Index, Place::Spec, Place::Marker] {
        for damage in [Damage::Flip, Damage::Truncate, Damage::Delete, Damage::Swap] {
            damage_and_mend(damage, place);
        }
    }
}

fn damage_and_mend(damage: Damage, place: Place) {
    let case = format!("{damage:?} {place:?}");
    let scene = scene();
    scene.damage(damage, place);

    // What stays readable, before anything is mended.
    let expected = match (place, damage) {
        (Place::Pack, Damage::Flip) => vec!["?", "c", "d"],
        (Place::Pack, Damage::Swap) => vec![],
        (Place::Pack | Place::Index, _) => CD.to_vec(),
        (Place::Spec | Place::Marker, _) => ALL.to_vec(),
    };
    if place == Place::Marker {
        let said = Store::open(scene.path())
            .err()
            .expect("not a store")
            .to_string();
        assert!(
            said.contains("store.json") && said.contains("rebuild-index"),
            "{case}: {said}"
        );
    } else {
        Store::open(scene.path()).expect("still a store");
    }
    let found = readable(&scene.store, 1, &ALL);
    if expected.first() == Some(&"?") {
        // One flipped bit in a payload costs one entry, a or b.
        assert!(
            found.len() == 3 && found.ends_with(&CD),
            "{case}: {found:?}"
        );
    } else {
        assert_eq!(found, expected, "{case}");
    }
    let swapped_index = (place, damage) == (Place::Index, Damage::Swap);
    let of_second = if swapped_index { vec![] } else { ALL.to_vec() };
    assert_eq!(readable(&scene.store, 2, &ALL), of_second, "{case}");

    // What is told.
    let problems = scene.problems();
    if (place, damage) == (Place::Index, Damage::Delete) {
        let report = Store::check(scene.path(), true, &Silent).expect("check");
        assert_eq!(
            (problems.len(), report.unindexed_entries),
            (0, 2),
            "{case}: as after a crash"
        );
        plumb(scene.path(), &["store", "check", "."])
            .expect(0)
            .says("2 packed entries without a row");
    } else {
        assert!(!problems.is_empty(), "{case}");
        plumb(scene.path(), &["store", "check", "--read-data", "."])
            .expect(3)
            .says("problem: ");
    }

    mend(&scene, damage, place, &case);
}

fn mend(scene: &Scene, damage: Damage, place: Place, case: &str) {
    let report = Store::rebuild_index(scene.path(), &Silent).expect("rebuild");
    assert_eq!(
        scene.problems(),
        [""; 0],
        "{case}: rebuilt, there is nothing wrong"
    );
    let found = readable(&scene.store, 1, &ALL);
    match (place, damage) {
        (Place::Pack, Damage::Flip) => {
            assert_eq!(
                (found.len(), report.problems.len(), report.packs_set_aside),
                (3, 1, 1),
                "{case}"
            );
        }
        (Place::Pack, Damage::Truncate) => {
            assert_eq!(
                (found.as_slice(), report.packs_set_aside),
                (&CD[..], 1),
                "{case}"
            );
        }
        (Place::Pack, Damage::Delete) => assert_eq!(found, CD, "{case}"),
        // Swapped packs hold sound entries under wrong names: they move to packs of the right name.
        _ => assert_eq!(found, ALL, "{case}"),
    }
    assert_eq!(readable(&scene.store, 2, &ALL), ALL, "{case}");
    add(&scene.store, 1, &ALL).expect("encode again");
    assert_eq!(readable(&scene.store, 1, &ALL), ALL, "{case}");
    assert_eq!(scene.problems(), [""; 0], "{case}");
}

#[test]
fn encoding_again_alone_replaces_what_is_damaged() {
    for damage in [Damage::Flip, Damage::Truncate, Damage::Delete, Damage::Swap] {
        for place in [Place::Pack, Place::Index, Place::Spec] {
            let scene = scene();
            scene.damage(damage, place);
            for number in [1, 2] {
                add(&scene.store, number, &ALL).expect("encode again");
                assert_eq!(
                    readable(&scene.store, number, &ALL),
                    ALL,
                    "{damage:?} {place:?}"
                );
                let (id, json) = spec(number);
                let reader = scene.store.reader().expect("a reader");
                assert_eq!(
                    reader.spec_json(&id).expect("spec"),
                    Some(json),
                    "{damage:?} {place:?}"
                );
            }
        }
    }
}

#[test]
fn once_read_a_damaged_entry_counts_as_missing() {
    let scene = scene();
    scene.damage(Damage::Flip, Place::Pack);
    let reader = scene.store.reader().expect("a reader");
    let (id, _) = spec(1);
    let entries = reader.entries(&id);
    assert!(
        entries.iter().all(|e| reader.contains(&id, e)),
        "nothing is known yet"
    );
    let damaged: Vec<_> = entries
        .iter()
        .filter(|e| reader.get(&id, e).is_err())
        .collect();
    assert_eq!(damaged.len(), 1);
    assert!(!reader.contains(&id, damaged[0]));
    let said = reader
        .get(&id, damaged[0])
        .expect_err("damaged")
        .to_string();
    for words in [
        "damaged entry",
        "part ",
        "digest",
        "expected",
        ".safetensors",
        "rebuild-index",
    ] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

#[test]
fn a_pack_that_is_cut_short_or_written_to_under_a_reader_is_an_error() {
    let scene = scene();
    let reader = scene.store.reader().expect("a reader");
    let (id, _) = spec(1);
    let entries = reader.entries(&id);
    let read = |entry| reader.get(&id, entry).map(|found| found.expect("there"));
    assert!(entries.iter().all(|entry| read(entry).is_ok()));
    let held = read(&entries[0]).expect("sound");
    let before = held.parts[0].1.bytes().to_vec();
    let packs = files(scene.store.path(), ".safetensors");
    assert!(!packs.is_empty());
    for pack in &packs {
        let bytes = fs::read(pack).expect("read");
        let header = u64::from_le_bytes(*bytes.first_chunk().expect("a header"));
        let data = 8 + usize::try_from(header).expect("fits");
        let mut other = bytes.clone();
        other[data..].iter_mut().for_each(|b| *b ^= 1);
        fs::write(pack, other).expect("written");
    }
    // Each was read and compared before, and is compared again now.
    assert!(entries.iter().all(|entry| read(entry).is_err()));
    let reader = scene.store.reader().expect("a reader");
    for pack in &packs {
        let file = fs::File::options().write(true).open(pack);
        file.and_then(|f| f.set_len(100)).expect("cut");
    }
    for entry in &entries {
        let said = reader.get(&id, entry).expect_err("cut short").to_string();
        assert!(said.contains("lies beyond the end of the file"), "{said}");
    }
    // What was handed out stays as it was.
    assert!(held.parts[0].1.bytes() == before);
}
