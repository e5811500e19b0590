//! Crashes, power cuts and full disks at every single step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::store::{Disk, Error, GcOptions, Lacking, Store};

use crate::store_util::{Fault, Faulty, ROOM, Step, add, entry, put, readable, scratch, spec};

const FIRST: [&str; 3] = ["a", "b", "c"];
const SECOND: [&str; 2] = ["d", "e"];
/// What the run of the story uses.
const USED: [&str; 3] = ["a", "c", "d"];

/// How far the story was told to the one who asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
enum Told {
    #[default]
    Nothing,
    Created,
    FirstBatch,
    SecondBatch,
    Run,
    Collected,
    Rebuilt,
}

impl Told {
    /// The captions that must now be readable.
    fn safe(self) -> Vec<&'static str> {
        match self {
            Self::Nothing | Self::Created => vec![],
            Self::FirstBatch => FIRST.to_vec(),
            Self::SecondBatch => [&FIRST[..], &SECOND[..]].concat(),
            // From here on the collection may have begun.
            Self::Run | Self::Collected | Self::Rebuilt => USED.to_vec(),
        }
    }
}

/// All that changes a store, one after the other.
fn story(path: &Path, disk: &Arc<dyn Disk>, told: &mut Told) -> Result<(), Error> {
    let store = Store::open_or_create_with(path, disk.clone())?;
    *told = Told::Created;
    add(&store, 1, &FIRST)?;
    *told = Told::FirstBatch;
    let mut writer = store.writer()?;
    put(&mut writer, 1, &SECOND)?;
    put(&mut writer, 2, &["a"])?;
    writer.finish()?;
    *told = Told::SecondBatch;
    let (id, _) = spec(1);
    let used: Vec<_> = USED.iter().map(|c| (id, entry(&id, c).entry)).collect();
    store.write_run("story", &used, serde_json::json!({}), Lacking::Refuse)?;
    *told = Told::Run;
    let options = GcOptions {
        now: SystemTime::now() + Duration::from_secs(1_000_000),
        grace: Duration::from_secs(1),
        dry_run: false,
        without_runs: false,
    };
    store.gc(&options, &Silent)?;
    *told = Told::Collected;
    Store::rebuild_index_with(path, disk.clone(), &Silent)?;
    *told = Told::Rebuilt;
    Ok(())
}

/// Room for all rows of the story, and for so few that each entry is sorted alone.
const ROOMS: [usize; 2] = [ROOM, 60];

/// Tells the story with `fault` in a new folder below `dir`.
fn tell(dir: &Path, fault: Fault, room: usize) -> (PathBuf, Arc<Faulty>, Told, Result<(), Error>) {
    let path = dir.join("store");
    let disk = Arc::new(Faulty::with_room(fault, room));
    let mut told = Told::default();
    let as_disk: Arc<dyn Disk> = disk.clone();
    let result = story(&path, &as_disk, &mut told);
    (path, disk, told, result)
}

/// Everything that must hold of what is left at `path`: what was told is there, nothing is half there, and the
/// work can go on to its end.
fn assert_safe(path: &Path, told: Told, case: &str) {
    let all = [&FIRST[..], &SECOND[..]].concat();
    let store = Store::open_or_create(path).unwrap_or_else(|e| panic!("{case}: {e}"));
    let found = readable(&store, 1, &all);
    for caption in told.safe() {
        assert!(found.contains(&caption), "{case}: {caption} is lost");
    }
    let report = Store::check(path, true, &Silent).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(report.problems, [], "{case}");
    add(&store, 1, &all).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(readable(&store, 1, &all), all, "{case}");
    Store::rebuild_index(path, &Silent).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(readable(&store, 1, &all), all, "{case}");
    let report = Store::check(path, true, &Silent).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(
        (report.problems, report.unindexed_entries),
        (vec![], 0),
        "{case}"
    );
}

fn num_steps(room: usize) -> usize {
    let dir = scratch();
    let (path, disk, told, result) = tell(dir.path(), Fault::None, room);
    result.expect("no fault");
    assert_eq!(told, Told::Rebuilt);
    assert_safe(&path, told, "no fault");
    assert!(
        disk.steps() > 40,
        "the story is worth telling: {}",
        disk.steps()
    );
    disk.steps()
}

/// Every step of the story, in each room.
fn every_step() -> impl Iterator<Item = (usize, usize)> {
    let all = |room| (0..num_steps(room)).map(move |step| (room, step));
    ROOMS.into_iter().flat_map(all)
}

#[test]
fn a_process_may_die_at_every_step() {
    for (room, step) in every_step() {
        let dir = scratch();
        let (path, _, told, result) = tell(dir.path(), Fault::Crash(step), room);
        let case = format!("killed at step {step}, room {room}, {told:?}");
        assert!(result.is_err() || told == Told::Rebuilt, "{case}");
        assert_safe(&path, told, &case);
    }
}

