//! `plumb worker`: Arrow in, Arrow out, by the real program.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;

use crate::encode_kill::content;
use crate::s3::S3;
use crate::util::plumb_with;
use crate::world::World;

fn command(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plumb"));
    command
        .args(["worker", "exp.toml", "--device", "cpu"])
        .args(args)
        .current_dir(world.path("."))
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("plumb-tests-cache"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(world: &World, args: &[&str]) -> Child {
    command(world, args).spawn().expect("started")
}

fn batch(first: i64, captions: &[Option<&str>]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(first..first + captions.len() as i64);
    let columns: [(&str, ArrayRef); 2] = [
        ("id", Arc::new(ids)),
        ("caption", Arc::new(StringArray::from(captions.to_vec()))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true)));
    batch.expect("a batch")
}

fn sink(child: &mut Child) -> StreamWriter<ChildStdin> {
    let stdin = child.stdin.take().expect("a pipe");
    StreamWriter::try_new(stdin, &batch(0, &[]).schema()).expect("a writer")
}

/// Its exit status, and what it said.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

/// All batches of a conversation, which ends with `status`.
fn talk(world: &World, args: &[&str], batches: &[RecordBatch], status: i32) -> Vec<RecordBatch> {
    let mut child = start(world, args);
    let mut to = sink(&mut child);
    let mut from = StreamReader::try_new(child.stdout.take().expect("a pipe"), None);
    let from = from.as_mut().expect("a schema, before any batch was sent");
    let mut made = Vec::new();
    for batch in batches {
        to.write(batch).expect("written");
        let mut rows = 0;
        // What is made of a batch comes before the next one is sent.
        while rows < batch.num_rows() {
            let part = from.next().expect("rows").expect("a batch");
            rows += part.num_rows();
            made.push(part);
        }
        assert_eq!(rows, batch.num_rows());
    }
    to.finish().expect("the end");
    assert!(from.next().is_none());
    drop(to);
    let (found, said) = ended(child);
    assert_eq!(found, Some(status), "{said}");
    made
}

/// By slot: the entry, how many parts it has, and whether each tensor's bytes, where there are some, are those of its digest.
fn entries(batch: &RecordBatch, row: usize) -> BTreeMap<String, String> {
    let entries = batch.column_by_name("entries").expect("entries");
    let entries = entries.as_list::<i32>().value(row);
    let entries = entries.as_struct();
    let text = |name: &str, at: usize| {
        let column = entries.column_by_name(name).expect("a column");
        column.as_string::<i32>().value(at).to_owned()
    };
    let mut found = BTreeMap::new();
    for at in 0..entries.len() {
        let parts = entries.column_by_name("parts").expect("parts");
        let parts = parts.as_list::<i32>().value(at);
        let parts = parts.as_struct();
        let digests = parts.column_by_name("digest").expect("digests");
        let names = parts.column_by_name("part").expect("names");
        let mut described = Vec::new();
        for part in 0..parts.len() {
            let digest = digests.as_string::<i32>().value(part);
            if let Some(data) = parts.column_by_name("data") {
                let data = data.as_binary::<i64>().value(part);
                assert_eq!(blake3::hash(data).to_hex().as_str(), digest);
            }
            let name = names.as_string::<i32>().value(part);
            described.push(format!("{name} {digest}"));
        }
        let (spec, entry) = (text("spec", at), text("entry", at));
        found.insert(text("slot", at), format!("{spec} {entry} {described:?}"));
    }
    found
}

fn errors(batch: &RecordBatch) -> Vec<Option<String>> {
    let errors = batch.column_by_name("error").expect("errors");
    let errors = errors.as_string::<i32>();
    errors.iter().map(|e| e.map(str::to_owned)).collect()
}

#[test]
fn captions_become_entries_row_by_row_or_errors() {
    let world = World::new();
    let captions: Vec<String> = (0..150).map(|n| format!("a red circle, {n}")).collect();
    world.write("captions.txt", &captions.join("\n"));
    world.edit("path = \"store\"", "path = \"encoded\"");
    let encode = ["encode", "exp.toml", "--captions", "captions.txt"];
    world.run(&encode).expect(0);
    let expected = content(&world, "encoded");
    world.edit("path = \"encoded\"", "path = \"store\"");

    let first: Vec<Option<&str>> = captions.iter().map(|c| Some(c.as_str())).collect();
    let long = "x".repeat(70_000);
    let second = [None, Some("a red circle, 7"), Some(&*long), Some("")];
    let batches = [batch(0, &first), batch(150, &second), batch(154, &[])];
    let with_data = talk(&world, &[], &batches, 3);
    assert!(!world.path("store").exists());
    let stored = talk(&world, &["--store"], &batches, 3);
    for made in [&with_data, &stored] {
        let ids = made.iter().flat_map(|part| {
            let ids = part.column_by_name("id").expect("ids");
            ids.as_primitive::<Int64Type>().values().to_vec()
        });
        assert!(ids.eq(0..154), "the rows that came, in their order");
        let errors: Vec<_> = made.iter().flat_map(errors).collect();
        let failed: Vec<usize> = (0..154).filter(|&row| errors[row].is_some()).collect();
        assert_eq!(failed, [150, 152]);
        assert!(errors[150].as_ref().expect("why").contains("null"));
        assert!(errors[152].as_ref().expect("why").contains("70000 bytes"));
    }
    let rows = |made: &[RecordBatch]| -> Vec<_> {
        let parts = made.iter();
        parts
            .flat_map(|part| (0..part.num_rows()).map(|row| entries(part, row)))
            .collect()
    };
    let (with_data, stored) = (rows(&with_data), rows(&stored));
    assert_eq!(with_data, stored);
    assert_eq!((with_data[0].len(), with_data[150].len()), (3, 0));
    assert_eq!(with_data[151], with_data[7]);
    let made: BTreeSet<String> = with_data[..150]
        .iter()
        .flat_map(|row| row.values().cloned())
        .collect();
    assert!(made == expected, "what `encode` makes");
    let kept = content(&world, "store");
    // And the empty caption.
    assert_eq!(kept.len(), expected.len() + 3);
    assert!(kept.is_superset(&expected));
    // A second time nothing is written, and the rows are the same.
    let files = crate::util::listing(&world.path("store"));
    let again = talk(&world, &["--store"], &batches[1..2], 3);
    assert_eq!(rows(&again), stored[150..]);
    assert_eq!(crate::util::listing(&world.path("store")), files);
}

/// What the manual says keeps a worker's entries, for captions that no line of a text file can be.
#[test]
fn captions_with_line_ends_are_kept_by_a_file_of_json_lines() {
    let world = World::new();
    let captions = ["two\nlines", " a blank before", ""];
    let stored = talk(&world, &["--store"], &[batch(0, &captions.map(Some))], 0);
    assert_eq!(errors(&stored[0]), [None, None, None]);
    let lines =
        captions.map(|caption| serde_json::json!({ "caption": caption, "id": 1 }).to_string());
    world.write("captions.jsonl", &(lines.join("\n\n") + "\n"));
    let encode = [
        "--json",
        "encode",
        "exp.toml",
        "--captions",
        "captions.jsonl",
    ];
    let report = world.run(&encode).expect(0).json();
    let of_first = &report["captions"][0];
    assert_eq!(
        (&of_first["encoded"], &of_first["present"]),
        (&0.into(), &3.into())
    );
    let gc = ["store", "gc", "store", "--grace-hours", "0"];
    world.run(&gc).expect(0).says("0 entries removed");
    for (line, said) in [
        ("a cat", "captions.jsonl: line 1: "),
        (
            "[\"a cat\"]",
            "line 1: expected an object with `caption`, found a list",
        ),
        ("{\"text\": \"a cat\"}", "line 1: no field `caption`"),
        (
            "\n{\"caption\": 7}",
            "line 2: `caption` is a number, expected a text",
        ),
    ] {
        world.write("captions.jsonl", line);
        world.run(&encode[1..]).expect(1).says(said);
    }
}

#[test]
fn a_batch_is_read_when_the_one_before_is_written() {
    let world = World::new();
    let mut child = start(&world, &[]);
    let mut to = sink(&mut child);
    let sent = AtomicUsize::new(0);
    // Larger than what a pipe takes.
    let captions: Vec<String> = (0..3)
        .map(|n| format!("{n}{}", "x ".repeat(30_000)))
        .collect();
    let captions: Vec<Option<&str>> = captions.iter().map(|c| Some(c.as_str())).collect();
    let batch = batch(0, &captions);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..8 {
                to.write(&batch).expect("written");
                sent.fetch_add(1, Ordering::Relaxed);
            }
            to.finish().expect("the end");
        });
        let stdout = child.stdout.take().expect("a pipe");
        let mut from = StreamReader::try_new(stdout, None).expect("a schema");
        let first = from.next().expect("rows").expect("a batch");
        let mut before = usize::MAX;
        // Until no more is taken.
        while before != sent.load(Ordering::Relaxed) {
            before = sent.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(500));
        }
        assert!(before < 5, "{before} batches taken that nobody reads");
        let rest: usize = from.map(|part| part.expect("a batch").num_rows()).sum();
        assert_eq!(first.num_rows() + rest, 24);
    });
    drop(to);
    assert_eq!(ended(child).0, Some(0));
}

