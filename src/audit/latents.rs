//! Latents of a cache against the pictures that they should be of: whether they are the VAE's own or scaled as the denoiser takes them,
//! the mean of the VAE's distribution or a sample of it, mirrored, or of another picture.
//!
//! A sample is told from the mean by its distance from the mean in standard deviations, which for the thousands of numbers of a picture
//! is 1 to within a few hundredths.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use super::Error;
use super::pair::{Known, Paired};
use crate::base_model::BaseModel;
use crate::dataset::{self, Item, PictureFile};
use crate::encode::{self, EncodeOptions, pixels};
use crate::foreign::cache::{LeftOut, Role};
use crate::monitor::Monitor;
use crate::recipe::latents::{LatentStatistics, Size, View};
use crate::shown;
use crate::vae;

/// How latents were scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// As the VAE gives them.
    OfVae,
    /// As the denoiser takes them: shifted and scaled by the model's statistics.
    OfDenoiser,
    /// Scaled without the shift that the model has.
    WithoutShift,
}

/// Which latents of the VAE's distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Its mean.
    Mean,
    /// A sample.
    Sample,
    /// Too far for either, and of the picture all the same: it was resized otherwise than plumb does.
    Near,
}

/// What the latents of a cache are.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LatentsFinding {
    /// Tensors that were compared.
    pub compared: usize,
    /// How they were scaled, each with the number of tensors.
    pub scaling: Vec<(Scaling, usize)>,
    /// Which latents they are, each with the number of tensors.
    pub moment: Vec<(Moment, usize)>,
    /// Tensors that are of the mirrored picture.
    pub mirrored: usize,
    /// The largest distance from the mean, in standard deviations (root of the mean square), of those that are of their picture.
    pub deviations: f64,
    /// Files whose latents are not of the picture that their name says, or of another crop of it.
    pub others: Vec<PathBuf>,
    /// Files whose latents have another size than the Experiment's bucket for the picture.
    pub other_sizes: Vec<OtherSize>,
}

/// Latents of another size than the Experiment has.
#[derive(Clone, Debug, Serialize)]
pub struct OtherSize {
    /// The file.
    pub path: PathBuf,
    /// What the latents are of, in px.
    pub cached: Size,
    /// The Experiment's bucket.
    pub expected: Size,
}

/// Above this correlation with the mean, channel by channel, latents are of the picture.
const SAME_PICTURE: f64 = 0.95;

/// Compares a sample of the latents.
pub(super) fn look(
    base: &BaseModel,
    items: &[Item],
    known: &Known,
    sample: &[Paired<'_>],
    options: &EncodeOptions,
    unreadable: &mut Vec<LeftOut>,
    monitor: &dyn Monitor,
) -> Result<Option<LatentsFinding>, Error> {
    if sample.is_empty() {
        return Ok(None);
    }
    let encoder = base.vae.load_encoder(&options.device, &options.kernels)?;
    let mut finding = LatentsFinding::default();
    monitor.start("latents", Some(sample.len() as u64));
    for paired in sample {
        let picture = known.captions[paired.caption].picture.as_ref();
        let item = items.iter().find(|item| Some(&item.picture) == picture);
        if let Some(item) = item {
            let looked = Looker {
                base,
                encoder: &encoder,
                item,
            };
            if let Err(why) = looked.file(paired, &mut finding)? {
                let path = paired.file.path.clone();
                monitor.problem(&format!("{}: {why}", shown::path(&path)));
                unreadable.push(LeftOut { path, why });
            }
        }
        monitor.advance(1);
    }
    monitor.finish();
    Ok((finding.compared > 0).then_some(finding))
}

/// One picture.
struct Looker<'a> {
    base: &'a BaseModel,
    encoder: &'a vae::Encoder,
    item: &'a Item,
}

/// How latents compare with a view of the picture.
#[derive(Clone, Copy)]
struct Fit {
    scaling: Scaling,
    /// In standard deviations.
    deviations: f64,
    correlation: f64,
    /// The deviation of `deviations` where the latents are a sample.
    spread: f64,
}

