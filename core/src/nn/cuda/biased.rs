//! Linear layers with their bias by cuBLASLt, which adds it where the product is written, and takes GELU there. The algorithm of a shape is the one
//! its heuristic names first: the same on every run of a machine.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::sys as cublas;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::{DType, Error, Result, Tensor};

use super::Kernels;

/// What NVIDIA recommends for Hopper; older GPUs need less.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Bytes at a multiple of which every matrix begins: the heuristic is told so, and other matrices are not served.
const ALIGNMENT: u32 = 16;

/// What is multiplied: `x` `[m, k]` by each of `layers` matrices `[n, k]` that lie behind one another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    layers: usize,
    m: usize,
    k: usize,
    n: usize,
    /// In bf16, else in f32.
    half: bool,
    /// Whether GELU, in its tanh form, is taken of the result, which is kept as well.
    gelu: bool,
}

/// cuBLASLt on a GPU, and how it multiplies each shape met so far.
pub(super) struct Biased {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Shape, Option<MatmulPlan>>,
    workspace: Tensor,
}

// SAFETY: the library's handles may be used by any one thread at a time, and all use is behind a mutex.
unsafe impl Send for Biased {}

impl Drop for Biased {
    fn drop(&mut self) {
        // Before the handle that they were made by.
        self.plans.clear();
        // SAFETY: made by `new` and used no more. An error at the end has nobody to hear it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product as the library describes it: columns first, so `w^T` from the left.
struct MatmulPlan {
    product: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for MatmulPlan {
    fn drop(&mut self) {
        // SAFETY: made by `MatmulPlan::new` and used no more.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl MatmulPlan {
    /// None if the library has no algorithm for the shape. `bias` is where one lies.
    fn new(handle: sys::cublasLtHandle_t, shape: Shape, bias: u64) -> Result<Option<Self>> {
        let Shape {
            layers, m, k, n, ..
        } = shape;
        let kind = match shape.half {
            true => sys::cudaDataType_t::CUDA_R_16BF,
            false => sys::cudaDataType_t::CUDA_R_32F,
        };
        let single = sys::cudaDataType_t::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let layout = |rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
        };
        let mut plan = Self {
            product: result::create_matmul_desc(compute, single).map_err(Error::wrap)?,
            layouts: [
                layout(k, n).map_err(Error::wrap)?,
                layout(k, m).map_err(Error::wrap)?,
                layout(n, m).map_err(Error::wrap)?,
            ],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        use sys::cublasLtMatmulDescAttributes_t as Describes;
        plan.describe(
            Describes::CUBLASLT_MATMUL_DESC_TRANSA,
            &(cublas::cublasOperation_t::CUBLAS_OP_T as i32),
        )?;
        use sys::cublasLtEpilogue_t as Ends;
        let ends = match shape.gelu {
            true => Ends::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
            false => Ends::CUBLASLT_EPILOGUE_BIAS,
        };
        plan.describe(Describes::CUBLASLT_MATMUL_DESC_EPILOGUE, &(ends as i32))?;
        // The heuristic may look whether there are addresses, and how they are aligned. What GELU is taken of has none yet; it is aligned as well.
        plan.describe(Describes::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        if shape.gelu {
            let row = n as i64;
            plan.describe(Describes::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &row)?;
            plan.describe(Describes::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &bias)?;
        }
        if layers > 1 {
            plan.repeat(layers, [n * k, 0, m * n], n)?;
        }
        let preference = result::create_matmul_pref().map_err(Error::wrap)?;
        let found = plan.choose(handle, preference);
        // SAFETY: made above and used no more.
        unsafe { result::destroy_matmul_pref(preference) }.map_err(Error::wrap)?;
        Ok(found?.map(|algorithm| {
            plan.algorithm = algorithm;
            plan
        }))
    }

    fn describe<T>(&self, what: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let (at, size) = (std::ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the description lives as long as `self`, and the library copies the value.
        unsafe { result::set_matmul_desc_attribute(self.product, what, at, size) }
            .map_err(Error::wrap)
    }

    /// As many products, whose matrices and biases are so many numbers apart.
    fn repeat(&self, layers: usize, apart: [usize; 3], of_bias: usize) -> Result<()> {
        use sys::cublasLtMatrixLayoutAttribute_t as Lies;
        let set = |layout, what, value: *const c_void, size| {
            // SAFETY: the layout lives as long as `self`, and the library copies the value.
            unsafe { result::set_matrix_layout_attribute(layout, what, value, size) }
                .map_err(Error::wrap)
        };
        for (layout, apart) in self.layouts.into_iter().zip(apart) {
            let (count, apart) = (layers as i32, apart as i64);
            let (count_at, apart_at) = (std::ptr::from_ref(&count), std::ptr::from_ref(&apart));
            let what = Lies::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
            set(layout, what, count_at.cast(), size_of_val(&count))?;
            let what = Lies::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            set(layout, what, apart_at.cast(), size_of_val(&apart))?;
        }
        self.describe(
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE,
            &(of_bias as i64),
        )
    }

    fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
        preference: sys::cublasLtMatmulPreference_t,
    ) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Prefers;
        let set = |what, value: *const c_void, size| {
            // SAFETY: the preference was made by the caller, and the library copies the value.
            unsafe { result::set_matmul_pref_attribute(preference, what, value, size) }
                .map_err(Error::wrap)
        };
        let (bytes, alignment) = (WORKSPACE_BYTES as u64, ALIGNMENT);
        set(
            Prefers::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&bytes).cast(),
            size_of_val(&bytes),
        )?;
        for what in [
            Prefers::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Prefers::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Prefers::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Prefers::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(
                what,
                std::ptr::from_ref(&alignment).cast(),
                size_of_val(&alignment),
            )?;
        }
        let [w, x, y] = self.layouts;
        // SAFETY: all were made for this plan and live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(handle, self.product, w, x, y, y, preference)
        };
        // An error here means that no algorithm serves the shape.
        Ok(found.ok().map(|found| found.algo))
    }
}

impl Biased {
    fn new(kernels: &Kernels) -> Result<Self> {
        Ok(Self {
            handle: result::create_handle().map_err(Error::wrap)?,
            plans: HashMap::new(),
            // In f32 numbers, of 4 bytes.
            workspace: kernels.room(WORKSPACE_BYTES / 4, DType::F32)?,
        })
    }

    /// How a shape is multiplied; None where it cannot be.
    fn plan(&mut self, shape: Shape, bias: u64) -> Result<Option<&MatmulPlan>> {
        // A shape that is not served is kept as None: the heuristic takes long to say so again.
        if !self.plans.contains_key(&shape) {
            let plan = MatmulPlan::new(self.handle, shape, bias)?;
            self.plans.insert(shape, plan);
        }
        Ok(self.plans.get(&shape).and_then(Option::as_ref))
    }
}

/// What a product reads, each in one piece and in the type of `x`.
#[derive(Clone, Copy)]
struct Factors<'a> {
    /// `[m, k]`
    x: &'a Tensor,
    /// `[layers, n, k]`
    w: &'a Tensor,
    /// `[layers, n]`
    b: &'a Tensor,
    /// `[layers, m, n]`, added before anything else is done.
    added: Option<&'a Tensor>,
}

/// Where they begin on the GPU.
struct Places {
    x: u64,
    w: u64,
    b: u64,
    added: Option<u64>,
}

impl Factors<'_> {
    /// An error if they do not fit.
    fn shape(&self, gelu: bool) -> Result<Shape> {
        let Self { x, w, b, added } = *self;
        let ((m, k), (layers, n, inner)) = (x.dims2()?, w.dims3()?);
        let dtype = x.dtype();
        let fit = |t: &Tensor, dims: &[usize]| t.dims() == dims && t.dtype() == dtype;
        let added_fits = added.is_none_or(|added| fit(added, &[layers, m, n]));
        if inner != k || w.dtype() != dtype || !fit(b, &[layers, n]) || !added_fits {
            candle_core::bail!("{:?} {:?} + {:?}", x.dims(), w.dims(), b.dims());
        }
        Ok(Shape {
            layers,
            m,
            k,
            n,
            half: dtype == DType::BF16,
            gelu,
        })
    }

