//! What the store promises when nothing goes wrong, and what it refuses.

use std::fs;
use std::sync::Arc;

use plumb::digest::Fingerprint;
use plumb::monitor::Silent;
use plumb::store::{Error, Lacking, NewEntry, Store, TensorBytes};

use crate::store_util::{
    Fault, Faulty, add, copy_dir, entry, files, put, readable, reads_back, records, scratch, spec,
};
use crate::util::listing;

#[test]
fn what_was_put_reads_back_and_is_seen_only_after_the_commit() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("a/b/store")).expect("new");
    let reader = store.reader().expect("a reader");
    let mut writer = store.writer().expect("a writer");
    put(&mut writer, 1, &["one", "two", "one"]).expect("fine entries");
    assert_eq!(
        writer.pending_entries(),
        2,
        "the same entry twice waits once"
    );
    assert!(writer.pending_bytes() > 0);
    reader.refresh().expect("refresh");
    assert!(!reads_back(&reader, 1, "one"));
    let stats = writer.commit().expect("commit");
    assert_eq!((stats.entries, stats.index_parts), (2, 1));
    assert_eq!(writer.commit().expect("nothing to do").entries, 0);
    assert!(
        !reads_back(&reader, 1, "one"),
        "a reader sees what it saw when opened"
    );
    reader.refresh().expect("refresh");
    assert!(reads_back(&reader, 1, "one") && reads_back(&reader, 1, "two"));
    assert!(
        !reads_back(&reader, 2, "one"),
        "another spec is another entry"
    );

    let (id, json) = spec(1);
    assert_eq!(reader.specs().expect("specs"), [id]);
    assert_eq!(reader.spec_json(&id).expect("spec"), Some(json));
    assert_eq!(reader.entries(&id).len(), 2);
    let put = entry(&id, "two");
    let record = reader
        .record(&id, &put.entry)
        .expect("record")
        .expect("there");
    assert_eq!((record.source.as_str(), record.tokens), ("two", put.tokens));
    let parts: Vec<_> = record.parts.iter().map(|p| p.part.as_str()).collect();
    assert_eq!(parts, ["hidden", "pooled"]);
    assert!(
        record
            .parts
            .iter()
            .all(|p| p.summary.non_finite == 0 && p.summary.rms > 0.0)
    );
}

#[test]
fn full_packs_go_to_disk_early_and_every_entry_lands_whole_in_one() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let mut writer = store.writer().expect("a writer");
    writer.set_pack_limit_bytes(16 << 10);
    let captions: Vec<String> = (0..50).map(|i| format!("caption {i}")).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    put(&mut writer, 1, &captions).expect("fine entries");
    assert!(files(dir.path(), ".safetensors").len() > 3, "several packs");
    assert_eq!(
        files(dir.path(), ".parquet").len(),
        0,
        "and no row before the commit"
    );
    writer.commit().expect("commit");
    assert_eq!(files(dir.path(), ".parquet").len(), 1);
    assert_eq!(readable(&store, 1, &captions), captions);
    for pack in files(dir.path(), ".safetensors") {
        assert!(fs::metadata(&pack).expect("there").len() <= 16 << 10);
        let bytes = fs::read(&pack).expect("there");
        let tensors =
            safetensors::SafeTensors::deserialize(&bytes).expect("the official reader takes it");
        assert_eq!(tensors.len() % 2, 0, "both parts of each entry");
    }
}

