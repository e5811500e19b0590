//! Links, foreign files and misnamed ones in a store: nothing that the store did not write is touched.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::store::{GcOptions, Lacking, Store};

use crate::store_util::{add, entry, files, readable, scratch, spec};
use crate::util::listing;

const ALL: [&str; 3] = ["a", "b", "c"];

fn options() -> GcOptions {
    GcOptions {
        now: SystemTime::now() + Duration::from_secs(1_000_000),
        grace: Duration::ZERO,
        dry_run: false,
        without_runs: false,
    }
}

fn store(path: &Path) -> Store {
    let store = Store::open_or_create(path).expect("new");
    for caption in ALL {
        add(&store, 1, &[caption]).expect("add");
    }
    let (id, _) = spec(1);
    let used = [(id, entry(&id, "a").entry)];
    let extra = serde_json::json!({});
    (store.write_run("a", &used, extra, Lacking::Refuse)).expect("run");
    store
}

#[test]
fn gc_follows_no_link_and_takes_no_foreign_file() {
    let dir = scratch();
    let path = dir.path().join("store");
    let store = store(&path);
    let outside = dir.path().join("outside");
    let id = spec(9).0;
    for folder in ["", "sub", "aa"] {
        let folder = outside.join(folder);
        fs::create_dir_all(&folder).expect("a folder");
        for name in [
            ".tmp-1-0".to_owned(),
            ".tmp-1-0-held".to_owned(),
            format!("{}.safetensors", "a".repeat(64)),
            format!("{}.safetensors.damaged", "a".repeat(64)),
            format!("{}.parquet", "a".repeat(64)),
            format!("{id}.json.damaged"),
        ] {
            fs::write(folder.join(name), "precious").expect("written");
        }
    }
    symlink(&outside, path.join("packs/aa")).expect("a link");
    symlink(&outside, path.join("packs/backup")).expect("a link");
    symlink(&outside, path.join("packs/a+")).expect("a link");
    symlink(outside.join("sub"), path.join("index/old")).expect("a link");
    fs::remove_dir_all(path.join("specs")).expect("removed");
    fs::create_dir(path.join("mine")).expect("a folder");
    for file in [
        "mine/.tmp-1-0",
        ".tmp-important",
        "packs/.tmp-1-0",
        "runs/.tmp-draft",
        "index/.tmp-1-0",
        "packs/notes.txt.safetensors.damaged",
        "runs/x.json.damaged",
    ] {
        fs::write(path.join(file), "precious").expect("written");
    }
    fs::create_dir(path.join("runs/.tmp-7-7")).expect("a folder of that name");
    symlink(outside.join(".tmp-1-0"), path.join("runs/.tmp-8-8")).expect("a link");
    symlink(&outside, path.join("specs")).expect("a link");
    let before = listing(dir.path());
    let report = store.gc(&options(), &Silent).expect("gc");
    assert_eq!(report.leftovers_removed, 0);
    let after = listing(dir.path());
    let gone: Vec<_> = before.iter().filter(|f| !after.contains(f)).collect();
    assert!(
        gone.iter()
            .all(|f| f.starts_with("store/packs/") || f.starts_with("store/index/")),
        "{gone:?}"
    );
    assert!(
        gone.iter()
            .all(|f| !f.contains("/aa/") && !f.contains("backup")),
        "{gone:?}"
    );
    assert_eq!(
        gone.len(),
        2 + 2,
        "two packs, and the index parts of both: {gone:?}"
    );
    for file in files(&outside, "") {
        assert_eq!(
            fs::read(&file).expect("there"),
            b"precious",
            "{}",
            file.display()
        );
    }
    assert_eq!(readable(&store, 1, &ALL), ["a"]);
}

/// Moves a folder out of the store and leaves a link to it.
fn move_out(folder: &Path, to: &Path) {
    fs::rename(folder, to).expect("moved");
    symlink(to, folder).expect("a link");
}

#[test]
fn a_store_whose_folders_are_links_is_read_and_written_and_loses_nothing_behind_them() {
    for folder in ["packs", "index", "one pack folder", "one spec"] {
        let dir = scratch();
        let path = dir.path().join("store");
        let here = store(&path);
        let first = |folder: &str| -> PathBuf {
            let folder = fs::read_dir(path.join(folder)).expect("there").next();
            folder.expect("one").expect("there").path()
        };
        let moved = match folder {
            "one pack folder" => first("packs"),
            "one spec" => first("index"),
            name => path.join(name),
        };
        let target = dir.path().join("elsewhere");
        move_out(&moved, &target);
        assert_eq!(readable(&here, 1, &ALL), ALL, "{folder}");
        let report = Store::check(&path, true, &Silent).expect("check");
        assert_eq!(report.problems, [], "{folder}");
        let before = listing(&target);
        here.gc(&options(), &Silent).expect("gc");
        assert_eq!(listing(&target), before, "{folder}");
        assert_eq!(readable(&here, 1, &["a"]), ["a"], "{folder}");
        add(&here, 1, &["d"]).expect("add");
        Store::rebuild_index(&path, &Silent).expect("rebuild");
        assert_eq!(readable(&here, 1, &["a", "d"]), ["a", "d"], "{folder}");
        let now = listing(&target);
        assert!(before.iter().all(|f| now.contains(f)), "{folder}");
    }
}

