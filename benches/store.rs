//! The store: opening 100,000 cached captions of three encoders, and reading payloads.
//!
//! Beside each figure stands what a user would have instead, measured in the same run: one file a caption, as
//! other trainers cache, and a plain copy of the same bytes.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use plumb::digest::{Fingerprint, canonical_json};
use plumb::store::{ElementType, NewEntry, Store, StoreReader, TensorBytes};
use rayon::prelude::*;

use crate::index::PHRASES;
use crate::turns::best_of;

const CAPTIONS: usize = 100_000;
const BATCH: usize = 1000;
const PAYLOADS: usize = 400;

pub(crate) fn run() {
    let dir = tempfile::tempdir().expect("a folder");
    println!("store: {CAPTIONS} cached captions, 3 encoders");
    opening(&dir.path().join("many"));
    one_file_each(&dir.path().join("files"));
    println!("store: {PAYLOADS} T5 payloads of 77 x 4096 bf16");
    reading(&dir.path().join("large"));
}

fn spec(number: usize) -> (Fingerprint, Vec<u8>) {
    let json = canonical_json(&serde_json::json!({"encoder": number}));
    (
        Fingerprint::from_bytes(*blake3::hash(&json).as_bytes()),
        json,
    )
}

fn caption(i: usize) -> String {
    let words: Vec<&str> = (0..5).map(|w| PHRASES[(i >> (3 * w)) & 7]).collect();
    format!("{}, number {i}", words.join(", "))
}

fn new_entry(spec: &Fingerprint, caption: String, parts: Vec<(String, TensorBytes)>) -> NewEntry {
    let key = serde_json::json!({"caption": caption, "spec": spec, "version": 1});
    let mut tokens: Vec<u32> = caption
        .bytes()
        .step_by(4)
        .map(|b| u32::from(b) * 397)
        .collect();
    let token_count = tokens.len() as u32;
    // Padded as CLIP-L's are.
    tokens.resize(77, 49407);
    NewEntry {
        entry: Fingerprint::of(&key),
        spec: *spec,
        source: caption,
        tokens,
        token_count,
        truncated: false,
        parts,
        key,
    }
}

fn opening(path: &Path) {
    let store = Store::open_or_create(path).expect("new");
    let start = Instant::now();
    let mut writer = store.writer().expect("a writer");
    let small = |name: &str| {
        (
            name.to_owned(),
            TensorBytes::from_f32(&[4], &[1.0, 2.0, 3.0, 4.0]),
        )
    };
    let mut entries = Vec::new();
    for number in 0..3 {
        let (id, json) = spec(number);
        writer.put_spec(&id, &json).expect("put");
    }
    for batch in 0..CAPTIONS / BATCH {
        for number in 0..3 {
            let (id, _) = spec(number);
            for i in batch * BATCH..(batch + 1) * BATCH {
                // Like CLIP-L, CLIP-G and T5: the third has no pooled vector. Small, since opening reads no payload.
                let parts = if number == 2 {
                    vec![small("hidden")]
                } else {
                    vec![small("hidden"), small("pooled")]
                };
                let new = new_entry(&id, caption(i), parts);
                entries.push((id, new.entry));
                writer.put(new).expect("put");
            }
        }
        writer.commit().expect("commit");
    }
    println!(
        "  write, commits of {BATCH}: {:.2} s",
        start.elapsed().as_secs_f64()
    );
    report_open(&store, &entries, "as committed");
    let start = Instant::now();
    writer.finish().expect("finish");
    println!(
        "  merging index parts: {:.2} s",
        start.elapsed().as_secs_f64()
    );
    report_open(&store, &entries, "merged");
}

fn report_open(store: &Store, entries: &[(Fingerprint, Fingerprint)], what: &str) {
    let stats = store.stats().expect("stats");
    let parts: u64 = stats.specs.values().map(|s| s.index_parts).sum();
    let (open, reader) = best_of(5, || store.reader().expect("a reader"));
    let all_there = |reader: &StoreReader| {
        entries
            .iter()
            .all(|(spec, entry)| reader.contains(spec, entry))
    };
    let (contains, all) = best_of(5, || all_there(&reader));
    assert!(all, "an entry is missing");
    println!(
        "  {what}: {parts} index parts, {:.1} MiB: open {open}, contains of {} entries {contains}",
        stats.index_bytes as f64 / (1 << 20) as f64,
        entries.len(),
    );
}

