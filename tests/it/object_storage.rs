//! Stores on object storage, on a real S3 server: there and back, under faults, kills, collection, and with a hostile bucket.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use candle_core::Device;
use plumb::digest::Digest;
use plumb::encode::{self, EncodeOptions, Part, Selection};
use plumb::experiment::Experiment;
use plumb::monitor::{Monitor, never};
use plumb::nn::Kernels;
use plumb::nn::weights::DigestMemo;
use plumb::rng::{Rng, Stream};
use plumb::store::{
    Address, CacheLimit, CheckReport, Error, GcOptions, GcReport, Lacking, Place, PushOptions,
    Remote, Scratch, Store,
};
use serde_json::json;

use crate::s3::{BUCKET, Fault, S3, proxy};
use crate::store_util::{add, entry, files, readable, scratch, spec};
use crate::util::{Phases, listing, plumb_with};
use crate::world::World;

pub(crate) const CAPTIONS: [&str; 6] = ["a", "bb", "ccc", "a longer caption, cut", "\u{e4}", ""];

/// A store with two specs, a run on each, and several packs.
pub(crate) fn store(path: &Path) -> Store {
    let store = Store::open_or_create(path).expect("a store");
    for number in [1, 2] {
        for some in CAPTIONS.chunks(2) {
            add(&store, number, some).expect("added");
        }
        run(&store, number, &CAPTIONS);
    }
    store
}

fn run(store: &Store, number: u32, captions: &[&str]) {
    let (id, _) = spec(number);
    let entries: Vec<_> = captions.iter().map(|c| (id, entry(&id, c).entry)).collect();
    let name = format!("run-{number}");
    store
        .write_run(&name, &entries, json!({}), Lacking::Refuse)
        .expect("a run");
}

pub(crate) fn push(
    remote: &Remote,
    store: &Store,
    options: PushOptions,
) -> plumb::store::PushReport {
    let report = remote
        .push(store, options, &Phases::default())
        .expect("pushed");
    assert_eq!(report.problems, []);
    report
}

/// Does `work` with a folder for the index, of which nothing stays.
#[track_caller]
fn in_scratch<T>(work: impl FnOnce(&Scratch) -> T) -> T {
    let dir = scratch();
    let done = work(&Scratch::in_folder(dir.path()));
    let left = std::fs::read_dir(dir.path()).expect("a folder").count();
    assert_eq!(left, 0);
    done
}

#[track_caller]
pub(crate) fn check(remote: &Remote) -> Result<CheckReport, Error> {
    in_scratch(|scratch| remote.check(scratch, true, &Phases::default()))
}

#[track_caller]
pub(crate) fn gc(remote: &Remote, options: &GcOptions) -> Result<GcReport, Error> {
    in_scratch(|scratch| remote.gc(scratch, options, Duration::ZERO, &Phases::default()))
}

#[track_caller]
pub(crate) fn assert_sound(remote: &Remote) {
    let report = check(remote).expect("checked");
    assert_eq!(report.problems, []);
}

