//! Any sequence of operations leaves what a plain set of captions says.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use plumb::monitor::Silent;
use plumb::store::{GcOptions, Lacking, Store};
use proptest::prelude::*;

use crate::store_util::{entry, put, readable, scratch, spec};

const CAPTIONS: [&str; 8] = [
    "a",
    "bb",
    "ccc",
    "dddd",
    "e",
    "f",
    "g",
    "a much longer caption than the others",
];

#[derive(Clone, Debug)]
enum Op {
    /// Puts captions under a spec and commits them, in packs of at most so many bytes.
    Add(u32, Vec<usize>, usize),
    /// As `Add`, and then merges index parts if need be.
    Finish(u32, Vec<usize>),
    /// Puts without committing.
    Abandon(u32, Vec<usize>),
    /// Keeps only these.
    Collect(Vec<(u32, usize)>),
    Rebuild,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let spec = 1..3u32;
    let some = || prop::collection::vec(0..CAPTIONS.len(), 1..5);
    prop_oneof![
        4 => (spec.clone(), some(), prop_oneof![Just(4usize << 10), Just(1 << 20)]).prop_map(|(s, c, l)| Op::Add(s, c, l)),
        1 => (spec.clone(), some()).prop_map(|(s, c)| Op::Finish(s, c)),
        1 => (spec.clone(), some()).prop_map(|(s, c)| Op::Abandon(s, c)),
        1 => prop::collection::vec((spec, 0..CAPTIONS.len()), 1..10).prop_map(Op::Collect),
        1 => Just(Op::Rebuild),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_leaves_what_the_model_says(ops in prop::collection::vec(op(), 1..16)) {
        let dir = scratch();
        let mut store = Store::open_or_create(dir.path()).expect("new");
        let mut model: BTreeSet<(u32, usize)> = BTreeSet::new();
        for op in &ops {
            apply(&mut store, op, &mut model);
            for number in [1, 2] {
                let expected: Vec<&str> = (0..CAPTIONS.len()).filter(|&c| model.contains(&(number, c))).map(|c| CAPTIONS[c]).collect();
                prop_assert_eq!(readable(&store, number, &CAPTIONS), expected, "spec {} after {:?}", number, op);
            }
        }
        prop_assert_eq!(Store::check(dir.path(), true, &Silent).expect("check").problems, vec![]);
    }
}

fn apply(store: &mut Store, op: &Op, model: &mut BTreeSet<(u32, usize)>) {
    let names =
        |captions: &[usize]| -> Vec<&str> { captions.iter().map(|&c| CAPTIONS[c]).collect() };
    match op {
        Op::Add(number, captions, limit) => {
            let mut writer = store.writer().expect("a writer");
            writer.set_pack_limit_bytes(*limit);
            put(&mut writer, *number, &names(captions)).expect("put");
            writer.commit().expect("commit");
            model.extend(captions.iter().map(|&c| (*number, c)));
        }
        Op::Finish(number, captions) => {
            let mut writer = store.writer().expect("a writer");
            put(&mut writer, *number, &names(captions)).expect("put");
            writer.finish().expect("finish");
            model.extend(captions.iter().map(|&c| (*number, c)));
        }
        Op::Abandon(number, captions) => {
            let mut writer = store.writer().expect("a writer");
            put(&mut writer, *number, &names(captions)).expect("put");
        }
        Op::Collect(kept) => {
            let used: Vec<_> = kept
                .iter()
                .map(|&(number, c)| {
                    let (id, _) = spec(number);
                    (id, entry(&id, CAPTIONS[c]).entry)
                })
                .collect();
            store
                .write_run("model", &used, serde_json::json!({}), Lacking::LeaveOut)
                .expect("run");
            let options = GcOptions {
                now: SystemTime::now() + Duration::from_secs(1_000_000),
                grace: Duration::from_secs(1),
                dry_run: false,
                // Where nothing is left of what was wanted, the run is empty.
                without_runs: true,
            };
            store.gc(&options, &Silent).expect("gc");
            model.retain(|key| kept.contains(key));
            std::fs::remove_file(store.path().join("runs/model.json")).expect("there");
        }
        Op::Rebuild => _ = Store::rebuild_index(store.path(), &Silent).expect("rebuild"),
        Op::Reopen => *store = Store::open(store.path()).expect("open"),
    }
}
