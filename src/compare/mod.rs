//! Comparing two LoRAs of one base model: which of them predicts pictures better that neither was trained from.
//!
//! Both see the same pictures with the same noise, so what is measured is a difference for each picture, and pictures are what
//! the interval is over. By default each LoRA gets its captions as it did in training: under the recipe that it says. Who samples both in
//! one program has one recipe for them, so both can be measured under one.

mod differences;
mod error;
mod lora;
mod measure;
mod paired;
mod pictures;
mod report;
mod sheet;

use std::path::{Path, PathBuf};

pub use differences::Difference;
pub use error::Error;
pub use lora::experiment_of;
pub use paired::Paired;
pub use report::{AtLevel, CompareReport, LoraUsed, Measured, OfPicture, RecipeUsed};

use crate::base_model::{self, BaseModel};
use crate::cache::ModelCache;
use crate::dataset::{self, Item, Preview, Subjects};
use crate::digest::Digest;
use crate::encode::{EncodeOptions, encode_captions, encode_pictures, tell_of_no_run};
use crate::experiment::Experiment;
use crate::lora::{AdapterSet, Bound};
use crate::models::memory::{CallShape, context_tokens, fitted};
use crate::models::{Denoiser, Placement};
use crate::monitor::Monitor;
use crate::nn::weights::DigestMemo;
use crate::probe::stats::mean;
use crate::recipe::Recipe;
use crate::sample;
use crate::shown;
use crate::store::{self, Store};
use crate::train::inputs::DrawOptions;
use crate::train::{VALIDATION_SIGMAS, largest_latents};
use lora::Lora;
use measure::{Losses, LossesOf, Predictor};

/// Under which recipe captions are encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Under {
    /// Each LoRA's own: the one that it says it was trained with.
    Own,
    /// The Experiment's for both, its deviations included.
    Experiment,
    /// The variant of this name for both.
    Variant(String),
}

/// What a person may choose about a comparison.
pub struct CompareOptions {
    /// The recipe, or recipes.
    pub under: Under,
    /// Whether the base model is measured too.
    pub with_base: bool,
    /// How often noise is drawn for each picture and noise level.
    pub draws: u64,
    /// A folder for previews, if they are wanted.
    pub out: Option<PathBuf>,
    /// How captions and pictures are encoded that the store lacks.
    pub encode: EncodeOptions,
    /// Where the denoiser computes; its weights stay in their files where they do not fit.
    pub placement: Placement,
    /// Bytes of that device's memory that may be used.
    pub memory_bytes: u64,
}

