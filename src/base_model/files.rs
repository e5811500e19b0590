//! Where a base model's parts lie: where the Experiment says, else where the model has them. What is in neither
//! place is told all at once, as the lines to write.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use crate::experiment::{self, FileMap};
use crate::models::{Component, Components};
use crate::recipe::rules::Absent;
use crate::recipe::{EncoderRecipe, Recipe};
use crate::text::spec::Dtype;
use crate::text::{self, Architecture, config};

const VAE: &str = "vae";
const SCHEDULER: &str = "scheduler";

/// A line that is wanted under `[model.files]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NeededFile {
    /// The key to write: `clip_l`, `t5_tokenizer`, `vae`.
    pub key: String,
    /// What to name there.
    pub what: String,
    /// Whether the recipe does without: it then has a rule for the encoder's rows.
    pub optional: bool,
}

/// What a recipe needs and neither the model nor the file map has.
pub fn needed_files(recipe: &Recipe, components: &Components, map: &FileMap) -> Vec<NeededFile> {
    let mut list = Vec::new();
    let mut need = |key: String, what, optional| {
        list.push(NeededFile {
            key,
            what,
            optional,
        });
    };
    for encoder in recipe.encoders() {
        let slot = &encoder.slot;
        let there = components.parts.contains_key(encoder.component.as_str());
        let there = there || weights(map, slot).is_some();
        // A tokenizer can be missing only along with its encoder.
        let optional = !there && matches!(encoder.rules.absent, Absent::ZeroRows(_));
        if !there {
            let what = encoder.rules.network.weights().to_owned();
            need(slot.clone(), what, optional);
        }
        if tokenizer(encoder, recipe, components, map).is_none() {
            let files = encoder.rules.network.tokenizer().expected;
            let what = format!("a folder with {files}");
            need(format!("{slot}_tokenizer"), what, optional);
        }
    }
    if !components.parts.contains_key(VAE) && weights(map, VAE).is_none() {
        need(
            VAE.to_owned(),
            "VAE weights, a safetensors file or folder".to_owned(),
            false,
        );
    }
    list
}

/// The tokenizer of an encoder: the one named, the model's own, or that of another encoder of its kind, whose
/// vocabulary is the same (what CLIP-G pads with is the recipe's business, not the tokenizer's).
fn tokenizer<'a>(
    encoder: &'a EncoderRecipe,
    recipe: &'a Recipe,
    components: &'a Components,
    map: &'a FileMap,
) -> Option<&'a Path> {
    let of_encoder = |encoder: &EncoderRecipe| {
        let there = components
            .tokenizers
            .get(encoder.tokenizer_component.as_str());
        let named = map
            .of(&encoder.slot)
            .and_then(|files| files.tokenizer.as_deref());
        named.or(there.map(PathBuf::as_path))
    };
    let is_kin = |other: &&EncoderRecipe| other.rules.network == encoder.rules.network;
    let kin = || recipe.encoders().iter().filter(is_kin).find_map(of_encoder);
    of_encoder(encoder).or_else(kin)
}

/// Finds the files of a base model's parts, for one Experiment and recipe.
pub(super) struct ModelFiles<'a> {
    /// The Experiment's file, for messages.
    pub(super) experiment: &'a Path,
    /// As the program sees the paths.
    pub(super) map: FileMap,
    /// What latents are stored in, if not in f32.
    pub(super) stored: Option<Dtype>,
    pub(super) components: &'a Components,
    pub(super) recipe: &'a Recipe,
    /// The recipe without each of its deviations, by the field.
    pub(super) without: Vec<(String, Recipe)>,
    /// What the other of two experts may be named as.
    pub(super) other_expert: Option<&'static str>,
}

