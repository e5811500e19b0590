//! A damaged header of a pack: what the index knows of the payloads is enough to keep them.

use std::fs;
use std::path::Path;

use plumb::digest::Fingerprint;
use plumb::monitor::Silent;
use plumb::store::{NewEntry, Record, Store};

use crate::store_util::{add, entry, files, readable, records, scratch, spec};

const CAPTIONS: [&str; 3] = [
    "a",
    "quoted \"b\" \\ c",
    "d\u{e9} of more than twenty letters",
];

/// A store with one pack, its file, and its index part.
struct Scene {
    dir: tempfile::TempDir,
    store: Store,
    pack: std::path::PathBuf,
    bytes: Vec<u8>,
    index: std::path::PathBuf,
    rows: Vec<Record>,
}

fn scene(put: impl FnOnce(&Store)) -> Scene {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    put(&store);
    let pack = files(dir.path(), ".safetensors").remove(0);
    let rows = rows(&store);
    Scene {
        bytes: fs::read(&pack).expect("there"),
        index: files(dir.path(), ".parquet").remove(0),
        rows,
        pack,
        store,
        dir,
    }
}

fn rows(store: &Store) -> Vec<Record> {
    let (id, _) = spec(1);
    let reader = store.reader().expect("a reader");
    let mut rows = records(&reader, &id);
    for row in &mut rows {
        row.pack = plumb::digest::Digest::of(b"");
        row.parts.iter_mut().for_each(|p| p.offset = 0);
    }
    rows
}

impl Scene {
    fn header(&self) -> usize {
        let length: [u8; 8] = self.bytes[..8].try_into().expect("eight");
        8 + u64::from_le_bytes(length) as usize
    }

    /// Puts everything back as it was but for the bytes of the pack.
    fn reset(&self, bytes: &[u8]) {
        for file in files(self.dir.path(), "").iter().filter(|f| {
            let name = f.to_string_lossy();
            name.contains("/packs/") || name.ends_with(".parquet")
        }) {
            if *file != self.index {
                fs::remove_file(file).expect("removed");
            }
        }
        fs::write(&self.pack, bytes).expect("write");
    }

