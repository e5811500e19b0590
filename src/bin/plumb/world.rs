//! The machine as commands see it: environment variables, devices, memory, the clock.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use candle_core::Device;
use plumb::base_model;
use plumb::base_model::hub::{self, Address};
use plumb::device::{self, Choice};
use plumb::digest::Digest;
use plumb::encode::EncodeOptions;
use plumb::experiment::{Experiment, Products, Variables};
use plumb::monitor::{Monitor, never};
use plumb::nn::Kernels;
use plumb::nn::weights::DigestMemo;
use plumb::shown;
use plumb::store::{self, CacheLimit, Place, Remote, Scratch};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::own_kernels;
use crate::ranks::Where;
use crate::signals;
use crate::ui::{Failure, Ui};

/// Opens an Experiment file, and fetches what it names on the hub; what is wrong with it is the user's to mend, with
/// exit status 2.
pub(crate) fn open_experiment(path: &Path, monitor: &dyn Monitor) -> Result<Experiment, Failure> {
    let experiment = Experiment::open(path, &variables()).map_err(Failure::usage)?;
    fetched(experiment, monitor)
}

/// The environment's variables, which paths in an Experiment may name.
pub(crate) fn variables() -> Variables {
    // A variable that is not text cannot be part of a path that is.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The Experiment with what it names on the hub fetched.
pub(crate) fn fetched(
    mut experiment: Experiment,
    monitor: &dyn Monitor,
) -> Result<Experiment, Failure> {
    let remote = |path: &&Path| Address::is_one(path);
    if let Some(address) = experiment.store_address() {
        let (cache, compress) = (experiment.store_cache(), experiment.store_compress());
        let limit = experiment.store_cache_bytes();
        let limit = limit.map(|bytes| CacheLimit { bytes, now });
        let place = remote_store(address, cache, compress)?.keeping(limit);
        experiment.remote_store = Some(place);
    }
    let addresses: Vec<PathBuf> = experiment
        .model_paths()
        .into_iter()
        .filter(remote)
        .map(Path::to_owned)
        .collect();
    for address in addresses {
        let fetched = local(&address, monitor)?;
        experiment.fetched.insert(address, fetched);
    }
    Ok(experiment)
}

/// A path on this machine, for one that may be an address on the hub.
pub(crate) fn local(path: &Path, monitor: &dyn Monitor) -> Result<PathBuf, Failure> {
    if !Address::is_one(path) {
        return Ok(path.to_owned());
    }
    let address = Address::parse(&path.to_string_lossy()).map_err(Failure::usage)?;
    hub::fetch(&address, &hub_options(), monitor).map_err(Failure::error)
}

/// Refuses what no file can be written to, where `option` names a file to write: now, and not after the work that makes the file.
pub(crate) fn check_file(option: &str, path: &Path) -> Result<(), Failure> {
    store::check_file(path).map_err(|e| Failure::usage(format!("{option}: {e}")))
}

/// The store at a path or an address.
pub(crate) fn store_place(path: &Path) -> Result<Place, Failure> {
    match store::Address::is_one(path) {
        true => remote_store(store_address(path)?, None, false),
        false => Ok(path.into()),
    }
}

/// The address that a command was given.
pub(crate) fn store_address(path: &Path) -> Result<store::Address, Failure> {
    let text = path.to_str().unwrap_or_default();
    store::Address::parse(text).map_err(Failure::usage)
}

/// The store at an address, with the credentials of the environment.
pub(crate) fn remote(path: &Path) -> Result<Remote, Failure> {
    signals::give_back_leases();
    Remote::new(store_address(path)?, &variables()).map_err(Failure::error)
}

/// Where maintenance of stores on object storage has their index meanwhile.
pub(crate) fn scratch() -> Scratch {
    Scratch::in_folder(&cache_folder().join("maintenance"))
}

/// A store on object storage, with the credentials of the environment and a folder of its own in the user's cache.
fn remote_store(
    address: store::Address,
    cache: Option<PathBuf>,
    compress: bool,
) -> Result<Place, Failure> {
    signals::give_back_leases();
    let remote = Remote::new(address, &variables()).map_err(Failure::error)?;
    let name = Digest::of(remote.identity().as_bytes()).short();
    let folder = cache.unwrap_or_else(|| cache_folder().join("stores").join(name));
    Ok(Place::remote(remote, folder, compress))
}

/// Where the hub and its cache are, by the variables that all of its programs know.
pub(crate) fn hub_options() -> hub::Options {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let text = |name: &str| named(name).and_then(|v| v.into_string().ok());
    let home = named("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let caches = named("XDG_CACHE_HOME").map(PathBuf::from);
        let in_home = || std::env::home_dir().map(|home| home.join(".cache"));
        let caches = caches.or_else(in_home).unwrap_or_else(std::env::temp_dir);
        caches.join("huggingface")
    });
    let kept_token = || {
        let file = named("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        std::fs::read_to_string(file).ok()
    };
    let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(kept_token);
    let is_on = |value: String| {
        let value = value.to_ascii_lowercase();
        // The values that huggingface_hub takes for true.
        ["1", "true", "yes", "on"].contains(&value.as_str())
    };
    hub::Options {
        cache: named("HF_HUB_CACHE")
            .or_else(|| named("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| home.join("hub"), PathBuf::from),
        endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
        token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
        offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .iter()
            .any(|name| text(name).is_some_and(is_on)),
        verified: Some(cache_folder().join("hub.json")),
    }
}

/// A recipe or deviation that cannot be is the Experiment's fault, with exit status 2; the rest is the model's.
pub(crate) fn base_failure(error: base_model::Error) -> Failure {
    match error {
        base_model::Error::Recipe(_)
        | base_model::Error::Missing { .. }
        | base_model::Error::Experiment(_) => Failure::usage(error),
        other => Failure::error(other),
    }
}

/// Digests of weights that were read before, so that a 10 GB file is read once. Not part of any store.
pub(crate) fn digest_memo() -> DigestMemo {
    DigestMemo::open(&cache_folder().join("weights.json"))
}

pub(crate) fn cache_folder() -> PathBuf {
    let caches = dirs::cache_dir().unwrap_or_else(std::env::temp_dir);
    caches.join("plumb")
}

/// Where is kept which kernels agreed with the CPU on a GPU.
fn trials_folder() -> PathBuf {
    cache_folder().join("kernels")
}

/// Where networks are computed, and with how much memory.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// What computes: `cpu`, `cuda`, `cuda:N` (a GPU by its number), or `auto`, the first GPU that is there.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Use at most this much memory there, in GB; the default is what is free.
    ///
    /// Weights that do not fit are read from their files as they are used, and a denoiser that does not fit even so is refused; what the VAE
    /// takes is not counted. With `--processes`, all of them together use no more.
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// On a GPU, compute by plumb's own kernels: fused, and attention without a matrix of scores. No figure of a real GPU is known yet;
    /// before they are used on one, each is compared there with the CPU, once, and where one is wrong none is used.
    #[arg(long)]
    own_kernels: bool,
    /// With own kernels, compute attention, and convolutions in bf16, by NVIDIA's cuDNN 9 where it is installed, compared with the
    /// CPU as they are. No real GPU has run this yet.
    #[arg(long, requires = "own_kernels")]
    cudnn: bool,
    /// Compute with N threads on the CPU; the default is one for each core, or what RAYON_NUM_THREADS says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
}

/// How long to wait for another process.
#[derive(clap::Args)]
pub(crate) struct WaitArgs {
    /// Wait at most so long for another process that cleans up, mends or writes to the store, 0 not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT_SECONDS)]
    wait: u64,
}

/// Cleaning up a large store takes minutes, and on object storage the lease of a process that was killed lasts for fifteen.
const DEFAULT_WAIT_SECONDS: u64 = 1000;

impl WaitArgs {
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

impl Default for WaitArgs {
    fn default() -> Self {
        let wait = DEFAULT_WAIT_SECONDS;
        Self { wait }
    }
}

/// What computes, and the memory that it may use.
pub(crate) struct ComputeDevice {
    pub(crate) device: Device,
    pub(crate) kernels: Kernels,
    pub(crate) memory_bytes: u64,
}

impl DeviceArgs {
    pub(crate) fn open(&self, ui: &Ui) -> Result<ComputeDevice, Failure> {
        self.open_shared(Where::AsAsked, 1, ui)
    }

    /// The same where the command says, for one of so many processes on this machine, which share the processors.
    pub(crate) fn open_shared(
        &self,
        place: Where,
        processes: usize,
        ui: &Ui,
    ) -> Result<ComputeDevice, Failure> {
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize);
            let made = pool.build_global();
            made.map_err(|e| Failure::error(format!("--threads: {e}")))?;
        }
        // Before a device is opened, which may take seconds: a wrong number is told at once.
        let limit = self.memory.map(limit_bytes).transpose()?;
        let choice = self.choice(place)?;
        let opened = device::open(choice, &cuda_folders()).map_err(Failure::error)?;
        if let Some(note) = &opened.note {
            ui.note(note);
        }
        if let Some((total, free)) = opened.memory {
            let gb = |bytes: u64| bytes as f64 / 1e9;
            ui.note(&format!(
                "computing on {} ({:.1} GB, {:.1} free)",
                opened.name,
                gb(total),
                gb(free)
            ));
        }
        let mut kernels = Kernels::NONE;
        if self.own_kernels {
            if opened.device.is_cpu() {
                let why = "--own-kernels: they are for GPUs, and this computes on the CPU";
                return Err(Failure::usage(why));
            }
            let folders = cuda_folders();
            // Before the kernels ask for it: a missing compiler gets a sentence that names it.
            device::find_compiler(&folders).map_err(Failure::error)?;
            let cudnn = self.cudnn.then_some(&folders[..]);
            kernels = own_kernels::tried(&opened.device, cudnn, &trials_folder(), ui)?;
        }
        let free = opened.memory.map(|(_, free)| free);
        let free = free.unwrap_or_else(|| available_memory_bytes() / processes as u64);
        if opened.device.is_cpu() && processes > 1 {
            share_threads(processes);
        }
        Ok(ComputeDevice {
            device: opened.device,
            kernels,
            memory_bytes: limit.map_or(free, |limit| match place {
                // Of the whole command, which starts the others.
                Where::Cpu => limit / processes as u64,
                _ => limit,
            }),
        })
    }
}

/// Leaves the other processes of a machine their part of its cores, unless RAYON_NUM_THREADS says how many threads there are to be.
fn share_threads(processes: usize) {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / processes).max(1);
        // Fails where threads are there already, which then stay as they are.
        let _ = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global();
    }
}

