//! One encoder: found among files, loaded, run.

use candle_core::{DType, Tensor};

use super::spread::spread;
use super::{Error, LoadedNetwork, Network, Tokens};
use crate::digest::Digest;
use crate::monitor::{Stop, never};
use crate::nn::Packed;
use crate::nn::weights::{DigestMemo, Weights};

/// Canonical names and shapes.
pub type TensorList = Vec<(String, Vec<usize>)>;

/// What an encoder makes of a caption, in the type it computed in.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// The sequence, `[tokens, width]`, if the rules keep one.
    pub hidden: Option<Tensor>,
    /// The pooled vector, `[width]`, if the rules take one.
    pub pooled: Option<Tensor>,
}

impl Encoded {
    /// Each output there is, with the name that the store keeps it under.
    pub fn outputs(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let outputs = [("hidden", &self.hidden), ("pooled", &self.pooled)];
        outputs
            .into_iter()
            .filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)))
    }
}

/// Where an encoder's weights are between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In memory. (Embedding tables stay in the file: of them only some rows are needed.)
    Resident,
    /// In the file: each call reads one layer at a time, once, for all its captions. For an encoder larger
    /// than memory, called with many captions.
    Streamed,
}

impl Residency {
    /// The matrix of a linear layer, brought into the order of the processor's products where it stays for many.
    pub(super) fn matrix(self, w: &Tensor) -> candle_core::Result<Packed> {
        match self {
            Self::Resident => Packed::new(w),
            Self::Streamed => Packed::whole(w),
        }
    }
}

/// A text encoder, ready to run.
pub struct TextEncoder {
    network: Box<dyn LoadedNetwork>,
    dtype: DType,
    /// Whether groups of captions are encoded at once: not where weights are read for all captions of a call, nor on a GPU.
    spreads: bool,
    notes: Vec<String>,
}

impl TextEncoder {
    /// Finds the encoder among `weights` and loads what its rules need. It computes in the weights' type (for bf16 on a CPU:
    /// its matrix products, and all else in f32), on their device. Results are in that type.
    ///
    /// # Errors
    /// If architecture and rules do not fit each other or the files, or a tensor cannot be read.
    pub fn load(
        network: &dyn Network,
        weights: &Weights,
        residency: Residency,
    ) -> Result<Self, Error> {
        let located = network.locate(weights)?;
        Ok(Self {
            network: network.load(&located, residency)?,
            dtype: weights.dtype(),
            spreads: residency == Residency::Resident && weights.device().is_cpu(),
            notes: located.notes,
        })
    }

    /// What a person should know about the files that were loaded; usually nothing.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Encodes captions. The result does not depend on which captions are encoded together.
    ///
    /// # Errors
    /// If a caption's tokens do not fit the encoder, or an output is not finite.
    pub fn encode(&self, captions: &[Tokens]) -> Result<Vec<Encoded>, Error> {
        self.encode_until(captions, never)
    }

    /// As [`Self::encode`], of an encoder whose weights are in the file: `stop` is asked between any two layers of some captions, and
    /// what was computed until then is dropped.
    ///
    /// # Errors
    /// As [`Self::encode`]; [`Error::Stopped`] where `stop` says so.
    pub fn encode_until(&self, captions: &[Tokens], stop: Stop) -> Result<Vec<Encoded>, Error> {
        for (caption, tokens) in captions.iter().enumerate() {
            let len = tokens.ids.len();
            // A softmax over nothing: transformers' ways of attention give NaN, zeros or the mean of all rows.
            if tokens.count == 0 && len > 0 {
                return Err(Error::NoToken);
            }
            if tokens.count == 0 || tokens.count > len {
                return Err(Error::Count {
                    caption,
                    count: tokens.count,
                    tokens: len,
                });
            }
        }
        let mut encoded = if self.spreads {
            let rows = |tokens: &Tokens| self.network.rows(tokens);
            spread(captions, rows, |some| self.network.encode(some, stop))?
        } else {
            self.network.encode(captions, stop)?
        };
        for (caption, encoded) in encoded.iter_mut().enumerate() {
            for output in [&mut encoded.hidden, &mut encoded.pooled] {
                *output = output.take().map(|t| t.to_dtype(self.dtype)).transpose()?;
            }
            // Refused here, as a stored NaN would spoil every training that reads the entry.
            self.check_finite(caption, encoded)?;
        }
        Ok(encoded)
    }

    fn check_finite(&self, caption: usize, encoded: &Encoded) -> Result<(), Error> {
        for (output, tensor) in encoded.outputs() {
            // 0 x is 0 where x is finite and NaN where it is not, in any type, on any device.
            let sum = tensor.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F32)?;
            if sum.to_scalar::<f32>()? != 0.0 {
                return Err(Error::NonFinite {
                    caption,
                    output,
                    dtype: self.dtype,
                });
            }
        }
        Ok(())
    }
}

/// An encoder found in files, checked by their headers and not loaded.
pub struct LocatedEncoder {
    /// Under canonical names.
    pub weights: Weights,
    /// Canonical name and shape of every tensor that the rules need.
    pub tensors: TensorList,
    /// Those of them that stay in the file, as only some rows are needed: embedding tables.
    pub tables: &'static [&'static str],
    /// What a person should know about the files; usually nothing.
    pub notes: Vec<String>,
}

impl LocatedEncoder {
    /// How many numbers a loaded encoder keeps in memory.
    pub fn resident_parameters(&self) -> u64 {
        let is_table = |name: &String| self.tables.contains(&name.as_str());
        let resident = self.tensors.iter().filter(|(name, _)| !is_table(name));
        resident
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum()
    }
}

/// The digest of the weights that a network uses of those among `weights`: the same for the same encoder in another
/// file, shard layout or naming. With a `memo`, a file that has not changed is not read again.
///
/// # Errors
/// As [`Network::locate`].
pub fn weights_digest(
    network: &dyn Network,
    weights: &Weights,
    memo: Option<&mut DigestMemo>,
) -> Result<Digest, Error> {
    let found = network.locate(weights)?;
    Ok(match memo {
        Some(memo) => memo.digest(&found.weights, &found.tensors)?,
        None => found.weights.digest(&found.tensors)?,
    })
}
