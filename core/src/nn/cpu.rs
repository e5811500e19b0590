//! CPU tensors as slices, and loops over them on all cores. Work is cut into pieces whose size depends on the
//! data alone, so results do not depend on the number of threads.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, WithDType,
    bail,
};
use rayon::prelude::*;

use super::real::{Real, vectorised};

/// Elements a thread takes at a time; less is not worth waking one.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Runs one expression with a type of scalar when the tensor has CPU kernels, the other when it has not.
///
/// Between the two, `cuda k in kernels => ..` is what runs where a [`Kernels`](crate::nn::Kernels) has some, `k`, that serve it.
macro_rules! by_kernel {
    (
        $tensor:expr,
        $t:ident => $kernel:expr,
        cuda $k:ident in $kernels:expr => $by_cuda:expr,
        $composed:expr
    ) => {
        $crate::nn::cpu::by_kernel!($tensor, $t => $kernel, {
            #[cfg(feature = "cuda")]
            let found = match $kernels.serving($tensor) {
                Some($k) => $by_cuda,
                None => $composed,
            };
            #[cfg(not(feature = "cuda"))]
            let found = {
                let _: &$crate::nn::Kernels = $kernels;
                $composed
            };
            found
        })
    };
    ($tensor:expr, $t:ident => $kernel:expr, $composed:expr) => {
        match $crate::nn::cpu::kernel_scalar($tensor) {
            Some(candle_core::DType::F32) => {
                type $t = f32;
                $kernel
            }
            Some(_) => {
                type $t = f64;
                $kernel
            }
            None => $composed,
        }
    };
}
pub(crate) use by_kernel;

/// The type of scalar (f32 or f64) of the CPU kernels that serve `tensor`, if any do.
pub(crate) fn kernel_scalar(tensor: &Tensor) -> Option<DType> {
    #[cfg(any(test, feature = "testing"))]
    if COMPOSED.get() {
        return None;
    }
    let served = tensor.device().is_cpu() && matches!(tensor.dtype(), DType::F32 | DType::F64);
    served.then(|| tensor.dtype())
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    /// Whether this thread's tests want every operation composed of candle's, as on other devices.
    pub(crate) static COMPOSED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The elements of a contiguous CPU tensor, locked for reading.
pub(crate) struct Elements<'t, T> {
    storage: StorageRef<'t>,
    range: Range<usize>,
    scalar: PhantomData<T>,
}

impl<T: WithDType> Deref for Elements<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // `elements` checked the type and the range.
        cpu_slice(&self.storage).map_or(&[], |all| &all[self.range.clone()])
    }
}

fn cpu_slice<T: WithDType>(storage: &Storage) -> Result<&[T]> {
    match storage {
        Storage::Cpu(storage) => T::cpu_storage_as_slice(storage),
        _ => bail!("a kernel for the CPU was given a tensor of another device"),
    }
}

/// The elements of `tensor`, which must be contiguous.
pub(crate) fn elements<T: WithDType>(tensor: &Tensor) -> Result<Elements<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "a kernel needs contiguous elements, found strides {:?}",
            layout.stride()
        );
    };
    let len = cpu_slice::<T>(&storage)?.len();
    if end > len {
        bail!("a tensor reaches to element {end} of {len}");
    }
    Ok(Elements {
        storage,
        range: start..end,
        scalar: PhantomData,
    })
}

/// The elements of a CPU tensor with whatever strides it has, locked for reading.
pub(crate) struct Strided<'t, T> {
    storage: StorageRef<'t>,
    layout: &'t Layout,
    scalar: PhantomData<T>,
}

impl<T: Real> Strided<'_, T> {
    /// All elements from the tensor's first on.
    pub(crate) fn data(&self) -> &[T] {
        let start = self.layout.start_offset();
        cpu_slice(&self.storage).map_or(&[], |all| all.get(start..).unwrap_or(&[]))
    }

    pub(crate) fn strides(&self) -> &[usize] {
        self.layout.stride()
    }
}

/// The elements of `tensor` behind its strides.
pub(crate) fn strided<T: Real>(tensor: &Tensor) -> Result<Strided<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    cpu_slice::<T>(&storage)?;
    Ok(Strided {
        storage,
        layout,
        scalar: PhantomData,
    })
}

/// A CPU tensor of these elements.
pub(crate) fn tensor<T: Real>(data: Vec<T>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// Lets `change` edit the elements of a contiguous CPU tensor in place: everything that shares its storage
/// sees it.
pub(crate) fn edit<T: Real>(tensor: &Tensor, change: impl Fn(&mut [T])) -> Result<()> {
    struct Edit<F, T>(F, PhantomData<fn(T)>);
    impl<T: Real, F: Fn(&mut [T])> InplaceOp1 for Edit<F, T> {
        fn name(&self) -> &'static str {
            "edit"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let Some((start, end)) = layout.contiguous_offsets() else {
                bail!(
                    "elements to edit must be contiguous, found strides {:?}",
                    layout.stride()
                );
            };
            self.0(&mut T::storage_slice_mut(storage)?[start..end]);
            Ok(())
        }
    }
    // candle's only way to write into a storage that others may hold: it locks it meanwhile.
    tensor.inplace_op1(&Edit(change, PhantomData))
}

