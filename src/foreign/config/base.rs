//! Which base model a config is for, and how its trainer conditions it.

use std::collections::BTreeMap;

use toml::Value as Toml;

use super::Trainer;
use super::draft::Draft;
use super::knowledge::{Knowledge, Status, flavor_by_name};
use super::report::RecipeChoice;
use super::setting::Lookup;
use crate::models::{self, Flavor};
use crate::recipe::{Diff, REFERENCE, Recipe, RecipeName};
use crate::shown;

/// What a config tells of its base model.
pub(super) struct Told {
    pub(super) family: String,
    /// None: the path's name tells, or the first of the family is meant.
    pub(super) flavor: Option<String>,
    /// Whose recipe the trainer makes conditioning by.
    pub(super) variant: String,
    /// Whether a person said so.
    pub(super) by_person: bool,
}

/// The family, and its flavor where a setting tells it; `model`: what a person says, as `family/flavor`.
///
/// # Errors
/// If it is of no family that plumb trains, or nothing tells it.
pub(super) fn family(
    trainer: Trainer,
    knowledge: &Knowledge,
    lookup: &Lookup<'_>,
    model: Option<&str>,
) -> Result<Told, String> {
    let rule = knowledge
        .models
        .iter()
        .find(|rule| lookup.holds(&rule.when, None));
    let variant = |family: &str| {
        let rule = rule.filter(|rule| rule.family == family);
        let variant = rule.and_then(|rule| rule.variant.clone());
        variant.unwrap_or_else(|| trainer.name().to_owned())
    };
    if let Some(model) = model {
        let (family, flavor) = model.split_once('/').unwrap_or((model, ""));
        let known = models::family(family).map_err(|e| e.to_string())?;
        let flavor = (!flavor.is_empty()).then_some(flavor);
        if let Some(flavor) = flavor {
            known.flavor(flavor).map_err(|e| e.to_string())?;
        }
        return Ok(Told {
            family: family.to_owned(),
            flavor: flavor.map(str::to_owned),
            variant: variant(family),
            by_person: true,
        });
    }
    let names = families();
    match rule {
        Some(rule) if models::family(&rule.family).is_ok() => Ok(Told {
            family: rule.family.clone(),
            flavor: rule.flavor.clone(),
            variant: variant(&rule.family),
            by_person: false,
        }),
        Some(rule) => Err(format!("it is for {}; plumb trains {names}", rule.family)),
        None => match lookup.setting(&knowledge.model_key) {
            Some(setting) if models::family(&setting.value.written()).is_ok() => Err(format!(
                "`{}` is `{}`, which is plumb's name of a family and none that {trainer} has for one; where it is meant, say so with --model {}",
                shown::text(&setting.place),
                shown::text(&setting.value.written()),
                shown::text(&setting.value.written())
            )),
            Some(setting) => Err(format!(
                "`{}` is `{}`, which is of no family that plumb trains ({names}); where it is, say so with --model FAMILY/FLAVOR",
                shown::text(&setting.place),
                shown::text(&setting.value.written())
            )),
            None => Err(format!(
                "nothing in it tells which base model it is for; say so with --model FAMILY/FLAVOR, where the family is one of {names}"
            )),
        },
    }
}

fn families() -> String {
    let names: Vec<&str> = models::families().map(|family| family.name).collect();
    names.join(", ")
}

/// The flavor: as a setting or a person said, else as the path's name tells, else the family's usual one.
pub(super) fn flavor(told: &Told, path: &str) -> Option<&'static Flavor> {
    let family = models::family(&told.family).ok()?;
    let by_name = flavor_by_name(&told.family, path);
    let name = told.flavor.as_deref().or(by_name.as_deref());
    let found = name.and_then(|name| family.flavor(name).ok());
    found.or(family.flavors.first())
}

/// What a person should check of a flavor that nobody said.
pub(super) fn note(told: &Told, flavor: &Flavor, path: &str) -> Option<String> {
    let is_only = models::family(&told.family).is_ok_and(|family| family.flavors.len() == 1);
    if told.by_person || told.flavor.is_some() || is_only {
        return None;
    }
    Some(format!(
        "the flavor {}/{} is taken from the name `{}`; --model says another",
        told.family,
        flavor.name,
        shown::text(path)
    ))
}

