use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, json};

use super::{Checkpoint, Error, State};
use crate::convert::provenance::Stretch;
use crate::digest::{Digest, Fingerprint};
use crate::optim::OptimizerOptions;
use crate::train::checkpoints::{Checkpoints, Newest};
use crate::train::identity::{Description, Identity};

fn state(step: u64) -> State {
    let (id, digest) = (Fingerprint::from_bytes([1; 32]), Digest::of(b"x"));
    let fields = |value: f64| Map::from_iter([("train.learning_rate".to_owned(), json!(value))]);
    State {
        step,
        identity: Identity {
            training: id,
            denoiser: digest,
            manifest: digest,
            layout: id,
            description: Some(Description {
                set: fields(0.1),
                resolved: fields(0.2),
                recipe: id,
                rules: json!({ "t5": { "max_tokens": 77 } }),
                specs: BTreeMap::from([("t5".to_owned(), id)]),
                pictures: 3,
                data: BTreeMap::from([("captions".to_owned(), digest)]),
                datasets: vec![fields(1.0)],
                configurations: BTreeMap::from([("a config".to_owned(), id)]),
            }),
        },
        computed: "on a \"CPU\" in f32".to_owned(),
        history: vec![Stretch {
            until: 1,
            computed: "elsewhere".to_owned(),
            steps: 4,
            warmup_steps: 0,
        }],
    }
}

fn checkpoint(step: u64) -> Checkpoint {
    let flat = |factor: f32| {
        let values = [factor * step as f32, f32::MIN_POSITIVE, -0.0];
        Tensor::new(&values, &Device::Cpu).expect("a tensor")
    };
    Checkpoint {
        state: state(step),
        parameters: flat(1.0),
        optimizer: BTreeMap::from([
            ("first_moment".to_owned(), flat(2.0)),
            ("second_moment".to_owned(), flat(3.0)),
        ]),
    }
}

fn newest(folder: &Path) -> Result<Option<Newest>, Error> {
    Checkpoints::new(folder, 2).newest(&OptimizerOptions::default())
}

fn step_of(found: Option<Newest>) -> u64 {
    found.expect("one").checkpoint.state.step
}

fn steps(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("listed");
    let names = entries.map(|e| e.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn file(step: u64) -> String {
    format!("step-{step:08}.safetensors")
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = checkpoint(5);
    Checkpoints::new(folder.path(), 1)
        .write(&written)
        .expect("written");
    let found = newest(folder.path()).expect("read").expect("one");
    assert!(found.has_digest && found.damaged.is_empty());
    assert_eq!(found.checkpoint.state, written.state);
    assert_eq!(
        found.checkpoint.to_bytes().expect("bytes"),
        written.to_bytes().expect("bytes")
    );
}

/// Whatever is changed in a file, a run never goes on from it.
#[test]
fn a_flipped_bit_anywhere_and_a_cut_anywhere_are_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(file(5));
    let sound = checkpoint(5).to_bytes().expect("bytes");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        Checkpoint::read(&path, &OptimizerOptions::default())
    };
    read(&sound).expect("sound");
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (at % 8);
        let said = read(&damaged).expect_err("seen");
        assert!(matches!(said, Error::Damaged { .. }), "byte {at}: {said}");
    }
    for length in (0..sound.len()).step_by(5) {
        let said = read(&sound[..length]).expect_err("seen");
        assert!(
            matches!(said, Error::Damaged { .. }),
            "{length} bytes: {said}"
        );
    }
    let said = read(&[&sound[..], b"x"].concat()).expect_err("seen");
    assert!(said.to_string().contains("is damaged"), "{said}");
}

#[test]
fn the_newest_sound_checkpoint_is_found_and_others_go_when_the_next_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    assert!(newest(path).expect("empty").is_none());
    let mut kept = Checkpoints::new(path, 2);
    for step in [5, 10, 15] {
        kept.write(&checkpoint(step)).expect("written");
    }
    assert_eq!(steps(path), [file(10), file(15)]);
    let last = path.join(file(15));
    let mut bytes = std::fs::read(&last).expect("readable");
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(&last, bytes).expect("damaged");

    let mut kept = Checkpoints::new(path, 1);
    let found = kept.newest(&OptimizerOptions::default()).expect("one");
    let found = found.expect("the older one");
    assert_eq!(found.damaged.len(), 1);
    let said = found.damaged[0].to_string();
    assert!(
        said.contains("step-00000015") && said.contains("is damaged"),
        "{said}"
    );
    assert_eq!(step_of(Some(found)), 10);
    // The damaged one has the higher number: it must not be what is kept.
    kept.write(&checkpoint(12)).expect("written");
    assert_eq!(steps(path), [file(12)]);
}