    /// None if one does not begin where the library was promised, or there is nothing to multiply.
    fn places(&self, kernels: &Kernels, shape: Shape) -> Result<Option<Places>> {
        let Shape {
            layers, m, k, n, ..
        } = shape;
        let at = |t: &Tensor| kernels.address(t);
        let (x, w, b) = (at(self.x)?, at(self.w)?, at(self.b)?);
        let added = self.added.map(at).transpose()?;
        let aligned = |at: &u64| at.is_multiple_of(u64::from(ALIGNMENT));
        let served = [x, w, b].iter().chain(&added).all(aligned) && layers * m * k * n > 0;
        Ok(served.then_some(Places { x, w, b, added }))
    }
}

/// `x w^T + b` of each layer, `[layers, m, n]`, of `x` `[m, k]`, `w` `[layers, n, k]`, `b` `[layers, n]` in one type, each in one piece.
/// None where the library does not serve them.
pub(crate) fn linears(
    kernels: &Kernels,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
) -> Result<Option<Tensor>> {
    let factors = Factors {
        x,
        w,
        b,
        added: None,
    };
    Ok(product(kernels, factors, false)?.map(|(y, _)| y))
}

/// Whether [`with_gelu`] gives something.
pub(crate) fn serves_gelu(kernels: &Kernels, x: &Tensor, w: &Tensor, b: &Tensor) -> Result<bool> {
    let factors = Factors {
        x,
        w: &w.unsqueeze(0)?,
        b: &b.unsqueeze(0)?,
        added: None,
    };
    let shape = factors.shape(true)?;
    let Some(places) = factors.places(kernels, shape)? else {
        return Ok(false);
    };
    let mut guard = opened(kernels)?;
    let plan = guard.as_mut().map(|biased| biased.plan(shape, places.b));
    Ok(plan.transpose()?.flatten().is_some())
}

