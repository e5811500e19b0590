//! `plumb demo`: the whole story on a miniature of SD3.5, FLUX.1 or SDXL. Only the first is in the program: a miniature has 6 to
//! 8 MB, and a registry takes packages of 10 MB.

use std::path::{Path, PathBuf};

use image::RgbImage;
use include_dir::{Dir, include_dir};
use plumb::base_model::{self, BaseModel};
use plumb::cache::ModelCache;
use plumb::encode::{self, Selection};
use plumb::experiment::Experiment;
use plumb::lora;
use plumb::models::Denoiser;
use plumb::monitor::{Monitor as _, never};
use plumb::sample;
use plumb::sample::networks::{self, Network};
use plumb::sample::previews;
use plumb::sample::sheet::{SheetRow, contact_sheet};
use plumb::store::{self, Store};
use plumb::train::{self, Error, TrainOptions};
use serde::Serialize;

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, ComputeDevice, DeviceArgs, WaitArgs};

/// The miniature of SD3.5.
static TINY_SD3: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/tiny-sd3");
/// Captioned pictures of a style that no miniature has seen.
static TINY_STYLE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/tiny-style");

/// What differs between the demos.
struct DemoStory {
    /// The folder of the miniature, in `assets/` and where the demo works.
    model: &'static str,
    /// The miniature, where it is in the program.
    bundled: Option<&'static Dir<'static>>,
    /// The Experiment, as a person would write it.
    experiment: &'static str,
    /// The mismatch that is refused, in words and as a deviation.
    mismatch: &'static str,
    deviation: &'static str,
    /// Two recipes worth comparing.
    recipes: &'static str,
    /// The Experiment to begin one's own with.
    template: &'static str,
}

const SD3: DemoStory = DemoStory {
    model: "tiny-sd3",
    bundled: Some(&TINY_SD3),
    experiment: include_str!("../../../configs/demo/sd3.toml"),
    mismatch: "T5 captions padded to 154 tokens instead of 77",
    deviation: "t5.tokens.min_tokens = 154\nt5.tokens.max_tokens = 154",
    recipes: "sd3/3.5-large:reference sd3/3.5-large:kohya",
    template: "configs/sd35_large_lora.toml",
};

const FLUX1: DemoStory = DemoStory {
    model: "tiny-flux",
    bundled: None,
    experiment: include_str!("../../../configs/demo/flux1.toml"),
    mismatch: "T5 captions padded to 256 tokens instead of 512",
    deviation: "t5.tokens.min_tokens = 256\nt5.tokens.max_tokens = 256",
    recipes: "flux1/dev:reference flux1/dev:kohya",
    template: "configs/flux1_dev_lora.toml",
};

const SDXL: DemoStory = DemoStory {
    model: "tiny-sdxl",
    bundled: None,
    experiment: include_str!("../../../configs/demo/sdxl.toml"),
    mismatch: "CLIP-L's last layer instead of the last but one",
    deviation: "clip_l.forward.hidden_layer = -1",
    recipes: "sdxl/base-1.0:reference sdxl/base-1.0:kohya",
    template: "configs/sdxl_lora.toml",
};

/// The miniatures that there are.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Family {
    Sd3,
    Flux1,
    Sdxl,
}

impl Family {
    fn story(self) -> &'static DemoStory {
        match self {
            Self::Sd3 => &SD3,
            Self::Flux1 => &FLUX1,
            Self::Sdxl => &SDXL,
        }
    }
}