/// What others do: a small file for each caption, opened and read.
fn one_file_each(path: &Path) {
    fs::create_dir(path).expect("create");
    for i in 0..CAPTIONS {
        fs::write(path.join(format!("{i}.bin")), [1u8; 64]).expect("write");
    }
    let (read, bytes) = best_of(3, || {
        (0..CAPTIONS)
            .map(|i| {
                fs::read(path.join(format!("{i}.bin")))
                    .expect("there")
                    .len()
            })
            .sum::<usize>()
    });
    assert_eq!(bytes, CAPTIONS * 64);
    println!("  one file a caption, one encoder, page cache warm: {read}");
}

fn reading(path: &Path) {
    let store = Store::open_or_create(path).expect("new");
    let (id, json) = spec(9);
    let mut writer = store.writer().expect("a writer");
    writer.put_spec(&id, &json).expect("put");
    let mut entries = Vec::new();
    let mut put_time = Duration::ZERO;
    for i in 0..PAYLOADS {
        let bytes: Vec<u8> = (0..77 * 4096)
            .flat_map(|j| half::bf16::from_f32(((i * 7 + j) % 251) as f32).to_le_bytes())
            .collect();
        let tensor = TensorBytes {
            dtype: ElementType::Bf16,
            shape: vec![77, 4096],
            bytes,
        };
        let new = new_entry(&id, caption(i), vec![("hidden".to_owned(), tensor)]);
        entries.push(new.entry);
        let start = Instant::now();
        writer.put(new).expect("put");
        put_time += start.elapsed();
    }
    let start = Instant::now();
    writer.finish().expect("finish");
    put_time += start.elapsed();
    let total = PAYLOADS * 77 * 4096 * 2;
    let rate = |took: Duration| total as f64 / took.as_secs_f64() / 1e9;
    println!("  put and commit: {:.2} GB/s", rate(put_time));

    let read_all = |reader: &StoreReader| {
        for entry in &entries {
            let found = reader.get(&id, entry).expect("sound").expect("there");
            // Or the compiler could drop what nobody reads.
            black_box(found.parts[0].1.bytes());
        }
    };
    // A new reader each time: it has checked no digest yet.
    let (first, ()) = best_of(5, || read_all(&store.reader().expect("a reader")));
    // As the samples of a micro-batch are read.
    let (together, ()) = best_of(5, || {
        let reader = store.reader().expect("a reader");
        entries.par_iter().for_each(|entry| {
            let found = reader.get(&id, entry).expect("sound").expect("there");
            black_box(found.parts[0].1.bytes());
        });
    });
    let reader = store.reader().expect("a reader");
    // A reader checks each payload's digest once; this is the time that counts from the second epoch on.
    read_all(&reader);
    let (repeated, ()) = best_of(5, || read_all(&reader));
    let memory: Vec<Vec<u8>> = entries
        .iter()
        .map(|e| {
            reader.get(&id, e).expect("sound").expect("there").parts[0]
                .1
                .bytes()
                .to_vec()
        })
        .collect();
    let mut target = vec![0u8; 77 * 4096 * 2];
    let (copy, ()) = best_of(5, || {
        for bytes in &memory {
            target.copy_from_slice(bytes);
            black_box(&target);
        }
    });
    println!("  memcpy of the same bytes: {:.2} GB/s", rate(copy.wall));
    println!(
        "  read, checked before in this process: {:.2} GB/s, {:.2} of memcpy",
        rate(repeated.wall),
        rate(repeated.wall) / rate(copy.wall)
    );
    println!(
        "  first read, open and digests included: {:.2} GB/s, {:.2} of memcpy",
        rate(first.wall),
        rate(first.wall) / rate(copy.wall)
    );
    println!(
        "  the same by {} threads: {:.2} GB/s, {:.2} of memcpy by one",
        rayon::current_num_threads(),
        rate(together.wall),
        rate(together.wall) / rate(copy.wall)
    );
    let (hash, _) = best_of(3, || {
        memory
            .iter()
            .map(|b| blake3::hash(b).as_bytes()[0])
            .fold(0, u8::wrapping_add)
    });
    println!("  BLAKE3 alone, one thread: {:.2} GB/s", rate(hash.wall));
}
