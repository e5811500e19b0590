//! The activations of text encoders, by their names in Hugging Face configurations.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::nn::{self, Kernels, Packed};

/// The function between the two matrices of a feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// The exact GELU, with erf.
    Gelu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluNew,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`.
    Silu,
}

impl Activation {
    /// The names that [`Self::named`] knows, for messages.
    pub(super) const NAMES: &str =
        "one of quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish";

    /// The activation that transformers knows under this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "quick_gelu" => Self::QuickGelu,
            "gelu" => Self::Gelu,
            // Two classes of transformers with one formula.
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluNew,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }

    /// `activation(x w^T + b)`, with `w` `[out, in]`.
    pub(super) fn linear(
        self,
        kernels: &Kernels,
        x: &Tensor,
        w: &Packed,
        b: Option<&Tensor>,
    ) -> Result<Tensor> {
        match self.curve() {
            Some(curve) => w.activated(kernels, x, b, curve),
            None => w.linear(kernels, x, b)?.relu(),
        }
    }

    /// `activation(x g^T) * (x w^T)`, with `g` and `w` `[out, in]`.
    pub(super) fn gated_linear(
        self,
        kernels: &Kernels,
        x: &Tensor,
        g: &Packed,
        w: &Packed,
    ) -> Result<Tensor> {
        let gate = g.linear(kernels, x, None)?;
        match self.curve() {
            Some(curve) => w.gated(kernels, x, curve, &gate),
            None => gate.relu()? * w.linear(kernels, x, None)?,
        }
    }

    /// The kernel's name for it; `None` for relu, which has none.
    fn curve(self) -> Option<nn::Activation> {
        match self {
            Self::QuickGelu => Some(nn::Activation::QuickGelu),
            Self::Gelu => Some(nn::Activation::GeluErf),
            Self::GeluNew => Some(nn::Activation::GeluTanh),
            Self::Silu => Some(nn::Activation::Silu),
            Self::Relu => None,
        }
    }
}
