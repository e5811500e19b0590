//! The index of a store on object storage: its parts are merged beside the old ones, which go when they are old.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use plumb::digest::{Digest, Fingerprint, canonical_json};
use plumb::store::{
    EntryRange, Error, GcOptions, GcReport, Lacking, Place, PushOptions, Remote, Store, StoreReader,
};
use serde_json::{Value, json};

use crate::object_storage::{self, assert_sound};
use crate::s3::{Fault, S3, proxy};
use crate::store_util::{add, add_all, captions, entry, files, reads_back, scratch, spec};
use crate::util::{Phases, plumb_with};

/// Of two rows each: enough for a part of several row groups, which a list describes.
const MANY: usize = 4200;

pub(crate) fn machine(remote: &Remote, folder: &Path) -> Store {
    let place = Place::remote(remote.clone(), folder.to_owned(), false);
    Store::open_or_create_at(&place).expect("a store")
}

pub(crate) fn ids(number: u32, range: std::ops::Range<usize>) -> Vec<(Fingerprint, Fingerprint)> {
    let (id, _) = spec(number);
    let captions = captions(range);
    captions.iter().map(|c| (id, entry(&id, c).entry)).collect()
}

fn found(reader: &StoreReader, wanted: &[(Fingerprint, Fingerprint)]) -> usize {
    let there = wanted
        .iter()
        .filter(|(spec, entry)| reader.contains(spec, entry));
    there.count()
}

/// Those of `wanted` that a reader of them alone finds, and one of all.
#[track_caller]
pub(crate) fn assert_all_found(store: &Store, wanted: &[(Fingerprint, Fingerprint)]) {
    let some = store.reader_of_entries(wanted).expect("a reader");
    assert_eq!(found(&some, wanted), wanted.len());
    let all = store.reader().expect("a reader");
    assert_eq!(found(&all, wanted), wanted.len());
    assert_eq!(all.problems(), []);
}

pub(crate) fn keep(store: &Store, wanted: &[(Fingerprint, Fingerprint)]) {
    let written = store.write_run("kept", wanted, json!({}), Lacking::Refuse);
    written.expect("a run");
}

fn gc(remote: &Remote, hours: u64) -> GcReport {
    let options = GcOptions {
        now: SystemTime::now(),
        grace: Duration::from_secs(hours * 3600),
        dry_run: false,
        without_runs: false,
    };
    object_storage::gc(remote, &options).expect("collected")
}

/// How many index parts lie there, and how many lists.
fn parts_there(s3: &S3) -> (usize, usize) {
    let names = s3.names();
    let count = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
    (count(".parquet"), count(".parts.json"))
}

#[test]
fn parts_are_merged_beside_the_old_ones_which_go_when_they_are_old() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let one = machine(&remote, &dir.path().join("one"));
    for range in [0..2100, 2100..MANY - 100, MANY - 100..MANY] {
        add_all(&one, range);
        one.share(&Phases::default()).expect("shared");
    }
    add(&one, 2, &["of another spec"]).expect("added");
    let wanted = ids(1, 0..MANY);
    keep(&one, &wanted);
    one.share(&Phases::default()).expect("shared");
    assert_eq!(parts_there(&s3), (4, 0));
    // Somebody who looked before.
    let before = machine(&remote, &dir.path().join("before"));
    let looked = before.reader().expect("a reader");

    let report = one.compact().expect("merged");
    assert_eq!((report.parts_before, report.parts), (4, 2));
    assert_eq!(parts_there(&s3), (5, 1));
    assert_sound(&remote);
    assert_all_found(&one, &wanted);
    // What was merged is not in the folder any more, and does not go there again.
    assert_eq!(files(one.path(), ".parquet").len(), 2);
    let again = one.compact().expect("merged");
    assert_eq!(
        (again.parts_before, again.parts, parts_there(&s3)),
        (2, 2, (5, 1))
    );
    let shared = one
        .share(&Phases::default())
        .expect("shared")
        .expect("a report");
    assert_eq!((shared.index_parts, shared.packs), (0, 0));
    // Of whoever comes now nothing is fetched of which nothing is asked.
    let other = machine(&remote, &dir.path().join("other"));
    let large = || files(other.path(), ".parquet").len() - 1;
    assert_eq!(large(), 0);
    let none = other.reader_of(&[spec(2).0]).expect("a reader");
    assert_eq!((none.entries(&spec(2).0).len(), large()), (1, 0));
    assert!(reads_back(
        &other.reader_of_entries(&wanted[7..8]).expect("a reader"),
        1,
        "caption 7"
    ));
    assert_eq!(large(), 1);
    assert_all_found(&other, &wanted);

    let young = gc(&remote, 1);
    assert_eq!((young.packs_removed, parts_there(&s3)), (0, (5, 1)));
    let old = gc(&remote, 0);
    // The pack of the other spec is of no run, and its part goes with it.
    assert_eq!((old.packs_removed, old.entries_kept), (1, MANY as u64));
    assert_eq!(parts_there(&s3), (1, 1));
    assert_sound(&remote);
    assert!(reads_back(&looked, 1, "caption 2200") && reads_back(&looked, 1, "caption 0"));
    assert_all_found(&before, &wanted);
    let late = machine(&remote, &dir.path().join("late"));
    assert_all_found(&late, &wanted);
    let copy = Store::open_or_create(&dir.path().join("copy")).expect("a store");
    let pulled = remote.pull(&copy, &Phases::default()).expect("pulled");
    assert_eq!((pulled.index_parts, pulled.problems), (1, vec![]));
    let checked = Store::check(copy.path(), true, &Phases::default()).expect("checked");
    assert_eq!((checked.problems, checked.entries), (vec![], MANY as u64));
}

