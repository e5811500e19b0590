//! Maintenance of a store on object storage whose index has no room in memory: it comes to what it comes to where there is room.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use plumb::digest::{Digest, canonical_json};
use plumb::store::{Disk, EntryRange, GcOptions, PushOptions, Remote, Scratch, Store};
use serde_json::{Value, json};

use crate::object_storage::{assert_sound, gc};
use crate::remote_index::{assert_all_found, ids, keep, killed_before, machine};
use crate::s3::{Fault, S3, proxy};
use crate::store_util::{self, Faulty, ROOM, add, add_all, entry, reads_back, scratch, spec};
use crate::util::{Phases, listing};

/// Of two rows each: enough for a part that is read in part.
const RUN: usize = 2100;

fn options(dry_run: bool) -> GcOptions {
    GcOptions {
        now: SystemTime::now(),
        grace: Duration::ZERO,
        dry_run,
        without_runs: false,
    }
}

/// The name there of the pack that has a caption.
fn pack_of(store: &Store, caption: &str) -> String {
    let reader = store.reader().expect("a reader");
    let (id, _) = spec(1);
    let record = reader.record(&id, &entry(&id, caption).entry);
    let pack = record.expect("read").expect("there").pack.to_string();
    format!("packs/{}/{pack}.safetensors", &pack[..2])
}

/// Adds captions and puts them there; gives the name of the index part that they are in.
fn share(s3: &S3, store: &Store, number: u32, captions: &[&str]) -> String {
    let before = s3.names();
    add(store, number, captions).expect("added");
    store.share(&Phases::default()).expect("shared");
    let mut new = s3.names().into_iter();
    let new = new.find(|name| name.ends_with(".parquet") && !before.contains(name));
    new.expect("a part")
}

/// A store with an index that was merged in a folder, there, and not at all; with copies of entries, packs that are lost or cut off, one in both
/// forms, one that no row names, a list that lies, and another spec.
fn scene(s3: &S3, dir: &Path) -> Remote {
    let remote = s3.remote(&s3.server);
    let own = Store::open_or_create(&dir.join("own")).expect("a store");
    add_all(&own, 0..RUN);
    add_all(&own, RUN..RUN + 300);
    own.compact().expect("merged");
    let compressed = PushOptions {
        compress: true,
        ..PushOptions::default()
    };
    remote
        .push(&own, compressed, &Phases::default())
        .expect("pushed");
    let first = pack_of(&own, "caption 0");
    s3.put(&first, &fs::read(own.path().join(&first)).expect("a pack"));
    let one = machine(&remote, &dir.join("one"));
    for range in [RUN + 300..RUN + 400, 100..140] {
        add_all(&one, range);
    }
    for caption in ["a", "b"] {
        add(&one, 2, &[caption]).expect("added");
    }
    one.share(&Phases::default()).expect("shared");
    assert!(one.compact().expect("merged").parts_before > 3);
    add_all(&one, 120..400);
    one.share(&Phases::default()).expect("shared");
    for caption in ["lost 1", "short", "flipped"] {
        share(s3, &one, 1, &[caption]);
    }
    let (hides, hidden) = (
        share(s3, &one, 1, &["hides"]),
        share(s3, &one, 1, &["hidden 1", "hidden 2"]),
    );
    let used = ["lost 1", "short", "hidden 1", "named by nobody"];
    let unnamed = share(s3, &one, 1, &["named by nobody", "nor this"]);
    let (id, _) = spec(1);
    let mut run = ids(1, 50..130);
    run.extend(used.map(|caption| (id, entry(&id, caption).entry)));
    run.push((spec(2).0, entry(&spec(2).0, "a").entry));
    keep(&one, &run);
    one.share(&Phases::default()).expect("shared");
    s3.remove(&pack_of(&one, "lost 1"));
    for (caption, cut) in [("short", 1), ("flipped", 0)] {
        let pack = pack_of(&one, caption);
        let mut bytes = s3.get(&pack);
        let end = bytes.len() - cut;
        bytes[end - 1] ^= 1;
        s3.put(&pack, &bytes[..end]);
    }
    s3.remove(&unnamed);
    let (folder, _) = hides.rsplit_once('/').expect("a folder");
    let digest = |name: &str| name[folder.len() + 1..name.len() - ".parquet".len()].to_owned();
    let into = BTreeMap::from([(digest(&hides), Value::Null)]);
    let list = json!({"version": 1, "parts": into, "merged": [digest(&hidden)]});
    let list = canonical_json(&list);
    s3.put(&format!("{folder}/{}.parts.json", Digest::of(&list)), &list);
    remote
}

