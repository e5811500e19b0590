//! Encoding: captions and pictures of an Experiment into its store, each once. Run again after any change, only what changed is
//! done.

mod captions;
mod missing;
mod part;
mod pauses;
mod pictures;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use serde::Serialize;

use captions::{CaptionPlan, check_room};
pub use captions::{CaptionStats, encode_captions, lost_text, read_text, tell_of_no_run, tokenize};
pub(crate) use captions::{MAX_CAPTION_BYTES, RESIDENT_CHUNK, entries, load};
pub use missing::{Missing, missing};
pub use part::{MAX_PARTS, NotAPart, Part, PartReport};
use pauses::Pauses;
use pictures::PicturePlan;
pub use pictures::{PictureStats, clip_latents, encode_pictures, pixels};

use crate::base_model::{self, BaseModel};
use crate::cache::{self, Manifest};
use crate::dataset::{self, Item, Preview};
use crate::experiment::{self, Experiment};
use crate::monitor::{Clock, Monitor, Signal, Stop};
use crate::nn::Kernels;
use crate::nn::weights::DigestMemo;
use crate::shown;
use crate::store::{self, Lacking, PushReport, Store};
use crate::text::{self, tokenizer};

/// Why captions or pictures could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base model.
    #[error(transparent)]
    Base(#[from] base_model::Error),
    /// The pictures and captions.
    #[error(transparent)]
    Dataset(#[from] dataset::Error),
    /// The file of captions.
    #[error("{}: {why}", shown::path(file))]
    Captions {
        /// The file of captions.
        file: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A caption is no caption.
    #[error("a caption has {bytes} bytes, expected at most {most}: `{caption}`", most = captions::MAX_CAPTION_BYTES)]
    LongCaption {
        /// Its beginning.
        caption: String,
        /// Its length.
        bytes: usize,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The disk has no room for what is to be encoded.
    #[error(
        "{}: what is to be encoded takes {needed}, its disk has {free} free: make room, or name a store elsewhere under [store]",
        shown::path(store)
    )]
    NoSpace {
        /// The store's folder.
        store: PathBuf,
        /// What they take.
        needed: String,
        /// What is free.
        free: String,
    },
    /// The store is only read, and lacks entries.
    #[error(
        "{} is only read, and lacks {}: encode into a folder, or an s3://, gs:// or az:// address, under [store]",
        shown::path(store),
        shown::counted(*lacking, "entry")
    )]
    OnlyRead {
        /// The store's address.
        store: PathBuf,
        /// How many entries it lacks.
        lacking: u64,
    },
    /// A caption and an encoder do not fit.
    #[error("{slot}: {source}")]
    Encoder {
        /// The encoder's slot in the recipe: `clip_l`, `t5`.
        slot: String,
        /// What is wrong.
        source: text::Error,
    },
    /// The tokenizer.
    #[error("{slot}: caption `{caption}`: {source}")]
    Tokenizer {
        /// The encoder's slot in the recipe: `clip_l`, `t5`.
        slot: String,
        /// The caption's beginning.
        caption: String,
        /// What is wrong.
        source: tokenizer::Error,
    },
    /// The VAE failed on a picture.
    #[error("{}: {source}", shown::path(path))]
    Vae {
        /// The picture's file.
        path: PathBuf,
        /// What is wrong.
        source: candle_core::Error,
    },
    /// A result could not be turned into bytes.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// Where encoders compute, and where a large one's weights are meanwhile.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// Where encoders and VAE compute.
    pub device: Device,
    /// Our own CUDA kernels that they compute by there, if any.
    pub kernels: Kernels,
    /// Encoders with more bytes of weights than this are read layer by layer.
    pub resident_limit_bytes: u64,
    /// How long to wait for a process that cleans the store up or mends it.
    pub wait: Duration,
    /// Seconds since 1970, by which what was made is pushed to object storage now and then.
    pub clock: Clock,
    /// Asked between entries by [`run`] and a worker, which end with what they have made.
    pub stop: Stop,
}

/// Of what an Experiment needs, what is to be encoded.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The lines of a text file, and nothing else.
    pub captions: Option<&'a Path>,
    /// The entries of this part.
    pub part: Part,
}