impl ComputeDevice {
    /// The same for the denoiser of an Experiment, which may ask for products in fp8.
    pub(crate) fn for_denoiser_of(
        mut self,
        experiment: &Experiment,
        ui: &Ui,
    ) -> Result<Self, Failure> {
        let Some(Products::Fp8) = experiment.model().products else {
            return Ok(self);
        };
        if self.device.is_cpu() {
            ui.note("`[model] compute = \"fp8\"`: a CPU rounds numbers as a GPU does, and is no faster for it");
            return Ok(self);
        }
        self.kernels = own_kernels::with_fp8(self.kernels, &trials_folder(), ui)?;
        Ok(self)
    }

    pub(crate) fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            kernels: Kernels::NONE,
            memory_bytes: available_memory_bytes(),
        }
    }
}

impl DeviceArgs {
    fn choice(&self, place: Where) -> Result<Choice, Failure> {
        let asked = || {
            let wrong = |e| Failure::usage(format!("--device: {e}"));
            self.device.parse::<Choice>().map_err(wrong)
        };
        match place {
            Where::AsAsked => asked(),
            Where::Gpu(number) => Ok(Choice::Cuda(number)),
            Where::Cpu => match asked()? {
                Choice::Auto | Choice::Cpu => Ok(Choice::Cpu),
                Choice::Cuda(_) => Err(Failure::usage(
                    "--processes computes on the CPU; for GPUs say --gpus N, without --device",
                )),
            },
            Where::GpuOrCpu(number) => match (asked()?, device::count(&cuda_folders())) {
                // Where a scheduler gives each process a GPU of its own, each sees one.
                (Choice::Auto, Ok(1)) => Ok(Choice::Cuda(0)),
                (Choice::Auto, Ok(count)) if number >= count => Err(Failure::error(format!(
                    "this is process {number} of its machine, from 0, which has {count} GPUs: start one for each, or say --device"
                ))),
                (Choice::Auto, Ok(_)) => Ok(Choice::Cuda(number)),
                (choice, _) => Ok(choice),
            },
        }
    }
}