/// Show the whole story on a miniature of SD3.5: encode, train, sample before and after, refuse a mismatch, report.
///
/// It needs no download and no GPU and takes a few minutes. Everything lies in one folder, which may be removed. The
/// miniatures of FLUX.1 and SDXL are in plumb's repository: `--family flux1 --model assets/tiny-flux`,
/// `--family sdxl --model assets/tiny-sdxl`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The family of the base model.
    #[arg(long, value_enum, default_value = "sd3")]
    family: Family,
    /// The folder of the miniature, for a family whose own is not in the program.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// The folder to work in.
    #[arg(long, value_name = "FOLDER", default_value = "plumb-demo")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Report {
    contact_sheet: PathBuf,
    lora: PathBuf,
    experiment: PathBuf,
    refusal: String,
    page: PathBuf,
    seconds: f64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let started = world::now_seconds();
    let (folder, story) = (&args.out, args.family.story());
    let file = lay_out(folder, story, args.model.as_deref())?;
    let experiment = world::open_experiment(&file, ui)?;
    let place = args.device.open(ui)?;
    let told = |text: &str| ui.note(text);

    told("1. encode: captions and pictures into the store, each once");
    let (encode_options, mut memo) = (
        world::encode_options(&place, &WaitArgs::default()),
        world::digest_memo(),
    );
    let encoded = encode::run(
        &experiment,
        Selection::default(),
        &encode_options,
        &mut memo,
        ui,
    )
    .map_err(crate::encode::failure)?;
    told(&indent(&crate::encode::describe(&encoded)));

    told("\n2. train: a LoRA from the store");
    let options = options(&experiment, &place);
    let trained =
        train::run(&experiment, &options, &mut memo, ui).map_err(crate::train::failure)?;
    told(&indent(&crate::train::describe(&trained)));
    let lora = trained
        .lora
        .ok_or_else(|| Failure::error("the training did not finish"))?;

    told("\n3. sample: the same captions and noise, without and with the LoRA");
    let sheet = folder.join("before-after.png");
    before_and_after(&experiment, &lora, &sheet, &place, ui)?;
    told(&indent(&sheet.display().to_string()));

    told(&format!(
        "\n4. refuse: the same Experiment, but {}",
        story.mismatch
    ));
    let refusal = refused(&experiment, story, folder, &place, ui)?;
    told(&indent(&refusal));

    told("\n5. look: tokens, a map of the captions, the training's curves");
    let page = folder.join("report.html");
    crate::inspect::report::write_page(&file, &page, ui)?;
    told(&indent(&page.display().to_string()));

    let seconds = world::now_seconds() - started;
    let report = Report {
        contact_sheet: sheet,
        lora,
        experiment: file,
        refusal,
        page,
        seconds,
    };
    ui.report(&report, &farewell(&report, story))
}

fn options(experiment: &Experiment, place: &ComputeDevice) -> TrainOptions {
    TrainOptions {
        // The folder may hold an earlier demo's run, which has nothing left to do.
        restart: true,
        dump_step: None,
        stop_after: None,
        clock: world::now_seconds,
        stop: never,
        placement: base_model::placement(experiment, &place.device, &place.kernels),
        memory_bytes: place.memory_bytes,
        wait: WaitArgs::default().limit(),
    }
}

/// Brings the base model (from the folder `model`, if there is one), the pictures and the Experiment together; gives the
/// Experiment's file.
fn lay_out(folder: &Path, story: &DemoStory, model: Option<&Path>) -> Result<PathBuf, Failure> {
    let to = folder.join(story.model);
    match (model, story.bundled) {
        (Some(from), _) => copy(from, &to)?,
        (None, Some(bundled)) => unpack(bundled, &to)?,
        (None, None) => {
            return Err(Failure::usage(format!(
                "this miniature is not in the program: give its folder with --model (assets/{} in a clone of {})",
                story.model,
                env!("CARGO_PKG_REPOSITORY")
            )));
        }
    }
    unpack(&TINY_STYLE, &folder.join("tiny-style"))?;
    let file = folder.join("demo.toml");
    store::write_file(&file, &[story.experiment.as_bytes()]).map_err(Failure::error)?;
    Ok(file)
}

fn unpack(asset: &Dir<'_>, to: &Path) -> Result<(), Failure> {
    create_folders(asset, to)
        .and_then(|()| asset.extract(to))
        .map_err(|e| Failure::error(format!("{}: {e}", to.display())))
}

/// The folders below an asset, which its `extract` expects to be there.
fn create_folders(asset: &Dir<'_>, under: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(under.join(asset.path()))?;
    asset
        .dirs()
        .try_for_each(|inner| create_folders(inner, under))
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let failed =
        |path: &Path, e: std::io::Error| Failure::error(format!("{}: {e}", path.display()));
    std::fs::create_dir_all(to).map_err(|e| failed(to, e))?;
    for entry in std::fs::read_dir(from).map_err(|e| failed(from, e))? {
        let entry = entry.map_err(|e| failed(from, e))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &to)?,
            false => std::fs::copy(&path, &to)
                .map(drop)
                .map_err(|e| failed(&path, e))?,
        }
    }
    Ok(())
}

