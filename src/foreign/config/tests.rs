//! The shipped data against itself and the Experiment, and hostile configs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value as Json;

use super::knowledge::{Knowledge, Status};
use super::{Error, Imported, Options, Trainer, import};
use crate::experiment::{Experiment, json_schema};

pub(super) fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trainers");
    let (mut folders, mut found) = (vec![root], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("fixtures") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}

/// Imports files by their names, of which the first is the main one.
pub(super) fn imported(files: &[(&str, &str)]) -> Imported {
    let folder = tempfile::tempdir().expect("a folder");
    let mut paths = Vec::new();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        paths.push(path);
    }
    import(&paths, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// The status of the setting at a place, and what is said of it.
pub(super) fn row(found: &Imported, place: &str) -> (Status, String) {
    let row = found.settings.iter().find(|row| row.setting == place);
    let row = row.unwrap_or_else(|| panic!("{place}: {:?}", found.settings));
    (row.status, row.why.clone().unwrap_or_default())
}

fn knowledge() -> Vec<(Trainer, Knowledge)> {
    let of = |trainer| {
        (
            trainer,
            Knowledge::of(trainer).unwrap_or_else(|e| panic!("{e}")),
        )
    };
    Trainer::ALL.into_iter().map(of).collect()
}

#[test]
fn every_field_that_a_rule_sets_is_one_of_the_experiment() {
    let schema: Json = serde_json::from_str(&json_schema().expect("a schema")).expect("JSON");
    let has = |field: &str| {
        let (section, name) = field.split_once('.').expect("a section");
        let part = &schema["properties"][section];
        let part = part.get("items").unwrap_or(part);
        let place = part["$ref"]
            .as_str()
            .expect("a place")
            .trim_start_matches('#');
        schema
            .pointer(&format!("{place}/properties/{name}"))
            .is_some()
    };
    for (trainer, knowledge) in knowledge() {
        for rule in &knowledge.keys {
            for field in rule.targets() {
                // Parts of a recipe and files are by the base model's slots; several sizes are several data sets.
                let is_free = field.starts_with("recipe.") || field.starts_with("model.files.");
                let field = field.replace("resolutions", "resolution");
                assert!(
                    is_free || has(&field),
                    "{trainer}: {:?}: {field}",
                    rule.names
                );
            }
        }
    }
}

/// Names that a trainer does not know have a rule only where that says so.
#[test]
fn rules_are_about_names_that_the_trainer_reads() {
    // Read where no list can see it: by their example's words, from another program.
    let elsewhere = ["launcher", "command", "folder", "implied"];
    for (trainer, knowledge) in knowledge() {
        // Of a table that the trainer reads whole, its name is listed.
        let known = |scope: &str, name: &str| match (trainer, scope) {
            (Trainer::Diffusers, "arguments") => knowledge
                .known
                .scopes
                .values()
                .any(|names| names.contains_key(name)),
            _ => {
                let table = name.split('.').next().unwrap_or(name);
                let mut names = [name, table].into_iter();
                names.any(|name| knowledge.known.place(scope, name).is_some())
            }
        };
        for rule in &knowledge.keys {
            let claims = matches!(
                rule.status,
                Status::Constant | Status::Inert | Status::Unknown
            );
            for (scope, name) in rule
                .scopes
                .iter()
                .flat_map(|scope| rule.names.iter().map(move |name| (scope, name)))
            {
                let is_free = scope == "*"
                    || name == "*"
                    || claims
                    || elsewhere.contains(&scope.as_str())
                    // Passed on by name, or part of a known name.
                    || !knowledge.known.scopes.contains_key(scope)
                    || rule.status == Status::NotNeeded;
                assert!(is_free || known(scope, name), "{trainer}: {scope}.{name}");
            }
        }
    }
}

#[test]
fn every_source_has_an_alias_and_every_default_holds() {
    for (trainer, knowledge) in knowledge() {
        assert_eq!(
            knowledge.known.source,
            knowledge.sources[trainer.name()],
            "{trainer}"
        );
        for rule in &knowledge.keys {
            // What is off for one of several names is on for another: each such name has a rule of its own.
            let is_any = |said: [toml::Value; 2]| rule.off.iter().any(|off| said.contains(off));
            let mixed = is_any([false.into(), 0.into()]) && is_any([true.into(), 1.into()]);
            assert!(
                !mixed || rule.names.len() == 1,
                "{trainer}: {:?}",
                rule.names
            );
            for part in rule.source.iter().flat_map(|source| source.split("; ")) {
                let (alias, place) = part.split_once(':').expect("an alias");
                assert!(knowledge.sources.contains_key(alias), "{trainer}: {part}");
                // A file or a class alone leaves a reader to search for what is claimed.
                let lines = place.rsplit_once(':').map_or("", |(_, lines)| lines);
                let is_lines = |c: char| c.is_ascii_digit() || c == '-' || c == ',';
                let named = !lines.is_empty() && lines.chars().all(is_lines);
                assert!(named, "{trainer}: {part} names no lines");
            }
            let says = rule.text.is_some() || rule.status == Status::Effective;
            assert!(says, "{trainer}: {:?} says nothing", rule.names);
        }
    }
}

#[test]
fn every_fixture_gives_an_experiment_and_a_row_for_every_setting() {
    let (mut seen, mut given) = (BTreeSet::new(), 0);
    for file in fixtures() {
        for keep_recipe in [false, true] {
            let options = Options {
                keep_recipe,
                ..Options::default()
            };
            // Data sets alone name no base model.
            let imported = match import(std::slice::from_ref(&file), &options) {
                Ok(imported) => imported,
                Err(
                    Error::NoModel { .. }
                    | Error::UnknownTrainer { .. }
                    | Error::OtherTrainer { .. },
                ) => continue,
                Err(e) => panic!("{e}"),
            };
            given += 1;
            seen.insert(imported.trainer);
            let name = file.display();
            Experiment::parse(&file, imported.experiment.clone())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            for row in &imported.settings {
                let has_fields = row.status != Status::Effective || !row.fields.is_empty();
                assert!(has_fields, "{name}: {} sets nothing", row.setting);
                let says = row.status == Status::Effective || row.why.is_some();
                assert!(says, "{name}: {} says nothing", row.setting);
            }
        }
    }
    assert_eq!(seen.len(), Trainer::ALL.len(), "{seen:?}");
    assert!(given >= 24, "{given} imports");
}

/// Writes bytes as a config and imports it as whatever it may be; what comes must hold, or be one line.
fn try_import(ending: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(format!("config.{ending}"));
    std::fs::write(&file, bytes).expect("written");
    // By what is in it, and as one of the trainers: which, its length says.
    let other = Trainer::ALL[bytes.len() % Trainer::ALL.len()];
    let model = bytes.len().is_multiple_of(2).then(|| "sdxl".to_owned());
    for from in [None, Some(other)] {
        let options = Options {
            from,
            model: model.clone(),
            keep_recipe: true,
        };
        match import(std::slice::from_ref(&file), &options) {
            Ok(imported) => {
                Experiment::parse(&file, imported.experiment.clone())
                    .unwrap_or_else(|e| panic!("{e}\n{}", imported.experiment));
                assert!(!imported.table().is_empty());
            }
            Err(e) => {
                let message = e.to_string();
                assert!(!message.contains('\n'), "{message}");
                assert!(!message.contains("fault of plumb"), "{message}");
            }
        }
    }
}

#[test]
fn a_data_set_whose_references_cannot_be_taken_is_left_out() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trainers");
    let whole = std::fs::read_to_string(root.join("ai-toolkit/kontext.yaml")).expect("a fixture");
    let before = "control_path: \"/data/before\"";
    for lost in ["\"/data/be\\fore\"", "[\"/data/a\", \"/data/b\"]"] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        let text = whole.replace(before, &format!("control_path: {lost}"));
        assert_ne!(text, whole);
        // A second data set beside it stays.
        let good = "      datasets:\n        - folder_path: /data/other\n          control_path: /data/its\n";
        for (text, left) in [
            (text.clone(), 0),
            (text.replace("      datasets:\n", good), 1),
        ] {
            std::fs::write(&file, text).expect("written");
            let found = import(std::slice::from_ref(&file), &Options::default()).expect("read");
            Experiment::parse(&file, found.experiment.clone()).expect("holds");
            let sets = found.experiment.matches("[[dataset]]").count();
            assert_eq!(sets, left, "{}", found.experiment);
            assert!(!found.experiment.contains("/data/after"));
            let note = found.notes.iter().find(|note| note.contains("left out"));
            let note = note.expect("a note");
            assert!(note.contains("`/data/after` is left out"), "{note}");
            let row = |name: &str| {
                let mut rows = found.settings.iter();
                let row = rows.rfind(|row| row.setting.ends_with(name)).expect(name);
                (row.status, row.why.clone().unwrap_or_default())
            };
            let (status, why) = row("folder_path");
            assert_eq!(status, Status::NotSupported);
            assert!(why.starts_with("its data set is left out"), "{why}");
            assert_eq!(row("control_path").0, Status::NotSupported);
        }
    }
}

