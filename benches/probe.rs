//! `benches probe [WORLDS]`: whether `plumb probe` can be believed. On base models whose recipe is known (the miniatures under `assets/`
//! that have the reference's, and those in WORLDS, each a diffusers folder with `truth.toml`; pictures in WORLDS/data):
//!
//! - power: of how many probes of 128 pictures no other recipe is preferred to the true one, and how often each wrong one is found out;
//! - false alarms: of 200 probes of differences that are none: between two probes of other seeds, and with signs turned at random;
//! - inert fields: whether they come out as the same.
//!
//! All pictures are measured once, and probes of 128 are drawn from them.

use std::path::{Path, PathBuf};

use plumb::base_model;
use plumb::device::Choice;
use plumb::encode::EncodeOptions;
use plumb::experiment::Experiment;
use plumb::monitor::{Recorder, never};
use plumb::nn::Kernels;
use plumb::nn::weights::DigestMemo;
use plumb::probe::judge::told_of;
use plumb::probe::report::Verdict;
use plumb::probe::stats::looks;
use plumb::probe::{self, ALPHA, ProbeOptions, ProbePlace, Report};
use plumb::rng::{Rng, Stream};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RUNS: u64 = 200;
const PAIRS: usize = 128;
/// All of the worlds' pictures.
const PICTURES: usize = 256;
/// In what recipes of SD3 have been seen to differ, and fields that are inert with short captions of plain words.
const VARY: [&str; 10] = [
    "t5.tokens.min_tokens+t5.tokens.max_tokens=77,154,256",
    "t5.forward.mask=none,pads",
    "assembly.pads.t5=keep,zero",
    "clip_g.tokens.pad=0,end",
    "clip_l.forward.hidden_layer+clip_g.forward.hidden_layer=-1,-2",
    "clip_g.forward.projection=skip,apply_if_present",
    "assembly.pads.clip_g=zero",
    "clip_l.forward.pooled=first_eos,argmax_id,config_eos",
    "t5.tokens.max_tokens=512",
    "t5.tokens.cleanup=[],[\"first_line\"]",
];
/// The last of these.
const INERT: [&str; 3] = [
    "clip_l.forward.pooled",
    "t5.tokens.max_tokens = 512",
    "t5.tokens.cleanup",
];

struct World {
    name: String,
    path: PathBuf,
    truth: String,
}

pub(crate) fn run(folder: &str) -> Result<()> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let mut worlds = vec![World {
        name: "assets/tiny-sd3".to_owned(),
        path: assets.join("tiny-sd3"),
        truth: String::new(),
    }];
    let mut data = assets.join("tiny-style/train");
    if !folder.is_empty() {
        data = Path::new(folder).join("data");
        worlds.extend(worlds_in(Path::new(folder))?);
    }
    let scratch = tempfile::tempdir()?;
    println!(
        "| base | pictures | wrong recipes | truth preferred or tied | false alarms, two seeds | turned signs | inert |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut found_out = Vec::new();
    for world in &worlds {
        let measured = [0, 1].map(|seed| measure(world, &data, scratch.path(), seed));
        let [first, second] = measured;
        let (first, second) = (first?, second?);
        let others = differences(&first);
        let nulls = two_seeds(&first, &second);
        println!(
            "| {} | {} | {} | {} of {RUNS} | {} of {RUNS} | {} of {RUNS} | {} |",
            world.name,
            first.pictures.len(),
            others.len(),
            RUNS - count(&others, Turn::No, Verdict::Preferred),
            alarms(&nulls, Turn::No),
            alarms(&others, Turn::Yes),
            inert(&first),
        );
        found_out.push((world.name.clone(), each(&first)));
    }
    println!(
        "\n| base | recipe | its loss above the truth's | found worse | preferred |\n|---|---|---|---|---|"
    );
    for (name, rows) in found_out {
        for (label, mean, worse, preferred) in rows {
            println!(
                "| {name} | {label} | {mean:+.5} | {worse} of {RUNS} | {preferred} of {RUNS} |"
            );
        }
    }
    Ok(())
}

fn worlds_in(folder: &Path) -> Result<Vec<World>> {
    let mut worlds = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if let Ok(truth) = std::fs::read_to_string(path.join("truth.toml")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            worlds.push(World {
                name: name.into_owned(),
                truth,
                path: path.clone(),
            });
        }
    }
    worlds.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(worlds)
}

/// Every picture, without an early end.
fn measure(world: &World, data: &Path, scratch: &Path, seed: u64) -> Result<Report> {
    let text = format!(
        "[model]\nfamily = \"sd3\"\nflavor = \"3.5-large\"\npath = {:?}\n[recipe.deviate]\n{}\n[store]\npath = \"store\"\n\
         [[dataset]]\npath = {:?}\nresolution = 128\nbucket_step = 16\n",
        std::path::absolute(&world.path)?.display().to_string(),
        world.truth,
        std::path::absolute(data)?.display().to_string(),
    );
    let experiment = Experiment::parse(&scratch.join("exp.toml"), text)?;
    let options = ProbeOptions {
        vary: VARY
            .iter()
            .map(|v| v.parse())
            .collect::<std::result::Result<_, _>>()?,
        against: Some("experiment".to_owned()),
        pairs: PICTURES,
        draws: 8,
        bands: 4,
        seed,
        batch: 8,
        stop_early: false,
    };
    let device = plumb::device::open("cpu".parse::<Choice>()?, &[])?.device;
    let place = ProbePlace {
        memory_bytes: u64::MAX,
        placement: base_model::placement(&experiment, &device, &Kernels::NONE),
        encode: EncodeOptions {
            device,
            kernels: Kernels::NONE,
            resident_limit_bytes: u64::MAX,
            wait: std::time::Duration::ZERO,
            clock: || 0.0,
            stop: never,
        },
    };
    let mut memo = DigestMemo::open(&scratch.join("weights.json"));
    Ok(probe::run(
        &experiment,
        &options,
        &place,
        &mut memo,
        &Recorder::default(),
    )?)
}

