//! What is said of the recipe that fits an encoder's part of a cache best.

use serde_json::{Value, json};

use super::Error;
use super::after::After;
use super::entries::{Entries, Rank, Tried};
use super::measure::Errors;
use super::report::{EncoderFinding, FieldSaid, Verdict};
use super::search::Search;
use crate::recipe::candidates::Sweep;
use crate::recipe::rules::AssembledPads;
use crate::recipe::spec::spelled_out;
use crate::recipe::{Diff, REFERENCE, Recipe, RecipeName};

impl Search<'_, '_> {
    /// What is said of the best.
    pub(super) fn finding(
        &self,
        entries: &Entries<'_>,
        tried: &[Tried],
        best: usize,
    ) -> EncoderFinding {
        let winner = &tried[best];
        let matching = entries.matching(winner);
        let verdict = match matching * 2 > entries.seen.len() {
            true => Verdict::Reproduced,
            false => Verdict::NotReproduced,
        };
        let of_variant = |name: &str| variant(tried, name, winner);
        let changed = of_variant(&self.home).map(|home| said(home, winner));
        let reference = of_variant(REFERENCE);
        let ties: Vec<&Tried> = tried.iter().filter(|t| entries.is_tie(t, winner)).collect();
        let ties_with = |t: &Tried| ties.iter().any(|tie| std::ptr::eq(*tie, t));
        let is_home = of_variant(&self.home).is_some_and(ties_with);
        let mut also: Vec<String> = ties
            .iter()
            .filter(|t| matches!(t.rank, Rank::Home | Rank::Variant(_)))
            // What is done to pads afterwards, the others' programs do not do.
            .filter(|_| winner.after.is_the_recipes())
            .flat_map(|t| t.labels.clone())
            .filter(|label| *label != self.home || !is_home)
            .collect();
        also.sort();
        also.dedup();
        let is_near = |t: &&&Tried| t.rank != winner.rank && matches!(t.rank, Rank::NearHome(_));
        let or = ties.iter().filter(is_near);
        let or = match is_home || winner.rank > Rank::NearHome(usize::MAX) {
            true => Vec::new(),
            false => or.flat_map(|t| t.labels.first().cloned()).collect(),
        };
        let zeroes = |recipe: &Recipe| {
            recipe.assembly().pads.get(entries.slot) == Some(&AssembledPads::Zero)
        };
        let after_fits = |recipe: &Recipe| match winner.after {
            After::PadsZeroed => zeroes(recipe),
            other => other.is_the_recipes(),
        };
        // Where nothing reproduces it, what lies as far off as the base model's recipe is not that recipe's.
        let same_as_base = verdict == Verdict::Reproduced
            && reference.is_some_and(|r| ties_with(r) && after_fits(&r.recipe));
        let matched = winner.errors.iter().flatten();
        let matched = matched.filter(|e| {
            verdict == Verdict::NotReproduced || e.worst() <= entries.tolerance.relative
        });
        // Where nobody knows whose cache it is, a variant of the same rules names it better than the reference with a field changed.
        let same = tried
            .iter()
            .filter(|_| !is_home && !self.is_trainers && verdict == Verdict::Reproduced)
            .find(|t| {
                matches!(t.rank, Rank::Variant(_)) && t.part.fingerprint == winner.part.fingerprint
            });
        let same = same.and_then(|t| t.labels.first());
        also.retain(|label| Some(label) != same);
        EncoderFinding {
            slot: entries.slot.to_owned(),
            verdict,
            like: same.unwrap_or(&self.home).clone(),
            changed: match is_home || same.is_some() {
                true => Vec::new(),
                false => changed.unwrap_or_default(),
            },
            also,
            or,
            after: winner.after,
            weights: winner.part.rounding(),
            stored_as: winner.part.reduced_types(),
            compute: winner.compute(),
            tolerance: entries.tolerance,
            errors: Errors::of_all(matched),
            matching,
            compared: entries.seen.len(),
            tried: tried.len(),
            same_as_base,
            base: reference.map_or_else(Vec::new, |r| said(r, winner)),
        }
    }

    /// Which of the fields that differ from the base model's recipe make a difference for these captions: those that do when they alone
    /// are as it expects.
    pub(super) fn weigh(
        &mut self,
        entries: &Entries<'_>,
        tried: &[Tried],
        best: usize,
        fields: &mut [FieldSaid],
    ) -> Result<(), Error> {
        let winner = &tried[best];
        let name =
            RecipeName::reference(&winner.recipe.name().family, &winner.recipe.name().flavor);
        let reference = Recipe::shipped(&name)?;
        let recipe = winner.recipe.encoder(entries.slot);
        for field in fields {
            let Some(path) = recipe.and_then(|r| r.field_behind(&field.field)) else {
                continue;
            };
            let Some(expected) = reference.fields().get(&path).map(|f| f.value.clone()) else {
                continue;
            };
            let sweep = Sweep {
                fields: vec![path],
                values: vec![expected],
            };
            // What it cannot have alone, it cannot be told of alone.
            let Ok(candidates) = sweep.candidates(&winner.recipe) else {
                continue;
            };
            let list = candidates.into_iter().map(|c| (Rank::Home, c));
            let parts = self.parts(entries, list, winner.part.rounding())?;
            let Some((_, candidate, part, tokens)) = parts.first() else {
                continue;
            };
            let least = entries.matching(winner);
            let of = (&candidate.recipe, tokens.as_slice());
            let (_, errors) = self.compare(entries, part, of, least)?;
            field.matters = Some(!entries.ties(&errors, &winner.errors));
        }
        Ok(())
    }
}

/// A variant that was tried, in the precision of the winner.
fn variant<'a>(tried: &'a [Tried], name: &str, winner: &Tried) -> Option<&'a Tried> {
    let named = |t: &&Tried| t.labels.iter().any(|l| l == name);
    let same_precision = |t: &&Tried| t.compute() == winner.compute();
    let mut all = tried.iter().filter(named);
    let found = all.clone().find(same_precision);
    // Of what the entries cannot have, one precision was tried.
    found.or_else(|| all.next())
}

/// In which fields what made a cache differs from a variant. Precisions are said apart.
fn said(variant: &Tried, made: &Tried) -> Vec<FieldSaid> {
    let spec = |t: &Tried| spelled_out(&json!(t.part.spec));
    let diff = Diff::between(&spec(variant), &spec(made));
    let is_rule = |field: &str| field.starts_with("tokens.") || field.starts_with("forward.");
    let mut fields: Vec<FieldSaid> = diff
        .fields
        .into_iter()
        .filter(|f| is_rule(&f.field))
        // How windows are joined follows from `tokens.chunks`.
        .filter(|f| f.field != "forward.chunks")
        .map(|f| FieldSaid {
            matters: None,
            field: f.field,
            cached: f.found.unwrap_or(Value::Null),
            expected: f.wanted.unwrap_or(Value::Null),
        })
        .collect();
    fields.sort_by(|a, b| a.field.cmp(&b.field));
    fields
}
