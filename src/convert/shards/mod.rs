//! An Experiment's conditioning and latents as a set of samples for trainers of one's own: shards of WebDataset, or of MDS
//! (mosaicml-streaming), which these libraries read, shuffle and stream as they are.
//!
//! A sample is a picture, or a window of a clip, in the order of the data sets. Its tensors, by their names:
//!
//! - `context` [tokens, width], `pooled` [width] (none of a recipe without): all encoders, as the recipe joins them
//! - `mask` [tokens], bool: true for rows that the denoiser sees, always there
//! - `latents` [channels, height, width], with frames before the height of a model of videos: the posterior's mean, shifted and scaled
//!   as the denoiser takes it; `latents_std`, its deviation, where training draws from the posterior
//! - `time_ids` [6], only where the model is told sizes; `reference`, shaped as `latents`, only of pairs
//!
//! `context.1`, `pooled.1`, `mask.1` are those of the second caption, `latents.1` those of the second view. `meta` says what each is of,
//! by the fingerprints of the store's entries. Samples that are held out for validation are in shards of their own.
//!
//! The set is written beside its place and put there whole. `plumb.json` has the recipe, the specs and the hashes of the shards; each
//! shard, or each index, has the recipe as well.

mod mds;
mod sample;
mod webdataset;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::cache::{CacheError, names};
use super::complete;
use crate::base_model::{self, BaseModel};
use crate::cache::{Description, Manifest};
use crate::dataset::{self, Item};
use crate::digest::canonical_json;
use crate::experiment::Experiment;
use crate::foreign::cache::safetensors;
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::recipe::rules::Unconditional;
use crate::store::{self, NewFolder, TOOL};
use crate::text::spec::Dtype;
use sample::{Sample, Source};

/// The version of what the members of `plumb.json` mean.
const SET_VERSION: u32 = 1;

const SET: &str = "plumb.json";
const NO_CAPTION: &str = "no_caption.safetensors";
/// As mosaicml-streaming names it.
const SHARD_HASH: &str = "sha256";

/// How large a shard may be, in bytes; one is held in memory. MDS counts places in u32.
pub const MAX_SHARD_BYTES: u64 = 4_000_000_000;

/// Whose shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardFormat {
    /// Tar files, as `webdataset` 1.0 reads them.
    Webdataset,
    /// Those of mosaicml-streaming 0.13.
    Mds,
}

/// What a person may choose.
#[derive(Clone, Debug)]
pub struct ShardOptions<'a> {
    /// Whose shards.
    pub format: ShardFormat,
    /// The folder to make.
    pub out: &'a Path,
    /// How context and pooled vector are stored.
    pub dtype: Dtype,
    /// Bytes of a shard, at most, unless one sample has more; from 1 to [`MAX_SHARD_BYTES`].
    pub shard_bytes: u64,
    /// How long to wait for a process that cleans the store up or mends it.
    pub wait: Duration,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct ShardExport {
    /// Whose shards.
    pub format: ShardFormat,
    /// The folder.
    pub out: PathBuf,
    /// The recipe of the conditioning.
    pub recipe: String,
    /// `train`, and `validation` where some are held out.
    pub splits: BTreeMap<&'static str, Split>,
    /// Their bytes.
    pub bytes: u64,
    /// What a loop that reads it has to know, one line each.
    pub notes: Vec<String>,
}

/// A part of a set.
#[derive(Debug, Serialize)]
pub struct Split {
    /// How many samples.
    pub samples: usize,
    /// In the order of the samples.
    pub shards: Vec<ShardFile>,
}

/// A file of samples.
#[derive(Debug, Serialize)]
pub struct ShardFile {
    /// Its name in the folder of its split.
    pub file: String,
    /// How many samples.
    pub samples: usize,
    /// Its bytes.
    pub bytes: u64,
    /// Their hash, in hexadecimal digits.
    pub sha256: String,
}

