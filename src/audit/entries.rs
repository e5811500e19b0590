//! One encoder's part of the entries that are looked at, and how well a recipe that was tried fits it.

use candle_core::Tensor;

use super::Error;
use super::after::After;
use super::measure::{Errors, Tolerance, errors};
use super::observe::Seen;
use crate::base_model::TextEncoderPart;
use crate::cache::EncoderOutput;
use crate::recipe::Recipe;
use crate::recipe::rules::{AssembledPads, DenoiserMask};
use crate::text::Tokens;
use crate::text::spec::Dtype;

/// A candidate is not better than another whose median error is at most so many times as large: they cannot be told apart.
const TIE: f64 = 1.5;
/// Nor is a difference of this size, whatever the other is.
const FLOOR: f64 = 1e-7;

/// A median error below which nothing nearer is looked for.
const EXACT: f64 = 1e-5;

/// Which of recipes that fit equally well is preferred: what comes first. With a number: by their places in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The trainer's own variant.
    Home,
    /// The same with sequences as long as the cache's.
    HomeLengthened,
    /// One that differs from the trainer's own in one field.
    NearHome(usize),
    /// Another variant.
    Variant(usize),
    /// The same with sequences as long as the cache's.
    VariantLengthened(usize),
    /// One that differs from the nearest so far in one field.
    NearBest(usize),
    /// The nearest so far with weights that were rounded.
    Rounded(usize),
    /// One that differs from the nearest of these in one field.
    NearRounded(usize),
}

impl Rank {
    /// Whether it is of the variant at a place.
    pub(super) fn is_of_variant(self, place: usize) -> bool {
        self == Self::Variant(place) || self == Self::VariantLengthened(place)
    }
}

/// A recipe that was tried for an encoder.
pub(super) struct Tried {
    pub(super) labels: Vec<String>,
    pub(super) rank: Rank,
    pub(super) recipe: Recipe,
    pub(super) part: TextEncoderPart,
    pub(super) after: After,
    /// Of each entry; none where shapes do not fit.
    pub(super) errors: Vec<Option<Errors>>,
}

impl Tried {
    /// The precision that it computes in.
    pub(super) fn compute(&self) -> Dtype {
        self.part.spec.precision.compute
    }
}

/// One slot of all entries.
pub(super) struct Entries<'a> {
    pub(super) slot: &'a str,
    pub(super) seen: Vec<&'a Seen>,
    pub(super) texts: Vec<&'a str>,
    pub(super) tolerance: Tolerance,
    /// How many rows of zeros each sequence ends with.
    zeros: Vec<usize>,
}

/// The errors of one entry after each of [`After::ALL`], in their order; none where that cannot have been done.
pub(super) type AfterEach = [Option<Errors>; After::ALL.len()];

/// What was done to what an encoder gave, and the errors of each entry after it.
pub(super) type Compared = (After, Vec<Option<Errors>>);

/// Whether the recipe has zeros for an encoder's pads, which the denoiser is shown.
pub(super) fn zeroes(recipe: &Recipe, slot: &str) -> bool {
    let assembly = recipe.assembly();
    assembly.pads.get(slot) == Some(&AssembledPads::Zero) && assembly.mask == DenoiserMask::None
}

impl<'a> Entries<'a> {
    /// One slot of the entries, each of the text that is encoded again.
    ///
    /// # Errors
    /// If their numbers cannot be read.
    pub(super) fn new(
        slot: &'a str,
        seen: Vec<&'a Seen>,
        texts: Vec<&'a str>,
    ) -> Result<Self, Error> {
        let tolerance = Tolerance::of(precision(&seen)?);
        let zeros = seen.iter().map(|seen| seen.zeros());
        Ok(Self {
            slot,
            tolerance,
            zeros: zeros.collect::<candle_core::Result<_>>()?,
            seen,
            texts,
        })
    }