#[test]
fn a_run_that_begins_anew_keeps_its_own_checkpoints_not_those_of_the_one_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let mut before = Checkpoints::new(path, 3);
    for step in [5, 10, 15] {
        before.write(&checkpoint(step)).expect("written");
    }
    let mut anew = Checkpoints::new(path, 3);
    anew.write(&checkpoint(4)).expect("written");
    assert_eq!(steps(path), [file(4)]);
    anew.write(&checkpoint(8)).expect("written");
    assert_eq!(step_of(newest(path).expect("read")), 8);
}

#[test]
fn where_none_is_sound_that_is_said_with_the_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(file(5)), b"no safetensors").expect("written");
    let said = newest(folder.path()).expect_err("refused").to_string();
    assert!(
        said.contains("step-00000005") && said.contains("--restart"),
        "{said}"
    );
    assert!(!said.contains('\n'), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_ends_the_search() {
    let folder = tempfile::tempdir().expect("a folder");
    Checkpoints::new(folder.path(), 2)
        .write(&checkpoint(5))
        .expect("written");
    std::fs::create_dir(folder.path().join(file(9))).expect("a folder");
    let said = newest(folder.path()).expect_err("not passed over");
    assert!(matches!(said, Error::Unreadable { .. }), "{said}");
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_not_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = checkpoint(5).to_bytes().expect("bytes");
    std::fs::write(folder.path().join(file(9)), bytes).expect("written");
    let said = newest(folder.path()).expect_err("refused").to_string();
    assert!(
        said.contains("expected step 9 as its name says, found step 5"),
        "{said}"
    );
}

#[test]
fn a_checkpoint_with_a_state_of_another_version_is_not_called_damaged() {
    // As another version might write it: whole, with a field of another name.
    let mut other = checkpoint(5).to_bytes().expect("bytes");
    let at = super::digest_place(&other, digest_of(&other)).expect("a digest");
    let name = b"history";
    let place = other.windows(name.len()).position(|w| w == name);
    let place = place.expect("a field");
    other[place..place + name.len()].copy_from_slice(b"chronic");
    other[at..at + 64].fill(b'0');
    let digest = Digest::of(&other).to_string();
    other[at..at + 64].copy_from_slice(digest.as_bytes());
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(file(5)), other).expect("written");
    let said = newest(folder.path()).expect_err("refused");
    assert!(matches!(said, Error::OtherVersion { .. }), "{said}");
}

fn digest_of(bytes: &[u8]) -> Digest {
    let Ok(entry) = super::metadata_entry(bytes) else {
        panic!("no entry");
    };
    let start = super::DIGEST_BEFORE.len();
    entry[start..start + 64].parse().expect("a digest")
}

#[test]
fn without_its_optimizer_s_state_or_with_numbers_that_are_none_a_checkpoint_is_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut kept = Checkpoints::new(folder.path(), 9);
    kept.write(&checkpoint(10)).expect("written");
    let mut last = checkpoint(15);
    last.optimizer.remove("second_moment");
    kept.write(&last).expect("written");
    let mut diverged = checkpoint(20);
    diverged.parameters = Tensor::new(&[1.0, f32::NAN, 2.0], &Device::Cpu).expect("a tensor");
    assert_eq!(
        diverged.not_finite().expect("a look").as_deref(),
        Some("parameters")
    );
    kept.write(&diverged).expect("written");
    let found = newest(folder.path()).expect("the older one").expect("one");
    let said: Vec<String> = found.damaged.iter().map(ToString::to_string).collect();
    assert!(
        said[0].contains("not finite") && said[1].contains("second_moment"),
        "{said:?}"
    );
    assert_eq!(step_of(Some(found)), 10);
}

#[test]
fn a_checkpoint_of_the_first_version_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/fixtures/run-v1/out/checkpoints");
    let found = newest(&folder).expect("read").expect("one");
    assert!(!found.has_digest);
    assert_eq!(found.checkpoint.state.identity.description, None);
    let bytes = std::fs::read(folder.join("step-00000002.safetensors")).expect("a file");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a file of tensors");
    let numbers = tensors.tensor("parameters").expect("parameters").data();
    let read: Vec<f32> = found.checkpoint.parameters.to_vec1().expect("numbers");
    let read: Vec<u8> = read.into_iter().flat_map(f32::to_le_bytes).collect();
    assert!(read == numbers);
}