/// GELU of `x w^T + b`, or of that plus `added` `[m, n]`; and what it was taken of, `[m, n]` both. Else as [`linears`], of one layer.
pub(crate) fn with_gelu(
    kernels: &Kernels,
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    added: Option<&Tensor>,
) -> Result<Option<(Tensor, Tensor)>> {
    let added = added.map(|added| added.unsqueeze(0)).transpose()?;
    let factors = Factors {
        x,
        w: &w.unsqueeze(0)?,
        b: &b.unsqueeze(0)?,
        added: added.as_ref(),
    };
    match product(kernels, factors, true)? {
        Some((y, Some(before))) => Ok(Some((y.squeeze(0)?, before.squeeze(0)?))),
        _ => Ok(None),
    }
}

/// The product, and what GELU was taken of if it was taken.
fn product(
    kernels: &Kernels,
    factors: Factors<'_>,
    gelu: bool,
) -> Result<Option<(Tensor, Option<Tensor>)>> {
    let shape = factors.shape(gelu)?;
    let Shape { layers, m, n, .. } = shape;
    let dtype = factors.x.dtype();
    let Some(Places { x, w, b, added }) = factors.places(kernels, shape)? else {
        return Ok(None);
    };
    let mut guard = opened(kernels)?;
    let Some(biased) = guard.as_mut() else {
        return Ok(None);
    };
    let (handle, workspace) = (biased.handle, kernels.address(&biased.workspace)?);
    let Some(plan) = biased.plan(shape, b)? else {
        return Ok(None);
    };
    let y = kernels.room((layers, m, n), dtype)?;
    let to = kernels.address(&y)? as *mut c_void;
    use sys::cublasLtMatmulDescAttributes_t as Describes;
    plan.describe(Describes::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &b)?;
    let mut before = None;
    if gelu {
        let room = kernels.room((layers, m, n), dtype)?;
        let what = Describes::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER;
        plan.describe(what, &kernels.address(&room)?)?;
        before = Some(room);
    }
    // y = 1 * product + 0 * y where nothing is added: y is new memory, and is not read.
    let (alpha, beta) = (1.0f32, if added.is_some() { 1.0f32 } else { 0.0 });
    let added = added.map_or(to.cast_const(), |at| at as *const c_void);
    let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
    let [of_w, of_x, of_y] = plan.layouts;
    // SAFETY: the plan is that of these extents, all matrices are on the GPU, as large as they say and alive until the product
    // is asked for, and only this stream uses the workspace.
    unsafe {
        result::matmul(
            handle,
            plan.product,
            number(&alpha),
            number(&beta),
            w as *const c_void,
            of_w,
            x as *const c_void,
            of_x,
            added,
            of_y,
            to,
            of_y,
            &raw const plan.algorithm,
            workspace as *mut c_void,
            WORKSPACE_BYTES,
            kernels.inner.stream.cu_stream().cast(),
        )
    }
    .map_err(Error::wrap)?;
    Ok(Some((y, before)))
}

/// The library, opened if it was not.
fn opened(kernels: &Kernels) -> Result<MutexGuard<'_, Option<Biased>>> {
    let guard = kernels.inner.biased.lock();
    let mut guard = guard.unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        kernels.before_keeping()?;
        *guard = Some(Biased::new(kernels)?);
    }
    Ok(guard)
}

/// None until the first product.
pub(super) type Opened = Mutex<Option<Biased>>;
