//! The store's index of up to a hundred million rows. What is measured are looking up a part, an encoding's captions and captions that are
//! not there, those of a worker batch by batch, what `inspect entry` and `inspect store` look at, opening all of it, merging, checking,
//! collecting and making it anew.
//!
//! `cargo bench -- index ROWS[,WORK...]`: `1e6`, `1e7`, `1e8`, or of a store that is there one or more works, as `1e8,check,gc`. Each is a
//! process of its own, so that its peak of memory is its own. `PLUMB_BENCH_DIR` names the folder in which the store is made and removed;
//! `PLUMB_BENCH_STORE` a folder that is kept, and used again where the store was written.
//!
//! Up to ten million rows stand in packs with payloads of two bytes, as commits leave them: on disk about 1.3 kB a row, twice that while `collect`
//! repacks. More are written as merging leaves them, with empty files of the right length for packs: 165 bytes a row. Of these only the index
//! can be read, so that `check` finds fault with each pack, and nothing is repacked or made anew.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use plumb::digest::{Digest, Fingerprint, canonical_json};
use plumb::monitor::Silent;
use plumb::store::{
    ElementType, EntryRange, GcOptions, Lacking, NewEntry, PartRecord, Record, Store, Summary,
    TOOL, TensorBytes,
};
use serde_json::json;

use crate::turns::{Seconds, mib};

type Error = Box<dyn std::error::Error>;

/// Of the empty packs: rows of 80 tokens of T5-XXL.
const PAYLOAD_BYTES: u64 = 80 * 4096 * 2;
const PACK_ENTRIES: u64 = 400;
const COMMIT: u64 = 1024;
const CAPTIONS: u64 = 100_000;
const PART_OF: u64 = 1000;
/// What a worker is given: so many times so many captions.
const BATCHES: u64 = 100;
const BATCH: u64 = 100;
/// Up to so many rows have payloads.
const PACKED_TO: u64 = 10_000_000;
/// A run has nine tenths of so many entries.
const RUN_OF: u64 = 1_000_000;
/// In the folder that is kept: how many rows were written.
const WRITTEN: &str = "rows-of-the-bench";

const PACKED: &[&str] = &[
    "write", "part", "captions", "worker", "merge", "part", "captions", "absent", "worker",
    "digits", "open", "run", "inspect", "check", "gc", "rebuild", "collect",
];
const EMPTY: &[&str] = &[
    "write", "part", "captions", "absent", "worker", "digits", "open", "run", "inspect", "check",
    "gc",
];