#[test]
fn a_store_goes_to_object_storage_and_comes_back() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let own = store(&dir.path().join("own"));
    let remote = s3.remote(&s3.server);
    let plain = push(&remote, &own, PushOptions::default());
    assert_eq!((plain.packs, plain.index_parts, plain.runs), (6, 6, 2));
    let again = push(&remote, &own, PushOptions::default());
    assert_eq!((again.packs, again.index_parts, again.runs), (0, 0, 0));
    assert_sound(&remote);

    let copy = dir.path().join("copy");
    let pulled = Store::open_or_create(&copy).expect("a store");
    let report = remote.pull(&pulled, &Phases::default()).expect("pulled");
    assert_eq!((report.packs, report.runs, report.problems), (6, 2, vec![]));
    assert_eq!(files(&copy, ".safetensors").len(), 6);
    let checked = Store::check(&copy, true, &Phases::default()).expect("checked");
    assert_eq!((checked.problems, checked.entries), (vec![], 12));
    // What was pulled is there already, under other names of runs.
    let back = push(&remote, &pulled, PushOptions::default());
    assert_eq!((back.packs, back.index_parts, back.runs), (0, 0, 0));

    // Through a folder: nothing but the index comes before something is read, and what was written goes back.
    let place = Place::remote(remote.clone(), dir.path().join("mirror"), true);
    let mirror = Store::open_at(&place).expect("a store");
    assert_eq!(mirror.shown(), Path::new(&s3.address()));
    assert!(files(mirror.path(), ".safetensors").is_empty());
    assert_eq!(readable(&mirror, 2, &CAPTIONS), CAPTIONS);
    assert_eq!(files(mirror.path(), ".safetensors").len(), 3);
    add(&mirror, 1, &["new"]).expect("added");
    let shared = mirror
        .share(&Phases::default())
        .expect("shared")
        .expect("a report");
    assert_eq!((shared.packs, shared.index_parts), (1, 1));
    assert_sound(&remote);
    // The folder is for this store alone, and is none by itself.
    assert!(Store::open(mirror.path()).is_err());
    // Others find it, and a damaged file is fetched again.
    let other = Place::remote(remote.clone(), dir.path().join("other"), false);
    let other = Store::open_at(&other).expect("a store");
    assert_eq!(readable(&other, 1, &["new", "a"]), ["new", "a"]);
    for pack in files(other.path(), ".safetensors") {
        let mut bytes = std::fs::read(&pack).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&pack, bytes).expect("written");
    }
    assert_eq!(readable(&other, 1, &["new", "a"]), ["new", "a"]);
    if s3.is_open {
        over_http(&s3, &own, dir.path());
    }
}

/// Read-only, with a list that a push left.
fn over_http(s3: &S3, own: &Store, dir: &Path) {
    let public = proxy(&s3.server, |_, _, _| Fault::None);
    let address = format!("http://{public}/{BUCKET}/{}", s3.prefix);
    let address = Address::parse(&address).expect("an address");
    let http = Remote::new(address, &Default::default()).expect("a client");
    let open = || Store::open_at(&Place::remote(http.clone(), dir.join("http"), false));
    let why = open().err().expect("no list").to_string();
    assert!(why.contains("--contents"), "{why}");
    let options = PushOptions {
        contents: true,
        ..PushOptions::default()
    };
    push(&s3.remote(&s3.server), own, options);
    let read = open().expect("a store");
    assert_eq!(readable(&read, 1, &["new", "bb"]), ["new", "bb"]);
    assert_sound(&http);
    add(&read, 1, &["not this"]).expect("added");
    let why = read
        .share(&Phases::default())
        .expect_err("read-only")
        .to_string();
    assert!(why.contains("only read"), "{why}");
}

/// Each step takes an hour of its clock, and the last never ends.
struct Lost(AtomicU64);

static NOW: AtomicU64 = AtomicU64::new(0);

impl Monitor for Lost {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {
        NOW.fetch_add(3600, Ordering::Relaxed);
        let left = self.0.fetch_sub(1, Ordering::Relaxed);
        assert!(left > 0, "the machine is gone");
    }
    fn status(&self, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn problem(&self, text: &str) {
        panic!("{text}");
    }
}

#[test]
fn a_machine_that_is_lost_in_the_middle_of_an_encoding_has_pushed_what_it_made() {
    let Some(s3) = S3::start() else { return };
    let world = World::new();
    let captions: Vec<String> = (0..1000).map(|n| format!("a red circle, {n}")).collect();
    world.write("captions.txt", &captions.join("\n"));
    let path = format!("path = \"{}\"", s3.address());
    world.edit("path = \"store\"", &path);
    let file = world.path("exp.toml");
    let mut experiment = Experiment::open(&file, &Default::default()).expect("valid");
    let remote = s3.remote(&s3.server);
    let on = |machine: &str| Place::remote(remote.clone(), world.path(machine), false);
    experiment.remote_store = Some(on("one"));
    let options = EncodeOptions {
        device: Device::Cpu,
        kernels: Kernels::NONE,
        resident_limit_bytes: u64::MAX,
        wait: Duration::ZERO,
        clock: || NOW.load(Ordering::Relaxed) as f64,
        stop: never,
    };
    let captions = world.path("captions.txt");
    let selection = Selection {
        captions: Some(&captions),
        part: Part::WHOLE,
    };
    // In its fourth step of 128 captions.
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut memo = DigestMemo::open(&world.path("memo.json"));
        encode::run(&experiment, selection, &options, &mut memo, &Lost(3.into())).map(drop)
    }));
    assert!(lost.is_err(), "it ended: {lost:?}");
    assert_sound(&remote);
    let there = || {
        let store = Store::open_at(&on("two")).expect("a store");
        let reader = store.reader().expect("a reader");
        let specs = reader.specs().expect("specs");
        specs
            .iter()
            .map(|spec| reader.entries(spec).len())
            .sum::<usize>()
    };
    // An hour is lost at most: of the first step nothing is pushed before the second.
    assert_eq!(there(), 4 * 128);
    // The next one to encode goes on from there.
    experiment.remote_store = Some(on("two"));
    let mut memo = DigestMemo::open(&world.path("memo.json"));
    let report = encode::run(
        &experiment,
        selection,
        &options,
        &mut memo,
        &Phases::default(),
    );
    let report = report.expect("encoded");
    assert_eq!(
        (report.captions[0].encoded, report.captions[0].present),
        (1000 - 512, 512)
    );
    assert_eq!(there(), 3000);
    assert_sound(&remote);
}

