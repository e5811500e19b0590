//! Attention and convolutions by NVIDIA's cuDNN 9, where a program opened it: bf16, forward and backward, the same bits every time.

mod api;
mod attention;
mod attribute;
mod convolution;
mod graph;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaContext;
use candle_core::{DType, Device, Error, Result, Tensor, bail};

use super::{Kernels, views};
use api::{Api, Handle};
use attention::{Attention, Backward, Forward, Mask};
pub(super) use convolution::Convolution;
pub(super) use graph::Direction;
use graph::{ALIGNMENT, Node};

/// The widest head that backward is known to take on every GPU.
const MOST_WIDTH: usize = 128;
/// Queries or keys of backward's largest tiles.
const TILE: usize = 128;

/// cuDNN on a GPU.
pub(crate) struct Cudnn {
    state: Mutex<State>,
    context: Arc<CudaContext>,
    version: usize,
}

/// What was made there: kept, since a plan takes half a second to compile.
struct State {
    // Dropped from the first to the last: what is made with the handle before it.
    forward: HashMap<Attention, Forward>,
    backward: HashMap<Attention, Backward>,
    /// None of what it has no plan for.
    convolutions: HashMap<(Convolution, Direction), Option<convolution::Plan>>,
    /// A number for every batch row, by how many rows and which number.
    lengths: HashMap<(usize, usize), Tensor>,
    handle: Handle,
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        // What is dropped now belongs to this context. An error has nobody to hear it.
        let _ = self.context.bind_to_thread();
    }
}

impl Cudnn {
    /// Opens cuDNN, by the system's loader or from `folders`, for the kernels' GPU.
    ///
    /// It finds its other libraries itself, beside it; `libcublasLt` and `libnvrtc` of its CUDA version must be open, or be
    /// found in the same ways.
    ///
    /// # Errors
    ///
    /// If cuDNN or what it needs is not found, its version will not do, or it does not start.
    pub(crate) fn open(kernels: &Kernels, folders: &[PathBuf]) -> Result<Self> {
        let api = Api::open(folders)?;
        let context = Arc::clone(kernels.inner.stream.context());
        context.bind_to_thread().map_err(Error::wrap)?;
        let version = api.version;
        let state = State {
            forward: HashMap::new(),
            backward: HashMap::new(),
            convolutions: HashMap::new(),
            lengths: HashMap::new(),
            handle: Handle::new(api)?,
        };
        Ok(Self {
            state: Mutex::new(state),
            context,
            version,
        })
    }

    /// The library's, as 91500 for 9.15.0.
    pub(crate) fn version(&self) -> usize {
        self.version
    }

