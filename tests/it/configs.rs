//! The Experiments that ship, and those that must not pass.

use std::path::{Path, PathBuf};

use plumb::experiment::Experiment;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(folder).expect("a folder of the project");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn every_shipped_experiment_is_valid_and_its_recipe_resolves() {
    for file in [files("configs"), files("configs/demo")].concat() {
        let experiment =
            Experiment::open(&file, &Default::default()).unwrap_or_else(|e| panic!("{e}"));
        plumb::base_model::resolve_recipe(&experiment.model())
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

/// Each file under `tests/experiments/invalid` begins with `# ` and its whole message, without the file's name.
#[test]
fn every_invalid_experiment_fails_with_its_message() {
    for file in files("tests/experiments/invalid") {
        let text = std::fs::read_to_string(&file).expect("readable");
        let expected = text
            .lines()
            .next()
            .and_then(|l| l.strip_prefix("# "))
            .expect("a first line `# message`");
        let error = match Experiment::open(&file, &Default::default()) {
            Err(error) => error.to_string(),
            Ok(experiment) => plumb::base_model::resolve_recipe(&experiment.model())
                .map(|_| String::from("no error"))
                .unwrap_or_else(|e| e.to_string()),
        };
        let found = error
            .replace(&file.display().to_string(), "")
            .trim_start_matches(':')
            .trim()
            .to_owned();
        assert_eq!(found, expected, "{}", file.display());
    }
}
