//! From losses to verdicts.

use super::choice::ComparedRecipes;
use super::measure::{Row, firsts};
use super::report::{
    Band, CandidateReport, Control, Difference, Look, Method, Picture, REPORT_VERSION, Report,
    Verdict,
};
use super::stats::{Paired, holm, mean};
use super::{ALPHA, NEGLIGIBLE, conclusion};
use crate::base_model::BaseModel;
use crate::diffusion;
use crate::digest::Digest;
use crate::recipe::candidates::differences;

impl From<(usize, f64)> for Look {
    fn from((pictures, share): (usize, f64)) -> Self {
        Self {
            pictures: pictures as u64,
            share,
        }
    }
}

/// What the looks so far tell of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Over all pictures of the last look.
    pub paired: Paired,
    /// The smallest p-value of the looks, each by its share of alpha.
    pub p: f64,
    /// The same, with Holm's correction for the number of recipes.
    pub p_corrected: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// What the looks made so far tell of each recipe; the last of them is at all of `rows`.
pub fn told(rows: &[Row], looks: &[(usize, f64)]) -> Vec<Told> {
    let recipes = rows.first().map_or(0, |row| row.losses.len());
    let of_recipe = |recipe: usize| -> Vec<f64> {
        rows.iter()
            .map(|row| row.difference(recipe, (0, 1)))
            .collect()
    };
    let alike = alike(rows);
    // One of those that are the same stands for them: a test of each would only make the corrections larger.
    let distinct: Vec<usize> = (0..recipes).filter(|&r| alike[r] == r).collect();
    let by_recipe: Vec<Vec<f64>> = distinct.iter().map(|&r| of_recipe(r)).collect();
    let mut of_distinct = told_of(&by_recipe, looks);
    let loss = mean_loss(rows, 0);
    for told in &mut of_distinct {
        told.forget_trifles(looks, loss);
    }
    let told = |recipe: usize| {
        let place = distinct.iter().position(|&d| d == alike[recipe]);
        let mut told = place.map_or_else(|| uncorrected(&[], looks), |at| of_distinct[at]);
        told.verdict = match (recipe, alike[recipe]) {
            (0, _) => Verdict::ComparedWith,
            (_, 0) => Verdict::Same,
            // Other tensors that made no difference at all are not the same.
            _ if told.verdict == Verdict::Same => Verdict::Indistinguishable,
            _ => told.verdict,
        };
        told
    };
    (0..recipes).map(told).collect()
}

fn mean_loss(rows: &[Row], recipe: usize) -> f64 {
    mean(&rows.iter().map(|row| row.loss(recipe)).collect::<Vec<_>>())
}

impl Told {
    /// Of a difference whose whole interval is below [`NEGLIGIBLE`] of `loss`, its sign is not worth telling.
    fn forget_trifles(&mut self, looks: &[(usize, f64)], loss: f64) {
        let interval = self.paired.interval(interval_level(looks));
        let bound = NEGLIGIBLE * loss;
        if interval.is_some_and(|(low, high)| low.abs().max(high.abs()) < bound) {
            self.verdict = Verdict::Negligible;
        }
    }

    fn difference(&self, interval: Option<(f64, f64)>) -> Option<Difference> {
        interval.map(|(low, high)| Difference {
            mean: self.paired.mean,
            low,
            high,
            effect_size: self.paired.effect_size,
            p: self.p,
            p_corrected: self.p_corrected,
        })
    }
}

/// The level of an interval after these looks.
fn interval_level(looks: &[(usize, f64)]) -> f64 {
    ALPHA * looks.last().map_or(1.0, |look| look.1)
}

fn control(rows: &[Row], looks: &[(usize, f64)]) -> Option<Control> {
    let differences: Option<Vec<f64>> = rows.iter().map(Row::control_difference).collect();
    let told = told_of(&[differences?], looks);
    let told = told.first()?;
    Some(Control {
        verdict: told.verdict,
        difference: told.difference(told.paired.interval(interval_level(looks))),
    })
}

