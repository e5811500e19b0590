//! The Python package under `python/`, by its own tests on the program of these tests.

use std::path::{Path, PathBuf};
use std::process::Command;

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// Runs a file of `python/tests`, or says that it was skipped.
fn run(file: &str) {
    let Some(python) = std::env::var_os("PLUMB_PYTHON") else {
        println!("skipped: PLUMB_PYTHON names no Python with pyarrow, blake3, numpy and torch");
        return;
    };
    let caches = std::env::temp_dir().join("plumb-tests-cache");
    let output = Command::new(python)
        // Into no folder of the sources: `cargo test` leaves them as they are.
        .args(["-B", "-W", "default", "-m", "unittest", "-v", file])
        .current_dir(package().join("tests"))
        .env("PYTHONPATH", package())
        .env("PLUMB_PROGRAM", env!("CARGO_BIN_EXE_plumb"))
        .env("XDG_CACHE_HOME", caches)
        .output()
        .expect("PLUMB_PYTHON runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("Ran 0 tests"), "{said}");
}

#[test]
fn conditioning_is_bit_for_bit_what_inspect_writes() {
    run("test_conditioning");
}

#[test]
fn what_is_missing_changed_or_damaged_is_refused() {
    run("test_refusals");
}

#[test]
fn the_data_set_is_what_training_sees() {
    run("test_dataset");
}

#[test]
fn the_example_of_the_docs_trains_a_lora() {
    run("test_docs");
}

#[test]
fn damaged_files_are_read_or_refused() {
    run("test_fuzz");
}

/// Of Python itself, or where it is asked for: everybody else has to be installed with the package.
const THERE: [&str; 14] = [
    "__future__",
    "collections",
    "dataclasses",
    "io",
    "json",
    "os",
    "re",
    "shutil",
    "subprocess",
    "sysconfig",
    "torch",
    "typing",
    "warnings",
    "plumb",
];

#[test]
fn the_package_depends_on_what_it_imports() {
    let text = std::fs::read_to_string(package().join("../pyproject.toml")).expect("pyproject");
    let pyproject: toml::Table = toml::from_str(&text).expect("TOML");
    let listed = pyproject["project"]["dependencies"].as_array();
    let listed: Vec<&str> = listed
        .expect("a list")
        .iter()
        .filter_map(|d| d.as_str())
        .collect();
    let depends = |name: &str| listed.iter().any(|d| d.starts_with(name));
    let mut imported = 0;
    for file in std::fs::read_dir(package().join("plumb"))
        .expect("the package")
        .flatten()
    {
        let Ok(code) = std::fs::read_to_string(file.path()) else {
            continue;
        };
        // Without docstrings, which have examples.
        for line in code.split("\"\"\"").step_by(2).flat_map(str::lines) {
            let words: Vec<&str> = line.trim().split([' ', '.']).collect();
            if let ["import" | "from", name, ..] = words[..]
                && !name.is_empty()
            {
                imported += 1;
                let path = file.path();
                assert!(
                    THERE.contains(&name) || depends(name),
                    "{}: {line}",
                    path.display()
                );
            }
        }
    }
    assert!(imported > 20, "{imported}");
}

#[test]
fn every_file_of_python_tests_is_run() {
    let own = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file!()));
    let own = own.expect("this file");
    let files = std::fs::read_dir(package().join("tests")).expect("tests");
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if let Some(module) = name.strip_suffix(".py").filter(|m| m.starts_with("test_")) {
            assert!(own.contains(&format!("run(\"{module}\")")), "{name}");
        }
    }
}
