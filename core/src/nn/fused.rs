//! Linear layers of one input, such as those to queries, keys and values, computed together: what their adapters read of the input is
//! one product, and so are the gradients of the adapters' first factors and what the adapters add to the input's gradient. On a GPU
//! the frozen layers are one product too.
//!
//! It refuses dropout, by which each adapter sees an input of its own, and what no kernels of ours serve.

use candle_core::{D, Result, Tensor, bail};

use super::cpu::{self, by_kernel};
#[cfg(feature = "cuda")]
use super::cuda::fused as cuda;
use super::fp8::{Float8, Rounded};
use super::linear::{LowRank, WantedGradients, add_product, backward, check, linear, new_product};
use super::{Frozen, Kernels};

/// A frozen linear layer: its matrix `[out, in]` and its bias `[out]`.
#[derive(Clone)]
pub struct Layer {
    /// `[out, in]`
    pub w: Frozen,
    /// `[out]`
    pub b: Option<Tensor>,
}

/// Frozen linear layers of one input. Cheap to clone.
#[derive(Clone)]
pub struct FusedLinears {
    layers: Vec<Layer>,
    #[cfg(feature = "cuda")]
    whole: Option<Whole>,
}

/// All layers in one piece, of which each is a view.
#[cfg(feature = "cuda")]
#[derive(Clone)]
struct Whole {
    /// `[layers, out, in]`
    w: Tensor,
    /// `[layers, out]`
    b: Option<Tensor>,
}

/// The adapters of such layers, without dropout. Their first factors lie in one piece, each a view's rows.
pub struct StackedAdapters {
    /// Of each layer, if it has one.
    parts: Vec<Option<Part>>,
    /// `[sum of the ranks, in]`
    a: Tensor,
}

/// What an adapter has beside its rows of the stack.
pub(super) struct Part {
    /// `[out, r]`
    pub(super) b: Tensor,
    pub(super) scale: f64,
    /// The first of its rows in the stack.
    pub(super) start: usize,
    pub(super) rank: usize,
}

impl Part {
    /// Its columns of `[.., sum of the ranks]`.
    fn columns(&self, all: &Tensor) -> Result<Tensor> {
        all.narrow(D::Minus1, self.start, self.rank)
    }
}

/// What the backward pass reads of the adapters.
#[derive(Clone, Copy)]
pub struct SeenByAdapters<'a> {
    /// Their numbers.
    pub adapters: &'a StackedAdapters,
    /// The input, and what [`FusedLinears::forward`] gave of it: read for the adapters' own gradients, if those are wanted.
    pub kept: Option<(&'a Tensor, &'a Tensor)>,
}

/// The gradients that [`FusedLinears::backward`] finds.
pub struct FusedGradients {
    /// Towards the input.
    pub x: Option<Tensor>,
    /// Towards each layer's adapter, a and b.
    pub adapters: Vec<Option<[Tensor; 2]>>,
}

impl StackedAdapters {
    /// Those of `each` layer, none if no layer has one. `stacked` are their first factors `[sum of the ranks, in]`, if they lie in one
    /// piece already; they are copied otherwise.
    ///
    /// # Errors
    ///
    /// If there is dropout, or the inputs differ.
    pub fn new(each: &[Option<LowRank>], stacked: Option<Tensor>) -> Result<Option<Self>> {
        let (mut parts, mut start, mut firsts) = (Vec::with_capacity(each.len()), 0, Vec::new());
        for adapter in each {
            let Some(LowRank { a, b, scale, mask }) = adapter else {
                parts.push(None);
                continue;
            };
            if mask.is_some() {
                bail!("fused adapters take no dropout");
            }
            let rank = a.dim(0)?;
            if b.dims2()?.1 != rank {
                bail!("an adapter of {:?} and {:?}", a.dims(), b.dims());
            }
            parts.push(Some(Part {
                b: b.clone(),
                scale: *scale,
                start,
                rank,
            }));
            firsts.push(a.clone());
            start += rank;
        }
        let Some(first) = firsts.first() else {
            return Ok(None);
        };
        let expected = [start, first.dim(1)?];
        let a = match stacked {
            Some(stacked) => stacked,
            None => cpu::cat(&firsts, 0)?,
        };
        if a.dims() != expected {
            bail!("first factors of {:?} where {expected:?} fit", a.dims());
        }
        Ok(Some(Self { parts, a }))
    }

