//! A denoiser with whatever lies beside it.

use std::path::{Path, PathBuf};

use super::memory::{self, Asked, Memory, NetworkMemory};
use super::part::{self, StoredNetwork};
use super::{Kind, Report};
use crate::base_model::{NeededFile, needed_files};
use crate::diffusion::Prediction;
use crate::experiment::FileMap;
use crate::models::schedule::{is_marker, shift_word, word};
use crate::models::{self, Components, Flavor, OpenedDenoiser};
use crate::nn::weights::Weights;
use crate::recipe::{Recipe, RecipeName};
use crate::vae::Factors;

/// A path read as a model of one family, which may lack tensors.
struct Candidate {
    denoiser: OpenedDenoiser,
    /// The flavors it may be; none where tensors are missing.
    flavors: Vec<&'static Flavor>,
}

/// The report on a model; else why no family takes it.
pub(super) fn check(path: &Path, asked: Option<Asked>) -> Result<Report, Vec<models::Error>> {
    let candidate = match models::detect(path) {
        Ok(denoiser) => Candidate {
            flavors: denoiser.flavors(),
            denoiser,
        },
        // Reported with its faults rather than refused: which tensors a download lacks is what a person looks for here.
        Err(_) => nearest(path)?,
    };
    Ok(candidate.report(path, asked))
}

/// The family under which a model with missing or misshapen tensors has the fewest faults.
fn nearest(path: &Path) -> Result<Candidate, Vec<models::Error>> {
    let mut refused = Vec::new();
    let mut best: Option<(usize, Candidate)> = None;
    for family in models::families() {
        let components = match family.components(path) {
            Ok(components) => components,
            // Said of every file by all families but one: no news.
            Err(models::Error::NotThisFamily { .. }) => continue,
            Err(error) => {
                refused.push(error);
                continue;
            }
        };
        let is_news = family.has_sign(&components);
        match family.open(components) {
            Ok(denoiser) => {
                let faults = denoiser.weights().faults(denoiser.tensors()).len();
                // Strictly fewer: of equals the first in the list of families stays.
                if best.as_ref().is_none_or(|(least, _)| faults < *least) {
                    let flavors = Vec::new();
                    best = Some((faults, Candidate { denoiser, flavors }));
                }
            }
            Err(models::Error::NotThisFamily { .. }) if !is_news => {}
            Err(error) => refused.push(error),
        }
    }
    best.map(|(_, candidate)| candidate).ok_or(refused)
}

impl Candidate {
    fn components(&self) -> &Components {
        &self.denoiser.components
    }

    fn report(mut self, path: &Path, asked: Option<Asked>) -> Report {
        self.leave_out_contradicted();
        let mut report = Report::of(path, Kind::Model);
        let family = self.denoiser.family.name;
        report.family = Some(family);
        report.flavors = self.flavors.iter().map(|flavor| flavor.name).collect();
        report.ignored = ignored(path, self.components());
        let layout = match self.denoiser.weights().metadata("general.architecture") {
            _ if path.is_dir() => "a folder as diffusers writes it",
            Some(_) => "a GGUF file",
            None => "a single file",
        };
        report.summary = format!("a model of family {family}, {layout}");
        let recipes = self.recipes();
        report.recipes = recipes.iter().map(|r| r.name().to_string()).collect();
        let other = self.denoiser(&mut report);
        self.schedule(&mut report);
        let mut encode = Vec::new();
        if let Some(recipe) = recipes.first() {
            let needs = needed_files(recipe, self.components(), &FileMap::default());
            report.needs.extend(needs);
            encode = self.encoders(recipe, &mut report);
        }
        let (vae, factors) = self.vae(&mut report);
        encode.extend(vae);
        let flavor = self
            .flavors
            .first()
            .copied()
            .or(self.denoiser.family.flavors.first());
        let train = match (flavor, recipes.first()) {
            (Some(flavor), Some(recipe)) => {
                // What is named beside a single file is of the same shapes.
                let other = other.as_ref().unwrap_or(&self.denoiser);
                let other = flavor.expert.map(|_| other);
                memory::train((&self.denoiser, other), factors, flavor, recipe, asked)
            }
            _ => Vec::new(),
        };
        report.memory = Some(Memory {
            of_videos: factors.time.is_some(),
            ..Memory::new(encode, train)
        });
        report
    }

