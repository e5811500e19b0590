//! `plumb completions` and `plumb man`.

use std::process::Command;

use crate::util::plumb_with;

#[test]
fn bash_completes_commands_and_options() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = plumb_with(folder.path(), &["completions", "bash"], &[]).expect(0);
    std::fs::write(folder.path().join("plumb.bash"), &ran.stdout).expect("written");
    let complete = "source ./plumb.bash; COMP_WORDS=(plumb \"$@\"); COMP_CWORD=$#; \
                    _plumb plumb \"${!#}\" plumb; echo \"${COMPREPLY[@]}\"";
    for (words, found) in [
        (vec!["enc"], "encode"),
        (vec!["encode", "--par"], "--part"),
        (vec!["store", "pu"], "push pull"),
    ] {
        let bash = Command::new("bash")
            .args(["-c", complete, "bash"])
            .args(&words)
            .current_dir(folder.path())
            .output();
        let Ok(bash) = bash else {
            println!("skipped: there is no bash");
            return;
        };
        assert_eq!(
            String::from_utf8_lossy(&bash.stdout).trim(),
            found,
            "{bash:?}"
        );
    }
}

#[test]
fn every_command_has_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = |name: &str| std::fs::read_to_string(folder.path().join("man").join(name));
    plumb_with(folder.path(), &["man", "man"], &[])
        .expect(0)
        .says("man plumb");
    assert!(page("plumb.1").expect("written").contains("plumb\\-encode"));
    assert!(page("plumb-store-push.1").expect("written").contains(".TH"));
    std::fs::write(folder.path().join("file"), "").expect("written");
    plumb_with(folder.path(), &["man", "file"], &[])
        .expect(1)
        .says("cannot be written");
}
