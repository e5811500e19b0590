//! Another program's output, read within bounds: one that hangs, dies or never ends is an error of one line.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::shown;

/// A program that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(120);
/// One whose output has ended ends itself so soon.
const END: Duration = Duration::from_secs(10);
/// What is kept of what it says about errors.
const SAID_BYTES: usize = 16 << 10;

/// A running program.
pub(super) struct Running {
    name: &'static str,
    child: Child,
    output: Receiver<io::Result<Vec<u8>>>,
    said: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts a program that reads nothing; its output comes in blocks of `block` bytes.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        block: usize,
    ) -> io::Result<Self> {
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // It would write a file where it stands, and colour what it says.
            .env_remove("FFREPORT")
            .env_remove("AV_LOG_FORCE_COLOR");
        // Ctrl-C is for us: what is being read is read to its end, and of it no damage is told.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(piped, 0);
        let mut child = piped.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // One block waits while the next is read.
        let (sender, output) = sync_channel(1);
        thread::spawn(move || {
            if let Some(stdout) = stdout {
                blocks(stdout, block, &sender);
            }
        });
        let said = thread::spawn(move || stderr.map(said).unwrap_or_default());
        Ok(Self {
            name,
            child,
            output,
            said: Some(said),
        })
    }

    /// The next block; a shorter one at the end, then None.
    ///
    /// # Errors
    /// If the program hangs, or its output cannot be read.
    pub(super) fn block(&mut self) -> Result<Option<Vec<u8>>, String> {
        match self.output.recv_timeout(SILENCE) {
            Ok(Ok(block)) => Ok(Some(block)),
            Ok(Err(error)) => Err(format!("{} cannot be read from: {error}", self.name)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "{} gave nothing for {} s and was ended",
                self.name,
                SILENCE.as_secs()
            )),
        }
    }

    /// Waits for its end, once its output has ended. Gives what it said beside its output.
    ///
    /// # Errors
    /// If it failed, with the first line of what it said, or does not end.
    pub(super) fn end(&mut self) -> Result<String, String> {
        let status = self.status()?;
        let said = self.said.take().and_then(|said| said.join().ok());
        let said = said.unwrap_or_default();
        if status.success() {
            return Ok(said);
        }
        let first = said.lines().map(str::trim).find(|line| !line.is_empty());
        let (name, first) = (self.name, first.unwrap_or("it said nothing"));
        Err(format!("{name} failed ({status}): {}", shown::text(first)))
    }

    fn status(&mut self) -> Result<ExitStatus, String> {
        let step = Duration::from_millis(5);
        for _ in 0..END.as_millis() / step.as_millis() {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => thread::sleep(step),
                Err(error) => return Err(format!("{}: {error}", self.name)),
            }
        }
        Err(format!("{} did not end and was ended", self.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is lost if it has ended by itself. The threads end with its pipes.
        if self.child.kill().is_ok() {
            _ = self.child.wait();
        }
    }
}

/// What a program writes, as a whole, and what it says beside that.
///
/// # Errors
/// If it cannot be started, fails, hangs, or writes more than `limit` bytes.
pub(super) fn output(
    name: &'static str,
    command: &mut Command,
    limit: usize,
) -> Result<(String, String), String> {
    let started = Running::start(name, command, 1 << 16);
    let mut running = started.map_err(|e| format!("{name} cannot be started: {e}"))?;
    let mut all = Vec::new();
    while let Some(block) = running.block()? {
        all.extend(block);
        if all.len() > limit {
            return Err(format!("{name} says more than {limit} bytes of it"));
        }
    }
    let said = running.end()?;
    Ok((String::from_utf8_lossy(&all).into_owned(), said))
}

/// Sends the whole of a stream in blocks.
fn blocks(mut stream: impl Read, size: usize, to: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut block = Vec::with_capacity(size);
        let read = stream.by_ref().take(size as u64).read_to_end(&mut block);
        let is_last = read.is_err() || block.len() < size;
        if !block.is_empty() && to.send(Ok(block)).is_err() {
            return;
        }
        if let Err(error) = read {
            _ = to.send(Err(error));
        }
        if is_last {
            return;
        }
    }
}

/// The beginning of a stream of text, of which all is read.
fn said(mut stream: impl Read) -> String {
    let mut said = Vec::new();
    _ = stream
        .by_ref()
        .take(SAID_BYTES as u64)
        .read_to_end(&mut said);
    // Else it would wait for ever for somebody to read on.
    _ = io::copy(&mut stream, &mut io::sink());
    String::from_utf8_lossy(&said).into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_comes_in_blocks_and_a_failure_in_one_line() {
        let mut running = Running::start("sh", &mut shell("printf 12345678"), 3).expect("starts");
        let mut block = || running.block().expect("read");
        assert_eq!(block().as_deref(), Some(&b"123"[..]));
        assert_eq!(block().as_deref(), Some(&b"456"[..]));
        assert_eq!(block().as_deref(), Some(&b"78"[..]));
        assert_eq!(block(), None);
        running.end().expect("it did well");
        let error = output(
            "sh",
            &mut shell("echo; echo bad >&2; echo worse >&2; exit 3"),
            9,
        );
        let error = error.expect_err("it failed");
        assert!(error.contains("3") && error.ends_with(": bad"), "{error}");
        // It never ends.
        let error = output("yes", &mut Command::new("yes"), 3).expect_err("too much");
        assert!(error.contains("more than 3 bytes"), "{error}");
        let said = output("sh", &mut shell("echo a; echo b >&2"), 3);
        assert_eq!(said, Ok(("a\n".to_owned(), "b\n".to_owned())));
        let error = output("none", &mut Command::new("plumb-has-no-such-program"), 3);
        assert!(error.expect_err("nothing").contains("cannot be started"));
    }

    #[test]
    fn a_program_that_is_dropped_is_ended() {
        let running = Running::start("sh", &mut shell("exec sleep 1000"), 3).expect("starts");
        let id = running.child.id().to_string();
        drop(running);
        let there = Command::new("kill")
            .args(["-0", &id])
            .stderr(Stdio::null())
            .status();
        assert!(!there.expect("kill").success());
    }
}
