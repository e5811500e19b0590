//! One tensor as stored: where it is, whether it fits, and its bytes as the canonical tensor has them.

use candle_core::{DType, Device, Tensor};

use super::content::Content;
use super::element::ElementType;
use super::file::{TensorEntry, WeightsFile};
use super::{Error, Stored, Weights, cast, lock};

/// A stored tensor that fits, and the bytes of the canonical tensor in it.
pub(super) struct TensorView<'a> {
    file: &'a WeightsFile,
    name: String,
    pub(super) dtype: ElementType,
    pub(super) scale: Option<f32>,
    /// Canonical: after taking the part, transposing and swapping.
    pub(super) content: Content<'a>,
}

impl Weights {
    /// The tensor, in the weights' type and on their device.
    ///
    /// # Errors
    /// If it is missing, misshapen, not of a float type, or holds a NaN or an infinity.
    pub fn get(&self, shape: &[usize], name: &str) -> Result<Tensor, Error> {
        let view = self.view(shape, name)?;
        // Tables that networks take whole: learned positions, and T5's biases by distance.
        let is_table = name.contains("embed") || name.contains("attention_bias");
        self.tensor(&view, &view.content, shape, is_table)
    }

    /// Rows of a matrix of `shape` (rows, columns), as `[rows.len(), columns]`, reading nothing else of it: an embedding's lookup.
    ///
    /// # Errors
    /// As [`Self::get`], or if a row does not exist.
    pub fn rows(&self, shape: (usize, usize), name: &str, rows: &[u32]) -> Result<Tensor, Error> {
        let view = self.view(&[shape.0, shape.1], name)?;
        let row_bytes = view.dtype.bytes(shape.1).ok_or_else(|| Error::Blocks {
            path: view.file.path().to_owned(),
            tensor: view.name.clone(),
            dtype: view.dtype,
            shape: vec![shape.0, shape.1],
            needed: "a row",
        })?;
        let mut bytes = Vec::with_capacity(rows.len() * row_bytes);
        for &row in rows {
            // Row by row: a T5's embedding has hundreds of MB, a caption needs a few rows.
            let start = row as usize * row_bytes;
            if row as usize >= shape.0 {
                return Err(Error::Row {
                    path: view.file.path().to_owned(),
                    tensor: view.name,
                    row,
                    rows: shape.0,
                });
            }
            let found = |found: &[u8]| bytes.extend_from_slice(found);
            view.content.with(start, row_bytes, found)?;
        }
        let shape = [rows.len(), shape.1];
        self.tensor(&view, &Content::InMemory(bytes), &shape, true)
    }

    /// The entry of a stored tensor, if its shape and element type fit the canonical `shape`.
    pub(super) fn checked(
        &self,
        stored: &Stored,
        shape: &[usize],
    ) -> Result<(&WeightsFile, &TensorEntry), Error> {
        let (file, entry) = self.find(&stored.name)?;
        let expected = stored.shape(shape);
        // A 1 x 1 convolution serves as the matrix of a linear layer (the attention of older VAE files).
        let fits = entry.shape == expected
            || expected.len() == 2 && entry.shape.strip_prefix(&*expected) == Some(&[1, 1]);
        if !fits {
            return Err(Error::Shape {
                path: file.path().to_owned(),
                tensor: stored.name.clone(),
                expected,
                found: entry.shape.clone(),
                dtype: entry.dtype,
            });
        }
        if !entry.dtype.is_supported() {
            return Err(Error::ElementType {
                path: file.path().to_owned(),
                tensor: stored.name.clone(),
                found: entry.dtype,
            });
        }
        Ok((file, entry))
    }

    /// The canonical tensor's bytes, and a mark that it is used.
    pub(super) fn view(&self, shape: &[usize], name: &str) -> Result<TensorView<'_>, Error> {
        let stored = self.stored(name);
        let (file, entry) = self.checked(&stored, shape)?;
        let not_whole_blocks = |needed| Error::Blocks {
            path: file.path().to_owned(),
            tensor: stored.name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            needed,
        };
        let elements: usize = shape.iter().product();
        let mut content = file.content(entry);
        if let Some(part) = stored.part {
            let piece = entry
                .dtype
                .bytes(elements / part.count)
                .filter(|len| len * part.pieces == content.len());
            let piece = piece.ok_or_else(|| not_whole_blocks("a part"))?;
            let start = part.first * piece;
            content = content.part(start, part.count * piece);
        }
        if let (true, &[rows, columns]) = (stored.transposed, shape) {
            // Blocks lie along a row, so a transposed matrix has none of them.
            let (1, element) = entry.dtype.block() else {
                return Err(not_whole_blocks("the transpose"));
            };
            // `shape` is the canonical one; the stored bytes have `columns` rows.
            let bytes = content.into_bytes()?;
            content = Content::InMemory(cast::transpose(&bytes, columns, rows, element));
        }
        if stored.swapped {
            let half = entry
                .dtype
                .bytes(elements / 2)
                .filter(|len| len * 2 == content.len());
            let half = half.ok_or_else(|| not_whole_blocks("a half"))?;
            let mut bytes = content.into_bytes()?;
            bytes.rotate_left(half);
            content = Content::InMemory(bytes);
        }
        let mut used = lock(&self.shared.used);
        used.insert(stored.name.clone());
        Ok(TensorView {
            file,
            name: stored.name.clone(),
            dtype: entry.dtype,
            scale: entry.scale,
            content,
        })
    }

    fn tensor(
        &self,
        view: &TensorView<'_>,
        content: &Content<'_>,
        shape: &[usize],
        is_table: bool,
    ) -> Result<Tensor, Error> {
        let from = cast::StoredNumbers {
            content,
            dtype: view.dtype,
            scale: view.scale,
        };
        let made = match self.rounding {
            None => cast::tensor(from, shape, self.dtype, &self.device),
            // From the type that the network computes in, as programs round what they have loaded: a second rounding shifts many.
            Some(rounding) => {
                cast::tensor(from, shape, self.dtype, &Device::Cpu).and_then(|whole| {
                    let rounded = rounding.of(&whole.to_dtype(DType::F32)?, is_table)?;
                    Ok(rounded.to_dtype(self.dtype)?.to_device(&self.device)?)
                })
            }
        };
        made.map_err(|failure| match failure {
            cast::CastError::NonFinite { value, index } => Error::NonFinite {
                path: view.file.path().to_owned(),
                tensor: view.name.clone(),
                value,
                index,
            },
            cast::CastError::Unread(error) => error,
            cast::CastError::Device(error) => Error::Device {
                path: view.file.path().to_owned(),
                tensor: view.name.clone(),
                error: Box::new(error),
            },
        })
    }
}
