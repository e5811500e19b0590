//! Which recipe gives what a cache has of one encoder: the trainer's own first, then the other variants, then recipes that differ from
//! these in one field.

use std::collections::BTreeMap;

use serde_json::json;

use super::Error;
use super::after::After;
use super::entries::{AfterEach, Compared, Entries, Rank, Tried, zeroes};
use super::measure::{Errors, Tolerance};
use super::observe::{Seen, SeenSlots, Shapes};
use super::pair::Paired;
use super::report::{CacheReport, EncoderFinding, Verdict};
use super::run::{OutputKey, Runner, network_key, tokens};
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::monitor::Monitor;
use crate::nn::weights::{DigestMemo, Rounding};
use crate::recipe::candidates::{Candidate, Sweep, neighbours, variants};
use crate::recipe::{REFERENCE, Recipe};
use crate::text::Tokens;
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

/// A recipe to try, the encoder that it makes, and the ids of the entries' texts.
type Attempt = (Rank, Candidate, TextEncoderPart, Vec<Tokens>);

/// The search through recipes, encoder by encoder.
pub(super) struct Search<'a, 'b> {
    pub(super) base: &'a BaseModel,
    pub(super) runner: &'b mut Runner<'a>,
    memo: &'b mut DigestMemo,
    monitor: &'b dyn Monitor,
    variants: Vec<Candidate>,
    /// Whose variant is tried first.
    pub(super) home: String,
    /// Whether that is the trainer's own, and not the reference because no variant is.
    pub(super) is_trainers: bool,
    pub(super) winners: Vec<Winner>,
    /// What was compared of the slot, by what was encoded and whether the recipe has zeros for pads.
    compared: BTreeMap<(Vec<OutputKey>, bool), Compared>,
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
            compared: BTreeMap::new(),
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
        let entries = Entries::new(slot, seen, texts)?;
        self.compared.clear();
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
        let least = entries.matching(winner);
        let (after, errors) = self.compare(entries, own, (&base.recipe, &tokens), least)?;
        Ok(after == winner.after && entries.ties(&errors, &winner.errors))
    }

    fn all_stages(&mut self, entries: &Entries<'_>) -> Result<Vec<Tried>, Error> {
        let precisions = match entries.tolerance.precision {
            Dtype::F32 => vec![Dtype::F32],
            // Computed in it, or rounded to it at the end.
            other => vec![other, Dtype::F32],
        };
        let mut tried = Vec::new();
        let (home, others): (Vec<_>, Vec<_>) = self
            .variants
            .clone()
            .into_iter()
            .enumerate()
            .partition(|(_, variant)| variant.labels.contains(&self.home));
        for compute in &precisions {
            self.variants(entries, &mut tried, &home, *compute)?;
        }
        self.others(entries, &mut tried, &others, &precisions)?;
        if entries.is_settled(&tried, |t| t.rank == Rank::Home) {
            return Ok(tried);
        }
        // What is nearest of the trainer's own, with one field otherwise.
        let is_home = |n: &usize| tried[*n].rank <= Rank::HomeLengthened;
        let homes: Vec<usize> = (0..tried.len()).filter(is_home).collect();
        let home = entries.best_of(&tried, &homes);
        if let Some(home) = home {
            self.near(entries, &mut tried, home, Rank::NearHome)?;
        }
        if !entries.is_settled(&tried, |_| true)
            && let Some(best) = entries.best(&tried)
            // Else they have been tried.
            && home != Some(best)
        {
            self.near(entries, &mut tried, best, Rank::NearBest)?;
        }
        self.rounded(entries, &mut tried, &precisions)?;
        Ok(tried)
    }

    /// Tries variants, each also with sequences as long as the entries', in one precision.
    fn variants(
        &mut self,
        entries: &Entries<'_>,
        tried: &mut Vec<Tried>,
        variants: &[(usize, Candidate)],
        compute: Dtype,
    ) -> Result<(), Error> {
        let mut list = Vec::new();
        for (n, variant) in variants {
            let (rank, lengthened) = match variant.labels.contains(&self.home) {
                true => (Rank::Home, Rank::HomeLengthened),
                false => (Rank::Variant(*n), Rank::VariantLengthened(*n)),
            };
            let variant = in_precision(variant, compute, entries.tolerance.precision)?;
            let longer = entries.length();
            let longer = longer.and_then(|rows| with_length(&variant, entries.slot, rows));
            list.push((rank, variant));
            list.extend(longer.map(|longer| (lengthened, longer)));
        }
        self.round(entries, tried, list, None)
    }

    /// Tries the variants that are not the trainer's own: in the precision that its own tells, or else the nearest of them.
    fn others(
        &mut self,
        entries: &Entries<'_>,
        tried: &mut Vec<Tried>,
        others: &[(usize, Candidate)],
        precisions: &[Dtype],
    ) -> Result<(), Error> {
        let nearest = |tried: &[Tried]| {
            entries
                .best(tried)
                .map(|n| (tried[n].rank, tried[n].compute()))
        };
        let is_told = entries.is_reproduced(tried);
        let first = nearest(tried).map_or(precisions[0], |(_, compute)| compute);
        self.variants(entries, tried, others, first)?;
        let Some((rank, _)) = nearest(tried).filter(|_| !is_told) else {
            return Ok(());
        };
        for other in precisions.iter().filter(|other| **other != first) {
            let is_nearest = |(n, _): &&(usize, Candidate)| rank.is_of_variant(*n);
            let one: Vec<_> = others.iter().filter(is_nearest).cloned().collect();
            self.variants(entries, tried, &one, *other)?;
            if nearest(tried).is_some_and(|(_, compute)| compute == *other) && !one.is_empty() {
                let rest: Vec<_> = others.iter().filter(|o| !is_nearest(o)).cloned().collect();
                self.variants(entries, tried, &rest, *other)?;
            }
        }
        Ok(())
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
            self.round(entries, tried, list, Some(rounding))?;
        }
        let found = entries.best(tried);
        match found.filter(|n| tried[*n].part.rounding().is_some() && is_far(&tried[*n])) {
            Some(found) => self.near(entries, tried, found, Rank::NearRounded),
            None => Ok(()),
        }
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
        self.round(entries, tried, list, rounding)
    }

    /// What each candidate comes to, with rounded weights if they are to be.
    pub(super) fn parts(
        &mut self,
        entries: &Entries<'_>,
        candidates: impl IntoIterator<Item = (Rank, Candidate)>,
        rounding: Option<Rounding>,
    ) -> Result<Vec<Attempt>, Error> {
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
        Ok(parts)
    }

    /// Encodes under each candidate, with rounded weights if they are to be, and adds how well it fits.
    fn round(
        &mut self,
        entries: &Entries<'_>,
        tried: &mut Vec<Tried>,
        candidates: Vec<(Rank, Candidate)>,
        rounding: Option<Rounding>,
    ) -> Result<(), Error> {
        let mut parts = self.parts(entries, candidates, rounding)?;
        // Equal networks one after the other: each is loaded once.
        parts.sort_by_cached_key(|(rank, _, part, _)| (network_key(part), *rank));
        let mut most = entries.most(tried);
        let mut new = Vec::new();
        for (rank, candidate, part, tokens) in parts {
            let of = (&candidate.recipe, tokens.as_slice());
            let (after, errors) = self.compare(entries, &part, of, most)?;
            most = most.max(entries.score(&errors).0);
            self.monitor.advance(1);
            new.push(Tried {
                labels: candidate.labels,
                rank,
                recipe: candidate.recipe,
                part,
                after,
                errors,
            });
        }
        new.sort_by_key(|t| t.rank);
        tried.extend(new);
        Ok(())
    }

    /// How well what a recipe's encoder gives fits the entries. It is told as soon as fewer than `least` can be of it: the others are
    /// then left out.
    pub(super) fn compare(
        &mut self,
        entries: &Entries<'_>,
        part: &TextEncoderPart,
        (recipe, tokens): (&Recipe, &[Tokens]),
        least: usize,
    ) -> Result<Compared, Error> {
        let zeroes = zeroes(recipe, entries.slot);
        let key = (Runner::keys(part, tokens), zeroes);
        if let Some(known) = self.compared.get(&key) {
            return Ok(known.clone());
        }
        let mut each = vec![AfterEach::default(); tokens.len()];
        let (mut left, others): (Vec<usize>, Vec<usize>) =
            (0..tokens.len()).partition(|&n| entries.can_fit(part, n, &tokens[n]));
        // What is there costs nothing.
        left.sort_by_cached_key(|&n| !self.runner.has(part, &tokens[n]));
        let (mut others, mut fitting) = (others.len(), 0);
        while !left.is_empty() && tokens.len() - others >= least {
            // At first as many as can tell, then as many again as were of it.
            let count = match least {
                0 => left.len(),
                _ => (tokens.len() - others - least + 1).max(fitting),
            };
            let some: Vec<usize> = left.drain(..count.min(left.len())).collect();
            let ids: Vec<Tokens> = some.iter().map(|&n| tokens[n].clone()).collect();
            let outputs = self.runner.tokens(part, &ids)?;
            for (n, output) in some.into_iter().zip(outputs) {
                each[n] = entries.errors(n, (&tokens[n], zeroes), &output)?;
                match entries.is_other(&each[n]) {
                    true => others += 1,
                    false => fitting += 1,
                }
            }
        }
        let compared = entries.fitting(&each);
        if left.is_empty() {
            self.compared.insert(key, compared.clone());
        }
        Ok(compared)
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