    /// After a rebuild every entry is there, as it was to the last number, and nothing is wrong.
    #[track_caller]
    fn assert_whole(&self, case: &str) {
        let report = Store::rebuild_index(self.path(), &Silent).expect("rebuild");
        assert_eq!(report.problems, [], "{case}");
        assert!(rows(&self.store) == self.rows, "{case}: other rows");
        let reader = self.store.reader().expect("a reader");
        assert_eq!(reader.problems(), [], "{case}");
        for row in &self.rows {
            let found = reader.get(&spec(1).0, &row.entry).expect("sound");
            assert_eq!(found.expect("there").parts.len(), row.parts.len(), "{case}");
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_header_costs_no_entry() {
    // In several stores at once, each of which mostly waits for its disk.
    const STORES: usize = 4;
    let damage = |first: usize| {
        let scene = scene(|store| add(store, 1, &CAPTIONS[..2]).expect("add"));
        let index = fs::read(&scene.index).expect("there");
        for at in (first..scene.header()).step_by(STORES) {
            let mut bytes = scene.bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            scene.reset(&bytes);
            fs::write(&scene.index, &index).expect("write");
            scene.assert_whole(&format!("bit {} of byte {at}", at % 8));
        }
    };
    std::thread::scope(|scope| {
        for first in 0..STORES {
            scope.spawn(move || damage(first));
        }
    });
}

/// An entry of a picture: its key record cannot be made from what the index says.
fn picture(number: u32) -> NewEntry {
    let (id, _) = spec(1);
    let key = serde_json::json!({"picture": format!("{number:064x}"), "spec": id, "version": 1});
    NewEntry {
        entry: Fingerprint::of(&key),
        source: format!("picture {number}"),
        key,
        ..entry(&id, "a")
    }
}

fn put_pictures(store: &Store) {
    let mut writer = store.writer().expect("a writer");
    let (id, json) = spec(1);
    writer.put_spec(&id, &json).expect("spec");
    for number in 0..4 {
        writer.put(picture(number)).expect("put");
    }
    writer.commit().expect("commit");
}

#[test]
fn a_flipped_bit_in_what_only_the_header_knows_is_found_and_flipped_back() {
    let scene = scene(put_pictures);
    let index = fs::read(&scene.index).expect("there");
    let text = String::from_utf8_lossy(&scene.bytes[..scene.header()]).into_owned();
    let key = text.find("picture").expect("a key record");
    let places = (0..8)
        .chain((9..scene.header()).step_by(97))
        .chain(key - 30..key + 100);
    for at in places {
        let mut bytes = scene.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        scene.reset(&bytes);
        fs::write(&scene.index, &index).expect("write");
        scene.assert_whole(&format!("bit {} of byte {at}", at % 8));
    }
}

#[test]
fn without_an_index_a_flipped_bit_in_a_header_is_found_as_well() {
    let scene = scene(|store| add(store, 1, &CAPTIONS).expect("add"));
    let text = String::from_utf8_lossy(&scene.bytes[..scene.header()]).into_owned();
    // One that changes a number and leaves the header as plausible as it was.
    let count = text.find("token_count").expect("a record") + "token_count\\\":".len();
    for at in [0, 5, 20, scene.header() / 2, count] {
        let mut bytes = scene.bytes.clone();
        bytes[at] ^= 1;
        scene.reset(&bytes);
        let _ = fs::remove_file(&scene.index);
        scene.assert_whole(&format!("byte {at}"));
    }
}

#[test]
fn of_a_header_with_more_damage_what_the_index_vouches_for_is_kept_and_the_rest_is_named() {
    let scene = scene(put_pictures);
    let mut bytes = scene.bytes.clone();
    let text = String::from_utf8_lossy(&bytes[..scene.header()]).into_owned();
    // The beginning is no JSON any more, and the key record of one picture is gone.
    bytes[8..20].fill(0);
    let key = text
        .find(&format!("{:064x}", 2))
        .expect("the key of picture 2");
    bytes[key + 10..key + 14].fill(b'x');
    scene.reset(&bytes);
    let report = Store::rebuild_index(scene.path(), &Silent).expect("rebuild");
    assert_eq!(
        (
            report.entries,
            report.packs_set_aside,
            report.problems.len()
        ),
        (3, 1, 1)
    );
    let said = report.problems[0].to_string();
    assert!(
        said.contains("picture 2") && said.contains("encoding again"),
        "{said}"
    );
    let report = Store::check(scene.path(), true, &Silent).expect("check");
    assert_eq!(report.problems, []);
    for row in rows(&scene.store) {
        assert_ne!(row.entry, picture(2).entry);
    }
}

#[test]
fn without_an_index_a_header_that_nothing_vouches_for_is_not_believed() {
    let scene = scene(|store| add(store, 1, &CAPTIONS).expect("add"));
    let mut bytes = scene.bytes.clone();
    let text = String::from_utf8_lossy(&bytes[..scene.header()]).into_owned();
    // Two bits: not to be found by trying. The payloads are all sound.
    let places: Vec<usize> = text
        .match_indices("token_count")
        .map(|(at, _)| at)
        .collect();
    for at in &places[..2] {
        bytes[at + "token_count\\\":".len()] ^= 2;
    }
    scene.reset(&bytes);
    fs::remove_file(&scene.index).expect("removed");
    let report = Store::rebuild_index(scene.path(), &Silent).expect("rebuild");
    assert_eq!((report.entries, report.problems.len()), (0, 3));
    assert!(
        report.problems[0].what.contains("vouches"),
        "{:?}",
        report.problems
    );
}

#[test]
fn gc_does_not_take_over_what_a_damaged_header_says() {
    let scene = scene(|store| add(store, 1, &CAPTIONS).expect("add"));
    let text = String::from_utf8_lossy(&scene.bytes[..scene.header()]).into_owned();
    let mut bytes = scene.bytes.clone();
    bytes[text.find("token_count").expect("a record") + "token_count\\\":".len()] ^= 1;
    fs::write(&scene.pack, bytes).expect("write");
    let (id, _) = spec(1);
    // Of one entry, so that the pack is rewritten.
    let used = [(id, entry(&id, CAPTIONS[0]).entry)];
    let extra = serde_json::json!({});
    let lacking = plumb::store::Lacking::Refuse;
    (scene.store.write_run("one", &used, extra, lacking)).expect("run");
    let options = plumb::store::GcOptions {
        now: std::time::SystemTime::now() + std::time::Duration::from_secs(1_000_000),
        grace: std::time::Duration::from_secs(1),
        dry_run: false,
        without_runs: false,
    };
    let report = scene.store.gc(&options, &Silent).expect("gc");
    assert!(report.problems[0].what.contains("otherwise"), "{report:?}");
    assert_eq!(readable(&scene.store, 1, &CAPTIONS)[0], CAPTIONS[0]);
    assert!(scene.pack.exists());
}