    /// The sum of the ranks.
    fn width(&self) -> Result<usize> {
        self.a.dim(0)
    }
}

impl FusedLinears {
    /// `layers` of as many inputs. Those that lie whole on a GPU, and are of one shape, are laid behind one another there.
    ///
    /// # Errors
    ///
    /// If their inputs differ, and those of the backend.
    pub fn new(layers: Vec<Layer>) -> Result<Self> {
        let mut inputs = Vec::with_capacity(layers.len());
        for layer in &layers {
            inputs.push(layer.w.dims2()?.1);
        }
        if inputs.windows(2).any(|pair| pair[0] != pair[1]) {
            bail!("linear layers of {inputs:?} inputs have no one input");
        }
        #[cfg(feature = "cuda")]
        if let Some(whole) = Whole::of(&layers)? {
            return Ok(Self {
                layers: whole.layers()?,
                whole: Some(whole),
            });
        }
        Ok(Self {
            layers,
            #[cfg(feature = "cuda")]
            whole: None,
        })
    }

    /// Whether there are kernels for an input: fused products of tensor operations would copy more than they save.
    pub fn serve(kernels: &Kernels, x: &Tensor) -> bool {
        by_kernel!(x, _T => true, cuda _k in kernels => true, false)
    }

    /// Each of them.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// `x w^T + b` of each layer, plus its adapter's update, for `x` `[.., in]`; and `x a^T` of all adapters, `[.., sum of the ranks]`, which
    /// the backward pass needs. On a CPU the results are those of [`linear::adapted`](super::linear::adapted), bit for bit.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn forward(
        &self,
        kernels: &Kernels,
        x: &Tensor,
        adapters: Option<&StackedAdapters>,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let ys = self.products(kernels, x)?;
        let Some(adapters) = adapters else {
            return Ok((ys, None));
        };
        if adapters.parts.len() != ys.len() {
            bail!("{} adapters of {} layers", adapters.parts.len(), ys.len());
        }
        let down = linear(kernels, x, &adapters.a.to_dtype(x.dtype())?, None)?;
        let mut updated = Vec::with_capacity(ys.len());
        for (y, part) in ys.into_iter().zip(&adapters.parts) {
            updated.push(match part {
                Some(part) => add_update(kernels, y, &down, part)?,
                None => y,
            });
        }
        Ok((updated, Some(down)))
    }

    fn products(&self, kernels: &Kernels, x: &Tensor) -> Result<Vec<Tensor>> {
        #[cfg(feature = "cuda")]
        if let (Some(k), Some(Whole { w, b })) = (kernels.serving(x), &self.whole) {
            check(x, self.layers[0].w.dims2()?.into(), None)?;
            if let Some(ys) = cuda::products(k, x, w, b.as_ref())? {
                return Ok(ys);
            }
        }
        let mut ys = Vec::with_capacity(self.layers.len());
        let mut in_fp8 = None;
        for Layer { w, b } in &self.layers {
            check(x, w.dims2()?.into(), b.as_ref())?;
            // One whole matrix at a time: it may be read from a file for this product alone.
            let w = w.matrix()?;
            ys.push(match w.in_fp8() {
                // Rounded once for all of them.
                Some(w) => {
                    let rounded = match in_fp8.take() {
                        Some(rounded) => rounded,
                        None => Rounded::new(kernels, x, Float8::E4M3)?,
                    };
                    w.linear_of(kernels, x, in_fp8.insert(rounded), b.as_ref())?
                }
                None => w.linear(kernels, x, b.as_ref())?,
            });
        }
        Ok(ys)
    }

    /// The gradients, of those of the layers' results (none where the loss does not depend on one). That towards x is computed if `towards_x`
    /// and added to `earlier`, which is edited; those towards the adapters if what they need was kept.
    ///
    /// With g_i the gradient of a layer's result, h = x a^T and t the columns `scale g_i b_i`:
    /// `dx = sum of g_i w_i + t a`, `da = t^T x`, `db_i = scale g_i^T h_i`.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, and those of the backend.
    pub fn backward(
        &self,
        kernels: &Kernels,
        gradients: Vec<Option<Tensor>>,
        adapters: Option<SeenByAdapters<'_>>,
        towards_x: bool,
        earlier: Option<Tensor>,
    ) -> Result<FusedGradients> {
        let count = self.layers.len();
        let adapted = adapters.map_or(count, |seen| seen.adapters.parts.len());
        if [gradients.len(), adapted] != [count; 2] {
            let found = gradients.len();
            bail!("{found} gradients and {adapted} adapters of {count} layers");
        }
        let Some(any) = gradients.iter().flatten().next() else {
            bail!("no gradient of any layer");
        };
        let (rows, _) = cpu::rows_of(any)?;
        let t = match &adapters {
            Some(SeenByAdapters { adapters, .. }) => {
                let extents = (rows, adapters.width()?);
                Some(Tensor::zeros(extents, any.dtype(), any.device())?)
            }
            None => None,
        };
        let frozen = WantedGradients {
            x: towards_x,
            a: false,
            b: false,
        };
        let mut second_factors: Vec<Option<Tensor>> = gradients.iter().map(|_| None).collect();
        let mut dx = earlier;
        // From the last to the first, as a tape would go over them one by one; each is dropped when it was read.
        for (i, gradient) in gradients.into_iter().enumerate().rev() {
            let Some(gradient) = gradient else { continue };
            if towards_x {
                let w = self.layers[i].w.matrix()?;
                [dx, ..] = backward(kernels, &gradient, &w, None, frozen, dx)?;
            }
            if let (Some(t), Some(SeenByAdapters { adapters, kept })) = (&t, &adapters)
                && let Some(part) = &adapters.parts[i]
            {
                write_columns(kernels, t, &gradient, part)?;
                if let Some((_, down)) = kept {
                    second_factors[i] = Some(second_factor(kernels, &gradient, down, part)?);
                }
            }
        }
        let mut found = FusedGradients {
            x: dx,
            adapters: second_factors.iter().map(|_| None).collect(),
        };
        let (Some(t), Some(SeenByAdapters { adapters, kept })) = (t, adapters) else {
            return Ok(found);
        };
        if let Some((x, _)) = kept {
            let da = transposed_product(kernels, &t, x)?;
            for (i, db) in second_factors.into_iter().enumerate() {
                if let (Some(db), Some(part)) = (db, &adapters.parts[i]) {
                    found.adapters[i] = Some([da.narrow(0, part.start, part.rank)?, db]);
                }
            }
        }
        if let Some(dx) = found.x {
            found.x = Some(add_rows(kernels, dx, &t, &adapters.a)?);
        }
        Ok(found)
    }
}