pub(crate) fn run(filter: &str) -> Result<(), Error> {
    if let Some((work, of)) = filter.split_once(':') {
        let (rows, path) = of.split_once(':').ok_or("rows and path")?;
        return measure(work, rows.parse()?, Path::new(path));
    }
    let (rows, named) = filter.split_once(',').unwrap_or((filter, ""));
    let rows = match rows {
        "" => 1_000_000,
        given => given.parse::<f64>()? as u64,
    };
    let all = if rows > PACKED_TO { EMPTY } else { PACKED };
    let named: Vec<&str> = named.split(',').filter(|work| !work.is_empty()).collect();
    if let Some(wrong) = named.iter().find(|work| !all.contains(work)) {
        return Err(format!("{wrong}: of {rows} rows one of {}", all.join(", ")).into());
    }
    let parent = std::env::var_os("PLUMB_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let kept = std::env::var_os("PLUMB_BENCH_STORE").map(PathBuf::from);
    let scratch = match kept {
        Some(_) => None,
        None => Some(tempfile::tempdir_in(parent)?),
    };
    let dir = scratch
        .as_ref()
        .map_or_else(|| kept.unwrap_or_default(), |d| d.path().to_owned());
    let is_written =
        fs::read_to_string(dir.join("store").join(WRITTEN)).ok() == Some(rows.to_string());
    println!(
        "index: {rows} rows in {}{}",
        dir.display(),
        if is_written { ", as it is there" } else { "" }
    );
    let mut works = if named.is_empty() {
        all.to_vec()
    } else {
        named
    };
    works.retain(|work| *work != "write");
    if !is_written {
        works.insert(0, "write");
    }
    for work in works {
        let argument = format!("{work}:{rows}:{}", dir.join("store").display());
        let mut command = Command::new(std::env::current_exe()?);
        if !command.args(["index", &argument]).status()?.success() {
            return Err(format!("{work} failed").into());
        }
    }
    Ok(())
}

/// Does one thing and tells what it took.
fn measure(work: &str, rows: u64, path: &Path) -> Result<(), Error> {
    if work == "write" && path.exists() {
        return Err(format!(
            "{}: another store is there, or half of one; remove it",
            path.display()
        )
        .into());
    }
    let store = Store::open_or_create(path)?;
    let spec = spec();
    let wanted: Vec<(Fingerprint, Fingerprint)> = match work {
        "part" => thousandth(rows)
            .into_iter()
            .map(|entry| (spec, entry))
            .collect(),
        "captions" => {
            let step = (rows / CAPTIONS).max(1);
            let some = (0..rows).step_by(step as usize);
            some.map(|n| (spec, entry(n, rows))).collect()
        }
        "absent" => (0..CAPTIONS).map(|i| (spec, absent(i))).collect(),
        _ => Vec::new(),
    };
    let start = Seconds::now();
    let found = match work {
        "write" if rows > PACKED_TO => write_rows(&store, rows)?,
        "write" => write_packs(&store, rows)?,
        "merge" => {
            let report = store.compact()?;
            format!("{} parts of {}", report.parts, report.parts_before)
        }
        "open" => format!("{} entries", store.reader()?.entries(&spec).len()),
        "worker" => look_up_batches(&store, rows)?,
        "digits" => look_up_digits(&store, rows)?,
        "inspect" => {
            let report = plumb::inspect::store(&store, &Silent)?;
            let (orphans, problems) = (report.orphans, report.problems.len());
            format!("{orphans} entries of no run, {problems} problems")
        }
        "run" => write_runs(&store, rows)?,
        "check" => {
            let report = Store::check(path, false, &Silent)?;
            let problems = report.problems.len();
            format!(
                "{} entries, {} packs, {problems} problems",
                report.entries, report.packs
            )
        }
        "gc" | "collect" => collect(&store, work == "gc")?,
        "rebuild" => {
            let report = Store::rebuild_index(path, &Silent)?;
            let problems = report.problems.len();
            format!(
                "{} entries, {} parts, {problems} problems",
                report.entries, report.parts_written
            )
        }
        _ => look_up(&store, &wanted)?,
    };
    let (taken, read) = (start.since(), io("rchar")?);
    println!(
        "  {work}: {:.2} s (processor {:.2} s), peak {:.0} MiB, read {:.1} MiB, {:.1} MiB on disk; {found}",
        taken.clock,
        taken.processor,
        mib("VmHWM:")?,
        read as f64 / (1 << 20) as f64,
        disk_bytes(path)? as f64 / (1 << 20) as f64,
    );
    Ok(())
}

/// As an encoding looks: what is there, and which captions were cut.
fn look_up(store: &Store, wanted: &[(Fingerprint, Fingerprint)]) -> Result<String, Error> {
    let reader = store.reader_of_entries(wanted)?;
    let there = wanted
        .iter()
        .filter(|(spec, entry)| reader.contains(spec, entry));
    let there: Vec<Fingerprint> = there.map(|(_, entry)| *entry).collect();
    let cut = reader.truncated(&spec(), &there)?;
    Ok(format!(
        "{} of {} there, {cut} cut",
        there.len(),
        wanted.len()
    ))
}

/// As a worker looks: batch after batch of captions that lie anywhere, of which each second one is there.
fn look_up_batches(store: &Store, rows: u64) -> Result<String, Error> {
    let (spec, lookup) = (spec(), store.lookup());
    let (mut there, mut first, mut rest) = (0, 0.0, 0.0);
    for batch in 0..BATCHES {
        let start = Seconds::now();
        let numbers = (0..BATCH).map(|i| batch * BATCH + i);
        // A step that has no factor in common with the rows.
        let entries = numbers.map(|n| match n % 2 {
            0 => entry(n.wrapping_mul(999_999_937) % rows, rows),
            _ => absent(n),
        });
        let entries: Vec<Fingerprint> = entries.collect();
        let wanted: Vec<_> = entries.iter().map(|entry| (spec, *entry)).collect();
        let reader = lookup.reader_of_entries(&wanted)?;
        let here = entries.iter().filter(|entry| reader.contains(&spec, entry));
        let here: Vec<Fingerprint> = here.copied().collect();
        there += reader.records_of(&spec, &here)?.len();
        match batch {
            0 => first = start.since().clock,
            _ => rest += start.since().clock,
        }
    }
    Ok(format!(
        "{there} of {} there, {first:.3} s for the first {BATCH}, then {:.3} s",
        BATCHES * BATCH,
        rest / (BATCHES - 1) as f64
    ))
}

/// As an entry is looked for by the first digits of its fingerprint.
fn look_up_digits(store: &Store, rows: u64) -> Result<String, Error> {
    let digits = &entry(rows / 2, rows).to_string()[..12];
    let range = EntryRange::beginning(digits).ok_or("digits")?;
    let reader = store.reader_of_range(&store.specs()?, range)?;
    Ok(format!(
        "{} entries begin with {digits}",
        reader.entries(&spec()).len()
    ))
}

/// Runs that use nine of ten entries.
fn write_runs(store: &Store, rows: u64) -> Result<String, Error> {
    let (spec, mut written) = (spec(), 0);
    for start in (0..rows).step_by(RUN_OF as usize) {
        let end = (start + RUN_OF).min(rows);
        let used: Vec<_> = (start..end - (end - start) / 10)
            .map(|n| (spec, entry(n, rows)))
            .collect();
        store.write_run(
            &format!("bench-{}", start / RUN_OF),
            &used,
            json!({}),
            Lacking::Refuse,
        )?;
        written += used.len();
    }
    Ok(format!("{written} entries"))
}

fn collect(store: &Store, dry_run: bool) -> Result<String, Error> {
    let options = GcOptions {
        now: SystemTime::now() + Duration::from_secs(1 << 20),
        grace: Duration::from_secs(1),
        dry_run,
        without_runs: false,
    };
    let report = store.gc(&options, &Silent)?;
    Ok(format!(
        "{} entries stay, {} go, {} packs rewritten, {} removed",
        report.entries_kept, report.entries_removed, report.packs_rewritten, report.packs_removed
    ))
}

/// Writes entries with payloads of one number, as an encoding commits them.
fn write_packs(store: &Store, rows: u64) -> Result<String, Error> {
    let (id, spec_json) = (spec(), spec_json());
    let mut writer = store.writer()?;
    writer.put_spec(&id, &spec_json)?;
    for n in 0..rows {
        let record = record(n, n, rows);
        let value = [record.parts[0].digest.as_bytes()[0], 0x3f];
        let hidden = TensorBytes {
            dtype: ElementType::Bf16,
            shape: vec![1, 1],
            bytes: value.to_vec(),
        };
        writer.put(NewEntry {
            entry: record.entry,
            spec: id,
            key: key(n),
            source: record.source,
            tokens: record.tokens,
            token_count: record.token_count,
            truncated: record.truncated,
            parts: vec![("hidden".to_owned(), hidden)],
        })?;
        if (n + 1).is_multiple_of(COMMIT) {
            writer.commit()?;
        }
    }
    writer.commit()?;
    drop(writer);
    written(store, rows)
}

/// Writes the index as merging leaves it, and empty packs.
fn write_rows(store: &Store, rows: u64) -> Result<String, Error> {
    let (id, json) = (spec(), spec_json());
    let mut writer = store.writer()?;
    writer.put_spec(&id, &json)?;
    for pack in 0..rows.div_ceil(PACK_ENTRIES) {
        let path = store.pack_path(&digest("pack", pack));
        fs::create_dir_all(path.parent().ok_or("a folder")?)?;
        File::create_new(path)?.set_len(PACK_ENTRIES * PAYLOAD_BYTES + 8)?;
    }
    let batch = 1 << 18;
    for start in (0..rows).step_by(batch) {
        let numbers = start..(start + batch as u64).min(rows);
        // Captions come in another order than their fingerprints: a step that has no factor in common with the rows.
        let records = numbers.map(|i| record(i, i.wrapping_mul(999_999_937) % rows, rows));
        store.write_rows(&id, records.collect())?;
    }
    drop(writer);
    written(store, rows)
}

fn written(store: &Store, rows: u64) -> Result<String, Error> {
    let index = disk_bytes(&store.path().join("index"))?;
    fs::write(store.path().join(WRITTEN), rows.to_string())?;
    Ok(format!(
        "index of {:.1} bytes a row",
        index as f64 / rows as f64
    ))
}

/// What the index says of caption `n`, the `place`-th that was written.
fn record(n: u64, place: u64, rows: u64) -> Record {
    let noise = digest("caption", n);
    let noise = noise.as_bytes();
    let entry = entry(n, rows);
    let mut tokens: Vec<u32> = noise.iter().take(24).map(|b| u32::from(*b) * 97).collect();
    let token_count = tokens.len() as u32;
    // As T5's at 77.
    tokens.resize(77, 0);
    let rms = f32::from(noise[0]) / 64.0;
    Record {
        entry,
        source: source(n),
        tokens,
        token_count,
        truncated: n.is_multiple_of(100),
        tool: TOOL.to_owned(),
        pack: digest("pack", place / PACK_ENTRIES),
        parts: vec![PartRecord {
            part: "hidden".to_owned(),
            tensor: format!("{entry}.hidden"),
            offset: 8 + place % PACK_ENTRIES * PAYLOAD_BYTES,
            length: PAYLOAD_BYTES,
            digest: digest("payload", n),
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

/// What captions are made of.
pub(crate) const PHRASES: [&str; 16] = [
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

fn source(n: u64) -> String {
    let noise = digest("caption", n);
    let words = noise.as_bytes().iter().take(8);
    let words: Vec<&str> = words.map(|b| PHRASES[usize::from(b % 16)]).collect();
    format!("{}, number {n}", words.join(", "))
}

fn key(n: u64) -> serde_json::Value {
    json!({"caption": source(n), "spec": spec(), "version": 1})
}

/// The entry of caption `n`. Without packs nobody compares it with its key, and caption `n` has the `n`-th lowest of fingerprints that are
/// evenly distributed, so that parts can be written sorted.
fn entry(n: u64, rows: u64) -> Fingerprint {
    if rows <= PACKED_TO {
        return Fingerprint::of(&key(n));
    }
    let mut bytes = *digest("entry", n).as_bytes();
    let leading = (u128::from(n) << 64) / u128::from(rows);
    bytes[..8].copy_from_slice(&(leading as u64).to_be_bytes());
    Fingerprint::from_bytes(bytes)
}

/// Entries that follow each other.
fn thousandth(rows: u64) -> Vec<Fingerprint> {
    if rows > PACKED_TO {
        let middle = rows / 2;
        return (middle..middle + rows / PART_OF)
            .map(|n| entry(n, rows))
            .collect();
    }
    let is_one = |entry: &Fingerprint| {
        let bytes = entry.as_bytes();
        let leading = u64::from(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        (leading * PART_OF) >> 32 == PART_OF / 2
    };
    let all = (0..rows).map(|n| entry(n, rows));
    all.filter(is_one).collect()
}

fn absent(i: u64) -> Fingerprint {
    Fingerprint::from_bytes(*digest("absent", i).as_bytes())
}

fn digest(kind: &str, number: u64) -> Digest {
    Digest::of(format!("{kind} {number}").as_bytes())
}

fn spec_json() -> Vec<u8> {
    canonical_json(&json!({"encoder": "of the bench"}))
}

fn spec() -> Fingerprint {
    Fingerprint::from_bytes(*blake3::hash(&spec_json()).as_bytes())
}

/// What a folder takes on the disk. Of empty packs that is nothing.
fn disk_bytes(dir: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for found in fs::read_dir(dir)? {
        let found = found?;
        let metadata = found.metadata()?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_bytes(&found.path())?;
        }
    }
    Ok(bytes)
}

/// Bytes that this process read, from the disk or from what the system kept of it.
fn io(name: &str) -> Result<u64, Error> {
    let counts = fs::read_to_string("/proc/self/io")?;
    let mut counts = counts.lines().filter_map(|line| line.split_once(": "));
    let count = counts.find(|(key, _)| *key == name).ok_or("rchar")?.1;
    Ok(count.parse()?)
}
