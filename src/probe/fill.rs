//! Fills the store with what the compared recipes make of the captions.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use super::choice::ComparedRecipes;
use super::measure::Subject;
use crate::encode::{self, EncodeOptions, Missing, encode_captions};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::Store;

/// Encodes what is missing, and says beforehand how much that is.
pub(super) fn captions(
    compared: &ComparedRecipes,
    store: &Store,
    subjects: &[Subject],
    options: &EncodeOptions,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let captions: BTreeSet<&str> = subjects.iter().flat_map(Subject::captions).collect();
    let captions: Vec<String> = captions.into_iter().map(str::to_owned).collect();
    // Recipes share what their encoders make alike.
    let mut parts = BTreeMap::new();
    for part in compared.recipes.iter().flat_map(|c| &c.base.encoders) {
        parts.entry(part.fingerprint).or_insert(part);
    }
    let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
    let missing = parts
        .values()
        .map(|part| encode::missing(part, store, &texts));
    let Missing { entries, bytes } = missing.sum::<Result<_, _>>()?;
    monitor.note(&format!(
        "{}, {}; to encode: {}, about {:.1} MB in the store{}",
        shown::counted(compared.recipes.len(), "recipe"),
        shown::counted(captions.len(), "caption"),
        shown::counted(entries, "embedding"),
        bytes as f64 / 1e6,
        match entries {
            0 => "",
            _ => " (`plumb store gc` removes them again)",
        }
    ));
    for recipe in &compared.recipes {
        encode_captions(&recipe.base, store, &captions, options, monitor)?;
    }
    Ok(())
}
