//! Files that change: under a memory of what they held, and while they are read.

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use candle_core::Tensor;
use safetensors::Dtype;

use super::{Stored, TensorSlice, list, open, refusal, small, write};
use crate::digest::Digest;
use crate::nn::weights::{DigestMemo, Error, Weights};

fn used() -> Vec<(String, Vec<usize>)> {
    list(&[("block.0.w", &[2, 3])])
}

fn remembered(memo: &Path, weights: &Weights) -> Digest {
    let mut memo = DigestMemo::open(memo);
    memo.digest(weights, &used()).expect("there")
}

fn load(weights: &Weights) -> Result<Tensor, Error> {
    weights.get(&[2, 3], "block.0.w")
}

fn time_of(path: &Path) -> SystemTime {
    let metadata = std::fs::metadata(path).expect("there");
    metadata.modified().expect("a time")
}

fn set_time(path: &Path, time: SystemTime) {
    let file = File::options().append(true).open(path).expect("open");
    file.set_modified(time).expect("set");
}

/// Another number in the last tensor of a file, in place.
fn overwrite_end(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&7.0f32.to_le_bytes());
    std::fs::write(path, bytes).expect("written");
}

fn forge(memo: &Path, digest: &Digest) {
    let text = std::fs::read_to_string(memo).expect("UTF-8");
    let forged = text.replace(&digest.to_string(), &"0".repeat(64));
    std::fs::write(memo, forged).expect("written");
}

#[test]
fn a_digest_is_remembered_until_the_file_changes() {
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let memo = folder.path().join("deep").join("memo.json");
    let first = remembered(&memo, &open(&path));
    assert!(memo.is_file());

    // Asked again, not all of the file is read: a forged answer comes back.
    forge(&memo, &first);
    let weights = open(&path);
    let forged = remembered(&memo, &weights);
    assert_eq!(forged.to_string(), "0".repeat(64));
    assert!(
        weights.unused().is_empty(),
        "a remembered tensor counts as used"
    );

    // A change of time alone is enough to read again, and the old answer goes.
    let later = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    set_time(&path, later);
    assert_eq!(remembered(&memo, &open(&path)), first);
    let text = std::fs::read_to_string(&memo).expect("UTF-8");
    assert!(!text.contains(&"0".repeat(64)));

    // A damaged memory is an empty one.
    std::fs::write(&memo, "{").expect("written");
    assert_eq!(remembered(&memo, &open(&path)), first);
}

#[test]
fn another_content_of_the_same_length_and_time_is_seen() {
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let memo = folder.path().join("memo.json");
    let first = remembered(&memo, &open(&path));
    let time = time_of(&path);
    // In place, as rsync --inplace does.
    overwrite_end(&path);
    set_time(&path, time);
    let second = remembered(&memo, &open(&path));
    assert_ne!(second, first);
    // By another file under its name, as cp -p and rsync -a do.
    let other = folder.path().join("other.safetensors");
    std::fs::copy(&path, &other).expect("copied");
    overwrite_end(&other);
    let mut bytes = std::fs::read(&other).expect("read");
    let end = bytes.len();
    bytes[end - 8..end - 4].copy_from_slice(&8.0f32.to_le_bytes());
    std::fs::write(&other, bytes).expect("written");
    set_time(&other, time);
    std::fs::rename(&other, &path).expect("renamed");
    let third = remembered(&memo, &open(&path));
    assert!(third != first && third != second);
}

/// As a bit that fell over on the drive: no time tells it.
#[test]
fn a_sample_sees_the_header_and_places_all_over_the_file() {
    let folder = tempfile::tempdir().expect("folder");
    let numbers = 3_000_000usize;
    let path = write(
        folder.path(),
        "large.safetensors",
        &[("w", Dtype::F32, vec![numbers], vec![0; 4 * numbers])],
    );
    let bytes = std::fs::read(&path).expect("read");
    let sample = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        open(&path).shared.files[0].sample().expect("read")
    };
    let (length, start) = (bytes.len(), bytes.len() - 4 * numbers);
    let name = bytes.windows(3).position(|w| w == b"\"w\"").expect("there");
    let mut samples = vec![sample(name + 1), sample(start), sample(length - 1)];
    // In every eighth of it.
    samples.extend((0..8).map(|eighth| {
        let (from, until) = (eighth * length / 8, (eighth + 1) * length / 8);
        let places = super::super::file::sample_places(start, length);
        let place = places
            .iter()
            .skip(1)
            .find(|p| from <= p.start && p.end <= until);
        sample(place.expect("a place").start + 1)
    }));
    let count = samples.len();
    samples.sort();
    samples.dedup();
    assert_eq!(samples.len(), count);
}