    /// Attention of `q` (`[B, N, H, D]`) to `k` and `v` (`[B, M, H, D]`): the results, like `q`, and what backward needs of
    /// them, the logarithms of the sums of every row's exponentials, `[B, H, N]`.
    ///
    /// `counts` (u32, `[B]`, each at least 1) is how many keys, the first ones, each batch row sees; all if there is none.
    ///
    /// # Errors
    ///
    /// If cuDNN does not serve such tensors.
    pub(crate) fn forward(
        &self,
        kernels: &Kernels,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        scale: f64,
        counts: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let extents = extents((q, k, v), counts)?;
        let out = kernels.room(q.shape(), DType::BF16)?;
        let stats = kernels.room((extents.batch, extents.heads, extents.queries), DType::F32)?;
        let given = aligned(kernels, &[q, k, v])?;
        let (places, values) = (addresses(kernels, &given)?, Values::new(scale));
        let mut state = self.state()?;
        let lengths = state.lengths(kernels, &extents, q.device(), counts)?;
        let State {
            handle, forward, ..
        } = &mut *state;
        let forward = match forward.entry(extents) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(none) => none.insert(Forward::new(handle, &extents)?),
        };
        let work = kernels.room(forward.plan.workspace().div_ceil(4).max(1), DType::F32)?;
        let mut tensor_addresses = vec![
            (forward.q, places[0]),
            (forward.k, places[1]),
            (forward.v, places[2]),
            (forward.scale, values.scale()),
            (forward.out, kernels.address(&out)?),
            (forward.stats, kernels.address(&stats)?),
        ];
        tensor_addresses.extend(mask_places(forward.mask, lengths.as_ref(), &values));
        let stream = kernels.inner.stream.cu_stream().cast();
        // SAFETY: the tensors are of the extents, the workspace is as large as the plan needs, and they live until the call is
        // made; the memory is freed in the stream's order.
        unsafe {
            let on = (handle, stream);
            forward
                .plan
                .run(on, &tensor_addresses, kernels.address(&work)?)?;
        }
        Ok((out, stats))
    }

    /// The gradients of q, k and v, of that of the results (`gradient`, like `q`). The rest is as it was given to `forward`,
    /// and what that returned. Keys that are not seen get gradients of 0.
    ///
    /// # Errors
    ///
    /// As `forward`.
    pub(crate) fn backward(
        &self,
        kernels: &Kernels,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        (out, stats): (&Tensor, &Tensor),
        gradient: &Tensor,
        scale: f64,
        counts: Option<&Tensor>,
    ) -> Result<[Tensor; 3]> {
        let mut extents = extents((q, k, v), counts)?;
        check_backward(&extents, q, (out, stats), gradient)?;
        if (extents.queries, extents.keys) == (1, 1) {
            // Not served, and needs no kernel: the only key has all the weight, whatever its score.
            return Ok([q.zeros_like()?, k.zeros_like()?, gradient.copy()?]);
        }
        // Lengths are told even where nothing is masked. Without them, up to 9.15.0, scores beyond the last key counted, and at
        // least up to 9.26, on Hopper, they overflow where all scores of
        // a query are below -88 (pytorch #196678, cudnn-frontend #1072).
        extents.masked |= [extents.queries, extents.keys]
            .iter()
            .any(|n| n % TILE != 0);
        let room = |like: &Tensor| match counts {
            Some(_) => like.zeros_like(), // cuDNN may not write keys that are not seen
            None => kernels.room(like.shape(), DType::BF16),
        };
        let made = [kernels.room(q.shape(), DType::BF16)?, room(k)?, room(v)?];
        let inner = kernels.room(stats.shape(), DType::F32)?;
        let given = aligned(kernels, &[q, k, v, out, stats, gradient])?;
        let (places, values) = (addresses(kernels, &given)?, Values::new(scale));
        let mut state = self.state()?;
        let lengths = state.lengths(kernels, &extents, q.device(), counts)?;
        let State {
            handle, backward, ..
        } = &mut *state;
        let backward = match backward.entry(extents) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(none) => none.insert(Backward::new(handle, &extents)?),
        };
        let work = kernels.room(backward.plan.workspace().div_ceil(4).max(1), DType::F32)?;
        let mut tensor_addresses = vec![
            (backward.q, places[0]),
            (backward.k, places[1]),
            (backward.v, places[2]),
            (backward.out, places[3]),
            (backward.stats, places[4]),
            (backward.gradient, places[5]),
            (backward.scale, values.scale()),
            (backward.one, values.one()),
            (backward.inner, kernels.address(&inner)?),
            (backward.dq, kernels.address(&made[0])?),
            (backward.dk, kernels.address(&made[1])?),
            (backward.dv, kernels.address(&made[2])?),
        ];
        tensor_addresses.extend(mask_places(backward.mask, lengths.as_ref(), &values));
        let stream = kernels.inner.stream.cu_stream().cast();
        // SAFETY: as in `forward`.
        unsafe {
            let on = (handle, stream);
            backward
                .plan
                .run(on, &tensor_addresses, kernels.address(&work)?)?;
        }
        Ok(made)
    }

    /// The pictures that follow `given` by a convolution, or the gradient of the pictures of `given`, that of those that follow. Both tensors
    /// are bf16 of the convolution's shapes. None where cuDNN has no plan that sums in f32 and gives the same bits every time.
    ///
    /// # Errors
    ///
    /// If it cannot run the plan.
    pub(crate) fn convolve(
        &self,
        kernels: &Kernels,
        convolution: &Convolution,
        direction: Direction,
        given: &Tensor,
        weight: &Tensor,
    ) -> Result<Option<Tensor>> {
        let [of_given, of_made] = convolution.shapes(direction);
        let (outputs, inputs, rows, columns) = convolution.weight;
        let of_weight = [outputs, inputs, rows, columns];
        if given.dims() != of_given || weight.dims() != of_weight {
            bail!("a convolution of {:?} by {:?}", given.dims(), weight.dims());
        }
        if [given, weight].iter().any(|t| t.dtype() != DType::BF16) {
            bail!("cuDNN's convolution is given no bf16");
        }
        let tensors = aligned(kernels, &[given, weight])?;
        let places = addresses(kernels, &tensors)?;
        let mut state = self.state()?;
        let State {
            handle,
            convolutions,
            ..
        } = &mut *state;
        let plan = match convolutions.entry((*convolution, direction)) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(none) => {
                none.insert(convolution::Plan::new(handle, convolution, direction).ok())
            }
        };
        let Some(plan) = plan else { return Ok(None) };
        let made = kernels.room(&of_made[..], DType::BF16)?;
        let work = kernels.room(plan.plan.workspace().div_ceil(4).max(1), DType::F32)?;
        let tensor_addresses = [
            (plan.given, places[0]),
            (plan.weight, places[1]),
            (plan.made, kernels.address(&made)?),
        ];
        let stream = kernels.inner.stream.cu_stream().cast();
        // SAFETY: as in `forward`.
        unsafe {
            let on = (handle, stream);
            plan.plan
                .run(on, &tensor_addresses, kernels.address(&work)?)?;
        }
        Ok(Some(made))
    }

    /// What there is, with the GPU's context made the thread's: cuDNN works in that one.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        self.context.bind_to_thread().map_err(Error::wrap)?;
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The extents of tensors that can be served.
fn extents((q, k, v): (&Tensor, &Tensor, &Tensor), counts: Option<&Tensor>) -> Result<Attention> {
    let (batch, queries, heads, width) = q.dims4()?;
    let keys = k.dim(1)?;
    let of_keys = [batch, keys, heads, width];
    if k.dims() != of_keys || v.dims() != of_keys {
        let (q, k, v) = (q.dims(), k.dims(), v.dims());
        bail!("attention of {q:?} to {k:?} and {v:?}");
    }
    if [q, k, v].iter().any(|t| t.dtype() != DType::BF16) {
        bail!("cuDNN's attention is given no bf16");
    }
    if width == 0 || width % 8 != 0 || width > MOST_WIDTH {
        bail!("cuDNN's attention of heads {width} wide");
    }
    if [batch, queries, heads, keys].contains(&0) {
        bail!("attention of nothing: {:?} to {:?}", q.dims(), k.dims());
    }
    if let Some(counts) = counts
        && (counts.dims() != [batch] || counts.dtype() != DType::U32)
    {
        bail!("{:?} counts of {batch} rows", counts.dims());
    }
    Ok(Attention {
        batch,
        heads,
        queries,
        keys,
        width,
        masked: counts.is_some(),
    })
}

