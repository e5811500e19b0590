//! Finding one encoder among the tensors of files that may hold much else, and the tensors that have no place.

use super::{Error, Kind, TensorList};
use crate::nn::weights::Weights;

/// Parts of checkpoints that are no business of a text encoder, by the start of their names.
const ELSEWHERE: [&str; 12] = [
    "vision_model.",
    "visual_projection.",
    "visual.",
    "logit_scale",
    "decoder.",
    "lm_head.",
    "model.diffusion_model.",
    "first_stage_model.",
    "vae.",
    "text_encoders.",
    "conditioner.",
    "cond_stage_model.",
];

/// Where an encoder's tensors lie among those of the files: what `locate` of each kind finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundEncoder<N> {
    /// What stands before all its names, the dot included; empty where the file holds it alone.
    pub(super) prefix: String,
    /// How it names them.
    pub(super) naming: N,
}

/// The one encoder that `recognise` finds: it gives prefix and naming for a tensor that gives one away.
/// Where there are several, `fits` picks the one of the right size. `anchor` is the usual name of that tensor, for messages.
pub(super) fn find<N: Clone>(
    weights: &Weights,
    kind: &dyn Kind,
    anchor: &'static str,
    recognise: impl Fn(&str) -> Option<FoundEncoder<N>>,
    fits: impl Fn(&FoundEncoder<N>) -> bool,
) -> Result<FoundEncoder<N>, Error> {
    let found: Vec<FoundEncoder<N>> = weights
        .names()
        .iter()
        .filter_map(|name| recognise(name))
        .collect();
    // Taken whatever its size: a wrong size is then refused tensor by tensor, which says more than that none fits.
    if let [only] = found.as_slice() {
        return Ok(only.clone());
    }
    // SD3's single files hold CLIP-L and CLIP-G side by side.
    let fitting: Vec<&FoundEncoder<N>> = found.iter().filter(|found| fits(found)).collect();
    match (fitting.as_slice(), found.is_empty()) {
        ([fitting], _) => Ok((*fitting).clone()),
        (_, true) => Err(Error::NotThere {
            files: weights.describe(),
            encoder: kind.title(),
            anchor,
        }),
        _ => Err(Error::Ambiguous {
            files: weights.describe(),
            encoder: kind.title(),
            prefixes: found
                .iter()
                .map(|f| format!("`{}`", f.prefix))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// Refuses tensors below `prefix` that are neither among `stored` (names in the files) nor `inert`, nor
/// another part of a whole checkpoint.
pub(super) fn refuse_unexpected(
    weights: &Weights,
    prefix: &str,
    stored: &[String],
    inert: impl Fn(&str) -> bool,
    hint: impl Fn(&str) -> String,
) -> Result<(), Error> {
    let known: std::collections::BTreeSet<&str> = stored.iter().map(String::as_str).collect();
    let elsewhere = |name: &str| ELSEWHERE.iter().any(|part| name.starts_with(part));
    let names = weights.names();
    // A configuration with fewer layers than the file has would load, and give other numbers.
    let unexpected: Vec<&String> = names
        .iter()
        .filter(|name| {
            name.strip_prefix(prefix).is_some_and(|below| {
                !known.contains(name.as_str()) && !inert(below) && !elsewhere(below)
            })
        })
        .collect();
    match unexpected.first() {
        None => Ok(()),
        Some(first) => Err(Error::Unexpected {
            files: weights.describe(),
            count: unexpected.len(),
            first: (*first).clone(),
            hint: hint(first),
        }),
    }
}

/// Adds `name` with `shape` to a list of tensors.
pub(super) fn add(list: &mut TensorList, name: impl Into<String>, shape: &[usize]) {
    list.push((name.into(), shape.to_vec()));
}
