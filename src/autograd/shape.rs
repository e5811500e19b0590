//! Cutting, joining and reshaping on the tape.

use candle_core::{Result, Tensor, bail};

use super::gradient::Gradient;
use super::tape::{Tape, Value};
use crate::nn::cat;

impl Tape {
    /// The same elements in another shape.
    ///
    /// # Errors
    ///
    /// If the number of elements differs, and those of the backend.
    pub fn reshape(&self, x: &Value, shape: &[usize]) -> Result<Value> {
        let y = self.kernels().contiguous(x.tensor())?.reshape(shape)?;
        let (to, dims) = (x.id(), x.dims().to_vec());
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            let gradient = gradient.reshape(slots.kernels(), &dims)?;
            slots.add(to, gradient)
        }))
    }

    /// The dimensions in another order: dimension `order[i]` becomes dimension i.
    ///
    /// # Errors
    ///
    /// If `order` does not name each dimension once, and those of the backend.
    pub fn permute(&self, x: &Value, order: &[usize]) -> Result<Value> {
        // The reverse order, for the way back.
        let mut back = vec![usize::MAX; order.len()];
        for (i, &d) in order.iter().enumerate() {
            match back.get_mut(d) {
                Some(place) if *place == usize::MAX => *place = i,
                _ => bail!(
                    "{order:?} is not an order of the dimensions of {:?}",
                    x.dims()
                ),
            }
        }
        let y = self.kernels().contiguous(&x.tensor().permute(order)?)?;
        let to = x.id();
        Ok(self.record_one(&[x], y, move |slots, gradient| {
            // Not fresh: where only dimensions of 1 moved, the copy is none.
            let turned = gradient.tensor().permute(back)?;
            let turned = slots.kernels().contiguous(&turned)?;
            slots.add(to, Gradient::shared(turned))
        }))
    }

    /// `length` elements of dimension `dim`, from `start` on.
    ///
    /// # Errors
    ///
    /// If they are not there, and those of the backend.
    pub fn narrow(&self, x: &Value, dim: usize, start: usize, length: usize) -> Result<Value> {
        let Some(rest) = x
            .dims()
            .get(dim)
            .and_then(|&all| all.checked_sub(start + length))
        else {
            bail!("{start} + {length} of dimension {dim} of {:?}", x.dims());
        };
        // As one part of a split, whose way back fills the others with zeros.
        let parts: Vec<_> = [start, length, rest]
            .into_iter()
            .filter(|&part| part > 0)
            .collect();
        let mut parts = self.split(x, dim, &parts)?;
        Ok(parts.swap_remove(usize::from(start > 0)))
    }

    /// `x` cut along dimension `dim` into parts of these lengths, which add up to it.
    ///
    /// # Errors
    ///
    /// If they do not, and those of the backend.
    pub fn split(&self, x: &Value, dim: usize, lengths: &[usize]) -> Result<Vec<Value>> {
        if x.dims().get(dim) != Some(&lengths.iter().sum()) {
            bail!("dimension {dim} of {:?} cut into {lengths:?}", x.dims());
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(lengths.len());
        for &length in lengths {
            parts.push(x.tensor().narrow(dim, start, length)?);
            start += length;
        }
        let to = x.id();
        let shapes: Vec<_> = parts.iter().map(|part| part.shape().clone()).collect();
        let (dtype, device) = (x.tensor().dtype(), x.tensor().device().clone());
        Ok(self.record(&[x], parts, move |slots, gradients| {
            let dense = |(gradient, shape): (Option<Gradient>, _)| match gradient {
                Some(gradient) => Ok(gradient.tensor().clone()),
                None => Tensor::zeros(shape, dtype, &device),
            };
            let parts = gradients
                .into_iter()
                .zip(shapes)
                .map(dense)
                .collect::<Result<Vec<_>>>()?;
            // Of one part, `cat` is that part itself.
            let joined = cat(&parts, dim)?;
            slots.add(
                to,
                if parts.len() == 1 {
                    Gradient::shared(joined)
                } else {
                    Gradient::fresh(joined)
                },
            )
        }))
    }

    /// Values behind one another along dimension `dim`; they agree in all others.
    ///
    /// # Errors
    ///
    /// If they do not, and those of the backend.
    pub fn cat(&self, parts: &[&Value], dim: usize) -> Result<Value> {
        let tensors: Vec<_> = parts.iter().map(|part| part.tensor().clone()).collect();
        let y = cat(&tensors, dim)?;
        let targets: Vec<_> = parts
            .iter()
            .map(|part| (part.id(), part.dims()[dim]))
            .collect();
        Ok(self.record_one(parts, y, move |slots, gradient| {
            let mut start = 0;
            for (to, length) in targets {
                if to.is_some() {
                    // A view of the whole: not to be edited.
                    let part = gradient.tensor().narrow(dim, start, length)?;
                    slots.add(to, Gradient::shared(part))?;
                }
                start += length;
            }
            Ok(())
        }))
    }
}
