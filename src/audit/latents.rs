//! Latents of a cache against the pictures that they should be of: whether they are the VAE's own or scaled as the denoiser takes them,
//! the mean of the VAE's distribution or a sample of it, of which part of the picture, or of another one.
//!
//! A sample is told from the mean by its distance from the mean in standard deviations, which for the thousands of numbers of a picture
//! is 1 to within a few hundredths. By the same distance one part of the picture is told from another (`place`): the candidate that makes
//! the latents likeliest is theirs, and the expected one where that is no less likely.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use super::Error;
use super::fit::{Fit, correlation, deviations, most_alike_part, part_of_mean};
use super::pair::{Known, Paired};
use super::place::{self, Candidate, Nearest, Placed};
use super::shape::{scalings, shaped};
use super::stated::StatedCrops;
use crate::base_model::BaseModel;
use crate::dataset::{self, Item, PictureFile, PreparedPicture};
use crate::encode::{self, EncodeOptions, pixels};
use crate::foreign::cache::{LatentFacts, LeftOut, Role};
use crate::monitor::Monitor;
use crate::recipe::latents::{Resampling, Size, View};
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
    /// So that what a trainer makes of them by statistics of its own, which are not the model's, is as the denoiser takes them.
    OfTrainer,
}

/// Which latents of the VAE's distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Its mean.
    Mean,
    /// A sample.
    Sample,
    /// Too far for either, and of the picture all the same: it was resized by a program of other numbers, or the latents were rounded.
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
    /// Which part of their pictures they are of; not those of `others`.
    pub placed: Vec<Placed>,
    /// The largest distance from the mean, in standard deviations (root of the mean square), of those that are of their picture.
    pub deviations: f64,
    /// Files whose latents are not of the picture that their name says, or of a part of it that no placement gives.
    pub others: Vec<Other>,
    /// Files whose latents have another size than the Experiment's bucket for the picture.
    pub other_sizes: Vec<OtherSize>,
    /// What SimpleTuner's list of crops says of them, where there is one.
    pub stated: Option<StatedCrops>,
    #[serde(skip)]
    pub(super) views: Vec<(PathBuf, View)>,
}

/// Latents of another picture.
#[derive(Clone, Debug, Serialize)]
pub struct Other {
    /// The file.
    pub path: PathBuf,
    /// The placement of the picture that comes nearest; `None` where its size allows none.
    pub nearest: Option<Nearest>,
}

impl LatentsFinding {
    /// Whether latents are of other parts of their pictures than the cache or the Experiment says.
    pub fn is_misplaced(&self) -> bool {
        let is_wrong = |said: &StatedCrops| said.elsewhere > 0;
        self.placed.iter().any(|p| !p.expected) || self.stated.as_ref().is_some_and(is_wrong)
    }