/// By recipe, the first one under which the denoiser received exactly the same for every picture.
pub fn alike(rows: &[Row]) -> Vec<usize> {
    let recipes = rows.first().map_or(0, |row| row.losses.len());
    firsts(recipes, |recipe| {
        rows.iter().map(|row| row.alike[recipe]).collect::<Vec<_>>()
    })
}

/// The same of differences: one list a recipe, a number a picture. Recipes of which every difference is exactly 0 are the same as what
/// they are compared with, and no test is spent on them.
pub fn told_of(differences: &[Vec<f64>], looks: &[(usize, f64)]) -> Vec<Told> {
    let mut told: Vec<Told> = differences.iter().map(|d| uncorrected(d, looks)).collect();
    let tested: Vec<usize> = (0..told.len())
        .filter(|&recipe| told[recipe].verdict != Verdict::Same)
        .collect();
    let p: Vec<f64> = tested.iter().map(|&recipe| told[recipe].p).collect();
    for (&recipe, corrected) in tested.iter().zip(holm(&p)) {
        let told = &mut told[recipe];
        told.p_corrected = corrected;
        told.verdict = match (corrected <= ALPHA, told.paired.mean < 0.0) {
            (false, _) => Verdict::Indistinguishable,
            (true, true) => Verdict::Preferred,
            (true, false) => Verdict::Worse,
        };
    }
    told
}

fn uncorrected(differences: &[f64], looks: &[(usize, f64)]) -> Told {
    let at_look = |(size, share): &(usize, f64)| {
        let seen = differences.get(..*size).unwrap_or(differences);
        Paired::of(seen).p / share
    };
    let p = looks.iter().map(at_look).fold(1.0, f64::min);
    let paired = Paired::of(differences);
    Told {
        paired,
        p,
        p_corrected: p,
        verdict: match paired.changed {
            0 => Verdict::Same,
            _ => Verdict::Indistinguishable,
        },
    }
}

/// Whether more pictures would change no verdict.
pub fn all_clear(told: &[Told]) -> bool {
    told.iter()
        .all(|told| told.verdict != Verdict::Indistinguishable)
}

/// All that a report is made of.
pub(super) struct Measured<'a> {
    pub(super) experiment: String,
    pub(super) base: &'a BaseModel,
    pub(super) digest: Digest,
    pub(super) compared: &'a ComparedRecipes,
    pub(super) rows: &'a [Row],
    pub(super) pictures: Vec<Picture>,
    /// How many of them are clips.
    pub(super) clips: u64,
    pub(super) failed: u64,
    pub(super) bands: u32,
    pub(super) method: Method,
}

impl Measured<'_> {
    fn same_as(&self, recipe: usize) -> usize {
        alike(self.rows).get(recipe).copied().unwrap_or(recipe)
    }
}

pub(super) fn report(measured: Measured<'_>) -> Report {
    let made: Vec<(usize, f64)> = measured
        .method
        .looks
        .iter()
        .take(measured.method.looks_made as usize)
        .map(|look| (look.pictures as usize, look.share))
        .collect();
    let told = told(measured.rows, &made);
    let last = measured.method.looks.last().map_or(1.0, |look| look.share);
    let alike = alike(measured.rows);
    let is_tested = |&recipe: &usize| recipe > 0 && alike[recipe] == recipe;
    let tested = (0..told.len()).filter(is_tested).count();
    let levels = Levels {
        interval: interval_level(&made),
        to_tell: ALPHA * last / tested.max(1) as f64,
    };
    let candidates =
        (0..told.len()).map(|recipe| candidate(&measured, recipe, &told[recipe], &levels));
    let name = measured.base.recipe.name();
    let mut report = Report {
        version: REPORT_VERSION,
        tool: concat!("plumb ", env!("CARGO_PKG_VERSION")).to_owned(),
        family: name.family.clone(),
        flavor: name.flavor.clone(),
        base: measured.digest,
        candidates: candidates.collect(),
        control: control(measured.rows, &made),
        left_out: measured.compared.left_out.clone(),
        conclusion: String::new(),
        experiment: measured.experiment,
        method: measured.method,
        pictures: measured.pictures,
        clips: measured.clips,
        failed: measured.failed,
    };
    report.conclusion = conclusion::of(&report);
    report
}

