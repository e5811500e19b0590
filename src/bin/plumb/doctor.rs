//! `plumb doctor`: what this machine has of what plumb needs, and what to do about the rest.

use std::path::{Path, PathBuf};
use std::process::Command;

use plumb::device::{self, Choice, Error};
use plumb::monitor::Monitor as _;
use plumb::nn::Instructions;
use plumb::store::FORMAT_VERSION;
use serde::Serialize;

use crate::CommandResult;
use crate::ui::Ui;
use crate::world;

/// With less free memory than this nothing but the miniatures can be encoded.
const LEAST_MEMORY: u64 = 2_000_000_000;
/// About what a small store and a LoRA take.
const LEAST_DISK: u64 = 1_000_000_000;

/// Tell what this machine has: GPU and libraries, memory, disk, caches, programs; and what to do about what is missing.
///
/// Exit status 3 where something will not work.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder that stores and LoRAs are to lie in.
    #[arg(default_value = ".")]
    folder: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Something is not there that not everybody needs.
    Note,
    /// Something will not work.
    Problem,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do about it; None where nothing is to be done.
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        let (found, state) = (found.into(), State::Ok);
        Self {
            what,
            state,
            found,
            advice: None,
        }
    }

    fn not(
        state: State,
        what: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            what,
            state,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let findings = [
        program(),
        processor(),
        gpu(),
        gpus(),
        memory(),
        disk(&args.folder),
        locks(&args.folder),
        own_cache(),
        hub(),
        videos(),
    ];
    for finding in findings.iter().filter(|f| f.state == State::Problem) {
        let advice = finding.advice.as_deref().unwrap_or_default();
        ui.problem(&format!("{}: {}: {advice}", finding.what, finding.found));
    }
    let lines = findings.iter().map(|finding| {
        let mark = match finding.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "PROBLEM",
        };
        let advice = finding.advice.as_ref();
        let advice = advice.map_or_else(String::new, |a| format!("\n{:20}{a}", ""));
        format!("{mark:8}{:12}{}{advice}", finding.what, finding.found)
    });
    ui.report(&findings, &lines.collect::<Vec<_>>().join("\n"))
}

fn program() -> Finding {
    let cuda = if cfg!(feature = "cuda") {
        "with CUDA"
    } else {
        "without CUDA"
    };
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let version = env!("CARGO_PKG_VERSION");
    Finding::ok(
        "program",
        format!("plumb {version} for {os} {arch}, {cuda}; stores of format {FORMAT_VERSION}"),
    )
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let told = std::env::var("RAYON_NUM_THREADS").ok();
    let told = told.map_or_else(String::new, |n| format!("; RAYON_NUM_THREADS is {n}"));
    let found = format!("{cores} cores may be used");
    match Instructions::used() {
        // Elsewhere there is nothing else.
        Instructions::Base if cfg!(not(target_arch = "x86_64")) => {
            Finding::ok("cpu", format!("{found}{told}"))
        }
        Instructions::Base => Finding::not(
            State::Note,
            "cpu",
            format!("{found}, without AVX2{told}"),
            "all is several times slower than with it: if the processor has it, let the virtual machine show it",
        ),
        instructions => Finding::ok("cpu", format!("{found}, with {instructions}{told}")),
    }
}

fn gpu() -> Finding {
    match device::open(Choice::Cuda(0), &world::cuda_folders()) {
        Ok(opened) => {
            let (total, free) = opened.memory.unwrap_or_default();
            let found = format!("{}, {} of {} free", opened.name, gb(free), gb(total));
            match device::find_compiler(&world::cuda_folders()) {
                Ok(()) => Finding::ok("gpu", format!("{found}; NVRTC is there")),
                Err(error) => Finding::not(
                    State::Note,
                    "gpu",
                    format!("{found}; {error}"),
                    "`--own-kernels` needs NVRTC: install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` and activate that environment",
                ),
            }
        }
        Err(Error::NotBuilt) if !is_nvidia_there() => {
            Finding::ok("gpu", "none that plumb knows; all is computed on the CPU")
        }
        Err(error @ Error::NotBuilt) => Finding::not(
            State::Note,
            "gpu",
            "an NVIDIA driver is there, and this plumb computes on the CPU",
            error.to_string(),
        ),
        Err(error) if is_nvidia_there() => Finding::not(
            State::Problem,
            "gpu",
            error.to_string(),
            "mend that, or say `--device cpu`",
        ),
        Err(error) => Finding::not(
            State::Note,
            "gpu",
            error.to_string(),
            "all is computed on the CPU",
        ),
    }
}

