//! The format as `schemas/FORMAT.md` tells it, stores of every version there was, and other programs' eyes.

use std::fs;
use std::path::{Path, PathBuf};

use plumb::digest::Fingerprint;
use plumb::monitor::Silent;
use plumb::store::{ElementType, FORMAT_VERSION, Lacking, NewEntry, Store, TensorBytes};

use crate::peers::Script;
use crate::store_util::{copy_dir, entry, readable, records, scratch, spec};

/// The stores under `tests/fixtures`, one for each version of the format.
const FIXTURES: &[&str] = &["store-v1"];
/// Set to write the newest fixture anew, after a change of the format.
const WRITE: &str = "PLUMB_WRITE_FIXTURES";

const CAPTIONS: [&str; 3] = ["", "a red square", "caf\u{e9} \u{1F600} \"quoted\""];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn there_is_a_fixture_for_every_version() {
    let mut found: Vec<String> = fs::read_dir(fixtures())
        .expect("tests/fixtures")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.starts_with("store-v"))
        .collect();
    found.sort();
    assert_eq!(found, FIXTURES);
    assert_eq!(FIXTURES.len() as u64, FORMAT_VERSION);
}

#[test]
fn stores_of_every_version_are_read() {
    if std::env::var_os(WRITE).is_some() {
        write_fixture(&fixtures().join(format!("store-v{FORMAT_VERSION}")));
    }
    for fixture in FIXTURES {
        let path = fixtures().join(fixture);
        let report = Store::check(&path, true, &Silent).expect("check");
        assert_eq!(
            (report.problems, report.entries, report.packs),
            (vec![], 7, 3),
            "{fixture}"
        );
        let store = Store::open(&path).expect("open");
        for number in [1, 2] {
            assert_eq!(readable(&store, number, &CAPTIONS), CAPTIONS, "{fixture}");
        }
        let (id, _) = spec(3);
        let reader = store.reader().expect("a reader");
        let all = reader
            .get(&id, &every_type().entry)
            .expect("sound")
            .expect("there");
        assert_eq!(all.parts.len(), ElementType::ALL.len(), "{fixture}");
        for (name, tensor) in every_type().parts {
            assert_eq!(
                all.part(&name).expect("there").to_tensor_bytes(),
                tensor,
                "{fixture}"
            );
        }
        assert_eq!(
            store.run("fixture").expect("a run").num_entries(),
            6,
            "{fixture}"
        );
    }
}

/// An entry with a part of each element type.
fn every_type() -> NewEntry {
    let (id, _) = spec(3);
    let mut new = entry(&id, "all");
    new.parts = ElementType::ALL
        .iter()
        .map(|&dtype| {
            let bytes = vec![1; 3 * dtype.size_bytes()];
            let shape = vec![3, 1];
            (
                dtype.name().to_lowercase(),
                TensorBytes {
                    dtype,
                    shape,
                    bytes,
                },
            )
        })
        .collect();
    new
}

fn write_fixture(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let store = Store::open_or_create(path).expect("new");
    let mut used = Vec::new();
    for number in [1, 2] {
        crate::store_util::add(&store, number, &CAPTIONS).expect("add");
        let (id, _) = spec(number);
        used.extend(CAPTIONS.iter().map(|c| (id, entry(&id, c).entry)));
    }
    let (id, json) = spec(3);
    let mut writer = store.writer().expect("a writer");
    writer.put_spec(&id, &json).expect("put");
    writer.put(every_type()).expect("put");
    writer.finish().expect("finish");
    store
        .write_run(
            "fixture",
            &used,
            serde_json::json!({"made_by": "store_format.rs"}),
            Lacking::Refuse,
        )
        .expect("run");
    fs::remove_file(path.join("lock")).expect("the lock is no part of it");
}

#[test]
fn a_store_of_an_older_version_is_added_to_and_mended() {
    for fixture in FIXTURES {
        let copy = scratch();
        copy_dir(&fixtures().join(fixture), copy.path());
        let store = Store::open(copy.path()).expect("open");
        crate::store_util::add(&store, 1, &["new"]).expect("add");
        Store::rebuild_index(copy.path(), &Silent).expect("rebuild");
        let all: Vec<&str> = CAPTIONS.into_iter().chain(["new"]).collect();
        assert_eq!(readable(&store, 1, &all), all, "{fixture}");
    }
}

/// The Python blocks of `schemas/FORMAT.md`.
fn examples() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/FORMAT.md");
    let text = fs::read_to_string(path).expect("schemas/FORMAT.md");
    text.split("```python\n")
        .skip(1)
        .map(|after| after.split("```").next().expect("it ends").to_owned())
        .collect()
}

#[test]
fn the_fingerprint_example_gives_our_fingerprints() {
    let program = &examples()[0];
    assert!(
        program.lines().count() == 5,
        "five lines, as design and text say"
    );
    let description = serde_json::json!({"\u{e9}": [1e-6, 1.0, 1e21, -0.5], "b": null, "\u{1F600}": {"z": true, "a": "\n"}});
    let script = Script::code(program).input(&description.to_string());
    if let Some(said) = script.run() {
        assert_eq!(said.trim(), Fingerprint::of(&description).to_string());
    }
}

#[test]
fn the_reading_example_reads_what_we_wrote() {
    let program = &examples()[1];
    assert!(
        program.lines().count() <= 10,
        "ten lines, as the design says"
    );
    let path = fixtures().join(FIXTURES.last().expect("one"));
    let Some(said) = Script::code(program).arg(&path).run() else {
        return;
    };
    let mut said: Vec<&str> = said.lines().collect();
    said.sort_unstable();
    let reader = Store::open(&path)
        .expect("open")
        .reader()
        .expect("a reader");
    let mut ours = Vec::new();
    for id in reader.specs().expect("specs") {
        for record in records(&reader, &id) {
            for p in &record.parts {
                ours.push(format!(
                    "{} {} {} {:?} {}",
                    record.entry, p.part, p.dtype, p.shape, record.source
                ));
            }
        }
    }
    ours.sort();
    assert_eq!(said, ours);
}

#[test]
fn every_column_is_described() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/FORMAT.md");
    let text = fs::read_to_string(path).expect("schemas/FORMAT.md");
    let (_, section) = text.split_once("## `index/").expect("it is there");
    let (section, _) = section.split_once("## ").expect("and ends");
    let rows = section.lines().filter(|l| l.starts_with("| `"));
    let described: Vec<&str> = rows
        .flat_map(|row| {
            row.split('|')
                .nth(1)
                .unwrap_or_default()
                .split('`')
                .skip(1)
                .step_by(2)
        })
        .collect();
    let part = crate::store_util::files(&fixtures(), ".parquet").remove(0);
    let file = fs::File::open(part).expect("there");
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file)
        .expect("sound");
    let columns: Vec<String> = reader
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().clone())
        .collect();
    assert_eq!(described, columns);
}
