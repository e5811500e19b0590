//! Work that is recorded once and asked for again as a whole: a CUDA graph. The host then asks once for what took thousands of calls.
//!
//! What was recorded reads and writes the same addresses each time. Its own tensors are allocated and freed within it; what it reads of
//! others stays allocated for as long as it can be asked for. A recording that would copy from the host is refused: it would
//! copy, each time, whatever lies there by then.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, MutexGuard, PoisonError};

use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, sys as cublas};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, result, sys};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, WithDType, bail};

use super::Kernels;

/// cuBLAS's room to work in: given to it, for while it is recorded it would otherwise allocate its own. As much as NVIDIA recommends for
/// the largest GPUs.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Numbers of a recording's tables, of each type: two tables of three numbers for each tensor of some ten thousand adapters.
const MOST_NUMBERS: usize = 1 << 17;
/// Where a table begins: at a multiple of so many numbers, 16 bytes at least, as every kernel takes them.
const TABLE_ALIGNMENT: usize = 4;

/// Numbers of one type that a recording reads: their places are known while it is made, and they are copied there when it is done.
struct Tables<T> {
    numbers: Vec<T>,
    room: Tensor,
}

impl<T: WithDType> Tables<T> {
    fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            numbers: Vec::new(),
            room: Tensor::zeros(MOST_NUMBERS, T::DTYPE, device)?,
        })
    }

    fn add(&mut self, table: &[T]) -> Result<Tensor> {
        let start = self.numbers.len();
        let end = (start + table.len()).next_multiple_of(TABLE_ALIGNMENT);
        if end > MOST_NUMBERS {
            bail!("its tables have more than {MOST_NUMBERS} numbers");
        }
        self.numbers.extend_from_slice(table);
        self.numbers.resize(end, T::zero());
        self.room.narrow(0, start, table.len())
    }

    fn upload(&self, kernels: &Kernels) -> Result<()> {
        if self.numbers.is_empty() {
            return Ok(());
        }
        let to = kernels.address(&self.room)?;
        let stream = &kernels.inner.stream;
        // SAFETY: there is room for as many, and the numbers stay until the copy is done.
        unsafe { result::memcpy_htod_async(to, &self.numbers, stream.cu_stream()) }.w()?;
        stream.synchronize().w()
    }
}

/// A recording being made.
pub(super) struct Recording {
    long: Tables<i64>,
    short: Tables<u32>,
    single: Tables<f32>,
    held: Vec<Tensor>,
}

impl Recording {
    fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            long: Tables::new(device)?,
            short: Tables::new(device)?,
            single: Tables::new(device)?,
            held: Vec::new(),
        })
    }
}

/// What cuBLAS works in.
pub(super) struct Workspace {
    blas: Arc<CudaBlas>,
    stream: Arc<CudaStream>,
    _room: Tensor,
}

impl Workspace {
    fn new(kernels: &Kernels) -> Result<Self> {
        let room = kernels.room(WORKSPACE_BYTES / 4, DType::F32)?;
        let blas = kernels.inner.device.cublas_handle();
        let at = kernels.address(&room)? as *mut c_void;
        // SAFETY: the handle is open, and the room stays until the handle is told of another.
        let set = unsafe { cublas::cublasSetWorkspace_v2(*blas.handle(), at, WORKSPACE_BYTES) };
        set.result().w()?;
        Ok(Self {
            blas,
            stream: Arc::clone(&kernels.inner.stream),
            _room: room,
        })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: the handle and the stream are open. The call takes cuBLAS's own room into use again; an error has nobody to hear it.
        let _ = unsafe {
            cublas::cublasSetStream_v2(*self.blas.handle(), self.stream.cu_stream().cast())
        };
    }
}

/// What came of a recording.
pub(crate) enum Recorded {
    Graph(Graph),
    /// None, for a reason, and nothing else happened.
    Refused(String),
}

/// What can be asked for again.
pub(crate) struct Graph {
    // Dropped first: the rest is what it reads.
    graph: CudaGraph,
    _recording: Recording,
}

impl Graph {
    /// Asks for all of it.
    pub(crate) fn launch(&mut self) -> Result<()> {
        self.graph.launch().w()
    }
}

impl Kernels {
    /// The same, fit for [`Self::record`].
    ///
    /// # Errors
    ///
    /// If the GPU has no room for what cuBLAS works in.
    pub(crate) fn with_graphs(mut self) -> Result<Self> {
        self.workspace = Some(Arc::new(Workspace::new(&self)?));
        Ok(self)
    }

