//! Packs and index parts made to do harm: each costs itself and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow_schema::{Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use plumb::digest::Digest;
use plumb::monitor::Silent;
use plumb::store::Store;
use proptest::prelude::*;

use crate::store_util::{add, copy_dir, files, readable, scratch, spec};

/// A store with `good` under spec 1, and `bad` under spec 2, for its files to be replaced.
fn scene() -> (tempfile::TempDir, Store) {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["good"]).expect("add");
    add(&store, 2, &["bad"]).expect("add");
    (dir, store)
}

/// Puts `bytes` as a pack, under the name that they must have.
fn plant_pack(store: &Path, bytes: &[u8]) -> PathBuf {
    let digest = Digest::of(bytes).to_string();
    let dir = store.join("packs").join(&digest[..2]);
    fs::create_dir_all(&dir).expect("create");
    let path = dir.join(format!("{digest}.safetensors"));
    fs::write(&path, bytes).expect("write");
    path
}

/// Puts `bytes` in the place of the index of spec 2, under the name that they must have.
fn plant_index(store: &Path, bytes: &[u8]) {
    let dir = store.join("index").join(spec(2).0.to_string());
    for old in files(&dir, ".parquet") {
        fs::remove_file(old).expect("remove");
    }
    fs::write(dir.join(format!("{}.parquet", Digest::of(bytes))), bytes).expect("write");
}

fn index_bytes(store: &Path) -> Vec<u8> {
    let dir = store.join("index").join(spec(2).0.to_string());
    fs::read(&files(&dir, ".parquet")[0]).expect("there")
}

/// A safetensors file with this header and so many bytes after it.
fn framed(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn hostile_packs() -> Vec<(&'static str, Vec<u8>)> {
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let mut huge = framed("{}", 16);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut large = framed("{}", 16);
    large[..8].copy_from_slice(&90_000_000u64.to_le_bytes());
    let two = |a: &str, b: &str| framed(&format!(r#"{{"a":{a},"b":{b}}}"#), 16);
    vec![
        ("empty", vec![]),
        ("a header longer than anything", huge),
        ("a header longer than the file", large),
        ("no JSON", framed("hello, world", 0)),
        ("no UTF-8", b"\x04\0\0\0\0\0\0\0\xff\xfe\xff\xfe".to_vec()),
        ("nested without end", framed(&"[".repeat(1 << 20), 0)),
        (
            "overlapping",
            two(&tensor("[2]", "[0,8]"), &tensor("[2]", "[4,12]")),
        ),
        (
            "a hole",
            two(&tensor("[2]", "[0,8]"), &tensor("[1]", "[12,16]")),
        ),
        (
            "beyond the end",
            two(&tensor("[2]", "[0,8]"), &tensor("[200]", "[8,808]")),
        ),
        (
            "backwards",
            two(&tensor("[2]", "[8,0]"), &tensor("[2]", "[8,16]")),
        ),
        (
            "a size that overflows",
            two(
                &tensor("[4294967296,4294967296]", "[0,8]"),
                &tensor("[2]", "[8,16]"),
            ),
        ),
        (
            "offsets that overflow",
            framed(
                &format!(r#"{{"a":{}}}"#, tensor("[2]", "[0,18446744073709551615]")),
                8,
            ),
        ),
        (
            "a count that does not fit",
            two(&tensor("[3]", "[0,8]"), &tensor("[2]", "[8,16]")),
        ),
        (
            "not ours",
            two(&tensor("[2]", "[0,8]"), &tensor("[2]", "[8,16]")),
        ),
        (
            "no metadata worth the name",
            framed(
                r#"{"__metadata__":{"plumb.version":"x","plumb.spec":"y"}}"#,
                0,
            ),
        ),
        (
            "from the future",
            framed(r#"{"__metadata__":{"plumb.version":"99"}}"#, 0),
        ),
    ]
}

#[test]
fn hostile_packs_are_told_of_and_cost_only_themselves() {
    let (dir, store) = scene();
    for (what, bytes) in hostile_packs() {
        let copy = scratch();
        copy_dir(dir.path(), copy.path());
        let path = plant_pack(copy.path(), &bytes);
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        let report = Store::check(copy.path(), true, &Silent).expect("check");
        assert_eq!(report.problems.len(), 1, "{what}: {:?}", report.problems);
        assert!(report.problems[0].file.ends_with(&name), "{what}");
        let report = Store::rebuild_index(copy.path(), &Silent).expect("rebuild");
        assert_eq!(
            (report.entries, report.problems.len()),
            (2, 1),
            "{what}: {:?}",
            report.problems
        );
        let here = Store::open(copy.path()).expect("open");
        assert_eq!(readable(&here, 1, &["good"]), ["good"], "{what}");
        assert_eq!(readable(&here, 2, &["bad"]), ["bad"], "{what}");
    }
    drop(store);
}

/// The index part in `bytes` with one column replaced, its metadata kept.
fn with_column(bytes: &[u8], name: &str, column: &dyn Fn(&ArrayRef) -> ArrayRef) -> Vec<u8> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes.to_vec()))
        .expect("sound");
    let kept: Vec<KeyValue> = builder
        .metadata()
        .file_metadata()
        .key_value_metadata()
        .expect("some")
        .iter()
        .filter(|kv| kv.key.starts_with("plumb."))
        .cloned()
        .collect();
    let batch = builder
        .build()
        .expect("sound")
        .next()
        .expect("one")
        .expect("sound");
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, old) in batch.schema().fields().iter().zip(batch.columns()) {
        let new = if field.name() == name {
            column(old)
        } else {
            old.clone()
        };
        fields.push(Field::new(
            field.name(),
            new.data_type().clone(),
            new.null_count() > 0,
        ));
        columns.push(new);
    }
    let schema = Arc::new(Schema::new(fields));
    let properties = WriterProperties::builder()
        .set_key_value_metadata(Some(kept))
        .build();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties)).expect("a writer");
    writer
        .write(&RecordBatch::try_new(schema, columns).expect("columns that fit"))
        .expect("write");
    writer.into_inner().expect("write")
}