#[test]
fn whoever_pushes_merges_where_many_small_parts_have_come_together() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let one = machine(&remote, &dir.path().join("one"));
    for number in 0..33 {
        add_all(&one, number..number + 1);
    }
    let wanted = ids(1, 0..33);
    keep(&one, &wanted);
    let shared = one
        .share(&Phases::default())
        .expect("shared")
        .expect("a report");
    assert_eq!((shared.index_parts, parts_there(&s3)), (33, (34, 1)));
    assert_sound(&remote);
    let two = machine(&remote, &dir.path().join("two"));
    assert_eq!(files(two.path(), ".parquet").len(), 1);
    assert_all_found(&two, &wanted);
    // Again, and the list of before is in the new one.
    for number in 33..66 {
        add_all(&two, number..number + 1);
    }
    two.share(&Phases::default()).expect("shared");
    assert_eq!(parts_there(&s3), (34 + 34, 1));
    let wanted = ids(1, 0..66);
    keep(&two, &wanted);
    two.share(&Phases::default()).expect("shared");
    for store in [&one, &two] {
        store.reader().expect("a reader").refresh().expect("looked");
        assert_all_found(store, &wanted);
    }
    gc(&remote, 0);
    assert_eq!(parts_there(&s3), (1, 1));
    assert_sound(&remote);
    // What was merged in a folder comes with a list.
    let own = Store::open_or_create(&dir.path().join("own")).expect("a store");
    add_all(&own, 0..MANY);
    own.compact().expect("merged");
    (remote.push(&own, PushOptions::default(), &Phases::default())).expect("pushed");
    assert_eq!(parts_there(&s3), (2, 2));
    assert_all_found(
        &machine(&remote, &dir.path().join("three")),
        &ids(1, 0..MANY),
    );
}

#[test]
fn a_push_of_a_folder_merges_there_where_many_small_parts_have_come_together() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let own = Store::open_or_create(&dir.path().join("own")).expect("a store");
    let caches = dir.path().join("caches");
    // For a time the list may not be written.
    let may_not = Arc::new(AtomicBool::new(false));
    let denies = may_not.clone();
    let server = proxy(&s3.server, move |method, path, _| {
        match denies.load(Ordering::Relaxed) && method != "GET" && path.contains(".parts.json") {
            true => Fault::Denied,
            false => Fault::None,
        }
    });
    let push = || {
        let mut variables = s3.variables(&server);
        variables.insert("XDG_CACHE_HOME".to_owned(), caches.display().to_string());
        let variables: Vec<(&str, &str)> = (variables.iter())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let ran = plumb_with(
            dir.path(),
            &["store", "push", "own", &s3.address()],
            &variables,
        );
        (ran.expect(0), files(&caches, ".parquet").len())
    };
    for number in 0..31 {
        add_all(&own, number..number + 1);
        (remote.push(&own, PushOptions::default(), &Phases::default())).expect("pushed");
    }
    add_all(&own, 31..32);
    let (ran, fetched) = push();
    ran.says("pushed 1 entry");
    assert_eq!((parts_there(&s3), fetched), ((32, 0), 0));
    // What was pushed is there all the same, and the next one to push merges.
    add_all(&own, 32..33);
    may_not.store(true, Ordering::Relaxed);
    let (ran, _) = push();
    may_not.store(false, Ordering::Relaxed);
    ran.says("pushed 1 entry")
        .says("the index there was not merged: ");
    assert_eq!(parts_there(&s3).1, 0);
    assert_all_found(&machine(&remote, &dir.path().join("none")), &ids(1, 0..33));
    add_all(&own, 33..34);
    let (ran, fetched) = push();
    ran.says("pushed 1 entry");
    // With the merged part of before, which no list names.
    assert_eq!((parts_there(&s3), fetched), ((36, 1), 1));
    assert_sound(&remote);
    assert_all_found(&machine(&remote, &dir.path().join("one")), &ids(1, 0..34));
    // Of what came since there is little, and it does not come here.
    add_all(&own, 34..35);
    let (ran, fetched) = push();
    ran.says("pushed 1 entry");
    assert_eq!((parts_there(&s3), fetched), ((37, 1), 1));
    push().0.says("nothing to push");
}

