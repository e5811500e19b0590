//! What an earlier plumb left behind stays good: `tests/fixtures/run-v1` is a store and a checkpoint of a training that was
//! stopped half way, written by the version of 26 November 2026.

use std::path::Path;

use crate::util::plumb;
use crate::world::tiny_sd3;

/// The mean loss of the last two steps, as that version went on to.
const LOSS: f64 = 1.6612;

/// It read captions with what is now one of several implementations, and no longer the reference's.
const DEVIATE: &str = "[recipe.deviate]
clip_l.tokens.implementation = 'transformers_5'
clip_g.tokens.implementation = 'transformers_5'
t5.tokens.implementation = 'transformers_5'
";

/// A copy of what that version left, and its Experiment as this version means the same.
fn old_run() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run-v1");
    copy(&old, folder.path());
    let experiment = std::fs::read_to_string(old.join("experiment.toml")).expect("text");
    let model = tiny_sd3().display().to_string();
    let text = format!("{}\n{DEVIATE}", experiment.replace("MODEL", &model));
    (folder, text)
}

#[test]
fn a_store_is_found_whole_and_a_run_goes_on() {
    let (folder, text) = old_run();
    std::fs::write(folder.path().join("run.toml"), text).expect("writes");

    plumb(folder.path(), &["store", "check", "--read-data", "store"]).expect(0);
    let encoded = plumb(folder.path(), &["--json", "encode", "run.toml"]).expect(0);
    let encoded = encoded.json();
    for captions in encoded["captions"].as_array().expect("encoders") {
        assert_eq!(
            (&captions["encoded"], &captions["present"]),
            (&0.into(), &4.into())
        );
    }
    assert_eq!(encoded["pictures"]["encoded"], 0);

    let trained = plumb(folder.path(), &["--json", "train", "run.toml"])
        .expect(0)
        .says("carries no digest");
    let trained = trained.json();
    assert_eq!(
        (&trained["resumed_from"], &trained["step"]),
        (&2.into(), &4.into())
    );
    let loss = trained["loss"].as_f64().expect("a loss");
    assert!((loss - LOSS).abs() < 1e-3, "{loss}, expected {LOSS}");
}

/// Their fingerprint alone tells how long such a run was to be, where it is at its end.
#[test]
fn a_run_that_an_earlier_version_ended_is_made_longer() {
    let (folder, text) = old_run();
    // It was to have 4 steps, and has 2.
    let write = |text: &str| std::fs::write(folder.path().join("run.toml"), text).expect("writes");
    write(&text.replace("steps = 4", "steps = 5"));
    plumb(folder.path(), &["train", "run.toml"])
        .expect(1)
        .says("this checkpoint's version did not keep")
        .says("--restart");
    write(&text);
    plumb(folder.path(), &["train", "run.toml"]).expect(0);
    write(&text.replace("steps = 4", "steps = 5"));
    plumb(folder.path(), &["train", "run.toml"])
        .expect(0)
        .says("going on after step 4, to 5 steps instead of 4");
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).expect("a folder");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copies");
        }
    }
}