/// A clock that is ahead, so that no file of the test is new, and goes on between its steps.
static AHEAD: AtomicU64 = AtomicU64::new(3600);

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(AHEAD.fetch_add(100, Ordering::Relaxed))
}

#[test]
fn a_bounded_folder_keeps_what_was_read_last_and_what_is_not_pushed() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let own = Store::open_or_create(&dir.path().join("own")).expect("a store");
    let names: Vec<String> = (0..8).map(|n| format!("caption {n}")).collect();
    let captions: Vec<&str> = names.iter().map(String::as_str).collect();
    for caption in &captions {
        add(&own, 1, &[caption]).expect("added");
    }
    let sizes = files(&dir.path().join("own"), ".safetensors").into_iter();
    let sizes = sizes.map(|file| std::fs::metadata(file).expect("a file").len());
    let largest = sizes.max().expect("packs");
    let remote = s3.remote(&s3.server);
    push(&remote, &own, PushOptions::default());
    // Four packs and what is left free for the next.
    let bytes = 4 * largest + largest / 2;
    let limit = CacheLimit { bytes, now: later };
    let place = Place::remote(remote, dir.path().join("mirror"), false).keeping(Some(limit));
    let open = || Store::open_at(&place).expect("a store");
    let mirror = open();
    let held = || -> BTreeSet<PathBuf> {
        files(&dir.path().join("mirror"), ".safetensors")
            .into_iter()
            .collect()
    };
    // The pack that came when a caption was read.
    let read = |caption: &str| {
        let before = held();
        assert_eq!(readable(&mirror, 1, &[caption]), [caption]);
        held().difference(&before).next().cloned()
    };
    let packs: Vec<PathBuf> = (captions[..6].iter().copied())
        .map(|caption| read(caption).expect("fetched"))
        .collect();
    assert_eq!(held(), packs[2..].iter().cloned().collect());
    // What is read again stays longer than what came later.
    assert_eq!(read(captions[2]), None);
    read(captions[6]).expect("fetched");
    assert!(held().contains(&packs[2]) && !held().contains(&packs[3]));

    // What is not over there stays, however much it is, until it is.
    let new: Vec<String> = (0..6).map(|n| format!("new {n}")).collect();
    let before = held();
    for caption in &new {
        add(&mirror, 1, &[caption]).expect("added");
    }
    let unpushed: BTreeSet<PathBuf> = held().difference(&before).cloned().collect();
    assert_eq!(unpushed.len(), new.len());
    read(captions[0]).expect("fetched");
    assert!(held().is_superset(&unpushed));
    mirror.share(&Phases::default()).expect("shared");
    assert!(held().len() <= 4, "{:?}", held());

    // Two at once, with room for a part of what each wants: each reads all, again and again.
    let all: Vec<&str> = captions
        .iter()
        .copied()
        .chain(new.iter().map(String::as_str))
        .collect();
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (all, open) = (&all, &open);
            scope.spawn(move || {
                let store = open();
                let mut rng = Rng::new(7, Stream::Shuffle, number, 0);
                for _ in 0..60 {
                    let caption = all[rng.below(all.len() as u64) as usize];
                    assert_eq!(readable(&store, 1, &[caption]), [caption]);
                }
            });
        }
    });
    assert!(held().len() <= 6, "{:?}", held());
}