fn u64s(value: u64) -> impl Fn(&ArrayRef) -> ArrayRef {
    move |old| Arc::new(UInt64Array::from(vec![value; old.len()]))
}

fn u32s(value: u32) -> impl Fn(&ArrayRef) -> ArrayRef {
    move |old| Arc::new(UInt32Array::from(vec![value; old.len()]))
}

fn texts(value: &str) -> impl Fn(&ArrayRef) -> ArrayRef {
    move |old| Arc::new(StringArray::from(vec![value; old.len()]))
}

type Change<'a> = Box<dyn Fn(&ArrayRef) -> ArrayRef + 'a>;

fn hostile_indexes(sound: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut made = vec![
        ("empty".to_owned(), vec![]),
        (
            "noise".to_owned(),
            b"PAR1 this is no Parquet file PAR1".to_vec(),
        ),
        ("cut".to_owned(), sound[..sound.len() / 2].to_vec()),
    ];
    let mut footer = sound.to_vec();
    let at = footer.len() - 8;
    footer[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    made.push(("a footer longer than the file".to_owned(), footer));
    let elsewhere = "0".repeat(64);
    let changes: Vec<(&str, Change<'_>)> = vec![
        ("offset", Box::new(u64s(u64::MAX))),
        ("offset", Box::new(u64s(1 << 40))),
        ("length", Box::new(u64s(u64::MAX))),
        ("length", Box::new(u64s(0))),
        ("parts", Box::new(u32s(0))),
        ("parts", Box::new(u32s(1))),
        ("parts", Box::new(u32s(3))),
        ("parts", Box::new(u32s(u32::MAX))),
        ("parts", Box::new(u64s(2))),
        ("part", Box::new(texts("hidden"))),
        ("entry", Box::new(texts("no id"))),
        ("pack", Box::new(texts("../../etc/passwd"))),
        ("pack", Box::new(texts(&elsewhere))),
        ("digest", Box::new(texts(&elsewhere))),
        ("dtype", Box::new(texts("F999"))),
        ("dtype", Box::new(texts("I64"))),
        ("shape", Box::new(u64s(3))),
        ("tokens", Box::new(texts("1 2 3"))),
        (
            "token_count",
            Box::new(|old| Arc::new(UInt32Array::from(vec![None; old.len()]))),
        ),
    ];
    for (i, (name, change)) in changes.iter().enumerate() {
        made.push((
            format!("column {name}, change {i}"),
            with_column(sound, name, change),
        ));
    }
    made
}

#[test]
fn hostile_index_parts_are_told_of_and_cost_only_themselves() {
    let (dir, _) = scene();
    let sound = index_bytes(dir.path());
    let rewritten = with_column(&sound, "no such column", &|old| old.clone());
    let store = Store::open(dir.path()).expect("open");
    plant_index(dir.path(), &rewritten);
    assert_eq!(
        readable(&store, 2, &["bad"]),
        ["bad"],
        "a rewritten part is a part"
    );
    for (what, bytes) in hostile_indexes(&sound) {
        plant_index(dir.path(), &bytes);
        assert_eq!(readable(&store, 1, &["good"]), ["good"], "{what}");
        assert_eq!(readable(&store, 2, &["bad"]), [""; 0], "{what}");
        let report = Store::check(dir.path(), true, &Silent).expect("check");
        assert!(!report.problems.is_empty(), "{what}");
        store.stats().expect("stats");
    }
    Store::rebuild_index(dir.path(), &Silent).expect("rebuild");
    assert_eq!(readable(&store, 2, &["bad"]), ["bad"]);
}

/// Such a part lists its entries, so that nothing else says what mends it.
#[test]
fn a_part_that_is_wrong_beside_its_list_of_entries_says_what_mends_it() {
    let (dir, store) = scene();
    let sound = index_bytes(dir.path());
    plant_index(dir.path(), &with_column(&sound, "dtype", &texts("F999")));
    let reader = store.reader().expect("a reader");
    let (of, entries) = (spec(2).0, reader.entries(&spec(2).0));
    assert_eq!(entries.len(), 1);
    for said in [
        reader.truncated(&of, &entries).map(|_| ()),
        reader.record(&of, &entries[0]).map(|_| ()),
        reader.records_of(&of, &entries).map(|_| ()),
        reader.each_record(&of, &mut |_| ()),
    ] {
        let said = said.expect_err("no such type").to_string();
        assert!(said.contains("column dtype"), "{said}");
        assert!(said.contains("`plumb store rebuild-index`"), "{said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bytes, under a name that vouches for them: never a panic, never a wrong payload.
    #[test]
    fn no_change_of_an_index_part_or_pack_does_more_than_lose_it(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (dir, store) = scene();
        let mutate = |mut bytes: Vec<u8>| {
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        };
        plant_index(dir.path(), &mutate(index_bytes(dir.path())));
        for pack in files(dir.path(), ".safetensors") {
            plant_pack(dir.path(), &mutate(fs::read(pack).expect("there")));
        }
        prop_assert_eq!(readable(&store, 1, &["good"]), ["good"]);
        let reader = store.reader().expect("a reader");
        for entry in reader.entries(&spec(2).0) {
            // The index vouches for itself, so a changed shape may well fit the bytes; that there is an answer is all.
            let _ = reader.get(&spec(2).0, &entry);
        }
        Store::check(dir.path(), true, &Silent).expect("check");
        Store::rebuild_index(dir.path(), &Silent).expect("rebuild");
        prop_assert_eq!(readable(&store, 1, &["good"]), ["good"]);
        prop_assert_eq!(readable(&store, 2, &["bad"]), ["bad"]);
    }
}
