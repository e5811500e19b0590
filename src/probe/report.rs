//! The report of a probe, as the file that `--out` names has it: what was compared, what was found, and the numbers of each picture.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dataset::Subjects;
use crate::digest::{Digest, Fingerprint};
use crate::files;
use crate::recipe::Deviation;

/// The version of the form. One that knows less refuses to read more.
pub const REPORT_VERSION: u32 = 2;

/// A report of a hundred recipes over ten thousand pictures has 20 MB.
const MAX_BYTES: u64 = 256 << 20;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// The program that wrote it: `plumb 0.1.0`.
    pub tool: String,
    /// The Experiment's file, as it was named.
    pub experiment: String,
    /// The base model's family: `sd3`.
    pub family: String,
    /// Its flavor: `3.5-large`.
    pub flavor: String,
    /// The digest of the denoiser's weights.
    pub base: Digest,
    /// How it was measured.
    pub method: Method,
    /// The pictures that were measured, in the order in which they were.
    pub pictures: Vec<Picture>,
    /// How many of them are clips; a clip's windows count as one. Not written where there are none.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub clips: u64,
    /// Pictures that could not be used.
    pub failed: u64,
    /// The recipes that were compared; the first is the one that the others are compared with.
    pub candidates: Vec<CandidateReport>,
    /// The first recipe with the captions of other pictures; none in reports of version 1, and where all captions are alike.
    #[serde(default)]
    pub control: Option<Control>,
    /// Recipes that do not fit the base model, and why.
    pub left_out: Vec<LeftOut>,
    /// What was found, in a few sentences.
    pub conclusion: String,
}

/// How a probe measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// What noise, timesteps and the order of pictures derive from.
    pub seed: u64,
    /// Draws of noise and timestep for each picture, one in each of as many equal parts of the schedule.
    pub draws: u32,
    /// The embedded guidance that the denoiser was given, if it has such an input.
    pub guidance: Option<f64>,
    /// The chance of a false alarm over all candidates and looks.
    pub alpha: f64,
    /// The part of the loss below which a difference is negligible; 0 in reports of version 1, which do not tell it.
    #[serde(default)]
    pub negligible: f64,
    /// When the numbers were looked at, as planned; the probe ends at the first look at which all is clear.
    pub looks: Vec<Look>,
    /// Looks that were made.
    pub looks_made: u32,
}

/// A look at the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Pictures by then.
    pub pictures: u64,
    /// The part of `alpha` that it spends; all parts together are 1.
    pub share: f64,
}

/// A picture that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// Its file.
    pub file: String,
    /// What it is known by. Copies are one picture.
    pub digest: Digest,
}

/// What was found of one recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateReport {
    /// What a person calls it; several where variants have the same rules.
    pub labels: Vec<String>,
    /// The first candidate that gives the denoiser exactly the same tensors for every caption, if it is not the first itself. They are
    /// tested once.
    pub same_as: Option<String>,
    /// The variant that it is made from: `sd3/3.5-large:kohya`.
    pub recipe: String,
    /// The fingerprint of its rules.
    pub fingerprint: Fingerprint,
    /// In which fields it differs from the one that it is compared with.
    pub differs: Vec<Change>,
    /// What the numbers say.
    pub verdict: Verdict,
    /// The mean loss: of a picture's draws, then of pictures.
    pub loss: f64,
    /// Pictures of which the denoiser received other numbers.
    pub changed: u64,
    /// Its loss minus that of the recipe it is compared with; none for that one itself, and where too few pictures changed.
    pub difference: Option<Difference>,
    /// The same in equal parts of the noise schedule, from little noise to much.
    pub bands: Vec<Band>,
    /// Pictures that would tell, if the difference is as large as it seems now; only for what could not be told.
    pub pictures_to_tell: Option<u64>,
    /// The difference of each picture, in the order of [`Report::pictures`].
    pub by_picture: Vec<f64>,
}

/// Whether the captions matter to the base model on these pictures: a check of the probe itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// What the numbers say of another picture's caption. Unless it is [`Verdict::Worse`], no preference can be believed.
    pub verdict: Verdict,
    /// The loss with another picture's caption minus that with the picture's own.
    pub difference: Option<Difference>,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Its dotted path: `t5.tokens.max_tokens`.
    pub field: String,
    /// Its value in the candidate.
    pub value: Value,
    /// Its value in the recipe that the candidate is compared with.
    pub instead_of: Value,
}

impl From<Deviation> for Change {
    fn from(deviation: Deviation) -> Self {
        Self {
            field: deviation.field,
            value: deviation.value,
            instead_of: deviation.instead_of,
        }
    }
}

/// A mean difference of losses, below 0 where the candidate's is lower.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// The mean over pictures.
    pub mean: f64,
    /// The interval's ends. It is a 95 % interval of this candidate alone, at whatever look the probe ended.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// The mean in standard deviations between pictures, of those that changed.
    pub effect_size: f64,
    /// Two-sided, corrected for the number of looks.
    pub p: f64,
    /// The same, corrected for the number of candidates as well (Holm).
    pub p_corrected: f64,
}

