//! What once ended in a panic, an abort, a hang or half a picture (`tests/corpus`, written by `tools/corpus.py`), and its kin. Whoever
//! finds another such file puts it there: each gets one clear line, or is read.

use std::path::{Path, PathBuf};

use crate::hostile_text::clean;
use crate::util::Ran;
use crate::world::World;

/// The files of a folder of the corpus, of which there are some.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(folder);
    let entries = std::fs::read_dir(&folder).expect("a folder of the corpus");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() > 10, "{}", folder.display());
    files
}

/// Fails unless the program refused `file` in one line that names it.
#[track_caller]
fn refused(ran: Ran, file: &Path) {
    let name = file.file_name().expect("a name").to_string_lossy();
    let errors = ran.stderr.lines().filter(|l| l.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{name}: {}", ran.stderr);
    let said = ran.says(&name);
    assert!([1, 2].contains(&said.status), "{name}: {}", said.status);
    clean(said);
}

#[test]
fn experiments_of_the_corpus_are_refused_in_one_line() {
    let world = World::new();
    for file in files("experiments") {
        let text = std::fs::read(&file).expect("a file");
        let name = file.file_name().expect("a name").to_string_lossy();
        world.write_bytes(&name, &text);
        refused(world.run(&["train", &name]), &file);
    }
}

#[test]
fn pictures_of_the_corpus_are_refused_in_one_line() {
    let world = World::new();
    for file in files("pictures") {
        let path = file.display().to_string();
        let out = ["--picture", &path, "--out", "x.safetensors"];
        let args = [&["inspect", "latents", "exp.toml"], &out[..]].concat();
        refused(world.run(&args), &file);
    }
}

#[test]
fn weights_and_loras_of_the_corpus_are_refused_in_one_line() {
    let world = World::new();
    for file in files("weights") {
        let path = file.display().to_string();
        refused(world.run(&["import", "lora", &path]), &file);
        let checked = world.run(&["model", "check", &path]);
        match checked.status {
            // A LoRA, or a whole file of tensors that are nobody's, is told as such.
            0 | 3 => drop(clean(checked)),
            _ => refused(checked, &file),
        }
    }
}
