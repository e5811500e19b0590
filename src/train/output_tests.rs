use std::path::Path;

use super::{Error, LOCK, Needs, OutputFolder};

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let names = entries.map(|e| e.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_is_held_by_one_training_and_left_as_it_was_found() {
    let around = tempfile::tempdir().expect("a folder");
    let path = around.path().join("a/b/out");
    let held = OutputFolder::open(&path, "lora.safetensors").expect("made");
    let said = OutputFolder::open(&path, "lora.safetensors").expect_err("held");
    let process = format!("(process {})", std::process::id());
    assert!(said.to_string().contains(&process), "{said}");
    assert_eq!(names(&path), ["checkpoints", LOCK]);
    drop(held);
    assert_eq!(names(around.path()), [""; 0], "nothing came of it");

    // With something in it, the folder stays, and the lock of a killed training is no hindrance.
    std::fs::create_dir_all(&path).expect("a folder");
    std::fs::write(path.join("mine.txt"), "x").expect("written");
    std::fs::write(path.join(LOCK), "4294967294").expect("written");
    drop(OutputFolder::open(&path, "lora.safetensors").expect("free"));
    assert_eq!(names(&path), ["mine.txt"]);
}

#[test]
fn what_killed_trainings_left_is_removed_and_nothing_else() {
    let around = tempfile::tempdir().expect("a folder");
    let path = around.path();
    std::fs::create_dir_all(path.join("checkpoints")).expect("a folder");
    std::fs::create_dir_all(path.join("previews/.tmp-1-1-held")).expect("a folder");
    let outside = path.join("outside");
    std::fs::write(&outside, "x").expect("written");
    for name in [
        // Nobody holds these.
        ".tmp-4294967294-0-held",
        &format!(".tmp-{}-7-held", std::process::id()),
        "checkpoints/.tmp-1-0-held",
        // Of others, by their names.
        ".tmp-notes",
        ".tmp-1-0",
        "checkpoints/.tmp-x-1",
        "checkpoints/tmp-1-1",
    ] {
        std::fs::write(path.join(name), "x").expect("written");
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, path.join("checkpoints/.tmp-2-2-held")).expect("a link");
    drop(OutputFolder::open(path, "lora.safetensors").expect("free"));
    assert_eq!(
        names(path),
        [
            ".tmp-1-0",
            ".tmp-notes",
            "checkpoints",
            "outside",
            "previews"
        ]
    );
    let mut left = vec![".tmp-x-1", "tmp-1-1"];
    if cfg!(unix) {
        left.insert(0, ".tmp-2-2-held");
    }
    assert_eq!(names(&path.join("checkpoints")), left);
    assert_eq!(names(&path.join("previews")), [".tmp-1-1-held"]);
}

#[test]
fn what_is_in_the_way_is_named_before_anything_is_written() {
    let around = tempfile::tempdir().expect("a folder");
    let path = around.path();
    let said = |out: &str, lora: &str| {
        let opened = OutputFolder::open(&path.join(out), lora);
        opened.expect_err("refused").to_string()
    };
    std::fs::write(path.join("file"), "x").expect("written");
    assert!(said("file", "x").contains("expected a folder"));
    assert!(said("file/deeper", "x").contains("expected a folder"));
    std::fs::create_dir_all(path.join("a/lora.safetensors")).expect("a folder");
    assert!(said("a", "lora.safetensors").contains("expected the LoRA's file"));
    for (part, expected) in [
        ("checkpoints", "expected a folder"),
        ("previews", "expected a folder"),
        ("tensorboard", "expected a folder"),
    ] {
        let out = format!("of-{part}");
        std::fs::create_dir(path.join(&out)).expect("a folder");
        std::fs::write(path.join(&out).join(part), "x").expect("written");
        let said = said(&out, "x");
        assert!(said.contains(expected) && said.contains(part), "{said}");
        assert_eq!(names(&path.join(&out)), [part]);
    }
    std::fs::create_dir_all(path.join("m/metrics.jsonl")).expect("a folder");
    assert!(said("m", "x").contains("metrics.jsonl: expected a file"));
    assert!(said("n", &"x".repeat(300)).contains("cannot be written"));
    assert!(!path.join("n").exists());
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(path.join("nowhere"), path.join("link")).expect("a link");
        assert!(said("link", "x").contains("a link to one"));
        std::fs::create_dir(path.join("real")).expect("a folder");
        std::os::unix::fs::symlink(path.join("real"), path.join("good")).expect("a link");
        OutputFolder::open(&path.join("good"), "x").expect("a link to a folder is one");
    }
}

#[test]
fn a_disk_without_room_is_told_with_what_is_needed() {
    let around = tempfile::tempdir().expect("a folder");
    let folder = OutputFolder::open(around.path(), "x").expect("free");
    let needs = |checkpoint| Needs {
        checkpoint,
        checkpoints: 4,
        lora: 1_000_000,
    };
    folder.check_room(&needs(10)).expect("room");
    let said = folder.check_room(&needs(1 << 60)).expect_err("no room");
    assert!(matches!(said, Error::TooFull { .. }));
    let said = said.to_string();
    assert!(
        said.contains("4 checkpoints of") && said.contains("the LoRA of 1.0 MB"),
        "{said}"
    );
}
