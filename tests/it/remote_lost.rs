//! Stores on object storage: what was lost there is put again, what was given up there stays away, stores of two servers do not mix, and a signal leaves
//! no lease.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plumb::store::PushOptions;

use crate::object_storage::{assert_sound, check, push, store};
use crate::s3::{Fault, S3, proxy};
use crate::store_util::{files, scratch};
use crate::util::{Ran, plumb_with};
use crate::world::World;

/// A world whose store is on object storage, and commands on machines that share nothing else.
struct Machines {
    world: World,
    s3: S3,
}

impl Machines {
    fn new() -> Option<Self> {
        let s3 = S3::start()?;
        let world = World::new();
        let address = s3.address();
        world.edit("path = \"store\"", &format!("path = \"{address}\""));
        Some(Self { world, s3 })
    }

    fn run(&self, machine: &str, args: &[&str]) -> Ran {
        self.run_at(&self.s3.server, machine, args)
    }

    fn run_at(&self, server: &str, machine: &str, args: &[&str]) -> Ran {
        let caches = self.world.path(machine).display().to_string();
        let variables = self.s3.variables(server);
        let mut all: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        all.push(("XDG_CACHE_HOME", &caches));
        plumb_with(&self.world.path(""), args, &all)
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let names = self.s3.names().into_iter();
        names.filter(|name| name.starts_with(folder)).collect()
    }
}

#[test]
fn a_pack_that_is_lost_there_is_pushed_again() {
    let Some(s3) = S3::start() else { return };
    let (dir, remote) = (scratch(), s3.remote(&s3.server));
    let own = store(&dir.path().join("own"));
    push(&remote, &own, PushOptions::default());
    let before = s3.names();
    let pack = before.iter().find(|name| name.starts_with("packs/"));
    let pack = pack.expect("a pack");
    s3.remove(pack);
    let found = check(&remote).expect("checked").problems;
    assert!(!found.is_empty());
    let report = push(&remote, &own, PushOptions::default());
    assert_eq!((report.packs, report.index_parts, report.runs), (1, 0, 0));
    assert_eq!(s3.names(), before);
    assert_sound(&remote);
    let report = push(&remote, &own, PushOptions::default());
    assert_eq!(report.packs, 0);
}

#[test]
fn whoever_has_a_lost_pack_or_encodes_it_again_mends_the_store() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let (s3, encode) = (&machines.s3, ["encode", "exp.toml"]);
    machines.run("one", &encode).expect(0).says("pushed");
    let packs = machines.names("packs/");
    // By the machine that has them, and by one that has nothing.
    for machine in ["one", "two"] {
        for pack in &packs {
            s3.remove(pack);
        }
        machines.run(machine, &encode).expect(0).says("pushed");
        assert_eq!(machines.names("packs/"), packs, "{machine}");
        assert_sound(&s3.remote(&s3.server));
    }
    machines.run("three", &["train", "exp.toml"]).expect(0);
}

#[test]
fn a_run_that_was_given_up_there_stays_away() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let s3 = &machines.s3;
    machines.run("one", &["encode", "exp.toml"]).expect(0);
    let (runs, packs) = (machines.names("runs/"), machines.names("packs/"));
    std::fs::write(machines.world.path("only.txt"), "seen nowhere\nnor this\n").expect("written");
    let more = ["encode", "exp.toml", "--captions", "only.txt"];
    machines.run("one", &more).expect(0).says("pushed");
    let given_up: Vec<String> = (machines.names("runs/").difference(&runs).cloned()).collect();
    assert_eq!(given_up.len(), 1);
    assert!(machines.names("packs/").len() > packs.len());
    s3.remove(&given_up[0]);
    let collect = ["store", "gc", &s3.address(), "--grace-hours", "0"];
    machines.run("two", &collect).expect(0);
    assert_eq!(machines.names("packs/"), packs);
    for machine in ["one", "three"] {
        let ran = machines.run(machine, &["encode", "exp.toml"]).expect(0);
        ran.says("nothing to push");
        assert_eq!(machines.names("packs/"), packs);
        let here = files(&machines.world.path(machine), ".safetensors").len();
        // The other machine never needed one.
        assert_eq!(here, if machine == "one" { packs.len() } else { 0 });
        assert_eq!(machines.names("runs/"), runs);
    }
    // Wanted once more, they come again.
    machines.run("one", &more).expect(0).says("pushed");
    assert_sound(&s3.remote(&s3.server));
    assert!(machines.names("packs/").len() > packs.len());
}

