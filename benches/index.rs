//! The store's index of up to a hundred million rows, without payloads: packs are empty files of the right length. What is measured
//! are looking up a part, an encoding's captions and captions that are not there, opening all of it, merging, and collecting.
//!
//! `cargo bench -- index 1e6`, `1e7`, `1e8`; `PLUMB_BENCH_DIR` names the folder. Each measurement is a process of its own, so that its
//! peak of memory is its own. A hundred million rows are written as merging leaves them: merging so many is not measured.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use plumb::digest::{Digest, Fingerprint, canonical_json};
use plumb::monitor::Silent;
use plumb::store::{ElementType, GcOptions, Lacking, PartRecord, Record, Store, Summary, TOOL};

use crate::turns::{Seconds, mib};

type Error = Box<dyn std::error::Error>;

/// Rows of 80 tokens of T5-XXL.
const PAYLOAD_BYTES: u64 = 80 * 4096 * 2;
const PACK_ENTRIES: u64 = 400;
const COMMIT: u64 = 1024;
const CAPTIONS: u64 = 100_000;
const PART_OF: u64 = 1000;
/// More rows than these are written sorted, and not collected.
const MERGED_FROM: u64 = 100_000_000;
const COLLECTED_TO: u64 = 1_000_000;

pub(crate) fn run(filter: &str) -> Result<(), Error> {
    if let Some((work, of)) = filter.split_once(':') {
        let (rows, path) = of.split_once(':').ok_or("rows and path")?;
        return measure(work, rows.parse()?, Path::new(path));
    }
    let rows = match filter {
        "" => 1_000_000,
        given => given.parse::<f64>()? as u64,
    };
    let parent = std::env::var_os("PLUMB_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    println!("index: {rows} rows, {PACK_ENTRIES} entries a pack");
    let child = |work: &str| -> Result<(), Error> {
        let argument = format!("{work}:{rows}:{}", dir.path().display());
        let mut command = Command::new(std::env::current_exe()?);
        match command.args(["index", &argument]).status()?.success() {
            true => Ok(()),
            false => Err(format!("{work} failed").into()),
        }
    };
    child("write")?;
    let works: &[&str] = match rows >= MERGED_FROM {
        true => &["part", "captions", "absent"],
        false => &["part", "captions", "merge", "part", "captions", "absent"],
    };
    for work in works {
        child(work)?;
    }
    child("open")?;
    if rows <= COLLECTED_TO {
        child("run")?;
        child("gc")?;
    }
    Ok(())
}

/// Does one thing and tells what it took.
fn measure(work: &str, rows: u64, path: &Path) -> Result<(), Error> {
    let store = Store::open_or_create(path)?;
    let spec = spec();
    let wanted: Vec<(Fingerprint, Fingerprint)> = match work {
        // Entry i is the i-th of all: those of a part follow each other.
        "part" => (rows / 2..rows / 2 + rows / PART_OF)
            .map(|i| (spec, entry(i, rows)))
            .collect(),
        "captions" | "run" => {
            let step = (rows / CAPTIONS).max(1);
            let some = (0..rows).step_by(step as usize);
            some.map(|i| (spec, entry(i, rows))).collect()
        }
        "absent" => (0..CAPTIONS).map(|i| (spec, absent(i))).collect(),
        _ => Vec::new(),
    };
    let start = Seconds::now();
    let found = match work {
        "write" => write(&store, rows)?,
        "merge" => {
            let report = store.compact()?;
            format!("{} parts of {}", report.parts, report.parts_before)
        }
        "open" => format!("{} entries", store.reader()?.entries(&spec).len()),
        "run" => {
            store.write_run("bench", &wanted, serde_json::json!({}), Lacking::Refuse)?;
            format!("{} entries", wanted.len())
        }
        "gc" => {
            let options = GcOptions {
                now: SystemTime::now() + Duration::from_secs(1 << 20),
                grace: Duration::from_secs(1),
                dry_run: true,
                without_runs: false,
            };
            let report = store.gc(&options, &Silent)?;
            format!("{} entries would stay", report.entries_kept)
        }
        _ => {
            // As an encoding looks: what is there, and which captions were cut.
            let reader = store.reader_of_entries(&wanted)?;
            let there = wanted
                .iter()
                .filter(|(spec, entry)| reader.contains(spec, entry));
            let there: Vec<Fingerprint> = there.map(|(_, entry)| *entry).collect();
            let cut = reader.truncated(&spec, &there)?;
            format!("{} of {} there, {cut} cut", there.len(), wanted.len())
        }
    };
    let (taken, read) = (start.since(), io("rchar")?);
    println!(
        "  {work}: {:.2} s (processor {:.2} s), peak {:.0} MiB, read {:.1} MiB; {found}",
        taken.clock,
        taken.processor,
        mib("VmHWM:")?,
        read as f64 / (1 << 20) as f64,
    );
    Ok(())
}

/// Writes the index as commits do, and empty packs.
fn write(store: &Store, rows: u64) -> Result<String, Error> {
    let (id, json) = (spec(), spec_json());
    let mut writer = store.writer()?;
    writer.put_spec(&id, &json)?;
    for pack in 0..rows.div_ceil(PACK_ENTRIES) {
        let path = store.pack_path(&digest("pack", pack));
        fs::create_dir_all(path.parent().ok_or("a folder")?)?;
        File::create_new(path)?.set_len(PACK_ENTRIES * PAYLOAD_BYTES + 8)?;
    }
    let sorted = rows >= MERGED_FROM;
    let batch = if sorted { 1 << 18 } else { COMMIT };
    for start in (0..rows).step_by(batch as usize) {
        let numbers = start..(start + batch).min(rows);
        // Captions come in another order than their fingerprints: a step that has no factor in common with the rows.
        let records = numbers.map(|n| match sorted {
            true => record(n, n.wrapping_mul(999_999_937) % rows, rows),
            false => record(n.wrapping_mul(999_999_937) % rows, n, rows),
        });
        store.write_rows(&id, records.collect(), sorted)?;
    }
    drop(writer);
    let bytes = fs::read_dir(store.path().join("index").join(id.to_string()))?;
    let bytes = bytes.map(|file| Ok(file?.metadata()?.len()));
    let bytes: u64 = bytes.sum::<std::io::Result<u64>>()?;
    Ok(format!("{:.1} bytes a row", bytes as f64 / rows as f64))
}

/// Entry `i` of all by fingerprint, the `n`-th that was written.
fn record(i: u64, n: u64, rows: u64) -> Record {
    const WORDS: [&str; 16] = [
        "a red fox",
        "in the snow",
        "at dusk",
        "oil on canvas",
        "close up",
        "35 mm film",
        "soft light",
        "by the river",
        "two children",
        "an old city",
        "from above",
        "watercolour",
        "in the rain",
        "with a dog",
        "on a table",
        "black and white",
    ];
    let noise = digest("caption", i);
    let noise = noise.as_bytes();
    let words: Vec<&str> = noise
        .iter()
        .take(8)
        .map(|b| WORDS[usize::from(b % 16)])
        .collect();
    let entry = entry(i, rows);
    let mut tokens: Vec<u32> = noise.iter().take(24).map(|b| u32::from(*b) * 97).collect();
    let token_count = tokens.len() as u32;
    // As T5's at 77.
    tokens.resize(77, 0);
    let rms = f32::from(noise[0]) / 64.0;
    Record {
        entry,
        source: format!("{}, number {i}", words.join(", ")),
        tokens,
        token_count,
        truncated: i.is_multiple_of(100),
        tool: TOOL.to_owned(),
        pack: digest("pack", n / PACK_ENTRIES),
        parts: vec![PartRecord {
            part: "hidden".to_owned(),
            tensor: format!("{entry}.hidden"),
            offset: 8 + n % PACK_ENTRIES * PAYLOAD_BYTES,
            length: PAYLOAD_BYTES,
            digest: digest("payload", i),
            dtype: ElementType::Bf16,
            shape: vec![80, 4096],
            summary: Summary {
                mean: rms / 100.0,
                std: rms,
                min: -rms * 9.0,
                max: rms * 11.0,
                rms,
                non_finite: 0,
            },
        }],
    }
}

/// The `i`-th lowest of so many fingerprints, evenly distributed.
fn entry(i: u64, rows: u64) -> Fingerprint {
    let mut bytes = *digest("entry", i).as_bytes();
    let leading = (u128::from(i) << 64) / u128::from(rows);
    bytes[..8].copy_from_slice(&(leading as u64).to_be_bytes());
    Fingerprint::from_bytes(bytes)
}

fn absent(i: u64) -> Fingerprint {
    Fingerprint::from_bytes(*digest("absent", i).as_bytes())
}

fn digest(kind: &str, number: u64) -> Digest {
    Digest::of(format!("{kind} {number}").as_bytes())
}

fn spec_json() -> Vec<u8> {
    canonical_json(&serde_json::json!({"encoder": "of the bench"}))
}

fn spec() -> Fingerprint {
    Fingerprint::from_bytes(*blake3::hash(&spec_json()).as_bytes())
}

/// Bytes that this process read, from the disk or from what the system kept of it.
fn io(name: &str) -> Result<u64, Error> {
    let counts = fs::read_to_string("/proc/self/io")?;
    let mut counts = counts.lines().filter_map(|line| line.split_once(": "));
    let count = counts.find(|(key, _)| *key == name).ok_or("rchar")?.1;
    Ok(count.parse()?)
}
