//! `plumb store`: exit statuses and words.

use std::fs;

use plumb::store::{Lacking, Store};

use crate::store_util::{add, entry, files, scratch, spec};
use crate::util::plumb;

#[test]
fn a_sound_store_is_called_sound_and_measured() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("store")).expect("new");
    add(&store, 1, &["a", "a caption of more than twenty letters"]).expect("add");
    let (id, _) = spec(1);
    store
        .write_run(
            "cats",
            &[(id, entry(&id, "a").entry)],
            serde_json::json!({}),
            Lacking::Refuse,
        )
        .expect("run");
    plumb(dir.path(), &["store", "check", "store"])
        .expect(0)
        .says("store: sound in structure")
        .says("2 entries in 1 pack");
    plumb(dir.path(), &["store", "check", "--read-data", "store"])
        .expect(0)
        .says("sound, every byte read");
    let stats = plumb(dir.path(), &["store", "stats", "store"]).expect(0);
    stats
        .says(&id.short())
        .says("2 entries")
        .says("BF16 F32")
        .says("1 with a cut caption")
        .says("cats: 1 entry");
    let json = plumb(dir.path(), &["--json", "store", "stats", "store"])
        .expect(0)
        .json();
    assert_eq!(json["specs"][id.to_string()]["entries"], 2);
    let json = plumb(dir.path(), &["store", "check", "store", "--json"])
        .expect(0)
        .json();
    assert_eq!(
        (&json["entries"], &json["problems"]),
        (&2.into(), &serde_json::json!([]))
    );
}

#[test]
fn damage_is_told_mended_and_then_gone() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("store")).expect("new");
    add(&store, 1, &["a", "b"]).expect("add");
    let pack = files(dir.path(), ".safetensors").remove(0);
    let mut bytes = fs::read(&pack).expect("there");
    *bytes.last_mut().expect("some") ^= 1;
    fs::write(&pack, bytes).expect("write");
    plumb(dir.path(), &["store", "check", "store"]).expect(0);
    plumb(dir.path(), &["store", "check", "--read-data", "store"])
        .expect(3)
        .says("1 problem")
        .says("has the digest")
        .says("rebuild-index");
    plumb(dir.path(), &["store", "rebuild-index", "store"])
        .expect(3)
        .says("the index now has 1 entry")
        .says("left out; encoding again");
    plumb(dir.path(), &["store", "check", "--read-data", "store"])
        .expect(0)
        .says("1 damaged pack set aside");
}

#[test]
fn gc_says_what_it_does_and_refuses_to_remove_everything() {
    let dir = scratch();
    let store = Store::open_or_create(&dir.path().join("store")).expect("new");
    add(&store, 1, &["a", "b"]).expect("add");
    plumb(dir.path(), &["store", "gc", "store"])
        .expect(1)
        .says("error: no run")
        .says("--without-runs");
    plumb(dir.path(), &["store", "gc", "store", "--without-runs"])
        .expect(0)
        .says("0 entries removed, 2 kept");
    let args = [
        "store",
        "gc",
        "store",
        "--without-runs",
        "--grace-hours",
        "0",
    ];
    plumb(dir.path(), &[&args[..], &["--dry-run"]].concat())
        .expect(0)
        .says("2 entries would go")
        .says("nothing was changed");
    assert_eq!(files(dir.path(), ".safetensors").len(), 1);
    plumb(dir.path(), &args).expect(0).says("2 entries removed");
    assert_eq!(files(dir.path(), ".safetensors").len(), 0);
}

#[test]
fn what_is_no_store_gets_one_clear_line() {
    let dir = scratch();
    for command in ["check", "rebuild-index", "gc", "stats"] {
        let ran = plumb(dir.path(), &["store", command, "nowhere"])
            .expect(1)
            .says("error: no store at nowhere");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        fs::create_dir_all(dir.path().join("new")).expect("create");
        fs::write(
            dir.path().join("new/store.json"),
            r#"{"format":"plumb-store","version":2}"#,
        )
        .expect("write");
        plumb(dir.path(), &["store", command, "new"])
            .expect(1)
            .says("use a newer plumb")
            .says("format version 2");
    }
}