/// The differences of all recipes that are not the same as the truth.
fn differences(report: &Report) -> Vec<Vec<f64>> {
    let others = report.candidates.iter().skip(1);
    let others = others.filter(|c| c.verdict != Verdict::Same);
    others.map(|c| c.by_picture.clone()).collect()
}

/// What two probes of other seeds differ in: nothing but noise.
fn two_seeds(first: &Report, second: &Report) -> Vec<Vec<f64>> {
    let place = |digest| second.pictures.iter().position(|p| p.digest == digest);
    let of_candidate = |candidate: &probe::report::CandidateReport| {
        let label = candidate.label();
        let other = second.candidates.iter().find(|c| c.label() == label)?;
        let pairs = first.pictures.iter().zip(&candidate.by_picture);
        let null = pairs.map(|(picture, d)| Some(d - other.by_picture[place(picture.digest)?]));
        null.collect::<Option<Vec<f64>>>()
    };
    let tested = first
        .candidates
        .iter()
        .skip(1)
        .filter(|c| c.verdict != Verdict::Same);
    tested.filter_map(of_candidate).collect()
}

/// Whether the signs of the differences are turned at random, which makes them differences of nothing.
#[derive(Clone, Copy)]
enum Turn {
    Yes,
    No,
}

/// The verdicts of one probe of pictures drawn from all.
fn verdicts(differences: &[Vec<f64>], turn: Turn, run: u64) -> Vec<Verdict> {
    let all = differences.first().map_or(0, Vec::len);
    let mut rng = Rng::new(7, Stream::Probe, 0, run);
    let mut order: Vec<usize> = (0..all).collect();
    rng.shuffle(&mut order);
    order.truncate(PAIRS);
    // Of few pictures a probe draws some again.
    while order.len() < PAIRS && all > 0 && all < PAIRS / 2 {
        order.push(rng.below(all as u64) as usize);
    }
    let signs: Vec<f64> = order
        .iter()
        .map(|_| if rng.uniform() < 0.5 { -1.0 } else { 1.0 })
        .collect();
    let drawn = |of_recipe: &Vec<f64>| {
        let pairs = order.iter().zip(&signs);
        let one = |(&at, sign): (&usize, &f64)| match turn {
            Turn::Yes => of_recipe[at] * sign,
            Turn::No => of_recipe[at],
        };
        pairs.map(one).collect::<Vec<f64>>()
    };
    let drawn: Vec<Vec<f64>> = differences.iter().map(drawn).collect();
    let planned = looks(order.len(), ALPHA);
    // As the program does it: after each look it may end.
    for made in 1..=planned.len() {
        let size = planned[made - 1].0;
        let seen: Vec<Vec<f64>> = drawn.iter().map(|d| d[..size].to_vec()).collect();
        let told = told_of(&seen, &planned[..made]);
        if made == planned.len() || probe::judge::all_clear(&told) {
            return told.iter().map(|t| t.verdict).collect();
        }
    }
    Vec::new()
}

/// Probes in which a recipe has this verdict.
fn count(differences: &[Vec<f64>], turn: Turn, verdict: Verdict) -> u64 {
    let has = |run: &u64| verdicts(differences, turn, *run).contains(&verdict);
    (0..RUNS).filter(has).count() as u64
}

/// Probes in which a recipe is told from the truth.
fn alarms(differences: &[Vec<f64>], turn: Turn) -> u64 {
    let is_alarm = |v: &Verdict| matches!(v, Verdict::Preferred | Verdict::Worse);
    let has = |run: &u64| verdicts(differences, turn, *run).iter().any(is_alarm);
    (0..RUNS).filter(has).count() as u64
}

fn inert(report: &Report) -> String {
    let is_inert = |label: &String| INERT.iter().any(|inert| label.starts_with(inert));
    // The first is the truth, which has every label that means what it is.
    let others = report.candidates.iter().skip(1);
    let found = others.filter(|c| c.labels.iter().any(is_inert));
    let (same, others): (Vec<_>, Vec<_>) = found.partition(|c| c.verdict == Verdict::Same);
    match others.as_slice() {
        [] => format!("{} the same", same.len()),
        [first, ..] => format!("{} is not the same", first.label()),
    }
}

/// How often each recipe is found worse, and preferred.
fn each(report: &Report) -> Vec<(String, f64, u64, u64)> {
    let tested: Vec<_> = report
        .candidates
        .iter()
        .skip(1)
        .filter(|c| c.verdict != Verdict::Same)
        .collect();
    let all = differences(report);
    let mut counts = vec![(0, 0); tested.len()];
    for run in 0..RUNS {
        for (count, verdict) in counts.iter_mut().zip(verdicts(&all, Turn::No, run)) {
            count.0 += u64::from(verdict == Verdict::Worse);
            count.1 += u64::from(verdict == Verdict::Preferred);
        }
    }
    let row = |(candidate, (worse, preferred)): (&&probe::report::CandidateReport, (u64, u64))| {
        let mean = candidate.by_picture.iter().sum::<f64>() / candidate.by_picture.len() as f64;
        (candidate.label(), mean, worse, preferred)
    };
    tested.iter().zip(counts).map(row).collect()
}
