//! `plumb doctor`, on a machine that is well and one that is not.

use crate::util::plumb_with;

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
    let state = |what: &str| {
        let all = found.as_array().expect("a list");
        let one = all.iter().find(|finding| finding["what"] == what);
        one.expect(what)["state"].as_str().expect("text").to_owned()
    };
    assert_eq!(
        (state("cache"), state("disk")),
        ("problem".to_owned(), "problem".to_owned())
    );
    assert_eq!(state("program"), "ok");
}