/// Runs a command of the store there until it is about to write something after `step` times; says whether it ended before.
pub(crate) fn killed_before(s3: &S3, dir: &Path, command: &[&str], step: u64) -> bool {
    let writes = Arc::new(AtomicU64::new(0));
    let seen = writes.clone();
    let held = proxy(&s3.server, move |method, _, _| {
        let is_write = method != "GET";
        match is_write && seen.fetch_add(1, Ordering::Relaxed) >= step {
            // Until it is killed.
            true => {
                std::thread::sleep(Duration::from_secs(600));
                Fault::Close
            }
            false => Fault::None,
        }
    });
    let (command, options) = command.split_first().expect("a command");
    let mut child = Command::new(env!("CARGO_BIN_EXE_plumb"))
        .args(["store", command, &s3.address(), "--wait", "0"])
        .args(options)
        .current_dir(dir)
        .envs(s3.variables(&held))
        .env("XDG_CACHE_HOME", dir.join("caches"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let ended = loop {
        if writes.load(Ordering::Relaxed) > step {
            child.kill().expect("SIGKILL");
            child.wait().expect("it ends");
            break false;
        }
        if let Some(status) = child.try_wait().expect("its state") {
            assert!(status.success(), "step {step}");
            break true;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // The leases of the dead end by their age, which is not waited for here.
    for name in s3.names().iter().filter(|name| name.starts_with("leases/")) {
        s3.remove(name);
    }
    ended
}

#[test]
fn merging_there_may_be_killed_before_each_of_its_writes() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let own = Store::open_or_create(&dir.path().join("own")).expect("a store");
    add_all(&own, 0..1);
    (remote.push(&own, PushOptions::default(), &Phases::default())).expect("pushed");
    let mut total = 1;
    for step in 0.. {
        // Something to merge each time.
        add_all(&own, total..total + 1);
        total += 1;
        (remote.push(&own, PushOptions::default(), &Phases::default())).expect("pushed");
        let ended = killed_before(&s3, dir.path(), &["compact"], step);
        assert_sound(&remote);
        let fresh = machine(&remote, &dir.path().join(format!("fresh-{step}")));
        assert_all_found(&fresh, &ids(1, 0..total));
        if ended {
            assert!(step > 6, "{step}");
            assert_eq!(fresh.compact().expect("merged").parts, 1);
            break;
        }
    }
    let wanted = ids(1, 0..total);
    keep(&own, &wanted);
    (remote.push(&own, PushOptions::default(), &Phases::default())).expect("pushed");
    let collected = gc(&remote, 0);
    assert_eq!(
        (collected.entries_kept, parts_there(&s3)),
        (total as u64, (1, 1))
    );
    assert_sound(&remote);
    assert_all_found(&machine(&remote, &dir.path().join("last")), &wanted);
}

#[test]
fn two_may_merge_there_at_once_while_others_add_and_look() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let first = machine(&remote, &dir.path().join("first"));
    for number in 0..6 {
        add_all(&first, number * 10..number * 10 + 10);
    }
    first.share(&Phases::default()).expect("shared");
    let wanted = ids(1, 0..60);
    let again = |work: &dyn Fn() -> Result<(), Error>| {
        while let Err(e) = work() {
            assert!(matches!(e, Error::Busy { .. }), "{e}");
        }
    };
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (remote, folder) = (&remote, dir.path().join(name));
            let again = &again;
            scope.spawn(move || {
                let store = machine(remote, &folder);
                again(&|| store.compact().map(|_| ()));
            });
        }
        scope.spawn(|| {
            let store = machine(&remote, &dir.path().join("adds"));
            add(&store, 1, &["one more"]).expect("added");
            again(&|| store.share(&Phases::default()).map(|_| ()));
        });
        scope.spawn(|| {
            let store = machine(&remote, &dir.path().join("looks"));
            for _ in 0..5 {
                let reader = store.reader_of_entries(&wanted).expect("a reader");
                assert_eq!(found(&reader, &wanted), 60);
                reader.refresh().expect("looked");
            }
        });
    });
    assert_sound(&remote);
    let last = machine(&remote, &dir.path().join("last"));
    assert_eq!(last.compact().expect("merged").parts, 1);
    assert_all_found(&last, &wanted);
    assert!(reads_back(&last.reader().expect("a reader"), 1, "one more"));
}

