//! What is compared, and the Experiment that tells whose a cache's entries are.

use std::path::{Path, PathBuf};

use plumb::audit::{self, AuditOptions};
use plumb::base_model::BaseModel;
use plumb::experiment::Experiment;
use plumb::inspect;
use plumb::inspect::captions::Captions;
use plumb::inspect::diff::Side;
use plumb::monitor::Monitor as _;
use plumb::shown;
use plumb::store::Store;

use super::Args;
use crate::inspect::open;
use crate::inspect::subject::Subject;
use crate::ui::{Failure, Ui};
use crate::world::{self, ComputeDevice, WaitArgs};

/// Entries of a cache that are looked at to find out what made it.
const SAMPLE: usize = 16;

/// What is compared.
pub(super) struct Parties {
    first: Party,
    /// None: the first with itself.
    second: Option<Party>,
    /// What a cache is read by, where neither side is an Experiment.
    experiment: Option<Box<(Experiment, BaseModel)>>,
}

pub(super) enum Party {
    Subject(Subject),
    Cache(PathBuf),
}

impl Party {
    fn open(path: &Path, ui: &Ui) -> Result<Self, Failure> {
        match is_cache(path) {
            true => Ok(Self::Cache(path.to_owned())),
            false => Subject::open(path, ui).map(Self::Subject),
        }
    }

    pub(super) fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Subject(subject) => Some(subject),
            Self::Cache(_) => None,
        }
    }
}

/// A folder that is no store, or a file of a format that caches have.
fn is_cache(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    match path.is_dir() {
        true => !Store::is_at(path),
        false => matches!(ending, Some("npz" | "pt" | "safetensors" | "bin")),
    }
}

impl Parties {
    pub(super) fn open(args: &Args, ui: &Ui) -> Result<Self, Failure> {
        let first = Party::open(&args.first, ui)?;
        let second = args.second.as_ref().map(|path| Party::open(path, ui));
        let mut parties = Self {
            first,
            second: second.transpose()?,
            experiment: None,
        };
        let is_cache = |party: &&Party| party.subject().is_none();
        let has_cache = parties.both().iter().any(is_cache);
        let is_told = parties.experiment().is_some();
        match &args.experiment {
            Some(_) if !has_cache => Err(Failure::usage(
                "--experiment tells whose the entries of another trainer's cache are, and neither side is one",
            )),
            Some(_) if is_told => Err(Failure::usage(
                "--experiment: one of the sides is an Experiment, which tells whose the cache's entries are",
            )),
            Some(file) => {
                parties.experiment = Some(Box::new(open(file, ui)?));
                Ok(parties)
            }
            None if !has_cache || is_told => Ok(parties),
            None => {
                let file = parties.of_runs(args)?;
                ui.note(&format!(
                    "pictures, captions and base model are those of {}, which the store's runs are of",
                    shown::path(&file)
                ));
                parties.experiment = Some(Box::new(open(&file, ui)?));
                Ok(parties)
            }
        }
    }

    pub(super) fn both(&self) -> [&Party; 2] {
        [&self.first, self.second.as_ref().unwrap_or(&self.first)]
    }

    /// The only Experiment that the runs of a store are of and that is still there.
    fn of_runs(&self, args: &Args) -> Result<PathBuf, Failure> {
        let mut known = Vec::new();
        for subject in self.both().into_iter().filter_map(Party::subject) {
            known.extend(inspect::experiments(subject.store()?).map_err(Failure::error)?);
        }
        known.sort();
        known.dedup();
        let there: Vec<&PathBuf> = known.iter().filter(|file| file.is_file()).collect();
        let why = match (known.as_slice(), there.as_slice()) {
            (_, [file]) => return Ok((*file).clone()),
            ([], []) => "neither side says which one".to_owned(),
            ([first, ..], []) => format!(
                "the store's runs are of {}, which is not there",
                shown::path(first)
            ),
            (_, [first, second, ..]) => format!(
                "the store's runs are of {} Experiments, {} and {} among them",
                there.len(),
                shown::path(first),
                shown::path(second)
            ),
        };
        let second = args
            .second
            .as_ref()
            .map(|path| format!(" {}", shown::path(path)));
        let captions: Vec<_> = (args.caption.iter())
            .map(|caption| format!(" --caption {:?}", shown::text(caption).to_string()))
            .collect();
        Err(Failure::usage(format!(
            "whose the entries of another trainer's cache are, an Experiment tells by its pictures, captions and base model; {why}: plumb inspect \
             diff {}{}{} --experiment {}",
            shown::path(&args.first),
            second.unwrap_or_default(),
            captions.concat(),
            there
                .first()
                .map_or("EXPERIMENT.toml".to_owned(), |file| shown::path(file)
                    .to_string())
        )))
    }

    /// The Experiment that a cache is compared with, or read by.
    fn experiment(&self) -> Option<(&Experiment, &BaseModel)> {
        let sides = self.both().into_iter().filter_map(Party::subject);
        let mut sides = sides.filter_map(|subject| Some((subject.experiment()?, subject.base()?)));
        let named = self.experiment.as_deref();
        sides
            .next()
            .or_else(|| named.map(|(experiment, base)| (experiment, base)))
    }

    /// The first side's captions; a cache's are the Experiment's.
    pub(super) fn captions(&self, ui: &Ui) -> Result<Captions, Failure> {
        if let Party::Subject(subject) = &self.first {
            return subject.captions(ui);
        }
        let (experiment, base) = self.told()?;
        Captions::of_experiment(experiment, base, ui).map_err(Failure::error)
    }

    fn told(&self) -> Result<(&Experiment, &BaseModel), Failure> {
        let missing = || Failure::usage("a cache is compared with an Experiment");
        self.experiment().ok_or_else(missing)
    }

    /// A cache as a side, audited.
    pub(super) fn cache(
        &self,
        path: &Path,
        name: String,
        ui: &Ui,
    ) -> Result<Side<'static>, Failure> {
        let (experiment, base) = self.told()?;
        let options = AuditOptions {
            sample: SAMPLE,
            encode: world::encode_options(&ComputeDevice::cpu(), &WaitArgs::default()),
        };
        let mut memo = world::digest_memo();
        let side = audit::side(experiment, base, path, &options, &mut memo, ui);
        Ok(Side::of_cache(name, side.map_err(crate::audit::failure)?))
    }
}
