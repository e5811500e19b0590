//! The networks of a checkpoint: what the files hold of each, and whether a text encoder or VAE has all of its tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::Serialize;

use super::memory::{Memory, NetworkMemory};
use super::{Kind, Report};
use crate::base_model::{NeededFile, candle_dtype};
use crate::digest::Digest;
use crate::models::schedule::is_marker;
use crate::models::{self, Component};
use crate::nn::weights::{self, Weights};
use crate::recipe::latents::{AutoencoderArchitecture, AutoencoderConfig};
use crate::recipe::{EncoderRecipe, Recipe, RecipeName};
use crate::text::{self, Architecture, Tokenizer, TokenizerIdentity, published, published_for};
use crate::vae::{self, Factors};

/// What the files hold of one network.
#[derive(Clone, Debug, Serialize)]
pub struct StoredNetwork {
    /// `denoiser`, `vae`, or what recipes call an encoder: `clip_l`.
    pub name: String,
    /// The folder or file that its weights are in.
    pub path: PathBuf,
    /// What its tensors' names begin with where a file holds several networks, else empty.
    pub prefix: String,
    /// How many numbers are stored.
    pub parameters: u64,
    /// Bytes of its tensors in the files.
    pub bytes: u64,
    /// How many tensors of each element type.
    pub types: BTreeMap<String, usize>,
}

impl StoredNetwork {
    pub(super) fn new(name: &str, component: &Component, weights: &Weights) -> Self {
        let stored = weights.storage();
        Self {
            name: name.to_owned(),
            path: component.weights.clone(),
            prefix: component.prefix.clone(),
            parameters: stored.parameters,
            bytes: stored.bytes,
            types: stored.types,
        }
    }
}

/// A text encoder whose tensors are all there.
pub(super) struct CheckedEncoder {
    /// With its weights loaded.
    pub(super) memory: NetworkMemory,
    /// About its tensors' names, for files that came without a configuration.
    pub(super) notes: Vec<String>,
    architecture: Box<dyn Architecture>,
}

/// Checks a text encoder's tensors against the network of a recipe; the error is a line for the report.
pub(super) fn encoder(
    recipe: &EncoderRecipe,
    component: &Component,
    tokenizer: Option<&Path>,
) -> Result<CheckedEncoder, String> {
    let weights = component.open().map_err(|e| e.to_string())?;
    let architecture = match &component.config {
        Some(file) => text::config::read(file, recipe.rules.network).map_err(|e| e.to_string())?,
        None => published_for(&recipe.slot, &weights).ok_or("its architecture is not known")?,
    };
    let identity = identity(&*architecture, tokenizer)?;
    // Only the network is asked of the spec, not its fingerprint: the weights need not be read for their digest.
    let spec = recipe
        .spec(&*architecture, Digest::of(b""), identity)
        .map_err(|e| e.to_string())?;
    let found = spec
        .network
        .locate(&weights)
        .map_err(|e| hint_of_config(e, recipe, component))?;
    let memory = NetworkMemory::new(
        recipe.slot.clone(),
        found.resident_parameters(),
        candle_dtype(spec.precision.compute),
    );
    // Files with a configuration were written by the libraries that the names belong to.
    let notes = match component.config {
        Some(_) => Vec::new(),
        None => found.notes,
    };
    Ok(CheckedEncoder {
        memory,
        notes,
        architecture,
    })
}

/// An encoder of another size than the published one has to bring its configuration.
fn hint_of_config(error: text::Error, recipe: &EncoderRecipe, component: &Component) -> String {
    match (&error, &component.config) {
        (text::Error::Weights(weights::Error::Shape { .. }), None) => format!(
            "{error}: it is not the {0} that the base models were published with; name its configuration as {0}_config",
            recipe.slot
        ),
        _ => error.to_string(),
    }
}