fn check_backward(
    extents: &Attention,
    q: &Tensor,
    (out, stats): (&Tensor, &Tensor),
    gradient: &Tensor,
) -> Result<()> {
    let like = |t: &Tensor| t.dims() == q.dims() && t.dtype() == DType::BF16;
    if !like(out) || !like(gradient) {
        let (out, gradient) = (out.dims(), gradient.dims());
        bail!(
            "results {out:?} with gradients {gradient:?} of {:?}",
            q.dims()
        );
    }
    let rows = [extents.batch, extents.heads, extents.queries];
    if stats.dims() != rows || stats.dtype() != DType::F32 {
        bail!("sums {:?} of {rows:?}", stats.dims());
    }
    Ok(())
}

/// Tensors in one piece that begin where cuDNN's plans expect.
fn aligned(kernels: &Kernels, tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
    let aligned = |tensor: &&Tensor| views::aligned(kernels, tensor, ALIGNMENT as u64);
    tensors.iter().map(aligned).collect()
}

fn addresses(kernels: &Kernels, tensors: &[Tensor]) -> Result<Vec<u64>> {
    let address = |tensor: &Tensor| kernels.address(tensor);
    tensors.iter().map(address).collect()
}

/// How many queries and keys count of each batch row, for a mask: where that is, and what must live until it was read.
struct Lengths {
    addresses: [u64; 2],
    _keys: Tensor,
}

impl State {
    fn lengths(
        &mut self,
        kernels: &Kernels,
        extents: &Attention,
        device: &Device,
        counts: Option<&Tensor>,
    ) -> Result<Option<Lengths>> {
        if !extents.masked {
            return Ok(None);
        }
        let queries = self.full_lengths(kernels, extents.batch, extents.queries, device)?;
        let keys = match counts {
            Some(counts) => counts.clone(),
            None => self.full_lengths(kernels, extents.batch, extents.keys, device)?,
        };
        // Candle's copy, if it takes one: no kernel of ours moves integers.
        let keys = views::aligned(kernels, &keys.contiguous()?, ALIGNMENT as u64)?;
        Ok(Some(Lengths {
            addresses: [kernels.address(&queries)?, kernels.address(&keys)?],
            _keys: keys,
        }))
    }

    /// `length` for every batch row, kept: most steps have attention of the same few lengths.
    fn full_lengths(
        &mut self,
        kernels: &Kernels,
        batch: usize,
        length: usize,
        device: &Device,
    ) -> Result<Tensor> {
        if let Some(made) = self.lengths.get(&(batch, length)) {
            return Ok(made.clone());
        }
        kernels.before_keeping()?;
        let made = Tensor::from_vec(vec![length as u32; batch], batch, device)?;
        // Another stream may read it next.
        device.synchronize()?;
        self.lengths.insert((batch, length), made.clone());
        Ok(made)
    }
}

fn mask_places(mask: Option<Mask>, lengths: Option<&Lengths>, values: &Values) -> Vec<(Node, u64)> {
    match (mask, lengths) {
        (Some(mask), Some(lengths)) => vec![
            (mask.queries, lengths.addresses[0]),
            (mask.keys, lengths.addresses[1]),
            (mask.nothing, values.nothing()),
        ],
        _ => Vec::new(),
    }
}

/// Numbers that a plan is given by their values: where it reads them on the host.
struct Values([f32; 3]);

impl Values {
    fn new(scale: f64) -> Self {
        Self([scale as f32, 1.0, f32::NEG_INFINITY])
    }

    fn scale(&self) -> u64 {
        std::ptr::from_ref(&self.0[0]) as u64
    }

    fn one(&self) -> u64 {
        std::ptr::from_ref(&self.0[1]) as u64
    }

    fn nothing(&self) -> u64 {
        std::ptr::from_ref(&self.0[2]) as u64
    }
}