/// Compares the LoRAs in `files`, A and B, on the base model and the pictures of an Experiment: those that it holds out of training,
/// or all of them where it holds out none and neither was trained from them. What the store lacks is encoded first.
///
/// # Errors
/// If the LoRAs cannot be compared, as the variants of [`Error`] say, or something fails.
pub fn run(
    files: [&Path; 2],
    experiment: &Experiment,
    options: &CompareOptions,
    memo: &mut DigestMemo,
    monitor: &dyn Monitor,
) -> Result<CompareReport, Error> {
    if let Some(folder) = &options.out {
        // Now, and not after an hour of measuring.
        store::check_file(&sheet::file(folder, "png"))?;
    }
    let loras = open(files, experiment, monitor)?;
    let stage = Stage::set(&loras, experiment, options, memo, monitor)?;
    let made = loras.each_ref().map(|lora| lora.made.clone());
    let [a, b] = &loras;
    let (a_before, b_before) = (
        stage.described(a, &stage.under[0]),
        stage.described(b, &stage.under[1]),
    );
    // Before anything is encoded or loaded: a LoRA that does not fit is refused in seconds.
    let [a, b] = loras;
    let adapters = [a.adapters(&stage.base)?, b.adapters(&stage.base)?];
    let placement = stage.fitted(&adapters, options, monitor)?;
    stage.encode(options, monitor)?;
    monitor.start("loading the base model", None);
    let denoiser = (stage.base).load_denoiser(&placement, &stage.digest)?;
    monitor.finish();
    let denoiser = denoiser.as_ref();
    let [of_a, of_b] = &adapters;
    let bound = [
        sample::bind(Some(of_a), denoiser)?,
        sample::bind(Some(of_b), denoiser)?,
    ];
    let Losses { both, base } = stage.measure(denoiser, &bound, options, monitor)?;
    let files = [a_before.file.as_path(), b_before.file.as_path()];
    for (number, losses) in both.iter().chain(&base).enumerate() {
        stage.check_finite((denoiser, files.get(number).copied()), losses)?;
    }
    let (pictures, of_a) = measure::by_file(&stage.pictures, &both[0]);
    let both = [of_a, measure::by_file(&stage.pictures, &both[1]).1];
    let base = base.map(|losses| measure::by_file(&stage.pictures, &losses).1);
    let sheet = match &options.out {
        Some(folder) => {
            Some(stage.previews(denoiser, &bound, files, (folder, options), monitor)?)
        }
        None => None,
    };
    let [each_a, each_b] = both.each_ref().map(|losses| measure::by_picture(losses));
    let (loss_a, loss_b) = (mean(&each_a), mean(&each_b));
    Ok(CompareReport {
        a: Measured {
            lora: a_before,
            loss: loss_a,
        },
        b: Measured {
            lora: b_before,
            loss: loss_b,
        },
        base: base.map(|losses| mean(&measure::by_picture(&losses))),
        data: experiment.file.clone(),
        pictures: pictures.len(),
        clips: Subjects::of(&pictures).clips as usize,
        draws: options.draws,
        difference: Paired::of(&each_a, &each_b),
        levels: report::levels(&both, DrawOptions::of(&stage.base).validation_levels()),
        differences: match &made {
            [Some(a), Some(b)] => differences::between(a, b),
            _ => Vec::new(),
        },
        by_picture: report::of_pictures(&pictures, &both),
        sheet,
    })
}

/// Everything but the network and the adapters.
struct Stage {
    /// The digest of the base model's denoiser.
    digest: Digest,
    /// The base model as the Experiment has it.
    base: BaseModel,
    /// It under the recipe of A and that of B.
    under: [BaseModel; 2],
    store: Store,
    pictures: Vec<Item>,
    /// What the previews are given beside them.
    references: Vec<Preview>,
}

impl Stage {
    /// Opens the base model under the recipes and chooses the pictures; refuses what cannot be compared.
    fn set(
        loras: &[Lora; 2],
        experiment: &Experiment,
        options: &CompareOptions,
        memo: &mut DigestMemo,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let mut base = BaseModel::open(experiment, memo)?;
        for note in &base.notes {
            monitor.note(note);
        }
        let digest = base.denoiser_digest(memo)?;
        check_base(loras, experiment, digest)?;
        for lora in loras {
            sample::refuse_other_expert(lora.read_file(), lora.made.as_ref(), &base)?;
        }
        let recipes = [
            recipe_for(&loras[0], &options.under, &base)?,
            recipe_for(&loras[1], &options.under, &base)?,
        ];
        let path = experiment.store_path().map_err(base_model::Error::from)?;
        let store = Store::open_or_create_at(&path)?.waiting(options.encode.wait);
        let pictures = pictures::choose(experiment, &base, &store, loras, monitor)?;
        let references = sheet::references(experiment, &base, &pictures)?;
        // After all that may be refused.
        tell_recipes(loras, &recipes, &options.under, monitor);
        if options.out.is_some() {
            sample::previews::check(&base)?;
        }
        base.settings.sample.prompts = match options.out {
            Some(_) => sheet::prompts(&base, &pictures),
            None => Vec::new(),
        };
        let [of_a, of_b] = recipes;
        Ok(Self {
            digest,
            under: [base.with_recipe(of_a, memo)?, base.with_recipe(of_b, memo)?],
            base,
            store,
            pictures,
            references,
        })
    }

    /// The base model without a LoRA, under the recipe for both or else as the Experiment has it.
    fn alone(&self, options: &CompareOptions) -> &BaseModel {
        match options.under {
            Under::Variant(_) => &self.under[0],
            Under::Own | Under::Experiment => &self.base,
        }
    }

