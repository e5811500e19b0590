//! NVIDIA's cuDNN 9, opened when a program asks for it: the calls that we use of it, and its descriptors.

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::Arc;

use candle_core::{Error, Result, bail};
use libloading::Library;

use crate::device::{keep_open, open_library};

const NAMES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];
/// `10000 major + 100 minor + patch` since when reductions take all that they are told, and backward's worst faults are past.
const LEAST_VERSION: usize = 91_100;
const MOST_VERSION: usize = 99_999;

/// What a call answers: 0 if it did what was asked.
type Status = i32;

/// The calls, as the library's headers declare them.
pub(super) struct Api {
    /// As 91500 for 9.15.0.
    pub(super) version: usize,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    create: unsafe extern "C" fn(*mut *mut c_void) -> Status,
    destroy: unsafe extern "C" fn(*mut c_void) -> Status,
    set_stream: unsafe extern "C" fn(*mut c_void, *mut c_void) -> Status,
    create_descriptor: unsafe extern "C" fn(i32, *mut *mut c_void) -> Status,
    destroy_descriptor: unsafe extern "C" fn(*mut c_void) -> Status,
    set: unsafe extern "C" fn(*mut c_void, i32, i32, i64, *const c_void) -> Status,
    get: unsafe extern "C" fn(*mut c_void, i32, i32, i64, *mut i64, *mut c_void) -> Status,
    finalize: unsafe extern "C" fn(*mut c_void) -> Status,
    execute: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> Status,
}

/// What cuDNN opens by name only when it needs it, and without which it ends the program or finds no engine.
fn needed(library: &Library) -> Result<[String; 2]> {
    // SAFETY: the type is that of cuDNN 9's headers.
    let runtime = unsafe {
        let version: unsafe extern "C" fn() -> usize = call(library, "cudnnGetCudartVersion")?;
        version()
    };
    Ok(["libcublasLt", "libnvrtc"].map(|name| format!("{name}.so.{}", runtime / 1000)))
}

/// A call of the library.
///
/// # Safety
///
/// `T` is the type of a function pointer as the library's headers declare it.
unsafe fn call<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: the caller's promise.
    match unsafe { library.get::<T>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(error) => bail!("cuDNN has no {name}: {error}"),
    }
}

impl Api {
    /// Opens the library, by the system's loader or from `folders`. It stays open.
    pub(super) fn open(folders: &[PathBuf]) -> Result<Arc<Self>> {
        let open = |names: &[&str]| open_library(names, folders).map_err(Error::msg);
        let library = open(&NAMES)?;
        let api = Self::of(&library)?;
        for name in needed(&library)? {
            keep_open(open(&[&name])?);
        }
        keep_open(library);
        Ok(Arc::new(api))
    }

    fn of(library: &Library) -> Result<Self> {
        // SAFETY: the types are those of cuDNN 9's headers.
        unsafe {
            let version: unsafe extern "C" fn() -> usize = call(library, "cudnnGetVersion")?;
            let version = version();
            if !(LEAST_VERSION..=MOST_VERSION).contains(&version) {
                bail!("cuDNN is {version}; {LEAST_VERSION} to {MOST_VERSION} will do");
            }
            Ok(Self {
                version,
                error_string: call(library, "cudnnGetErrorString")?,
                last_error: call(library, "cudnnGetLastErrorString")?,
                create: call(library, "cudnnCreate")?,
                destroy: call(library, "cudnnDestroy")?,
                set_stream: call(library, "cudnnSetStream")?,
                create_descriptor: call(library, "cudnnBackendCreateDescriptor")?,
                destroy_descriptor: call(library, "cudnnBackendDestroyDescriptor")?,
                set: call(library, "cudnnBackendSetAttribute")?,
                get: call(library, "cudnnBackendGetAttribute")?,
                finalize: call(library, "cudnnBackendFinalize")?,
                execute: call(library, "cudnnBackendExecute")?,
            })
        }
    }

    /// An error that says what failed and why, unless nothing did.
    fn check(&self, status: Status, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let mut text = [0u8; 1024];
        // SAFETY: the library writes a string that ends within the bytes it is told of, and its names of errors are constants.
        let name = unsafe {
            (self.last_error)(text.as_mut_ptr().cast(), text.len());
            match (self.error_string)(status) {
                none if none.is_null() => "no name".into(),
                name => CStr::from_ptr(name).to_string_lossy(),
            }
        };
        let why = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy);
        let why = why.unwrap_or_default();
        bail!("cuDNN does not {what}: {name} ({status}) {}", why.trim())
    }
}

