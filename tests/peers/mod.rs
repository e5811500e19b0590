//! Python scripts for tests: comparisons with the libraries that others use. One process imports what they import, which takes up to half
//! a minute, and forks for each; see `host.py`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
#[cfg(unix)]
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A script with what it is given.
pub(crate) struct Script {
    argv: Vec<String>,
    folder: PathBuf,
    variables: BTreeMap<String, String>,
    input: String,
}

/// What a script did.
#[derive(Debug, PartialEq, serde::Deserialize)]
pub(crate) struct Ran {
    /// A negative number is the signal that ended it.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Script {
    /// A file of this repository.
    pub(crate) fn file(relative: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(relative);
        Self::new(vec![path.display().to_string()])
    }

    /// A program as a text.
    pub(crate) fn code(text: &str) -> Self {
        Self::new(vec!["-c".to_owned(), text.to_owned()])
    }

    /// A module of Python or of the script's folder.
    pub(crate) fn module(name: &str) -> Self {
        Self::new(vec!["-m".to_owned(), name.to_owned()])
    }

    /// What comes after `python`.
    pub(crate) fn new(argv: Vec<String>) -> Self {
        Self {
            argv,
            folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            variables: BTreeMap::new(),
            input: String::new(),
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<Path>) -> Self {
        self.argv.push(arg.as_ref().display().to_string());
        self
    }

    pub(crate) fn in_folder(mut self, folder: &Path) -> Self {
        self.folder = folder.to_owned();
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        let value = value.as_ref().display().to_string();
        self.variables.insert(name.to_owned(), value);
        self
    }

    pub(crate) fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    /// What it did; nothing, and a word on it, where no Python is named.
    pub(crate) fn try_run(self) -> Option<Ran> {
        let Some(python) = std::env::var_os("PLUMB_PYTHON") else {
            println!(
                "skipped: PLUMB_PYTHON names no Python with what tools/requirements.txt lists"
            );
            return None;
        };
        #[cfg(target_os = "linux")]
        return Some(host::run(&python, &self));
        #[cfg(not(target_os = "linux"))]
        return Some(self.alone(&python));
    }

    /// The same in a Python of its own: where a process with libraries inside cannot be forked, and to test the host.
    pub(crate) fn alone(&self, python: &OsStr) -> Ran {
        use std::io::Write as _;
        let mut child = Command::new(python)
            .arg("-B")
            .args(&self.argv)
            .current_dir(&self.folder)
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("PLUMB_PYTHON runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(self.input.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        #[cfg(unix)]
        let signal = output.status.signal().map(|signal| -signal);
        #[cfg(not(unix))]
        let signal = None;
        Ran {
            status: output.status.code().or(signal).unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it wrote to its standard output. Nothing where no Python is named; the test fails where the script did.
    #[track_caller]
    pub(crate) fn run(self) -> Option<String> {
        let ran = self.try_run()?;
        assert!(
            ran.status == 0,
            "Python ended with {}\n{}{}",
            ran.status,
            ran.stdout,
            ran.stderr
        );
        Some(ran.stdout)
    }
}

#[cfg(target_os = "linux")]
pub(crate) mod host {
    use std::ffi::OsStr;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::sync::OnceLock;

    use super::{Ran, Script};

    /// Its standard input is open as long as this process lives.
    struct Host {
        _process: Child,
        socket: String,
    }

    /// Starts a host: its process, and the path of its socket.
    pub(crate) fn start(python: &OsStr) -> (Child, String) {
        let mut process = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/host.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("PLUMB_PYTHON runs");
        let mut socket = String::new();
        BufReader::new(process.stdout.take().expect("piped"))
            .read_line(&mut socket)
            .expect("a path");
        (process, socket.trim_end().to_owned())
    }

    pub(super) fn run(python: &OsStr, script: &Script) -> Ran {
        static HOST: OnceLock<Host> = OnceLock::new();
        let host = HOST.get_or_init(|| {
            let (_process, socket) = start(python);
            Host { _process, socket }
        });
        let mut stream = UnixStream::connect(&host.socket).expect("the host waits");
        let request = serde_json::json!({
            "argv": script.argv,
            "cwd": script.folder,
            "env": script.variables,
            "stdin": script.input,
        });
        writeln!(stream, "{request}").expect("the host reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the host answers");
        serde_json::from_str(&answer)
            .unwrap_or_else(|e| panic!("the host of Python scripts ended: {e}"))
    }
}
