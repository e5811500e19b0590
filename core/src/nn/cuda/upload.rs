//! Tensors on their way to a GPU beside what it computes: from page-locked memory, on a stream of their own.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};
use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use half::bf16;

use super::Kernels;

/// Page-locked memory, and the copy out of it that was begun last.
struct Staging {
    bytes: PinnedHostSlice<u8>,
    copied: Option<Arc<CudaEvent>>,
}

impl Staging {
    fn wait(&self) -> Result<()> {
        match &self.copied {
            Some(copied) => copied.synchronize().w(),
            None => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Where the GPU is lost, nothing reads the memory any more.
        let _ = self.wait();
    }
}

/// Page-locked buffers: one is filled while the other is copied.
const BUFFERS: usize = 2;

/// Copies tensors to one GPU.
pub(crate) struct Uploads {
    kernels: Kernels,
    stream: Arc<CudaStream>,
    /// In the order in which they were used.
    staging: VecDeque<Staging>,
}

impl Uploads {
    /// To the GPU of the kernels.
    pub(crate) fn new(kernels: &Kernels) -> Result<Self> {
        let context = kernels.inner.stream.context();
        context.bind_to_thread().w()?;
        let stream = context.new_stream().w()?;
        Ok(Self {
            kernels: kernels.clone(),
            stream,
            staging: VecDeque::new(),
        })
    }

    /// Begins to copy a tensor from the host.
    pub(crate) fn begin(&mut self, tensor: &Tensor) -> Result<Coming> {
        self.kernels.before_keeping()?;
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("an upload of a tensor on {:?}", tensor.device());
        };
        let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
        let bytes = match storage {
            CpuStorage::BF16(numbers) => as_bytes::<bf16>(&numbers[range]),
            CpuStorage::F32(numbers) => as_bytes::<f32>(&numbers[range]),
            _ => bail!("an upload of {:?}", tensor.dtype()),
        };
        let target = self.kernels.room(tensor.shape(), tensor.dtype())?;
        let mut staging = self.staged(bytes)?;
        // The memory may have been freed by work that the main stream has yet to do: the copy waits for it.
        let main = &self.kernels.inner.stream;
        self.stream.wait(&main.record_event(None).w()?).w()?;
        let to = self.kernels.address(&target)?;
        let from = &staging.bytes.as_slice().w()?[..bytes.len()];
        // SAFETY: `target` has room for the tensor; its memory and the staging stay until the event below has come.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.w()?;
        let arrived = Arc::new(self.stream.record_event(None).w()?);
        let coming = Coming {
            tensor: Some(target),
            arrived: Arc::clone(&arrived),
            main: Arc::clone(main),
        };
        staging.copied = Some(arrived);
        self.staging.push_back(staging);
        Ok(coming)
    }

    /// The bytes in the buffer that was used longest ago, or in a larger one.
    fn staged(&mut self, bytes: &[u8]) -> Result<Staging> {
        let oldest = match self.staging.len() {
            BUFFERS.. => self.staging.pop_front(),
            _ => None,
        };
        // Its bytes are read until that copy is done.
        if let Some(oldest) = &oldest {
            oldest.wait()?;
        }
        let fits = |staging: &Staging| staging.bytes.len() >= bytes.len();
        let mut staging = match oldest.filter(fits) {
            Some(staging) => staging,
            None => Staging {
                // SAFETY: written before it is read.
                bytes: unsafe { self.stream.context().alloc_pinned(bytes.len()) }.w()?,
                copied: None,
            },
        };
        staging.bytes.as_mut_slice().w()?[..bytes.len()].copy_from_slice(bytes);
        Ok(staging)
    }
}

/// A tensor that is being copied.
pub(crate) struct Coming {
    tensor: Option<Tensor>,
    arrived: Arc<CudaEvent>,
    main: Arc<CudaStream>,
}

impl Coming {
    /// The tensor: what is asked of the GPU from now on finds it whole.
    pub(crate) fn here(mut self) -> Result<Tensor> {
        self.main.wait(&self.arrived).w()?;
        let tensor = self.tensor.take();
        tensor.ok_or_else(|| candle_core::Error::Msg("a tensor came twice".to_owned()))
    }
}

impl Drop for Coming {
    /// Nobody wants it any more: its memory goes back after the copy into it.
    fn drop(&mut self) {
        if self.tensor.is_some() {
            let _ = self.main.wait(&self.arrived);
        }
    }
}

fn as_bytes<T: Copy>(numbers: &[T]) -> &[u8] {
    let len = std::mem::size_of_val(numbers);
    // SAFETY: numbers without padding, as many bytes as they take.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), len) }
}