/// A cuDNN context, of the GPU whose CUDA context was current when it was made.
pub(super) struct Handle {
    raw: *mut c_void,
    api: Arc<Api>,
}

// SAFETY: cuDNN's handles may be used by any one thread at a time.
unsafe impl Send for Handle {}

impl Handle {
    /// The GPU's CUDA context must be the thread's.
    pub(super) fn new(api: Arc<Api>) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the library writes one pointer.
        api.check(unsafe { (api.create)(&raw mut raw) }, "start")?;
        Ok(Self { raw, api })
    }

    /// The library it is of.
    pub(super) fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Runs a plan on a stream.
    ///
    /// # Safety
    ///
    /// `stream` lives and is of the handle's GPU, and the pack's addresses are of memory as large as the plan takes it
    /// to be: on the GPU until what was asked of the stream is done, on the host until this returns.
    pub(super) unsafe fn execute(
        &mut self,
        stream: *mut c_void,
        plan: &Descriptor,
        pack: &Descriptor,
    ) -> Result<()> {
        let api = &self.api;
        // SAFETY: the handle lives; the rest is the caller's promise.
        let (taken, asked) = unsafe {
            let taken = (api.set_stream)(self.raw, stream);
            match taken {
                0 => (taken, (api.execute)(self.raw, plan.raw, pack.raw)),
                _ => (taken, 0),
            }
        };
        api.check(taken, "take the stream")?;
        api.check(asked, "run a plan")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `create`, and dropped once.
        unsafe { (self.api.destroy)(self.raw) };
    }
}

/// Kinds of descriptors, `cudnnBackendDescriptorType_t`.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(super) enum Kind {
    Pointwise = 0,
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    EngineHeuristics = 4,
    ExecutionPlan = 5,
    ConvolutionForward = 10,
    ConvolutionTowardsPicture = 12,
    PointwiseOperation = 13,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
    Matmul = 18,
    MatmulOperation = 19,
    Reduction = 21,
    ReductionOperation = 22,
    ReshapeOperation = 31,
}

/// Types of what an attribute holds, `cudnnBackendAttributeType_t`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Holds {
    Handle = 0,
    DataType = 1,
    Flag = 2,
    Integer = 3,
    Float = 4,
    Address = 6,
    ConvolutionMode = 7,
    HeuristicMode = 8,
    NumericalNote = 11,
    PointwiseMode = 14,
    Descriptor = 15,
    ReductionOperator = 18,
}

/// An object of cuDNN's that is described by attributes until it is finalized.
pub(super) struct Descriptor {
    raw: *mut c_void,
    api: Arc<Api>,
}

// SAFETY: a descriptor is memory of the library's that any one thread may use at a time.
unsafe impl Send for Descriptor {}

