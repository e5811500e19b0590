//! Pictures and clips into the store: each view of each that the store lacks, once, as the VAE's mean and log-variance, or its mean alone
//! where that stands for the latents. The frames of a clip are read some at a time: never do all of them lie in memory.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::json;

use super::Error;
use super::missing::Missing;
use super::part::Part;
use super::pauses::Pauses;
use crate::base_model::{BaseModel, VaePart, candle_dtype};
use crate::cache::tensors;
use crate::dataset::clip::{ClipFile, FrameChunk};
use crate::dataset::{self, PictureError, PreparedPicture, Viewed};
use crate::digest::{Digest, canonical_json};
use crate::monitor::Monitor;
use crate::nn::Kernels;
use crate::recipe::latents::{LatentKey, Size, View};
use crate::store::{NewEntry, Store, StoreWriter, about_record_bytes};
use crate::vae::{Extents, LatentEncoder, LatentGeometry, Moments};

/// Pictures decoded together, on all cores; the VAE takes them one by one. At 1024 px their pixels are 200 MB for each
/// view.
const CHUNK: usize = 16;
/// Frames of a clip that are read together, as many as become one frame of latents of Wan's.
const FRAMES: usize = 4;

/// What encoding pictures and clips came to. A view is one crop, mirrored or not; of a clip, of one window of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PictureStats {
    /// The spec's fingerprint.
    pub spec: String,
    /// Different views asked for.
    pub views: u64,
    /// Of these, windows of clips.
    pub of_clips: u64,
    /// Of these, already in the store.
    pub present: u64,
    /// Encoded now.
    pub encoded: u64,
    /// Pictures and clips that could not be read or decoded, each reported.
    pub failed: u64,
}

/// Encodes on `device`, by `kernels`, what the store lacks. A picture that does not decode is reported and passed over.
///
/// # Errors
/// If the VAE or the store fails; what was committed before stays.
pub fn encode_pictures(
    base: &BaseModel,
    store: &Store,
    pictures: &[Viewed<'_>],
    on: (&Device, &Kernels),
    monitor: &dyn Monitor,
) -> Result<PictureStats, Error> {
    let plan = PicturePlan::new(&base.vae, store, pictures, Part::WHOLE)?;
    plan.encode(on, &mut Pauses::none(store), monitor)
}

/// What a store lacks of pictures and clips.
pub(super) struct PicturePlan<'a> {
    vae: &'a VaePart,
    store: &'a Store,
    pictures: Vec<Viewed<'a>>,
    clips: Vec<Viewed<'a>>,
    /// Different views asked for.
    views: u64,
    /// Different views of all parts.
    all_views: u64,
    /// Of these, windows of clips.
    of_clips: u64,
    missing: Missing,
}

