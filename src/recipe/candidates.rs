//! Recipes near a recipe: what a search tries that wants to know by which one something was made.
//!
//! [`variants`] are those that ship; [`neighbours`] differ from a recipe in one field; a [`Sweep`] is what a person asks for. Values
//! that a field cannot take beside the recipe's others are left out of the neighbours and refused in a sweep, unless a field that
//! goes with it takes the same value (the two lengths of an encoder, encoders whose rows lie side by side).
//!
//! Whether a recipe fits a checkpoint is not known here: `BaseModel::with_recipe` tells.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Value, json};

use super::data::{self, Variant};
use super::diff::readable;
use super::error::{nearest, wrong_value};
use super::resolve::{Deviation, list, select_shipped};
use super::{Error, Recipe, RecipeName, explain};
use crate::digest::Fingerprint;
use crate::shown;

/// A recipe to try, and what a person calls it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The variant, or what it has otherwise than the recipe it is near to (`t5.tokens.max_tokens = 154`). Several where several ways
    /// lead to the same rules.
    pub labels: Vec<String>,
    /// Its rules.
    pub recipe: Recipe,
}

impl Candidate {
    /// All labels: `diffusers = ai-toolkit`.
    pub fn label(&self) -> String {
        self.labels.join(" = ")
    }
}

/// Every shipped variant of a flavor, the reference first.
///
/// # Errors
/// If there is no such flavor.
pub fn variants(family: &str, flavor: &str) -> Result<Vec<Candidate>, Error> {
    // Of the reference first, whose error lists the flavors there are.
    Recipe::shipped(&RecipeName::reference(family, flavor))?;
    let serves = |l: &super::Listing| l.family == family && l.flavors.iter().any(|f| f == flavor);
    let candidate = |listing: super::Listing| {
        let name = RecipeName {
            family: family.to_owned(),
            flavor: flavor.to_owned(),
            variant: listing.variant.clone(),
        };
        Ok(Candidate {
            recipe: Recipe::shipped(&name)?,
            labels: vec![listing.variant],
        })
    };
    let all = list()?.into_iter().filter(serves).map(candidate);
    Ok(merged(all.collect::<Result<_, Error>>()?))
}

/// The recipes that differ from `recipe` in one field, by the values that variants have there and those that programs are known to use
/// ([`explain::values`]), and in two where one field cannot change alone.
///
/// # Errors
/// If the shipped files are wrong, which the tests rule out.
pub fn neighbours(recipe: &Recipe) -> Result<Vec<Candidate>, Error> {
    let near = Near::of(recipe)?;
    let mut found = Vec::new();
    for (field, values) in values(recipe)? {
        for value in values {
            let sets = near.with_it(std::slice::from_ref(&field), &value);
            let fits = |set: &Changes| near.candidate(set).ok();
            found.extend(sets.iter().find_map(fits));
        }
    }
    for changes in near.pairs() {
        found.extend(near.candidate(&changes).ok());
    }
    let own = recipe.fingerprint();
    found.retain(|candidate| candidate.recipe.fingerprint() != own);
    Ok(merged(found))
}

/// One value in several places: what a person asks to be tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// The fields that take the value together.
    pub fields: Vec<String>,
    /// The values, one candidate each.
    pub values: Vec<Value>,
}

impl Sweep {
    /// A candidate for each of its values, in their order.
    ///
    /// # Errors
    /// If the recipe has no such field, or the field cannot take a value.
    pub fn candidates(&self, recipe: &Recipe) -> Result<Vec<Candidate>, Error> {
        let near = Near::of(recipe)?;
        let known = || recipe.fields().keys().map(String::as_str);
        if let Some(field) = self
            .fields
            .iter()
            .find(|f| known().all(|k| k != f.as_str()))
        {
            let meant = nearest(field, known());
            let meant = meant.map_or_else(String::new, |name| format!(", did you mean `{name}`?"));
            return Err(refused(
                field,
                format!(
                    "the recipe {0} has no such field{meant}; `plumb recipe show {0}` lists its fields",
                    recipe.name()
                ),
            ));
        }
        let candidate = |value: &Value| {
            let sets = near.with_it(&self.fields, value);
            let mut first = None;
            for set in &sets {
                match near.candidate(set) {
                    Ok(found) => return Ok(found),
                    // Of what was asked for, not of what was tried instead.
                    Err(error) => _ = first.get_or_insert(error),
                }
            }
            let named = self.fields.join("+");
            let why = first.map_or_else(String::new, |error| match error {
                Error::WrongValue {
                    why, found, base, ..
                } => wrong_value(&why, &found, &base),
                other => other.to_string(),
            });
            Err(refused(&named, why))
        };
        Ok(merged(
            self.values
                .iter()
                .map(candidate)
                .collect::<Result<_, _>>()?,
        ))
    }
}