#[test]
fn faults_on_the_way_cost_time_and_nothing_else() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let own = store(&dir.path().join("own"));
    let faults = [
        Fault::SlowDown,
        Fault::DoneAndError,
        Fault::Cut,
        Fault::Flip,
        Fault::Close,
        Fault::Late(50),
    ];
    let faulty = proxy(&s3.server, move |method, path, number| {
        let fault = faults[(number / 3) as usize % faults.len()];
        match (number % 3, method, fault) {
            (0 | 1, _, _) => Fault::None,
            // Of an answer that is no object nobody has a digest.
            (_, "GET", Fault::Flip) if path.contains("packs/") || path.contains("index/") => fault,
            (_, _, Fault::Flip) => Fault::None,
            (_, _, fault) => fault,
        }
    });
    let remote = s3.remote(&faulty);
    let options = PushOptions {
        compress: true,
        ..PushOptions::default()
    };
    push(&remote, &own, options);
    let copy = Store::open_or_create(&dir.path().join("copy")).expect("a store");
    let report = remote.pull(&copy, &Phases::default()).expect("pulled");
    assert_eq!((report.packs, report.problems), (6, vec![]));
    for number in [1, 2] {
        assert_eq!(readable(&copy, number, &CAPTIONS), CAPTIONS);
    }
    assert_sound(&s3.remote(&s3.server));

    // A list that lags behind, as some servers have it: nothing is begun on its word.
    let stale = proxy(&s3.server, |_, _, _| Fault::Stale);
    let lagging = s3.remote(&stale);
    lagging.find().expect("the first list is as it is");
    let mut refused = 0;
    for caption in ["later", "and later"] {
        add(&own, 1, &[caption]).expect("added");
        if let Err(why) = lagging.push(&own, PushOptions::default(), &Phases::default()) {
            assert!(why.to_string().contains("lists lag behind"), "{why}");
            refused += 1;
        }
        assert_sound(&s3.remote(&s3.server));
    }
    assert!(refused > 0);
}

#[test]
fn a_push_that_is_killed_names_nothing_that_is_not_there() {
    let Some(s3) = S3::start() else { return };
    let kills: u64 = std::env::var("PLUMB_S3_KILLS").map_or(4, |n| n.parse().expect("a number"));
    let dir = scratch();
    let own = store(&dir.path().join("own"));
    let slow = proxy(&s3.server, |_, _, _| Fault::Late(15));
    let variables = s3.variables(&slow);
    let mut rng = Rng::new(1, Stream::Shuffle, 0, 0);
    let mut killed = 0;
    let mut round = 0;
    while killed < kills {
        round += 1;
        assert!(round < 20 * kills, "only {killed} of {round} were running");
        // Something to push each time.
        add(&own, 1, &[&format!("round {round}")]).expect("added");
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_plumb"))
            .args(["store", "push", "own", &s3.address(), "--wait", "0"])
            .current_dir(dir.path())
            .envs(&variables)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_millis(20 + rng.below(700)));
        if child.try_wait().expect("its state").is_none() {
            child.kill().expect("SIGKILL");
            killed += 1;
        }
        child.wait().expect("it ends");
        match check(&s3.remote(&s3.server)) {
            Ok(report) => assert_eq!(report.problems, [], "round {round}"),
            // Killed before the first object.
            Err(e) => assert!(e.is_no_store(), "round {round}: {e}"),
        }
    }
    println!("{killed} of {round} pushes were killed");
    // Those that died keep no later one out.
    push(&s3.remote(&s3.server), &own, PushOptions::default());
    let copy = Store::open_or_create(&dir.path().join("copy")).expect("a store");
    s3.remote(&s3.server)
        .pull(&copy, &Phases::default())
        .expect("pulled");
    let report = Store::check(&dir.path().join("copy"), true, &Phases::default()).expect("checked");
    assert_eq!((report.problems, report.entries), (vec![], 12 + round));
}

