//! Where a network's tensors come from, and how its weights are stored while it is used.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

use super::Error;
use crate::nn::weights::Weights;
use crate::nn::{Frozen, Kernels, Prefetch, Quantization};

/// Gives the tensors of a network by their canonical names.
pub trait Source {
    /// A vector, a convolution's weight, or a table.
    ///
    /// # Errors
    /// If it is missing, misshapen or not finite.
    fn tensor(&self, shape: &[usize], name: &str) -> Result<Tensor, Error>;

    /// The matrix `[outputs, inputs]` of a linear layer.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn matrix(&self, shape: [usize; 2], name: &str) -> Result<Frozen, Error> {
        Ok(self.tensor(&shape, name)?.into())
    }

    /// The matrix of a linear layer that is never adapted.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn untrained(&self, shape: [usize; 2], name: &str) -> Result<Frozen, Error> {
        self.matrix(shape, name)
    }

    /// The kernel `[outputs, inputs, height, width]` of a convolution that may carry an adapter.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn kernel(&self, shape: [usize; 4], name: &str) -> Result<Tensor, Error> {
        self.tensor(&shape, name)
    }

    /// Names a tensor that a network's files have although nothing reads it: for who lists them.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn unread(&self, _shape: &[usize], _name: &str) -> Result<(), Error> {
        Ok(())
    }

    /// What the network computes by.
    fn kernels(&self) -> Kernels {
        Kernels::NONE
    }
}

/// How the weight matrices of linear layers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// Whole, in the type that is computed in.
    #[default]
    Whole,
    /// Quantized; another network, near the whole one.
    Quantized(Quantization),
    /// In 8-bit floats, in which products are computed; another network, near the whole one.
    Fp8 {
        /// Each is kept a second time, as backward products read it, which is else made of the first for each of them.
        in_both_orders: bool,
    },
    /// Block swap: in their files, from which each is prefetched when its turn comes. The same numbers in less memory.
    InFile {
        /// The first so many bytes of them stay in memory.
        resident_bytes: u64,
    },
}

impl WeightStorage {
    /// All in their files.
    pub const IN_FILE: Self = Self::InFile { resident_bytes: 0 };
}

/// Where, in what type and by what a network computes, and how its weights are stored.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The type it computes in.
    pub dtype: DType,
    /// Where it computes.
    pub device: Device,
    /// Our own CUDA kernels that it computes by there, if any.
    pub kernels: Kernels,
    /// How its weight matrices are stored.
    pub storage: WeightStorage,
}

/// In f32 on the CPU, whole.
impl Default for Placement {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            device: Device::Cpu,
            kernels: Kernels::NONE,
            storage: WeightStorage::Whole,
        }
    }
}

/// Matrices of fewer numbers are always stored whole: nothing is saved by quantizing them.
pub const LEAST_QUANTIZED: usize = 1 << 12;

/// The last matrix of networks of the DiT kind, by its name there.
const LAST_MATRIX: &str = "proj_out.weight";

/// Tensors of files.
pub(super) struct FileSource {
    weights: Weights,
    storage: WeightStorage,
    /// Bytes of matrices that may still be kept whole where the others stay in their files.
    resident_bytes: Cell<u64>,
    ahead: Prefetch,
}

impl FileSource {
    /// `weights` have canonical names.
    pub(super) fn new(weights: &Weights, placement: &Placement) -> Self {
        let weights = weights.clone().with_dtype(placement.dtype);
        let weights = weights.on(&placement.device);
        Self {
            weights: weights.with_kernels(&placement.kernels),
            storage: placement.storage,
            resident_bytes: Cell::new(match placement.storage {
                WeightStorage::InFile { resident_bytes } => resident_bytes,
                _ => 0,
            }),
            ahead: Prefetch::default(),
        }
    }

    fn in_memory(&self, shape: [usize; 2], name: &str) -> Result<Frozen, Error> {
        let whole = self.weights.get(&shape, name)?;
        Frozen::packed(&whole).map_err(|source| Error::Device {
            what: format!("packing `{name}`"),
            source,
        })
    }

    /// What `make` makes of a matrix as it is stored, for the type and the device that compute.
    fn rounded(
        &self,
        shape: [usize; 2],
        name: &str,
        make: impl Fn(&Tensor, DType, &Device) -> candle_core::Result<Frozen>,
    ) -> Result<Frozen, Error> {
        // From the file's own numbers: rounding them to the computing type first would lose bits twice.
        let stored = self.weights.clone().with_dtype(DType::F32).on(&Device::Cpu);
        let (dtype, device) = (self.weights.dtype(), self.weights.device());
        let made = make(&stored.get(&shape, name)?, dtype, device);
        made.map_err(|source| Error::Device {
            what: format!("quantizing `{name}`"),
            source,
        })
    }
}

impl Source for FileSource {
    fn tensor(&self, shape: &[usize], name: &str) -> Result<Tensor, Error> {
        Ok(self.weights.get(shape, name)?)
    }

    fn kernels(&self) -> Kernels {
        self.weights.kernels().clone()
    }

    fn matrix(&self, shape: [usize; 2], name: &str) -> Result<Frozen, Error> {
        match self.storage.of(shape) {
            WeightStorage::Whole => self.in_memory(shape, name),
            WeightStorage::InFile { .. } => {
                let bytes = WeightStorage::Whole.bytes(shape, self.weights.dtype()) as u64;
                if let Some(left) = self.resident_bytes.get().checked_sub(bytes) {
                    self.resident_bytes.set(left);
                    return self.in_memory(shape, name);
                }
                let (weights, ahead) = (&self.weights, &self.ahead);
                Ok(Frozen::in_file(weights, shape, name, ahead))
            }
            // As torchao's users leave it out (diffusers' `do_fp8_training`): what the network says last is not rounded.
            WeightStorage::Fp8 { .. } if name == LAST_MATRIX => self.in_memory(shape, name),
            WeightStorage::Fp8 { in_both_orders } => {
                let kernels = self.weights.kernels();
                self.rounded(shape, name, |stored, dtype, device| {
                    Frozen::fp8(stored, dtype, (device, kernels), in_both_orders)
                })
            }
            WeightStorage::Quantized(quantization) => {
                self.rounded(shape, name, |stored, dtype, device| {
                    Frozen::quantized(quantization, stored, dtype, device)
                })
            }
        }
    }
}

impl WeightStorage {
    /// How a matrix of this shape is kept.
    fn of(self, shape: [usize; 2]) -> Self {
        let small = shape.iter().product::<usize>() < LEAST_QUANTIZED;
        match self {
            Self::Quantized(quantization) if small || !quantization.fits(shape) => Self::Whole,
            Self::Fp8 { .. } if small || !Frozen::fits_fp8(shape) => Self::Whole,
            Self::InFile { .. } if small => Self::Whole,
            other => other,
        }
    }

    /// Whether a matrix of this shape is kept whole, in the type that is computed in.
    pub fn is_whole(self, shape: [usize; 2]) -> bool {
        self.of(shape) == Self::Whole
    }

    /// Bytes in memory of a matrix of this shape that is computed with in `dtype`, if it is not among those kept whole.
    pub fn bytes(self, shape: [usize; 2], dtype: DType) -> usize {
        match self.of(shape) {
            Self::Whole => shape.iter().product::<usize>() * dtype.size_in_bytes(),
            Self::Quantized(quantization) => quantization.bytes(shape),
            Self::Fp8 { in_both_orders } => {
                shape.iter().product::<usize>() * (1 + usize::from(in_both_orders))
            }
            Self::InFile { .. } => 0,
        }
    }
}