#[test]
fn the_run_of_the_whole_takes_the_place_of_those_of_parts() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let part = |machine, part| {
        let args = ["encode", "exp.toml", "--part", part];
        machines.run(machine, &args).expect(0);
        machines.names("runs/")
    };
    let is_of_part = |name: &String| name.contains(".part-");
    assert!(part("one", "1/2").iter().all(is_of_part));
    // Whoever is the last writes that of the whole.
    let runs = part("two", "2/2");
    assert!(runs.len() == 1 && !runs.iter().any(is_of_part), "{runs:?}");
}

/// The same bucket of what might be two servers.
#[test]
fn stores_of_two_servers_have_folders_of_their_own() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let other = proxy(&machines.s3.server, |_, _, _| Fault::None);
    let encode = ["encode", "exp.toml"];
    machines.run("one", &encode).expect(0);
    machines.run_at(&other, "one", &encode).expect(0);
    let folders = std::fs::read_dir(machines.world.path("one/plumb/stores"));
    assert_eq!(folders.expect("a folder").count(), 2);
    let address = machines.s3.address();
    let path = format!("path = \"{address}\"");
    machines
        .world
        .edit(&path, &format!("{path}\ncache = \"kept\""));
    machines.run("one", &encode).expect(0);
    let refused = machines.run_at(&other, "one", &encode).expect(1);
    refused.says("another store than").says(&machines.s3.server);
    // As it was before servers were told apart.
    let file = machines.world.path("kept/remote.json");
    std::fs::write(&file, format!("{{\"address\":\"{address}\"}}")).expect("written");
    machines.run_at(&other, "one", &encode).expect(0);
    machines.run("one", &encode).expect(1).says(&other);
    std::fs::write(&file, "{").expect("written");
    machines
        .run("one", &encode)
        .expect(1)
        .says("remote.json")
        .says("expected `address`");
}

#[test]
fn what_cannot_be_sent_is_refused_by_the_name_of_its_variable() {
    let dir = scratch();
    for (name, value) in [
        ("AWS_ENDPOINT_URL", "localhost:9000"),
        ("AWS_ENDPOINT_URL", "http://"),
        ("AWS_ENDPOINT_URL", "http://localhost:99999"),
        ("AWS_ENDPOINT_URL", " http://localhost:9000"),
        ("AWS_ACCESS_KEY_ID", "hunter2hunter2\n"),
        ("AWS_SESSION_TOKEN", "hunter2hunter2\u{fc}"),
        ("AWS_REGION", "eu\nwest"),
    ] {
        let keys = [
            ("AWS_ACCESS_KEY_ID", "AKIATEST"),
            ("AWS_SECRET_ACCESS_KEY", "of no interest"),
        ];
        let mut all: Vec<_> = keys.into_iter().filter(|(n, _)| *n != name).collect();
        all.push((name, value));
        let args = ["store", "check", "s3://bucket/prefix"];
        let ran = plumb_with(dir.path(), &args, &all).expect(1).says(name);
        assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    }
}

#[test]
#[cfg(unix)]
fn a_signal_leaves_no_lease() {
    let Some(s3) = S3::start() else { return };
    let (dir, remote) = (scratch(), s3.remote(&s3.server));
    push(
        &remote,
        &store(&dir.path().join("own")),
        PushOptions::default(),
    );
    // Time to send one: an index is not read at once.
    let slow = proxy(&s3.server, |method, path, _| match method {
        "GET" if path.contains("/index/") => Fault::Late(3000),
        _ => Fault::None,
    });
    for (signal, status) in [("INT", 2), ("TERM", 15)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plumb"))
            .args(["store", "gc", &s3.address(), "--grace-hours", "0"])
            .envs(s3.variables(&slow))
            .env("XDG_CACHE_HOME", dir.path().join("caches"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let has_lease = || {
            s3.names()
                .iter()
                .any(|name| name.starts_with("leases/remove-"))
        };
        let begun = Instant::now();
        while !has_lease() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no lease");
            std::thread::sleep(Duration::from_millis(10));
        }
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .status();
        assert!(sent.is_ok_and(|sent| sent.success()));
        let ended = child.wait().expect("a status");
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(ended.signal(), Some(status));
        assert!(!has_lease(), "{:?}", s3.names());
    }
    assert_sound(&remote);
}