impl Default for Selection<'_> {
    /// All that the Experiment needs.
    fn default() -> Self {
        let (captions, part) = (None, Part::WHOLE);
        Self { captions, part }
    }
}

/// What encoding came to.
#[derive(Debug, Serialize)]
pub struct EncodeReport {
    /// The store's folder.
    pub store: PathBuf,
    /// None where everything was asked for; else all other numbers are of the part.
    pub part: Option<PartReport>,
    /// What went to object storage, where the store is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed: Option<PushReport>,
    /// One for each encoder, in the recipe's order.
    pub captions: Vec<CaptionStats>,
    /// None where only captions were asked for.
    pub pictures: Option<PictureStats>,
    /// The reference pictures among these; None where there are none.
    pub references: Option<References>,
    /// The signal that ended it before all was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Signal>,
}

/// The reference pictures of an Experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct References {
    /// Pictures of the data sets that have one.
    pub pairs: usize,
    /// Pictures of the data sets that have none.
    pub without: usize,
    /// Different references, those of previews among them.
    pub different: usize,
}

impl References {
    /// Of these; None where there are none.
    pub fn of(items: &[Item], previews: &[Preview]) -> Option<Self> {
        let of_items = items.iter().filter_map(|item| item.reference.as_ref());
        let of_previews = previews.iter().map(|preview| &preview.reference);
        let pairs = of_items.clone().count();
        let different: BTreeSet<_> = of_items.chain(of_previews).map(|r| r.digest).collect();
        (!different.is_empty()).then_some(Self {
            pairs,
            without: items.len() - pairs,
            different: different.len(),
        })
    }
}

