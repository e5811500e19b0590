//! What a LoRA was trained with, whoever trained it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Error;
use crate::convert::provenance::{self, Provenance};
use crate::convert::{self, Converted, ReadFile, ReadLora};
use crate::lora::formats::Module;
use crate::recipe::{Diff, Recipe, RecipeName};

/// What a LoRA file is, and what it says of its making.
#[derive(Debug, Serialize)]
pub struct LoraReport {
    /// The name of the family it is for.
    pub family: &'static str,
    /// The naming of its tensors, by the program that uses it.
    pub format: &'static str,
    /// The element type of its tensors.
    pub dtype: &'static str,
    /// Tensors of text encoders beside those of the denoiser.
    pub text_encoder_tensors: usize,
    /// Modules with an adapter.
    pub modules: usize,
    /// Numbers in those adapters.
    pub parameters: usize,
    /// The distinct ranks of the adapters, rising.
    pub ranks: Vec<usize>,
    /// What does not fit in it: hashes that are not those of its tensors or its header.
    pub problems: Vec<String>,
    /// What else a person should know of it.
    pub notes: Vec<String>,
    /// How it was made, where plumb made it.
    pub provenance: Option<Provenance>,
    /// What it was made from, where it was converted.
    pub converted: Option<Converted>,
    /// In which fields the recipe differs from the authors' reference.
    pub from_reference: Option<Diff>,
    /// Metadata other than plumb's own, which is in `provenance` and `converted`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads a LoRA of any known naming; `family` is for where the file does not tell it.
///
/// # Errors
/// If the file cannot be read or is none, or what plumb wrote into it is no longer JSON.
pub fn lora(path: &Path, family: Option<&str>) -> Result<LoraReport, Error> {
    let options = ReadLora {
        family,
        without_text_encoders: true,
        expert: None,
        damaged: true,
    };
    let ReadFile {
        lora: file,
        file: path,
        ..
    } = convert::read_lora(path, &options)?;
    let unreadable = |key| {
        let path = path.clone();
        move |source| Error::Metadata { path, key, source }
    };
    let converted = Converted::read(&file.metadata).map_err(unreadable(convert::METADATA_KEY))?;
    let provenance =
        Provenance::read(&file.metadata).map_err(unreadable(provenance::METADATA_KEY))?;
    let mut ranks: Vec<usize> = file.modules.iter().map(Module::rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let own_keys = [provenance::METADATA_KEY, convert::METADATA_KEY];
    let others = file.metadata.into_iter();
    Ok(LoraReport {
        family: file.naming.family,
        format: file.format.name(),
        dtype: file.dtype.name(),
        modules: file.modules.len(),
        parameters: file.modules.iter().map(Module::parameters).sum(),
        ranks,
        text_encoder_tensors: file.left_out,
        problems: file.damage.into_iter().chain(file.problems).collect(),
        notes: file.notes,
        converted,
        from_reference: provenance.as_ref().and_then(against_reference),
        provenance,
        metadata: others
            .filter(|(k, _)| !own_keys.contains(&k.as_str()))
            .collect(),
    })
}

fn against_reference(made: &Provenance) -> Option<Diff> {
    // Against the authors' recipe without deviations, whatever recipe the training named.
    let reference = Recipe::shipped(&RecipeName::reference(&made.family, &made.flavor)).ok()?;
    Some(Diff::between(&reference.rules(), made.recipe.get("rules")?))
}
