//! A training's curves and previews, as it wrote them into its folder.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder as _, ImageReader, Limits};

use super::super::lora;
use super::packed;
use crate::base_model::BaseModel;
use crate::digest::Fingerprint;
use crate::monitor::Monitor;
use crate::train::metrics::MetricsLine;
use crate::{files, shown};

/// The largest file of metrics that is read.
const MOST_METRICS: u64 = 256 << 20;
/// The longest line of it.
const MOST_LINE: u64 = 1 << 20;
/// The widest preview, and the most bytes of its file.
const PREVIEW_PX: u32 = 640;
const MOST_PREVIEW: u64 = 64 << 20;

/// Whether a training had the recipe that the page is of. Another one may have written into the same folder.
#[derive(Debug, PartialEq)]
pub(super) enum TrainedUnder {
    This,
    Another(Fingerprint),
    /// There is no LoRA of plumb's that would tell.
    Unknown,
}

impl TrainedUnder {
    fn of(folder: &Path, base: Option<&BaseModel>) -> Self {
        let Some(base) = base else {
            return Self::Unknown;
        };
        let read = lora(folder, Some(&base.recipe.name().family));
        let made = read.ok().and_then(|report| report.provenance);
        match made.map(|made| made.recipe_fingerprint) {
            None => Self::Unknown,
            Some(recipe) if recipe == base.recipe.fingerprint() => Self::This,
            Some(recipe) => Self::Another(recipe),
        }
    }
}

/// What there is of a training.
pub(super) struct TrainingRun {
    pub(super) folder: PathBuf,
    pub(super) recipe: TrainedUnder,
    /// (step, loss), each kind rising.
    pub(super) loss: Vec<(f64, f64)>,
    pub(super) validation: Vec<(f64, f64)>,
    pub(super) learning_rate: Vec<(f64, f64)>,
    /// The last steps' sheets: step, and base64 of a JPEG.
    pub(super) previews: Vec<(u64, String)>,
    pub(super) left_out: Option<String>,
}

/// `None` where the folder has no metrics.
pub(super) fn read(
    folder: &Path,
    base: Option<&BaseModel>,
    preview_bytes: usize,
    monitor: &dyn Monitor,
) -> Option<TrainingRun> {
    let path = folder.join("metrics.jsonl");
    let file = files::open(&path).ok()?;
    let mut run = TrainingRun {
        folder: folder.to_owned(),
        recipe: TrainedUnder::of(folder, base),
        loss: Vec::new(),
        validation: Vec::new(),
        learning_rate: Vec::new(),
        previews: Vec::new(),
        left_out: None,
    };
    let mut unreadable = 0;
    let mut lines = BufReader::new(file.take(MOST_METRICS));
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(MOST_LINE).read_until(b'\n', &mut line);
        if !read.is_ok_and(|count| count > 0) {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(MetricsLine::Step {
                step,
                loss,
                learning_rate,
                ..
            }) => {
                run.loss.push((step as f64, loss));
                run.learning_rate.push((step as f64, learning_rate));
            }
            Ok(MetricsLine::Validation { step, loss, .. }) => {
                run.validation.push((step as f64, loss));
            }
            // A kill may have cut the last one short.
            Err(_) => unreadable += usize::from(line.ends_with(b"\n")),
        }
    }
    if unreadable > 0 {
        let path = shown::path(&path);
        monitor.problem(&format!(
            "{path}: {unreadable} lines cannot be read and are left out"
        ));
    }
    run.add_previews(preview_bytes, monitor);
    Some(run)
}

impl TrainingRun {
    /// The newest previews that fit, in their order.
    fn add_previews(&mut self, most: usize, monitor: &dyn Monitor) {
        let entries = std::fs::read_dir(self.folder.join("previews"));
        let entries = entries.into_iter().flatten().flatten();
        let mut found: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let name = name.strip_prefix("step-")?;
                // Of a clip, an animated WebP, the first frame is shown.
                let step = name.strip_suffix(".png").or(name.strip_suffix(".webp"))?;
                Some((step.parse().ok()?, entry.path()))
            })
            .collect();
        found.sort();
        let (all, mut bytes) = (found.len(), 0);
        for (step, path) in found.into_iter().rev() {
            match preview(&path) {
                Ok(jpeg) if bytes + jpeg.len() <= most => {
                    bytes += jpeg.len();
                    self.previews.push((step, jpeg));
                }
                Ok(_) => break,
                Err(why) => {
                    let path = shown::path(&path);
                    monitor.problem(&format!("{path}: not shown: {why}"));
                }
            }
        }
        self.previews.reverse();
        if self.previews.len() < all {
            let shown = self.previews.len();
            self.left_out = Some(format!(
                "{shown} of {all} previews are shown, the last ones"
            ));
        }
    }
}

/// A sheet of previews as base64 of a JPEG.
fn preview(path: &Path) -> Result<String, String> {
    let file = files::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let read = file.take(MOST_PREVIEW).read_to_end(&mut bytes);
    read.map_err(|e| e.to_string())?;
    let format = image::ImageFormat::from_path(path).map_err(|e| e.to_string())?;
    let mut reader = ImageReader::with_format(std::io::Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(512 << 20);
    reader.limits(limits);
    let mut picture = reader.decode().map_err(|e| e.to_string())?.to_rgb8();
    if picture.width() > PREVIEW_PX {
        let height =
            u64::from(picture.height()) * u64::from(PREVIEW_PX) / u64::from(picture.width());
        let height = (height as u32).max(1);
        let filter = image::imageops::FilterType::Triangle;
        picture = image::imageops::resize(&picture, PREVIEW_PX, height, filter);
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 80)
        .write_image(
            &picture,
            picture.width(),
            picture.height(),
            ExtendedColorType::Rgb8,
        )
        .map_err(|e| e.to_string())?;
    Ok(packed::base64(&jpeg))
}
