//! The Python package under `python/`, by its own tests on the program of these tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{Ran, Script};
use crate::store_util::copy_dir;
use crate::util::plumb;

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// A script that imports the package.
pub(crate) fn with_package(script: Script, folder: &Path) -> Script {
    script
        .in_folder(folder)
        .variable("PYTHONPATH", package())
        .variable("PLUMB_PROGRAM", env!("CARGO_BIN_EXE_plumb"))
        .variable(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
}

/// Runs a file of `python/tests`, or says that it was skipped.
fn run(file: &str) {
    let script = Script::module("unittest").arg("-v").arg(file);
    let script = with_package(script, &package().join("tests"));
    let Some(Ran { status, stderr, .. }) = script.try_run() else {
        return;
    };
    assert_eq!(status, 0, "{stderr}");
    assert!(!stderr.contains("Ran 0 tests"), "{stderr}");
}

/// The same with Ray and Daft, which need a Python of their own.
fn run_with_engines(file: &str) {
    let Some(python) = std::env::var_os("PLUMB_ENGINES_PYTHON") else {
        println!(
            "skipped: PLUMB_ENGINES_PYTHON names no Python with ray, daft, pyarrow, blake3 and numpy"
        );
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
        .expect("Python runs");
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
fn the_index_has_what_its_files_have() {
    run("test_index");
}

#[test]
fn the_data_set_is_what_training_sees() {
    run("test_dataset");
}

#[test]
fn pairs_are_what_training_sees() {
    run("test_pairs");
}

/// The blocks of `docs/python.md` in a language.
fn examples(language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(package().join("../docs/python.md")).expect("the docs");
    let begin = format!("```{language}\n");
    text.split(&begin)
        .skip(1)
        .map(|block| block.split("```").next().expect("it ends").to_owned())
        .collect()
}

/// How many modules diffusers finds changed by the LoRA of the docs.
const LOAD: &str = "
import diffusers
t = diffusers.SD3Transformer2DModel.from_pretrained('assets/tiny-sd3', subfolder='transformer')
t.load_lora_adapter('shapes', weight_name='pytorch_lora_weights.safetensors', prefix='transformer')
print(sum('lora_B' in n and bool(p.abs().max() > 0) for n, p in t.named_parameters()))
";

#[test]
fn the_example_of_the_docs_trains_a_lora() {
    let (folder, loops) = (tempfile::tempdir().expect("a folder"), examples("python"));
    let dir = folder.path();
    let code = loops.iter().find(|code| code.contains("optimizer"));
    let code = code.expect("a training loop");
    assert!(code.lines().count() <= 36, "a loop of a few dozen lines");
    // The docs stand at the repository's root.
    for part in ["assets/tiny-sd3", "assets/tiny-style/train"] {
        copy_dir(&package().join("..").join(part), &dir.join(part));
    }
    std::fs::write(dir.join("shapes.toml"), &examples("toml")[0]).expect("a file");
    plumb(dir, &["encode", "shapes.toml"]).expect(0);
    let Some(said) = with_package(Script::code(code), dir).run() else {
        return;
    };
    println!("{}", said.trim());
    let losses: Vec<f64> = said
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(losses[1] < losses[0], "{said}");
    let lora = "shapes/pytorch_lora_weights.safetensors";
    plumb(dir, &["inspect", "lora", "--family", "sd3", lora]).expect(0);
    let loaded = Script::code(LOAD).in_folder(dir).run().expect("Python");
    let changed: usize = loaded.trim().parse().expect("a number");
    assert!(changed > 10, "{changed} modules");
}

#[test]
fn damaged_files_are_read_or_refused() {
    run("test_fuzz");
}

#[test]
fn engines_make_the_store_of_one_process_though_a_machine_is_lost() {
    run_with_engines("test_engines");
}

/// Of Python itself, or where it is asked for: everybody else has to be installed with the package.
const THERE: [&str; 19] = [
    "__future__",
    "argparse",
    "collections",
    "daft",
    "dataclasses",
    "io",
    "json",
    "os",
    "ray",
    "re",
    "shutil",
    "subprocess",
    "sys",
    "sysconfig",
    "tempfile",
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
            assert!(own.contains(&format!("\"{module}\")")), "{name}");
        }
    }
}