/// The tokenizer's identity; where there is none, the end-of-text id that such tokenizers have.
fn identity(
    architecture: &dyn Architecture,
    tokenizer: Option<&Path>,
) -> Result<TokenizerIdentity, String> {
    let Some(path) = tokenizer else {
        return Ok(TokenizerIdentity {
            digest: Digest::of(b""),
            end_id: architecture.end_id(),
        });
    };
    let format = architecture.kind().tokenizer();
    let tokenizer = Tokenizer::load(format, path).map_err(|e| e.to_string())?;
    Ok(tokenizer.identity())
}

/// A VAE, with or without faults.
pub(super) struct CheckedVae {
    /// diffusers' name of its network.
    pub(super) class: &'static str,
    /// Of its encoder with the weights loaded.
    pub(super) memory: NetworkMemory,
    /// Missing, misshapen and unknown tensors, or why its configuration cannot be read.
    pub(super) problems: Vec<String>,
    /// Pixels a latent, where its configuration can be read.
    pub(super) factors: Option<Factors>,
}

/// Looks at a VAE; `None` if it is none.
pub(super) fn vae(component: &Component) -> Option<CheckedVae> {
    let file = component.open().ok()?;
    let weights = vae::autoencoder::canonical(&file);
    let by_names = vae::autoencoder::config(&weights);
    // Wan's with other channels than the released one's cannot do without a configuration, but is one.
    if by_names.is_none() && vae::causal::names::canonical(&file).is_none() {
        return None;
    }
    let architecture = match &component.config {
        Some(path) => match AutoencoderConfig::read(path) {
            Ok(config) => config.architecture,
            Err(error) => {
                return Some(CheckedVae {
                    class: "autoencoder",
                    memory: NetworkMemory::new("vae", 0, DType::F32),
                    problems: vec![error.to_string()],
                    factors: None,
                });
            }
        },
        None => by_names?.architecture,
    };
    let mut tensors = vae::autoencoder::encoder_tensors(&architecture.encoder());
    let encoder: usize = tensors
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    tensors.extend(vae::autoencoder::decoder_tensors(&architecture));
    let mut problems: Vec<String> = weights
        .faults(&tensors)
        .iter()
        .map(ToString::to_string)
        .collect();
    problems.extend(extra(&weights, &tensors));
    Some(CheckedVae {
        class: match &architecture {
            AutoencoderArchitecture::Pictures(vae) if vae.encoder.patch_norm.is_some() => {
                "AutoencoderKLFlux2"
            }
            AutoencoderArchitecture::Pictures(_) => "AutoencoderKL",
            AutoencoderArchitecture::Wan(_) => "AutoencoderKLWan",
        },
        // f32, which the VAE encodes in whatever its files hold; the decoder is not loaded for it.
        memory: NetworkMemory::new("vae", encoder as u64, DType::F32),
        problems,
        factors: Some(Factors::of(&architecture)),
    })
}

/// The tensors that a network has no place for, in one line.
pub(super) fn extra(weights: &Weights, tensors: &[(String, Vec<usize>)]) -> Option<String> {
    const SHOWN: usize = 5;
    let mut extra = weights.extra(tensors);
    // Buffers of torch's BatchNorm that only training counts in; inference does not read them.
    extra.retain(|name| !name.ends_with("num_batches_tracked") && !is_marker(name));
    let shown: Vec<String> = extra
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = match extra.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    (!extra.is_empty()).then(|| {
        format!(
            "{}: tensors that the network has no place for: {}{more}",
            weights.describe(),
            shown.join(", ")
        )
    })
}

/// Each encoder that a reference recipe has, with the recipes it is in.
fn known_encoders() -> Vec<(EncoderRecipe, Vec<String>)> {
    let mut list: Vec<(EncoderRecipe, Vec<String>)> = Vec::new();
    for family in models::families() {
        for flavor in family.flavors {
            let name = RecipeName::reference(family.name, flavor.name);
            let Ok(recipe) = Recipe::shipped(&name) else {
                continue;
            };
            for encoder in recipe.encoders() {
                match list
                    .iter_mut()
                    .find(|(known, _)| known.slot == encoder.slot)
                {
                    Some((_, recipes)) => recipes.push(name.to_string()),
                    None => list.push((encoder.clone(), vec![name.to_string()])),
                }
            }
        }
    }
    list
}

