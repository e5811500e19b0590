//! Products of matrices by cuBLASLt: how it multiplies each shape is found once. The algorithm of a shape is the one that its heuristic names first:
//! the same on every run of a machine.

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

/// Whether a matrix may begin at an address.
pub(super) fn aligned(at: u64) -> bool {
    at.is_multiple_of(u64::from(ALIGNMENT))
}

/// What is multiplied: `x` `[m, k]` by each of `layers` matrices `[n, k]` that lie behind one another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) numbers: Numbers,
    pub(super) end: End,
}

/// What is multiplied and what comes out.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Numbers {
    F32,
    Bf16,
    /// Matrices in e4m3.
    Fp8 {
        /// `x` in e5m2, else in e4m3 too.
        five: bool,
        /// The result in bf16, else in f32.
        half: bool,
    },
}

impl Numbers {
    /// Of the matrices, of `x`, and of the result.
    fn kinds(self) -> [sys::cudaDataType_t; 3] {
        use sys::cudaDataType_t as Kind;
        let result = |half| match half {
            true => Kind::CUDA_R_16BF,
            false => Kind::CUDA_R_32F,
        };
        match self {
            Self::F32 => [Kind::CUDA_R_32F; 3],
            Self::Bf16 => [Kind::CUDA_R_16BF; 3],
            Self::Fp8 { five: true, half } => {
                [Kind::CUDA_R_8F_E4M3, Kind::CUDA_R_8F_E5M2, result(half)]
            }
            Self::Fp8 { five: false, half } => {
                [Kind::CUDA_R_8F_E4M3, Kind::CUDA_R_8F_E4M3, result(half)]
            }
        }
    }
}

/// What is done to a product before it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    Nothing,
    Bias,
    /// A bias is added, and GELU, in its tanh form, is taken of the sum, which is kept as well.
    BiasAndGelu,
}

/// cuBLASLt on a GPU, and how it multiplies each shape met so far.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Shape, Option<MatmulPlan>>,
    workspace: Tensor,
}

// SAFETY: the library's handles may be used by any one thread at a time, and all use is behind a mutex.
unsafe impl Send for Library {}