#[test]
fn what_is_loaded_is_what_its_digest_says() {
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let memo = folder.path().join("memo.json");
    let first = remembered(&memo, &open(&path));
    let checked = |weights: &Weights, digest: &Digest| {
        weights.load_checked(&used(), digest, || load(weights))
    };
    let weights = open(&path);
    checked(&weights, &remembered(&memo, &weights)).expect("sound");

    // Somebody wrote the memo, or the file changed where nothing tells it.
    forge(&memo, &first);
    let weights = open(&path);
    let forged = remembered(&memo, &weights);
    let text = refusal(checked(&weights, &forged));
    for part in [
        "a.safetensors",
        "00000000",
        &first.short(),
        "run this again",
    ] {
        assert!(text.contains(part), "`{text}` does not say `{part}`");
    }
    // The next run knows.
    let weights = open(&path);
    assert_eq!(remembered(&memo, &weights), first);
    checked(&weights, &first).expect("sound");
}

#[test]
fn a_file_that_changes_between_its_digest_and_the_end_of_loading_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let memo = folder.path().join("memo.json");
    let during = |change: &dyn Fn()| {
        let weights = open(&path);
        let digest = remembered(&memo, &weights);
        let loaded = weights.load_checked(&used(), &digest, || {
            let loaded = load(&weights);
            change();
            loaded
        });
        refusal(loaded)
    };
    let time = time_of(&path);
    let text = during(&|| overwrite_end(&path));
    assert!(text.contains("was changed while it was in use"), "{text}");
    // The time is set back: all that is left is that something happened to the file.
    #[cfg(unix)]
    {
        let text = during(&|| set_time(&path, time));
        assert!(text.contains("was changed while it was in use"), "{text}");
    }
    let _ = time;
    // Another file under its name is no change of the one that is open.
    let weights = open(&path);
    let digest = remembered(&memo, &weights);
    std::fs::remove_file(&path).expect("removed");
    small(folder.path());
    load(&weights).expect("still there");
    assert_ne!(remembered(&memo, &open(&path)), digest);
}

#[test]
fn a_file_that_is_cut_short_or_written_to_under_its_reader_is_an_error() {
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let says = |weights: &Weights| {
        let text = refusal(load(weights));
        assert!(text.contains("was changed while it was in use"), "{text}");
        let text = refusal(weights.rows((2, 3), "block.0.w", &[1]));
        assert!(text.contains("was changed while it was in use"), "{text}");
        refusal(weights.digest(&used()));
        refusal(DigestMemo::open(&folder.path().join("m.json")).digest(weights, &used()));
    };
    let weights = open(&path);
    overwrite_end(&path);
    set_time(&path, std::time::UNIX_EPOCH);
    says(&weights);
    let weights = open(&path);
    let file = File::options().write(true).open(&path).expect("open");
    file.set_len(100).expect("cut");
    says(&weights);
    file.set_len(0).expect("cut");
    says(&weights);
}

#[cfg(unix)]
#[test]
fn another_name_or_other_permissions_end_no_training() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let path = small(folder.path());
    let weights = open(&path);
    remembered(&folder.path().join("memo.json"), &weights);
    std::fs::hard_link(&path, folder.path().join("link")).expect("linked");
    load(&weights).expect("the same content");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).expect("set");
    load(&weights).expect("the same content");
    std::fs::remove_file(&path).expect("removed");
    load(&weights).expect("the same content");
}

#[cfg(unix)]
#[test]
fn what_may_never_end_is_not_opened_as_weights() {
    let says = |path: &Path, what: &str| {
        let text = refusal(Weights::open(&[path.to_owned()]));
        assert!(text.contains(what), "{text}");
    };
    says(Path::new("/dev/zero"), "it is a device, not a file");
    let folder = tempfile::tempdir().expect("folder");
    let pipe = folder.path().join("model.safetensors");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    says(&pipe, "it is a pipe, not a file");
    let index = folder.path().join("model.safetensors.index.json");
    std::os::unix::fs::symlink("/dev/zero", &index).expect("a link");
    says(&index, "it is a device, not a file");
}

#[test]
fn the_keys_of_a_memo_stay_those_of_the_first_version() {
    let whole = super::super::digest::stored_text(&Stored::from("a.b"));
    assert_eq!(
        whole,
        r#"Stored { name: "a.b", part: None, swapped: false, transposed: false }"#
    );
    let slice = Stored {
        part: Some(TensorSlice::nth(1, 3)),
        transposed: true,
        ..Stored::from("qkv")
    };
    assert_eq!(
        super::super::digest::stored_text(&slice),
        r#"Stored { name: "qkv", part: Some(Part { first: 1, count: 1, of: 3 }), swapped: false, transposed: true }"#
    );
}
