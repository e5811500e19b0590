//! One measurement of ours on a GPU (or, for a dry run, on the CPU), for `benches/gpu/compare.py`, which runs the peer
//! beside it: `benches gpu CASE`, where CASE is a JSON object, prints a JSON object.
//!
//! Weights are random numbers of the real shapes: no model is needed.

mod encode;
mod parts;
mod train;

pub(crate) use train::opened;

use std::time::Instant;

use candle_core::Device;
use plumb::device::{self, Choice};
use plumb::nn::Kernels;
use serde::Serialize;
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Turns that do not count, unless a case says otherwise: in them NVRTC compiles kernels and memory pools grow.
const WARM_UP: usize = 3;

pub(crate) fn run(case: &str) -> Result<()> {
    let case: Value = serde_json::from_str(case)?;
    let choice: Choice = text(&case, "device")?.parse()?;
    let folders = device::cuda_folders(|name| std::env::var_os(name));
    let device = device::open(choice, &folders)?.device;
    let mut kernels = Kernels::NONE;
    if case["own_kernels"].as_bool() == Some(true) {
        kernels = Kernels::compile(&device)?;
    }
    if case["cudnn"].as_bool() == Some(true) {
        kernels = kernels.with_cudnn(&folders)?;
    }
    if case["fp8"].as_bool() == Some(true) && kernels.are_there() {
        kernels = kernels.with_fp8()?;
    }
    if case["graphs"].as_bool() == Some(true) {
        kernels = kernels.with_graphs()?;
    }
    let backend = Backend { device, kernels };
    let measured = match text(&case, "kind")? {
        "train" => train::train(&case, &backend)?,
        "encode" => encode::captions(&case, &backend)?,
        "parts" => parts::parts(&case, &backend)?,
        "vae" => encode::pictures(&case, &backend)?,
        other => return Err(format!("no kind of case `{other}`").into()),
    };
    println!("{measured}");
    Ok(())
}

fn text<'a>(case: &'a Value, key: &str) -> Result<&'a str> {
    Ok(case[key].as_str().ok_or_else(|| format!("no `{key}`"))?)
}

fn count(case: &Value, key: &str) -> Result<usize> {
    Ok(case[key].as_u64().ok_or_else(|| format!("no `{key}`"))? as usize)
}

/// Where and by what a case is computed.
struct Backend {
    device: Device,
    kernels: Kernels,
}

/// Seconds that something took.
#[derive(Serialize)]
struct Timings {
    median: f64,
    least: f64,
    most: f64,
}

impl Timings {
    /// Of the turns that a case wants, after some that do not count, each until the device has done it.
    fn of(
        device: &Device,
        case: &Value,
        mut turn: impl FnMut() -> candle_core::Result<()>,
    ) -> Result<Self> {
        let warm_up = case["warm_up"].as_u64().map_or(WARM_UP, |n| n as usize);
        let turns = case["steps"]
            .as_u64()
            .ok_or(candle_core::Error::Msg("no `steps`".to_owned()))?;
        let mut seconds = Vec::new();
        for number in 0..warm_up + turns as usize {
            // A GPU is only asked to compute: without waiting, a turn would be over before it began.
            device.synchronize()?;
            let start = Instant::now();
            turn()?;
            device.synchronize()?;
            if number >= warm_up {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
        Ok(Self {
            median: at(0.5),
            least: at(0.0),
            most: at(1.0),
        })
    }
}