/// Writes a set.
///
/// # Errors
/// [`CacheError::Refused`] where the store lacks something; [`CacheError::Cannot`] where something is in the folder. Then nothing is
/// written, nor is anything left of a set that cannot be finished.
pub fn shards(
    experiment: &Experiment,
    options: &ShardOptions<'_>,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<ShardExport, CacheError> {
    let place = experiment.store_path().map_err(base_model::Error::from)?;
    let base = BaseModel::open(experiment, memo)?;
    let experiment = &base.experiment;
    let drops = base.recipe.assembly().unconditional == Unconditional::EncodedEmpty;
    let extra = experiment.extra_captions();
    let drops = drops && extra.iter().any(String::is_empty);
    let more = if drops {
        vec![String::new()]
    } else {
        Vec::new()
    };
    let (items, cache) = complete::open(&base, &place, &more, options.wait, monitor)?;
    let source = Source {
        cache,
        size_conditioning: base.flavor.size_conditioning,
        dtype: options.dtype,
    };
    let captions = items.iter().flat_map(|item| &item.captions).chain(&more);
    let used = Manifest::new(
        &base,
        captions.map(String::as_str),
        &dataset::viewed(&items, &[]),
    );
    let description = description(&base, &used, options);
    let folder = NewFolder::create(options.out).map_err(|e| in_words(options.out, e))?;
    monitor.start("write the shards", Some(items.len() as u64));
    let mut splits = BTreeMap::new();
    for (name, held_out) in [("train", false), ("validation", true)] {
        let of_split: Vec<&Item> = items.iter().filter(|i| i.held_out == held_out).collect();
        if !of_split.is_empty() {
            let mut writer = SplitWriter::new(&folder, name, options, &description);
            splits.insert(
                name,
                writer.write_all(experiment, &source, &of_split, monitor)?,
            );
        }
    }
    monitor.finish();
    if drops {
        let bytes = safetensors(&source.no_caption()?, &[]);
        let bytes = bytes.map_err(|what| cannot(&experiment.file, &what))?;
        folder.write(Path::new(NO_CAPTION), &[&bytes])?;
    }
    let mut set = description.clone();
    set["splits"] = json!(splits);
    folder.write(Path::new(SET), &[&canonical_json(&set)])?;
    folder.finish().map_err(|e| in_words(options.out, e))?;
    let shards = splits.values().flat_map(|split| &split.shards);
    Ok(ShardExport {
        format: options.format,
        out: options.out.to_owned(),
        recipe: base.recipe.name().to_string(),
        bytes: shards.map(|shard| shard.bytes).sum(),
        notes: notes(&base, &items, drops, (&splits, options)),
        splits,
    })
}

/// What all of a set was made by: as in `plumb inspect manifest`, with the specs themselves.
fn description(base: &BaseModel, used: &Manifest, options: &ShardOptions<'_>) -> Value {
    let mut specs = BTreeMap::new();
    for encoder in &base.encoders {
        specs.insert(encoder.fingerprint.to_string(), json!(encoder.spec));
    }
    specs.insert(base.vae.fingerprint.to_string(), json!(base.vae.spec));
    json!({
        "version": SET_VERSION,
        "tool": TOOL,
        "format": options.format,
        "dtype": options.dtype,
        // As in a LoRA's metadata and in a run.
        "entries": used.digest(),
        "model": Description::from(base),
        "specs": specs,
    })
}

fn notes(
    base: &BaseModel,
    items: &[Item],
    drops: bool,
    (splits, options): (&BTreeMap<&'static str, Split>, &ShardOptions<'_>),
) -> Vec<String> {
    let out = options.out.display();
    let last = splits
        .get("train")
        .map_or(0, |split| split.shards.len())
        .saturating_sub(1);
    let mut notes = vec![match options.format {
        ShardFormat::Webdataset if last == 0 => {
            format!("webdataset.WebDataset(\"{out}/train/000000.tar\").decode()")
        }
        ShardFormat::Webdataset => format!(
            "webdataset.WebDataset(\"{out}/train/{{000000..{last:06}}}.tar\", shardshuffle={}).decode()",
            last + 1
        ),
        ShardFormat::Mds => format!(
            "streaming.StreamingDataset(local=\"{out}\", split=\"train\", batch_size=N, shuffle=True)"
        ),
    }];
    let count = |is: &dyn Fn(&Item) -> bool| items.iter().filter(|item| is(item)).count();
    for (many, what, tensor) in [
        (
            count(&|item| item.captions.len() > 1),
            "captions",
            "context",
        ),
        (count(&|item| item.views.len() > 1), "views", "latents"),
    ] {
        if many > 0 {
            notes.push(format!(
                "samples with several {what}: {many}; `{tensor}` is of the first, `{tensor}.1` of the second, and `plumb train` draws one each time"
            ));
        }
    }
    let repeated = count(&|item| item.repeats > 1);
    if repeated > 0 {
        notes.push(format!(
            "samples with repeats: {repeated}; they are there once, and `plumb train` takes them as often in an epoch as `repeats` in their meta says"
        ));
    }
    let mut stored = base.encoders.iter().map(|e| e.spec.precision.output);
    let first = stored
        .next()
        .filter(|first| stored.all(|other| other == *first));
    if let (Some(narrow @ (Dtype::Bf16 | Dtype::F16)), Dtype::F32) = (first, options.dtype) {
        let name = if narrow == Dtype::Bf16 { "bf16" } else { "f16" };
        notes.push(format!(
            "the store has the embeddings in {name}: `--dtype {name}` writes the same numbers in half of the bytes"
        ));
    }
    if drops {
        notes.push(format!(
            "{NO_CAPTION} has what takes the place of a caption that is dropped"
        ));
    }
    notes
}