impl ModelFiles<'_> {
    /// Checks that every part is named or there, and no other is named.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.check_slots()?;
        let lines: Vec<String> = needed_files(self.recipe, self.components, &self.map)
            .iter()
            .filter(|need| !need.optional)
            .map(|need| format!("{} = \"...\" ({})", need.key, need.what))
            .collect();
        if lines.is_empty() {
            return Ok(());
        }
        Err(self.missing(format!(
            "{} does not have all that recipe {} needs; add under [model.files]: {}",
            self.components.path.display(),
            self.recipe.name(),
            lines.join(", ")
        )))
    }

    /// What is named and would not be used is a mistake.
    fn check_slots(&self) -> Result<(), Error> {
        let encoders = self.recipe.encoders().iter();
        let slots: Vec<&str> = encoders
            .map(|e| e.slot.as_str())
            .chain([VAE, SCHEDULER])
            .chain(self.other_expert)
            .collect();
        for (slot, files) in self.map.slots() {
            let why = if !slots.contains(&slot) {
                let (name, all) = (self.recipe.name(), slots.join("`, `"));
                format!("recipe {name} has no such component; there are `{all}`")
            } else if slot == VAE && files.tokenizer.is_some() {
                "a VAE has no tokenizer".to_owned()
            } else if slot == SCHEDULER && (files.tokenizer.is_some() || files.config.is_some()) {
                "a scheduler is its scheduler_config.json alone: write scheduler = \"...\""
                    .to_owned()
            } else if Some(slot) == self.other_expert
                && (files.tokenizer.is_some() || files.config.is_some())
            {
                format!("an expert is its weights alone: write {slot} = \"...\"")
            } else {
                continue;
            };
            return Err(Error::Experiment(experiment::Error::Value {
                file: self.experiment.to_owned(),
                line: None,
                field: format!("model.files.{slot}"),
                why,
            }));
        }
        Ok(())
    }

    /// The part that the Experiment calls `slot` and a folder of diffusers `name`.
    pub(super) fn component(&self, slot: &str, name: &str) -> Option<Component> {
        match weights(&self.map, slot) {
            Some(path) => Some(Component::at(path)),
            None => self.components.parts.get(name).cloned(),
        }
    }

    /// The scheduler's configuration that a person names.
    pub(super) fn scheduler(&self) -> Option<&Path> {
        weights(&self.map, SCHEDULER)
    }

    pub(super) fn vae(&self) -> Result<Component, Error> {
        self.component(VAE, VAE)
            .ok_or_else(|| self.missing("the model has no VAE; name one as `vae`".to_owned()))
    }

    /// The `config.json` of a part: the one named, else its own.
    pub(super) fn config(&self, slot: &str, component: &Component) -> Option<PathBuf> {
        let named = self.map.of(slot).and_then(|files| files.config.clone());
        named.or_else(|| component.config.clone())
    }

    pub(super) fn architecture(
        &self,
        recipe: &EncoderRecipe,
        component: &Component,
    ) -> Result<Box<dyn Architecture>, Error> {
        match self.config(&recipe.slot, component) {
            Some(file) => Ok(config::read(&file, recipe.rules.network)?),
            // Single files carry no configuration; of the encoders they hold the published sizes are known.
            None => text::published_for(&recipe.slot, &component.open()?).ok_or_else(|| {
                self.missing(format!(
                    "`{0}` has no config.json; add {0}_config = \"...\" under [model.files]",
                    recipe.slot
                ))
            }),
        }
    }

    pub(super) fn tokenizer(&self, encoder: &EncoderRecipe) -> Result<PathBuf, Error> {
        let found = tokenizer(encoder, self.recipe, self.components, &self.map);
        found.map(Path::to_owned).ok_or_else(|| {
            self.missing(format!(
                "`{0}` has no tokenizer; add {0}_tokenizer = \"...\" under [model.files]",
                encoder.slot
            ))
        })
    }

    fn missing(&self, what: String) -> Error {
        Error::Missing {
            file: self.experiment.to_owned(),
            what,
        }
    }
}

fn weights<'a>(map: &'a FileMap, slot: &str) -> Option<&'a Path> {
    map.of(slot)?.weights.as_deref()
}
