//! Opening an NVIDIA GPU.

use std::ffi::c_void;
use std::path::PathBuf;

use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Device};

use super::library::{keep_open, open_library, open_one};
use super::{Error, Opened};

/// Ampere's: the first with bf16 on tensor cores, which the kernels are written for.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// A library, by the names it may have, the newest first, and in what it comes.
type Library = (&'static str, &'static [&'static str], &'static str);

const COMPILER: Library = (
    "libnvrtc",
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    "the CUDA toolkit",
);

const LIBRARIES: [Library; 4] = [
    (
        "libcuda",
        &["libcuda.so.1", "libcuda.so"],
        "the NVIDIA driver",
    ),
    (
        "libcublas",
        &["libcublas.so.13", "libcublas.so.12", "libcublas.so"],
        "the CUDA toolkit",
    ),
    (
        "libcublasLt",
        &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
        "the CUDA toolkit",
    ),
    (
        "libcurand",
        &["libcurand.so.10", "libcurand.so"],
        "the CUDA toolkit",
    ),
];

pub(super) fn open(number: usize, folders: &[PathBuf]) -> Result<Opened, Error> {
    let unusable = |why: String| Error::Unusable(why);
    let count = count(folders)?;
    if count == 0 {
        return Err(unusable("the driver finds no GPU".to_owned()));
    }
    if number >= count {
        return Err(unusable(format!(
            "there is no GPU {number}; the driver finds {count}, numbered from 0"
        )));
    }
    // A stream of its own, not the calling thread's: tensors may move between threads.
    let device =
        Device::new_cuda_with_stream(number).map_err(|e| unusable(format!("GPU {number}: {e}")))?;
    let Device::Cuda(gpu) = &device else {
        return Err(unusable("the GPU is no CUDA device".to_owned()));
    };
    let context = gpu.cuda_stream().context().clone();
    // Only for messages, so a driver without names is no error.
    let name = context.name().unwrap_or_else(|_| format!("cuda:{number}"));
    let capability = context
        .compute_capability()
        .map_err(|e| unusable(e.to_string()))?;
    if capability < LEAST_CAPABILITY {
        let ((major, minor), (least, _)) = (capability, LEAST_CAPABILITY);
        return Err(unusable(format!(
            "{name} has compute capability {major}.{minor}; {least}.0 (Ampere) is the least"
        )));
    }
    // SAFETY: everything is asked of one stream, in order, so no tensor is freed or written before its last use.
    unsafe { gpu.disable_event_tracking() };
    keep_pool(context.cu_device()).map_err(|e| unusable(format!("its memory pool: {e}")))?;
    let memory = context
        .mem_get_info()
        .map_err(|e| unusable(e.to_string()))?;
    let (free, total) = memory;
    Ok(Opened {
        device,
        name,
        memory: Some((total as u64, free as u64)),
        note: None,
    })
}

pub(super) fn count(folders: &[PathBuf]) -> Result<usize, Error> {
    // cudarc opens these when it first calls into one, and panics where one is missing.
    for library in LIBRARIES {
        load_library(library, folders)?;
    }
    check_driver()?;
    let unusable = |why: String| Error::Unusable(why);
    result::init().map_err(|e| unusable(format!("the driver does not start: {e}")))?;
    let count = result::device::get_count().map_err(|e| unusable(e.to_string()))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn free_bytes(gpu: &CudaDevice) -> Option<u64> {
    let stream = gpu.cuda_stream();
    let info = stream.context().mem_get_info();
    info.ok().map(|(free, _)| free as u64)
}

/// Freed memory stays with the program: otherwise it goes back to the driver at every wait, and comes back page by page.
fn keep_pool(device: sys::CUdevice) -> Result<(), result::DriverError> {
    let mut all = u64::MAX;
    let value: *mut c_void = (&raw mut all).cast();
    // SAFETY: `device` is the GPU that was just opened, and the attribute's value is 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(device)?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, value)
    }
}

/// The CUDA that the driver is for, as 13020 for 13.2. Its library was loaded before.
pub(crate) fn driver_version() -> Result<i32, result::DriverError> {
    let mut version = 0;
    // SAFETY: the library is loaded, and writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

/// Refuses a driver that is older than the CUDA that kernels are compiled for: it would take none of them.
fn check_driver() -> Result<(), Error> {
    let driver = driver_version()
        .map_err(|e| Error::Unusable(format!("the driver does not tell its version: {e}")))?;
    let ours = sys::CUDA_VERSION as i32;
    if driver < ours {
        let version = |number: i32| format!("{}.{}", number / 1000, number % 1000 / 10);
        return Err(Error::Unusable(format!(
            "the driver is for CUDA {}, this plumb for {}; update the driver, or build plumb with a toolkit as old as it",
            version(driver),
            version(ours)
        )));
    }
    Ok(())
}

pub(super) fn load_compiler(folders: &[PathBuf]) -> Result<(), Error> {
    // First: NVRTC looks for them the first time it compiles.
    load_builtins(folders);
    load_library(COMPILER, folders)
}

/// Opens NVRTC's built-ins from `folders`. NVRTC asks for them by name alone, which the system's loader finds only if they are
/// open already or lie where it looks. Does nothing where none are there.
fn load_builtins(folders: &[PathBuf]) {
    for folder in folders {
        let there = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let is_one =
            |name: &str| name.starts_with("libnvrtc-builtins.so.") && !name.contains(".alt");
        for file in there.filter(|file| file.file_name().to_str().is_some_and(is_one)) {
            if let Ok(library) = open_one(&file.path()) {
                return keep_open(library);
            }
        }
    }
}

/// Opens a library, by the system's loader or from `folders`, and leaves it open.
fn load_library((library, names, package): Library, folders: &[PathBuf]) -> Result<(), Error> {
    let wrong = |why| Error::Unusable(format!("{library} comes with {package}, and {why}"));
    keep_open(open_library(names, folders).map_err(wrong)?);
    Ok(())
}
