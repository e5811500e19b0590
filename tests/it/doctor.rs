//! `plumb doctor`, on a machine that is well and one that is not.

use serde_json::Value;

use crate::util::plumb_with;

/// A field of what was found of something.
fn told<'a>(found: &'a Value, what: &str, field: &str) -> &'a str {
    let all = found.as_array().expect("a list");
    let one = all.iter().find(|finding| finding["what"] == what);
    one.expect(what)[field].as_str().expect("text")
}

#[test]
fn what_a_machine_lacks_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let caches = folder.path().join("caches");
    let caches = caches.to_str().expect("UTF-8");
    let well = [("XDG_CACHE_HOME", caches), ("HF_TOKEN", "hf_secret")];
    let ran = plumb_with(folder.path(), &["doctor"], &well);
    let ran = ran.says("with a token").says("cores may be used");
    let ran = ran.says("`plumb train --gpus N`");
    assert!(!ran.stdout.contains("hf_secret") && !ran.stderr.contains("hf_secret"));

    // A file where the folder of caches should be.
    std::fs::write(folder.path().join("file"), "").expect("a file");
    let file = folder.path().join("file");
    let ill = [("XDG_CACHE_HOME", file.to_str().expect("UTF-8"))];
    let ran = plumb_with(folder.path(), &["--json", "doctor", "nowhere"], &ill);
    let found = ran.expect(3).says("problem: cache: ").json();
    let state = |what| told(&found, what, "state");
    assert_eq!((state("cache"), state("disk")), ("problem", "problem"));
    assert_eq!(state("program"), "ok");
}

/// Memory that holds files until somebody needs it is free, in a container too.
#[test]
fn memory_that_holds_files_may_be_used() {
    let number = |text: &str| text.split_whitespace().find_map(|word| word.parse().ok());
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let about: Vec<(String, f64)> = (file("/proc/meminfo").lines())
        .filter_map(|line| Some((line.split_once(':')?.0.to_owned(), number(line)?)))
        .collect();
    let kib = |name: &str| about.iter().find(|(n, _)| n == name).map(|(_, kib)| *kib);
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limit = limits.iter().filter_map(|path| number(&file(path)));
    let limit = limit.fold(f64::INFINITY, f64::min) / 1024.0;
    let (Some(available), Some(total)) = (kib("MemAvailable"), kib("MemTotal")) else {
        eprintln!("skipped: only Linux tells what the test compares with");
        return;
    };
    if limit < total {
        eprintln!("skipped: these processes may not have all of the machine's memory");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let found = plumb_with(folder.path(), &["--json", "doctor"], &[]).json();
    let gb: f64 = number(told(&found, "memory", "found")).expect("GB");
    assert!(
        // Others take memory and give it back meanwhile.
        gb * 1e9 >= 0.7 * available * 1024.0,
        "{gb} GB of {available} KiB"
    );
}
