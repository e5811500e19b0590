//! An Experiment's embeddings and latents as the cache of another trainer, so that it trains from them as if it had made them.
//!
//! The numbers are those of the store, put together by the Experiment's recipe. Names, keys and shapes are what that trainer's own code
//! looks for; where a cache cannot hold what the Experiment says, or the trainer would look for something else, nothing is
//! written. The latents are the posterior's mean: the trainers freeze one random sample of it, SimpleTuner and ai-toolkit as well.

mod ai_toolkit;
mod captions;
mod check;
mod kohya;
mod musubi;
pub(super) mod names;
mod settings;
mod simpletuner;
pub(super) mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::complete;
use crate::base_model::{self, BaseModel};
use crate::cache::{self, Refusal};
use crate::dataset::{self, Item};
use crate::experiment::Experiment;
use crate::models::cache_names::{
    AiToolkitNames, CacheNames, KohyaNames, MusubiNames, SimpleTunerNames,
};
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::shown;
use crate::store;
use crate::text::spec::Dtype;
use values::Source;

/// Whose cache is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheTarget {
    /// kohya-ss/sd-scripts, as of 48d368f (2026-02-16).
    Kohya,
    /// kohya-ss/musubi-tuner, as of 30c658c (2026-06-24).
    Musubi,
    /// ostris/ai-toolkit, as of 27a03a9 (2026-08-21).
    AiToolkit,
    /// bghira/SimpleTuner, as of bc8e6ab (2026-08-22).
    Simpletuner,
}

impl CacheTarget {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya's sd-scripts",
            Self::Musubi => "musubi-tuner",
            Self::AiToolkit => "ai-toolkit",
            Self::Simpletuner => "SimpleTuner",
        }
    }
}