/// A difference in a part of the noise schedule. It is not corrected for anything: it describes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// The share of noise at its beginning, 0 for none.
    pub from: f64,
    /// At its end, 1 for noise alone.
    pub to: f64,
    /// The mean difference over pictures.
    pub mean: f64,
    /// The ends of its 95 % interval.
    pub low: f64,
    /// See `low`.
    pub high: f64,
}

/// What the numbers say of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is the one that the others are compared with.
    ComparedWith,
    /// For every caption the denoiser receives exactly the same tensors.
    Same,
    /// The base model predicts better under it.
    Preferred,
    /// The base model predicts worse under it.
    Worse,
    /// Whatever the difference is, it is below [`Method::negligible`] of the loss.
    Negligible,
    /// At this size it cannot be told.
    Indistinguishable,
}

impl Verdict {
    /// As a person reads it.
    pub fn words(self) -> &'static str {
        match self {
            Self::ComparedWith => "compared with",
            Self::Same => "no effect: same tensors",
            Self::Preferred => "preferred",
            Self::Worse => "worse",
            Self::Negligible => "negligible",
            Self::Indistinguishable => "indistinguishable",
        }
    }
}

/// A recipe that was not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// What a person calls it.
    pub label: String,
    /// Why it does not fit the base model.
    pub why: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_none_of_them(clips: &u64) -> bool {
    *clips == 0
}

impl Report {
    /// What was measured, for sentences about it.
    pub fn subjects(&self) -> Subjects {
        Subjects::new(self.pictures.len() as u64, self.clips)
    }

    /// Reads one from a file.
    ///
    /// # Errors
    /// In one line, if it cannot be read, is too long, or is no report of a version that is known.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = files::read(path, MAX_BYTES).map_err(|e| e.to_string())?;
        #[derive(Deserialize)]
        struct OnlyVersion {
            version: u32,
        }
        let no_report = |e: serde_json::Error| {
            format!("expected a report of `plumb probe`, as its --out writes it: {e}")
        };
        // First, as a later version may have fields that this one does not know.
        let OnlyVersion { version } = serde_json::from_slice(&bytes).map_err(no_report)?;
        if !(1..=REPORT_VERSION).contains(&version) {
            return Err(format!(
                "expected a report of version 1 to {REPORT_VERSION}, found {version}: it was written by another plumb"
            ));
        }
        let report: Self = serde_json::from_slice(&bytes).map_err(no_report)?;
        report.check()?;
        Ok(report)
    }

    fn check(&self) -> Result<(), String> {
        let pictures = self.pictures.len();
        let fits = |c: &&CandidateReport| c.by_picture.len() != pictures;
        if let Some(candidate) = self.candidates.iter().find(fits) {
            let label = candidate.label();
            return Err(format!(
                "candidate `{}`: expected a number for each of {pictures} pictures, found {}",
                crate::shown::text(&label),
                candidate.by_picture.len()
            ));
        }
        match self.candidates.first() {
            Some(first) if first.verdict == Verdict::ComparedWith => Ok(()),
            _ => Err("its first candidate is not the one that the others are compared with".into()),
        }
    }

    /// The file's content.
    ///
    /// # Errors
    /// If a number is not finite, which JSON cannot say.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The candidates that are tested: those that give the same tensors as one before them are left out. Those that have no effect at
    /// all are there.
    pub fn distinct(&self) -> Vec<&CandidateReport> {
        let is_distinct = |c: &&CandidateReport| c.same_as.is_none() || c.verdict == Verdict::Same;
        self.candidates.iter().filter(is_distinct).collect()
    }

    /// A candidate's labels, and those of the ones that give the same tensors: `kohya | ai-toolkit | t5.tokens.min_tokens = 77`.
    pub fn label(&self, candidate: &CandidateReport) -> String {
        let own = candidate.label();
        if candidate.verdict == Verdict::Same {
            return candidate.title();
        }
        let alike = self.candidates.iter();
        let alike =
            alike.filter(|c| c.same_as.as_ref() == Some(&own) && c.verdict != Verdict::Same);
        let labels: Vec<String> = [candidate]
            .into_iter()
            .chain(alike)
            .map(CandidateReport::title)
            .collect();
        labels.join(" | ")
    }

    /// The candidates that differ from the one they are compared with in this field alone, or in it and others that took the same value
    /// because they go together.
    pub fn measured(&self, field: &str) -> Vec<&CandidateReport> {
        let tells = |candidate: &&CandidateReport| {
            let differs = &candidate.differs;
            let own = differs.iter().find(|change| change.field == field);
            own.is_some_and(|own| differs.iter().all(|other| other.value == own.value))
        };
        self.candidates.iter().filter(tells).collect()
    }
}

impl CandidateReport {
    /// All labels, as [`Self::same_as`] has them: `diffusers = ai-toolkit`.
    pub fn label(&self) -> String {
        self.labels.join(" = ")
    }

    /// All labels as a person reads them, since some have a `=` of their own.
    pub fn title(&self) -> String {
        self.labels.join(" | ")
    }
}