#[test]
fn merging_on_a_faulty_way_or_by_an_old_list_loses_nothing() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let one = machine(&remote, &dir.path().join("one"));
    let faults = [
        Fault::SlowDown,
        Fault::DoneAndError,
        Fault::Cut,
        Fault::Flip,
        Fault::Close,
    ];
    let faulty = proxy(&s3.server, move |method, path, number| {
        let fault = faults[(number / 3) as usize % faults.len()];
        match (number % 3, method, fault) {
            (0 | 1, _, _) => Fault::None,
            (_, "GET", Fault::Flip) if path.contains("index/") => fault,
            (_, _, Fault::Flip) => Fault::None,
            (_, _, fault) => fault,
        }
    });
    // Lists as they were first asked for, but those of leases.
    let stale = proxy(&s3.server, |_, path, _| match path.contains("leases") {
        true => Fault::None,
        false => Fault::Stale,
    });
    for number in 0..3 {
        add_all(&one, number..number + 1);
    }
    one.share(&Phases::default()).expect("shared");
    let lagging = s3.remote(&stale);
    let behind = machine(&lagging, &dir.path().join("behind"));
    add_all(&one, 3..5);
    one.share(&Phases::default()).expect("shared");
    // It merges what it knows of, again and again.
    for _ in 0..2 {
        behind.compact().expect("merged");
        assert_sound(&remote);
    }
    let wanted = ids(1, 0..5);
    assert_all_found(&machine(&remote, &dir.path().join("other")), &wanted);
    let through = machine(&s3.remote(&faulty), &dir.path().join("through"));
    assert_eq!(through.compact().expect("merged").parts, 1);
    assert_sound(&remote);
    assert_all_found(&machine(&remote, &dir.path().join("another")), &wanted);
    keep(&one, &wanted);
    one.share(&Phases::default()).expect("shared");
    gc(&remote, 0);
    assert_eq!(parts_there(&s3).0, 1);
    assert_sound(&remote);
    // By the old list all parts are gone: what is not known is not there, and can be made again.
    let last = machine(&lagging, &dir.path().join("last"));
    let reader = last.reader().expect("a reader");
    assert_eq!(found(&reader, &wanted), 0);
    assert_all_found(&machine(&remote, &dir.path().join("one")), &wanted);
}