    /// Encodes what the store lacks.
    fn encode(&self, options: &CompareOptions, monitor: &dyn Monitor) -> Result<(), Error> {
        // Without a LoRA, captions are read for the base model's loss and for its previews.
        let with_base = options.with_base || options.out.is_some();
        let alone = with_base.then(|| self.alone(options));
        let options = &options.encode;
        let of_pictures = self
            .pictures
            .iter()
            .filter_map(|item| item.captions.first());
        let mut captions: Vec<String> = of_pictures.cloned().collect();
        captions.extend(sheet::captions(&self.base));
        for base in self.under.iter().chain(alone) {
            let stats = encode_captions(base, &self.store, &captions, options, monitor)?;
            tell_of_no_run(&stats, monitor);
        }
        let on = (&options.device, &options.kernels);
        let viewed = dataset::viewed(&self.pictures, &self.references);
        encode_pictures(&self.base, &self.store, &viewed, on, monitor)?;
        Ok(())
    }

    /// Where the denoiser computes, with its weights kept so that it fits.
    fn fitted(
        &self,
        adapters: &[AdapterSet; 2],
        options: &CompareOptions,
        monitor: &dyn Monitor,
    ) -> Result<Placement, Error> {
        let under = self.under.iter().chain([&self.base]);
        let context = under.map(|base| context_tokens(&base.recipe)).max();
        let context = context.unwrap_or(0);
        let geometry = self.base.latent_geometry();
        let (latents, reference) = largest_latents(self.pictures.iter(), &geometry);
        let mut calls = vec![CallShape {
            samples: 1,
            latents,
            reference,
            context,
        }];
        if options.out.is_some() {
            let call = sample::previews::call(&self.base, &self.references);
            calls.push(CallShape { context, ..call });
        }
        let numbers = adapters.iter().map(|set| set.values().len()).sum();
        let placement = &options.placement;
        let denoiser = &self.base.denoiser;
        let (storage, told) = fitted(denoiser, (&calls, numbers), placement, options.memory_bytes)?;
        if let Some(told) = told {
            monitor.note(&told);
        }
        Ok(Placement {
            storage,
            ..placement.clone()
        })
    }

    /// A LoRA before it is measured.
    fn described(&self, lora: &Lora, under: &BaseModel) -> LoraUsed {
        let own = lora.made.as_ref().map(|made| made.recipe_fingerprint);
        LoraUsed {
            file: lora.file().to_owned(),
            digest: lora.read_file().digest,
            steps: lora.made.as_ref().map(|made| made.step),
            under: RecipeUsed::of(under),
            is_own: own.map(|own| own == under.recipe.fingerprint()),
        }
    }

    /// The losses of A and B, and of the base model where they are wanted.
    fn measure(
        &self,
        denoiser: &dyn Denoiser,
        bound: &[Bound; 2],
        options: &CompareOptions,
        monitor: &dyn Monitor,
    ) -> Result<Losses, Error> {
        let sides = if options.with_base { 3 } else { 2 };
        let each = self.pictures.len() * VALIDATION_SIGMAS.len();
        monitor.start("measuring", Some((sides * each) as u64));
        let draws = (options.draws, &DrawOptions::of(&self.base));
        let texts = self.pictures.iter().flat_map(|item| &item.captions);
        // And the empty caption, which one without captions has.
        let texts = texts.map(String::as_str).chain([""]);
        let viewed = dataset::viewed(&self.pictures, &[]);
        let of = |base: &BaseModel, adapters: &Bound| {
            let source = ModelCache::open_of(base, &self.store, texts.clone(), &viewed)?;
            let predictor = Predictor { denoiser, adapters };
            measure::losses(&predictor, &source, &self.pictures, draws, monitor)
        };
        let [a, b] = &self.under;
        let both = [of(a, &bound[0])?, of(b, &bound[1])?];
        let base = match options.with_base {
            true => Some(of(self.alone(options), &Bound::none())?),
            false => None,
        };
        monitor.finish();
        Ok(Losses { both, base })
    }