/// Writes the shards of a split.
struct SplitWriter<'a> {
    folder: &'a NewFolder,
    name: &'static str,
    options: &'a ShardOptions<'a>,
    description: &'a Value,
    /// Those of the shard that is being filled.
    samples: Vec<Vec<u8>>,
    shards: Vec<ShardFile>,
}

impl<'a> SplitWriter<'a> {
    fn new(
        folder: &'a NewFolder,
        name: &'static str,
        options: &'a ShardOptions<'a>,
        description: &'a Value,
    ) -> Self {
        Self {
            folder,
            name,
            options,
            description,
            samples: Vec::new(),
            shards: Vec::new(),
        }
    }

    fn write_all(
        &mut self,
        experiment: &Experiment,
        source: &Source<'_>,
        items: &[&Item],
        monitor: &dyn Monitor,
    ) -> Result<Split, CacheError> {
        let sets = experiment.datasets();
        let mut filled = 0;
        for (number, item) in items.iter().enumerate() {
            let failed = |what: String| cannot(&item.picture, &what);
            let set = names::set_of(&sets, item).ok();
            let sample = self
                .encode(&source.sample(number, item, set)?)
                .map_err(failed)?;
            let bytes = sample.len() as u64;
            if !self.samples.is_empty() && filled + bytes > self.options.shard_bytes {
                self.flush()?;
                filled = 0;
            }
            filled += bytes;
            self.samples.push(sample);
            monitor.advance(1);
        }
        self.flush()?;
        if self.options.format == ShardFormat::Mds {
            let index = mds::index(&self.shards, self.options.shard_bytes, self.description);
            self.folder
                .write(&Path::new(self.name).join(mds::INDEX), &[&index])?;
        }
        Ok(Split {
            samples: items.len(),
            shards: std::mem::take(&mut self.shards),
        })
    }

    fn encode(&self, sample: &Sample) -> Result<Vec<u8>, String> {
        match self.options.format {
            ShardFormat::Webdataset => webdataset::sample(sample),
            ShardFormat::Mds => mds::sample(sample),
        }
    }

    /// Writes the samples that are held.
    fn flush(&mut self) -> Result<(), CacheError> {
        let number = self.shards.len();
        let (file, head, end) = match self.options.format {
            ShardFormat::Webdataset => {
                let head = webdataset::head(&canonical_json(self.description));
                (webdataset::file_name(number), head, &webdataset::END[..])
            }
            ShardFormat::Mds => {
                let lengths: Vec<usize> = self.samples.iter().map(Vec::len).collect();
                let head = mds::head(&lengths, self.options.shard_bytes);
                (mds::file_name(number), head, &[][..])
            }
        };
        let head = head.map_err(|what| cannot(&self.options.out.join(&file), &what))?;
        let samples = self.samples.iter().map(Vec::as_slice);
        let chunks: Vec<&[u8]> = std::iter::once(&head[..])
            .chain(samples)
            .chain([end])
            .collect();
        let mut hash = Sha256::new();
        for chunk in &chunks {
            hash.update(chunk);
        }
        self.folder
            .write(&Path::new(self.name).join(&file), &chunks)?;
        self.shards.push(ShardFile {
            file,
            samples: self.samples.len(),
            bytes: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
            sha256: format!("{:x}", hash.finalize()),
        });
        self.samples.clear();
        Ok(())
    }
}

fn cannot(file: &Path, what: &str) -> CacheError {
    CacheError::Cannot {
        file: file.to_owned(),
        what: what.to_owned(),
    }
}

/// A refusal is of the folder that was named; anything else says itself where it was.
fn in_words(out: &Path, error: store::Error) -> CacheError {
    match error {
        store::Error::Refused(what) => cannot(out, &what),
        other => other.into(),
    }
}
