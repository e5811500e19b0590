//! Runs the real binary in a folder of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use plumb::monitor::Monitor;

/// What a run of the binary gave.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    story: String,
}

/// Runs `plumb` with `args` in `dir`.
pub(crate) fn plumb(dir: &Path, args: &[&str]) -> Ran {
    plumb_with(dir, args, &[])
}

/// The same, with more variables in its environment.
pub(crate) fn plumb_with(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_plumb"))
        .args(args)
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .envs(variables.iter().copied())
        .output()
        .expect("the binary was built for this test");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    let status = output.status.code().unwrap_or(-1);
    let story = format!(
        "command: plumb {}\nfolder:  {}\nfiles:   {}\nstatus:  {}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---",
        args.join(" "),
        dir.display(),
        listing(dir).join(" "),
        output.status
    );
    Ran {
        status,
        stdout,
        stderr,
        story,
    }
}

impl Ran {
    /// Fails the test with the whole story unless the exit status is `status`.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(
            self.status, status,
            "unexpected exit status\n{}",
            self.story
        );
        assert!(!self.stderr.contains("panicked"), "a panic\n{}", self.story);
        self
    }

    /// Fails the test with the whole story unless standard output or error has `text`.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(said, "`{text}` was not said\n{}", self.story);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON: {e}\n{}", self.story))
    }
}

/// The paths of all files below `dir`, relative and sorted.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if let Ok(relative) = path.strip_prefix(root) {
                found.push(relative.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}

/// Sees to it that no phase goes beyond its end.
#[derive(Default)]
pub(crate) struct Phases(Mutex<Option<(String, u64)>>);

impl Monitor for Phases {
    fn start(&self, what: &str, total: Option<u64>) {
        let mut phase = self.0.lock().expect("no panic inside");
        assert!(phase.is_none(), "{what} in {phase:?}");
        *phase = total.map(|total| (what.to_owned(), total));
    }
    fn advance(&self, amount: u64) {
        if let Some((what, left)) = &mut *self.0.lock().expect("no panic inside") {
            *left = left
                .checked_sub(amount)
                .unwrap_or_else(|| panic!("{what} goes {amount} beyond {left}"));
        }
    }
    fn status(&self, _: &str) {}
    fn finish(&self) {
        *self.0.lock().expect("no panic inside") = None;
    }
    fn note(&self, _: &str) {}
    fn problem(&self, _: &str) {}
}