/// Encodes what an Experiment needs, or a selection of it.
///
/// # Errors
/// At the first thing that cannot be encoded or stored; what was committed before stays. A picture that does not decode is
/// reported and passed over.
pub fn run(
    experiment: &Experiment,
    selection: Selection<'_>,
    options: &EncodeOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<EncodeReport, Error> {
    let Selection { captions, part } = selection;
    let store = experiment.store_path().map_err(base_model::Error::from)?;
    let only_captions = captions.is_some() || experiment.datasets().is_empty();
    let mut texts = match captions {
        Some(file) => read_captions(file)?,
        None => experiment.extra_captions(),
    };
    if only_captions && captions.is_none() && texts.is_empty() {
        let file = experiment.file.clone();
        return Err(base_model::Error::from(experiment::Error::NothingToEncode { file }).into());
    }
    let base = open_base(experiment, memo, monitor)?;
    let store = Store::open_or_create_at(&store)?.waiting(options.wait);
    let multiple = base.latent_geometry().side_multiple();
    let (items, unusable) = match only_captions {
        true => (Vec::new(), 0),
        false => dataset::open_usable(experiment, multiple, monitor)?,
    };
    let previews = match captions {
        Some(_) => Vec::new(),
        None => dataset::previews(experiment, &base.settings.sample, multiple)?,
    };
    let viewed = dataset::viewed(&items, &previews);
    if captions.is_none() {
        texts = cache::captions(experiment, &items);
    }
    let plan = CaptionPlan::new(&base, &store, &texts, part)?;
    let latents = match only_captions && previews.is_empty() {
        true => None,
        false => Some(PicturePlan::new(&base.vae, &store, &viewed, part)?),
    };
    let of_part = PartReport::new(part, &plan, latents.as_ref());
    if let Some(report) = &of_part {
        monitor.note(&report.to_string());
    }
    missing::tell(&plan, &items, latents.as_ref(), monitor);
    let of_latents = latents.as_ref().map(PicturePlan::missing);
    // Of all together, before the first is begun.
    let missing = of_latents.into_iter().chain([plan.missing()]).sum();
    check_writable(&store, &missing)?;
    check_room(&store, missing)?;
    let mut pauses = Pauses::of(&store, options);
    let embedded = plan.encode(options, &mut pauses, monitor)?;
    let pictures = match latents {
        None => None,
        Some(latents) => {
            let on = (&options.device, &options.kernels);
            let mut stats = latents.encode(on, &mut pauses, monitor)?;
            stats.failed += unusable;
            Some(stats)
        }
    };
    let stopped = pauses.stopped();
    let used = Manifest::new(&base, texts.iter().map(String::as_str), &viewed);
    // After the entries are there, and without those of pictures that could not be used.
    let of_part = keep(&used, &store, (experiment, selection), of_part, monitor)?;
    let pushed = share(&store, monitor)?;
    Ok(EncodeReport {
        store: store.shown().to_owned(),
        part: of_part,
        pushed,
        captions: embedded,
        pictures,
        references: References::of(&items, &previews),
        stopped,
    })
}

/// The base model, and what a person should know of it.
fn open_base(
    experiment: &Experiment,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<BaseModel, Error> {
    monitor.start("reading the base model", None);
    let base = BaseModel::open(experiment, memo)?;
    monitor.finish();
    for note in &base.notes {
        monitor.note(note);
    }
    for deviation in base.recipe.deviations() {
        monitor.note(&format!(
            "recipe {} deviates: {deviation}",
            base.recipe.name()
        ));
    }
    Ok(base)
}

/// Refuses to make what a store lacks that is only read: what came of it would be lost.
pub(crate) fn check_writable(store: &Store, missing: &Missing) -> Result<(), Error> {
    match store.is_only_read() && missing.entries > 0 {
        true => Err(Error::OnlyRead {
            store: store.shown().to_owned(),
            lacking: missing.entries,
        }),
        false => Ok(()),
    }
}

/// Puts what was added to a store on object storage where others see it, and tells what was left out. Of one that is only read nothing
/// was added.
pub(crate) fn share(store: &Store, monitor: &dyn Monitor) -> Result<Option<PushReport>, Error> {
    if store.is_only_read() {
        return Ok(None);
    }
    let pushed = store.share(monitor)?;
    for problem in pushed.iter().flat_map(|pushed| &pushed.problems) {
        monitor.problem(&problem.to_string());
    }
    Ok(pushed)
}

/// Keeps what was encoded from garbage collection: by the run of the Experiment once all of it is there, and of a part by a run of its
/// own until then.
fn keep(
    used: &Manifest,
    store: &Store,
    (experiment, selection): (&Experiment, Selection<'_>),
    report: Option<PartReport>,
    monitor: &dyn Monitor,
) -> Result<Option<PartReport>, store::Error> {
    let by = (experiment, selection.captions);
    let Some(report) = report else {
        used.write(store, "encode", by, Lacking::LeaveOut, monitor)?;
        used.forget_parts(store, "encode", by, monitor)?;
        return Ok(None);
    };
    // First, so that whichever part is the last to end finds all entries and knows that the others' are kept.
    let of_part = used.of(|entry| report.part.has(entry));
    of_part.write_part(store, ("encode", &report.part.name()), by, monitor)?;
    let all_there = used.is_in(store)?;
    // The runs of many parts stay where one would be too long.
    if all_there && used.entries().len() <= store::RUN_LIMIT_ENTRIES {
        used.write(store, "encode", by, Lacking::LeaveOut, monitor)?;
        used.forget_parts(store, "encode", by, monitor)?;
    }
    Ok(Some(PartReport {
        all_there,
        ..report
    }))
}

/// The largest file of captions, in bytes.
const MAX_CAPTIONS_FILE: u64 = 256 << 20;

/// One caption a line, exactly as it stands there; only the line's end is no part of it. Of a `.jsonl` file, that in the field `caption` of
/// each line's object, so that captions may have line ends.
fn read_captions(file: &Path) -> Result<Vec<String>, Error> {
    let fail = |why: String| Error::Captions {
        file: file.to_owned(),
        why,
    };
    let text = experiment::read_text(file, MAX_CAPTIONS_FILE).map_err(fail)?;
    let is_json = file.extension().is_some_and(|end| end == "jsonl");
    let caption = |line: &str| {
        let caption = match is_json {
            true => dataset::json_text(line, "caption")?,
            false => line.to_owned(),
        };
        let (bytes, most) = (caption.len(), captions::MAX_CAPTION_BYTES);
        match bytes > most {
            true => Err(format!(
                "expected a caption of at most {most} bytes, found {bytes}"
            )),
            false => Ok(caption),
        }
    };
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| !(is_json && line.trim().is_empty()))
        .map(|(n, line)| caption(line).map_err(|why| fail(format!("line {n}: {why}"))))
        .collect()
}