/// Levels of significance.
struct Levels {
    /// Of a candidate's interval.
    interval: f64,
    /// That a candidate has to pass at the last look, were it the first of them.
    to_tell: f64,
}

fn candidate(
    measured: &Measured<'_>,
    recipe: usize,
    told: &Told,
    levels: &Levels,
) -> CandidateReport {
    let rows = measured.rows;
    let compared = &measured.compared.recipes[recipe];
    let against = &measured.compared.recipes[0].candidate.recipe;
    let recipe_of = &compared.candidate.recipe;
    let tested = !matches!(told.verdict, Verdict::ComparedWith | Verdict::Same);
    let interval = told.paired.interval(levels.interval).filter(|_| tested);
    CandidateReport {
        labels: compared.candidate.labels.clone(),
        same_as: match measured.same_as(recipe) {
            first if first == recipe => None,
            first => Some(measured.compared.recipes[first].candidate.label()),
        },
        recipe: recipe_of.name().to_string(),
        fingerprint: recipe_of.fingerprint(),
        differs: differences(against, recipe_of)
            .into_iter()
            .map(Into::into)
            .collect(),
        verdict: told.verdict,
        loss: mean_loss(rows, recipe),
        changed: told.paired.changed as u64,
        difference: told.difference(interval),
        bands: match tested {
            true => bands(
                rows,
                recipe,
                measured.bands as usize,
                levels_of(measured.base),
            ),
            false => Vec::new(),
        },
        pictures_to_tell: match told.verdict {
            Verdict::Indistinguishable => told.paired.pictures_to_tell(levels.to_tell),
            _ => None,
        },
        by_picture: rows
            .iter()
            .map(|row| row.difference(recipe, (0, 1)))
            .collect(),
    }
}

/// The noise levels that the base model is for.
fn levels_of(base: &BaseModel) -> diffusion::Band {
    base.settings.train.timesteps.band
}

fn bands(rows: &[Row], recipe: usize, bands: usize, levels: diffusion::Band) -> Vec<Band> {
    let of_band = |band: usize| {
        let differences: Vec<f64> = rows
            .iter()
            .map(|row| row.difference(recipe, (band, bands)))
            .collect();
        let paired = Paired::of(&differences);
        let (low, high) = paired.interval(0.05)?;
        Some(Band {
            from: levels.at(band as f64 / bands as f64),
            to: levels.at((band + 1) as f64 / bands as f64),
            mean: paired.mean,
            low,
            high,
        })
    };
    (0..bands).filter_map(of_band).collect()
}

#[cfg(test)]
mod tests {
    use super::{Told, all_clear, control, told, told_of};
    use crate::probe::measure::Row;
    use crate::probe::report::Verdict;
    use crate::probe::stats::looks;

    fn verdicts(told: &[Told]) -> Vec<Verdict> {
        told.iter().map(|t| t.verdict).collect()
    }

    /// Alternating around a mean, so that mean and spread are what they are said to be.
    fn around(mean: f64, spread: f64, count: usize) -> Vec<f64> {
        let sign = |n: usize| if n.is_multiple_of(2) { 1.0 } else { -1.0 };
        (0..count).map(|n| mean + sign(n) * spread).collect()
    }

    #[test]
    fn verdicts_follow_sign_and_corrected_p() {
        let differences = [
            vec![0.0; 64],
            around(0.01, 0.01, 64),
            around(-0.01, 0.01, 64),
            around(0.0005, 0.01, 64),
        ];
        let told = told_of(&differences, &looks(64, 0.05));
        assert_eq!(
            verdicts(&told),
            [
                Verdict::Same,
                Verdict::Worse,
                Verdict::Preferred,
                Verdict::Indistinguishable
            ]
        );
        assert!(!all_clear(&told) && all_clear(&told[..3]));
        assert!(told[1].p_corrected >= told[1].p);
    }

