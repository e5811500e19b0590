//! Activations, and their products with a second input (gated feed-forward layers).

use std::marker::PhantomData;

use candle_core::{Result, Tensor};

use super::Kernels;
use super::compose::{sigmoid, wide};
use super::cpu::{Binary, Unary, by_kernel, edit_each, edit_with, map, map2};
#[cfg(target_arch = "x86_64")]
use super::cpu::{edit_each_piece, edit_piece};
#[cfg(feature = "cuda")]
use super::cuda::rows;
use super::real::Real;

/// A pointwise nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Phi(x)` with the normal distribution's own Phi: `gelu` of transformers and torch.
    GeluErf,
    /// `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`: `gelu_new` and `gelu_pytorch_tanh` of transformers.
    GeluTanh,
    /// `x sigmoid(1.702 x)`: `quick_gelu` of CLIP.
    QuickGelu,
    /// `x sigmoid(x)`, also called swish.
    Silu,
}

/// Runs an expression with `$c` standing for the curve of `$activation`.
macro_rules! with_curve {
    ($activation:expr, $c:ident => $body:expr) => {
        match $activation {
            Activation::GeluErf => {
                type $c = GeluErf;
                $body
            }
            Activation::GeluTanh => {
                type $c = GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                type $c = QuickGelu;
                $body
            }
            Activation::Silu => {
                type $c = Silu;
                $body
            }
        }
    };
}

impl Activation {
    /// The activation of every element of `x` (any shape).
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn apply(self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        by_kernel!(
            x,
            T => with_curve!(self, C => map::<T>(x, Value::<C>(PhantomData))),
            cuda k in kernels => rows::activate(k, self, x, rows::Mode::Value),
            self.composed(x)
        )
    }

    /// [`Self::apply`] in the memory of `x`, which must be contiguous and nobody else's.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub(crate) fn apply_in_place(self, kernels: &Kernels, x: Tensor) -> Result<Tensor> {
        by_kernel!(
            &x,
            T => {
                with_curve!(self, C => edit_each::<T>(&x, Value::<C>(PhantomData)))?;
                Ok(x)
            },
            self.apply(kernels, &x)
        )
    }

    /// [`Self::apply_gated`] in the memory of `x`, which must be contiguous and nobody else's.
    ///
    /// # Errors
    ///
    /// As [`Self::apply_gated`].
    pub(crate) fn gate_in_place(
        self,
        kernels: &Kernels,
        gate: &Tensor,
        x: Tensor,
    ) -> Result<Tensor> {
        by_kernel!(
            &x,
            T => {
                with_curve!(self, C => edit_with::<T>(&x, gate, TimesValue::<C>(PhantomData)))?;
                Ok(x)
            },
            self.apply_gated(kernels, gate, &x)
        )
    }

    /// Replaces numbers by the activation of each.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn edit(self, x: &mut [f32]) {
        with_curve!(self, C => edit_each_piece(&Value::<C>(PhantomData), x));
    }

    /// Multiplies numbers by the activation of the gate's.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn edit_gated(self, x: &mut [f32], gate: &[f32]) {
        with_curve!(self, C => edit_piece(&TimesValue::<C>(PhantomData), x, gate));
    }

    /// `apply(gate) * x`, for two tensors of one shape.
    ///
    /// # Errors
    ///
    /// If the shapes differ, and those of the backend.
    pub fn apply_gated(self, kernels: &Kernels, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
        by_kernel!(
            x,
            T => with_curve!(self, C => map2::<T>(x, gate, TimesValue::<C>(PhantomData))),
            cuda k in kernels => rows::activate(k, self, gate, rows::Mode::ValueTimes(x)),
            self.composed(gate)? * x
        )
    }

    /// The gradient towards `x`, of the gradient of `apply(x)`, which may be edited in place.
    pub fn backward(self, kernels: &Kernels, x: &Tensor, gradient: Tensor) -> Result<Tensor> {
        by_kernel!(
            x,
            T => {
                with_curve!(self, C => edit_with::<T>(&gradient, x, TimesSlope::<C>(PhantomData)))?;
                Ok(gradient)
            },
            cuda k in kernels => rows::activate(k, self, x, rows::Mode::SlopeTimes(&gradient)),
            self.composed_slope(x)? * gradient
        )
    }

    /// `apply` by tensor operations, in f32 at least.
    pub(super) fn composed(self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        // Widened once here: each step of a composed activation in bf16 would be rounded.
        let x = &wide(x)?;
        let y = match self {
            Self::GeluErf => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x * sigmoid(&(x * 1.702)?)?,
            Self::Silu => x.silu(),
        };
        y?.to_dtype(dtype)
    }

    pub(super) fn composed_slope(self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let x = &wide(x)?;
        let slope = match self {
            Self::GeluErf => {
                let phi = ((x * (0.5f64).sqrt())?.erf()?.affine(0.5, 0.5))?;
                let density = ((x.sqr()? * -0.5)?.exp()? * (0.5 / std::f64::consts::PI).sqrt())?;
                (phi + (x * density)?)?
            }
            // gelu = x g(2 u) with the logistic g and u = scale x (1 + cubic x^2): g' = g (1 - g).
            Self::GeluTanh => {
                let inner = ((x.sqr()? * GELU_CUBIC)? + 1.0)?;
                let gate = sigmoid(&((x * inner)? * (2.0 * GELU_SCALE))?)?;
                let rate = ((x.sqr()? * (3.0 * GELU_CUBIC))? + 1.0)?;
                let bend = (((x * rate)? * (2.0 * GELU_SCALE))? * (1.0 - &gate)?)?;
                (&gate * (bend + 1.0)?)?
            }
            Self::QuickGelu => sigmoid_slope(x, 1.702)?,
            Self::Silu => sigmoid_slope(x, 1.0)?,
        };
        slope.to_dtype(dtype)
    }
}