/// Rows of which another status is found, and why.
pub(super) struct Change {
    pub(super) rows: Vec<usize>,
    pub(super) status: Status,
    pub(super) why: String,
}

/// How conditioning is made: what the base model expects, or the trainer's variant with what the config deviates in; what differs
/// between the two, and what becomes of the settings that deviate.
pub(super) fn recipe(
    told: &Told,
    flavor: &Flavor,
    keep: bool,
    draft: &mut Draft,
) -> (RecipeChoice, Vec<Change>) {
    let reference = RecipeName::reference(&told.family, flavor.name);
    let variant = RecipeName {
        variant: told.variant.clone(),
        ..reference.clone()
    };
    let (base, own) = (Recipe::shipped(&reference), Recipe::shipped(&variant));
    let mut notes = BTreeMap::new();
    let (keep, differences, changes) = match (base, own) {
        (Ok(base), Ok(own)) => {
            let (own, changes) = deviated(own, keep, draft);
            let diff = Diff::between(&base.rules(), &own.rules());
            notes = said(&own, &diff);
            (keep, Some(diff), changes)
        }
        _ => (false, None, without_variant(draft)),
    };
    let name = match keep {
        true => told.variant.as_str(),
        false => REFERENCE,
    };
    draft.ours("recipe.variant", Toml::String(name.to_owned()));
    let choice = RecipeChoice {
        reference: reference.to_string(),
        trainers: differences.is_some().then(|| variant.to_string()),
        kept: keep,
        differences: differences.unwrap_or_default(),
        notes,
    };
    (choice, changes)
}

/// What a recipe says of the fields in which it differs.
fn said(own: &Recipe, diff: &Diff) -> BTreeMap<String, String> {
    let note = |field: &str| own.fields().get(field)?.note.clone();
    let fields = diff.fields.iter().map(|differing| &differing.field);
    fields
        .filter_map(|field| Some((field.clone(), note(field)?)))
        .collect()
}

/// The trainer's recipe with what the config has otherwise.
fn deviated(own: Recipe, keep: bool, draft: &mut Draft) -> (Recipe, Vec<Change>) {
    let (mut recipe, mut table) = (own, toml::Table::new());
    let (name, mut changes) = (recipe.name().clone(), Vec::new());
    let mut taken = draft.take_deviations();
    // Fields that one setting sets only hold together: the least length with the most.
    taken.sort_by(|a, b| a.2.cmp(&b.2));
    for set in taken.chunk_by(|a, b| a.2 == b.2) {
        let rows = set[0].2.clone();
        let mut more = table.clone();
        more.extend(
            set.iter()
                .map(|(field, value, _)| (field.clone(), value.clone())),
        );
        let said: Vec<String> = set
            .iter()
            .map(|(field, value, _)| format!("{field} = {value}"))
            .collect();
        let tried = Recipe::resolve(&name.family, &name.flavor, &name.variant, &more);
        let (status, why) = match tried {
            Ok(other) if other.deviations().len() == recipe.deviations().len() => (
                Status::NotNeeded,
                format!("plumb's recipe {name} has it so"),
            ),
            Ok(other) => {
                (recipe, table) = (other, more);
                if keep {
                    for (field, value, rows) in set {
                        draft.deviate(field, value.clone(), rows.clone());
                    }
                    continue;
                }
                let why = format!(
                    "the base model's own recipe counts; --keep-recipe keeps {}",
                    said.join(" and ")
                );
                (Status::Overridden, why)
            }
            Err(e) => (Status::NotSupported, e.to_string()),
        };
        changes.push(Change { rows, status, why });
    }
    (recipe, changes)
}

/// Where plumb has no recipe of the trainer's for a model, the base model's counts.
fn without_variant(draft: &mut Draft) -> Vec<Change> {
    let taken = draft.take_deviations().into_iter();
    let change = |(_, _, rows)| Change {
        rows,
        status: Status::Overridden,
        why: "the base model's own recipe counts".to_owned(),
    };
    taken.map(change).collect()
}
