//! Opening an NVIDIA card.

use std::ffi::c_void;
use std::path::{Path, PathBuf};

use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Device};

use super::{Error, Opened};

/// What the kernels are compiled for, at least.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// The libraries that are used, each by the names it may have, the newest first. The second part says in which packages
/// it comes.
const LIBRARIES: [(&str, &[&str], &str); 4] = [
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
    load_libraries(folders)?;
    let unusable = |why: String| Error::Unusable(why);
    result::init().map_err(|e| unusable(format!("the driver does not start: {e}")))?;
    let count = result::device::get_count().map_err(|e| unusable(e.to_string()))?;
    if count == 0 {
        return Err(unusable("the driver finds no card".to_owned()));
    }
    if number as u64 >= count as u64 {
        return Err(unusable(format!(
            "there is no card {number}; the driver finds {count}, numbered from 0"
        )));
    }
    // A stream of its own, not the calling thread's: tensors may move between threads.
    let device = Device::new_cuda_with_stream(number)
        .map_err(|e| unusable(format!("card {number}: {e}")))?;
    let Device::Cuda(card) = &device else {
        return Err(unusable("the card is no CUDA device".to_owned()));
    };
    let context = card.cuda_stream().context().clone();
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
    unsafe { card.disable_event_tracking() };
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

pub(super) fn free_bytes(card: &CudaDevice) -> Option<u64> {
    let stream = card.cuda_stream();
    let info = stream.context().mem_get_info();
    info.ok().map(|(free, _)| free as u64)
}

/// Freed memory stays with the program: otherwise it goes back to the driver at every wait, and comes back page by page.
fn keep_pool(device: sys::CUdevice) -> Result<(), result::DriverError> {
    let mut all = u64::MAX;
    let value: *mut c_void = (&raw mut all).cast();
    // SAFETY: `device` is the card that was just opened, and the attribute's value is 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(device)?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, value)
    }
}

/// Opens the libraries, by the system's loader or from `folders`, and leaves them open: whoever asks for one by its name
/// later finds it.
fn load_libraries(folders: &[PathBuf]) -> Result<(), Error> {
    for (library, names, package) in LIBRARIES {
        let places = names.iter().map(PathBuf::from).chain(
            folders
                .iter()
                .flat_map(|folder| names.iter().map(move |name| folder.join(name))),
        );
        if !places.into_iter().any(|place| load(&place)) {
            return Err(Error::Unusable(format!(
                "{library} was not found; it comes with {package} (looked for {} by the system's loader{})",
                names.join(", "),
                match folders {
                    [] => String::new(),
                    some => format!(" and in {} folders", some.len()),
                }
            )));
        }
    }
    Ok(())
}

fn load(place: &Path) -> bool {
    // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers touch nothing of ours.
    let opened = unsafe { libloading::Library::new(place) };
    // Never unloaded: the drop would close it.
    opened.map(std::mem::ManuallyDrop::new).is_ok()
}