#[test]
fn collection_takes_what_no_run_uses_by_the_clock_of_the_server() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    let own = Store::open_or_create(&dir.path().join("own")).expect("a store");
    add(&own, 1, &["a", "b"]).expect("added");
    add(&own, 1, &["c"]).expect("added");
    add(&own, 2, &["d"]).expect("added");
    run(&own, 1, &["a"]);
    let remote = s3.remote(&s3.server);
    push(&remote, &own, PushOptions::default());
    let options = |hours: u64, dry_run| GcOptions {
        // A clock that is a century ahead.
        now: SystemTime::now() + Duration::from_secs(100 * 365 * 24 * 3600),
        grace: Duration::from_secs(hours * 3600),
        dry_run,
        without_runs: false,
    };
    let gc = |hours, dry_run| gc(&remote, &options(hours, dry_run));
    let young = gc(1, false).expect("collected");
    assert_eq!((young.packs_removed, young.entries_kept), (0, 4));
    if s3.is_open {
        // Whoever adds keeps it out, and whoever removes keeps others out.
        let lease = format!("leases/add-{}.json", "0".repeat(32));
        s3.put(&lease, b"{}");
        let why = gc(0, false).expect_err("busy").to_string();
        assert!(why.contains("adding entries"), "{why}");
        s3.remove(&lease);
        let lease = format!("leases/remove-{}.json", "0".repeat(32));
        s3.put(&lease, b"{}");
        let why = remote.push(&own, PushOptions::default(), &Phases::default());
        let why = why.expect_err("busy").to_string();
        assert!(why.contains("removing objects"), "{why}");
        s3.remove(&lease);
    }
    // Another machine has the index of before.
    let place = Place::remote(remote.clone(), dir.path().join("mirror"), false);
    let before = Store::open_at(&place).expect("a store");
    let told = gc(0, true).expect("told");
    assert_eq!((told.packs_removed, told.entries_removed), (2, 2));
    assert_sound(&remote);
    let done = gc(0, false).expect("collected");
    assert_eq!((done.packs_removed, done.entries_kept), (2, 2));
    assert_sound(&remote);
    // Of the two in one pack, one is used: both stay. What went is not there, and can be encoded again.
    assert_eq!(readable(&before, 1, &["a", "b", "c"]), ["a", "b"]);
    let after = Store::open_at(&place).expect("a store");
    let (id, _) = spec(1);
    let reader = after.reader().expect("a reader");
    assert!(!reader.contains(&id, &entry(&id, "c").entry));
    // From where it still is, a push brings it back.
    push(&remote, &own, PushOptions::default());
    assert_sound(&remote);
    let after = Store::open_at(&place).expect("a store");
    assert_eq!(readable(&after, 1, &["c"]), ["c"]);
    assert_eq!(readable(&after, 2, &["d"]), ["d"]);
}

