//! Which recipe gives what a cache has of one encoder: the trainer's own first, then the other variants, then recipes that differ from
//! these in one field.

use serde_json::{Value, json};

use super::Error;
use super::after::After;
use super::entries::{Entries, Rank, Tried, precision};
use super::measure::{Errors, Tolerance};
use super::observe::{Seen, SeenSlots, Shapes};
use super::pair::Paired;
use super::report::{CacheReport, EncoderFinding, FieldSaid, Verdict};
use super::run::{Runner, network_key, tokens};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::monitor::Monitor;
use crate::nn::weights::{DigestMemo, Rounding};
use crate::recipe::candidates::{Candidate, Sweep, neighbours, variants};
use crate::recipe::rules::AssembledPads;
use crate::recipe::spec::spelled_out;
use crate::recipe::{Diff, REFERENCE, Recipe, RecipeName};
use crate::text::spec::Dtype;

/// A median error below which weights of 8 bits are not looked for: numbers of four significant bits shift what a network gives by at
/// least twice this.
const OF_ROUNDED_WEIGHTS: f64 = 4e-3;

/// An entry that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Observation<'a> {
    pub(super) paired: Paired<'a>,
    /// The caption that is encoded again.
    pub(super) text: String,
    pub(super) seen: SeenSlots,
}

/// The recipe that fits an encoder's part of a cache best.
pub(super) struct Winner {
    pub(super) slot: String,
    pub(super) part: TextEncoderPart,
    pub(super) after: After,
    pub(super) tolerance: Tolerance,
    /// Whether the Experiment's own recipe fits as well.
    pub(super) as_experiment: bool,
    /// By the place of the observation.
    pub(super) errors: Vec<(usize, Option<Errors>)>,
}

/// The search through recipes, encoder by encoder.
pub(super) struct Search<'a, 'b> {
    base: &'a BaseModel,
    pub(super) runner: &'b mut Runner<'a>,
    memo: &'b mut DigestMemo,
    monitor: &'b dyn Monitor,
    variants: Vec<Candidate>,
    /// Whose variant is tried first.
    home: String,
    /// Whether that is the trainer's own, and not the reference because no variant is.
    is_trainers: bool,
    pub(super) winners: Vec<Winner>,
}

impl<'a, 'b> Search<'a, 'b> {
    /// `trainer` is whose variant is tried first, if the family has one of that name.
    pub(super) fn new(
        base: &'a BaseModel,
        runner: &'b mut Runner<'a>,
        memo: &'b mut DigestMemo,
        trainer: &str,
        monitor: &'b dyn Monitor,
    ) -> Result<Self, Error> {
        let name = base.recipe.name();
        let variants = variants(&name.family, &name.flavor)?;
        let is_there = variants
            .iter()
            .any(|c| c.labels.iter().any(|l| l == trainer));
        Ok(Self {
            base,
            runner,
            memo,
            monitor,
            variants,
            home: if is_there { trainer } else { REFERENCE }.to_owned(),
            is_trainers: is_there,
            winners: Vec::new(),
        })
    }

