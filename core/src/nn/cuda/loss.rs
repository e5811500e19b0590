//! The squared error of a prediction and its gradient, without a number that the host reads on the way.

use candle_core::{DType, Result, Tensor};

use super::Argument::{Address, Double, Int, Long};
use super::views::dense;
use super::{Kernels, blocks_for, config};

/// What is compared, on the GPU.
pub(crate) struct Compared {
    prediction: Tensor,
    /// In f32, whatever the prediction is in: a good one's error is in the last bits of bf16.
    target: Tensor,
    /// In f32, one for each row.
    weights: Tensor,
    rows: usize,
    row: usize,
}

impl Compared {
    /// `prediction` and `target` `[B, ..]` of one shape, neither empty, `weights` `[B]`.
    pub(crate) fn new(
        kernels: &Kernels,
        prediction: &Tensor,
        target: &Tensor,
        weights: &Tensor,
    ) -> Result<Self> {
        let rows = prediction.dim(0)?;
        let single = |t: &Tensor| dense(kernels, &t.to_dtype(DType::F32)?);
        Ok(Self {
            prediction: dense(kernels, prediction)?,
            target: single(target)?,
            weights: single(&weights.to_device(prediction.device())?)?,
            rows,
            row: prediction.elem_count() / rows,
        })
    }

    /// The mean of the rows' mean squares, each times its weight: `[]` in f32.
    pub(crate) fn error(&self, kernels: &Kernels) -> Result<Tensor> {
        /// What each block sums at most, unless there are more numbers than that.
        const SHARE: usize = 1 << 13;
        let parts = self.row.div_ceil(SHARE).clamp(1, 64);
        let sums = kernels.room((self.rows, parts), DType::F32)?;
        let arguments = [
            Address(kernels.address(&self.prediction)?),
            Address(kernels.address(&self.target)?),
            Address(kernels.address(&sums)?),
            Long(self.row as i64),
        ];
        let function = kernels.function("rows", self.prediction.dtype(), "squared_errors")?;
        let grid = config((parts as u32, self.rows as u32, 1), 256, 0);
        // SAFETY: the signature of `squared_errors`; there is a sum for each block.
        unsafe { kernels.launch(&function, grid, &arguments)? };
        let error = kernels.room((), DType::F32)?;
        let arguments = [
            Address(kernels.address(&sums)?),
            Address(kernels.address(&self.weights)?),
            Address(kernels.address(&error)?),
            Int(self.rows as i32),
            Int(parts as i32),
            Double(1.0 / self.count()),
        ];
        let function = kernels.function("rows", DType::F32, "weighted_sum")?;
        // SAFETY: the signature of `weighted_sum`; there is a weight for each row.
        unsafe { kernels.launch(&function, config((1, 1, 1), 1, 0), &arguments)? };
        Ok(error)
    }

    /// The gradient of [`Self::error`] towards the prediction, times `outer`, `[]` in f32.
    pub(crate) fn gradient(&self, kernels: &Kernels, outer: &Tensor) -> Result<Tensor> {
        let out = kernels.room(self.prediction.shape(), self.prediction.dtype())?;
        let count = out.elem_count();
        let arguments = [
            Address(kernels.address(&self.prediction)?),
            Address(kernels.address(&self.target)?),
            Address(kernels.address(&self.weights)?),
            Address(kernels.address(outer)?),
            Address(kernels.address(&out)?),
            Long(count as i64),
            Long(self.row as i64),
            Double(2.0 / self.count()),
        ];
        let function = kernels.function("rows", out.dtype(), "error_gradient")?;
        // SAFETY: the signature of `error_gradient`; all have the numbers of the prediction, the weights one for each row.
        unsafe { kernels.launch(&function, blocks_for(count), &arguments)? };
        Ok(out)
    }

    fn count(&self) -> f64 {
        (self.rows * self.row) as f64
    }
}