    /// Whether [`Self::record`] may be asked for.
    pub(crate) fn have_graphs(&self) -> bool {
        self.workspace.is_some()
    }

    /// Records what `work` asks of the GPU. Nothing of it is computed, and `work` may read nothing back.
    ///
    /// # Errors
    ///
    /// If the GPU fails, or a tensor of the recording is left behind, in which there will be nothing.
    pub(crate) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Recorded> {
        if !self.have_graphs() || self.is_recording() {
            bail!("these kernels are not prepared for a graph, or one is being recorded");
        }
        *self.recording() = Some(Recording::new(&Device::Cuda(self.inner.device.clone()))?);
        let captured = capture(&self.inner.stream, work);
        // In any case: what follows is asked for as ever.
        let recording = self.recording().take();
        let graph = match captured? {
            Ok(graph) => graph,
            Err(why) => return Ok(Recorded::Refused(why)),
        };
        let asked = Asked::of(&graph)?;
        if asked.allocated != asked.freed {
            let Asked {
                allocated, freed, ..
            } = asked;
            bail!("a graph allocates {allocated} tensors and frees {freed}");
        }
        if let Some(why) = asked.refused() {
            return Ok(Recorded::Refused(why));
        }
        let Some(recording) = recording else {
            bail!("a recording is gone");
        };
        recording.long.upload(self)?;
        recording.short.upload(self)?;
        recording.single.upload(self)?;
        Ok(Recorded::Graph(Graph {
            graph,
            _recording: recording,
        }))
    }

    fn is_recording(&self) -> bool {
        self.recording().is_some()
    }

    /// Before a tensor is made that stays: what is made while a graph is recorded is memory of the graph, with nothing in it.
    ///
    /// # Errors
    ///
    /// While one is recorded.
    pub(crate) fn before_keeping(&self) -> Result<()> {
        match self.is_recording() {
            true => bail!("a tensor that stays would be made in it"),
            false => Ok(()),
        }
    }

    /// Keeps what work reads that was there before: a recording, where one is being made, reads it each time.
    pub(crate) fn hold(&self, tensors: &[&Tensor]) {
        if let Some(recording) = &mut *self.recording() {
            recording
                .held
                .extend(tensors.iter().map(|&tensor| tensor.clone()));
        }
    }

    /// Numbers on the GPU for a kernel to read.
    pub(super) fn table(&self, numbers: Vec<i64>) -> Result<Tensor> {
        self.there(numbers, |recording| &mut recording.long)
    }

    /// The same of shorter numbers.
    pub(super) fn short_table(&self, numbers: Vec<u32>) -> Result<Tensor> {
        self.there(numbers, |recording| &mut recording.short)
    }

    /// The same in f32, for whoever multiplies by them.
    pub(crate) fn constants(&self, numbers: Vec<f32>) -> Result<Tensor> {
        self.there(numbers, |recording| &mut recording.single)
    }

    /// Numbers on the GPU: among the tables of a recording, where one is being made.
    fn there<T: WithDType>(
        &self,
        numbers: Vec<T>,
        tables: impl FnOnce(&mut Recording) -> &mut Tables<T>,
    ) -> Result<Tensor> {
        if let Some(recording) = &mut *self.recording() {
            return tables(recording).add(&numbers);
        }
        let device = Device::Cuda(self.inner.device.clone());
        let count = numbers.len();
        Tensor::from_vec(numbers, count, &device)
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        let recording = self.inner.recording.lock();
        recording.unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back what freed memory the GPU keeps for tensors, and what it keeps for recordings that are not being computed: each has a part of
    /// its own, and neither uses the other's.
    pub(crate) fn give_back(&self) -> Result<()> {
        let stream = &self.inner.stream;
        stream.synchronize().w()?;
        let device = stream.context().cu_device();
        // SAFETY: the device is open, and nothing is being computed there.
        unsafe {
            let pool = result::device::get_default_mem_pool(device).w()?;
            result::mem_pool::trim_to(pool, 0).w()?;
            sys::cuDeviceGraphMemTrim(device).result().w()
        }
    }

    /// Sets all bytes of a tensor to 0, in place.
    pub(crate) fn clear(&self, tensor: &Tensor) -> Result<()> {
        let (at, bytes) = (self.address(tensor)?, bytes_of(tensor));
        let stream = self.inner.stream.cu_stream();
        // SAFETY: the tensor is on the GPU, in one piece of so many bytes.
        unsafe { result::memset_d8_async(at, 0, bytes, stream) }.w()
    }

    /// Puts the numbers of `source`, an f32 tensor on the host, in place of those of `target`, of one shape and type with it.
    pub(crate) fn overwrite(&self, target: &Tensor, source: &Tensor) -> Result<()> {
        if target.dims() != source.dims() || target.dtype() != DType::F32 {
            bail!("{:?} written over {:?}", source.dims(), target.dims());
        }
        let source = source.contiguous()?;
        let (storage, layout) = source.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(numbers)) = &*storage else {
            bail!("numbers of {:?} are no f32 on the host", source.device());
        };
        let start = layout.start_offset();
        let numbers = &numbers[start..start + source.elem_count()];
        let stream = &self.inner.stream;
        let to = self.address(target)?;
        // SAFETY: as many numbers; a copy from memory that is not page-locked has read it when the call is over.
        unsafe { result::memcpy_htod_async(to, numbers, stream.cu_stream()) }.w()
    }
}