    /// Leaves out flavors of v-prediction where the model says that it predicts noise.
    fn leave_out_contradicted(&mut self) {
        let said = self.denoiser.schedule(None).ok().and_then(|s| s.prediction);
        if said.is_some_and(|said| said.value == Prediction::Epsilon) {
            let is_other = |flavor: &&Flavor| flavor.process.prediction == Prediction::Velocity;
            self.flavors.retain(|flavor| !is_other(flavor));
        }
    }

    /// The reference recipes of the flavors that it may be, each of different rules once.
    fn recipes(&self) -> Vec<Recipe> {
        // With tensors missing any flavor is possible: all recipes of the family are named.
        let flavors: Vec<&Flavor> = match self.flavors.is_empty() {
            true => self.denoiser.family.flavors.iter().collect(),
            false => self.flavors.clone(),
        };
        let shipped = |flavor: &Flavor| {
            let name = RecipeName::reference(self.denoiser.family.name, flavor.name);
            Recipe::shipped(&name).ok()
        };
        let mut seen = Vec::new();
        let mut recipes: Vec<Recipe> = flavors.into_iter().filter_map(shipped).collect();
        recipes.retain(|recipe| {
            let is_new = !seen.contains(&recipe.fingerprint());
            seen.push(recipe.fingerprint());
            is_new
        });
        recipes
    }

    /// The other of two experts, where it is there as well.
    fn denoiser(&self, report: &mut Report) -> Option<OpenedDenoiser> {
        let (weights, tensors) = (self.denoiser.weights(), self.denoiser.tensors());
        let faults = weights.faults(tensors);
        let faults = faults.iter().map(ToString::to_string);
        report.problems.extend(faults);
        report.problems.extend(part::extra(weights, tensors));
        let part = self.denoiser.part;
        if let Some(component) = self.components().parts.get(part) {
            report
                .parts
                .push(StoredNetwork::new("denoiser", component, weights));
        }
        self.other_expert(report)
    }

    /// The other of two experts in the folder; of a single file, what must be named for it.
    fn other_expert(&self, report: &mut Report) -> Option<OpenedDenoiser> {
        let own = self.flavors.first()?;
        let expert = own.expert?;
        let family = self.denoiser.family;
        let other = family.flavor(expert.other).ok()?;
        let name = other.expert?.name;
        report.notes.push(format!(
            "one of two experts: a LoRA is trained for each, and samples pass through both (`{}` from noise level {} to {})",
            own.name,
            expert.levels.from,
            expert.levels.to
        ));
        if !self.components().path.is_dir() {
            report.needs.push(NeededFile {
                key: name.to_owned(),
                what: format!("the file of flavor `{}`, for samples", other.name),
                optional: true,
            });
            return None;
        }
        match family.open_as(self.components().clone(), other) {
            Ok(denoiser) => {
                let (weights, tensors) = (denoiser.weights(), denoiser.tensors());
                let faults = weights.faults(tensors);
                let faults = faults.iter().map(ToString::to_string);
                report.problems.extend(faults);
                report.problems.extend(part::extra(weights, tensors));
                if let Some(component) = self.components().parts.get(denoiser.part) {
                    let part = StoredNetwork::new(denoiser.part, component, weights);
                    report.parts.push(part);
                }
                if self.denoiser.is_same_network(&denoiser).unwrap_or(false) {
                    report.problems.push(format!(
                        "`{}` and `{}` have the same weights",
                        self.denoiser.part, denoiser.part
                    ));
                }
                Some(denoiser)
            }
            Err(error) => {
                report.problems.push(error.to_string());
                None
            }
        }
    }