#[cfg(feature = "cuda")]
impl Whole {
    /// Each of them.
    fn layers(&self) -> Result<Vec<Layer>> {
        let layer = |i: usize| {
            Ok(Layer {
                w: self.w.get(i)?.into(),
                b: self.b.as_ref().map(|b| b.get(i)).transpose()?,
            })
        };
        (0..self.w.dim(0)?).map(layer).collect()
    }

    /// None where products would not read it.
    fn of(layers: &[Layer]) -> Result<Option<Self>> {
        let each: Option<Vec<Tensor>> = layers.iter().map(|layer| layer.w.whole()).collect();
        let (Some(ws), [_, _, ..]) = (each, layers) else {
            return Ok(None);
        };
        let biases: Vec<Tensor> = layers.iter().filter_map(|layer| layer.b.clone()).collect();
        let alike = |tensors: &[Tensor]| {
            let same = |t: &Tensor| t.dims() == tensors[0].dims() && t.dtype() == ws[0].dtype();
            tensors.iter().all(same)
        };
        let with_bias = biases.len() == layers.len();
        let fits = alike(&ws) && (biases.is_empty() || (with_bias && alike(&biases)));
        if ws[0].device().is_cpu() || !fits {
            return Ok(None);
        }
        Ok(Some(Self {
            w: Tensor::stack(&ws, 0)?,
            b: with_bias.then(|| Tensor::stack(&biases, 0)).transpose()?,
        }))
    }
}

