//! The recipes that a probe compares.

use std::str::FromStr;

use super::report::LeftOut;
use super::{Error, ProbeOptions};
use crate::base_model::{self, BaseModel, storing};
use crate::nn::weights::DigestMemo;
use crate::recipe::candidates::{self, Candidate, Sweep};
use crate::recipe::{self, REFERENCE};

/// What the Experiment's own recipe is called, deviations and all.
const EXPERIMENT: &str = "experiment";

/// What a person wants to be varied.
#[derive(Clone, Debug, PartialEq)]
pub enum Vary {
    /// All variants, and each field of the one that they are compared with.
    All,
    /// One field, or several that take the same value.
    Fields(Sweep),
}

impl FromStr for Vary {
    type Err = recipe::Error;

    fn from_str(text: &str) -> Result<Self, recipe::Error> {
        match text {
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::Fields),
        }
    }
}

/// A recipe, opened on the base model.
pub struct Compared {
    /// What it is called.
    pub candidate: Candidate,
    /// The base model under it.
    pub base: BaseModel,
}

/// All that are compared; the first is the one that the others are compared with.
pub struct ComparedRecipes {
    /// The recipes that fit the base model.
    pub recipes: Vec<Compared>,
    /// Those that do not.
    pub left_out: Vec<LeftOut>,
}

/// The recipes that `options` ask for: by default the variants and the Experiment's own.
///
/// # Errors
/// If there is no such variant or field, or nothing is left to compare.
pub fn compared(
    base: &BaseModel,
    options: &ProbeOptions,
    memo: &mut DigestMemo,
) -> Result<ComparedRecipes, Error> {
    let name = base.recipe.name();
    let variants = candidates::variants(&name.family, &name.flavor)?;
    let own = Candidate {
        labels: vec![EXPERIMENT.to_owned()],
        recipe: base.recipe.clone(),
    };
    let wanted = options.against.as_deref().unwrap_or(REFERENCE);
    let is_it = |candidate: &&Candidate| candidate.labels.iter().any(|label| label == wanted);
    let against = variants.iter().chain([&own]).find(is_it).cloned();
    let against = against.ok_or_else(|| Error::Against {
        found: wanted.to_owned(),
        family: name.family.clone(),
        flavor: name.flavor.clone(),
        known: labels(&variants),
    })?;
    let mut all = vec![against.clone()];
    if options.vary.is_empty() || options.vary.contains(&Vary::All) {
        all.extend(variants);
    }
    // With what is stored as the Experiment says, under which alone its own recipe is known by.
    let stored = base.experiment.model().stored;
    for vary in &options.vary {
        match vary {
            Vary::All => all.extend(candidates::neighbours(&against.recipe)?),
            Vary::Fields(sweep) => all.extend(sweep.candidates(&against.recipe)?),
        }
    }
    all.push(own);
    for candidate in &mut all {
        let recipe = candidate.recipe.clone();
        candidate.recipe = storing(recipe, stored)?;
    }
    opened(base, candidates::merged(all), memo)
}

fn labels(candidates: &[Candidate]) -> String {
    let labels = candidates.iter().flat_map(|c| &c.labels);
    let labels: Vec<&str> = labels.map(String::as_str).collect();
    labels.join(", ")
}

fn opened(
    base: &BaseModel,
    candidates: Vec<Candidate>,
    memo: &mut DigestMemo,
) -> Result<ComparedRecipes, Error> {
    let mut found = ComparedRecipes {
        recipes: Vec::new(),
        left_out: Vec::new(),
    };
    for candidate in candidates {
        match base.with_recipe(candidate.recipe.clone(), memo) {
            Ok(base) => found.recipes.push(Compared { candidate, base }),
            // Of the first, the others could not be told apart from it.
            Err(error) if found.recipes.is_empty() => return Err(error.into()),
            Err(base_model::Error::Recipe(why)) => found.left_out.push(LeftOut {
                label: candidate.label(),
                why: why.to_string(),
            }),
            Err(error) => return Err(error.into()),
        }
    }
    found.check()?;
    Ok(found)
}

impl ComparedRecipes {
    /// Checks that there are at least two.
    ///
    /// # Errors
    /// If not.
    pub(super) fn check(&self) -> Result<(), Error> {
        let (first, others) = match self.recipes.as_slice() {
            [] => ("the base model's recipe".to_owned(), 0),
            [first, others @ ..] => (first.candidate.label(), others.len()),
        };
        if others > 0 {
            return Ok(());
        }
        Err(Error::NothingToCompare {
            against: first,
            why: match self.left_out.first() {
                Some(left_out) => format!("{}: {}", left_out.label, left_out.why),
                None => "what was asked for has the same rules".to_owned(),
            },
        })
    }
}