/// What `--gpus` would find.
fn gpus() -> Finding {
    let folders = world::cuda_folders();
    let count = device::count(&folders).unwrap_or(0);
    if count < 2 {
        let found =
            format!("{count} for `plumb train --gpus N`; on the CPU `--processes N` tries it out");
        return Finding::ok("gpus", found);
    }
    match device::find_nccl(&folders) {
        Ok(()) => Finding::ok(
            "gpus",
            format!("{count} for `plumb train --gpus N`; NCCL is there"),
        ),
        Err(error) => Finding::not(
            State::Note,
            "gpus",
            format!("{count} for `plumb train --gpus N`, without NCCL: {error}"),
            "gradients would go by way of rank 0, over TCP: install NCCL (`apt install libnccl2`), or `pip install nvidia-nccl-cu13` and activate that environment",
        ),
    }
}

/// Whether a driver of NVIDIA's is at work.
fn is_nvidia_there() -> bool {
    ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"]
        .iter()
        .any(|file| Path::new(file).exists())
}

fn memory() -> Finding {
    let free = world::available_memory_bytes();
    let found = format!("{} may be used", gb(free));
    match free < LEAST_MEMORY {
        false => Finding::ok("memory", found),
        true => Finding::not(
            State::Problem,
            "memory",
            found,
            "end other programs, or give the container more: the smallest base models need 2 GB",
        ),
    }
}

fn disk(folder: &Path) -> Finding {
    let place = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let place = place.display();
    if let Err(error) = tempfile::tempfile_in(folder) {
        return Finding::not(
            State::Problem,
            "disk",
            format!("{place} cannot be written: {error}"),
            "name another folder for the store (`[store] path`) and the LoRA (`train.output`)",
        );
    }
    match fs4::available_space(folder) {
        Err(error) => Finding::not(
            State::Note,
            "disk",
            format!("{place}: its free space cannot be told: {error}"),
            "`plumb encode` tells what it will write before it begins",
        ),
        Ok(free) if free < LEAST_DISK => Finding::not(
            State::Problem,
            "disk",
            format!("{} free in {place}", gb(free)),
            "make room, or name a store elsewhere under `[store]`",
        ),
        Ok(free) => Finding::ok("disk", format!("{} free in {place}", gb(free))),
    }
}

fn locks(folder: &Path) -> Finding {
    // One that cannot be written was told above.
    match tempfile::tempfile_in(folder).map(|file| file.try_lock()) {
        Ok(Err(error)) => Finding::not(
            State::Note,
            "locks",
            format!("the file system grants none: {error}"),
            "encoding and training work; `plumb store gc` refuses there",
        ),
        _ => Finding::ok("locks", "the file system grants them"),
    }
}

fn own_cache() -> Finding {
    let folder = world::cache_folder();
    let place = folder.display();
    match std::fs::create_dir_all(&folder).and_then(|()| tempfile::tempfile_in(&folder)) {
        Ok(_) => Finding::ok(
            "cache",
            format!("{place} has the digests of weights that were read"),
        ),
        Err(error) => Finding::not(
            State::Problem,
            "cache",
            format!("{place} cannot be written: {error}"),
            "weights are read whole at each start: name a folder by XDG_CACHE_HOME that can be",
        ),
    }
}

fn hub() -> Finding {
    let options = world::hub_options();
    let there = match options.cache.is_dir() {
        true => "is there",
        false => "is not there yet",
    };
    let token = match (&options.token, options.offline) {
        (_, true) => "nothing is fetched, as HF_HUB_OFFLINE says",
        (Some(_), false) => "with a token",
        (None, false) => "without a token, which gated models need (`hf auth login`, or HF_TOKEN)",
    };
    let place = options.cache.display();
    Finding::ok("hub", format!("{place} {there}; {token}"))
}

fn videos() -> Finding {
    let version = |name: &str| {
        let output = Command::new(name).arg("-version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_whitespace().take(3).collect();
        (output.status.success()).then(|| words.join(" "))
    };
    match (version("ffmpeg"), version("ffprobe")) {
        (Some(ffmpeg), Some(_)) => Finding::ok("videos", ffmpeg),
        _ => Finding::not(
            State::Note,
            "videos",
            "no `ffmpeg` with `ffprobe` on the path",
            "for data sets of videos: `apt install ffmpeg`, `brew install ffmpeg`",
        ),
    }
}

fn gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