#[test]
fn a_row_says_that_its_entries_are_on_object_storage() {
    let Some(s3) = S3::start() else { return };
    let world = World::new();
    let store = format!("path = \"{}\"", s3.address());
    world.edit("path = \"store\"", &store);
    let variables = s3.variables(&s3.server);
    let mut worker = command(&world, &["--store"])
        .envs(variables.clone())
        .env("XDG_CACHE_HOME", world.path("one"))
        .spawn()
        .expect("started");
    let mut to = sink(&mut worker);
    to.write(&batch(0, &[Some("a red circle"), Some("")]))
        .expect("written");
    let mut from = StreamReader::try_new(worker.stdout.take().expect("a pipe"), None);
    let made = from.as_mut().expect("a schema").next().expect("rows");
    assert_eq!(errors(&made.expect("a batch")), [None, None]);
    // Its machine is lost, with all that lay on its disk.
    worker.kill().expect("killed");
    worker.wait().expect("ended");
    std::fs::write(world.path("captions.txt"), "a red circle\n\n").expect("written");
    let caches = world.path("two").display().to_string();
    let mut all: Vec<(&str, &str)> = (variables.iter())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    all.push(("XDG_CACHE_HOME", &caches));
    let args = ["--json", "encode", "exp.toml", "--captions", "captions.txt"];
    let report = plumb_with(&world.path(""), &args, &all).expect(0).json();
    for encoder in report["captions"].as_array().expect("encoders") {
        assert_eq!(
            (&encoder["encoded"], &encoder["present"]),
            (&0.into(), &2.into()),
            "{report}"
        );
    }
}

