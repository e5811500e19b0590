//! The activations of text encoders, by their names in Hugging Face configurations.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::nn::{self, FeedForward, Inward, Kernels, Packed};

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

    /// `base` plus the second linear of the first one's result, activated; see [`nn::FeedForward`].
    pub(super) fn feed_forward(
        self,
        kernels: &Kernels,
        (base, x): (&Tensor, &Tensor),
        inward: Inward<'_>,
        (w, b): (&Packed, Option<&Tensor>),
    ) -> Result<Tensor> {
        match self.curve() {
            Some(activation) => FeedForward {
                inward,
                activation,
                outward: (w, b),
            }
            .onto(kernels, base, x),
            None => w.linear_onto(kernels, base, &self.inner(kernels, x, inward)?, b),
        }
    }

    /// The first linear's result, activated.
    pub(super) fn inner(self, kernels: &Kernels, x: &Tensor, inward: Inward<'_>) -> Result<Tensor> {
        match (self.curve(), inward) {
            (Some(curve), _) => inward.activated(kernels, x, curve),
            (None, Inward::Plain(w, b)) => w.linear(kernels, x, b)?.relu(),
            (None, Inward::Gated { gate, up }) => {
                gate.linear(kernels, x, None)?.relu()? * up.linear(kernels, x, None)?
            }
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
