//! The VAE of a base model: what its latents depend on, and its two halves.

use candle_core::{DType, Device, Tensor};

use super::Error;
use super::files::ModelFiles;
use crate::digest::Fingerprint;
use crate::models::{self, Component, Family};
use crate::nn::Kernels;
use crate::nn::weights::{self, DigestMemo, Weights};
use crate::recipe::latents::{
    AutoencoderArchitecture, AutoencoderConfig, LATENT_SPEC_VERSION, LatentSpec, LatentStatistics,
    PictureRules, VaeArchitecture,
};
use crate::text::spec::{Dtype, Precision};
use crate::vae::{self, LatentDecoder, LatentEncoder};

/// The VAE of a base model.
#[derive(Clone)]
pub struct VaePart {
    /// What its latents depend on.
    pub spec: LatentSpec,
    /// The spec's fingerprint.
    pub fingerprint: Fingerprint,
    /// The network, as its configuration has it, or the weights where there is no `config.json`.
    pub architecture: AutoencoderArchitecture,
    /// How the denoiser's latents come from its own.
    pub statistics: LatentStatistics,
    weights: Weights,
}

impl VaePart {
    /// Of canonical weights; `stored` is what its latents are kept in, if not f32.
    ///
    /// # Errors
    /// If the weights lack a tensor, or cannot be read.
    pub(crate) fn new(
        (architecture, statistics): (AutoencoderArchitecture, LatentStatistics),
        weights: Weights,
        stored: Option<Dtype>,
        memo: &mut DigestMemo,
    ) -> Result<Self, weights::Error> {
        let encoder = architecture.encoder();
        let digest = memo.digest(&weights, &vae::autoencoder::encoder_tensors(&encoder))?;
        let spec = LatentSpec {
            version: LATENT_SPEC_VERSION,
            architecture: encoder,
            weights: digest,
            picture: PictureRules::CURRENT,
            precision: Precision {
                // SDXL's VAE overflows in f16 (its `config.json` says `force_upcast`), and each picture is encoded once.
                compute: Dtype::F32,
                output: stored.unwrap_or(Dtype::F32),
            },
        };
        Ok(Self {
            fingerprint: spec.fingerprint(),
            spec,
            architecture,
            statistics,
            weights,
        })
    }

    /// Loads the half that makes latents, to compute on `device` by `kernels`, and makes sure that its weights are those of the
    /// spec.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite, or the weights are others.
    pub fn load_encoder(&self, device: &Device, kernels: &Kernels) -> Result<LatentEncoder, Error> {
        let architecture = &self.spec.architecture;
        let weights = self.weights.clone().on(device).with_kernels(kernels);
        let tensors = vae::autoencoder::encoder_tensors(architecture);
        let load = || LatentEncoder::load(architecture, &weights);
        Ok(weights.load_checked(&tensors, &self.spec.weights, load)?)
    }

    /// Loads the half that makes pictures, to compute on `device` by `kernels`.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite.
    pub fn load_decoder(&self, device: &Device, kernels: &Kernels) -> Result<LatentDecoder, Error> {
        Ok(LatentDecoder::load(
            &self.architecture,
            &self.weights.clone().on(device).with_kernels(kernels),
        )?)
    }
}

impl ModelFiles<'_> {
    pub(super) fn vae_base(
        &self,
        family: &Family,
        memo: &mut DigestMemo,
    ) -> Result<VaePart, Error> {
        let component = self.vae()?;
        let weights = vae::autoencoder::canonical(&component.open()?);
        let missing = |what: &str| Error::Missing {
            file: component.weights.clone(),
            what: what.to_owned(),
        };
        let config = match &self.config("vae", &component) {
            Some(path) => AutoencoderConfig::read(path)?,
            None => {
                let told = vae::autoencoder::config(&weights).ok_or_else(|| {
                    missing("its tensors are not those of an AutoencoderKL or AutoencoderKLWan")
                })?;
                check_groups(&told.architecture).map_err(|what| missing(&what))?;
                told
            }
        };
        let architecture = config.architecture;
        let statistics = match (
            norm_statistics(&architecture, &component, &weights)?,
            config.statistics,
        ) {
            (Some(own), _) | (None, Some(own)) => own,
            (None, None) => {
                let channels = architecture.latent_channels();
                family.latent_statistics(self.components, channels)?
            }
        };
        // Latents of another scale would be taken for the denoiser's, and nothing would fail.
        if let LatentStatistics::Patches { .. } = family.latents().statistics
            && !matches!(statistics, LatentStatistics::Patches { .. })
        {
            return Err(missing(&format!(
                "the VAE of a model of family `{}` has a batch norm (`bn.running_mean`, `bn.running_var`), by which its latents are scaled, and this one has none: name the VAE of FLUX.2 (`AutoencoderKLFlux2`) as [model] files.vae",
                family.name
            )));
        }
        // Both may have 16 channels.
        let (of_clips, expected) = (architecture.frames(), family.latents().factors.time);
        if of_clips.is_some() != expected.is_some() {
            let makes = |frames: Option<usize>| match frames {
                Some(_) => "clips (`AutoencoderKLWan`)",
                None => "pictures (`AutoencoderKL`)",
            };
            return Err(missing(&format!(
                "it is a VAE of {}, and the models of family `{}` take latents of {}: name another as [model] files.vae",
                makes(of_clips),
                family.name,
                makes(expected)
            )));
        }
        let config = (architecture, statistics);
        Ok(VaePart::new(config, weights, self.stored, memo)?)
    }
}

/// That the groups of norms, which no tensor tells, can be what they are taken to be where there is no configuration.
fn check_groups(architecture: &AutoencoderArchitecture) -> Result<(), String> {
    let AutoencoderArchitecture::Pictures(vae) = architecture else {
        return Ok(());
    };
    let groups = vae.encoder.norm_num_groups;
    let mut levels = vae.encoder.block_out_channels.iter();
    match levels.find(|channels| *channels % groups != 0) {
        None => Ok(()),
        Some(channels) => Err(format!(
            "it has no config.json, so that its norms are taken to have {groups} groups, as in every VAE that was released, and {channels} channels do not divide into them: put its config.json beside it"
        )),
    }
}

/// What the running statistics of the VAE's batch norm say of its latents, where it has one.
fn norm_statistics(
    architecture: &AutoencoderArchitecture,
    component: &Component,
    weights: &Weights,
) -> Result<Option<LatentStatistics>, Error> {
    let AutoencoderArchitecture::Pictures(VaeArchitecture { encoder, .. }) = architecture else {
        return Ok(None);
    };
    let (Some(norm), Some(tensors)) = (
        encoder.patch_norm,
        vae::names::norm_tensors(encoder, weights)?,
    ) else {
        return Ok(None);
    };
    let wrong = |what: String| models::Error::Config {
        path: component.weights.clone(),
        what,
    };
    let numbers = |tensor: &Tensor| {
        let numbers = tensor.to_dtype(DType::F32).and_then(|t| t.to_vec1());
        numbers.map_err(|source| models::Error::Device {
            what: "reading the statistics of the VAE's latents".to_owned(),
            source,
        })
    };
    let [mean, variance] = tensors;
    let (mean, variance): (Vec<f32>, Vec<f32>) = (numbers(&mean)?, numbers(&variance)?);
    let statistics = LatentStatistics::of_batch_norm(norm, &mean, &variance).map_err(wrong)?;
    Ok(Some(statistics))
}
