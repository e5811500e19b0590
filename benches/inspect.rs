//! `benches inspect [FILTER]`: 100,000 cached captions: their vectors read from the store, the nearest and the near-duplicates of each,
//! and the map of the first two principal components. With `PLUMB_PYTHON` beside numpy, which is given the vectors as a file.

use std::path::Path;
use std::process::Command;

use plumb::digest::Fingerprint;
use plumb::inspect::captions::Captions;
use plumb::inspect::vectors::{Rows, caption_vectors, plane};
use plumb::inspect::{NeighborOptions, neighbors};
use plumb::monitor::Recorder;
use plumb::recipe::spec::caption_entry;
use plumb::rng::{Rng, Stream};
use plumb::store::{NewEntry, Store, TensorBytes};
use serde_json::{Value, json};

use crate::turns::{Failure, Seconds, mib};

const CAPTIONS: usize = 100_000;
const BATCH: usize = 5000;
/// Vectors lie around so many centres, as captions of one data set do; some of them so near that they count as duplicates.
const CENTRES: usize = 20_000;
const OPTIONS: NeighborOptions = NeighborOptions {
    above: 0.98,
    nearest: 5,
    most_pairs: 10_000,
};

pub(crate) fn run(filter: &str) -> Result<(), Failure> {
    println!(
        "{CAPTIONS} captions, seconds (of all processors); memory is the whole process at its peak so far"
    );
    println!(
        "| vectors | what | plumb | numpy | plumb of numpy | plumb, peak MiB | numpy, peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    // The narrow first: a process's peak cannot be taken back.
    for (name, width) in [("CLIP-L, 768", 768), ("T5-XXL, 4096", 4096)] {
        if name.contains(filter) {
            measure(name, width)?;
        }
    }
    Ok(())
}

fn measure(name: &str, width: usize) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let store = Store::open_or_create(&dir.path().join("store"))?;
    fill(&store, width)?;
    let (reader, monitor) = (store.reader()?, Recorder::default());
    let captions = Captions::of_store(&reader)?;
    let encoder = captions.encoders.first().ok_or("no encoder")?;

    let start = Seconds::now();
    let mut vectors = caption_vectors(&reader, encoder, &captions.texts(), &monitor)?;
    row(name, "vectors from the store", start.since(), None)?;

    let file = dir.path().join("vectors.f32");
    write(&mut vectors.rows, &file)?;
    let theirs = numpy(&file, width)?;

    let start = Seconds::now();
    let found = neighbors(&mut vectors, &captions, &OPTIONS, &monitor)?;
    let taken = start.since();
    let peer = theirs.as_ref().map(|all| &all["neighbors"]);
    if let Some(peer) = peer {
        let expected = peer["near_duplicates"].as_u64().ok_or("no count")?;
        // Either may round a pair at the threshold to the other side.
        let most = 2 + expected / 10_000;
        if found.near_duplicates.abs_diff(expected) > most {
            let ours = found.near_duplicates;
            return Err(format!("{ours} near-duplicates, numpy {expected}").into());
        }
    }
    let what = format!("neighbours, {} near-duplicates", found.near_duplicates);
    row(name, &what, taken, peer)?;

    let start = Seconds::now();
    let plane = plane(&mut vectors.rows)?;
    let taken = start.since();
    let peer = theirs.as_ref().map(|all| &all["plane"]);
    if let Some(peer) = peer {
        let expected = peer["explained"]
            .as_f64()
            .ok_or("no part of the variance")?;
        if (plane.explained[0] - expected).abs() > 1e-3 * expected {
            return Err(format!("axis 1 {:?}, numpy {expected}", plane.explained).into());
        }
    }
    row(name, "map", taken, peer)
}

fn row(name: &str, what: &str, ours: Seconds, peer: Option<&Value>) -> Result<(), Failure> {
    let of = |field: &str| peer.and_then(|peer| peer[field].as_f64());
    let theirs = of("clock").zip(of("processor"));
    let (shown, ratio) = match theirs {
        Some((clock, processor)) => (
            format!("{clock:.1} ({processor:.1})"),
            format!("{:.2}", clock / ours.clock),
        ),
        None => ("-".to_owned(), "-".to_owned()),
    };
    println!(
        "| {name} | {what} | {:.1} ({:.1}) | {shown} | {ratio} | {:.0} | {} |",
        ours.clock,
        ours.processor,
        mib("VmHWM:")?,
        of("peak_mib").map_or("-".to_owned(), |mib| format!("{mib:.0}"))
    );
    Ok(())
}

fn fill(store: &Store, width: usize) -> Result<(), Failure> {
    let described = json!({"architecture": {"kind": "clip"}, "tokens": {"width": width}});
    let described = plumb::digest::canonical_json(&described);
    let spec = Fingerprint::of_canonical(&described);
    let mut rng = Rng::new(1, Stream::Shuffle, 0, 0);
    let mut number = || rng.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
    let mut writer = store.writer()?;
    writer.put_spec(&spec, &described)?;
    let centres: Vec<f32> = (0..CENTRES * width).map(|_| number()).collect();
    for i in 0..CAPTIONS {
        let centre = &centres[i % CENTRES * width..][..width];
        // From copies to strangers.
        let spread = (i % 7) as f32 * 0.2;
        let values: Vec<f32> = centre.iter().map(|v| v + spread * number()).collect();
        let caption = format!("caption {i}");
        writer.put(NewEntry {
            entry: caption_entry(&spec, &caption),
            spec,
            key: json!({"caption": caption, "spec": spec, "version": 1}),
            source: caption,
            tokens: vec![1, 2, 3],
            token_count: 3,
            truncated: false,
            parts: vec![(
                "pooled".to_owned(),
                TensorBytes::from_f32(&[width], &values),
            )],
        })?;
        if i % BATCH == BATCH - 1 {
            writer.commit()?;
        }
    }
    Ok(writer.finish().map(drop)?)
}

fn write(rows: &mut Rows, file: &Path) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    let mut start = 0;
    while start < rows.len() {
        let block = rows.read(start, BATCH)?;
        let bytes: Vec<u8> = block.iter().flat_map(|v| v.to_le_bytes()).collect();
        out.write_all(&bytes)?;
        start += BATCH;
    }
    Ok(out.flush()?)
}

fn numpy(file: &Path, width: usize) -> Result<Option<Value>, Failure> {
    let Some(python) = std::env::var_os("PLUMB_PYTHON") else {
        return Ok(None);
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer/inspect_numpy.py");
    let (above, nearest) = (OPTIONS.above.to_string(), OPTIONS.nearest.to_string());
    let output = Command::new(python)
        .arg(script)
        .arg(file)
        .args([&width.to_string(), &above, &nearest])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("numpy's side failed".into());
    }
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}