/// The report on a file that is a VAE or a text encoder alone; `None` if it is neither.
pub(super) fn lone(path: &Path, weights: &Weights) -> Option<Report> {
    let component = Component::at(path);
    if let Some(CheckedVae {
        class,
        memory,
        problems,
        ..
    }) = vae(&component)
    {
        return Some(Report {
            summary: format!("a VAE ({class}) alone"),
            parts: vec![StoredNetwork::new("vae", &component, weights)],
            memory: Some(Memory::new(vec![memory], Vec::new())),
            notes: vec![format!(
                "name it under [model.files]: vae = {:?}",
                path.display().to_string()
            )],
            problems,
            ..Report::of(path, Kind::Part)
        });
    }
    lone_encoder(path, weights, &component)
}

fn lone_encoder(path: &Path, weights: &Weights, component: &Component) -> Option<Report> {
    let mut fits = Vec::new();
    let mut broken = None;
    for (recipe, recipes) in known_encoders() {
        match encoder(&recipe, component, None) {
            Ok(checked) => fits.push((recipe, recipes, checked)),
            // Tensors that only this network has, and yet not all of them: it is a damaged one, not another network.
            Err(problem) if has_anchor(weights, recipe.rules.network.anchors()) => {
                broken = broken.or(Some((recipe, recipes, problem)));
            }
            Err(_) => {}
        }
    }
    // With a configuration, a CLIP of any size fits the rules of each CLIP: the published one of its size is meant.
    if fits.iter().any(is_published) {
        fits.retain(is_published);
    }
    let mut report = Report::of(path, Kind::Part);
    let Some((first, _, checked)) = fits.first() else {
        let (recipe, recipes, problem) = broken?;
        report.summary = format!("a {} that is not whole", recipe.rules.network.title());
        report.parts = vec![StoredNetwork::new(&recipe.slot, component, weights)];
        report.recipes = recipes;
        report.problems = vec![problem];
        return Some(report);
    };
    let slots: Vec<&str> = fits
        .iter()
        .map(|(recipe, ..)| recipe.slot.as_str())
        .collect();
    let network = first.rules.network.title();
    report.summary = format!("a {network} alone, which serves as {}", slots.join(" or "));
    report.memory = Some(Memory::new(vec![checked.memory.clone()], Vec::new()));
    report.parts = vec![StoredNetwork::new(&slots.join("/"), component, weights)];
    for (recipe, recipes, checked) in &fits {
        let slot = &recipe.slot;
        report.needs.push(NeededFile {
            key: format!("{slot}_tokenizer"),
            what: "the folder of its tokenizer, unless the model at `path` has it".to_owned(),
            optional: true,
        });
        let file = path.display().to_string();
        report
            .notes
            .push(format!("name it under [model.files]: {slot} = {file:?}"));
        report.notes.extend(checked.notes.iter().cloned());
        report.recipes.extend(recipes.iter().cloned());
    }
    report.recipes.sort();
    report.recipes.dedup();
    Some(report)
}

/// Whether it has the size that the base models' encoder of that slot was published in.
fn is_published((recipe, _, checked): &(EncoderRecipe, Vec<String>, CheckedEncoder)) -> bool {
    published(&recipe.slot).is_some_and(|published| {
        published.kind() == checked.architecture.kind()
            && published.width() == checked.architecture.width()
    })
}

fn has_anchor(weights: &Weights, anchors: &[&str]) -> bool {
    let is_anchor = |name: &String| anchors.iter().any(|end| name.ends_with(end));
    weights.names().iter().any(is_anchor)
}
