//! Whole commands on a disk that is full or may not be written: a small file system of their own, in a namespace
//! of their own, where the machine allows one.

use std::process::Command;

use crate::world::World;

/// Runs `script` with `folder` on an empty file system of `size`, as the superuser of a new namespace. Gives what
/// was printed and whether it went well; nothing where the machine has no such namespaces.
pub(crate) fn on_small_disk(
    world: &World,
    folder: &str,
    size: &str,
    script: &str,
) -> Option<(bool, String)> {
    let mount = format!("mkdir -p {folder} && mount -t tmpfs -o size={size} tmpfs {folder}");
    let shell = |script: &str| {
        Command::new("unshare")
            .args(["-rm", "sh", "-c", script])
            .current_dir(world.path("."))
            .env("PLUMB", env!("CARGO_BIN_EXE_plumb"))
            .env(
                "XDG_CACHE_HOME",
                std::env::temp_dir().join("plumb-tests-cache"),
            )
            .output()
    };
    if !shell(&mount).is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: this machine allows no file system of one's own");
        return None;
    }
    let output = shell(&format!("{mount} && {script}")).expect("started");
    let text = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn a_disk_without_room_is_told_before_encode_begins_and_more_space_lets_it_go_on() {
    let world = World::new();
    let captions: Vec<String> = (0..200).map(|n| format!("a red circle {n}")).collect();
    world.write("captions.txt", &captions.join("\n"));
    let script = "
        $PLUMB encode exp.toml --captions captions.txt; test $? = 1 || exit 9
        $PLUMB store check store --read-data || exit 8
        mount -o remount,size=64m store
        $PLUMB encode exp.toml --captions captions.txt --quiet || exit 7
        $PLUMB store check store --read-data";
    let Some((well, said)) = on_small_disk(&world, "store", "2m", script) else {
        return;
    };
    assert!(well, "{said}");
    assert!(said.contains("its disk has"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_store_that_may_not_be_written_can_be_trained_from_and_refuses_to_encode() {
    let world = World::new();
    let script = "
        $PLUMB encode exp.toml || exit 9
        mount -o remount,ro store
        $PLUMB train exp.toml || exit 8
        echo a new caption > new.txt
        $PLUMB encode exp.toml --captions new.txt; test $? = 1";
    let Some((well, said)) = on_small_disk(&world, "store", "64m", script) else {
        return;
    };
    assert!(well, "{said}");
    assert!(said.contains("nothing keeps `plumb store gc`"), "{said}");
    assert!(
        said.contains("a store that may not be written can still be read"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}