/// Index parts that cannot be read: one that is cut off, and one that is none.
fn damage(s3: &S3, dir: &Path) -> [String; 2] {
    let one = machine(&s3.remote(&s3.server), &dir.join("late"));
    let cut = share(s3, &one, 1, &["in a damaged part"]);
    let bytes = s3.get(&cut);
    s3.put(&cut, &bytes[..bytes.len() - 1]);
    let garbage = b"PAR1 this is no table PAR1";
    let (folder, _) = cut.rsplit_once('/').expect("a folder");
    let none = format!("{folder}/{}.parquet", Digest::of(garbage));
    s3.put(&none, garbage);
    [cut, none]
}

/// A folder for the index on a disk with room for so many rows.
fn room(dir: &Path, rows: usize) -> (Scratch, Arc<Faulty>) {
    let disk = Arc::new(Faulty::with_room(store_util::Fault::None, rows));
    let above = dir.join("maintenance");
    (Scratch::with(&above, disk.clone() as Arc<dyn Disk>), disk)
}

/// What there is, but leases.
fn names(s3: &S3) -> Vec<String> {
    let mut names = s3.names();
    names.retain(|name| !name.starts_with("leases/"));
    names.sort();
    names
}

#[test]
fn a_check_in_little_room_finds_the_same() {
    let Some(s3) = S3::start().filter(|s3| s3.is_open) else {
        return;
    };
    let dir = scratch();
    let remote = scene(&s3, dir.path());
    let bad = damage(&s3, dir.path());
    let check = |remote: &Remote, rows: usize, read_data: bool| {
        let (scratch, disk) = room(dir.path(), rows);
        let report = remote
            .check(&scratch, read_data, &Phases::default())
            .expect("checked");
        let report = serde_json::to_value(report).expect("JSON");
        (report, disk.readings())
    };
    for read_data in [true, false] {
        let (expected, readings) = check(&remote, ROOM, read_data);
        for rows in [5000, 700, 90] {
            let (found, more) = check(&remote, rows, read_data);
            assert_eq!(found, expected, "room {rows}, data {read_data}");
            assert!(more > readings, "room {rows}: {more} of {readings}");
        }
        // What is compared is worth comparing.
        let entries = RUN + 400 + 3 + 1 + 2;
        assert_eq!(expected["entries"], entries, "{expected:#}");
        let told = expected["problems"].as_array().expect("problems");
        let told: Vec<String> = told.iter().map(Value::to_string).collect();
        let tells = |what: &str| told.iter().filter(|t| t.contains(what)).count();
        for (what, count) in [
            ("which is missing", 1),
            ("which is too short", 1),
            ("of which 2 entries are in no other", 1),
            ("lacks 2 of 85 entries that it uses", 1),
            (&bad[0], 1),
            (&bad[1], 1),
            ("packs/", if read_data { 4 } else { 2 }),
        ] {
            assert_eq!(tells(what), count, "{what}: {told:#?}");
        }
        assert_eq!(told.len(), if read_data { 8 } else { 6 }, "{told:#?}");
        let unindexed = if read_data { 2 + 2 + 1 } else { 0 };
        assert_eq!(expected["unindexed_entries"], unindexed);
    }
    // On a faulty way, and two at once. What is told of a damaged part is what came of it.
    let damaged = bad[0].clone();
    let faulty = proxy(&s3.server, move |method, path, number| match number % 7 {
        2 => Fault::SlowDown,
        3 => Fault::Close,
        4 => Fault::Cut,
        5 if method == "GET" && path.contains(".parquet") && !path.contains(&damaged) => {
            Fault::Flip
        }
        _ => Fault::None,
    });
    let (expected, _) = check(&remote, ROOM, false);
    std::thread::scope(|scope| {
        let others = [s3.remote(&faulty), s3.remote(&s3.server)];
        let all = others.map(|remote| scope.spawn(move || check(&remote, 700, false).0));
        for found in all {
            assert_eq!(found.join().expect("checked"), expected);
        }
    });
    assert_eq!(listing(&dir.path().join("maintenance")), [""; 0]);
    // What cannot be understood may be what is used.
    for part in &bad {
        let before = names(&s3);
        let why = gc(&remote, &options(false)).expect_err("refused");
        let why = why.to_string();
        assert!(bad.iter().any(|part| why.contains(part)), "{why}");
        assert_eq!(names(&s3), before);
        s3.remove(part);
    }
    gc(&remote, &options(true)).expect("told");
}