#[test]
fn the_power_may_go_at_every_step() {
    for (room, step) in every_step() {
        let dir = scratch();
        let (path, disk, told, _) = tell(dir.path(), Fault::Crash(step), room);
        for seed in 0..4 {
            let image = scratch();
            after_power_cut(&disk.log(), &path, image.path(), seed);
            let case = format!("power gone at step {step}, room {room}, seed {seed}, {told:?}");
            assert_safe(image.path(), told, &case);
        }
    }
}

#[test]
fn the_disk_may_be_full_at_every_step_for_a_moment_or_for_good() {
    for (room, step) in every_step() {
        for fault in [Fault::Full(step), Fault::FullFrom(step)] {
            let dir = scratch();
            let (path, _, told, result) = tell(dir.path(), fault, room);
            let case = format!("{fault:?}, room {room}, {told:?}");
            if let Err(e) = result {
                assert!(
                    e.is_full_disk() && e.to_string().contains("free some space"),
                    "{case}: {e}"
                );
            }
            assert_safe(&path, told, &case);
        }
    }
}

#[test]
fn a_writer_goes_on_when_there_is_room_again() {
    // From the first step of the commit on, whatever it is.
    for step in 0..40 {
        let dir = scratch();
        Store::open_or_create(dir.path()).expect("new");
        let disk = Arc::new(Faulty::new(Fault::Full(step)));
        let store = Store::open_with(dir.path(), disk.clone()).expect("open");
        let mut writer = store.writer().expect("a writer");
        let mut failures = 0;
        let mut persist = |work: &mut dyn FnMut() -> Result<(), Error>| {
            while let Err(e) = work() {
                assert!(e.is_full_disk(), "{e}");
                failures += 1;
            }
        };
        for number in [1, 2] {
            persist(&mut || put(&mut writer, number, &FIRST));
        }
        persist(&mut || writer.commit().map(|_| ()));
        assert_eq!(
            failures,
            usize::from(step < disk.steps() - failures),
            "step {step}"
        );
        for number in [1, 2] {
            assert_eq!(readable(&store, number, &FIRST), FIRST, "step {step}");
        }
    }
}

/// What a power cut after the steps of `log` leaves of `root`, in `image`: names and bytes that were synced are
/// there, of the others any subset (with seed 0 none).
fn after_power_cut(log: &[Step], root: &Path, image: &Path, seed: u64) {
    let mut dice = seed;
    let mut lucky = || {
        // Knuth's linear congruential generator; its high bits are good enough here.
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed != 0 && (dice >> 33).is_multiple_of(2)
    };
    let synced_later = |i: usize, path: &Path| {
        let parent = path.parent();
        log[i..]
            .iter()
            .any(|s| matches!(s, Step::SyncDir(dir) if Some(dir.as_path()) == parent))
    };
    let mut live: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut durable: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut dirs = vec![];
    for (i, step) in log.iter().enumerate() {
        match step {
            Step::CreateDir(path) => {
                if synced_later(i, path) || lucky() {
                    dirs.push(path.clone());
                }
            }
            Step::Write(path, bytes) => {
                let synced = log[i..]
                    .iter()
                    .any(|s| matches!(s, Step::SyncFile(p) if p == path));
                let kept = match (synced, lucky()) {
                    (true, _) => bytes.len(),
                    (false, true) => bytes.len() / 3,
                    (false, false) => 0,
                };
                live.insert(path.clone(), bytes[..kept].to_vec());
                if synced_later(i, path) || lucky() {
                    durable.insert(path.clone(), bytes[..kept].to_vec());
                }
            }
            Step::Rename(from, to) => {
                let bytes = live.remove(from).expect("it was written");
                live.insert(to.clone(), bytes.clone());
                if synced_later(i, to) || lucky() {
                    durable.remove(from);
                    durable.insert(to.clone(), bytes);
                }
            }
            Step::Remove(path) => {
                live.remove(path);
                if synced_later(i, path) || lucky() {
                    durable.remove(path);
                }
            }
            Step::SyncFile(_) | Step::SyncDir(_) => {}
        }
    }
    let in_image = |path: &Path| path.strip_prefix(root).map(|relative| image.join(relative));
    for dir in dirs.iter().filter_map(|d| in_image(d).ok()) {
        // A folder whose parent was lost is lost with it.
        let _ = fs::create_dir(dir);
    }
    for (path, bytes) in durable {
        let target = in_image(&path).expect("inside");
        if target.parent().is_some_and(Path::is_dir) {
            fs::write(target, bytes).expect("write");
        }
    }
    // The lock file is no part of the story: it is empty, and made when it is missing.
}