    #[test]
    fn what_was_clear_at_an_early_look_stays_so() {
        // Clear over 32 pictures, and then noise that would hide it.
        let mut one = around(0.02, 0.01, 32);
        one.extend(around(0.0, 0.5, 96));
        let all = looks(128, 0.05);
        let told = told_of(&[one.clone()], &all);
        assert_eq!(told[0].verdict, Verdict::Worse);
        let late = told_of(&[one], &all[3..]);
        assert_eq!(late[0].verdict, Verdict::Indistinguishable);
    }

    #[test]
    fn recipes_that_give_the_same_tensors_are_tested_once() {
        let row = |n: usize| Row {
            losses: vec![
                vec![0.5, 0.25],
                vec![0.5, 0.25],
                vec![0.6 + 0.01 * n as f64, 0.25],
                vec![0.6 + 0.01 * n as f64, 0.25],
            ],
            alike: vec![0, 0, 2, 2],
            control: Vec::new(),
        };
        let rows: Vec<Row> = (0..8).map(row).collect();
        let found = told(&rows, &[(8, 1.0)]);
        assert_eq!(
            verdicts(&found),
            [
                Verdict::ComparedWith,
                Verdict::Same,
                Verdict::Worse,
                Verdict::Worse
            ]
        );
        assert_eq!(found[2].p, found[2].p_corrected);
        assert_eq!(rows[0].difference(1, (0, 1)), 0.0);
        assert_eq!(rows[0].loss(0), 0.375);
        // One caption of which they differ is enough to be another recipe.
        let mut other = rows.clone();
        other[7].alike = vec![0, 1, 2, 2];
        assert_eq!(
            told(&other, &[(8, 1.0)])[1].verdict,
            Verdict::Indistinguishable
        );
    }

    /// Pictures of which the loss is 0.5 under the first recipe, and `above` more with another caption and under a second recipe.
    fn rows(above: impl Fn(usize) -> f64) -> Vec<Row> {
        let row = |n| Row {
            losses: vec![vec![0.5], vec![0.5 + above(n)]],
            alike: vec![0, 1],
            control: vec![0.5 + above(n)],
        };
        (0..32).map(row).collect()
    }

    #[test]
    fn a_difference_that_is_surely_a_trifle_is_neither_better_nor_worse() {
        let looks = looks(32, 0.05);
        let verdict = |rows: &[Row]| told(rows, &looks)[1].verdict;
        let trifle = rows(|n| 1e-4 + 1e-6 * n as f64);
        assert_eq!(verdict(&trifle), Verdict::Negligible);
        assert!(all_clear(&told(&trifle, &looks)));
        // Ten times as much is more than a thousandth of the loss.
        assert_eq!(verdict(&rows(|n| 1e-3 + 1e-5 * n as f64)), Verdict::Worse);
        // As small a mean, but it may be larger than that.
        let sign = |n: usize| if n.is_multiple_of(2) { 1.0 } else { -1.0 };
        assert_eq!(
            verdict(&rows(|n| 1e-4 + 0.01 * sign(n))),
            Verdict::Indistinguishable
        );
    }

    #[test]
    fn the_control_tells_whether_captions_matter() {
        let looks = looks(32, 0.05);
        let verdict = |rows: &[Row]| control(rows, &looks).map(|control| control.verdict);
        assert_eq!(
            verdict(&rows(|n| 0.1 + 0.01 * n as f64)),
            Some(Verdict::Worse)
        );
        assert_eq!(
            verdict(&rows(|n| if n.is_multiple_of(2) { 0.1 } else { -0.1 })),
            Some(Verdict::Indistinguishable)
        );
        let mut without = rows(|_| 0.1);
        without[3].control.clear();
        assert_eq!(verdict(&without), None);
    }

    #[test]
    fn bands_are_parts_of_the_draws() {
        let row = Row {
            losses: vec![vec![0.0; 4], vec![1.0, 2.0, 3.0, 5.0]],
            alike: vec![0, 1],
            control: Vec::new(),
        };
        assert_eq!(row.difference(1, (0, 2)), 1.5);
        assert_eq!(row.difference(1, (1, 2)), 4.0);
        assert_eq!(row.difference(1, (0, 1)), 2.75);
        assert_eq!(row.difference(2, (0, 1)), 0.0);
    }
}