#[test]
fn a_collection_in_little_room_leaves_the_same_objects() {
    let mut expected = None;
    for rows in [ROOM, 3000, 500] {
        let Some(s3) = S3::start().filter(|s3| s3.is_open) else {
            return;
        };
        let dir = scratch();
        let remote = scene(&s3, dir.path());
        let before = names(&s3);
        let collect = |dry_run| {
            let (scratch, disk) = room(dir.path(), rows);
            let report = remote.gc(
                &scratch,
                &options(dry_run),
                Duration::ZERO,
                &Phases::default(),
            );
            let mut report = report.expect("collected");
            assert_eq!(report.dry_run, dry_run);
            report.dry_run = false;
            (serde_json::to_value(report).expect("JSON"), disk.readings())
        };
        let (told, readings) = collect(true);
        assert_eq!(names(&s3), before);
        // The disk of this machine is full: nothing is begun.
        let disk = Arc::new(Faulty::new(store_util::Fault::FullFrom(9)));
        let scratch = Scratch::with(&dir.path().join("maintenance"), disk);
        let full = remote.gc(
            &scratch,
            &options(false),
            Duration::ZERO,
            &Phases::default(),
        );
        assert!(full.is_err_and(|e| e.is_full_disk()));
        assert_eq!(names(&s3), before);
        let done = collect(false).0;
        assert_eq!(told, done);
        assert_eq!(collect(false).0["packs_removed"], 0);
        let one = machine(&remote, &dir.path().join("last"));
        let reader = one.reader().expect("a reader");
        assert_all_found(&one, &ids(1, 50..130));
        assert!(reads_back(&reader, 2, "a") && reads_back(&reader, 1, "caption 100"));
        assert_eq!(listing(&dir.path().join("maintenance")), [""; 0]);
        let after = names(&s3);
        let Some((report, objects, few)) = &expected else {
            assert!(
                done["entries_removed"].as_u64() > Some(300)
                    && done["packs_removed"].as_u64() > Some(4),
                "{done}"
            );
            expected = Some((done, after, readings));
            continue;
        };
        assert_eq!((&done, &after), (report, objects), "room {rows}");
        assert!(readings > *few, "room {rows}: {readings} of {few}");
    }
}

#[test]
fn a_collection_may_be_killed_before_each_of_its_writes() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let one = machine(&remote, &dir.path().join("one"));
    let maintenance = dir.path().join("caches/plumb/maintenance");
    fs::create_dir_all(&maintenance).expect("made");
    let mut left = 0;
    add_all(&one, 0..1);
    keep(&one, &ids(1, 0..1));
    one.share(&Phases::default()).expect("shared");
    for step in 0.. {
        // Something to be removed each time, in a part with something that stays. What went before is not in this machine's folder, to come again.
        let fresh = machine(&remote, &dir.path().join(format!("fresh-{step}")));
        add(&fresh, 1, &[&format!("unused {step}")]).expect("added");
        fresh.share(&Phases::default()).expect("shared");
        fresh.compact().expect("merged");
        let ended = killed_before(&s3, dir.path(), &["gc", "--grace-hours", "0"], step);
        left += listing(&maintenance).len();
        assert_sound(&remote);
        let late = machine(&remote, &dir.path().join(format!("late-{step}")));
        assert_all_found(&late, &ids(1, 0..1));
        if ended {
            assert!(step > 7 && left > 0, "{step}, {left}");
            assert_eq!(listing(&maintenance), [""; 0]);
            break;
        }
    }
    let after = names(&s3);
    let count = |start: &str| after.iter().filter(|name| name.starts_with(start)).count();
    assert_eq!((count("packs/"), count("index/")), (1, 1), "{after:#?}");
}

/// Of a run over there, a range is one request, and what comes changed on the way is asked for again, as a whole.
#[test]
fn a_range_of_a_run_is_fetched_alone() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let one = machine(&s3.remote(&s3.server), &dir.path().join("one"));
    add_all(&one, 0..RUN);
    let wanted = ids(1, 0..RUN);
    keep(&one, &wanted);
    one.share(&Phases::default()).expect("shared");
    let asked = Arc::new(AtomicU64::new(0));
    let flips = Arc::new(AtomicBool::new(false));
    let (count, flip) = (asked.clone(), flips.clone());
    let watched = proxy(&s3.server, move |method, path, _| {
        let is_of_run = method == "GET" && path.contains("/runs/");
        let before = count.fetch_add(u64::from(is_of_run), Ordering::Relaxed);
        match is_of_run && before == 0 && flip.load(Ordering::Relaxed) {
            true => Fault::Flip,
            false => Fault::None,
        }
    });
    let other = machine(&s3.remote(&watched), &dir.path().join("other"));
    let name = other.runs().expect("names").remove(0);
    let (run, lists) = other.run_lists(&name).expect("a run");
    assert_eq!((run.num_entries(), lists.num_entries), (RUN, RUN as u64));
    for (is_flipped, requests) in [(false, 1), (true, 2)] {
        flips.store(is_flipped, Ordering::Relaxed);
        for digits in ["0", "7f", "f"] {
            asked.store(0, Ordering::Relaxed);
            let range = EntryRange::beginning(digits).expect("digits");
            let found = other.run_within(&lists, range).expect("the run");
            let mut expected: Vec<_> = wanted.iter().map(|(_, entry)| *entry).collect();
            expected.retain(|entry| range.has(entry));
            expected.sort_unstable();
            assert_eq!(found[&spec(1).0], expected, "{digits}");
            assert_eq!(asked.load(Ordering::Relaxed), requests, "{digits}");
        }
    }
}
