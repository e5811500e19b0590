//! A small tape of coarse operations: what a LoRA on a frozen network needs, and no more.
//!
//! A [`Value`] is a tensor and whether a gradient is wanted for it. The methods of [`Tape`] compute, and where a
//! gradient is wanted they also write down how to compute it: each in one closed form, saving only what that
//! form reads. Nothing is saved and nothing done backward for what needs no gradient; frozen weights are plain
//! tensors and never get one.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use plumb::autograd::{LoraValues, Tape, Value};
//! use plumb::nn::Kernels;
//!
//! # fn main() -> candle_core::Result<()> {
//! let tensor = |rows: usize, columns: usize| Tensor::ones((rows, columns), candle_core::DType::F32, &Device::Cpu);
//! let tape = Tape::recording(&Kernels::NONE);
//! let a = tape.leaf(tensor(2, 4)?);
//! let b = tape.leaf(tensor(3, 2)?);
//! let lora = LoraValues { a: a.clone(), b: b.clone(), scale: 0.5, dropout: None };
//! let x = Value::constant(tensor(5, 4)?);
//! let y = tape.linear(&x, &tensor(3, 4)?.into(), None, Some(&lora))?;
//! let loss = tape.mse(&tape.silu(&y)?, &tensor(5, 3)?, None)?;
//! let mut gradients = tape.backward(&loss)?;
//! assert_eq!(gradients.take(&a).map(|g| g.dims().to_vec()), Some(vec![2, 4]));
//! # Ok(())
//! # }
//! ```
//!
//! [`Tape::backward`] consumes the tape from its end, so memory falls as it runs. [`Tape::checkpoint`] keeps a
//! block's inputs only and runs the block again on the way back. With [`Tape::off`] the same model code serves
//! inference. A tape is told the [`Kernels`](crate::nn::Kernels) by which its operations compute.

mod attention;
mod conv;
mod gradient;
mod linear;
mod loss;
mod norm;
mod picture;
mod pointwise;
mod shape;
mod tape;

pub use attention::AttentionPart;
pub use gradient::Gradients;
pub use linear::LoraValues;
pub use tape::{Tape, Value};

#[cfg(test)]
pub(crate) mod tests;
