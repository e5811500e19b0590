//! The statistics by which a denoiser's latents come from the VAE's.

use serde::Serialize;

use super::PatchNorm;

/// From the VAE's latents to those that the denoiser was trained with.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentStatistics {
    /// `(latents - shift) * scale`, in all channels.
    Shared {
        /// Multiplied after the shift is taken off.
        scale: f64,
        /// Taken off first.
        shift: f64,
    },
    /// `(latents - mean) * scale / std`, one mean and one deviation a channel.
    PerChannel {
        /// `scaling_factor`, the same for all channels.
        scale: f64,
        /// Taken off first; one number a channel.
        mean: Vec<f64>,
        /// Divided by, one number a channel, each above 0.
        std: Vec<f64>,
    },
    /// `(latents - mean) / std`, one mean and one deviation for each channel and place in a patch: the channel's places row by row,
    /// then the next channel's.
    Patches {
        /// Side of a patch, in latents.
        side: usize,
        /// Taken off first.
        mean: Vec<f64>,
        /// Divided by, each above 0.
        std: Vec<f64>,
    },
}

impl LatentStatistics {
    /// Those of a configuration's `scaling_factor`, `shift_factor`, `latents_mean` and `latents_std`. Mean and deviation
    /// count where both are there, as in diffusers' pipelines; those ignore one of them alone, and a shift beside both,
    /// which are refused here.
    ///
    /// # Errors
    /// If they contradict each other, or a number is not finite or would divide by 0; names the field.
    pub fn new(
        scale: f64,
        shift: Option<f64>,
        mean: Option<Vec<f64>>,
        std: Option<Vec<f64>>,
    ) -> Result<Self, String> {
        let shift = shift.unwrap_or(0.0);
        if !(scale.is_finite() && scale != 0.0 && shift.is_finite()) {
            return Err(
                "`scaling_factor` must be finite and not 0, `shift_factor` finite".to_owned(),
            );
        }
        let (mean, std) = match (mean, std) {
            (None, None) => return Ok(Self::Shared { scale, shift }),
            (Some(mean), Some(std)) => (mean, std),
            (Some(_), None) => {
                return Err("`latents_mean`: expected `latents_std` beside it".to_owned());
            }
            (None, Some(_)) => {
                return Err("`latents_std`: expected `latents_mean` beside it".to_owned());
            }
        };
        if shift != 0.0 {
            return Err(format!(
                "`shift_factor`: expected none beside `latents_mean`, found {shift}"
            ));
        }
        if let Some(found) = mean.iter().find(|number| !number.is_finite()) {
            return Err(format!(
                "`latents_mean`: expected finite numbers, found {found}"
            ));
        }
        // A deviation below 0 would turn the sign of a channel unnoticed.
        let divides = |number: &f64| number.is_finite() && *number > 0.0;
        if let Some(found) = std.iter().find(|number| !divides(number)) {
            return Err(format!(
                "`latents_std`: expected numbers above 0, found {found}"
            ));
        }
        Ok(Self::PerChannel { scale, mean, std })
    }

    /// Those of a batch norm's running means and variances; the deviations are rounded as torch rounds them, in f32.
    ///
    /// # Errors
    /// If a mean is not finite or a variance has no root; names the tensor.
    pub fn of_batch_norm(norm: PatchNorm, mean: &[f32], variance: &[f32]) -> Result<Self, String> {
        if let Some(found) = mean.iter().find(|number| !number.is_finite()) {
            return Err(format!(
                "`bn.running_mean`: expected finite numbers, found {found}"
            ));
        }
        let std: Vec<f32> = variance
            .iter()
            .map(|variance| (variance + norm.eps as f32).sqrt())
            .collect();
        let divides = |std: f32| std.is_finite() && std > 0.0;
        if let Some(at) = std.iter().position(|std| !divides(*std)) {
            return Err(format!(
                "`bn.running_var`: expected variances of at least 0, found {}",
                variance.get(at).copied().unwrap_or(f32::NAN)
            ));
        }
        let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect();
        Ok(Self::Patches {
            side: norm.side,
            mean: wide(mean),
            std: wide(&std),
        })
    }

    /// Checks that they are of latents with so many channels.
    ///
    /// # Errors
    /// If there are more or fewer; names the field.
    pub fn check(&self, channels: usize) -> Result<(), String> {
        let Self::PerChannel { mean, std, .. } = self else {
            return Ok(());
        };
        for (field, numbers) in [("latents_mean", mean), ("latents_std", std)] {
            if numbers.len() != channels {
                let found = numbers.len();
                return Err(format!(
                    "`{field}`: expected {channels} numbers, one a channel, found {found}"
                ));
            }
        }
        Ok(())
    }
}