#[test]
fn a_list_that_lies_is_told_and_costs_no_entry() {
    let Some(s3) = S3::start().filter(|s3| s3.is_open) else {
        return;
    };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let one = machine(&remote, &dir.path().join("one"));
    for number in 0..3 {
        add_all(&one, number..number + 1);
    }
    let wanted = ids(1, 0..3);
    keep(&one, &wanted);
    one.share(&Phases::default()).expect("shared");
    let folder = format!("index/{}", spec(1).0);
    let parts: Vec<String> = (s3.names().iter())
        .filter_map(|name| name.strip_prefix(&folder)?.strip_prefix('/'))
        .filter_map(|name| Some(name.strip_suffix(".parquet")?.to_owned()))
        .collect();
    let put = |list: &Value| {
        let bytes = canonical_json(list);
        let name = format!("{folder}/{}.parts.json", Digest::of(&bytes));
        s3.put(&name, &bytes);
        name
    };
    let into = |part: &str| BTreeMap::from([(part.to_owned(), Value::Null)]);
    // No list at all, of nothing, of a part that is not there: all is read.
    let garbage = format!("{folder}/{}.parts.json", Digest::of(b"[]"));
    s3.put(&garbage, b"[]");
    let nothing = put(&json!({"version": 1, "parts": {}, "merged": parts}));
    let gone = Digest::of(b"gone").to_string();
    let absent = put(&json!({"version": 1, "parts": into(&gone), "merged": parts}));
    let open = |name: &str| machine(&remote, &dir.path().join(name));
    let told = |problems: &[plumb::store::Problem], name: &str| {
        problems
            .iter()
            .any(|problem| problem.to_string().contains(name))
    };
    let reader = open("two").reader().expect("a reader");
    assert_eq!(found(&reader, &wanted), 3);
    assert!(told(&reader.problems(), &garbage) && told(&reader.problems(), &nothing));
    assert!(!told(&reader.problems(), &absent));
    for name in [&garbage, &nothing] {
        s3.remove(name);
    }
    // One that hides entries.
    let lie = put(&json!({"version": 1, "parts": into(&parts[0]), "merged": &parts[1..]}));
    let reader = open("three").reader().expect("a reader");
    assert_eq!(found(&reader, &wanted), 1);
    let checked = object_storage::check(&remote).expect("checked");
    assert!(told(&checked.problems, &lie), "{:?}", checked.problems);
    gc(&remote, 0);
    assert_eq!(parts_there(&s3).0, 3);
    s3.remove(&lie);
    assert_sound(&remote);
    assert_all_found(&open("four"), &wanted);
    // What it became is damaged: then what was merged is read.
    one.compact().expect("merged");
    let new = s3.names().into_iter().find(|name| {
        name.ends_with(".parquet") && !parts.iter().any(|part| name.contains(part.as_str()))
    });
    let new = new.expect("a merged part");
    let sound = s3.get(&new);
    s3.put(&new, &sound[..sound.len() - 1]);
    let five = open("five");
    let reader = five.reader().expect("a reader");
    assert_eq!(found(&reader, &wanted), 3);
    assert!(told(&reader.problems(), &new));
    let copy = Store::open_or_create(&dir.path().join("copy")).expect("a store");
    assert_eq!(
        remote
            .pull(&copy, &Phases::default())
            .expect("pulled")
            .problems
            .len(),
        1
    );
    let checked = Store::check(copy.path(), true, &Phases::default()).expect("checked");
    assert_eq!((checked.problems, checked.entries), (vec![], 3));
    s3.put(&new, &sound);
    assert_sound(&remote);
}

#[test]
fn opening_and_pushing_ask_for_what_they_need_and_list_no_packs() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let own = Store::open_or_create(&dir.path().join("own")).expect("a store");
    for number in 0..40 {
        add_all(&own, number..number + 1);
    }
    own.compact().expect("merged");
    let compressed = PushOptions {
        compress: true,
        ..PushOptions::default()
    };
    (s3.remote(&s3.server)
        .push(&own, compressed, &Phases::default()))
    .expect("pushed");
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = asked.clone();
    let watched = proxy(&s3.server, move |method, path, _| {
        let mut log = log.lock().expect("the log");
        log.push(format!("{method} {path}"));
        Fault::None
    });
    let remote = s3.remote(&watched);
    let asked = || std::mem::take(&mut *asked.lock().expect("the log"));
    let lists_packs = |asked: &[String]| {
        let of_packs = |request: &&String| {
            let all = format!("prefix={}%2F&", s3.prefix);
            let is_list = request.contains("list-type=2");
            is_list && (request.contains("packs") || format!("{request}&").contains(&all))
        };
        asked.iter().filter(of_packs).count()
    };
    remote.find().expect("found");
    assert_eq!(asked().len(), 1);
    let store = machine(&remote, &dir.path().join("one"));
    let opened = asked();
    // The marker, three lists, the spec, and what there is of the index.
    assert!(
        opened.len() <= 7 && lists_packs(&opened) == 0,
        "{opened:#?}"
    );
    let one = &ids(1, 3..4);
    let reader = store.reader_of_entries(one).expect("a reader");
    let looked = asked();
    assert_eq!(
        (found(&reader, one), looked.len(), lists_packs(&looked)),
        (1, 1, 0)
    );
    assert!(looked[0].starts_with("HEAD "), "{looked:?}");
    assert!(reads_back(&reader, 1, "caption 3"));
    assert_eq!(asked().len(), 1);
    // A few are asked for by name; for many the packs are listed where these are not many more.
    let all = ids(1, 0..40);
    let reader = store.reader_of_entries(&all).expect("a reader");
    let looked = asked();
    assert_eq!(
        (found(&reader, &all), looked.len(), lists_packs(&looked)),
        (40, 1, 1)
    );
    add_all(&store, 40..41);
    keep(&store, &ids(1, 3..41));
    asked();
    let shared = store
        .share(&Phases::default())
        .expect("shared")
        .expect("a report");
    let pushed = asked();
    assert_eq!((shared.packs, shared.index_parts, shared.runs), (1, 1, 1));
    // What the run uses of what others pushed is looked for, too.
    assert_eq!(lists_packs(&pushed), 1, "{pushed:#?}");
    let again = store
        .share(&Phases::default())
        .expect("shared")
        .expect("a report");
    assert_eq!((again.packs, again.index_parts, again.runs), (0, 0, 0));
    let nothing = asked();
    // Each pack in the folder is looked for, by one name or two: it may be lost there.
    assert!(
        nothing.len() <= 13 && lists_packs(&nothing) == 0,
        "{nothing:#?}"
    );
    assert_sound(&remote);
    // A pack that is lost is missed, and its entries are made again.
    let pack = s3
        .names()
        .into_iter()
        .find(|name| name.ends_with(".planes"));
    s3.remove(&pack.expect("a pack in shared form"));
    let other = machine(&s3.remote(&s3.server), &dir.path().join("two"));
    let reader = other.reader_of_entries(&all).expect("a reader");
    assert_eq!(found(&reader, &all), 39);
    let lost = (0..40)
        .find(|n| found(&reader, &ids(1, *n..n + 1)) == 0)
        .expect("lost");
    add_all(&other, lost..lost + 1);
    other.share(&Phases::default()).expect("shared");
    assert_sound(&s3.remote(&s3.server));
}