impl Looker<'_> {
    /// Compares a file's tensors; the inner error is about the file.
    fn file(
        &self,
        paired: &Paired<'_>,
        finding: &mut LatentsFinding,
    ) -> Result<Result<(), String>, Error> {
        let entry = match paired.file.read() {
            Ok(entry) => entry,
            Err(crate::foreign::cache::Error::Unreadable { why, .. }) => return Ok(Err(why)),
            Err(other) => return Err(other.into()),
        };
        if let [(tensor, count), ..] = entry.not_finite().as_slice() {
            let name = shown::text(tensor);
            return Ok(Err(format!(
                "tensor `{name}` has {count} numbers that are infinite or not a number"
            )));
        }
        let path = &paired.file.path;
        for tensor in &entry.tensors {
            if !matches!(tensor.role, Role::Latents(_)) {
                continue;
            }
            let shape: Vec<usize> = tensor
                .array
                .shape
                .iter()
                .copied()
                .filter(|n| *n != 1)
                .collect();
            let channels = self.base.latent_geometry().channels;
            let [c, h, w] = shape[..] else {
                return Ok(Err(format!(
                    "tensor `{}`: expected latents of shape [{channels}, height, width], found {:?}",
                    shown::text(&tensor.name),
                    tensor.array.shape
                )));
            };
            if c != channels {
                return Ok(Err(format!(
                    "tensor `{}` has {c} channels, the base model's VAE gives {channels}: it was made for another base model",
                    shown::text(&tensor.name)
                )));
            }
            let latents = Tensor::from_vec(tensor.array.values.clone(), (c, h, w), &Device::Cpu)?;
            self.tensor(path, &latents, (h, w), finding)?;
        }
        Ok(Ok(()))
    }

    fn tensor(
        &self,
        path: &std::path::Path,
        latents: &Tensor,
        (h, w): (usize, usize),
        finding: &mut LatentsFinding,
    ) -> Result<(), Error> {
        let factors = self.base.latent_geometry().factors;
        let size = Size {
            width: u32::try_from(w * factors.width).unwrap_or(u32::MAX),
            height: u32::try_from(h * factors.height).unwrap_or(u32::MAX),
        };
        let expected = self.item.bucket();
        if size != expected {
            finding.other_sizes.push(OtherSize {
                path: path.to_owned(),
                cached: size,
                expected,
            });
        }
        finding.compared += 1;
        let (mut best, mut mirrored) = (None::<Fit>, false);
        for flip in [false, true] {
            let Some(fit) = self.fit(
                latents,
                View {
                    flip,
                    ..self.view(size)
                },
            )?
            else {
                continue;
            };
            if best.is_none_or(|b| fit.deviations < b.deviations) {
                (best, mirrored) = (Some(fit), flip);
            }
        }
        let is_sample = |fit: &Fit| fit.deviations <= 1.0 + 6.0 * fit.spread;
        match best {
            Some(fit) if fit.correlation >= SAME_PICTURE || is_sample(&fit) => {
                let moment = match fit.deviations {
                    d if d <= 0.1 => Moment::Mean,
                    d if (d - 1.0).abs() <= 6.0 * fit.spread + 0.02 => Moment::Sample,
                    _ => Moment::Near,
                };
                count(&mut finding.moment, moment);
                count(&mut finding.scaling, fit.scaling);
                finding.mirrored += usize::from(mirrored);
                finding.deviations = finding.deviations.max(fit.deviations);
            }
            _ => finding.others.push(path.to_owned()),
        }
        Ok(())
    }

    /// The Experiment's view of that size, or the middle of the picture where it has none.
    fn view(&self, size: Size) -> View {
        if let Some(view) = self.item.views.iter().find(|v| v.bucket == size) {
            return *view;
        }
        let original = self.item.size;
        let ratio = |a: u32, b: u32| f64::from(a) / f64::from(b.max(1));
        let scale = ratio(size.width, original.width).max(ratio(size.height, original.height));
        let side =
            |original: u32, least: u32| ((f64::from(original) * scale).round() as u32).max(least);
        let resized = Size {
            width: side(original.width, size.width),
            height: side(original.height, size.height),
        };
        View {
            resized,
            left: (resized.width - size.width) / 2,
            top: (resized.height - size.height) / 2,
            bucket: size,
            flip: false,
            resampling: crate::recipe::latents::Resampling::Spec,
        }
    }

    /// How latents compare with a view; `None` where the picture cannot be brought to its size.
    fn fit(&self, latents: &Tensor, view: View) -> Result<Option<Fit>, Error> {
        // A hostile size would be a picture of gigabytes.
        let pixels_of = |size: Size| u64::from(size.width) * u64::from(size.height);
        if pixels_of(view.resized) > 1 << 26 || pixels_of(view.bucket) == 0 {
            return Ok(None);
        }
        let picture = PictureFile::open(&self.item.picture).map_err(dataset::Error::from)?;
        let prepared = picture.prepare(view).map_err(dataset::Error::from)?;
        let failed = |source| encode::Error::Vae {
            path: self.item.picture.clone(),
            source,
        };
        let pixels = pixels(&prepared).and_then(|p| p.to_device(self.encoder.device()));
        let moments = self
            .encoder
            .encode(&pixels.map_err(failed)?)
            .map_err(failed)?;
        let cpu = |t: &Tensor| t.squeeze(0)?.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        let (mean, logvar) = (cpu(&moments.mean)?, cpu(&moments.logvar)?);
        if mean.dims() != latents.dims() {
            return Ok(None);
        }
        let spread = (0.5 / mean.elem_count() as f64).sqrt();
        let mut best: Option<Fit> = None;
        for (scaling, plain) in self.scalings(latents)? {
            let fit = Fit {
                scaling,
                deviations: deviations(&plain, &mean, &logvar)?,
                correlation: correlation(&plain, &mean)?,
                spread,
            };
            if best.is_none_or(|b| fit.deviations < b.deviations) {
                best = Some(fit);
            }
        }
        Ok(best)
    }

    /// What the VAE's latents would be for each way of scaling that the model has.
    fn scalings(&self, latents: &Tensor) -> Result<Vec<(Scaling, Tensor)>, Error> {
        let geometry = self.base.latent_geometry();
        let mut all = vec![(Scaling::OfVae, latents.clone())];
        if let LatentStatistics::Shared { scale, shift } = geometry.statistics {
            if (scale, shift) == (1.0, 0.0) {
                return Ok(all);
            }
            if shift != 0.0 {
                all.push((Scaling::WithoutShift, latents.affine(1.0 / scale, 0.0)?));
            }
        }
        all.push((Scaling::OfDenoiser, geometry.denormalize(latents)?));
        Ok(all)
    }
}