/// A trainer's cache of a family.
#[derive(Clone, Copy, Debug)]
enum Form {
    Kohya(&'static KohyaNames),
    Musubi(&'static MusubiNames),
    AiToolkit(&'static AiToolkitNames),
    Simpletuner(&'static SimpleTunerNames),
}

impl Form {
    /// `None`: that cache is not written.
    fn of(target: CacheTarget, names: &'static CacheNames) -> Option<Self> {
        match target {
            CacheTarget::Kohya => names.kohya.as_ref().map(Self::Kohya),
            CacheTarget::Musubi => names.musubi.as_ref().map(Self::Musubi),
            CacheTarget::AiToolkit => names.ai_toolkit.as_ref().map(Self::AiToolkit),
            CacheTarget::Simpletuner => names.simpletuner.as_ref().map(Self::Simpletuner),
        }
    }
}

/// Why no cache could be written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The pictures and captions.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The store cannot be read, or a file not be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An entry cannot be read.
    #[error(transparent)]
    Entry(#[from] cache::Error),
    /// A tensor is not what it should be.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// The store lacks something.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The trainer's cache cannot hold this, or the trainer would not find it.
    #[error("{}: {what}", shown::path(file))]
    Cannot {
        /// The Experiment's file, or that of a picture.
        file: PathBuf,
        /// What, and what to do.
        what: String,
    },
}

/// What a person may choose.
#[derive(Clone, Debug)]
pub struct CacheOptions<'a> {
    /// Whose cache.
    pub target: CacheTarget,
    /// The folder that takes it.
    pub out: &'a Path,
    /// How numbers are stored.
    pub dtype: Dtype,
    /// Whether files that are there are replaced.
    pub overwrite: bool,
    /// How long to wait for a process that cleans the store up or mends it.
    pub wait: Duration,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct CacheExport {
    /// Whose cache it is.
    pub target: CacheTarget,
    /// The folder.
    pub out: PathBuf,
    /// The recipe of the embeddings.
    pub recipe: String,
    /// Files of embeddings.
    pub texts: usize,
    /// Files of latents.
    pub latents: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How that trainer is to be set for it to find them and to mean the same, one line each.
    pub settings: Vec<String>,
}

/// A file to be written.
struct Planned<'a> {
    path: PathBuf,
    what: What<'a>,
}

enum What<'a> {
    /// A caption's embeddings: the caption as the Experiment has it.
    Text(&'a str),
    Latents(&'a Item),
}

/// Writes the cache.
///
/// # Errors
/// [`CacheError::Refused`] where the store lacks something, [`CacheError::Cannot`] where the trainer's cache cannot hold it: then nothing
/// is written.
pub fn cache(
    experiment: &Experiment,
    options: &CacheOptions<'_>,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<CacheExport, CacheError> {
    let path = experiment.store_path().map_err(base_model::Error::from)?;
    let base = BaseModel::open(experiment, memo)?;
    let experiment = &base.experiment;
    let cannot = |what: String| CacheError::Cannot {
        file: experiment.file.clone(),
        what,
    };
    let form = check::model(&base, options).map_err(cannot)?;
    let (items, source) = complete::open(&base, &path, &[], options.wait, monitor)?;
    let source = Source::new((&base, form), source, options);
    let plan = plan(experiment, &source, &items, options)?;
    let mut report = CacheExport {
        target: options.target,
        out: options.out.to_owned(),
        recipe: base.recipe.name().to_string(),
        texts: 0,
        latents: 0,
        bytes: 0,
        settings: settings::of(experiment, &base, form, (&items, options)),
    };
    monitor.start("write the cache", Some(plan.len() as u64));
    for file in &plan {
        let bytes = content(&source, file)?;
        store::write_file(&file.path, &[&bytes])?;
        match file.what {
            What::Text(_) => report.texts += 1,
            What::Latents(_) => report.latents += 1,
        }
        report.bytes += bytes.len() as u64;
        monitor.advance(1);
    }
    monitor.finish();
    Ok(report)
}

/// Every file with what goes into it, each name once.
fn plan<'a>(
    experiment: &Experiment,
    source: &Source<'_>,
    items: &'a [Item],
    options: &CacheOptions<'_>,
) -> Result<Vec<Planned<'a>>, CacheError> {
    let sets = experiment.datasets();
    let mut files = BTreeMap::<PathBuf, (What<'a>, &Path)>::new();
    for item in items {
        let cannot = |what: String| CacheError::Cannot {
            file: item.picture.clone(),
            what,
        };
        check::item(item, source.form, options.target).map_err(cannot)?;
        let set = names::set_of(&sets, item).map_err(cannot)?;
        let named = names::files(source, set, item).map_err(cannot)?;
        for (path, what) in named {
            let path = options.out.join(path);
            match (files.get(&path), &what) {
                // SimpleTuner has one file for a caption, however many pictures have it, and the blank caption is everybody's.
                (Some((What::Text(there), _)), What::Text(caption)) if there == caption => {}
                (Some((_, other)), _) => {
                    return Err(cannot(format!(
                        "{} would look for its cache under the name of that of {}: rename one of them",
                        options.target.name(),
                        shown::path(other)
                    )));
                }
                (None, _) => {
                    files.insert(path, (what, &item.picture));
                }
            }
        }
    }
    check::free(files.keys(), options).map_err(|(file, what)| CacheError::Cannot { file, what })?;
    let planned = |(path, (what, _))| Planned { path, what };
    Ok(files.into_iter().map(planned).collect())
}

fn content(source: &Source<'_>, file: &Planned<'_>) -> Result<Vec<u8>, CacheError> {
    let made = match file.what {
        What::Text(caption) => {
            let text = source.text(caption)?;
            match source.form {
                Form::Kohya(names) => kohya::text(source, &text, names)?,
                Form::Musubi(names) => musubi::text(source, &text, names)?,
                Form::AiToolkit(names) => ai_toolkit::text(source, &text, names)?,
                Form::Simpletuner(names) => simpletuner::text(source, &text, names)?,
            }
        }
        What::Latents(item) => match source.form {
            Form::Kohya(names) => kohya::latents(source, item, names)?,
            Form::Musubi(names) => musubi::latents(source, item, names)?,
            Form::AiToolkit(_) => ai_toolkit::latents(source, item)?,
            Form::Simpletuner(_) => simpletuner::latents(source, item)?,
        },
    };
    made.map_err(|what| CacheError::Cannot {
        file: file.path.clone(),
        what,
    })
}
