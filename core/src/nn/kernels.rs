//! Which CUDA kernels of ours compute: a value that goes with the device a network was placed on, down to every operation.

use std::fmt;
use std::path::PathBuf;

use candle_core::{Device, Result, Tensor};

use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;

/// Our own CUDA kernels of one GPU, or none: then a GPU computes by candle's operations. What is on a CPU is computed by the
/// kernels for CPUs in any case. Cheap to clone.
#[derive(Clone, Default)]
pub struct Kernels {
    #[cfg(feature = "cuda")]
    pub(super) compiled: Option<cuda::Kernels>,
}

impl Kernels {
    /// No kernels of our own: for a CPU, or a GPU by candle's operations alone.
    pub const NONE: Self = Self {
        #[cfg(feature = "cuda")]
        compiled: None,
    };

    /// The kernels of a GPU, compiled now; none for a CPU. They have been held against the CPU on an emulated GPU only.
    ///
    /// # Errors
    ///
    /// If they cannot be compiled there.
    pub fn compile(device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = device {
            return Ok(Self::of_gpu(cuda::Kernels::compile(gpu)?));
        }
        let _ = device;
        Ok(Self::NONE)
    }

    /// The same, with attention and convolutions by NVIDIA's cuDNN 9, which is looked for by the system's loader and in `folders`. No real GPU
    /// has run it yet; what is asked of it was computed by an emulation of its interface.
    ///
    /// # Errors
    ///
    /// If it is not found or does not start, or there are no kernels beside which it could be used.
    pub fn with_cudnn(self, folders: &[PathBuf]) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.compiled {
            return Ok(Self::of_gpu(kernels.with_cudnn(folders)?));
        }
        let _ = folders;
        candle_core::bail!("cuDNN is used beside own kernels of a GPU, and there are none")
    }

    /// The same, with products in 8-bit floats, by cuBLASLt. They have been held against the CPU on an emulated GPU only.
    ///
    /// # Errors
    ///
    /// If the GPU is too old for them, or there are no kernels that would round numbers for them.
    pub fn with_fp8(self) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.compiled {
            return Ok(Self::of_gpu(kernels.with_fp8()?));
        }
        candle_core::bail!(
            "numbers are rounded to 8 bits by own kernels of a GPU, and there are none"
        )
    }

    /// Whether there are any.
    pub fn are_there(&self) -> bool {
        #[cfg(feature = "cuda")]
        let found = self.compiled.is_some();
        #[cfg(not(feature = "cuda"))]
        let found = false;
        found
    }

    /// Whether attention and convolutions are by cuDNN.
    pub fn have_cudnn(&self) -> bool {
        #[cfg(feature = "cuda")]
        let found = (self.compiled.as_ref()).is_some_and(cuda::Kernels::have_cudnn);
        #[cfg(not(feature = "cuda"))]
        let found = false;
        found
    }

    /// Those of a device, if they multiply 8-bit floats.
    #[cfg(feature = "cuda")]
    pub(super) fn for_fp8(&self, device: &Device) -> Option<&cuda::Kernels> {
        self.of(device).filter(|kernels| kernels.have_fp8())
    }

    /// Those that are there already.
    #[cfg(feature = "cuda")]
    pub(super) fn of_gpu(compiled: cuda::Kernels) -> Self {
        let compiled = Some(compiled);
        Self { compiled }
    }

    /// The GPU that they are of, the driver, and the versions of what compiles and computes: two programs of the same code compute the same
    /// where these are the same. `None` where there are none.
    ///
    /// # Errors
    ///
    /// If the driver or NVRTC do not tell.
    pub fn identity(&self) -> Result<Option<String>> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.compiled {
            return kernels.identity().map(Some);
        }
        Ok(None)
    }

    /// What they compute otherwise than the CPU on small inputs, in words: of every operation, or with products in 8-bit floats of these alone, or with
    /// cuDNN of what it computes alone. `None` if nothing is, or there are none. Takes seconds, since all of them are compiled: `before_each` is told how many cases were tried, and of how
    /// many.
    ///
    /// # Errors
    ///
    /// If the GPU computes nothing more in this process, as after an access outside of its memory.
    pub fn fault(&self, before_each: &dyn Fn(usize, usize)) -> Result<Option<String>> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.compiled {
            return kernels.fault(before_each);
        }
        let _ = before_each;
        Ok(None)
    }

    /// `x` with its elements in order: itself where they are already.
    pub fn contiguous(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.serving(x) {
            return cuda::views::dense(kernels, x);
        }
        cpu::contiguous(x)
    }

    /// Those that serve a tensor, by its device and type.
    #[cfg(feature = "cuda")]
    pub(super) fn serving(&self, tensor: &Tensor) -> Option<&cuda::Kernels> {
        use candle_core::DType;
        // A tensor may be on another GPU than the one they were compiled on.
        let kernels = self.of(tensor.device())?;
        matches!(tensor.dtype(), DType::BF16 | DType::F32).then_some(kernels)
    }

    /// Those of a device.
    #[cfg(feature = "cuda")]
    pub(super) fn of(&self, device: &Device) -> Option<&cuda::Kernels> {
        self.compiled
            .as_ref()
            .filter(|kernels| kernels.are_of(device))
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.are_there(), self.have_cudnn()) {
            (false, _) => "no own kernels",
            (true, false) => "own kernels",
            (true, true) => "own kernels and cuDNN",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_none_and_no_cudnn() {
        let kernels = Kernels::compile(&Device::Cpu).expect("none");
        assert!(!kernels.are_there() && !kernels.have_cudnn());
        assert_eq!(kernels.identity().expect("none"), None);
        assert_eq!(kernels.fault(&|_, _| ()).expect("none"), None);
        let why = kernels.with_cudnn(&[]).expect_err("refused").to_string();
        assert!(why.contains("there are none"), "{why}");
    }
}