/// The length of the last dimension and the number of rows that have it.
pub(crate) fn rows_of(tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.dims() {
        [] => bail!("a tensor with rows is needed, found a scalar"),
        [lead @ .., last] => Ok((lead.iter().product(), *last)),
    }
}

/// Rows that make about one `GRAIN`.
pub(crate) fn rows_per_piece(row: usize) -> usize {
    (GRAIN / row.max(1)).max(1)
}

/// `tensor` with its elements in order, copied by all cores where they are not; on a GPU by candle.
pub(crate) fn contiguous(tensor: &Tensor) -> Result<Tensor> {
    if tensor.is_contiguous() {
        return Ok(tensor.clone());
    }
    by_kernel!(tensor, T => copy_strided::<T>(tensor), tensor.contiguous())
}

/// `tensor` with its elements in order, in this scalar: parameters of bf16 serve activations of f32.
pub(crate) fn dense<T: Real>(tensor: &Tensor) -> Result<Tensor> {
    contiguous(&tensor.to_dtype(T::DTYPE)?)
}

fn copy_strided<T: Real>(tensor: &Tensor) -> Result<Tensor> {
    let view = strided::<T>(tensor)?;
    let (dims, strides, data) = (tensor.dims(), view.strides(), view.data());
    let mut out = vec![T::zero(); tensor.elem_count()];
    // The last dimensions that lie in order are copied as one run.
    let mut run = 1;
    let mut lead = dims.len();
    while lead > 0 && (strides[lead - 1] == run || dims[lead - 1] == 1) {
        run *= dims[lead - 1];
        lead -= 1;
    }
    // Where not even the last one does, a row is gathered with its stride.
    let step = if run == 1 && lead > 0 {
        strides[lead - 1]
    } else {
        1
    };
    if run == 1 && lead > 0 {
        lead -= 1;
        run = dims[lead];
    }
    if run == 0 || out.is_empty() {
        return self::tensor(out, dims);
    }
    let rows = rows_per_piece(run);
    out.par_chunks_mut(rows * run)
        .enumerate()
        .for_each(|(piece, out)| {
            for (i, out) in out.chunks_exact_mut(run).enumerate() {
                let mut rest = piece * rows + i;
                let mut start = 0;
                for d in (0..lead).rev() {
                    start += rest % dims[d] * strides[d];
                    rest /= dims[d];
                }
                if step == 1 {
                    out.copy_from_slice(&data[start..start + run]);
                } else {
                    for (j, out) in out.iter_mut().enumerate() {
                        *out = data[start + j * step];
                    }
                }
            }
        });
    self::tensor(out, dims)
}

/// A function of one number.
pub(crate) trait Unary: Sync {
    /// Implementations are `#[inline(always)]`.
    fn apply<T: Real>(&self, x: T) -> T;
}

/// A function of two numbers.
pub(crate) trait Binary: Sync {
    /// Implementations are `#[inline(always)]`.
    fn apply<T: Real>(&self, x: T, y: T) -> T;
}

/// The number itself.
pub(crate) struct Same;

impl Unary for Same {
    #[inline(always)]
    fn apply<T: Real>(&self, x: T) -> T {
        x
    }
}

/// `x + y`
pub(crate) struct Sum;

impl Binary for Sum {
    #[inline(always)]
    fn apply<T: Real>(&self, x: T, y: T) -> T {
        x + y
    }
}

/// `x y`
pub(crate) struct Product;

impl Binary for Product {
    #[inline(always)]
    fn apply<T: Real>(&self, x: T, y: T) -> T {
        x * y
    }
}

vectorised! {
    fn map_piece<T: Real, F: Unary>(f: &F, out: &mut [T], x: &[T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f.apply(x);
        }
    }
}

vectorised! {
    fn map2_piece<T: Real, F: Binary>(f: &F, out: &mut [T], x: &[T], y: &[T]) {
        for (out, (&x, &y)) in out.iter_mut().zip(x.iter().zip(y)) {
            *out = f.apply(x, y);
        }
    }
}

vectorised! {
    pub(crate) fn edit_each_piece<T: Real, F: Unary>(f: &F, x: &mut [T]) {
        for x in x.iter_mut() {
            *x = f.apply(*x);
        }
    }
}

vectorised! {
    pub(crate) fn edit_piece<T: Real, F: Binary>(f: &F, x: &mut [T], y: &[T]) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x = f.apply(*x, y);
        }
    }
}

/// `f` of every element.
pub(crate) fn map<T: Real>(x: &Tensor, f: impl Unary) -> Result<Tensor> {
    let dense = contiguous(x)?;
    let data = elements::<T>(&dense)?;
    let mut out = vec![T::zero(); data.len()];
    let pieces = out.par_chunks_mut(GRAIN).zip(data.par_chunks(GRAIN));
    pieces.for_each(|(out, x)| map_piece(&f, out, x));
    tensor(out, x.dims())
}