#[test]
fn batches_and_ranges_bring_what_they_touch_and_see_what_others_push() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let one = machine(&remote, &dir.path().join("one"));
    add_all(&one, 0..MANY);
    one.share(&Phases::default()).expect("shared");
    one.compact().expect("merged");
    add(&one, 2, &["of another spec"]).expect("added");
    one.share(&Phases::default()).expect("shared");

    let other = machine(&remote, &dir.path().join("other"));
    let (lookup, (first, second)) = (other.lookup(), (spec(1).0, spec(2).0));
    let large = || files(other.path(), ".parquet").len() - 1;
    assert!(other.has_entries(&second).expect("looked"));
    assert_eq!(large(), 0);
    let looked = |range: std::ops::Range<usize>| {
        let wanted = ids(1, range);
        found(
            &lookup.reader_of_entries(&wanted).expect("a reader"),
            &wanted,
        )
    };
    assert_eq!((looked(5..10), large()), (5, 1));
    // Of what others push, a look at the store tells: here, that of pushing something.
    let push = |store: &Store, caption: &str| {
        add(store, 2, &[caption]).expect("added");
        store.share(&Phases::default()).expect("shared");
    };
    add_all(&one, MANY..MANY + 5);
    one.share(&Phases::default()).expect("shared");
    assert_eq!(looked(MANY - 5..MANY + 5), 5);
    push(&other, "a");
    assert_eq!(looked(MANY - 5..MANY + 5), 10);
    // What was merged goes from the folder, and what it became comes.
    one.compact().expect("merged");
    push(&other, "b");
    assert_eq!((looked(0..MANY + 5), large()), (MANY + 5, 3));

    let late = machine(&remote, &dir.path().join("late"));
    let mut specs = vec![first, second];
    specs.sort_unstable();
    assert_eq!(late.specs().expect("specs"), specs);
    let all = one.reader().expect("a reader").entries(&first);
    let range = EntryRange::beginning("0").expect("digits");
    let some = late.reader_of_range(&specs, range).expect("a reader");
    let expected = all
        .iter()
        .filter(|entry| entry.to_string().starts_with('0'));
    assert!(some.entries(&first).iter().eq(expected));
    assert_eq!(late.num_entries(&first).expect("counted"), all.len() as u64);
    let report = plumb::inspect::store(&late, &Phases::default()).expect("told");
    let entries = report.specs.iter().map(|spec| (spec.spec, spec.entries));
    let entries: BTreeMap<_, _> = entries.collect();
    assert_eq!(entries[&first], all.len() as u64);
    assert_eq!(entries[&second], 3);
}