    /// Finds out what made each slot's part.
    pub(super) fn slots(
        &mut self,
        shapes: &Shapes,
        observed: &[Observation<'_>],
        report: &mut CacheReport,
    ) -> Result<(), Error> {
        for slot in shapes.slots() {
            report.encoders.extend(self.slot(slot, observed)?);
        }
        Ok(())
    }

    /// What made a slot's part of the entries; `None` where they have none.
    fn slot(
        &mut self,
        slot: &str,
        observed: &[Observation<'_>],
    ) -> Result<Option<EncoderFinding>, Error> {
        let with = |(n, o): (usize, &'_ Observation<'_>)| o.seen.get(slot).map(|_| n);
        let places: Vec<usize> = observed.iter().enumerate().filter_map(with).collect();
        if places.is_empty() {
            return Ok(None);
        }
        let seen: Vec<&Seen> = places.iter().map(|n| &observed[*n].seen[slot]).collect();
        let texts: Vec<&str> = places.iter().map(|n| observed[*n].text.as_str()).collect();
        let entries = Entries {
            slot,
            tolerance: Tolerance::of(precision(&seen)?),
            seen,
            texts,
        };
        self.monitor.start(&format!("recipes for {slot}"), None);
        let tried = self.all_stages(&entries)?;
        self.monitor.finish();
        let Some(best) = entries.best(&tried) else {
            return Ok(None);
        };
        let mut finding = self.finding(&entries, &tried, best);
        if !finding.same_as_base && finding.verdict == Verdict::Reproduced {
            self.weigh(&entries, &tried, best, &mut finding.base)?;
        }
        let as_experiment = self.is_own(&entries, &tried[best])?;
        let mut tried = tried;
        let winner = tried.swap_remove(best);
        self.winners.push(Winner {
            slot: slot.to_owned(),
            part: winner.part,
            after: winner.after,
            tolerance: entries.tolerance,
            as_experiment,
            errors: places.into_iter().zip(winner.errors).collect(),
        });
        Ok(Some(finding))
    }

    /// Whether these entries cannot tell the Experiment's own recipe from the winner.
    fn is_own(&mut self, entries: &Entries<'_>, winner: &Tried) -> Result<bool, Error> {
        let base = self.base;
        let Some(own) = base.encoders.iter().find(|e| e.slot == entries.slot) else {
            return Ok(false);
        };
        let tokens = tokens(own, &entries.texts)?;
        if own.fingerprint == winner.part.fingerprint && winner.part.rounding().is_none() {
            return Ok(true);
        }
        if !entries.can_fit(own, &tokens) {
            return Ok(false);
        }
        let outputs = self.runner.tokens(own, &tokens)?;
        let (after, errors) = entries.compare(&base.recipe, &tokens, &outputs)?;
        Ok(after == winner.after && entries.ties(&errors, &winner.errors))
    }

    fn all_stages(&mut self, entries: &Entries<'_>) -> Result<Vec<Tried>, Error> {
        let precisions = match entries.tolerance.precision {
            Dtype::F32 => vec![Dtype::F32],
            // Computed in it, or rounded to it at the end.
            other => vec![other, Dtype::F32],
        };
        let length = entries.length();
        let mut list = Vec::new();
        for (n, variant) in self.variants.clone().into_iter().enumerate() {
            let (rank, lengthened) = match variant.labels.contains(&self.home) {
                true => (Rank::Home, Rank::HomeLengthened),
                false => (Rank::Variant(n), Rank::VariantLengthened(n)),
            };
            for compute in &precisions {
                let compute = in_precision(&variant, *compute, entries.tolerance.precision)?;
                let longer = length.and_then(|n| with_length(&compute, entries.slot, n));
                list.push((rank, compute));
                list.extend(longer.map(|longer| (lengthened, longer)));
            }
        }
        let mut tried = self.round(entries, list, None)?;
        if entries.is_settled(&tried, |t| t.rank == Rank::Home) {
            return Ok(tried);
        }
        // What is nearest of the trainer's own, with one field otherwise.
        let is_home = |n: &usize| tried[*n].rank <= Rank::HomeLengthened;
        let homes: Vec<usize> = (0..tried.len()).filter(is_home).collect();
        if let Some(home) = entries.best_of(&tried, &homes) {
            self.near(entries, &mut tried, home, Rank::NearHome)?;
        }
        if !entries.is_settled(&tried, |_| true)
            && let Some(best) = entries.best(&tried)
        {
            self.near(entries, &mut tried, best, Rank::NearBest)?;
        }
        self.rounded(entries, &mut tried, &precisions)?;
        Ok(tried)
    }

    /// Tries the nearest with weights of 8 bits, where it is as far off as these are from whole ones.
    fn rounded(
        &mut self,
        entries: &Entries<'_>,
        tried: &mut Vec<Tried>,
        precisions: &[Dtype],
    ) -> Result<(), Error> {
        let is_far = |tried: &Tried| entries.score(&tried.errors).1 > OF_ROUNDED_WEIGHTS;
        let Some(best) = entries.best(tried).filter(|best| is_far(&tried[*best])) else {
            return Ok(());
        };
        let nearest = Candidate {
            labels: tried[best]
                .labels
                .iter()
                .take(1)
                .map(|l| format!("{l}, fp8 weights"))
                .collect(),
            recipe: tried[best].recipe.clone(),
        };
        for rounding in Rounding::ALL {
            let mut list = Vec::new();
            for compute in precisions {
                let compute = in_precision(&nearest, *compute, entries.tolerance.precision)?;
                list.push((Rank::Rounded(list.len()), compute));
            }
            tried.extend(self.round(entries, list, Some(rounding))?);
        }
        let found = entries.best(tried);
        match found.filter(|n| tried[*n].part.rounding().is_some() && is_far(&tried[*n])) {
            Some(found) => self.near(entries, tried, found, Rank::NearRounded),
            None => Ok(()),
        }
    }

    /// Which of the fields that differ from the base model's recipe make a difference for these captions: those that do when they alone
    /// are as it expects.
    fn weigh(
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
            let list = candidates.into_iter().map(|c| (Rank::Home, c)).collect();
            let without = self.round(entries, list, winner.part.rounding())?;
            field.matters = without.first().map(|t| !entries.is_tie(t, winner));
        }
        Ok(())
    }

    /// Tries what differs from a recipe in one field.
    fn near(
        &mut self,
        entries: &Entries<'_>,
        tried: &mut Vec<Tried>,
        from: usize,
        rank: fn(usize) -> Rank,
    ) -> Result<(), Error> {
        let origin = &tried[from];
        let mut labels = origin.labels.clone();
        labels.truncate(1);
        let of_slot = |c: &Candidate| {
            let prefix = format!("{}.", entries.slot);
            c.labels.iter().any(|label| label.contains(prefix.as_str()))
        };
        let near = neighbours(&origin.recipe)?.into_iter().filter(of_slot);
        let list = near.enumerate().map(|(n, mut candidate)| {
            for label in &mut candidate.labels {
                *label = format!("{} with {label}", labels.join(", "));
            }
            (rank(n), candidate)
        });
        let (list, rounding) = (list.collect(), origin.part.rounding());
        tried.extend(self.round(entries, list, rounding)?);
        Ok(())
    }

    /// Encodes under each candidate, with rounded weights if they are to be, and compares.
    fn round(
        &mut self,
        entries: &Entries<'_>,
        candidates: Vec<(Rank, Candidate)>,
        rounding: Option<Rounding>,
    ) -> Result<Vec<Tried>, Error> {
        let mut parts = Vec::new();
        for (rank, candidate) in candidates {
            // What does not fit the model has not made its cache.
            let Ok(base) = self.base.with_recipe(candidate.recipe.clone(), self.memo) else {
                continue;
            };
            let part = base.encoders.into_iter().find(|e| e.slot == entries.slot);
            if let Some(part) = part {
                let part = match rounding {
                    Some(rounding) => part.rounded(rounding),
                    None => part,
                };
                let tokens = tokens(&part, &entries.texts)?;
                parts.push((rank, candidate, part, tokens));
            }
        }
        // Equal networks one after the other: each is loaded once.
        parts.sort_by_cached_key(|(rank, _, part, _)| (network_key(part), *rank));
        let mut tried = Vec::new();
        for (rank, candidate, part, tokens) in parts {
            let (after, errors) = match entries.can_fit(&part, &tokens) {
                false => (After::Nothing, vec![None; entries.seen.len()]),
                true => {
                    let outputs = self.runner.tokens(&part, &tokens)?;
                    entries.compare(&candidate.recipe, &tokens, &outputs)?
                }
            };
            self.monitor.advance(1);
            tried.push(Tried {
                labels: candidate.labels,
                rank,
                recipe: candidate.recipe,
                part,
                after,
                errors,
            });
        }
        tried.sort_by_key(|t| t.rank);
        Ok(tried)
    }

    /// What is said of the best.
    fn finding(&self, entries: &Entries<'_>, tried: &[Tried], best: usize) -> EncoderFinding {
        let winner = &tried[best];
        let matching = entries.matching(winner);
        let verdict = match matching * 2 > entries.seen.len() {
            true => Verdict::Reproduced,
            false => Verdict::NotReproduced,
        };
        let named = |t: &&Tried, name: &str| t.labels.iter().any(|l| l == name);
        let precision = winner.part.spec.precision;
        let same_precision = |t: &&Tried| t.part.spec.precision == precision;
        let of_variant = |name: &str| tried.iter().filter(same_precision).find(|t| named(t, name));
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
            compute: precision.compute,
            tolerance: entries.tolerance,
            errors: Errors::of_all(matched),
            matching,
            compared: entries.seen.len(),
            tried: tried.len(),
            same_as_base,
            base: reference.map_or_else(Vec::new, |r| said(r, winner)),
        }
    }
}

/// A recipe with every encoder computing in a precision, and what it gives rounded to that of the cache.
fn in_precision(candidate: &Candidate, compute: Dtype, output: Dtype) -> Result<Candidate, Error> {
    let mut deviate = Vec::new();
    for encoder in candidate.recipe.encoders() {
        for (field, dtype) in [("compute", compute), ("output", output)] {
            deviate.push((format!("{}.precision.{field}", encoder.slot), json!(dtype)));
        }
    }
    let recipe = candidate.recipe.deviating(&deviate)?;
    Ok(Candidate {
        labels: candidate.labels.clone(),
        recipe,
    })
}

/// A recipe whose encoder gives sequences of that length.
fn with_length(candidate: &Candidate, slot: &str, rows: usize) -> Option<Candidate> {
    let sweep = Sweep {
        fields: vec![
            format!("{slot}.tokens.max_tokens"),
            format!("{slot}.tokens.min_tokens"),
        ],
        values: vec![json!(rows)],
    };
    let mut found = sweep.candidates(&candidate.recipe).ok()?;
    let mut lengthened = found.pop()?;
    lengthened.labels = candidate
        .labels
        .iter()
        .map(|label| format!("{label} of {rows} tokens"))
        .collect();
    Some(lengthened)
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
