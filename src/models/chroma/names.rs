//! Weights of a Chroma transformer under the names of diffusers, whichever of two namings the files have: that one, or the
//! one of the author's single files, which is FLUX.1's beside the approximator.

use super::architecture::Architecture;
use crate::models::family::DescribedWeights;
use crate::models::flux1::names;
use crate::models::{Component, Error};
use crate::nn::weights::Stored;

/// Reads what the denoiser's files and config say of it.
pub(super) fn open(component: &Component) -> Result<DescribedWeights, Error> {
    let stored = component.open()?;
    let single_file = stored.contains("img_in.weight");
    DescribedWeights::named(
        component,
        &stored,
        single_file,
        in_single_file,
        Architecture::of,
    )
}

/// Where a single file keeps a tensor of diffusers' name. A name that is unknown stays as it is, and will not be
/// found.
fn in_single_file(name: &str) -> Stored {
    let Some(part) = name.strip_prefix("distilled_guidance_layer.") else {
        return names::in_single_file(name);
    };
    let own = match part.split('.').collect::<Vec<_>>()[..] {
        ["layers", i, "linear_1", kind] => format!("layers.{i}.in_layer.{kind}"),
        ["layers", i, "linear_2", kind] => format!("layers.{i}.out_layer.{kind}"),
        ["norms", i, "weight"] => format!("norms.{i}.scale"),
        _ => part.to_owned(),
    };
    format!("distilled_guidance_layer.{own}").into()
}
