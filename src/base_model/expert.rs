//! The other of two experts, which a sample of the Experiment's passes through as well.

use super::{BaseModel, Error};
use crate::models::{Flavor, OpenedDenoiser};
use crate::shown;

/// The network for the noise levels that the Experiment's is not for.
pub struct OtherExpert {
    /// Its flavor.
    pub flavor: &'static Flavor,
    /// Opened, not loaded.
    pub denoiser: OpenedDenoiser,
}

impl BaseModel {
    /// The other expert; None for a flavor that is not one of two.
    ///
    /// # Errors
    /// If it is neither in the model's folder nor named under `[model.files]`, or is not what it should be.
    pub fn other_expert(&self) -> Result<Option<OtherExpert>, Error> {
        let Some(own) = self.flavor.expert else {
            return Ok(None);
        };
        let family = self.denoiser.family;
        let flavor = family.flavor(own.other)?;
        let Some(expert) = flavor.expert else {
            return Ok(None);
        };
        let missing = |what: String| Error::Missing {
            file: self.experiment.file.clone(),
            what,
        };
        let files = self.experiment.model().files;
        let named = files
            .of(expert.name)
            .and_then(|files| files.weights.as_deref());
        let components = match named {
            Some(path) => family.components(path)?,
            None if self.denoiser.components.path.is_dir() => self.denoiser.components.clone(),
            None => {
                return Err(missing(format!(
                    "a sample passes through both experts, and `model.path` is one file: add {} = \"...\" (the file of flavor `{}`) under [model.files]",
                    expert.name, flavor.name
                )));
            }
        };
        let denoiser = family.open_as(components, flavor)?;
        denoiser.check_whole()?;
        denoiser.check_flavor(flavor)?;
        if self.denoiser.is_same_network(&denoiser)? {
            return Err(missing(format!(
                "{} has the weights of `model.path`: flavors `{}` and `{}` are two networks",
                shown::path(&denoiser.components.path),
                self.flavor.name,
                flavor.name
            )));
        }
        Ok(Some(OtherExpert { flavor, denoiser }))
    }
}
