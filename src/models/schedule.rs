//! What a checkpoint says of its own noise schedule: what its denoiser predicts, and along which levels of noise.
//!
//! diffusers reads it from `scheduler/scheduler_config.json`; ComfyUI from empty tensors beside the weights (`v_pred`, `ztsnr`,
//! `edm_vpred.sigma_max`, ...); Stability's model specification has metadata for it; the authors' code and others read a YAML
//! file beside a single file. All are read here. A schedule that no process of this program follows is refused by name, and so
//! is a checkpoint that says two things.

mod config;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;

use super::{Component, Components, Error};
use crate::diffusion::{Prediction, Process, Shift, ShiftRule};
use crate::files;
use crate::nn::weights::Weights;
use crate::shown;

/// Tensors that say something by being there, and are no weights.
const MARKERS: [&str; 6] = [
    V_PRED,
    ZTSNR,
    "edm_vpred.sigma_max",
    "edm_vpred.sigma_min",
    "edm_mean",
    "edm_std",
];
const V_PRED: &str = "v_pred";
const ZTSNR: &str = "ztsnr";

/// No configuration is longer.
const MAX_YAML_BYTES: u64 = 1 << 20;

/// Something that a checkpoint says.
#[derive(Clone, Debug, PartialEq)]
pub struct Said<T> {
    /// What.
    pub value: T,
    /// Where, as a person finds it: the field, and the file.
    pub place: String,
}

/// What a checkpoint says of its noise schedule; nothing where it is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    /// What the denoiser predicts; of DDPM only.
    pub prediction: Option<Said<Prediction>>,
    /// Whether DDPM's last step is pure noise.
    pub zero_terminal_snr: Option<Said<bool>>,
    /// The shift of a flow's noise levels.
    pub shift: Option<Said<Shift>>,
}

/// Whether a tensor of this name is a marker.
pub fn is_marker(name: &str) -> bool {
    MARKERS.contains(&name)
}

/// The word for a prediction in an Experiment.
pub fn word(prediction: Prediction) -> &'static str {
    match prediction {
        Prediction::Flow => "flow",
        Prediction::Epsilon => "epsilon",
        Prediction::Velocity => "v",
    }
}

/// A shift as in an Experiment.
pub fn shift_word(shift: Shift) -> String {
    match shift {
        Shift::Fixed(shift) => shift.to_string(),
        Shift::By(ShiftRule::Resolution) => "\"resolution\"".to_owned(),
        Shift::By(ShiftRule::Steps) => "\"steps\"".to_owned(),
    }
}

impl Schedule {
    /// What the model says whose denoiser is `denoiser`, a flow or not. `named` is a scheduler's configuration, or its folder, that
    /// a person names: it then counts alone.
    ///
    /// # Errors
    /// If a file cannot be read, or says what no process here follows, or two places contradict each other.
    pub(super) fn read(
        components: &Components,
        denoiser: &Component,
        flow: bool,
        named: Option<&Path>,
    ) -> Result<Self, Error> {
        let mut said = Self::default();
        let inside = named.map(|path| path.join(config::FILE));
        let named = match (named, &inside) {
            (Some(_), Some(inside)) if inside.is_file() => Some(inside.as_path()),
            _ => named,
        };
        if let Some(path) = named.or(components.scheduler.as_deref()) {
            said.merge(config::read(path, flow)?, path)?;
        }
        if named.is_none() && !flow {
            let path = &components.path;
            let weights = denoiser.whole()?;
            said.merge(markers(&weights, &denoiser.prefix, path)?, path)?;
            for claim in metadata(&weights, path)? {
                said.merge(claim, path)?;
            }
            said.merge(kohya(&weights, path)?, path)?;
            let yaml = path.with_extension("yaml");
            if path.is_file() && yaml.is_file() {
                said.merge(yaml_beside(&yaml)?, &yaml)?;
            }
        }
        said.check(&components.path)?;
        Ok(said)
    }

