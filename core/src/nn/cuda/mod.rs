//! Our own CUDA kernels: fused passes over memory and attention without a matrix of scores, compiled by NVRTC when a
//! program asks for them.
//!
//! They serve bf16 and f32, contiguous, and sum in f32. What they do not serve falls back to the composed form, which is
//! also what they are held against.

pub(crate) mod attention;
pub(crate) mod biased;
mod cases;
pub(crate) mod combine;
mod compile;
pub(crate) mod conv;
mod cudnn;
pub(crate) mod flat;
pub(crate) mod fp8;
pub(crate) mod fused;
pub(crate) mod gemm;
pub(crate) mod graph;
pub(crate) mod groups;
pub(crate) mod linear;
pub(crate) mod loss;
mod matmul;
pub(crate) mod rows;
pub(crate) mod upload;
pub(crate) mod views;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::cublaslt::sys::cublasLtGetVersion;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaStream, DevicePtr as _, LaunchConfig, PushKernelArg as _,
};
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Error, Result, Shape, Storage, Tensor, bail,
};
use half::bf16;

use crate::device::cuda::driver_version;
use crate::nn;
use cudnn::Cudnn;

/// Dynamic shared memory that every GPU grants without being asked.
const GRANTED: u32 = 48 * 1024;

/// A GPU with its kernels. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kernels {
    inner: Arc<Inner>,
    cudnn: Option<Arc<Cudnn>>,
    /// Whether they may multiply 8-bit floats.
    fp8: bool,
    /// What graphs want beside.
    workspace: Option<Arc<graph::Workspace>>,
}

struct Inner {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    compiled: Mutex<Compiled>,
    products: matmul::Opened,
    /// While a graph is recorded.
    recording: Mutex<Option<graph::Recording>>,
}

/// What was compiled so far, by module.
#[derive(Default)]
struct Compiled {
    modules: HashMap<String, Arc<CudaModule>>,
    functions: HashMap<(String, &'static str), CudaFunction>,
}

impl Kernels {
    /// Those of a GPU.
    ///
    /// # Errors
    ///
    /// If NVRTC is missing or does not compile them, or the driver does not take what it made.
    pub(crate) fn compile(gpu: &CudaDevice) -> Result<Self> {
        let kernels = Self {
            inner: Arc::new(Inner {
                stream: gpu.cuda_stream(),
                device: gpu.clone(),
                compiled: Mutex::default(),
                products: Mutex::default(),
                recording: Mutex::default(),
            }),
            cudnn: None,
            fp8: false,
            workspace: None,
        };
        // Now, so that a machine that cannot compile them says so before anything is computed.
        kernels.function("rows", DType::BF16, "gated_by_1")?;
        Ok(kernels)
    }

    /// The same, with attention and convolutions by cuDNN.
    ///
    /// # Errors
    ///
    /// If the library, or what it needs, is not found, is of a version that will not do, or does not start.
    pub(crate) fn with_cudnn(mut self, folders: &[PathBuf]) -> Result<Self> {
        self.cudnn = Some(Arc::new(Cudnn::open(&self, folders)?));
        Ok(self)
    }

    /// Whether attention and convolutions are by cuDNN.
    pub(crate) fn have_cudnn(&self) -> bool {
        self.cudnn.is_some()
    }

    /// The same, with products in 8-bit floats.
    ///
    /// # Errors
    ///
    /// If the GPU is too old for them.
    pub(crate) fn with_fp8(mut self) -> Result<Self> {
        let context = self.inner.stream.context();
        let capability = context.compute_capability().w()?;
        if capability < (8, 9) {
            let (name, (major, minor)) = (context.name().w()?, capability);
            bail!(
                "{name} multiplies no 8-bit floats: its compute capability is {major}.{minor}, and 8.9 (Ada, Hopper) or later does"
            );
        }
        self.fp8 = true;
        Ok(self)
    }