impl Drop for Library {
    fn drop(&mut self) {
        // Before the handle that they were made by.
        self.plans.clear();
        // SAFETY: made by `new` and used no more. An error at the end has nobody to hear it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product as the library describes it: columns first, so `w^T` from the left.
pub(super) struct MatmulPlan {
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
    /// None if the library has no algorithm for the shape. `somewhere` is where numbers lie.
    fn new(handle: sys::cublasLtHandle_t, shape: Shape, somewhere: u64) -> Result<Option<Self>> {
        let Shape {
            layers,
            m,
            k,
            n,
            numbers,
            end,
        } = shape;
        let [of_w, of_x, of_y] = numbers.kinds();
        let single = sys::cudaDataType_t::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let layout = |kind, rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
        };
        let mut plan = Self {
            product: result::create_matmul_desc(compute, single).map_err(Error::wrap)?,
            layouts: [
                layout(of_w, k, n).map_err(Error::wrap)?,
                layout(of_x, k, m).map_err(Error::wrap)?,
                layout(of_y, n, m).map_err(Error::wrap)?,
            ],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        use sys::cublasLtMatmulDescAttributes_t as Describes;
        plan.describe(
            Describes::CUBLASLT_MATMUL_DESC_TRANSA,
            &(cublas::cublasOperation_t::CUBLAS_OP_T as i32),
        )?;
        use sys::cublasLtEpilogue_t as Ends;
        let ends = match end {
            End::Nothing => Ends::CUBLASLT_EPILOGUE_DEFAULT,
            End::Bias => Ends::CUBLASLT_EPILOGUE_BIAS,
            End::BiasAndGelu => Ends::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        };
        plan.describe(Describes::CUBLASLT_MATMUL_DESC_EPILOGUE, &(ends as i32))?;
        // The heuristic may look whether there are addresses, and how they are aligned. Those of a product are told with it; all are aligned.
        if end != End::Nothing {
            plan.describe_bias(somewhere)?;
        }
        if end == End::BiasAndGelu {
            let row = n as i64;
            plan.describe(Describes::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &row)?;
            plan.describe_kept(somewhere)?;
        }
        if let Numbers::Fp8 { five, .. } = numbers {
            plan.describe_scales([somewhere; 2])?;
            // As torchao: sums of few bits (about 13 on Hopper) towards results, with sums of f32 among them towards gradients.
            let fast = i8::from(!five);
            plan.describe(Describes::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast)?;
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

    /// Where the bias of the next product lies.
    pub(super) fn describe_bias(&self, bias: u64) -> Result<()> {
        let what = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        self.describe(what, &bias)
    }

    /// Where the next product leaves what GELU is taken of.
    pub(super) fn describe_kept(&self, kept: u64) -> Result<()> {
        let what = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER;
        self.describe(what, &kept)
    }

    /// Where the scales of the next product's matrix and `x` lie.
    pub(super) fn describe_scales(&self, [of_w, of_x]: [u64; 2]) -> Result<()> {
        use sys::cublasLtMatmulDescAttributes_t as Describes;
        self.describe(Describes::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &of_w)?;
        self.describe(Describes::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &of_x)
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

impl Library {
    fn new(kernels: &Kernels) -> Result<Self> {
        Ok(Self {
            handle: result::create_handle().map_err(Error::wrap)?,
            plans: HashMap::new(),
            // In f32 numbers, of 4 bytes.
            workspace: kernels.room(WORKSPACE_BYTES / 4, DType::F32)?,
        })
    }

    /// How a shape is multiplied; None where it cannot be.
    fn plan(&mut self, shape: Shape, somewhere: u64) -> Result<Option<&MatmulPlan>> {
        // A shape that is not served is kept as None: the heuristic takes long to say so again.
        if !self.plans.contains_key(&shape) {
            let plan = MatmulPlan::new(self.handle, shape, somewhere)?;
            self.plans.insert(shape, plan);
        }
        Ok(self.plans.get(&shape).and_then(Option::as_ref))
    }
}

/// A shape that the library serves.
pub(super) struct Ready<'a> {
    pub(super) plan: &'a MatmulPlan,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
}

impl<'a> Ready<'a> {
    pub(super) fn of(
        kernels: &Kernels,
        opened: &'a mut Option<Library>,
        shape: Shape,
        somewhere: u64,
    ) -> Result<Option<Self>> {
        let Some(library) = opened else {
            return Ok(None);
        };
        let (handle, workspace) = (library.handle, kernels.address(&library.workspace)?);
        Ok(library.plan(shape, somewhere)?.map(|plan| Self {
            plan,
            handle,
            workspace,
        }))
    }

    /// The product of `w` and `x`, plus what is `added`, written to `y`.
    ///
    /// # Safety
    ///
    /// All matrices are on the GPU, as large as the plan's shape says, and live until the product is asked for; so is what was described.
    pub(super) unsafe fn multiply(
        &self,
        kernels: &Kernels,
        (w, x): (u64, u64),
        added: Option<u64>,
        y: u64,
    ) -> Result<()> {
        // y = 1 * product + 0 * y where nothing is added: y may be new memory then, and is not read.
        let (alpha, beta) = (1.0f32, if added.is_some() { 1.0f32 } else { 0.0 });
        let added = added.unwrap_or(y);
        let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        let [of_w, of_x, of_y] = self.plan.layouts;
        // SAFETY: the caller's promise, and only this stream uses the workspace.
        unsafe {
            result::matmul(
                self.handle,
                self.plan.product,
                number(&alpha),
                number(&beta),
                w as *const c_void,
                of_w,
                x as *const c_void,
                of_x,
                added as *const c_void,
                of_y,
                y as *mut c_void,
                of_y,
                &raw const self.plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                kernels.inner.stream.cu_stream().cast(),
            )
        }
        .map_err(Error::wrap)
    }
}

/// The library, opened if it was not.
pub(super) fn opened(kernels: &Kernels) -> Result<MutexGuard<'_, Option<Library>>> {
    let guard = kernels.inner.products.lock();
    let mut guard = guard.unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        kernels.before_keeping()?;
        *guard = Some(Library::new(kernels)?);
    }
    Ok(guard)
}

/// None until the first product.
pub(super) type Opened = Mutex<Option<Library>>;
