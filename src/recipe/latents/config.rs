//! The configuration of a VAE, diffusers' `vae/config.json`.

use std::path::Path;

use serde::Deserialize;

use super::causal::{self, RawWan, WanArchitecture};
use super::{LatentStatistics, PatchNorm, VaeArchitecture, VaeEncoderArchitecture};
use crate::files;

/// A VAE's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// The network, both halves.
    pub architecture: VaeArchitecture,
    /// What brings its latents to those that the denoiser was trained with; None where its weights say it
    /// ([`VaeEncoderArchitecture::patch_norm`]).
    pub statistics: Option<LatentStatistics>,
}

/// Why a VAE's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct ConfigError {
    file: String,
    problem: String,
}

impl VaeConfig {
    /// Reads diffusers' `vae/config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, and as [`Self::parse`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(file)?, &file.display().to_string())
    }

    /// The same from the text of the file; `file` names it in errors. Fields that are absent have diffusers'
    /// defaults.
    ///
    /// # Errors
    /// If it is not the configuration of an `AutoencoderKL` or `AutoencoderKLFlux2`, or of one this program does not implement.
    pub fn parse(json: &str, file: &str) -> Result<Self, ConfigError> {
        let fail = |problem: String| ConfigError {
            file: file.to_owned(),
            problem,
        };
        // Through a map, as serde would also take a list for a structure.
        let map: serde_json::Map<_, _> =
            serde_json::from_str(json).map_err(|e| fail(e.to_string()))?;
        let raw: RawConfig = serde_json::from_value(map.into()).map_err(|e| fail(e.to_string()))?;
        raw.check().map_err(fail)?;
        let patch_norm = raw.patch_norm().map_err(fail)?;
        let statistics = match patch_norm {
            Some(_) => None,
            None => Some(raw.statistics().map_err(fail)?),
        };
        Ok(Self {
            architecture: VaeArchitecture {
                encoder: VaeEncoderArchitecture {
                    in_channels: raw.in_channels,
                    block_out_channels: raw.block_out_channels.clone(),
                    layers_per_block: raw.layers_per_block,
                    latent_channels: raw.latent_channels,
                    norm_num_groups: raw.norm_num_groups,
                    use_quant_conv: raw.use_quant_conv,
                    mid_block_add_attention: raw.mid_block_add_attention,
                    patch_norm,
                },
                out_channels: raw.out_channels,
                decoder_block_out_channels: raw
                    .decoder_block_out_channels
                    .unwrap_or(raw.block_out_channels),
                use_post_quant_conv: raw.use_post_quant_conv,
            },
            statistics,
        })
    }
}

/// The text of a configuration's file.
pub(super) fn read_text(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |e: &dyn std::fmt::Display| ConfigError {
        file: file.display().to_string(),
        problem: format!("cannot be read: {e}"),
    };
    let bytes = files::read(file, files::MAX_CONFIG_BYTES).map_err(|e| unreadable(&e))?;
    String::from_utf8(bytes).map_err(|e| unreadable(&e))
}

impl WanArchitecture {
    /// Whether the text of a configuration says that it is of an `AutoencoderKLWan`.
    pub(super) fn is_named_by(json: &str) -> bool {
        let config: Option<serde_json::Value> = serde_json::from_str(json).ok();
        config.is_some_and(|config| config["_class_name"] == causal::CLASS)
    }

    /// Of the text of a `vae/config.json`; `file` names it in errors. Fields that are absent have diffusers' defaults, which are the
    /// released VAE's.
    ///
    /// # Errors
    /// If it is not the configuration of an `AutoencoderKLWan`, or of one this program does not implement.
    pub fn parse(json: &str, file: &str) -> Result<Self, ConfigError> {
        let fail = |problem: String| ConfigError {
            file: file.to_owned(),
            problem,
        };
        let map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(json).map_err(|e| fail(e.to_string()))?;
        if let Some(class) = map
            .get("_class_name")
            .filter(|class| *class != causal::CLASS)
        {
            return Err(fail(format!(
                "`_class_name` is {class}, expected `{}`",
                causal::CLASS
            )));
        }
        let raw: RawWan = serde_json::from_value(map.into()).map_err(|e| fail(e.to_string()))?;
        raw.architecture().map_err(fail)
    }
}