#[test]
fn a_hostile_or_half_written_bucket_is_told_and_not_believed() {
    let Some(s3) = S3::start().filter(|s3| s3.is_open) else {
        return;
    };
    let dir = scratch();
    let remote = s3.remote(&s3.server);
    let find = || remote.find().expect_err("refused").to_string();
    assert!(find().contains("nothing of a store"));
    s3.put("notes.txt", b"mine");
    let own = store(&dir.path().join("own"));
    let why = remote.push(&own, PushOptions::default(), &Phases::default());
    let why = why.expect_err("refused").to_string();
    assert!(why.contains("other things are there"), "{why}");
    s3.remove("notes.txt");
    push(&remote, &own, PushOptions::default());
    let marker = s3.get("store.json");
    s3.remove("store.json");
    assert!(find().contains("store.json is missing"));
    s3.put("store.json", br#"{"format":"plumb-store","version":99}"#);
    assert!(find().contains("version 99"));
    s3.put("store.json", b"\xff");
    assert!(remote.find().is_err());
    s3.put("store.json", &marker);

    let names = s3.names();
    let named = |start: &str| names.iter().find(|n| n.starts_with(start)).expect(start);
    let (pack, part) = (named("packs/").clone(), named("index/").clone());
    let spec_folder = part.rsplit_once('/').expect("a folder").0.to_owned();
    let sound = s3.get(&pack);
    let mut wrong = sound.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    s3.put(&pack, &wrong);
    // Garbage under its own digest, and names that lead elsewhere.
    let garbage = b"PAR1 this is no table PAR1";
    s3.put(
        &format!("{spec_folder}/{}.parquet", Digest::of(garbage)),
        garbage,
    );
    let bomb = [b"plumb planes 1\n".as_slice(), &u64::MAX.to_le_bytes()].concat();
    let other = Digest::of(b"some other pack").to_string();
    s3.put(
        &format!("packs/{}/{other}.safetensors.planes", &other[..2]),
        &bomb,
    );
    s3.put(
        "runs/evil.json",
        br#"{"version":1,"id":"other","extra":{},"entries":{}}"#,
    );
    let report = check(&remote).expect("checked");
    let told: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    for part in [
        pack.as_str(),
        &other,
        "evil.json",
        &Digest::of(garbage).to_string(),
    ] {
        assert!(told.iter().any(|t| t.contains(part)), "{part}: {told:#?}");
    }
    assert_eq!(told.len(), 4, "{told:#?}");

    let copy = dir.path().join("copy");
    let pulled = Store::open_or_create(&copy).expect("a store");
    let report = remote.pull(&pulled, &Phases::default()).expect("pulled");
    assert!(
        report.packs == 5 && report.problems.len() >= 4,
        "{report:#?}"
    );
    let checked = Store::check(&copy, true, &Phases::default()).expect("checked");
    assert_eq!((checked.problems, checked.entries), (vec![], 10));
    let place = Place::remote(remote.clone(), dir.path().join("mirror"), false);
    let mirror = Store::open_at(&place).expect("a store");
    let read = readable(&mirror, 1, &CAPTIONS).len() + readable(&mirror, 2, &CAPTIONS).len();
    assert_eq!(read, 10);
    let escaped = listing(dir.path())
        .into_iter()
        .filter(|f| f.contains("escaped"));
    assert_eq!(escaped.count(), 0);
    // What cannot be understood may protect something.
    let options = GcOptions {
        now: SystemTime::now(),
        grace: Duration::ZERO,
        dry_run: false,
        without_runs: true,
    };
    assert!(gc(&remote, &options).is_err());
    assert!(s3.names().contains(&pack));
}

#[test]
fn the_commands_say_what_they_do_and_show_no_secrets() {
    let Some(s3) = S3::start() else { return };
    let dir = scratch();
    store(&dir.path().join("own"));
    let variables = s3.variables(&s3.server);
    let mut variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    let caches = dir.path().join("caches").display().to_string();
    variables.push(("XDG_CACHE_HOME", &caches));
    let address = s3.address();
    let run = |args: &[&str]| plumb_with(dir.path(), args, &variables);
    let nothing = run(&["store", "pull", &address, "copy"]).expect(1);
    nothing.says("there is nothing of a store");
    assert!(!dir.path().join("copy").exists());
    let pushed = run(&["store", "push", "own", &address, "--compress"]).expect(0);
    pushed.says("pushed 12 entries in 6 packs");
    run(&["store", "push", "own", &address])
        .expect(0)
        .says("nothing to push");
    let checked = run(&["--json", "store", "check", &address, "--read-data"]).expect(0);
    assert_eq!(checked.json()["entries"], 12);
    let stats = run(&["store", "stats", &address]).expect(0);
    stats.says(&address).says("in 6 packs");
    run(&["inspect", "store", &address])
        .expect(0)
        .says("12 entries in 6 packs");
    run(&["store", "pull", &address, "copy"])
        .expect(0)
        .says("pulled 6 packs");
    run(&["store", "check", "copy", "--read-data"])
        .expect(0)
        .says("sound");
    run(&["store", "gc", &address, "--grace-hours", "0"])
        .expect(0)
        .says("0 entries removed");
    run(&["store", "rebuild-index", &address])
        .expect(2)
        .says("pull");
    run(&["store", "push", "own"])
        .expect(2)
        .says("say where to");
    for (to, says) in [
        ("s3://key:hunter2hunter2@bucket/x", "refused"),
        ("s4://bucket", "no kind of store"),
        ("https://host/x", "only read"),
        ("s3://no-such-bucket/x", "bucket"),
    ] {
        let ran = run(&["store", "push", "own", to]);
        let ran = if s3.is_open { ran.says(says) } else { ran };
        // A server may make the bucket.
        assert!(matches!(ran.status, 1 | 2) || !s3.is_open, "{to}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            !said.contains("hunter2") && said.lines().count() < 3,
            "{said}"
        );
    }
    let bare = plumb_with(
        dir.path(),
        &["store", "check", &address],
        &[("AWS_ACCESS_KEY_ID", "")],
    );
    bare.expect(1).says("set AWS_ACCESS_KEY_ID");
}

#[test]
fn one_machine_encodes_and_another_trains() {
    let Some(s3) = S3::start() else { return };
    let world = World::new();
    let address = s3.address();
    world.edit(
        "path = \"store\"",
        &format!("path = \"{address}\"\ncompress = true\ncache_gb = 1"),
    );
    let variables = s3.variables(&s3.server);
    let run = |machine: &str, args: &[&str]| {
        let caches = world.path(machine).display().to_string();
        let mut all: Vec<(&str, &str)> = variables
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        all.push(("XDG_CACHE_HOME", &caches));
        plumb_with(&world.path(""), args, &all)
    };
    let refused = run("two", &["train", "exp.toml"]).expect(4);
    refused.says(&address).says("plumb encode exp.toml");
    run("one", &["encode", "exp.toml"]).expect(0).says("pushed");
    assert_sound(&s3.remote(&s3.server));
    assert!(
        s3.is_open
            .then(|| s3.names())
            .is_none_or(|names| { names.iter().any(|name| name.ends_with(".planes")) })
    );
    // Nothing is encoded twice, wherever it was encoded.
    let again = run("two", &["--json", "encode", "exp.toml"])
        .expect(0)
        .json();
    assert_eq!(again["captions"][0]["encoded"], 0, "{again}");
    assert_eq!(again["pushed"]["packs"], 0, "{again}");
    run("two", &["store", "pull", "exp.toml"])
        .expect(0)
        .says("fetched");
    run("two", &["train", "exp.toml"]).expect(0);
    // What only a store on object storage has, and what is no address.
    world.edit(&format!("path = \"{address}\""), "path = \"store\"");
    let refused = |field: &str| run("one", &["encode", "exp.toml"]).expect(2).says(field);
    refused("store.cache_gb");
    world.edit("cache_gb = 1", "");
    refused("store.compress");
    world.edit("path = \"store\"", "path = \"s3://a:hunter2@b\"");
    let refused = run("one", &["encode", "exp.toml"]).expect(2);
    assert!(!refused.stderr.contains("hunter2"));
}

/// Over https a store is only read: what it lacks is refused before it is computed, and where it lacks nothing all is well.
#[test]
fn nothing_is_encoded_for_a_store_that_is_only_read() {
    let Some(s3) = S3::start().filter(|s3| s3.is_open) else {
        return;
    };
    let world = World::new();
    world.run(&["encode", "exp.toml"]).expect(0);
    let variables = s3.variables(&s3.server);
    let caches = world.path("caches").display().to_string();
    let mut variables: Vec<(&str, &str)> = (variables.iter())
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    variables.push(("XDG_CACHE_HOME", &caches));
    let run = |args: &[&str]| plumb_with(&world.path(""), args, &variables);
    run(&["store", "push", "store", &s3.address(), "--contents"]).expect(0);
    let public = proxy(&s3.server, |_, _, _| Fault::None);
    let address = format!("http://{public}/{BUCKET}/{}", s3.prefix);
    world.edit("path = \"store\"", &format!("path = \"{address}\""));
    let all = run(&["--json", "encode", "exp.toml"]).expect(0).json();
    assert_eq!(all["captions"][0]["encoded"], 0, "{all}");
    assert!(all.get("pushed").is_none(), "{all}");
    world.write("more.txt", "a caption that is not there");
    let more = ["encode", "exp.toml", "--captions", "more.txt"];
    for _ in 0..2 {
        let refused = run(&more).expect(1);
        refused.says(&format!("{address} is only read, and lacks 3 entries"));
    }
}