#[test]
fn hostile_files_are_refused_in_one_line() {
    let deep = "[".repeat(200_000);
    let long = format!("a: {}", "x".repeat(5 << 20));
    let many = "- {a: 1}\n".repeat(40_000);
    for (ending, bytes) in [
        ("yaml", deep.as_bytes()),
        ("json", deep.as_bytes()),
        ("toml", deep.as_bytes()),
        ("yaml", long.as_bytes()),
        ("yaml", many.as_bytes()),
        ("yaml", b"\xff\xfe\x00a"),
        ("json", b"{\"a\": \"\xff\"}"),
        ("sh", b"\0\x01\x02"),
        ("yaml", b""),
        ("json", b"null"),
        ("toml", b"a = [[[[1]]]]"),
        ("yaml", b"config: {process: 3}"),
        (
            "yaml",
            b"config: {process: [{datasets: {a: 1}, train: [1, {lr: x}]}]}",
        ),
        ("json", b"{\"model_type\": [], \"training_method\": {}}"),
        ("sh", b"accelerate launch train_network.py --network_dim"),
    ] {
        try_import(ending, bytes);
    }
}

/// A value of any kind in place of another.
fn odd() -> impl Strategy<Value = String> {
    let odd = [
        "null",
        "-1",
        "1e308",
        "nan",
        "''",
        "[]",
        "{}",
        "[1, 2, 3]",
        "99999999999999999999",
        "0",
        "true",
        "\"\u{1b}[2J\"",
        "{a: {b: 1}}",
        "[{a: 1}]",
        "-0.0",
        "\"\\n\"",
        "1.5",
    ];
    prop::sample::select(odd.to_vec()).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn damaged_configs_never_panic(
        which in 0_usize..32,
        cuts in prop::collection::vec((0.0_f64..1.0, any::<u8>()), 0..6),
        end in 0.0_f64..1.3,
    ) {
        let files = fixtures();
        let file = &files[which % files.len()];
        let mut bytes = std::fs::read(file).expect("a fixture");
        for (place, byte) in cuts {
            let at = (place * bytes.len() as f64) as usize;
            bytes[at] = byte;
        }
        bytes.truncate((end * bytes.len() as f64) as usize);
        try_import(&file.extension().expect("an ending").to_string_lossy(), &bytes);
    }

    #[test]
    fn settings_of_other_types_never_panic(line in 0_usize..80, value in odd()) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trainers/ai-toolkit");
        for name in ["flux-text-encoders.yaml", "sdxl.yaml"] {
            let text = std::fs::read_to_string(folder.join(name)).expect("a fixture");
            let lines: Vec<String> = text
                .lines()
                .enumerate()
                .map(|(n, text)| match text.split_once(": ") {
                    Some((key, _)) if n == line => format!("{key}: {value}"),
                    _ => text.to_owned(),
                })
                .collect();
            try_import("yaml", lines.join("\n").as_bytes());
        }
    }
}