fn count<T: PartialEq + Ord + Copy>(counts: &mut Vec<(T, usize)>, of: T) {
    match counts.iter_mut().find(|(what, _)| *what == of) {
        Some((_, n)) => *n += 1,
        None => counts.push((of, 1)),
    }
    counts.sort();
}

/// Root mean square of the distance from the mean, in standard deviations.
fn deviations(latents: &Tensor, mean: &Tensor, logvar: &Tensor) -> candle_core::Result<f64> {
    let std = logvar.affine(0.5, 0.0)?.exp()?;
    let z = ((latents - mean)? / std)?;
    Ok(f64::from(z.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt())
}

/// Correlation over all numbers, each channel less its mean.
fn correlation(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let centered = |t: &Tensor| {
        t.flatten_from(1)?
            .broadcast_sub(&t.flatten_from(1)?.mean_keepdim(1)?)
    };
    let (a, b) = (centered(a)?, centered(b)?);
    let dot = |x: &Tensor, y: &Tensor| -> candle_core::Result<f64> {
        Ok(f64::from((x * y)?.sum_all()?.to_scalar::<f32>()?))
    };
    let norms = dot(&a, &a)? * dot(&b, &b)?;
    let product = dot(&a, &b)?;
    Ok(match norms > 0.0 {
        true => product / norms.sqrt(),
        false => 0.0,
    })
}