    /// The rows of every entry, where all have as many.
    pub(super) fn length(&self) -> Option<usize> {
        let rows = |s: &&Seen| s.hidden.as_ref().and_then(|h| h.dim(0).ok());
        let mut all = self.seen.iter().map(rows);
        let first = all.next()??;
        all.all(|rows| rows == Some(first)).then_some(first)
    }

    /// Whether what a recipe gives for an entry's tokens can have become what the entry has: else it need not be computed.
    pub(super) fn can_fit(&self, part: &TextEncoderPart, place: usize, tokens: &Tokens) -> bool {
        // Nothing but pads: no program makes embeddings of it.
        if tokens.count == 0 {
            return false;
        }
        let (seen, zeros) = (self.seen[place], self.zeros[place]);
        let rows = seen.hidden.as_ref().and_then(|h| h.dim(0).ok());
        let (given, count) = (part.spec.network.rows(tokens), tokens.count);
        rows.is_none_or(|rows| {
            let can = |after: &After| {
                let zeroed = after.zeroed_from(given, count);
                // Rows that it makes zeros are zeros in the entry.
                let is_zeroed = zeroed.is_none_or(|from| rows - zeros <= from);
                is_zeroed && after.fits(given, count, rows, seen.shown_rows)
            };
            After::ALL.iter().any(can)
        })
    }

    /// The errors of an entry after each of what trainers do to what an encoder gives for `tokens`, where the recipe has zeros for pads
    /// or not.
    pub(super) fn errors(
        &self,
        place: usize,
        (tokens, zeroes): (&Tokens, bool),
        output: &EncoderOutput,
    ) -> candle_core::Result<AfterEach> {
        let seen = self.seen[place];
        let mut computed: Vec<(After, Option<Errors>)> = Vec::new();
        let mut each = AfterEach::default();
        for (after, found) in After::ALL.into_iter().zip(&mut each) {
            let Some(left) = done(after, output, (tokens, zeroes), seen) else {
                continue;
            };
            let known = computed.iter().find(|(other, _)| *other == left);
            *found = match known {
                Some((_, known)) => *known,
                None => {
                    let new = errors(output, left, seen)?;
                    computed.push((left, new));
                    new
                }
            };
        }
        Ok(each)
    }

    /// Whether nothing that trainers do makes an entry of it.
    pub(super) fn is_other(&self, each: &AfterEach) -> bool {
        let within = |e: &Errors| e.worst() <= self.tolerance.relative;
        !each.iter().flatten().any(within)
    }

    /// What fits all entries best of what trainers do, and the errors after it.
    pub(super) fn fitting(&self, all: &[AfterEach]) -> Compared {
        let mut best: Option<Compared> = None;
        for (n, after) in After::ALL.into_iter().enumerate() {
            let found: Vec<Option<Errors>> = all.iter().map(|each| each[n]).collect();
            let better = best.as_ref().is_none_or(|(_, old)| {
                let (new, old) = (self.score(&found), self.score(old));
                new.0 > old.0 || new.0 == old.0 && new.1 * TIE + FLOOR < old.1
            });
            if better {
                best = Some((after, found));
            }
        }
        best.unwrap_or((After::Nothing, Vec::new()))
    }

    /// How many entries are reproduced, and the median of all errors.
    pub(super) fn score(&self, errors: &[Option<Errors>]) -> (usize, f64) {
        let worst = |e: &Option<Errors>| e.as_ref().map_or(f64::INFINITY, Errors::worst);
        let mut all: Vec<f64> = errors.iter().map(worst).collect();
        all.sort_by(f64::total_cmp);
        let within = all
            .iter()
            .filter(|e| **e <= self.tolerance.relative)
            .count();
        // The lower one of two: an entry that is of another caption says nothing.
        let median = all.get(all.len().saturating_sub(1) / 2).copied();
        (within, median.unwrap_or(f64::INFINITY))
    }

    /// How many entries the best of those tried reproduces.
    pub(super) fn most(&self, tried: &[Tried]) -> usize {
        let matching = tried.iter().map(|t| self.matching(t));
        matching.max().unwrap_or(0)
    }