#[test]
fn garbage_is_one_line_and_the_end() {
    let world = World::new();
    for (garbage, said) in [
        (
            &b"a cat\n"[..],
            "expected an Arrow IPC stream, found `a ca`",
        ),
        (b"", "ends before its schema"),
    ] {
        let mut child = start(&world, &[]);
        let mut stdin = child.stdin.take().expect("a pipe");
        // It may be gone before it has read.
        let _ = stdin.write_all(garbage);
        drop(stdin);
        let mut made = Vec::new();
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_to_end(&mut made).expect("read");
        assert_eq!(made, b"");
        let (status, told) = ended(child);
        assert_eq!(status, Some(1), "{told}");
        let lines: Vec<&str> = told.lines().collect();
        assert!(
            lines.len() == 1
                && lines[0].starts_with("error: standard input: ")
                && lines[0].contains(said),
            "{told}"
        );
    }
}

#[test]
fn a_signal_ends_a_worker_when_the_batch_it_has_is_answered() {
    use std::os::unix::process::ExitStatusExt as _;
    let world = World::new();
    let kill = |child: &Child| {
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.expect("kill").success());
    };
    // One that waits has nothing to end.
    let mut idle = start(&world, &[]);
    let _to = sink(&mut idle);
    let from = StreamReader::try_new(idle.stdout.take().expect("a pipe"), None);
    from.expect("a schema");
    std::thread::sleep(Duration::from_millis(300));
    kill(&idle);
    assert_eq!(idle.wait().expect("ended").signal(), Some(15));

    let captions: Vec<String> = (0..1000).map(|n| format!("a red circle, {n}")).collect();
    let captions: Vec<_> = captions.iter().map(|c| Some(c.as_str())).collect();
    let mut child = start(&world, &[]);
    let mut to = sink(&mut child);
    let from = StreamReader::try_new(child.stdout.take().expect("a pipe"), None);
    let mut from = from.expect("a schema");
    to.write(&batch(0, &captions)).expect("written");
    let mut rows = from.next().expect("rows").expect("a batch").num_rows();
    assert!(rows < captions.len());
    kill(&child);
    for made in from.by_ref() {
        rows += made.expect("a batch").num_rows();
    }
    assert_eq!(rows, captions.len());
    // It ends although more may come.
    let (status, said) = ended(child);
    assert_eq!(status, Some(143), "{said}");
    assert!(said.contains("ending after this batch"), "{said}");
    drop(to);
}

/// How many threads a program has.
#[cfg(target_os = "linux")]
fn threads(args: &[&str]) -> usize {
    let world = World::new();
    let mut child = start(&world, args);
    let _to = sink(&mut child);
    let from = StreamReader::try_new(child.stdout.take().expect("a pipe"), None);
    from.expect("a schema");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id()));
    let count = tasks.expect("its threads").count();
    child.kill().expect("killed");
    child.wait().expect("ended");
    count
}

#[cfg(target_os = "linux")]
#[test]
fn a_worker_computes_with_as_many_threads_as_it_is_told() {
    assert_eq!(
        threads(&["--threads", "7"]),
        threads(&["--threads", "1"]) + 6
    );
    let world = World::new();
    let none = world
        .run(&["encode", "exp.toml", "--threads", "0"])
        .expect(2);
    none.says("--threads");
}