/// `f` of the elements of two tensors of one shape, pair by pair.
pub(crate) fn map2<T: Real>(x: &Tensor, y: &Tensor, f: impl Binary) -> Result<Tensor> {
    check_same(x, y)?;
    let (dense_x, dense_y) = (contiguous(x)?, contiguous(y)?);
    let (data_x, data_y) = (elements::<T>(&dense_x)?, elements::<T>(&dense_y)?);
    let mut out = vec![T::zero(); data_x.len()];
    let pieces = data_x.par_chunks(GRAIN).zip(data_y.par_chunks(GRAIN));
    let pieces = out.par_chunks_mut(GRAIN).zip(pieces);
    pieces.for_each(|(out, (x, y))| map2_piece(&f, out, x, y));
    tensor(out, x.dims())
}

/// Replaces every element of `target`, which must be contiguous and nobody else's, by its `f`, in place.
pub(crate) fn edit_each<T: Real>(target: &Tensor, f: impl Unary) -> Result<()> {
    edit::<T>(target, |target| {
        target
            .par_chunks_mut(GRAIN)
            .for_each(|x| edit_each_piece(&f, x));
    })
}

/// Replaces every element `x` of `target` by `f(x, y)` with the element `y` of `other` in its place, in place.
/// `target` must be contiguous, and its storage nobody else's (not even `other`'s).
pub(crate) fn edit_with<T: Real>(target: &Tensor, other: &Tensor, f: impl Binary) -> Result<()> {
    check_same(target, other)?;
    let other = contiguous(other)?;
    let other = elements::<T>(&other)?;
    let other: &[T] = &other;
    edit::<T>(target, |target| {
        let pieces = target.par_chunks_mut(GRAIN).zip(other.par_chunks(GRAIN));
        pieces.for_each(|(x, y)| edit_piece(&f, x, y));
    })
}

fn check_same(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.dims() != y.dims() {
        bail!("shapes differ: {:?} and {:?}", x.dims(), y.dims());
    }
    Ok(())
}

/// Tensors behind one another along dimension `dim`; they agree in all others.
pub fn cat(parts: &[Tensor], dim: usize) -> Result<Tensor> {
    match parts {
        [] => bail!("nothing to put together"),
        [part] => Ok(part.clone()),
        [first, ..] => {
            by_kernel!(first, T => cat_slices::<T>(parts, dim), Tensor::cat(parts, dim))
        }
    }
}

fn cat_slices<T: Real>(parts: &[Tensor], dim: usize) -> Result<Tensor> {
    let mut shape = parts[0].dims().to_vec();
    if dim >= shape.len() {
        bail!("no dimension {dim} in {shape:?}");
    }
    shape[dim] = 0;
    for part in parts {
        let fits = part.rank() == shape.len()
            && part
                .dims()
                .iter()
                .zip(&shape)
                .enumerate()
                .all(|(i, (a, b))| i == dim || a == b);
        if !fits {
            bail!(
                "{:?} does not continue {:?} in dimension {dim}",
                part.dims(),
                parts[0].dims()
            );
        }
        shape[dim] += part.dims()[dim];
    }
    let dense = parts.iter().map(contiguous).collect::<Result<Vec<_>>>()?;
    let slices = dense
        .iter()
        .map(elements::<T>)
        .collect::<Result<Vec<_>>>()?;
    let slices: Vec<&[T]> = slices.iter().map(|slice| &**slice).collect();
    let outer: usize = shape[..dim].iter().product();
    let row: usize = shape[dim..].iter().product();
    let mut out = vec![T::zero(); outer * row];
    if row > 0 {
        let rows = rows_per_piece(row);
        out.par_chunks_mut(rows * row)
            .enumerate()
            .for_each(|(piece, out)| {
                for (i, mut out) in out.chunks_exact_mut(row).enumerate() {
                    for slice in &slices {
                        let width = slice.len() / outer;
                        let (segment, rest) = out.split_at_mut(width);
                        segment.copy_from_slice(&slice[(piece * rows + i) * width..][..width]);
                        out = rest;
                    }
                }
            });
    }
    tensor(out, &shape)
}

/// Sums side by side: one chain of additions would wait for each, and these become vector code. Fixed, whatever vectors the machine
/// has, so that all machines add in one order.
const LANES: usize = 16;

/// The sum of `f` over the elements, in sixteen lanes that are added at the end.
#[inline(always)]
pub(crate) fn sum<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] += f(x[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold(lanes, |a, b| a + b)
}

/// The sum of `f` over the pairs of two rows of one length, in sixteen lanes that are added at the end.
#[inline(always)]
pub(crate) fn sum2<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (x_whole, x_rest) = x.as_chunks::<LANES>();
    let (y_whole, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_whole.iter().zip(y_whole) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += f(x, y);
    }
    fold(lanes, |a, b| a + b)
}

/// The largest element, `lowest` if there is none.
#[inline(always)]
pub(crate) fn max<T: Real>(x: &[T], lowest: T) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [lowest; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], x[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    fold(lanes, larger)
}

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}