    pub(super) fn matching(&self, tried: &Tried) -> usize {
        self.score(&tried.errors).0
    }

    pub(super) fn best(&self, tried: &[Tried]) -> Option<usize> {
        self.best_of(tried, &(0..tried.len()).collect::<Vec<_>>())
    }

    /// The most preferred of those that fit as well as any.
    pub(super) fn best_of(&self, tried: &[Tried], among: &[usize]) -> Option<usize> {
        let scores: Vec<(usize, (usize, f64))> = among
            .iter()
            .map(|n| (*n, self.score(&tried[*n].errors)))
            .collect();
        let most = scores.iter().map(|(_, s)| s.0).max()?;
        let of_most = || scores.iter().filter(move |(_, s)| s.0 == most);
        let least = of_most().map(|(_, s)| s.1).min_by(f64::total_cmp)?;
        of_most()
            .filter(|(_, s)| s.1 <= least * TIE + FLOOR)
            .min_by_key(|(n, _)| tried[*n].rank)
            .map(|(n, _)| *n)
    }

    /// Whether one of those asked for reproduces most entries so exactly that nothing can be nearer.
    pub(super) fn is_settled(&self, tried: &[Tried], asked: impl Fn(&Tried) -> bool) -> bool {
        tried.iter().filter(|t| asked(t)).any(|t| {
            let (within, median) = self.score(&t.errors);
            within * 2 > self.seen.len() && median <= EXACT
        })
    }

    /// Whether one of those tried reproduces most entries.
    pub(super) fn is_reproduced(&self, tried: &[Tried]) -> bool {
        self.most(tried) * 2 > self.seen.len()
    }

    /// Whether these entries cannot tell a recipe from the winner.
    pub(super) fn is_tie(&self, tried: &Tried, winner: &Tried) -> bool {
        self.ties(&tried.errors, &winner.errors)
    }

    /// The same of errors.
    pub(super) fn ties(&self, one: &[Option<Errors>], best: &[Option<Errors>]) -> bool {
        let (one, best) = (self.score(one), self.score(best));
        one.0 == best.0 && one.1.is_finite() && one.1 <= best.1 * TIE + FLOOR
    }
}

/// What is left to be done of `after` for one caption, where the recipe has zeros for pads or not; `None` where it cannot be what was done.
fn done(
    after: After,
    output: &EncoderOutput,
    (tokens, zeroes): (&Tokens, bool),
    seen: &Seen,
) -> Option<After> {
    let rows = |hidden: &Option<Tensor>| hidden.as_ref().and_then(|h| h.dim(0).ok());
    let given = rows(&output.hidden).unwrap_or(0);
    let found = rows(&seen.hidden).unwrap_or(0);
    // Rows of zeros in place of pads that a recipe drops are as many: of another number, captions were filled up to another length.
    let fills_up = zeroes && given == output.token_count && given < tokens.ids.len();
    match after {
        // Of a caption without pads, whatever is done to pads does nothing.
        After::PadsZeroed | After::PadsDropped if given <= output.token_count => {
            Some(After::Nothing)
        }
        After::FilledUp | After::Lengthened | After::UnseenPads if found == given => {
            Some(After::Nothing)
        }
        After::FilledUp if !fills_up || found != tokens.ids.len() => None,
        After::Lengthened if fills_up => None,
        other => Some(other),
    }
}

/// The precision that all of them have.
fn precision(seen: &[&Seen]) -> Result<Dtype, Error> {
    let all: Vec<Dtype> = seen
        .iter()
        .map(|s| s.precision())
        .collect::<candle_core::Result<_>>()?;
    let has = |wanted: Dtype| all.contains(&wanted);
    Ok(match () {
        () if has(Dtype::F32) => Dtype::F32,
        () if has(Dtype::F16) => Dtype::F16,
        () => Dtype::Bf16,
    })
}