    /// That the losses of a LoRA, or of the base model, are numbers.
    fn check_finite(
        &self,
        (denoiser, lora): (&dyn Denoiser, Option<&Path>),
        losses: &[LossesOf],
    ) -> Result<(), Error> {
        for (item, of_picture) in self.pictures.iter().zip(losses) {
            if let Some(&loss) = of_picture.iter().find(|loss| !loss.is_finite()) {
                return Err(Error::NotFinite {
                    by: lora
                        .unwrap_or(&self.base.denoiser.components.path)
                        .to_owned(),
                    picture: item.picture.clone(),
                    loss,
                    why: self.base.why_not_finite(denoiser.dtype(), lora.is_some()),
                });
            }
        }
        Ok(())
    }

    /// Writes the sheet of previews: the base model, A, B.
    fn previews(
        &self,
        denoiser: &dyn Denoiser,
        bound: &[Bound; 2],
        files: [&Path; 2],
        (folder, options): (&Path, &CompareOptions),
        monitor: &dyn Monitor,
    ) -> Result<PathBuf, Error> {
        let [a, b] = &self.under;
        let alone = self.alone(options);
        let columns = [(alone, &Bound::none()), (a, &bound[0]), (b, &bound[1])];
        let drawn = sheet::Previews {
            store: &self.store,
            references: &self.references,
            denoiser,
            monitor,
        };
        drawn.write(columns, files, folder)
    }
}

/// Reads both, and refuses what cannot be compared.
fn open(
    files: [&Path; 2],
    experiment: &Experiment,
    monitor: &dyn Monitor,
) -> Result<[Lora; 2], Error> {
    let family = experiment.model().family;
    let read = |path| Lora::read(path, Some(&family));
    let loras = [read(files[0])?, read(files[1])?];
    for lora in &loras {
        lora.read_file().tell(monitor);
    }
    let [a, b] = loras.each_ref().map(Lora::read_file);
    if a.digest == b.digest {
        return Err(Error::SameLora {
            a: a.file.clone(),
            b: b.file.clone(),
            digest: a.digest,
        });
    }
    Ok(loras)
}

/// That both were trained on these weights, as far as they say.
fn check_base(loras: &[Lora; 2], experiment: &Experiment, digest: Digest) -> Result<(), Error> {
    let trained_on = |lora: &Lora| lora.made.as_ref().map(|made| made.base);
    let [a, b] = loras;
    let other = |lora: &Lora, trained_on, of, found| Error::OtherBase {
        lora: lora.file().to_owned(),
        trained_on,
        of,
        found,
    };
    if let (Some(of_a), Some(of_b)) = (trained_on(a), trained_on(b))
        && of_a != of_b
    {
        let of = format!("that of {}", shown::path(a.file()));
        return Err(other(b, of_b, of, of_a));
    }
    for lora in loras {
        if let Some(trained) = trained_on(lora).filter(|trained| *trained != digest) {
            let of = format!("that of {}", lora::named(experiment, &loras[0]));
            return Err(other(lora, trained, of, digest));
        }
    }
    Ok(())
}

fn recipe_for(lora: &Lora, under: &Under, base: &BaseModel) -> Result<Recipe, Error> {
    Ok(match under {
        Under::Own => lora.recipe()?.unwrap_or_else(|| base.recipe.clone()),
        Under::Experiment => base.recipe.clone(),
        Under::Variant(name) => {
            let of = base.recipe.name();
            Recipe::resolve(&of.family, &of.flavor, name, &toml::Table::new())?
        }
    })
}

/// What a person should know of the recipes before numbers are made by them.
fn tell_recipes(loras: &[Lora; 2], recipes: &[Recipe; 2], under: &Under, monitor: &dyn Monitor) {
    for lora in loras.iter().filter(|lora| lora.made.is_none()) {
        let how = match under {
            Under::Own => "; it is measured under the Experiment's",
            _ => "",
        };
        monitor.note(&format!(
            "{}: says nothing of the recipe that it was trained with{how}",
            shown::path(lora.file())
        ));
    }
    let [a, b] = recipes;
    if a.fingerprint() != b.fingerprint() {
        monitor.note(
            "A and B were trained with different recipes: each is measured under its own. A program that samples both has one \
             recipe for them; --recipe measures both under one",
        );
    }
}