/// diffusers' class of FLUX.2's VAE.
const FLUX2: &str = "AutoencoderKLFlux2";

/// The fields of `AutoencoderKL.__init__` and `AutoencoderKLFlux2.__init__` that matter, with the defaults of the first.
#[derive(Deserialize)]
#[serde(default)]
struct RawConfig {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    in_channels: usize,
    out_channels: usize,
    down_block_types: Option<Vec<String>>,
    up_block_types: Option<Vec<String>>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    act_fn: String,
    latent_channels: usize,
    norm_num_groups: usize,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
    decoder_block_out_channels: Option<Vec<usize>>,
    batch_norm_eps: f64,
    patch_size: Vec<usize>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            in_channels: 3,
            out_channels: 3,
            down_block_types: None,
            up_block_types: None,
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            decoder_block_out_channels: None,
            batch_norm_eps: 1e-4,
            patch_size: vec![2, 2],
        }
    }
}

impl RawConfig {
    fn check(&self) -> Result<(), String> {
        if let Some(class) = &self.class_name
            && class != "AutoencoderKL"
            && class != FLUX2
        {
            return Err(format!(
                "`_class_name` is `{class}`, expected `AutoencoderKL` or `{FLUX2}`"
            ));
        }
        // diffusers has both names for it (`ACT2CLS`).
        if self.act_fn != "silu" && self.act_fn != "swish" {
            return Err(format!("`act_fn` is `{}`, expected `silu`", self.act_fn));
        }
        let levels = self.block_out_channels.len();
        // `VaeEncoderArchitecture::factor` shifts by their number.
        if !(1..=8).contains(&levels) {
            return Err(format!(
                "`block_out_channels` has {levels} levels, expected 1 to 8"
            ));
        }
        for (name, types, expected) in [
            (
                "down_block_types",
                &self.down_block_types,
                "DownEncoderBlock2D",
            ),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            let Some(types) = types else { continue };
            if types.len() != levels || types.iter().any(|kind| kind != expected) {
                return Err(format!(
                    "`{name}` is {types:?}, expected {levels} times `{expected}`"
                ));
            }
        }
        if let Some(decoder) = &self.decoder_block_out_channels
            && decoder.len() != levels
        {
            return Err(format!(
                "`decoder_block_out_channels` has {} levels, expected {levels}, as `block_out_channels`",
                decoder.len()
            ));
        }
        self.check_counts()
    }

    /// The batch norm, which only one of the classes has.
    fn patch_norm(&self) -> Result<Option<PatchNorm>, String> {
        if self.class_name.as_deref() != Some(FLUX2) {
            return Ok(None);
        }
        let side = match self.patch_size[..] {
            [height, width] if height == width && (1..=16).contains(&height) => height,
            _ => {
                return Err(format!(
                    "`patch_size` is {:?}, expected the same number twice, from 1 to 16",
                    self.patch_size
                ));
            }
        };
        let eps = self.batch_norm_eps;
        if !(eps.is_finite() && eps > 0.0) {
            return Err(format!("`batch_norm_eps` is {eps}, expected more than 0"));
        }
        Ok(Some(PatchNorm { side, eps }))
    }

    /// The statistics that a configuration has.
    fn statistics(&self) -> Result<LatentStatistics, String> {
        let statistics = LatentStatistics::new(
            self.scaling_factor,
            self.shift_factor,
            self.latents_mean.clone(),
            self.latents_std.clone(),
        )?;
        statistics.check(self.latent_channels)?;
        Ok(statistics)
    }

    fn check_counts(&self) -> Result<(), String> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ];
        let decoder = self.decoder_block_out_channels.iter().flatten();
        let levels = self
            .block_out_channels
            .iter()
            .map(|&n| ("block_out_channels", n))
            .chain(decoder.map(|&n| ("decoder_block_out_channels", n)));
        for (name, count) in sizes.into_iter().chain(levels.clone()) {
            // Beyond any network, and small enough that no product of two overflows.
            if !(1..=65_536).contains(&count) {
                return Err(format!("`{name}` is {count}, expected 1 to 65536"));
            }
        }
        for (name, channels) in levels {
            if channels % self.norm_num_groups != 0 {
                return Err(format!(
                    "`{name}` has {channels}, which `norm_num_groups` {} does not divide",
                    self.norm_num_groups
                ));
            }
        }
        Ok(())
    }
}