fn before_and_after(
    experiment: &Experiment,
    lora: &Path,
    sheet: &Path,
    place: &ComputeDevice,
    ui: &Ui,
) -> Result<(), Failure> {
    let base = BaseModel::open(experiment, &mut world::digest_memo()).map_err(Failure::error)?;
    let store = Store::open_at(&experiment.store_path().map_err(Failure::usage)?)
        .map_err(Failure::error)?;
    let source = previews::open(&base, &store, &[]).map_err(Failure::error)?;
    let placement = base_model::placement(experiment, &place.device, &place.kernels);
    let denoiser = base.denoiser.load(&placement).map_err(Failure::error)?;
    let adapters = sample::open_lora(lora, &base, ui).map_err(Failure::error)?;
    let steps = base.settings.sample.steps * base.settings.sample.prompts.len();
    ui.start("sampling", Some(2 * steps as u64));
    let sample = |adapters| pictures(&base, &source, denoiser.as_ref(), adapters, ui);
    let (before, after) = (sample(None)?, sample(Some(&adapters))?);
    ui.finish();
    let examples = examples(experiment)?;
    let mut rows = vec![SheetRow {
        label: "pictures of the style, from the training set".to_owned(),
        pictures: examples,
    }];
    let pairs = before.into_iter().zip(after);
    for (prompt, (before, after)) in base.settings.sample.prompts.iter().zip(pairs) {
        rows.push(SheetRow {
            label: prompt.clone(),
            pictures: vec![before, after],
        });
    }
    let picture = contact_sheet(
        "plumb demo: the base model learns a style",
        &["before", "after"],
        &rows,
    );
    let png = previews::png(&picture).map_err(Failure::error)?;
    store::write_file(sheet, &[&png]).map_err(Failure::error)
}

fn pictures(
    base: &BaseModel,
    source: &ModelCache<'_>,
    denoiser: &dyn Denoiser,
    adapters: Option<&lora::AdapterSet>,
    ui: &Ui,
) -> Result<Vec<RgbImage>, Failure> {
    let bound = sample::bind(adapters, denoiser).map_err(Failure::error)?;
    let stages = networks::stages(base, Network::Loaded(denoiser, &bound), None);
    let on = (denoiser.device(), denoiser.kernels());
    let advance = || ui.advance(1);
    let mut made = Vec::new();
    // The demo's models make pictures: one frame each.
    let mut take = |_, picture| {
        made.push(picture);
        Ok(())
    };
    previews::pictures((base, source), &[], &stages, on, &advance, &mut take)
        .map_err(Failure::error)?;
    Ok(made)
}

/// The first two pictures of the training set.
fn examples(experiment: &Experiment) -> Result<Vec<RgbImage>, Failure> {
    let sets = experiment.datasets();
    let Some(set) = sets.first() else {
        return Ok(Vec::new());
    };
    let folder = &set.path;
    let fail = |e: std::io::Error| Failure::error(format!("{}: {e}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(fail)?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "png"));
    // Folders are listed in any order.
    files.sort();
    let open = |p: &PathBuf| image::open(p).map(|i| i.to_rgb8()).map_err(Failure::error);
    files.iter().take(2).map(open).collect()
}

/// Trains under another recipe, which must be refused; gives the refusal's words.
fn refused(
    experiment: &Experiment,
    story: &DemoStory,
    folder: &Path,
    place: &ComputeDevice,
    ui: &Ui,
) -> Result<String, Failure> {
    let changed = format!(
        "{}\n[recipe.deviate]\n{}\n",
        experiment.text, story.deviation
    );
    let file = folder.join("demo-refused.toml");
    store::write_file(&file, &[changed.as_bytes()]).map_err(Failure::error)?;
    let experiment = world::open_experiment(&file, ui)?;
    let options = options(&experiment, place);
    match train::run(&experiment, &options, &mut world::digest_memo(), ui) {
        Err(Error::Refused(refusal)) => Ok(refusal.to_string()),
        Err(other) => Err(Failure::error(other)),
        Ok(_) => Err(Failure::error("a mismatch was not refused; this is a bug")),
    }
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|l| format!("   {l}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn farewell(report: &Report, story: &DemoStory) -> String {
    let folder = report
        .experiment
        .parent()
        .unwrap_or(Path::new("."))
        .display();
    format!(
        "\nDone in {:.0} s. Open {} to see what was learned, and {} in a browser to see\n\
         what it was learned from.\n\n\
         Look further:\n\
         \x20 plumb inspect lora {}\n\
         \x20 plumb recipe diff {}\n\
         \x20 plumb store check --read-data {folder}/store\n\n\
         For your own pictures, copy {}, name your model and your folder, and run\n\
         \x20 plumb encode my.toml && plumb train my.toml",
        report.seconds,
        report.contact_sheet.display(),
        report.page.display(),
        report.lora.display(),
        story.recipes,
        story.template,
    )
}