fn limit_bytes(gb: f64) -> Result<u64, Failure> {
    // More than any machine has; a number of bytes has an end.
    if gb > 0.0 && gb <= 1e9 {
        return Ok((gb * 1e9) as u64);
    }
    Err(Failure::usage(format!(
        "--memory: expected a number of GB above 0 and at most 1e9, found {}",
        shown::number(gb)
    )))
}

/// Where CUDA's libraries may lie on this machine.
pub(crate) fn cuda_folders() -> Vec<PathBuf> {
    device::cuda_folders(|name| std::env::var_os(name))
}

/// Encoders that fill most of the memory are read layer by layer.
pub(crate) fn encode_options(place: &ComputeDevice, wait: &WaitArgs) -> EncodeOptions {
    EncodeOptions {
        device: place.device.clone(),
        kernels: place.kernels.clone(),
        // The rest is for activations.
        resident_limit_bytes: place.memory_bytes / 10 * 7,
        wait: wait.limit(),
        clock: now_seconds,
        stop: never,
    }
}

/// What programs may take of the machine's memory, or of what a container lets them have.
pub(crate) fn available_memory_bytes() -> u64 {
    const UNKNOWN: u64 = 8 << 30;
    let system = System::new_with_specifics(
        RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    let free = match system.available_memory() {
        // What sysinfo says where it cannot tell.
        0 => UNKNOWN,
        bytes => bytes,
    };
    // What a group of processes has read from files counts as its use, but is given up for who needs memory: `free_memory` of sysinfo does not.
    let limit = system.cgroup_limits();
    let limit = limit.map(|limits| limits.total_memory.saturating_sub(limits.rss));
    limit.map_or(free, |limit| free.min(limit))
}

/// The time now. The library is given it, so that nothing in it depends on the clock.
#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> f64 {
    now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}