    /// Whether products may be in 8-bit floats.
    pub(crate) fn have_fp8(&self) -> bool {
        self.fp8
    }

    /// What they are: the GPU, the driver, and the versions of what compiles and computes. Two of one text compute the same.
    ///
    /// # Errors
    ///
    /// If the driver or NVRTC do not tell.
    pub(crate) fn identity(&self) -> Result<String> {
        let context = self.inner.stream.context();
        let name = context.name().w()?;
        let uuid = context.uuid().w()?.bytes.map(|byte| byte as u8);
        let (major, minor) = context.compute_capability().w()?;
        let (driver, compiler) = (driver_version().w()?, compile::compiler()?);
        // SAFETY: the library is open, and gives one number.
        let products = unsafe { cublasLtGetVersion() };
        let uuid: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let cudnn = match &self.cudnn {
            Some(cudnn) => format!(", cuDNN {}", cudnn.version()),
            None => String::new(),
        };
        let fp8 = if self.fp8 { ", products in fp8" } else { "" };
        Ok(format!(
            "{name} ({uuid}), compute capability {major}.{minor}, driver {driver}, NVRTC {}.{}, cuBLAS {products}{cudnn}{fp8}",
            compiler.0, compiler.1
        ))
    }

    /// What they compute otherwise than the CPU on small inputs, in words: of every operation, or with products in 8-bit floats of these, or with
    /// cuDNN of attention. `before_each` is told how many cases were tried, and of how many.
    ///
    /// # Errors
    ///
    /// If the GPU computes nothing more in this process, as after an access outside of its memory.
    pub(crate) fn fault(&self, before_each: &dyn Fn(usize, usize)) -> Result<Option<String>> {
        let gpu = Device::Cuda(self.inner.device.clone());
        let kernels = nn::Kernels::of_gpu(self.clone());
        let cases = match (self.fp8, self.have_cudnn()) {
            (true, _) => cases::in_fp8()?,
            (false, true) => cases::of_cudnn()?,
            (false, false) => cases::all()?,
        };
        for (i, case) in cases.iter().enumerate() {
            before_each(i, cases.len());
            let found = case.fault(&gpu, &kernels).or_else(|error| {
                Tensor::zeros(1, DType::F32, &gpu)?.to_vec1::<f32>()?;
                Ok::<_, Error>(Some(format!("{}: {error}", case.name())))
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Whether they are of a device.
    pub(crate) fn are_of(&self, device: &Device) -> bool {
        matches!(device, Device::Cuda(gpu) if gpu.id() == self.inner.device.id())
    }

    /// A function of `rows.cu`, for numbers of a type.
    fn function(&self, module: &str, dtype: DType, name: &'static str) -> Result<CudaFunction> {
        let wide = u8::from(dtype == DType::BF16);
        self.compiled(
            &format!("{module}-{}", dtype.as_str()),
            name,
            include_str!("rows.cu"),
            &format!("-DBF16={wide}"),
        )
    }

    /// A function of a source, compiled on its first use.
    fn compiled(
        &self,
        module: &str,
        name: &'static str,
        source: &str,
        define: &str,
    ) -> Result<CudaFunction> {
        let compiled = self.inner.compiled.lock();
        let mut compiled = compiled.unwrap_or_else(PoisonError::into_inner);
        let key = (module.to_owned(), name);
        if let Some(function) = compiled.functions.get(&key) {
            return Ok(function.clone());
        }
        let loaded = match compiled.modules.get(module) {
            Some(loaded) => loaded.clone(),
            None => {
                let context = self.inner.stream.context();
                let code = compile::compile(context, source, define)?;
                let loaded = context.load_module(code).w()?;
                compiled.modules.insert(key.0.clone(), loaded.clone());
                loaded
            }
        };
        let function = loaded.load_function(name).w()?;
        compiled.functions.insert(key, function.clone());
        Ok(function)
    }

    /// Asks the GPU to run a function.
    ///
    /// # Safety
    ///
    /// The arguments are those of the function's signature, and every address is of a tensor that is alive and as large as
    /// the function takes it to be.
    unsafe fn launch(
        &self,
        function: &CudaFunction,
        config: LaunchConfig,
        arguments: &[Argument],
    ) -> Result<()> {
        let mut builder = self.inner.stream.launch_builder(function);
        for argument in arguments {
            match argument {
                Argument::Address(x) => builder.arg(x),
                Argument::Long(x) => builder.arg(x),
                Argument::Int(x) => builder.arg(x),
                Argument::Float(x) => builder.arg(x),
                Argument::Tokens(x) => builder.arg(x),
                Argument::PerRow(x) => builder.arg(x),
                Argument::Groups(x) => builder.arg(x),
                Argument::Update(x) => builder.arg(x),
                Argument::Key(x) => builder.arg(x),
                Argument::Windows(x) => builder.arg(x),
                Argument::View(x) => builder.arg(x),
                Argument::Double(x) => builder.arg(x),
            };
        }
        // SAFETY: the caller's promise.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    /// An uninitialised tensor, which a kernel must fill.
    fn room(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        // At least one number: the driver allocates no 0 bytes.
        let (device, count) = (&self.inner.device, shape.elem_count().max(1));
        // SAFETY: the caller's kernel writes every number before anything on the stream reads one.
        let storage = unsafe {
            match dtype {
                DType::BF16 => {
                    CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(count)?, device.clone())
                }
                DType::F32 => {
                    CudaStorage::wrap_cuda_slice(device.alloc::<f32>(count)?, device.clone())
                }
                DType::U8 => {
                    CudaStorage::wrap_cuda_slice(device.alloc::<u8>(count)?, device.clone())
                }
                other => bail!("no kernel makes {other:?}"),
            }
        };
        Ok(Tensor::from_storage(
            Storage::Cuda(storage),
            shape,
            BackpropOp::none(),
            false,
        ))
    }

    /// Where the numbers of a contiguous tensor begin on the GPU. Good for as long as the tensor lives, and after that for
    /// what was asked of the stream before.
    fn address(&self, tensor: &Tensor) -> Result<u64> {
        if !tensor.is_contiguous() {
            bail!("a kernel was given a tensor that does not lie in one piece");
        }
        self.start(tensor)
    }

    /// As `address`, of the first number of a tensor with whatever strides it has.
    fn start(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a tensor of {:?} was given to a GPU", tensor.device());
        };
        let stream = &self.inner.stream;
        let start = match tensor.dtype() {
            DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(stream).0,
            DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(stream).0,
            DType::U8 => storage.as_cuda_slice::<u8>()?.device_ptr(stream).0,
            DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(stream).0,
            DType::I64 => storage.as_cuda_slice::<i64>()?.device_ptr(stream).0,
            other => bail!("no kernel takes {other:?}"),
        };
        Ok(start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
    }
}

/// What a kernel is given, as it declares it.
#[derive(Clone, Copy)]
enum Argument {
    /// Where numbers begin, 0 for none.
    Address(u64),
    Long(i64),
    Int(i32),
    Float(f32),
    Tokens(attention::Tokens),
    PerRow(rows::PerRow),
    Groups(groups::Groups),
    Update(flat::Update),
    Key(rows::Key),
    Windows(conv::Windows),
    View(views::View),
    Double(f64),
}

/// Threads for `count` independent pieces of work, 256 a block. One block where there are none: a launch of none is an error.
fn blocks_for(count: usize) -> LaunchConfig {
    config(((count.div_ceil(256)).max(1) as u32, 1, 1), 256, 0)
}

fn config(grid: (u32, u32, u32), threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: grid,
        block_dim: (threads, 1, 1),
        shared_mem_bytes: shared,
    }
}

/// Asks the GPU for more shared memory than it grants by itself.
fn grant(function: &CudaFunction, shared: u32) -> Result<()> {
    if shared > GRANTED {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared as i32).w()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