    /// Adds what another place says.
    fn merge(&mut self, other: Self, path: &Path) -> Result<(), Error> {
        let or_error = |merged: Result<(), String>| merged.map_err(|what| wrong(path, what));
        or_error(join(&mut self.prediction, other.prediction, |p| {
            word(p).to_owned()
        }))?;
        let snr = join(&mut self.zero_terminal_snr, other.zero_terminal_snr, |b| {
            format!("zero terminal signal-to-noise {b}")
        });
        or_error(snr)?;
        or_error(join(&mut self.shift, other.shift, shift_word))
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        let (Some(prediction), Some(zero)) = (&self.prediction, &self.zero_terminal_snr) else {
            return Ok(());
        };
        if prediction.value == Prediction::Epsilon && zero.value {
            return Err(wrong(
                path,
                format!(
                    "{} says that it predicts epsilon, {} that its last step is pure noise, from which nothing can be learned so; {REMEDY}",
                    prediction.place, zero.place
                ),
            ));
        }
        Ok(())
    }
}

/// What to do about a checkpoint that says something wrong.
pub const REMEDY: &str = "name a scheduler_config.json that is right as `scheduler = \"...\"` under [model.files], which then counts alone";

fn join<T: Copy + PartialEq>(
    known: &mut Option<Said<T>>,
    new: Option<Said<T>>,
    show: impl Fn(T) -> String,
) -> Result<(), String> {
    match (&*known, new) {
        (Some(old), Some(new)) if old.value != new.value => Err(format!(
            "the model contradicts itself: {} says {}, {} says {}; {REMEDY}",
            old.place,
            show(old.value),
            new.place,
            show(new.value)
        )),
        (None, new) => {
            *known = new;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn wrong(path: &Path, what: String) -> Error {
    Error::Schedule {
        path: path.to_owned(),
        what,
    }
}

fn place(field: impl fmt::Display, path: &Path) -> String {
    format!("{field} in {}", shown::path(path))
}

/// ComfyUI's tensors (`comfy/supported_models.py`), at the top of the file or among the denoiser's.
fn markers(weights: &Weights, prefix: &str, path: &Path) -> Result<Schedule, Error> {
    let there = |name: &str| weights.contains(name) || weights.contains(&format!("{prefix}{name}"));
    let edm = MARKERS
        .iter()
        .find(|name| name.starts_with("edm_") && there(name));
    if let Some(name) = edm {
        return Err(wrong(
            path,
            format!(
                "tensor `{name}`: its noise schedule is that of EDM, which plumb does not train"
            ),
        ));
    }
    let mark = |name: &str| place(format_args!("tensor `{name}`"), path);
    Ok(Schedule {
        prediction: there(V_PRED).then(|| Said {
            value: Prediction::Velocity,
            place: mark(V_PRED),
        }),
        zero_terminal_snr: there(ZTSNR).then(|| Said {
            value: true,
            place: mark(ZTSNR),
        }),
        shift: None,
    })
}

/// Where metadata say what is predicted: kohya's scripts write `prediction_type`, ComfyUI `predict_key`.
const PREDICTION_KEYS: [&str; 2] = ["modelspec.prediction_type", "modelspec.predict_key"];
const KOHYA_V: &str = "ss_v_parameterization";
const KOHYA_ZERO: &str = "ss_zero_terminal_snr";

/// The prediction of that name in metadata.
fn prediction_of(value: &str) -> Option<Prediction> {
    match value.to_ascii_lowercase().as_str() {
        "epsilon" | "eps" => Some(Prediction::Epsilon),
        "v" | "v_prediction" | "v-prediction" | "vpred" | "v_pred" => Some(Prediction::Velocity),
        _ => None,
    }
}

/// How a LoRA was trained otherwise than `process`, by its own metadata: each claim as `a word (its key)`. It is told and not refused: such
/// a LoRA has an effect, though not the one it was trained for. What its metadata leave open, or say in no word that is known here, is
/// not told; nor is anything of a flow, whose LoRAs some programs mark with Stable Diffusion's words.
pub fn trained_otherwise(metadata: &BTreeMap<String, String>, process: Process) -> Vec<String> {
    let said = |key: &str| metadata.get(key).map_or("", |value| value.trim());
    if process.is_flow() {
        return Vec::new();
    }
    let mut claims: Vec<(&str, Prediction)> = Vec::new();
    for key in PREDICTION_KEYS {
        claims.extend(prediction_of(said(key)).map(|prediction| (key, prediction)));
    }
    match said(KOHYA_V).to_ascii_lowercase().as_str() {
        "true" => claims.push((KOHYA_V, Prediction::Velocity)),
        "false" => claims.push((KOHYA_V, Prediction::Epsilon)),
        _ => {}
    }
    let other = claims
        .iter()
        .filter(|(_, found)| *found != process.prediction);
    let mut told: Vec<String> = other
        .map(|(key, found)| format!("prediction {} (`{key}`)", word(*found)))
        .collect();
    // For epsilon there is no such schedule to differ in.
    let zero = said(KOHYA_ZERO).eq_ignore_ascii_case("true");
    if told.is_empty() && zero && !process.zero_terminal_snr {
        told.push(format!("zero_terminal_snr true (`{KOHYA_ZERO}`)"));
    }
    told
}

/// Metadata of single files; one architecture's name has it.
fn metadata(weights: &Weights, path: &Path) -> Result<Vec<Schedule>, Error> {
    let mut found = Vec::new();
    for key in PREDICTION_KEYS {
        let value = weights.metadata(key).unwrap_or_default().trim();
        if value.is_empty() {
            continue;
        }
        let prediction = prediction_of(value).ok_or_else(|| {
            let what = format!(
                "`{key}`: expected epsilon or v, found `{}`; {REMEDY}",
                shown::text(value)
            );
            wrong(path, what)
        })?;
        found.push(predicts(prediction, format_args!("`{key}`"), path));
    }
    let key = "modelspec.architecture";
    if weights.metadata(key) == Some("stable-diffusion-v2-768-v") {
        found.push(predicts(
            Prediction::Velocity,
            format_args!("`{key}`"),
            path,
        ));
    }
    Ok(found)
}

/// Metadata of files that kohya's scripts and their like made.
fn kohya(weights: &Weights, path: &Path) -> Result<Schedule, Error> {
    let flag = |key: &str| {
        let value = weights.metadata(key).unwrap_or_default().trim();
        let value = match value.to_ascii_lowercase().as_str() {
            // Python's word for what was left open.
            "" | "none" => return Ok(None),
            "true" => true,
            "false" => false,
            _ => {
                let found = shown::text(value);
                let what = format!("`{key}`: expected True or False, found `{found}`; {REMEDY}");
                return Err(wrong(path, what));
            }
        };
        let place = place(format_args!("`{key}`"), path);
        Ok(Some(Said { value, place }))
    };
    let prediction = flag(KOHYA_V)?.map(|said| Said {
        value: match said.value {
            true => Prediction::Velocity,
            false => Prediction::Epsilon,
        },
        place: said.place,
    });
    Ok(Schedule {
        prediction,
        zero_terminal_snr: flag(KOHYA_ZERO)?,
        shift: None,
    })
}

fn predicts(prediction: Prediction, field: impl fmt::Display, path: &Path) -> Schedule {
    Schedule {
        prediction: Some(Said {
            value: prediction,
            place: place(field, path),
        }),
        ..Schedule::default()
    }
}

/// The authors' configuration beside a single file, as web UIs read it. Two of its lines say what is predicted, and no others are
/// looked for, so it is read as lines.
fn yaml_beside(path: &Path) -> Result<Schedule, Error> {
    let mut text = Vec::new();
    files::open(path)
        .and_then(|file| file.take(MAX_YAML_BYTES).read_to_end(&mut text))
        .map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&text);
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim().trim_matches(['"', '\'']);
        let prediction = match (key.trim(), value) {
            ("parameterization", "v") => Prediction::Velocity,
            ("parameterization", "eps") => Prediction::Epsilon,
            ("parameterization", other) => {
                let found = shown::text(other);
                let what = format!("`parameterization`: expected eps or v, found `{found}`");
                return Err(wrong(path, what));
            }
            // SDXL's original code.
            ("target", target) if target.ends_with(".VScaling") => Prediction::Velocity,
            _ => continue,
        };
        return Ok(predicts(
            prediction,
            format_args!("`{}`", shown::text(key.trim())),
            path,
        ));
    }
    Ok(Schedule::default())
}

#[cfg(test)]
mod tests;