#[test]
fn what_cannot_be_stored_is_refused_with_its_caption_and_part() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let (id, json) = spec(1);
    let mut writer = store.writer().expect("a writer");
    let unknown_spec = writer
        .put(entry(&id, "x"))
        .expect_err("no spec yet")
        .to_string();
    assert!(
        unknown_spec.contains("spec to be put first"),
        "{unknown_spec}"
    );
    assert!(writer.put_spec(&id, b"{}").is_err(), "another fingerprint");
    writer.put_spec(&id, &json).expect("its own");

    let mut check = |change: &dyn Fn(&mut NewEntry), expected: &[&str]| {
        let mut new = entry(&id, "a red square");
        change(&mut new);
        let said = writer.put(new).expect_err("refused").to_string();
        for words in expected.iter().chain(&[id.to_string().as_str()]) {
            assert!(said.contains(words), "`{words}` is not in: {said}");
        }
    };
    let nan = TensorBytes::from_f32(&[2, 2], &[0.0, f32::NAN, f32::INFINITY, 1.0]);
    check(
        &|e| e.parts[1].1 = nan.clone(),
        &[
            "a red square",
            "part hidden",
            "2 that are NaN or infinite among 4",
        ],
    );
    check(
        &|e| e.parts[0].1.shape = vec![7],
        &["part pooled", "28 bytes", "found 24"],
    );
    check(
        &|e| e.parts[0].1.shape = vec![usize::MAX, 9],
        &["part pooled"],
    );
    check(&|e| e.parts.clear(), &["1 to 16 parts"]);
    check(
        &|e| e.parts[0].0 = "hidden".to_owned(),
        &["different names"],
    );
    check(
        &|e| e.parts[0].0 = "Pool/ed".to_owned(),
        &["Pool/ed", "lower-case"],
    );
    check(
        &|e| e.entry = Fingerprint::from_bytes([7; 32]),
        &["key record"],
    );
    check(
        &|e| e.key["spec"] = "another".into(),
        &["key record", "member `spec`"],
    );
    check(
        &|e| e.source = "x".repeat(300_000),
        &["caption bytes", "xxx..."],
    );
    assert_eq!(writer.commit().expect("nothing waits").entries, 0);
    assert_eq!(files(dir.path(), ".parquet").len(), 0);
}

#[test]
fn only_a_store_or_an_empty_folder_is_opened() {
    let dir = scratch();
    let said = Store::open(&dir.path().join("none"))
        .err()
        .expect("nothing there")
        .to_string();
    assert!(said.contains("no such folder"), "{said}");
    fs::write(dir.path().join("holiday.jpg"), "x").expect("write");
    for result in [Store::open(dir.path()), Store::open_or_create(dir.path())] {
        let said = result.err().expect("not a store").to_string();
        assert!(said.contains("holds no store.json"), "{said}");
    }
    let store = dir.path().join("store");
    Store::open_or_create(&store).expect("new");
    Store::open_or_create(&store).expect("again");
    fs::write(
        store.join("store.json"),
        r#"{"format":"plumb-store","version":7}"#,
    )
    .expect("write");
    let error = Store::open(&store).err().expect("too new");
    assert!(matches!(error, Error::NewerFormat { found: 7, .. }));
    assert!(error.to_string().contains("use a newer plumb"), "{error}");
    assert!(
        Store::rebuild_index(&store, &Silent).is_err(),
        "nor is it touched"
    );
    assert!(Store::check(&store, false, &Silent).is_err());
}

#[test]
fn a_store_that_may_not_be_written_is_read_and_left_alone() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["one"]).expect("add");
    let before = listing(dir.path());
    let disk = Arc::new(Faulty::new(Fault::ReadOnly));
    let store = Store::open_with(dir.path(), disk.clone()).expect("open");
    assert_eq!(readable(&store, 1, &["one"]), ["one"]);
    store.stats().expect("stats");
    assert_eq!(disk.steps(), 0, "reading changes nothing");
    let said = store.writer().err().expect("read-only").to_string();
    assert!(
        said.contains("lock") && said.contains("can still be read"),
        "{said}"
    );
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn two_writers_at_once_lose_nothing() {
    let dir = scratch();
    let captions: Vec<String> = (0..60).map(|i| format!("caption {i}")).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    // Each adds two thirds, so a third is put twice.
    let path = dir.path();
    std::thread::scope(|scope| {
        for some in [&captions[..40], &captions[20..]] {
            scope.spawn(move || {
                let store = Store::open_or_create(path).expect("either makes it");
                for batch in some.chunks(7) {
                    add(&store, 1, batch).expect("add");
                }
            });
        }
    });
    let store = Store::open(dir.path()).expect("open");
    assert_eq!(readable(&store, 1, &captions), captions);
    let report = Store::check(dir.path(), true, &Silent).expect("check");
    assert_eq!((report.problems, report.entries), (vec![], 60));
    assert_eq!(
        store.stats().expect("stats").specs[&spec(1).0.to_string()].duplicate_entries,
        20
    );
}

