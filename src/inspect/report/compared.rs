//! What two recipes make of the same captions, as HTML.

use maud::{Markup, html};

use super::compare::{Comparison, Cosines, Differences, State};
use super::gather::EncoderView;
use super::{chart, heat};
use crate::shown;

impl Comparison {
    /// Whether there are numbers to show.
    pub(super) fn differs(&self) -> bool {
        matches!(self.state, State::Differ(_))
    }
}

/// The section's part of one encoder; `command` encodes what is missing.
pub(super) fn compared(encoder: &EncoderView, comparison: &Comparison, command: &str) -> Markup {
    html! {
        h3 { (comparison.slot) }
        @match &comparison.state {
            State::Same => { p.good { "The same entries: both recipes ask for the very same of this encoder." } }
            State::Absent => { p { "The other recipe has no such encoder." } }
            State::Widths => { p.warn { "The rows are of different widths: these are different encoders." } }
            State::NotEncoded => { p.warn { "The store has nothing of this encoder under the other recipe. " code { (command) } " encodes it." } }
            State::Differ(differences) => { (differing(differences, command)) (heat::heat_map(encoder)) }
        }
    }
}

fn differing(found: &Differences, command: &str) -> Markup {
    let row = |name: &str, cosines: &Cosines| {
        html! {
            @if let (Some(mean), Some(least)) = (cosines.mean(), cosines.least) {
                tr { th scope="row" { (name) } td { (cosine(mean)) } td { (cosine(least)) } }
            }
        }
    };
    let places = found.by_place.iter().enumerate();
    let points = places.filter(|(_, (_, count))| *count > 0);
    let points: Vec<(f64, f64)> = points
        .map(|(place, (sum, count))| (place as f64, sum / *count as f64))
        .collect();
    let series = chart::Series {
        name: "mean cosine over captions".to_owned(),
        class: "a",
        points,
        dots: true,
    };
    html! {
        div.wide { table {
            thead { tr { th scope="col" { "cosine of" } th scope="col" { "mean" } th scope="col" { "least" } } }
            tbody { (row("true tokens", &found.tokens)) (row("pads", &found.pads)) (row("pooled vector", &found.pooled)) }
        } }
        p.fine {
            (shown::counted(found.captions, "caption")) "."
            @if found.only_ours + found.only_theirs > 0 { " " (shown::counted(found.only_ours, "token")) " only here, " (found.only_theirs) " only there." }
            @if found.without > 0 { " " (shown::counted(found.without, "caption")) " without an entry on one side; " code { (command) } " encodes what is missing." }
        }
        @if series.points.len() > 1 { (chart::lines("Mean cosine by place in the caption", ("token", "cosine"), &[series])) }
    }
}

/// As many digits as tell it from 1.
pub(super) fn cosine(value: f64) -> String {
    let apart = (1.0 - value).abs();
    match apart {
        0.0 => "1".to_owned(),
        _ if apart < 1e-6 => "1 \u{2212} ".to_owned() + &format!("{apart:.0e}"),
        _ if apart < 1e-3 => format!("{value:.6}"),
        _ => format!("{value:.3}"),
    }
}
