//! A script in the host of Python scripts does what it does in a Python of its own, whatever becomes of the others.

use std::path::Path;

use crate::peers::{Ran, Script};

/// That both say the same; what they say.
fn both(make: impl Fn() -> Script) -> Option<Ran> {
    let ran = make().try_run()?;
    let python = std::env::var_os("PLUMB_PYTHON")?;
    assert_eq!(ran, make().alone(&python));
    Some(ran)
}

const TELL: &str = r#"
import os, sys
print(sys.argv, os.getcwd(), os.environ["PLUMB_TOLD"], sys.path[0], __name__, ascii(sys.stdin.read()))
print("of a \u72ac", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"#;

#[test]
fn what_a_script_is_given_and_what_it_says_is_the_same_in_the_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    std::fs::write(dir.join("tell.py"), TELL).expect("a file");
    let given = |script: Script| {
        let script = script.in_folder(dir).variable("PLUMB_TOLD", "a\nb");
        script.arg("3").arg("x y").input("in\n\u{72ac}")
    };
    let Some(ran) = both(|| given(Script::code(TELL))) else {
        return;
    };
    assert_eq!((ran.status, &*ran.stderr), (3, "of a \u{72ac}\n"));
    assert_eq!(
        both(|| given(Script::module("tell")))
            .expect("Python")
            .status,
        3
    );
    let file = || given(Script::new(vec!["tell.py".to_owned()]));
    assert_eq!(both(file).expect("Python").status, 3);
}

#[test]
fn a_script_that_crashes_fails_alone() {
    let Some(ran) = both(|| Script::code("import os; os.kill(os.getpid(), 11)")) else {
        return;
    };
    assert_eq!(ran.status, -11);
    let raises = Script::code("import no_such\n").try_run().expect("Python");
    assert_eq!(raises.status, 1);
    assert!(
        raises.stderr.ends_with("No module named 'no_such'\n"),
        "{raises:?}"
    );
    for broken in ["(", "\0"] {
        let ran = Script::code(broken).try_run().expect("Python");
        assert_eq!(ran.status, 1, "{ran:?}");
    }
    let missing = Script::file("tools/no_such.py").try_run().expect("Python");
    assert!(
        missing.status != 0 && missing.stderr.contains("no_such.py"),
        "{missing:?}"
    );
    assert_eq!(Script::code("print(1)").run().as_deref(), Some("1\n"));
}

/// Waits for a file that is named second, once it has made the first.
const MEET: &str = r#"
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
until = time.monotonic() + 60
while not other.exists():
    if time.monotonic() > until:
        sys.exit("the other does not run")
    time.sleep(0.01)
"#;

#[test]
fn scripts_run_beside_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let meet = |mine: &str, other: &str| {
        let script = Script::code(MEET).in_folder(folder.path());
        script.arg(mine).arg(other).run()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| meet("a", "b"));
        meet("b", "a");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn the_host_ends_with_the_program_that_started_it_and_its_scripts_with_it() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;
    let Some(python) = std::env::var_os("PLUMB_PYTHON") else {
        return;
    };
    let (mut host, socket) = crate::peers::host::start(&python);
    let mut stream = UnixStream::connect(&socket).expect("it waits");
    let folder = tempfile::tempdir().expect("a folder");
    let runs = folder.path().join("runs");
    let sleeps = "import sys, time; open(sys.argv[1], 'w'); time.sleep(600)";
    let argv = ["-c", sleeps, &runs.display().to_string()];
    let request = serde_json::json!({"argv": argv, "cwd": "/", "env": {}, "stdin": ""});
    writeln!(stream, "{request}").expect("it reads");
    while !runs.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(host.stdin.take());
    host.wait().expect("it ends");
    // Closed by the script's process, which is no more.
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("closed");
    assert_eq!(answer, "");
    assert!(!Path::new(&socket).exists());
}