/// The slope of `x sigmoid(rate x)`.
fn sigmoid_slope(x: &Tensor, rate: f64) -> Result<Tensor> {
    let gate = sigmoid(&(x * rate)?)?;
    let bend = ((x * rate)? * (1.0 - &gate)?)?;
    &gate * (bend + 1.0)?
}

/// sqrt(2 / pi).
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;

/// An activation and its derivative at one point.
trait Curve: Sync {
    fn value<T: Real>(x: T) -> T;
    fn slope<T: Real>(x: T) -> T;
}

/// A curve's value.
struct Value<C>(PhantomData<C>);

impl<C: Curve> Unary for Value<C> {
    #[inline(always)]
    fn apply<T: Real>(&self, x: T) -> T {
        C::value(x)
    }
}

/// The first number times a curve's value at the second.
struct TimesValue<C>(PhantomData<C>);

impl<C: Curve> Binary for TimesValue<C> {
    #[inline(always)]
    fn apply<T: Real>(&self, x: T, gate: T) -> T {
        C::value(gate) * x
    }
}

/// The first number times a curve's slope at the second.
struct TimesSlope<C>(PhantomData<C>);

impl<C: Curve> Binary for TimesSlope<C> {
    #[inline(always)]
    fn apply<T: Real>(&self, gradient: T, x: T) -> T {
        gradient * C::slope(x)
    }
}

struct GeluErf;
struct GeluTanh;
struct QuickGelu;
struct Silu;

#[inline(always)]
fn logistic<T: Real>(x: T) -> T {
    T::one() / (T::one() + (T::zero() - x).exp())
}

impl Curve for GeluErf {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        let half = T::from_f64(0.5);
        half * x * (T::one() + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
    }
    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let half = T::from_f64(0.5);
        let phi = half * (T::one() + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
        let density = (T::zero() - half * x * x).exp() * T::from_f64(0.398_942_280_401_432_7);
        x.mul_add(density, phi)
    }
}

impl Curve for GeluTanh {
    // (1 + tanh(u)) / 2 is the logistic function of 2u, which keeps its digits where tanh is near -1.
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        let inner = (x * x).mul_add(T::from_f64(GELU_CUBIC), T::one());
        x * logistic(T::from_f64(2.0 * GELU_SCALE) * x * inner)
    }
    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let square = x * x;
        let inner = square.mul_add(T::from_f64(GELU_CUBIC), T::one());
        let rate = square.mul_add(T::from_f64(3.0 * GELU_CUBIC), T::one());
        let gate = logistic(T::from_f64(2.0 * GELU_SCALE) * x * inner);
        let bend = T::from_f64(2.0 * GELU_SCALE) * x * rate * (T::one() - gate);
        gate.mul_add(bend, gate)
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * logistic(T::from_f64(1.702) * x)
    }
    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let gate = logistic(T::from_f64(1.702) * x);
        gate.mul_add(T::from_f64(1.702) * x * (T::one() - gate), gate)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * logistic(x)
    }
    #[inline(always)]
    fn slope<T: Real>(x: T) -> T {
        let gate = logistic(x);
        gate.mul_add(x * (T::one() - gate), gate)
    }
}
