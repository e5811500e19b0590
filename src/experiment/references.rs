//! Reference pictures: what a flavor that takes some must be told, and what others must not.

use std::path::PathBuf;

use super::check::{FieldProblem, wrong};
use super::raw::{Dataset, Raw, ReferenceSize, Sample};
use super::{DatasetSettings, Experiment};
use crate::models;

pub use crate::models::References;

/// The references of a folder of pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceSettings {
    /// Where they are.
    pub source: ReferenceSource,
    /// Which size they are brought to.
    pub size: ReferenceSize,
}

/// Where references are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReferenceSource {
    /// In this folder, as the program sees the path, by the names of their pictures.
    Folder(PathBuf),
    /// Where this field of the list of captions says.
    Column(String),
}

impl DatasetSettings {
    /// The field of the list of captions that names references.
    pub fn reference_column(&self) -> Option<&str> {
        match &self.references.as_ref()?.source {
            ReferenceSource::Column(column) => Some(column),
            ReferenceSource::Folder(_) => None,
        }
    }
}

impl Experiment {
    pub(super) fn references(&self, set: &Dataset) -> Option<ReferenceSettings> {
        let source = match (&set.references, &set.reference_column) {
            (Some(folder), _) => ReferenceSource::Folder(self.path(folder)),
            (None, Some(column)) => ReferenceSource::Column(column.clone()),
            (None, None) => return None,
        };
        Some(ReferenceSettings {
            source,
            size: set.reference_size.unwrap_or_default(),
        })
    }

    /// The references that the base model takes; none for a model that takes none.
    pub fn flavor_references(&self) -> Option<References> {
        self.raw.flavor_references()
    }

    /// Whether the file says how large previews are.
    pub fn sets_preview_size(&self) -> bool {
        self.raw.sample.width.or(self.raw.sample.height).is_some()
    }
}

impl Raw {
    fn flavor_references(&self) -> Option<References> {
        let model = &self.model;
        let flavor = models::family(&model.family).and_then(|family| family.flavor(&model.flavor));
        // What is wrong with the names is told elsewhere.
        flavor.ok()?.references
    }

    pub(super) fn check_references(&self) -> Result<(), FieldProblem> {
        let name = &self.model.flavor;
        let takes = self.flavor_references();
        for (i, set) in self.dataset.iter().enumerate() {
            let checked = match takes {
                Some(References::Usual(_)) => needs_some(set).and_then(|()| of_set(set)),
                Some(References::Possible { .. }) => {
                    needs_none(set, name).and_then(|()| of_set(set))
                }
                None => none_of(&set.named_references(), name),
            };
            checked.map_err(|(field, why)| (format!("dataset[{i}].{field}"), why))?;
        }
        let checked = match takes {
            Some(_) => of_previews(&self.sample),
            None => none_of(&self.sample.named_references(), name),
        };
        checked.map_err(|(field, why)| (format!("sample.{field}"), why))
    }
}

impl Dataset {
    fn has_references(&self) -> bool {
        self.references.is_some() || self.reference_column.is_some()
    }

    fn named_references(&self) -> [(&'static str, bool); 4] {
        [
            ("references", self.references.is_some()),
            ("reference_column", self.reference_column.is_some()),
            ("reference_size", self.reference_size.is_some()),
            ("without_references", self.without_references),
        ]
    }
}

impl Sample {
    fn named_references(&self) -> [(&'static str, bool); 2] {
        [
            ("references", !self.references.is_empty()),
            ("reference_size", self.reference_size.is_some()),
        ]
    }
}

fn none_of(named: &[(&'static str, bool)], flavor: &str) -> Result<(), FieldProblem> {
    match named.iter().find(|(_, is_named)| *is_named) {
        None => Ok(()),
        Some((field, _)) => wrong(
            field,
            format!(
                "flavor `{flavor}` is given no reference pictures; leave it out (FLUX.1 Kontext is, family `flux1`, flavor `kontext`, and FLUX.2 klein, family `flux2`)"
            ),
        ),
    }
}

/// Of a model for pairs.
fn needs_some(set: &Dataset) -> Result<(), FieldProblem> {
    if set.has_references() || set.without_references || set.reference_size.is_some() {
        return Ok(());
    }
    let why = "this flavor is given a reference picture beside each one: name their folder here, or a column of metadata.jsonl as \
               `reference_column`; `without_references = true` trains on these pictures alone, as on text to picture";
    wrong("references", why)
}

/// Of a model of text to picture that can be given references as well.
fn needs_none(set: &Dataset, flavor: &str) -> Result<(), FieldProblem> {
    match set.without_references {
        false => Ok(()),
        true => wrong(
            "without_references",
            format!(
                "flavor `{flavor}` is trained without references where none are named; leave it out"
            ),
        ),
    }
}

fn of_set(set: &Dataset) -> Result<(), FieldProblem> {
    let has = set.has_references();
    if set.references.is_some() && set.reference_column.is_some() {
        return wrong(
            "reference_column",
            "expected `references`, a folder, or `reference_column`, found both",
        );
    }
    if set.without_references && has {
        return wrong(
            "without_references",
            "there are references as well; leave one of the two out",
        );
    }
    if !has && set.reference_size.is_some() {
        return wrong(
            "reference_size",
            "there are no references that it could be of; leave it out",
        );
    }
    if set.crops > 1 && set.reference_size == Some(ReferenceSize::Preferred) {
        return wrong(
            "crops",
            "with `reference_size = \"preferred\"` a crop would stand beside the whole reference; leave one of the two out",
        );
    }
    Ok(())
}

fn of_previews(sample: &Sample) -> Result<(), FieldProblem> {
    let (prompts, references) = (sample.prompts.len(), sample.references.len());
    if references == 0 && sample.reference_size.is_some() {
        return wrong(
            "reference_size",
            "there are no references that it could be of; leave it out",
        );
    }
    if references > 1 && prompts > 0 && references != prompts {
        return wrong(
            "references",
            format!(
                "expected one for all prompts, or one for each of {prompts}, found {references}"
            ),
        );
    }
    Ok(())
}
