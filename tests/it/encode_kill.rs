//! A real `plumb encode`, killed at random moments: the store stays sound, and a finished run equals an
//! uninterrupted one.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use plumb::monitor::Silent;
use plumb::rng::{Rng, Stream};
use plumb::store::Store;

use crate::world::World;

/// So many processes are killed.
const KILLS: u64 = 30;

/// Every entry of a store with the digests of its payloads.
pub(crate) fn content(world: &World, store: &str) -> BTreeSet<String> {
    let reader = Store::open(&world.path(store))
        .expect("a store")
        .reader()
        .expect("a reader");
    let mut all = BTreeSet::new();
    for spec in reader.specs().expect("specs") {
        for id in reader.entries(&spec) {
            let entry = reader.get(&spec, &id).expect("sound").expect("there");
            let parts: Vec<String> = entry
                .parts
                .iter()
                .map(|(n, p)| format!("{n} {}", p.digest))
                .collect();
            all.insert(format!("{spec} {id} {parts:?}"));
        }
    }
    all
}

#[test]
fn a_killed_encode_costs_nothing_but_the_batch_in_flight() {
    let world = World::new();
    let captions: Vec<String> = (0..2000)
        .map(|n| format!("a {n} red circle, number {}", n % 7))
        .collect();
    world.write("captions.txt", &captions.join("\n"));
    let encode = ["encode", "exp.toml", "--captions", "captions.txt"];
    world.run(&encode).expect(0);
    let expected = content(&world, "store");
    assert!(expected.len() >= 3 * captions.len());

    world.edit("path = \"store\"", "path = \"killed\"");
    let mut killed = 0;
    for round in 0..KILLS {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plumb"))
            .args(encode)
            .current_dir(world.path("."))
            .env(
                "XDG_CACHE_HOME",
                std::env::temp_dir().join("plumb-tests-cache"),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let wait = Rng::new(1, Stream::Shuffle, round, 0).below(700);
        std::thread::sleep(Duration::from_millis(wait));
        killed += u64::from(child.try_wait().expect("a status").is_none());
        child.kill().expect("killed");
        child.wait().expect("gone");
        if world.path("killed/store.json").exists() {
            let report = Store::check(&world.path("killed"), true, &Silent).expect("a store");
            assert!(
                report.problems.is_empty(),
                "after kill {round}: {:?}",
                report.problems
            );
        }
    }
    assert!(killed > 0, "every run was over before it was killed");
    world.run(&encode).expect(0);
    assert!(
        content(&world, "killed") == expected,
        "the finished run has other entries"
    );
}