impl<'a> PicturePlan<'a> {
    /// # Errors
    /// If the store cannot be read.
    pub(super) fn new(
        vae: &'a VaePart,
        store: &'a Store,
        pictures: &[Viewed<'a>],
        part: Part,
    ) -> Result<Self, Error> {
        let spec = vae.fingerprint;
        let entry =
            |picture: &Viewed<'_>, view| LatentKey::new(spec, picture.digest, view).fingerprint();
        let wanted = pictures.iter().flat_map(|picture| {
            let views = picture.views.iter();
            views.map(move |&view| entry(picture, view))
        });
        let wanted = wanted
            .filter(|entry| part.has(entry))
            .map(|entry| (spec, entry));
        let reader = store.reader_of_entries(&wanted.collect::<Vec<_>>())?;
        let mut plan = Self {
            vae,
            store,
            pictures: Vec::new(),
            clips: Vec::new(),
            views: 0,
            all_views: 0,
            of_clips: 0,
            missing: Missing::default(),
        };
        let mut seen = BTreeSet::new();
        for picture in pictures {
            let mut views = Vec::new();
            for &view in picture.views.iter() {
                let entry = entry(picture, view);
                // Two data sets may hold the same picture, and a reference may be one of the pictures.
                if !seen.insert(entry) || !part.has(&entry) {
                    continue;
                }
                plan.views += 1;
                plan.of_clips += u64::from(view.window.is_some());
                if !reader.contains(&spec, &entry) {
                    plan.missing.entries += 1;
                    plan.missing.bytes += vae.view_bytes(view) + about_record_bytes("", 0);
                    views.push(view);
                }
            }
            let Some(first) = views.first() else {
                continue;
            };
            let list = match first.window {
                None => &mut plan.pictures,
                Some(_) => &mut plan.clips,
            };
            list.push(Viewed {
                views: views.into(),
                ..picture.clone()
            });
        }
        plan.all_views = seen.len() as u64;
        Ok(plan)
    }

    /// Entries asked for, and those of all parts.
    pub(super) fn entries(&self) -> (u64, u64) {
        (self.views, self.all_views)
    }

    /// What is to be made.
    pub(super) fn missing(&self) -> Missing {
        self.missing
    }

    /// Makes it, or of it what `pauses` leaves time for.
    ///
    /// # Errors
    /// As [`encode_pictures`].
    pub(super) fn encode(
        &self,
        (device, kernels): (&Device, &Kernels),
        pauses: &mut Pauses<'_>,
        monitor: &dyn Monitor,
    ) -> Result<PictureStats, Error> {
        let mut stats = PictureStats {
            spec: self.vae.fingerprint.to_string(),
            views: self.views,
            of_clips: self.of_clips,
            present: self.views - self.missing.entries,
            ..PictureStats::default()
        };
        if self.missing.entries == 0 || pauses.stopped().is_some() {
            return Ok(stats);
        }
        let mut writer = self.store.when_free(monitor, || self.store.writer())?;
        writer.put_spec(&self.vae.fingerprint, &canonical_json(&self.vae.spec))?;
        let encoder = self.vae.load_encoder(device, kernels)?;
        self.encode_pictures(&encoder, (&mut writer, pauses), &mut stats, monitor)?;
        self.encode_clips(&encoder, (&mut writer, pauses), &mut stats, monitor)?;
        writer.finish()?;
        Ok(stats)
    }

    fn encode_pictures(
        &self,
        encoder: &LatentEncoder,
        (writer, pauses): (&mut StoreWriter, &mut Pauses<'_>),
        stats: &mut PictureStats,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        if self.pictures.is_empty() {
            return Ok(());
        }
        monitor.start("pictures", Some(self.pictures.len() as u64));
        'all: for chunk in self.pictures.chunks(CHUNK) {
            for (of, prepared) in chunk.iter().zip(dataset::prepare(chunk)) {
                if pauses.ends() {
                    break 'all;
                }
                match prepared {
                    Err(error) => stats.passed_over(&error, monitor),
                    Ok(views) => {
                        for view in views {
                            writer.put(self.picture(encoder, of, &view)?)?;
                            stats.encoded += 1;
                        }
                    }
                }
                monitor.advance(1);
            }
            pauses.keep(writer, monitor)?;
        }
        monitor.finish();
        Ok(())
    }

    fn picture(
        &self,
        encoder: &LatentEncoder,
        of: &Viewed<'_>,
        prepared: &PreparedPicture,
    ) -> Result<NewEntry, Error> {
        let moments = pixels(prepared)
            .and_then(|p| p.to_device(encoder.device()))
            .and_then(|p| encoder.encode(&p));
        let (view, size) = (prepared.view, prepared.original_size);
        let source = format!(
            "picture {} of {}",
            prepared.digest.short(),
            described(size, view)
        );
        moments
            .and_then(|moments| self.entry((prepared.digest, view), &moments, source))
            .map_err(|source| failed(of, source))
    }

    fn encode_clips(
        &self,
        encoder: &LatentEncoder,
        (writer, pauses): (&mut StoreWriter, &mut Pauses<'_>),
        stats: &mut PictureStats,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        if self.clips.is_empty() {
            return Ok(());
        }
        let frames = |of: &Viewed<'_>| of.views.iter().map(|v| u64::from(v.frames())).sum::<u64>();
        monitor.start("frames of clips", Some(self.clips.iter().map(frames).sum()));
        let mut last = None;
        for of in &self.clips {
            if pauses.ends() {
                break;
            }
            let mut left = frames(of);
            let mut advance = |frames: u64| {
                left = left.saturating_sub(frames);
                monitor.advance(frames);
            };
            match self.clip(encoder, (of, &mut last), writer, &mut advance)? {
                Err(error) => stats.passed_over(&error, monitor),
                Ok(()) => stats.encoded += of.views.len() as u64,
            }
            // Of a clip that was passed over.
            monitor.advance(left);
            pauses.keep(writer, monitor)?;
        }
        monitor.finish();
        Ok(())
    }

    /// The views of a clip, whose file is `last` if that is the same and did not change since it was hashed: a clip's windows follow each
    /// other. The inner error is about its file.
    fn clip(
        &self,
        encoder: &LatentEncoder,
        (of, last): (&Viewed<'_>, &mut Option<ClipFile>),
        writer: &mut StoreWriter,
        advance: &mut dyn FnMut(u64),
    ) -> Result<Result<(), PictureError>, Error> {
        let known = last.take().filter(|clip| clip.is_still(of.picture));
        let opened = known.map_or_else(|| ClipFile::open(of.picture), Ok);
        let clip = match opened.and_then(|clip| clip.expect(&of.digest)) {
            Ok(clip) => clip,
            Err(error) => return Ok(Err(error)),
        };
        for &view in of.views.iter() {
            let moments = clip_latents(encoder, &clip, view, advance);
            let moments = match moments.map_err(|source| failed(of, source))? {
                Ok(moments) => moments,
                Err(error) => return Ok(Err(error)),
            };
            let source = format!("clip {} of {}", of.digest.short(), described(of.size, view));
            let entry = self.entry((of.digest, view), &moments, source);
            writer.put(entry.map_err(|source| failed(of, source))?)?;
        }
        *last = Some(clip);
        Ok(Ok(()))
    }

    fn entry(
        &self,
        (digest, view): (Digest, View),
        moments: &Moments,
        source: String,
    ) -> candle_core::Result<NewEntry> {
        let spec = self.vae.fingerprint;
        let key = LatentKey::new(spec, digest, view);
        let output = self.vae.spec.precision.output;
        let mut stored = vec![("mean", &moments.mean)];
        if !self.vae.architecture.takes_means() {
            stored.push(("logvar", &moments.logvar));
        }
        let mut parts = Vec::new();
        for (name, tensor) in stored {
            // The store keeps single samples.
            let bytes = tensors::to_bytes(&tensor.squeeze(0)?, output)?;
            parts.push((name.to_owned(), bytes));
        }
        Ok(NewEntry {
            entry: key.fingerprint(),
            spec,
            source,
            tokens: Vec::new(),
            token_count: 0,
            truncated: false,
            parts,
            key: json!(key),
        })
    }
}

impl PictureStats {
    fn passed_over(&mut self, error: &PictureError, monitor: &dyn Monitor) {
        monitor.problem(&error.to_string());
        self.failed += 1;
    }
}

impl VaePart {
    /// What the latents of a view take in the store, in bytes.
    fn view_bytes(&self, view: View) -> u64 {
        // What the denoiser makes tokens of has no part in it.
        let geometry = LatentGeometry::new(&self.architecture, &self.statistics, 1);
        let extents = Extents {
            frames: view.frames() as usize,
            ..Extents::from(view.bucket)
        };
        let numbers: usize = geometry.shape(geometry.latents(extents)).iter().product();
        let tensors = if self.architecture.takes_means() {
            1
        } else {
            2
        };
        let dtype = candle_dtype(self.spec.precision.output);
        (tensors * numbers * dtype.size_in_bytes()) as u64
    }
}

/// The pixels of a view as the VAE reads them, [1, 3, height, width].
///
/// # Errors
/// If the view has another number of pixels than its size says.
pub fn pixels(prepared: &PreparedPicture) -> candle_core::Result<Tensor> {
    let bucket = prepared.view.bucket;
    let shape = (1, 3, bucket.height as usize, bucket.width as usize);
    Tensor::from_slice(&prepared.pixels, shape, &Device::Cpu)
}

/// What the VAE makes of one view of a clip, whose frames are read [`FRAMES`] at a time; `advance` is told of each. The inner error is about
/// the clip.
///
/// # Errors
/// If the device fails, or the VAE makes latents of pictures alone.
pub fn clip_latents(
    encoder: &LatentEncoder,
    clip: &ClipFile,
    view: View,
    advance: &mut dyn FnMut(u64),
) -> candle_core::Result<Result<Moments, PictureError>> {
    let mut encoding = encoder.begin()?;
    let mut frames = match clip.read(view) {
        Ok(frames) => frames,
        Err(error) => return Ok(Err(error)),
    };
    while frames.left() > 0 {
        let chunk = match frames.next(FRAMES) {
            Ok(chunk) => chunk,
            Err(error) => return Ok(Err(error)),
        };
        encoding.push(&frame_pixels(&chunk)?.to_device(encoder.device())?)?;
        advance(chunk.frames as u64);
    }
    Ok(Ok(encoding.finish()?))
}

/// Frames as the VAE reads them, [frames, 3, height, width].
fn frame_pixels(chunk: &FrameChunk) -> candle_core::Result<Tensor> {
    let (height, width) = (chunk.size.height as usize, chunk.size.width as usize);
    let shape = (3, chunk.frames, height, width);
    Tensor::from_vec(chunk.pixels(), shape, &Device::Cpu)?.transpose(0, 1)
}

/// What was made of a picture or clip of this size, for people.
fn described(size: Size, view: View) -> String {
    let window = view.window.map(|window| {
        format!(
            ", {} frames from frame {} on at {} a second",
            window.frames, window.start, window.rate
        )
    });
    format!(
        "{} x {} px, {} x {} at ({}, {}){}{}",
        size.width,
        size.height,
        view.bucket.width,
        view.bucket.height,
        view.left,
        view.top,
        if view.flip { ", mirrored" } else { "" },
        window.unwrap_or_default()
    )
}

fn failed(of: &Viewed<'_>, source: candle_core::Error) -> Error {
    Error::Vae {
        path: of.picture.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "pictures_tests.rs"]
mod tests;