impl Descriptor {
    pub(super) fn new(api: &Arc<Api>, kind: Kind) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the library writes one pointer.
        let status = unsafe { (api.create_descriptor)(kind as i32, &raw mut raw) };
        api.check(status, "make a descriptor")?;
        Ok(Self {
            raw,
            api: Arc::clone(api),
        })
    }

    /// The library it is of.
    pub(super) fn api(&self) -> &Arc<Api> {
        &self.api
    }

    pub(super) fn with_integers(self, attribute: i32, values: &[i64]) -> Result<Self> {
        // SAFETY: integers of an attribute are 64 bits.
        unsafe { self.with(attribute, Holds::Integer, values) }
    }

    pub(super) fn with_float(self, attribute: i32, value: f32) -> Result<Self> {
        // SAFETY: a float of an attribute is one f32.
        unsafe { self.with(attribute, Holds::Float, &[value]) }
    }

    /// Only for what is so: nothing is until it is said.
    pub(super) fn with_flag(self, attribute: i32, value: bool) -> Result<Self> {
        // SAFETY: a flag of an attribute is one byte.
        unsafe { self.with(attribute, Holds::Flag, &[value]) }
    }

    /// One of an enumeration of the library's.
    pub(super) fn with_choice(self, attribute: i32, holds: Holds, value: i32) -> Result<Self> {
        // SAFETY: the library's enumerations are 32 bits.
        unsafe { self.with(attribute, holds, &[value]) }
    }

    pub(super) fn with_handle(self, attribute: i32, handle: &Handle) -> Result<Self> {
        // SAFETY: a handle is one pointer.
        unsafe { self.with(attribute, Holds::Handle, &[handle.raw]) }
    }

    pub(super) fn with_addresses(self, attribute: i32, values: &[*mut c_void]) -> Result<Self> {
        // SAFETY: an address is one pointer, which is not followed yet.
        unsafe { self.with(attribute, Holds::Address, values) }
    }

    /// Other descriptors, finalized ones, which must outlive this one.
    pub(super) fn with_descriptors(self, attribute: i32, values: &[&Self]) -> Result<Self> {
        let raw: Vec<*mut c_void> = values.iter().map(|value| value.raw).collect();
        // SAFETY: a descriptor is one pointer.
        unsafe { self.with(attribute, Holds::Descriptor, &raw) }
    }

    /// # Safety
    ///
    /// `T` is laid out as the library takes `holds` to be.
    unsafe fn with<T>(self, attribute: i32, holds: Holds, values: &[T]) -> Result<Self> {
        let (api, count) = (&self.api, values.len() as i64);
        let values = values.as_ptr().cast();
        // SAFETY: the values are copied by the call, and their type is the caller's promise.
        let status = unsafe { (api.set)(self.raw, attribute, holds as i32, count, values) };
        api.check(status, &format!("take attribute {attribute}"))?;
        Ok(self)
    }

    pub(super) fn finalized(self) -> Result<Self> {
        // SAFETY: the descriptor lives.
        let status = unsafe { (self.api.finalize)(self.raw) };
        self.api.check(status, "finalize a descriptor")?;
        Ok(self)
    }

    /// A number that the library tells of a finalized descriptor.
    pub(super) fn integer(&self, attribute: i32) -> Result<i64> {
        let mut value = 0i64;
        // SAFETY: room for one integer.
        unsafe { self.get(attribute, Holds::Integer, 1, (&raw mut value).cast())? };
        Ok(value)
    }

    /// At most 16 of an enumeration of the library's.
    pub(super) fn choices(&self, attribute: i32, holds: Holds) -> Result<Vec<i32>> {
        let mut values = [0i32; 16];
        let room = values.len() as i64;
        // SAFETY: room for as many 32-bit numbers as are asked for.
        let count = unsafe { self.get(attribute, holds, room, values.as_mut_ptr().cast())? };
        Ok(values.into_iter().take(count).collect())
    }

    /// All descriptors of an attribute, of a kind.
    pub(super) fn descriptors(&self, attribute: i32, kind: Kind) -> Result<Vec<Self>> {
        // SAFETY: nothing is written where nothing is asked for.
        let count = unsafe { self.get(attribute, Holds::Descriptor, 0, null_mut())? };
        self.some_descriptors(attribute, kind, count)
    }

    /// The one descriptor of an attribute, of a kind.
    pub(super) fn descriptor(&self, attribute: i32, kind: Kind) -> Result<Self> {
        match self.some_descriptors(attribute, kind, 1)?.pop() {
            Some(descriptor) => Ok(descriptor),
            None => bail!("cuDNN does not tell attribute {attribute}"),
        }
    }

    fn some_descriptors(&self, attribute: i32, kind: Kind, count: usize) -> Result<Vec<Self>> {
        let made: Vec<Self> = (0..count)
            .map(|_| Self::new(&self.api, kind))
            .collect::<Result<_>>()?;
        let mut raw: Vec<*mut c_void> = made.iter().map(|descriptor| descriptor.raw).collect();
        let (room, to) = (count as i64, raw.as_mut_ptr().cast());
        // SAFETY: room for as many descriptors as are asked for, made for the library to fill.
        let filled = unsafe { self.get(attribute, Holds::Descriptor, room, to)? };
        Ok(made.into_iter().take(filled).collect())
    }

    /// How many values there are.
    ///
    /// # Safety
    ///
    /// `to` has room for `room` values as the library takes `holds` to be.
    unsafe fn get(
        &self,
        attribute: i32,
        holds: Holds,
        room: i64,
        to: *mut c_void,
    ) -> Result<usize> {
        let (api, mut count) = (&self.api, 0i64);
        // SAFETY: the caller's promise.
        let status =
            unsafe { (api.get)(self.raw, attribute, holds as i32, room, &raw mut count, to) };
        api.check(status, &format!("tell attribute {attribute}"))?;
        Ok(count.max(0) as usize)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `create_descriptor`, and dropped once.
        unsafe { (self.api.destroy_descriptor)(self.raw) };
    }
}