#[test]
fn a_pack_that_shows_up_late_is_found_later() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    add(&store, 1, &["one"]).expect("add");
    let pack = files(dir.path(), ".safetensors").remove(0);
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&pack, &elsewhere).expect("hide");
    let reader = store.reader().expect("a reader");
    let (id, _) = spec(1);
    assert!(
        !reader.contains(&id, &entry(&id, "one").entry),
        "a row without its pack is no entry"
    );
    assert!(
        reader.problems()[0].what.contains("1 entry lost"),
        "{:?}",
        reader.problems()
    );
    fs::rename(&elsewhere, &pack).expect("show");
    reader.refresh().expect("refresh");
    assert!(reads_back(&reader, 1, "one") && reader.problems().is_empty());
}

#[test]
fn a_run_names_its_entries_whatever_their_order() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let (id, _) = spec(1);
    add(&store, 1, &["a", "b"]).expect("add");
    let entries: Vec<_> = ["b", "a", "b"]
        .iter()
        .map(|c| (id, entry(&id, c).entry))
        .collect();
    let digest = store
        .write_run(
            "cats",
            &entries,
            serde_json::json!({"steps": 3}),
            Lacking::Refuse,
        )
        .expect("write");
    let run = store.run("cats").expect("read");
    assert_eq!(
        (run.num_entries(), run.digest, &run.extra["steps"]),
        (2, digest, &3.into())
    );
    let reversed: Vec<_> = entries.iter().rev().copied().collect();
    assert_eq!(
        store
            .write_run(
                "cats",
                &reversed,
                serde_json::json!({"steps": 3}),
                Lacking::Refuse
            )
            .expect("write"),
        digest
    );
    assert_eq!(store.runs().expect("runs"), ["cats"]);
    for bad in ["", ".cats", "a/b", "..", "caf\u{e9}"] {
        assert!(
            store
                .write_run(bad, &entries, serde_json::Value::Null, Lacking::Refuse)
                .is_err(),
            "{bad}"
        );
    }
}

#[test]
fn many_small_index_parts_are_merged_and_a_reader_beside_does_not_notice() {
    let dir = scratch();
    let store = Store::open_or_create(dir.path()).expect("new");
    let captions: Vec<String> = (0..40).map(|i| format!("caption {i}")).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    for one in captions.chunks(1) {
        add(&store, 1, one).expect("add");
    }
    let reader = store.reader().expect("a reader");
    assert_eq!(files(dir.path(), ".parquet").len(), 40);
    let other = store.writer().expect("another writer");
    store.writer().expect("a writer").finish().expect("finish");
    assert_eq!(
        files(dir.path(), ".parquet").len(),
        40,
        "not while another writes"
    );
    drop(other);
    store.writer().expect("a writer").finish().expect("finish");
    assert_eq!(files(dir.path(), ".parquet").len(), 1);
    assert!(captions.iter().all(|c| reads_back(&reader, 1, c)));
    assert_eq!(readable(&store, 1, &captions), captions);
    assert_eq!(
        Store::check(dir.path(), true, &Silent)
            .expect("check")
            .problems,
        []
    );
}

#[test]
fn the_index_made_anew_from_packs_is_the_index() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("store")).expect("new");
    for batch in [["one", "two"], ["three", "four"]] {
        for number in [1, 2] {
            add(&store, number, &batch).expect("add");
        }
    }
    let bare = dir.path().join("bare");
    copy_dir(&store.path().join("packs"), &bare.join("packs"));
    let report = Store::rebuild_index(&bare, &Silent).expect("rebuild");
    assert!(report.store_json_written && report.problems.is_empty());
    assert_eq!(
        (report.packs, report.entries, report.specs_written),
        (4, 8, 2)
    );
    let (old, new) = (
        store.reader().expect("old"),
        Store::open(&bare).expect("open").reader().expect("new"),
    );
    assert_eq!(old.specs().expect("specs"), new.specs().expect("specs"));
    for number in [1, 2] {
        let (id, json) = spec(number);
        assert_eq!(records(&old, &id), records(&new, &id));
        assert_eq!(new.spec_json(&id).expect("spec"), Some(json));
    }
    assert_eq!(
        Store::check(&bare, true, &Silent).expect("check").problems,
        []
    );
}
