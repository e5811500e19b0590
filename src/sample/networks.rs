//! The networks that a sample passes through: one, or two experts, each for a band of noise levels.

use super::Error;
use crate::base_model::{BaseModel, OtherExpert};
use crate::diffusion::Band;
use crate::lora::{AdapterSet, Bound};
use crate::models::{Denoiser, OpenedDenoiser, Placement, WeightStorage};

/// A network with its adapters.
pub enum Network<'a> {
    /// In memory.
    Loaded(&'a dyn Denoiser, &'a Bound),
    /// To be loaded when its turn comes, and dropped after it.
    InFiles {
        /// Its files.
        denoiser: &'a OpenedDenoiser,
        /// Its adapters, if there are some.
        adapters: Option<&'a AdapterSet>,
        /// Where it computes.
        placement: Placement,
    },
}

impl Network<'_> {
    /// Has `use_it` use the network.
    ///
    /// # Errors
    /// If it cannot be loaded, or `use_it` fails.
    pub(super) fn with(
        &self,
        use_it: &mut dyn FnMut(&dyn Denoiser, &Bound) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self {
            Self::Loaded(denoiser, adapters) => use_it(*denoiser, adapters),
            Self::InFiles {
                denoiser,
                adapters,
                placement,
            } => {
                let denoiser = denoiser.load(placement)?;
                let bound = super::bind(*adapters, denoiser.as_ref())?;
                use_it(denoiser.as_ref(), &bound)
            }
        }
    }
}

/// A network, and when it is used.
pub struct Stage<'a> {
    /// The network.
    pub network: Network<'a>,
    /// The noise levels that it is used at.
    pub levels: Band,
    /// The scale of classifier-free guidance there; 1 is none.
    pub guidance: f64,
}

/// The stages of a base model's samples, from noise to picture. `other` is the network of the other expert, for a flavor that has one.
pub fn stages<'a>(
    base: &BaseModel,
    own: Network<'a>,
    other: Option<Network<'a>>,
) -> Vec<Stage<'a>> {
    let settings = &base.settings.sample;
    let levels = base
        .flavor
        .expert
        .map_or(Band::WHOLE, |expert| expert.levels);
    let mut stages = vec![Stage {
        network: own,
        levels,
        guidance: settings.guidance,
    }];
    if let Some(network) = other {
        // What is not the one's is the other's.
        let levels = match levels.from == 0.0 {
            true => Band {
                from: levels.to,
                to: 1.0,
            },
            false => Band {
                from: 0.0,
                to: levels.from,
            },
        };
        stages.push(Stage {
            network,
            levels,
            guidance: settings.guidance_of_other,
        });
    }
    stages.sort_by(|a, b| b.levels.from.total_cmp(&a.levels.from));
    stages
}

/// The other expert beside a network that is in memory and takes its place: its weights are read from their files as they are needed.
pub fn beside<'a>(other: &'a OtherExpert, denoiser: &dyn Denoiser) -> Network<'a> {
    Network::InFiles {
        denoiser: &other.denoiser,
        adapters: None,
        placement: Placement {
            dtype: denoiser.dtype(),
            device: denoiser.device().clone(),
            kernels: denoiser.kernels().clone(),
            storage: WeightStorage::IN_FILE,
        },
    }
}
