//! A disk that is really full: a tiny tmpfs in a namespace of its own, where the system allows that. Where it
//! does not, `store_crash` has the same with faults injected at every step.

use std::path::Path;
use std::process::Command;

use plumb::monitor::Silent;
use plumb::store::Store;

use crate::store_util::{put, readable, scratch};

const STORE: &str = "PLUMB_TEST_FULL_DISK";

#[test]
fn a_disk_that_is_really_full_loses_nothing() {
    let dir = scratch();
    let script = "mount -t tmpfs -o size=768k tmpfs \"$1\" || exit 77; exec \"$2\" store_full_disk::victim --exact";
    let exe = std::env::current_exe().expect("this test");
    let output = Command::new("unshare")
        .args(["-r", "-m", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(exe)
        .env(STORE, dir.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}", String::from_utf8_lossy(&output.stdout))
        }
        other => println!("skipped: no tmpfs of our own can be had here: {other:?}"),
    }
}

/// Runs where the tmpfs is; else there is nothing to test.
#[test]
fn victim() {
    let Ok(path) = std::env::var(STORE) else {
        return;
    };
    let path = Path::new(&path).join("store");
    let store = Store::open_or_create(&path).expect("room enough");
    let filler = path.parent().expect("inside").join("filler");
    std::fs::write(&filler, vec![1; 256 << 10]).expect("room enough");
    let captions: Vec<String> = (0..2000).map(|i| format!("caption {i}")).collect();
    let mut writer = store.writer().expect("a writer");
    let mut done = Vec::new();
    let mut failed = None;
    for batch in captions.chunks(20) {
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        let result = put(&mut writer, 1, &batch).and_then(|()| writer.commit().map(|_| ()));
        if let Err(e) = result {
            failed = Some((e, batch));
            break;
        }
        done.extend(batch);
    }
    let (error, batch) = failed.expect("768 KiB are full before 2000 entries");
    assert!(
        error.is_full_disk() && error.to_string().contains("free some space"),
        "{error}"
    );
    assert!(!done.is_empty());
    assert_eq!(readable(&store, 1, &done), done);
    let report = Store::check(&path, true, &Silent).expect("check");
    assert_eq!((report.problems, report.temporary_files), (vec![], 0));
    std::fs::remove_file(&filler).expect("make room");
    writer.commit().expect("there is room again");
    assert_eq!(readable(&store, 1, &batch), batch);
    println!("full after {} entries, then mended", done.len());
}