/// What is computed by tensor operations alone is computed layer by layer, without this module.
fn not_served<T>(tensor: &Tensor) -> Result<T> {
    let (dtype, device) = (tensor.dtype(), tensor.device());
    bail!("no kernels for fused linear layers of {dtype:?} on {device:?}")
}

/// `y + scale down b^T`, in place, with an adapter's columns of `down`.
fn add_update(kernels: &Kernels, y: Tensor, down: &Tensor, part: &Part) -> Result<Tensor> {
    let (_, out) = cpu::rows_of(&y)?;
    if part.b.dims() != [out, part.rank] {
        bail!("an adapter of {:?} on {out} outputs", part.b.dims());
    }
    by_kernel!(
        &y,
        T => {
            let own = part.columns(down)?;
            add_product::<T>(&y, part.scale, (&own, false), (&part.b, true))?;
            Ok(y)
        },
        cuda k in kernels => {
            cuda::add_update(k, &y, down, part)?;
            Ok(y)
        },
        not_served(&y)
    )
}

/// Writes `scale g b` to an adapter's columns of `t` `[rows, sum of the ranks]`.
fn write_columns(kernels: &Kernels, t: &Tensor, gradient: &Tensor, part: &Part) -> Result<()> {
    let (rows, out) = cpu::rows_of(gradient)?;
    if t.dim(0)? != rows || part.b.dims() != [out, part.rank] {
        bail!("{:?} of an adapter's {:?}", gradient.dims(), part.b.dims());
    }
    by_kernel!(
        t,
        T => {
            let (shape, g, b) = ([rows, part.rank], (gradient, false), (&part.b, false));
            t.slice_set(&new_product::<T>(&shape, part.scale, g, b)?, 1, part.start)
        },
        cuda k in kernels => cuda::write_columns(k, t, gradient, part),
        not_served(t)
    )
}

/// `t^T x`, of `t` `[rows, width]` and `x` `[.., in]`; in f32 where they are bf16, as adapters are trained.
fn transposed_product(kernels: &Kernels, t: &Tensor, x: &Tensor) -> Result<Tensor> {
    let shape = [t.dim(1)?, x.dim(D::Minus1)?];
    by_kernel!(
        t,
        T => new_product::<T>(&shape, 1.0, (t, true), (x, false)),
        cuda k in kernels => cuda::transposed_product(k, t, x),
        not_served(t)
    )
}

/// `scale g^T down` with an adapter's columns of `down`: `[out, r]`, in f32 as `transposed_product`.
fn second_factor(
    kernels: &Kernels,
    gradient: &Tensor,
    down: &Tensor,
    part: &Part,
) -> Result<Tensor> {
    by_kernel!(
        gradient,
        T => {
            let (g, own) = ((gradient, true), (&part.columns(down)?, false));
            new_product::<T>(part.b.dims(), part.scale, g, own)
        },
        cuda k in kernels => cuda::second_factor(k, gradient, down, part),
        not_served(gradient)
    )
}

/// `dx + t a`, in place.
fn add_rows(kernels: &Kernels, dx: Tensor, t: &Tensor, a: &Tensor) -> Result<Tensor> {
    by_kernel!(
        &dx,
        T => {
            add_product::<T>(&dx, 1.0, (t, false), (a, false))?;
            Ok(dx)
        },
        cuda k in kernels => {
            cuda::add_rows(k, &dx, t, a)?;
            Ok(dx)
        },
        not_served(&dx)
    )
}