fn refused(sweep: &str, why: String) -> Error {
    Error::Sweep {
        sweep: sweep.to_owned(),
        why,
    }
}

/// More values than anybody compares.
const MOST_VALUES: usize = 100;

/// `t5.tokens.max_tokens=77,154,none`; `a+b=1,2` sets two fields to the same value. A value is one of TOML, or a bare word.
impl FromStr for Sweep {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| refused(text, why.to_owned());
        let (fields, values) = text.split_once('=').ok_or_else(|| {
            wrong("expected FIELD=VALUE,VALUE,... such as t5.tokens.max_tokens=77,256, or all")
        })?;
        let fields: Vec<String> = fields.split('+').map(|f| f.trim().to_owned()).collect();
        if fields.iter().any(String::is_empty) {
            return Err(wrong("expected the name of a field before `=`"));
        }
        let values = split_values(values);
        if values.len() > MOST_VALUES {
            return Err(wrong(&format!("expected at most {MOST_VALUES} values")));
        }
        let values = values.into_iter().map(|value| {
            parsed(value).ok_or_else(|| wrong(&format!("`{}` is not a value", shown::text(value))))
        });
        Ok(Self {
            fields,
            values: values.collect::<Result<_, _>>()?,
        })
    }
}

/// At commas outside brackets.
fn split_values(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth = depth.saturating_add(1),
            ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn parsed(text: &str) -> Option<Value> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match format!("value = {text}").parse::<toml::Table>() {
        // A line feed in it would begin another key.
        Ok(table) if table.len() == 1 => table.get("value").and_then(|v| data::json_of(v).ok()),
        // `none`, `f32`, `transformers_4`: TOML wants quotes, which a shell takes away.
        _ if !text.is_empty() && text.chars().all(is_word) => Some(json!(text)),
        _ => None,
    }
}

/// The fields in which `to` differs from `from`, with both values; also those that only one of two variants sets otherwise.
pub fn differences(from: &Recipe, to: &Recipe) -> Vec<Deviation> {
    let differs = |(field, new): (&String, &data::Field)| {
        let old = from.fields().get(field).map(|f| f.value.clone());
        (old.as_ref() != Some(&new.value)).then(|| Deviation {
            field: field.clone(),
            value: new.value.clone(),
            instead_of: old.unwrap_or_else(|| json!("none")),
        })
    };
    to.fields().iter().filter_map(differs).collect()
}

/// Candidates of which no two have the same rules; the first of equals stays, with the labels of all.
pub fn merged(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut places = BTreeMap::<Fingerprint, usize>::new();
    let mut merged: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let fingerprint = candidate.recipe.fingerprint();
        let there = places.get(&fingerprint).copied();
        match there.and_then(|at| merged.get_mut(at)) {
            Some(first) => {
                for label in candidate.labels {
                    if !first.labels.contains(&label) {
                        first.labels.push(label);
                    }
                }
            }
            None => {
                places.insert(fingerprint, merged.len());
                merged.push(candidate);
            }
        }
    }
    merged
}

/// At each field, what a search tries there.
fn values(recipe: &Recipe) -> Result<BTreeMap<String, Vec<Value>>, Error> {
    let mut values = explain::values(recipe)?;
    let name = recipe.name();
    for variant in variants(&name.family, &name.flavor)? {
        for (field, of_variant) in variant.recipe.fields() {
            // Fields without values have no effect on a caption's conditioning, but for what lies where.
            let is_place = ["assembly.context", "assembly.pooled"].contains(&field.as_str());
            if let Some(known) = values.get_mut(field) {
                known.push(of_variant.value.clone());
            } else if is_place {
                values.insert(field.clone(), vec![of_variant.value.clone()]);
            }
        }
    }
    // Which pooled row comes first, programs have mistaken.
    if let Some(Value::Array(slots)) = recipe.fields().get("assembly.pooled").map(|f| &f.value) {
        let turned = slots.iter().rev().cloned().collect();
        let known = values.entry("assembly.pooled".to_owned()).or_default();
        known.push(Value::Array(turned));
    }
    for (field, values) in &mut values {
        let own = recipe.fields().get(field).map(|f| &f.value);
        let mut seen: Vec<Value> = Vec::new();
        values.retain(|value| {
            let new = Some(value) != own && !seen.contains(value);
            seen.push(value.clone());
            new
        });
    }
    Ok(values)
}

