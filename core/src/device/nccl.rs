//! NVIDIA's NCCL, opened when ranks train on GPUs together: a broadcast of f32 numbers from one GPU to the others. No sum is made
//! here, since NCCL's have an order that depends on the number of GPUs and how they are wired.
//!
//! Opened as it runs, as cuDNN is: cudarc would link to it, and no program without it would start. Types and numbers are those of
//! `nccl.h`, versions 2.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr as _};
use candle_core::{CudaDevice, DType, Error, Storage, Tensor, bail};

use super::library::{keep_open, open_library};

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// `ncclFloat32`.
const FLOAT32: c_int = 7;
/// Bytes of an `ncclUniqueId`.
const ID_BYTES: usize = 128;

/// How often the GPU is asked whether it is done.
const POLL_EVERY: Duration = Duration::from_micros(200);
/// How many of these until the other ranks are looked at.
const POLLS_TO_LOOK: u32 = 250;

/// Of what needs the GPU; to open the library may fail with a sentence.
type Outcome<T> = candle_core::Result<T>;

/// What a call answers: 0 if it did what was asked.
type Status = c_int;

/// What ranks find each other by.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

/// The calls, as the library's header declares them.
pub struct Library {
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    init_rank: unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> Status,
    broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        *mut c_void,
        *mut c_void,
    ) -> Status,
    async_error: unsafe extern "C" fn(*mut c_void, *mut Status) -> Status,
    abort: unsafe extern "C" fn(*mut c_void) -> Status,
    destroy: unsafe extern "C" fn(*mut c_void) -> Status,
}

/// A call of the library.
///
/// # Safety
///
/// `T` is the type of a function pointer as the library's header declares it.
unsafe fn call<T: Copy>(library: &libloading::Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller's promise.
    match unsafe { library.get::<T>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(error) => Err(format!("NCCL has no {name}: {error}")),
    }
}

impl Library {
    /// Opens the library, by the system's loader or from `folders`. It stays open.
    ///
    /// # Errors
    ///
    /// If it is not there, in a sentence.
    pub fn open(folders: &[PathBuf]) -> Result<Self, String> {
        let library = open_library(&NAMES, folders)?;
        // SAFETY: the types are those of nccl.h.
        let found = unsafe {
            Self {
                error_string: call(&library, "ncclGetErrorString")?,
                unique_id: call(&library, "ncclGetUniqueId")?,
                init_rank: call(&library, "ncclCommInitRank")?,
                broadcast: call(&library, "ncclBroadcast")?,
                async_error: call(&library, "ncclCommGetAsyncError")?,
                abort: call(&library, "ncclCommAbort")?,
                destroy: call(&library, "ncclCommDestroy")?,
            }
        };
        keep_open(library);
        Ok(found)
    }

    /// What rank 0 makes and all ranks are given.
    ///
    /// # Errors
    ///
    /// If NCCL finds no network to listen on.
    pub fn unique_id(&self) -> Outcome<Vec<u8>> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: the library fills the struct.
        let made = unsafe { (self.unique_id)(&raw mut id) };
        self.check(made, "make an id")?;
        Ok(id.0.to_vec())
    }

    fn check(&self, status: Status, what: &str) -> Outcome<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: its names of errors are constants.
        let name = unsafe {
            match (self.error_string)(status) {
                none if none.is_null() => "no name".into(),
                name => CStr::from_ptr(name).to_string_lossy(),
            }
        };
        bail!("NCCL does not {what}: {name} ({status}); NCCL_DEBUG=INFO says more")
    }
}

/// This rank's end of what connects the GPUs.
pub struct Communicator {
    library: Library,
    raw: *mut c_void,
    stream: Arc<CudaStream>,
    /// Whether it was ended before its time.
    given_up: Cell<bool>,
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NCCL")
    }
}

impl Communicator {
    /// Connects rank `rank` of `world` by the id that rank 0 made. Waits for all of them: each has to be on its way here.
    ///
    /// # Errors
    ///
    /// If two ranks are on one GPU, or the GPUs or machines do not reach each other.
    pub fn new(
        library: Library,
        gpu: &CudaDevice,
        (rank, world): (usize, usize),
        id: &[u8],
    ) -> Outcome<Self> {
        let Some(id) = id.first_chunk().filter(|_| id.len() == ID_BYTES) else {
            bail!("rank 0 sent an id of {} bytes, not {ID_BYTES}", id.len());
        };
        let stream = gpu.cuda_stream();
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let mut raw = null_mut();
        let (rank, world) = (rank as c_int, world as c_int);
        // SAFETY: the library writes one pointer; the GPU's context is the thread's.
        let made = unsafe { (library.init_rank)(&raw mut raw, world, UniqueId(*id), rank) };
        library.check(made, "connect the GPUs")?;
        Ok(Self {
            library,
            raw,
            stream,
            given_up: Cell::new(false),
        })
    }

    /// Asks that `numbers`, flat and in f32, become what they are on rank `root`, in place. [`Self::wait`] waits until they are.
    ///
    /// # Errors
    ///
    /// If they are other tensors, or the library fails.
    pub fn broadcast(&self, numbers: &Tensor, root: usize) -> Outcome<()> {
        if numbers.dtype() != DType::F32 || numbers.rank() != 1 || !numbers.is_contiguous() {
            bail!(
                "gradients are flat and in f32, found {:?} in {:?}",
                numbers.dims(),
                numbers.dtype()
            );
        }
        let (storage, layout) = numbers.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a tensor of {:?} was given to a GPU", numbers.device());
        };
        self.stream
            .context()
            .bind_to_thread()
            .map_err(Error::wrap)?;
        let start = storage.as_cuda_slice::<f32>()?.device_ptr(&self.stream).0;
        let start = start + (layout.start_offset() * size_of::<f32>()) as u64;
        let place: *mut c_void = std::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: so many f32 numbers are there, of the stream's GPU; they are freed in the stream's order, after this.
        let asked = unsafe {
            (self.library.broadcast)(
                place,
                place,
                numbers.elem_count(),
                FLOAT32,
                root as c_int,
                self.raw,
                self.stream.cu_stream().cast(),
            )
        };
        self.library.check(asked, "send the gradients")
    }

    /// Waits until what was asked of the GPU is done. `look` is asked from time to time whether all ranks are there; where it says no, what
    /// was asked is given up, and this is of no use any more.
    ///
    /// # Errors
    ///
    /// That of `look`, or of the GPU or the library.
    pub fn wait<E: From<Error>>(&self, look: &dyn Fn() -> Result<(), E>) -> Result<(), E> {
        let event = self.stream.record_event(None).map_err(Error::wrap)?;
        let mut polls = 0_u32;
        while !event.try_is_complete().map_err(Error::wrap)? {
            std::thread::sleep(POLL_EVERY);
            polls = polls.wrapping_add(1);
            if !polls.is_multiple_of(POLLS_TO_LOOK) {
                continue;
            }
            let mut status = 0;
            // SAFETY: the communicator lives, and the library writes one number.
            let asked = unsafe { (self.library.async_error)(self.raw, &raw mut status) };
            let found = self.library.check(asked.max(status), "go on");
            if let Err(error) = found.map_err(E::from).and_then(|()| look()) {
                // SAFETY: the communicator lives. What waits on the GPU for a rank that is gone ends by this.
                unsafe { (self.library.abort)(self.raw) };
                self.given_up.set(true);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.given_up.get() {
            return;
        }
        // An error has nobody to hear it.
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: made by `init_rank`, and dropped once.
        unsafe { (self.library.destroy)(self.raw) };
    }
}