fn bytes_of(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// What `work` asks of the stream, as a graph; or why it is none.
fn capture(
    stream: &Arc<CudaStream>,
    work: impl FnOnce() -> Result<()>,
) -> Result<std::result::Result<CudaGraph, String>> {
    // Of this thread alone: others go on loading what is computed next.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).w()?;
    let done = work();
    // In any case: the stream computes nothing before.
    let made = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    // What went wrong first says more.
    let why = match (done, made) {
        (Ok(()), Ok(Some(graph))) => return Ok(Ok(graph)),
        (Ok(()), Ok(None)) => "nothing was asked of the GPU".to_owned(),
        (Ok(()), Err(error)) => error.to_string(),
        (Err(error), _) => error.to_string(),
    };
    // What was freed after a recording failed is gone with it: errors that came of that are not for who comes next.
    let _ = stream.context().check_err();
    Ok(Err(why))
}

/// What a graph asks for, counted.
#[derive(Default)]
struct Asked {
    allocated: usize,
    freed: usize,
    copies: usize,
    others: usize,
}

impl Asked {
    fn of(graph: &CudaGraph) -> Result<Self> {
        use sys::CUgraphNodeType as Kind;
        const KERNEL: u32 = Kind::CU_GRAPH_NODE_TYPE_KERNEL as u32;
        const FILL: u32 = Kind::CU_GRAPH_NODE_TYPE_MEMSET as u32;
        const NOTHING: u32 = Kind::CU_GRAPH_NODE_TYPE_EMPTY as u32;
        const ALLOCATION: u32 = Kind::CU_GRAPH_NODE_TYPE_MEM_ALLOC as u32;
        const RELEASE: u32 = Kind::CU_GRAPH_NODE_TYPE_MEM_FREE as u32;
        const COPY: u32 = Kind::CU_GRAPH_NODE_TYPE_MEMCPY as u32;
        let mut asked = Self::default();
        for node in nodes(graph)? {
            // As a number: a newer driver may have kinds that the bindings do not know.
            let mut found = u32::MAX;
            // SAFETY: the node is the graph's, and a kind is a number of 32 bits.
            let told = unsafe { sys::cuGraphNodeGetType(node, (&raw mut found).cast()) };
            told.result().w()?;
            match found {
                KERNEL | FILL | NOTHING => {}
                ALLOCATION => asked.allocated += 1,
                RELEASE => asked.freed += 1,
                COPY => asked.copies += 1,
                _ => asked.others += 1,
            }
        }
        Ok(asked)
    }

    /// Why it is not to be asked for again.
    fn refused(&self) -> Option<String> {
        match (self.copies, self.others) {
            (0, 0) => None,
            // Copies on the GPU are made by kernels here.
            (0, others) => Some(format!(
                "it has {others} calls that are neither kernels nor of memory"
            )),
            (copies, _) => Some(format!("it has {copies} copies between host and GPU")),
        }
    }
}

fn nodes(graph: &CudaGraph) -> Result<Vec<sys::CUgraphNode>> {
    let mut count = 0;
    let of = graph.cu_graph();
    // SAFETY: asked for no nodes, the driver writes how many there are; then as many are written as there is room for.
    unsafe {
        sys::cuGraphGetNodes(of, ptr::null_mut(), &raw mut count)
            .result()
            .w()?;
        let mut nodes = vec![ptr::null_mut(); count];
        sys::cuGraphGetNodes(of, nodes.as_mut_ptr(), &raw mut count)
            .result()
            .w()?;
        nodes.truncate(count);
        Ok(nodes)
    }
}
