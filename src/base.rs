//! A base model as an Experiment names it: its files found, its recipe resolved, and the spec of each encoder
//! and of the VAE computed. Nothing is loaded here but headers, configurations and tokenizers; weights are read
//! once, for their digests, which the memo remembers.

use std::path::{Path, PathBuf};

use candle_core::DType;

use crate::digest::{Digest, Fingerprint};
use crate::experiment::{Experiment, FileMap};
use crate::models::{self, Component, Components, Family, Flavor};
use crate::nn::weights::{self, DigestMemo, Weights};
use crate::recipe::latents::{
    ConfigError, LATENT_SPEC_VERSION, LatentSpec, PictureRules, VaeConfig,
};
use crate::recipe::rules::Absent;
use crate::recipe::spec::{Architecture, Dtype, EncoderSpec, Precision, TokenRules};
use crate::recipe::{self, EncoderRecipe, Recipe, TokenizerIdentity, architecture};
use crate::sample::LatentSpace;
use crate::text::{self, Residency, TextEncoder, Tokenizer, TokenizerKind, tokenizer};
use crate::vae;

/// Why a base model could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The denoiser's family does not know it.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The recipe or a deviation is wrong, or does not fit the checkpoint.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    /// An encoder's `config.json` is wrong.
    #[error(transparent)]
    EncoderConfig(#[from] recipe::ConfigError),
    /// The VAE's `config.json` is wrong.
    #[error(transparent)]
    VaeConfig(#[from] ConfigError),
    /// A tokenizer is wrong.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A text encoder's weights are wrong.
    #[error("{slot}: {source}")]
    Encoder {
        /// The encoder.
        slot: String,
        /// What is wrong.
        source: text::Error,
    },
    /// Weights are wrong.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A spec has no canonical form.
    #[error("{0}")]
    Canonical(#[from] crate::digest::Error),
    /// Something the Experiment does not name is needed.
    #[error("{}: {what}", file.display())]
    Missing {
        /// The Experiment file or the model.
        file: PathBuf,
        /// What is missing, and what to do.
        what: String,
    },
}

/// A base model, ready to be used in parts.
pub struct Base {
    /// Its family.
    pub family: &'static dyn Family,
    /// Its flavor.
    pub flavor: &'static Flavor,
    /// Where its parts are.
    pub components: Components,
    /// How its conditioning is made.
    pub recipe: Recipe,
    /// The encoders there are, in the recipe's order.
    pub encoders: Vec<EncoderBase>,
    /// The VAE.
    pub vae: VaeBase,
}

/// One text encoder of a base model.
pub struct EncoderBase {
    /// What the recipe calls it.
    pub slot: String,
    /// What its outputs depend on.
    pub spec: EncoderSpec,
    /// The spec's fingerprint.
    pub fingerprint: Fingerprint,
    /// How captions become ids; as in the spec, before fields without effect were left out.
    pub tokens: TokenRules,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Whether its files came without a configuration, so that names alone said what they are.
    pub bare_file: bool,
    weights: Weights,
}

/// The VAE of a base model.
pub struct VaeBase {
    /// What its latents depend on.
    pub spec: LatentSpec,
    /// The spec's fingerprint.
    pub fingerprint: Fingerprint,
    /// Its configuration.
    pub config: VaeConfig,
    weights: Weights,
}

impl Base {
    /// Finds and describes the base model of an Experiment.
    ///
    /// # Errors
    /// If a part is missing, is not what the recipe or the family expects, or cannot be read.
    pub fn open(experiment: &Experiment, memo: &mut DigestMemo) -> Result<Self, Error> {
        let model = &experiment.raw.model;
        let family = models::family(&model.family)?;
        let flavor = models::flavor(family, &model.flavor)?;
        let recipe = resolve_recipe(experiment)?;
        let components = family.components(&experiment.path(&model.path))?;
        models::check_flavor(family, &components, flavor)?;
        let files = Files {
            experiment,
            map: &model.files,
            components: &components,
        };
        let mut encoders = Vec::new();
        for encoder in recipe.encoders() {
            encoders.extend(files.encoder(encoder, memo)?);
        }
        let vae = files.vae(family, memo)?;
        Ok(Self {
            family,
            flavor,
            components,
            recipe,
            encoders,
            vae,
        })
    }

    /// The model's latents: their size against pixels and their scale.
    pub fn latent_space(&self) -> LatentSpace {
        let (config, encoder) = (&self.vae.config, &self.vae.config.architecture.encoder);
        LatentSpace {
            channels: encoder.latent_channels,
            factor: encoder.factor(),
            scale: config.scaling_factor,
            shift: config.shift_factor,
        }
    }

    /// The digest of the denoiser's weights.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or too many, or a file cannot be read.
    pub fn denoiser_digest(&self, memo: &mut DigestMemo) -> Result<Digest, Error> {
        let base = self.family.weights(&self.components)?;
        Ok(memo.digest(&base.weights, &base.tensors)?)
    }
}

/// The recipe an Experiment asks for, its deviations included. `[store] precision` is one more way to name
/// the precision that outputs are kept in.
///
/// # Errors
/// If there is no such recipe, or a deviation does not fit.
pub fn resolve_recipe(experiment: &Experiment) -> Result<Recipe, recipe::Error> {
    let raw = &experiment.raw;
    let mut deviate = raw.recipe.deviate.clone();
    let resolve = |deviate: &toml::Table| {
        Recipe::resolve(
            &raw.model.family,
            &raw.model.flavor,
            &raw.recipe.variant,
            deviate,
        )
    };
    let recipe = resolve(&deviate)?;
    let Some(precision) = raw.store.precision else {
        return Ok(recipe);
    };
    let word = serde_json::to_value(Dtype::from(precision)).unwrap_or_default();
    for encoder in recipe.encoders() {
        let field = format!("{}.precision.output", encoder.slot);
        let named = recipe.deviations().iter().any(|d| d.field == field);
        if !named && encoder.rules.precision.output != Dtype::from(precision) {
            deviate.insert(
                field,
                toml::Value::String(word.as_str().unwrap_or_default().to_owned()),
            );
        }
    }
    resolve(&deviate)
}

impl EncoderBase {
    /// Loads the encoder.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite.
    pub fn load(&self, residency: Residency) -> Result<TextEncoder, Error> {
        let (architecture, forward) = (&self.spec.architecture, &self.spec.forward);
        TextEncoder::load(architecture, forward, &self.weights, residency).map_err(|e| self.fail(e))
    }

    /// Bytes of the weights in the precision they are computed in.
    pub fn weight_bytes(&self) -> u64 {
        let count = |name: &String| {
            self.weights
                .shape(name)
                .map_or(0, |s| s.iter().product::<usize>())
        };
        let elements: usize = self.weights.names().iter().map(count).sum();
        (elements * self.weights.dtype().size_in_bytes()) as u64
    }

    fn fail(&self, source: text::Error) -> Error {
        Error::Encoder {
            slot: self.slot.clone(),
            source,
        }
    }
}

impl VaeBase {
    /// Loads the half that makes latents.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite.
    pub fn load_encoder(&self) -> Result<vae::Encoder, Error> {
        Ok(vae::Encoder::load(
            &self.config.architecture.encoder,
            &self.weights,
        )?)
    }

    /// Loads the half that makes pictures.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite.
    pub fn load_decoder(&self) -> Result<vae::Decoder, Error> {
        Ok(vae::Decoder::load(
            &self.config.architecture,
            &self.weights,
        )?)
    }
}

/// candle's name of a precision.
pub fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

/// Finds parts: where the Experiment says, else where the model has them.
struct Files<'a> {
    experiment: &'a Experiment,
    map: &'a FileMap,
    components: &'a Components,
}

impl Files<'_> {
    fn encoder(
        &self,
        recipe: &EncoderRecipe,
        memo: &mut DigestMemo,
    ) -> Result<Option<EncoderBase>, Error> {
        let Some(component) = self.component(&recipe.slot, &recipe.component) else {
            return match recipe.rules.absent {
                Absent::ZeroRows(_) => Ok(None),
                Absent::Refuse => Err(self.missing(format!(
                    "the model has no `{0}`; name its file as `{1}` under [model.files]",
                    recipe.component, recipe.slot
                ))),
            };
        };
        let architecture = self.architecture(recipe, &component)?;
        let kind = TokenizerKind::from(&architecture);
        let tokenizer = Tokenizer::load(kind, &self.tokenizer(recipe)?)?;
        let identity = TokenizerIdentity {
            digest: tokenizer.digest(),
            end_id: tokenizer.eos_id(),
        };
        // The rules decide which weights are used, so the digest comes after them.
        let mut spec = recipe.spec(&architecture, Digest::of(b""), identity)?;
        let rows = match &spec.architecture {
            Architecture::ClipText(clip) => clip.vocab_size,
            Architecture::T5Encoder(t5) => t5.vocab_size,
        };
        tokenizer.check_fits(rows)?;
        let weights = component
            .open()?
            .with_dtype(candle_dtype(spec.precision.compute));
        let digest = text::weights_digest(&spec.architecture, &spec.forward, &weights, Some(memo));
        let slot = recipe.slot.clone();
        spec.weights = digest.map_err(|source| Error::Encoder {
            slot: slot.clone(),
            source,
        })?;
        let (fingerprint, tokens) = (spec.fingerprint()?, recipe.tokens(identity.end_id));
        Ok(Some(EncoderBase {
            bare_file: component.config.is_none(),
            slot,
            spec,
            fingerprint,
            tokens,
            tokenizer,
            weights,
        }))
    }

    fn vae(&self, family: &dyn Family, memo: &mut DigestMemo) -> Result<VaeBase, Error> {
        let component = self.component("vae", "vae").ok_or_else(|| {
            self.missing(
                "the model has no `vae`; name its file as `vae` under [model.files]".to_owned(),
            )
        })?;
        let weights = vae::names::canonical(&component.open()?);
        let config = match &component.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| models::Error::Io {
                    path: path.clone(),
                    source,
                })?;
                VaeConfig::parse(&text, &path.display().to_string())?
            }
            None => {
                let architecture =
                    vae::names::architecture(&weights).ok_or_else(|| Error::Missing {
                        file: component.weights.clone(),
                        what: "its tensors are not those of an AutoencoderKL".to_owned(),
                    })?;
                let scaling = family.latent_scaling(self.components)?;
                VaeConfig {
                    architecture,
                    scaling_factor: scaling.scale,
                    shift_factor: scaling.shift,
                }
            }
        };
        let output = self
            .experiment
            .raw
            .store
            .precision
            .map_or(Dtype::F32, Dtype::from);
        let architecture = config.architecture.encoder.clone();
        let digest = memo.digest(&weights, &vae::names::encoder_tensors(&architecture))?;
        let spec = LatentSpec {
            version: LATENT_SPEC_VERSION,
            architecture,
            weights: digest,
            picture: PictureRules::CURRENT,
            precision: Precision {
                compute: Dtype::F32,
                output,
            },
        };
        let fingerprint = spec.fingerprint()?;
        Ok(VaeBase {
            spec,
            fingerprint,
            config,
            weights,
        })
    }

    fn component(&self, slot: &str, name: &str) -> Option<Component> {
        match self.map.weights(slot) {
            Some(path) => {
                let weights = self.experiment.path(path);
                let beside = [
                    weights.join("config.json"),
                    weights.with_file_name("config.json"),
                ];
                let config = beside.into_iter().find(|p| p.is_file());
                Some(Component {
                    weights,
                    prefix: String::new(),
                    config,
                })
            }
            None => self.components.get(name).ok().cloned(),
        }
    }

    fn architecture(
        &self,
        recipe: &EncoderRecipe,
        component: &Component,
    ) -> Result<Architecture, Error> {
        let named = self
            .map
            .config(&recipe.slot)
            .map(|p| self.experiment.path(p));
        match named.as_ref().or(component.config.as_ref()) {
            Some(config) => Ok(architecture::read(config, recipe.rules.network)?),
            None => recipe::published(&recipe.slot).ok_or_else(|| {
                self.missing(format!(
                    "`{0}` has no config.json; name one as `{0}_config` under [model.files]",
                    recipe.slot
                ))
            }),
        }
    }

    fn tokenizer(&self, recipe: &EncoderRecipe) -> Result<PathBuf, Error> {
        let named = self
            .map
            .tokenizer(&recipe.slot)
            .map(|p| self.experiment.path(p));
        let own = self
            .components
            .tokenizers
            .get(recipe.tokenizer_component.as_str());
        named.or_else(|| own.cloned()).ok_or_else(|| {
            self.missing(format!(
                "the model has no `{0}`; name its folder as `{1}_tokenizer` under [model.files]",
                recipe.tokenizer_component, recipe.slot
            ))
        })
    }

    fn missing(&self, what: String) -> Error {
        Error::Missing {
            file: self.experiment.file.clone(),
            what,
        }
    }
}

impl FileMap {
    fn weights(&self, slot: &str) -> Option<&Path> {
        self.find(slot, [&self.clip_l, &self.clip_g, &self.t5])
            .or_else(|| self.vae.as_deref().filter(|_| slot == "vae"))
    }

    fn tokenizer(&self, slot: &str) -> Option<&Path> {
        self.find(
            slot,
            [
                &self.clip_l_tokenizer,
                &self.clip_g_tokenizer,
                &self.t5_tokenizer,
            ],
        )
    }

    fn config(&self, slot: &str) -> Option<&Path> {
        self.find(
            slot,
            [&self.clip_l_config, &self.clip_g_config, &self.t5_config],
        )
    }

    fn find<'a>(&self, slot: &str, paths: [&'a Option<PathBuf>; 3]) -> Option<&'a Path> {
        let place = ["clip_l", "clip_g", "t5"].iter().position(|s| *s == slot)?;
        paths[place].as_deref()
    }
}
