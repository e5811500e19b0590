//! Diffusion: how latents are mixed with noise, what is predicted of the mixture, which noise levels training visits, and how a
//! sampler gets from noise to a picture. Rectified flow (Liu et al., arXiv:2209.03003; SD3: Esser et al., arXiv:2403.03206) and
//! DDPM (Ho et al., arXiv:2006.11239) are two cases of one code.
//!
//! One convention throughout: a noisy picture is `alpha * latents + sigma * noise`; see [`process`]. Nothing here draws
//! numbers or knows a model.

pub mod process;
mod sampler;
mod sampling;
mod shift;
mod timestep;
mod unipc;

pub(crate) use process::TRAINED_STEPS;
pub use process::{Level, Prediction, Process, add_noise};
pub use sampler::{Spacing, euler_sigmas, guide, rescale_guided};
pub use sampling::{Sampler, SamplerRun};
pub use shift::{Shift, ShiftRule};
pub use timestep::{Band, LossWeighting, TimestepSampling, TimestepSpec, shift_sigma};