#[test]
fn a_store_may_itself_be_reached_by_a_link() {
    let dir = scratch();
    store(&dir.path().join("real"));
    let link = dir.path().join("link");
    symlink("real", &link).expect("a link");
    let here = Store::open(&link).expect("open");
    assert_eq!(here.gc(&options(), &Silent).expect("gc").entries_removed, 2);
    Store::rebuild_index(&link, &Silent).expect("rebuild");
    assert_eq!(readable(&here, 1, &ALL), ["a"]);
    assert_eq!(
        Store::check(&link, true, &Silent).expect("check").problems,
        []
    );
}

#[test]
fn a_spec_under_a_wrong_name_is_put_under_its_own() {
    let dir = scratch();
    let here = store(dir.path());
    let (id, json) = spec(1);
    let (other, other_json) = spec(2);
    let specs = dir.path().join("specs");
    let name = |spec| specs.join(format!("{spec}.json"));
    let wrong = spec(3).0;
    for (file, content) in [
        (name(wrong), other_json.as_slice()),
        (name(spec(4).0), b"no spec at all"),
        (name(id), b"damaged"),
    ] {
        fs::write(file, content).expect("written");
    }
    let problems = || {
        Store::check(dir.path(), true, &Silent)
            .expect("check")
            .problems
    };
    assert_eq!(problems().len(), 3);
    let report = Store::rebuild_index(dir.path(), &Silent).expect("rebuild");
    assert_eq!((report.specs_written, report.specs_set_aside), (2, 2));
    assert_eq!(problems(), []);
    let reader = here.reader().expect("a reader");
    for (spec, json) in [(id, json), (other, other_json)] {
        assert_eq!(reader.spec_json(&spec).expect("sound"), Some(json));
    }
    assert!(!name(wrong).exists());
    assert_eq!(files(dir.path(), ".json.damaged").len(), 2);
    here.gc(&options(), &Silent).expect("gc");
    assert_eq!(files(dir.path(), ".json.damaged").len(), 0);
}

#[test]
fn a_run_lists_only_what_is_there_and_any_change_of_it_is_seen() {
    let dir = scratch();
    let here = store(dir.path());
    let (id, _) = spec(1);
    let ids = ["a", "b", "not here"].map(|c| (id, entry(&id, c).entry));
    let extra = || serde_json::json!({"experiment": "exp.toml", "rate": 0.5});
    let refused = here.write_run("all", &ids, extra(), Lacking::Refuse);
    let said = refused.expect_err("one is not there").to_string();
    assert!(said.contains("lacks 1 of 3 entries"), "{said}");
    assert_eq!(here.runs().expect("runs"), ["a"]);
    here.write_run("all", &ids, extra(), Lacking::LeaveOut)
        .expect("written");
    assert_eq!(here.run("all").expect("read").num_entries(), 2);
    assert_eq!(
        Store::check(dir.path(), true, &Silent)
            .expect("check")
            .problems,
        []
    );

    let file = dir.path().join("runs/all.json");
    let sound = fs::read(&file).expect("there");
    for at in 0..sound.len() {
        for bit in [1, 4, 32] {
            let mut bytes = sound.clone();
            bytes[at] ^= bit;
            fs::write(&file, &bytes).expect("written");
            if let Ok(run) = here.run("all") {
                panic!("byte {at}, bit {bit}: {run:?}");
            }
        }
    }
    fs::write(&file, &sound).expect("written");
    fs::copy(&file, dir.path().join("runs/copy.json")).expect("copied");
    let said = here.run("copy").expect_err("another's").to_string();
    assert!(said.contains("field `id`"), "{said}");
    // As earlier versions wrote them: without a digest.
    let old = format!(
        r#"{{"entries":{{"{id}":["{}"]}},"extra":{{}},"id":"old","version":1}}"#,
        ids[0].1
    );
    fs::write(dir.path().join("runs/old.json"), old).expect("written");
    assert_eq!(here.run("old").expect("read").num_entries(), 1);
}