    /// Counts a tensor that is of its picture.
    fn add(&mut self, path: &Path, fit: &Fit) {
        let Candidate {
            view,
            placement,
            expected,
        } = fit.candidate;
        let moment = fit.moment();
        let filters = place::FILTERS.into_iter().zip(fit.filters);
        let resampling = match view.resampling {
            Resampling::Spec => vec![Resampling::Spec],
            _ => filters
                .filter(|(_, may_be)| *may_be)
                .map(|(filter, _)| filter)
                .collect(),
        };
        self.views.push((path.to_owned(), view));
        count(&mut self.moment, moment);
        count(&mut self.scaling, fit.scaling);
        self.mirrored += usize::from(view.flip);
        self.deviations = self.deviations.max(fit.deviations);
        let new = Placed {
            placement,
            mirrored: view.flip,
            resampling,
            expected,
            reproduced: moment != Moment::Near,
            window: view.window.filter(|_| !expected),
            tensors: 1,
            first: path.to_owned(),
        };
        let what = |p: &Placed| {
            (
                !p.expected,
                !p.reproduced,
                p.placement,
                p.mirrored,
                p.resampling.clone(),
                p.window,
            )
        };
        match self.placed.iter_mut().find(|p| what(p) == what(&new)) {
            Some(group) => group.tensors += 1,
            None => self.placed.push(new),
        }
        self.placed.sort_by_key(what);
    }
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
                items,
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

/// One picture, or clip.
pub(super) struct Looker<'a> {
    pub(super) base: &'a BaseModel,
    pub(super) encoder: &'a vae::LatentEncoder,
    pub(super) item: &'a Item,
    pub(super) items: &'a [Item],
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
        for tensor in &entry.tensors {
            let Role::Latents(facts) = &tensor.role else {
                continue;
            };
            if facts.upside_down {
                return Ok(Err(
                    "its picture was turned upside down before it was encoded (`flip_y`): that is not looked at"
                        .to_owned(),
                ));
            }
            match shaped(&self.base.latent_geometry(), tensor)? {
                Ok(latents) => self.tensor(paired, &latents, facts, finding)?,
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(Ok(()))
    }

    fn tensor(
        &self,
        paired: &Paired<'_>,
        latents: &Tensor,
        facts: &LatentFacts,
        finding: &mut LatentsFinding,
    ) -> Result<(), Error> {
        let path = &paired.file.path;
        let factors = self.base.latent_geometry().factors;
        let extents = self.base.latent_geometry().extents(latents)?;
        let (h, w) = (extents.height, extents.width);
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
        let best = match (self.is_clip(), extents.frames) {
            (true, _) => self.best_of_clip(latents, size, (facts, paired.file.start))?,
            (false, 1) => self.best(latents, size, facts)?,
            // Of a picture there are no frames that could follow.
            (false, _) => None,
        };
        match best {
            Some(fit) if fit.is_its() => finding.add(path, &fit),
            best => finding.others.push(Other {
                path: path.to_owned(),
                nearest: best.map(|fit| Nearest {
                    placement: fit.candidate.placement,
                    mirrored: fit.candidate.view.flip,
                    correlation: fit.correlation,
                }),
            }),
        }
        Ok(())
    }

    /// The candidate that the latents are likeliest of; `None` where the picture cannot be brought to their size. Those that are not
    /// expected are looked at where none of the expected is sure.
    fn best(
        &self,
        latents: &Tensor,
        size: Size,
        facts: &LatentFacts,
    ) -> Result<Option<Fit>, Error> {
        let all = place::candidates(self.item, size, facts);
        let (expected, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| c.expected);
        let picture = PictureFile::open(&self.item.picture).map_err(dataset::Error::from)?;
        let mut best = None;
        self.fit(latents, &picture, &expected, &mut best)?;
        if best.is_none_or(|fit: Fit| !fit.is_sure()) {
            self.fit(latents, &picture, &others, &mut best)?;
        }
        self.filters(latents, &picture, &mut best)?;
        if facts.crop.is_none() && best.is_some_and(|fit| fit.moment() == Moment::Near) {
            self.elsewhere(latents, size, &picture, &mut best)?;
            self.filters(latents, &picture, &mut best)?;
        }
        Ok(best)
    }

    /// Looks whether another filter gives what the best candidate does not.
    fn filters(
        &self,
        latents: &Tensor,
        picture: &PictureFile,
        best: &mut Option<Fit>,
    ) -> Result<(), Error> {
        let Some(fit) = *best else { return Ok(()) };
        if !fit.may_be_filtered() || fit.candidate.view.resized == self.item.size {
            return Ok(());
        }
        let by = |resampling| Candidate {
            view: View {
                resampling,
                ..fit.candidate.view
            },
            ..fit.candidate
        };
        let mut fits = [None; place::FILTERS.len()];
        for (by_filter, candidate) in fits.iter_mut().zip(place::FILTERS.map(by)) {
            self.fit(latents, picture, &[candidate], by_filter)?;
        }
        let of_all = fits.into_iter().flatten();
        let nearest = of_all.min_by(|a, b| a.deviations.total_cmp(&b.deviations));
        if let Some(nearest) = nearest.filter(|nearest| nearest.beats(&fit)) {
            *best = Some(Fit {
                filters: fits.map(|other| other.is_some_and(|other| !nearest.beats(&other))),
                ..nearest
            });
        }
        Ok(())
    }

    /// Looks for a crop that nothing names: first where in the latents of the covering picture these are most alike, to a latent's
    /// width, and then pixel by pixel.
    fn elsewhere(
        &self,
        latents: &Tensor,
        size: Size,
        picture: &PictureFile,
        best: &mut Option<Fit>,
    ) -> Result<(), Error> {
        let factors = self.base.latent_geometry().factors;
        let px = |factor: usize| u32::try_from(factor).unwrap_or(u32::MAX).max(1);
        let step = [px(factors.width), px(factors.height)];
        let mut most_alike: Option<(f64, View)> = None;
        for whole in place::wholes(self.item, size, step) {
            let prepared = picture.prepare(whole).map_err(dataset::Error::from)?;
            let (mean, _) = self.moments(&prepared)?;
            // Of one frame, as there are others of a clip.
            let flat = |t: &Tensor| match t.rank() {
                4 => t.squeeze(1),
                _ => Ok(t.clone()),
            };
            let alike = most_alike_part(&flat(&mean)?, &flat(latents)?)?;
            let Some((alike, [x, y])) = alike else {
                return Ok(());
            };
            if most_alike.is_none_or(|(known, _)| alike > known) {
                let view = place::part(whole, size, [x * step[0], y * step[1]]);
                most_alike = Some((alike, view));
            }
        }
        let Some((_, view)) = most_alike else {
            return Ok(());
        };
        let mut found = None;
        self.fit(
            latents,
            picture,
            &[place::unexpected(view, self.item)],
            &mut found,
        )?;
        let mut by = step[0].max(step[1]) / 2;
        while by > 0 {
            if let Some(Fit { candidate, .. }) = found {
                let around = place::around(candidate.view, by, self.item);
                self.fit(latents, picture, &around, &mut found)?;
            }
            by /= 2;
        }
        if let (Some(found), Some(known)) = (found, *best)
            && found.beats(&known)
        {
            *best = Some(found);
        }
        Ok(())
    }

    /// Compares latents with candidates, as long as none is sure, and puts the best in `best`.
    fn fit(
        &self,
        latents: &Tensor,
        picture: &PictureFile,
        candidates: &[Candidate],
        best: &mut Option<Fit>,
    ) -> Result<(), Error> {
        let views: Vec<View> = candidates.iter().map(|c| c.view).collect();
        let Some(first) = views.first() else {
            return Ok(());
        };
        // Pixels of several views are held at once, of a few only where they are large.
        let pixels = u64::from(first.bucket.width) * u64::from(first.bucket.height);
        let at_once = usize::try_from((1 << 24) / pixels.max(1))
            .unwrap_or(1)
            .max(1);
        for (candidates, views) in candidates.chunks(at_once).zip(views.chunks(at_once)) {
            let prepared = picture.prepare_all(views).map_err(dataset::Error::from)?;
            for (candidate, prepared) in candidates.iter().zip(&prepared) {
                let (mean, logvar) = self.moments(prepared)?;
                let Some(fit) = self.compare(latents, *candidate, (&mean, &logvar))? else {
                    return Ok(());
                };
                if best.is_none_or(|b| fit.beats(&b)) {
                    *best = Some(fit);
                }
                if fit.is_sure() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// How latents compare with what the VAE makes of a candidate, mean and log-variance; `None` where that has another shape.
    pub(super) fn compare(
        &self,
        latents: &Tensor,
        candidate: Candidate,
        (mean, logvar): (&Tensor, &Tensor),
    ) -> Result<Option<Fit>, Error> {
        if mean.dims() != latents.dims() {
            return Ok(None);
        }
        let spread = (0.5 / mean.elem_count() as f64).sqrt();
        let geometry = self.base.latent_geometry();
        let caches = self.base.denoiser.family.caches;
        let mut best: Option<Fit> = None;
        for (scaling, plain, spread_by) in scalings(&geometry, caches, latents)? {
            let fit = Fit {
                spread_by,
                part: match geometry.draws_from_posterior() {
                    true => None,
                    false => Some(part_of_mean(&plain, mean)?),
                },
                candidate,
                scaling,
                deviations: deviations(&plain, mean, logvar)?,
                correlation: correlation(&plain, mean)?,
                spread,
                filters: Default::default(),
            };
            if best.is_none_or(|b| fit.is_likelier_scaled(&b)) {
                best = Some(fit);
            }
        }
        Ok(best)
    }

    /// Mean and log-variance of the VAE's distribution for a picture, [channels, height, width] of its latents.
    fn moments(&self, prepared: &PreparedPicture) -> Result<(Tensor, Tensor), Error> {
        let failed = |source| encode::Error::Vae {
            path: self.item.picture.clone(),
            source,
        };
        let pixels = pixels(prepared).and_then(|p| p.to_device(self.encoder.device()));
        let moments = self
            .encoder
            .encode(&pixels.map_err(failed)?)
            .map_err(failed)?;
        let cpu = |t: &Tensor| t.squeeze(0)?.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        Ok((cpu(&moments.mean)?, cpu(&moments.logvar)?))
    }
}

fn count<T: PartialEq + Ord + Copy>(counts: &mut Vec<(T, usize)>, of: T) {
    match counts.iter_mut().find(|(what, _)| *what == of) {
        Some((_, n)) => *n += 1,
        None => counts.push((of, 1)),
    }
    counts.sort();
}
