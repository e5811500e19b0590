//! Entries of other captions than the Experiment's: those that the recipe of the others does not reproduce.

use std::collections::BTreeSet;

use super::Error;
use super::measure::errors;
use super::pair::Known;
use super::report::{CacheReport, StaleEntry};
use super::search::{Observation, Search};

/// How many other captions are tried for an entry, the nearest in the data set's order: a cache by rows is shifted by a few.
const NEAR: usize = 256;
/// How many of these are tried at first; then twice as many, and so on.
const FIRST: usize = 8;

/// Adds what is stale to the report.
pub(super) fn look(
    report: &mut CacheReport,
    observed: &[Observation<'_>],
    known: &Known,
    search: &mut Search<'_, '_>,
) -> Result<(), Error> {
    for (place, observation) in observed.iter().enumerate() {
        let mut wrong = Vec::new();
        for (n, winner) in search.winners.iter().enumerate() {
            let finding = report.encoders.iter().find(|f| f.slot == winner.slot);
            // Where no recipe fits most entries, one that it does not fit says nothing.
            if finding.is_none_or(|f| f.matching * 2 <= f.compared) {
                continue;
            }
            let of_this = winner.errors.iter().find(|(at, _)| *at == place);
            if let Some((_, errors)) = of_this
                && errors.is_none_or(|e| e.worst() > winner.tolerance.relative)
            {
                wrong.push((n, *errors));
            }
        }
        let Some((winner, errors)) = wrong.first().copied() else {
            continue;
        };
        let encoders = wrong
            .iter()
            .map(|(n, _)| search.winners[*n].slot.clone())
            .collect();
        let made_of = other_caption(observation, known, search, winner)?;
        report.stale.push(StaleEntry {
            path: observation.paired.file.path.clone(),
            caption: observation.paired.text.to_owned(),
            made_of,
            encoders,
            errors,
        });
    }
    report.stale.sort_by(|a, b| a.path.cmp(&b.path));
    report.stale.dedup_by(|a, b| a.path == b.path);
    Ok(())
}

/// The caption of the Experiment that gives what an entry has.
fn other_caption(
    observation: &Observation<'_>,
    known: &Known,
    search: &mut Search<'_, '_>,
    winner: usize,
) -> Result<Option<String>, Error> {
    let mut near: Vec<usize> = (0..known.captions.len()).collect();
    near.sort_by_key(|n| n.abs_diff(observation.paired.caption));
    let mut seen = BTreeSet::new();
    let texts: Vec<&str> = near
        .into_iter()
        .map(|n| known.captions[n].text.as_str())
        .filter(|text| *text != observation.text && seen.insert(*text))
        .take(NEAR)
        .collect();
    let winner = &search.winners[winner];
    let Some(found) = observation.seen.get(&winner.slot) else {
        return Ok(None);
    };
    // The nearest first, and no more than it takes.
    let (mut rest, mut count) = (texts.as_slice(), FIRST);
    while !rest.is_empty() {
        let (some, others) = rest.split_at(count.min(rest.len()));
        let outputs = search.runner.captions(&winner.part, some)?;
        for (text, output) in some.iter().zip(&outputs) {
            let errors = errors(output, winner.after, found)?;
            if errors.is_some_and(|e| e.worst() <= winner.tolerance.relative) {
                return Ok(Some((*text).to_owned()));
            }
        }
        (rest, count) = (others, 2 * count);
    }
    Ok(None)
}