/// Fields, each with the value that it takes.
type Changes = Vec<(String, Value)>;

/// Where candidates are made from.
struct Near<'a> {
    recipe: &'a Recipe,
    variant: Variant,
}

impl<'a> Near<'a> {
    fn of(recipe: &'a Recipe) -> Result<Self, Error> {
        let variant = select_shipped(recipe.name())?;
        Ok(Self { recipe, variant })
    }

    fn candidate(&self, changes: &Changes) -> Result<Candidate, Error> {
        let table = self.recipe.deviate_with(changes)?;
        let name = self.recipe.name().clone();
        let recipe = Recipe::from_variant(name, self.variant.clone(), &table)?;
        // Without what has the value already; a recipe that is the same is called what it was asked for.
        let differs = differences(self.recipe, &recipe);
        let differs = differs.into_iter().map(|d| (d.field, d.value));
        let differs: Changes = differs.collect();
        Ok(Candidate {
            labels: vec![label(if differs.is_empty() {
                changes
            } else {
                &differs
            })],
            recipe,
        })
    }

    /// `fields` with a value; then, for where they cannot take it alone, with the fields beside them.
    fn with_it(&self, fields: &[String], value: &Value) -> Vec<Changes> {
        let beside = self.beside(fields);
        let lengths = lengths(fields);
        let both = lengths.as_ref().map(|fields| self.beside(fields));
        let mut sets = vec![fields.to_vec(), beside];
        sets.extend(lengths);
        sets.extend(both);
        sets.dedup();
        let with_value = |fields: Vec<String>| {
            let change = |field| (field, value.clone());
            fields.into_iter().map(change).collect()
        };
        sets.into_iter().map(with_value).collect()
    }

    /// `fields`, and the same fields of the encoders whose rows lie beside theirs.
    fn beside(&self, fields: &[String]) -> Vec<String> {
        let mut all = fields.to_vec();
        for field in fields {
            let Some((slot, rest)) = field.split_once('.') else {
                continue;
            };
            let groups = self.recipe.assembly().context.iter();
            for group in groups.filter(|group| group.iter().any(|s| s == slot)) {
                let others = group.iter().map(|slot| format!("{slot}.{rest}"));
                all.extend(others.filter(|o| self.recipe.fields().contains_key(o)));
            }
        }
        let mut seen = Vec::new();
        all.retain(|field| {
            let new = !seen.contains(field);
            seen.push(field.clone());
            new
        });
        all
    }

    /// Fields that programs change together: an encoder's length, to which shorter captions are padded and longer ones cut, and pads
    /// that neither encoder nor denoiser sees.
    fn pairs(&self) -> Vec<Changes> {
        let values = explain::values(self.recipe).unwrap_or_default();
        let mut pairs = Vec::new();
        for encoder in self.recipe.encoders() {
            let slot = &encoder.slot;
            let field = |rest: &str| format!("{slot}.{rest}");
            let most = values.get(&field("tokens.max_tokens"));
            let counts = most.into_iter().flatten().filter(|v| v.is_u64());
            for count in counts {
                let fields = [field("tokens.min_tokens"), field("tokens.max_tokens")];
                pairs.push(fields.map(|f| (f, count.clone())).to_vec());
            }
            pairs.push(vec![
                (field("forward.mask"), json!("pads")),
                (format!("assembly.pads.{slot}"), json!("zero")),
            ]);
        }
        pairs
    }
}

/// The other length with a length.
fn lengths(fields: &[String]) -> Option<Vec<String>> {
    let [field] = fields else { return None };
    let slot = ["min", "max"].iter().find_map(|which| {
        let end = format!(".tokens.{which}_tokens");
        field.strip_suffix(end.as_str())
    })?;
    Some(
        ["min", "max"]
            .map(|which| format!("{slot}.tokens.{which}_tokens"))
            .to_vec(),
    )
}

/// `t5.tokens.max_tokens = 154`; fields of one value share it.
fn label(changes: &Changes) -> String {
    let mut parts: Vec<(Vec<&str>, &Value)> = Vec::new();
    for (field, value) in changes {
        match parts.iter_mut().find(|(_, v)| *v == value) {
            Some((fields, _)) => fields.push(field),
            None => parts.push((vec![field], value)),
        }
    }
    let part = |(fields, value): (Vec<&str>, &Value)| {
        format!("{} = {}", fields.join(", "), readable(Some(value)))
    };
    parts.into_iter().map(part).collect::<Vec<_>>().join(", ")
}
