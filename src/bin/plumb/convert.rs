//! `plumb import` and `plumb export`: LoRAs from and for other programs, configs of other trainers, and caches for them.

mod config;

use std::path::{Path, PathBuf};

use plumb::convert::cache::{CacheError, CacheExport, CacheOptions, CacheTarget, cache};
use plumb::convert::shards::{
    MAX_SHARD_BYTES, ShardExport, ShardFormat, ShardOptions, Split, shards,
};
use plumb::convert::{self, ConvertOptions};
use plumb::dataset;
use plumb::lora::SaveDtype;
use plumb::lora::formats::{Expert, Target};
use plumb::monitor::Monitor as _;
use plumb::shown::counted;
use plumb::text::spec;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, WaitArgs};

#[derive(clap::Args)]
pub(crate) struct ImportArgs {
    #[command(subcommand)]
    command: Import,
}

#[derive(clap::Subcommand)]
enum Import {
    /// Convert a LoRA that another program made to the naming of diffusers, which is plumb's.
    ///
    /// Reads the namings of kohya's scripts, ComfyUI, diffusers, PEFT, ai-toolkit, OneTrainer and SimpleTuner, for
    /// sd3, flux1, sdxl and sd1; which it is, the file tells. Nothing is lost: the update to each weight stays the same.
    Lora {
        #[command(flatten)]
        source: Source,
    },
    /// Make an Experiment of another trainer's config, and tell what becomes of every setting.
    ///
    /// Reads command lines, config files and data sets of kohya's sd-scripts and musubi-tuner, YAML of ai-toolkit, config.json
    /// (.toml, .env) and multidatabackend.json of SimpleTuner, command lines of diffusers' LoRA scripts, JSON of OneTrainer and
    /// TOML of diffusion-pipe. The table says of each setting what it became, or why nothing comes of it, with the place in the
    /// trainer's source. Conditioning is made as the base model expects unless --keep-recipe is given.
    Config(config::Args),
}

#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    command: Export,
}

#[derive(clap::Subcommand)]
enum Export {
    /// Convert a LoRA to the naming of another program.
    ///
    /// Nothing is lost: the update to each weight stays the same. Where the program would ignore one of the adapters,
    /// nothing is written.
    Lora {
        #[command(flatten)]
        source: Source,
        /// Whose naming; ComfyUI reads `kohya`, and `diffusers` for sd3 and flux1.
        #[arg(long)]
        format: Format,
    },
    /// Write the embeddings and latents of an Experiment as the cache of another trainer, or as shards for a loop of one's own.
    ///
    /// A trainer then trains from them as if it had made them: its own names, shapes and flags. Latents are the posterior's mean.
    /// Where its cache cannot hold what the Experiment says, or it would look for other crops or captions, nothing is written.
    ///
    /// `webdataset` and `mds` (mosaicml-streaming) are sets of samples with all that the denoiser receives, in a new folder that is there
    /// whole or not at all. docs/shards.md has a loop for each.
    Cache(CacheArgs),
}

#[derive(clap::Args)]
struct CacheArgs {
    /// The Experiment file; its store must hold what it needs.
    experiment: PathBuf,
    /// Whose cache, or which shards.
    #[arg(long = "for", value_name = "TRAINER")]
    target: CacheFor,
    /// The folder to write, such as that of the pictures; for shards, a new one.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// How embeddings are stored.
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// Replace files that are there; not for shards.
    #[arg(long)]
    overwrite: bool,
    /// Of shards: how large one may be, in MB; one is held in memory [default: 256].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=MAX_SHARD_BYTES / MB))]
    shard_size: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
}

const MB: u64 = 1_000_000;
const DEFAULT_SHARD_MB: u64 = 256;

#[derive(Clone, Copy, clap::ValueEnum)]
enum CacheFor {
    Kohya,
    Musubi,
    AiToolkit,
    Simpletuner,
    Webdataset,
    Mds,
}

