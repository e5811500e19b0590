//! The configuration of a VAE, diffusers' `vae/config.json`.

use std::path::Path;

use serde::Deserialize;

use super::wan::{self, RawWan, WanArchitecture};
use super::{LatentStatistics, VaeArchitecture, VaeEncoderArchitecture};
use crate::files;

/// A VAE's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// The network, both halves.
    pub architecture: VaeArchitecture,
    /// What brings its latents to those that the denoiser was trained with.
    pub statistics: LatentStatistics,
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
        let name = file.display().to_string();
        let unreadable = |e: &dyn std::fmt::Display| ConfigError {
            file: name.clone(),
            problem: format!("cannot be read: {e}"),
        };
        let bytes = files::read(file, files::MAX_CONFIG_BYTES).map_err(|e| unreadable(&e))?;
        let text = String::from_utf8(bytes).map_err(|e| unreadable(&e))?;
        Self::parse(&text, &name)
    }

    /// The same from the text of the file; `file` names it in errors. Fields that are absent have diffusers'
    /// defaults.
    ///
    /// # Errors
    /// If it is not the configuration of an `AutoencoderKL`, or of one this program does not implement.
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
        let statistics = LatentStatistics::new(
            raw.scaling_factor,
            raw.shift_factor,
            raw.latents_mean,
            raw.latents_std,
        );
        let statistics = statistics.map_err(fail)?;
        statistics.check(raw.latent_channels).map_err(fail)?;
        Ok(Self {
            architecture: VaeArchitecture {
                encoder: VaeEncoderArchitecture {
                    in_channels: raw.in_channels,
                    block_out_channels: raw.block_out_channels,
                    layers_per_block: raw.layers_per_block,
                    latent_channels: raw.latent_channels,
                    norm_num_groups: raw.norm_num_groups,
                    use_quant_conv: raw.use_quant_conv,
                    mid_block_add_attention: raw.mid_block_add_attention,
                },
                out_channels: raw.out_channels,
                use_post_quant_conv: raw.use_post_quant_conv,
            },
            statistics,
        })
    }
}

impl WanArchitecture {
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
        if let Some(class) = map.get("_class_name").filter(|class| *class != wan::CLASS) {
            return Err(fail(format!(
                "`_class_name` is {class}, expected `{}`",
                wan::CLASS
            )));
        }
        let raw: RawWan = serde_json::from_value(map.into()).map_err(|e| fail(e.to_string()))?;
        raw.architecture().map_err(fail)
    }
}

/// The fields of `AutoencoderKL.__init__` that matter, with its defaults.
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
        }
    }
}

impl RawConfig {
    fn check(&self) -> Result<(), String> {
        if let Some(class) = &self.class_name
            && class != "AutoencoderKL"
        {
            return Err(format!(
                "`_class_name` is `{class}`, expected `AutoencoderKL`"
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
        self.check_counts()
    }

    fn check_counts(&self) -> Result<(), String> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ];
        let levels = self
            .block_out_channels
            .iter()
            .map(|&n| ("block_out_channels", n));
        for (name, count) in sizes.into_iter().chain(levels) {
            // Beyond any network, and small enough that no product of two overflows.
            if !(1..=65_536).contains(&count) {
                return Err(format!("`{name}` is {count}, expected 1 to 65536"));
            }
        }
        for channels in &self.block_out_channels {
            if channels % self.norm_num_groups != 0 {
                return Err(format!(
                    "`block_out_channels` has {channels}, which `norm_num_groups` {} does not divide",
                    self.norm_num_groups
                ));
            }
        }
        Ok(())
    }
}