    /// What the model says of its noise schedule.
    fn schedule(&self, report: &mut Report) {
        let flavor = self.flavors.first().copied();
        let Some(flavor) = flavor.or(self.denoiser.family.flavors.first()) else {
            return;
        };
        let said = match self.denoiser.schedule(None) {
            Ok(said) => said,
            Err(error) => return report.problems.push(error.to_string()),
        };
        let mut says = |what: &str, value: String, place: &str| {
            report.says.push(format!("{what} {value} ({place})"));
        };
        if let Some(said) = &said.prediction {
            says("prediction", word(said.value).to_owned(), &said.place);
            if said.value != flavor.process.prediction {
                let line = format!("prediction = {:?}", word(said.value));
                report.lines.push(line);
            }
        }
        if let Some(said) = &said.zero_terminal_snr {
            says("zero terminal SNR", said.value.to_string(), &said.place);
            if said.value {
                report.lines.push("zero_terminal_snr = true".to_owned());
            }
        }
        if let Some(said) = &said.shift {
            says("shift", shift_word(said.value), &said.place);
            if flavor.shift.as_scheduler_says(said.value) != flavor.shift {
                report.notes.push(format!(
                    "its shift of noise levels is {}, that of flavor {} is {}: [train] and [sample] follow the model where they name no shift",
                    shift_word(said.value),
                    flavor.name,
                    shift_word(flavor.shift)
                ));
            }
        }
    }

    fn encoders(&self, recipe: &Recipe, report: &mut Report) -> Vec<NetworkMemory> {
        let mut memory = Vec::new();
        for encoder in recipe.encoders() {
            let Some(component) = self.components().parts.get(encoder.component.as_str()) else {
                continue;
            };
            let name = encoder.tokenizer_component.as_str();
            let tokenizer = self.components().tokenizers.get(name);
            if let Ok(weights) = component.open() {
                let stored = StoredNetwork::new(&encoder.slot, component, &weights);
                report.parts.push(stored);
            }
            match part::encoder(encoder, component, tokenizer.map(PathBuf::as_path)) {
                Ok(checked) => {
                    memory.push(checked.memory);
                    report.notes.extend(checked.notes);
                }
                Err(problem) => report.problems.push(format!("{}: {problem}", encoder.slot)),
            }
        }
        memory
    }

    /// The memory of encoding with the VAE, where there is one, and how many pixels make a latent.
    fn vae(&self, report: &mut Report) -> (Option<NetworkMemory>, Factors) {
        let released = self.denoiser.family.latents().factors;
        let Some(component) = self.components().parts.get("vae") else {
            return (None, released);
        };
        if let Ok(weights) = component.open() {
            report
                .parts
                .push(StoredNetwork::new("vae", component, &weights));
        }
        let Some(vae) = part::vae(component) else {
            let problem = "vae: its tensors are not those of an AutoencoderKL or AutoencoderKLWan";
            report.problems.push(problem.to_owned());
            return (None, released);
        };
        report.problems.extend(vae.problems);
        (Some(vae.memory), vae.factors.unwrap_or(released))
    }
}

/// Tensors of a single file that are in no part.
fn ignored(path: &Path, components: &Components) -> Vec<String> {
    // In a folder, networks are in files of their own, and each is checked for tensors that it has no place for.
    if path.is_dir() {
        return Vec::new();
    }
    let Ok(file) = Weights::open(&[path.to_owned()]) else {
        return Vec::new();
    };
    let in_part = |name: &str| {
        let mut parts = components.parts.values();
        parts.any(|part| name.starts_with(&part.prefix))
    };
    let mut names = file.names();
    names.retain(|name| !in_part(name) && !is_marker(name));
    names
}