#[derive(clap::Args)]
struct Source {
    /// The LoRA: a safetensors file, or a folder that PEFT or diffusers saved.
    file: PathBuf,
    /// The file to write, for PEFT the folder; by default beside FILE, with the naming in its name.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How numbers are stored; by default as in FILE, or as f32 where that would round them.
    #[arg(long)]
    dtype: Option<Dtype>,
    /// The family it is for, where the file does not tell.
    #[arg(long, value_name = "NAME")]
    family: Option<String>,
    /// Leave out adapters of text encoders. Without this a file that has some is refused.
    #[arg(long)]
    without_text_encoders: bool,
    /// Take the adapters of one expert, of a file that has those of both (Wan 2.2). Without this such a file is refused.
    #[arg(long)]
    expert: Option<Half>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Half {
    #[value(name = "high_noise")]
    HighNoise,
    #[value(name = "low_noise")]
    LowNoise,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Diffusers,
    Kohya,
    AiToolkit,
    /// A folder as `save_pretrained` of PEFT writes it.
    Peft,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

pub(crate) fn import(args: &ImportArgs, ui: &Ui) -> CommandResult {
    match &args.command {
        Import::Lora { source } => lora(source, Format::Diffusers, ui),
        Import::Config(args) => config::run(args, ui),
    }
}

pub(crate) fn export(args: &ExportArgs, ui: &Ui) -> CommandResult {
    match &args.command {
        Export::Lora { source, format } => lora(source, *format, ui),
        Export::Cache(args) => export_cache(args, ui),
    }
}

fn export_cache(args: &CacheArgs, ui: &Ui) -> CommandResult {
    let target = match args.target {
        CacheFor::Kohya => CacheTarget::Kohya,
        CacheFor::Musubi => CacheTarget::Musubi,
        CacheFor::AiToolkit => CacheTarget::AiToolkit,
        CacheFor::Simpletuner => CacheTarget::Simpletuner,
        CacheFor::Webdataset => return export_shards(args, ShardFormat::Webdataset, ui),
        CacheFor::Mds => return export_shards(args, ShardFormat::Mds, ui),
    };
    if args.shard_size.is_some() {
        let why = "--shard-size: a trainer's cache has no shards; it is for webdataset and mds";
        return Err(Failure::usage(why));
    }
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let options = CacheOptions {
        target,
        out: &args.out,
        dtype: args.dtype.of_tensors(),
        overwrite: args.overwrite,
        wait: args.wait.limit(),
    };
    let report = cache(&experiment, &options, &mut world::digest_memo(), ui);
    let report = report.map_err(failure)?;
    ui.report(&report, &describe(&report))
}

fn export_shards(args: &CacheArgs, format: ShardFormat, ui: &Ui) -> CommandResult {
    if args.overwrite {
        let why =
            "--overwrite: shards are put into a new folder; remove the old one, or name another";
        return Err(Failure::usage(why));
    }
    let experiment = world::open_experiment(&args.experiment, ui)?;
    let options = ShardOptions {
        format,
        out: &args.out,
        dtype: args.dtype.of_tensors(),
        shard_bytes: args.shard_size.unwrap_or(DEFAULT_SHARD_MB) * MB,
        wait: args.wait.limit(),
    };
    let report = shards(&experiment, &options, &mut world::digest_memo(), ui);
    let report = report.map_err(failure)?;
    ui.report(&report, &describe_shards(&report))
}

fn failure(error: CacheError) -> Failure {
    match error {
        CacheError::Refused(refusal) => Failure::refused(refusal),
        CacheError::Base(error) => world::base_failure(error),
        CacheError::Dataset(dataset::Error::Several(_)) => Failure::errors(error),
        CacheError::Cannot { .. } => Failure::usage(error),
        other => Failure::error(other),
    }
}

fn describe_shards(report: &ShardExport) -> String {
    let split = |(name, split): (&&str, &Split)| {
        let of = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let (samples, shards) = (of(split.samples, "sample"), of(split.shards.len(), "shard"));
        format!("{name} {samples} in {shards}")
    };
    let splits: Vec<String> = report.splits.iter().map(split).collect();
    let mut lines = vec![format!(
        "{}: {} (recipe {}), {:.1} MB",
        report.out.display(),
        splits.join(", "),
        report.recipe,
        report.bytes as f64 / 1e6
    )];
    lines.extend(report.notes.iter().map(|note| format!("  {note}")));
    lines.join("\n")
}

impl Dtype {
    fn of_tensors(self) -> spec::Dtype {
        match self {
            Self::F32 => spec::Dtype::F32,
            Self::F16 => spec::Dtype::F16,
            Self::Bf16 => spec::Dtype::Bf16,
        }
    }
}

fn describe(report: &CacheExport) -> String {
    let mut text = format!(
        "{}: for {}, {} of embeddings (recipe {}) and {} of latents, {:.1} MB",
        report.out.display(),
        report.target.name(),
        counted(report.texts, "file"),
        report.recipe,
        report.latents,
        report.bytes as f64 / 1e6
    );
    for line in &report.settings {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

fn lora(source: &Source, format: Format, ui: &Ui) -> CommandResult {
    let (target, name) = match format {
        Format::Diffusers => (Target::Diffusers, "diffusers"),
        Format::Kohya => (Target::Kohya, "kohya"),
        Format::AiToolkit => (Target::AiToolkit, "ai-toolkit"),
        Format::Peft => (Target::Peft, "peft"),
    };
    let expert = source.expert.map(|half| match half {
        Half::HighNoise => Expert::HighNoise,
        Half::LowNoise => Expert::LowNoise,
    });
    // The name is what tells people and programs which expert a file of one network is of.
    let named = expert.map_or(name.to_owned(), |of| format!("{}-{name}", of.name()));
    let out = match &source.out {
        Some(out) => out.clone(),
        None => beside(&source.file, &named, format),
    };
    let options = ConvertOptions {
        target,
        dtype: source.dtype.map(|dtype| match dtype {
            Dtype::F32 => SaveDtype::F32,
            Dtype::F16 => SaveDtype::F16,
            Dtype::Bf16 => SaveDtype::Bf16,
        }),
        family: source.family.as_deref(),
        without_text_encoders: source.without_text_encoders,
        expert,
    };
    let report = convert::lora(&source.file, &out, &options, ui).map_err(Failure::error)?;
    if report.left_out > 0 {
        let tensors = counted(report.left_out, "tensor of text encoders");
        ui.note(&format!("left out: {tensors}"));
    }
    let ranks: Vec<String> = report.ranks.iter().map(usize::to_string).collect();
    let text = format!(
        "{}: {}, {} of rank {}, {}, from the naming of {} to that of {name}",
        out.display(),
        report.family,
        counted(report.modules, "module"),
        ranks.join(", "),
        report.dtype,
        report.from,
    );
    ui.report(&report, &text)
}

/// `lora.safetensors` becomes `lora-kohya.safetensors`, and so does a folder `lora`; for PEFT, the folder `lora-peft`.
fn beside(file: &Path, name: &str, format: Format) -> PathBuf {
    // The folder that one is in, or the one above it, is called `.` or `..`, which are no names.
    let real = file.canonicalize().ok();
    let file = match (file.file_name(), &real) {
        (None, Some(real)) => real,
        _ => file,
    };
    let mut named = file.file_stem().unwrap_or_default().to_owned();
    let end = match format {
        Format::Peft => "",
        _ => ".safetensors",
    };
    named.push(format!("-{name}{end}"));
    file.with_file_name(named)
}
