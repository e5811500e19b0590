//! What a probe measured: each recipe's difference of loss with its interval.

use maud::{Markup, html};
use serde_json::Value;

use super::chart::{number, px, range, ticks};
use crate::probe::report::{CandidateReport, Report, Verdict};
use crate::shown;

const WIDTH: f64 = 640.0;
const ROW: f64 = 26.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 36.0;
/// Letters of a label that there is room for.
const LABEL: usize = 26;
/// Candidates that are drawn; the table has all.
const ROWS: usize = 60;

/// The section.
pub(super) fn section(report: &Report) -> Markup {
    let (method, subjects) = (&report.method, report.subjects());
    let drawn: Vec<&CandidateReport> = report
        .candidates
        .iter()
        .filter(|c| c.difference.is_some())
        .collect();
    html! {
        section #probe aria-labelledby="h-probe" {
            h2 #h-probe { "Probe" }
            p { (shown::line(&report.conclusion)) }
            p.fine {
                (subjects.counted()) ", " (method.draws) " draws of noise each, of " (shown::text(&report.experiment))
                ". The difference is the loss under a recipe minus that under " b { (label(&report.candidates)) }
                ": above 0 the base model predicts worse. Bars are 95 % intervals over " (subjects.several()) ". It is evidence, no proof."
            }
            @if !drawn.is_empty() { (intervals(&drawn[..drawn.len().min(ROWS)])) }
            div.wide { table {
                thead { tr { th scope="col" { "recipe" } th scope="col" { "difference" } th scope="col" { "interval" } th scope="col" { "p, corrected" } th scope="col" { "verdict" } } }
                tbody { @for candidate in &report.candidates { (row(candidate, subjects.several())) } }
            } }
        }
    }
}

fn label(candidates: &[CandidateReport]) -> String {
    let label = candidates.first().map(CandidateReport::title);
    shown::text(&label.unwrap_or_default()).to_string()
}

fn row(candidate: &CandidateReport, things: &str) -> Markup {
    let difference = candidate.difference.as_ref();
    html! {
        tr {
            th scope="row" { (shown::text(&candidate.title())) }
            td { @if let Some(d) = difference { (signed(d.mean)) } }
            td { @if let Some(d) = difference { (signed(d.low)) " to " (signed(d.high)) } }
            td { @if let Some(d) = difference { (number(d.p_corrected)) } }
            td { (candidate.verdict.words()) @if let Some(more) = candidate.pictures_to_tell { span.fine { ", about " (more) " " (things) " would tell" } } }
        }
    }
}

fn intervals(candidates: &[&CandidateReport]) -> Markup {
    let ends = candidates.iter().filter_map(|c| c.difference.as_ref());
    let ends = ends
        .flat_map(|d| [d.low, d.high, 0.0])
        .filter(|end| end.is_finite());
    let (low, high) = range(ends);
    let x =
        |value: f64| LEFT + (value.clamp(low, high) - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let height = candidates.len() as f64 * ROW + BOTTOM;
    html! {
        figure.chart {
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label="Difference of loss with its interval, recipe by recipe; the table below has the numbers" {
                @for (tick, label) in ticks((low, high)) {
                    line.grid x1=(px(x(tick))) x2=(px(x(tick))) y1="0" y2=(px(height - BOTTOM)) {}
                    text.tick.mid x=(px(x(tick))) y=(px(height - BOTTOM + 16.0)) { (label) }
                }
                line.zero x1=(px(x(0.0))) x2=(px(x(0.0))) y1="0" y2=(px(height - BOTTOM)) {}
                text.tick.end x=(WIDTH - RIGHT) y=(px(height - 3.0)) { "difference of loss" }
                @for (n, candidate) in candidates.iter().enumerate() {
                    @if let Some(d) = &candidate.difference {
                        @let y = (n as f64 + 0.5) * ROW;
                        text.tick.end x=(LEFT - 10.0) y=(px(y + 4.0)) { (short(&candidate.title())) }
                        line class=(format!("bar {}", class(candidate.verdict))) x1=(px(x(d.low))) x2=(px(x(d.high))) y1=(px(y)) y2=(px(y)) {}
                        circle class=(format!("dot {}", class(candidate.verdict))) cx=(px(x(d.mean))) cy=(px(y)) r="4" {}
                    }
                }
            }
        }
    }
}

/// Worse stands out; what cannot be told does not.
fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Worse => "b",
        Verdict::Preferred => "a",
        Verdict::ComparedWith
        | Verdict::Same
        | Verdict::Negligible
        | Verdict::Indistinguishable => "c",
    }
}

fn short(label: &str) -> String {
    let label = shown::text(label).to_string();
    match label.char_indices().nth(LABEL) {
        Some((end, _)) => format!("{}\u{2026}", &label[..end]),
        None => label,
    }
}

fn signed(value: f64) -> String {
    let sign = if value > 0.0 { "+" } else { "" };
    format!("{sign}{}", number(value))
}

/// What was measured of a field that has one of these values on the two sides; `None`: nothing.
pub(super) fn measured(
    report: &Report,
    field: &str,
    ours: Option<&Value>,
    reference: Option<&Value>,
) -> Option<String> {
    let told = |candidate: &CandidateReport| {
        let change = candidate.differs.first()?;
        let d = candidate.difference.as_ref();
        let same = |a: &Value, b: Option<&Value>| Some(a) == b;
        // Measured against either of the two.
        let sign = match () {
            () if same(&change.value, ours) && same(&change.instead_of, reference) => 1.0,
            () if same(&change.value, reference) && same(&change.instead_of, ours) => -1.0,
            () => return None,
        };
        let Some(d) = d else {
            return Some(candidate.verdict.words().to_owned());
        };
        let mut ends = [sign * d.low, sign * d.high];
        ends.sort_by(f64::total_cmp);
        let verdict = match (candidate.verdict, sign < 0.0) {
            (Verdict::Preferred, true) => "worse",
            (Verdict::Worse, true) => "preferred",
            (verdict, _) => verdict.words(),
        };
        let [low, high] = ends.map(signed);
        let mean = signed(sign * d.mean);
        Some(format!("{verdict}: {mean} loss ({low} to {high})"))
    };
    report.measured(field).into_iter().find_map(told)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{measured, section};
    use crate::probe::report::Report;

    fn report() -> Report {
        let id = "0".repeat(64);
        let candidate = |labels: &[&str],
                         differs: serde_json::Value,
                         verdict: &str,
                         difference: serde_json::Value| {
            json!({
                "labels": labels, "recipe": "sd3/3.5-large", "fingerprint": id, "differs": differs, "verdict": verdict,
                "loss": 0.5, "changed": 2, "difference": difference, "bands": [], "pictures_to_tell": null, "by_picture": [0.0, 0.1],
            })
        };
        let difference = json!({ "mean": 0.0083, "low": 0.0069, "high": 0.0097, "effect_size": 1.0, "p": 1e-6, "p_corrected": 1e-5 });
        let change = json!([{ "field": "t5.tokens.max_tokens", "value": 154, "instead_of": 77 }]);
        serde_json::from_value(json!({
            "version": 1, "tool": "plumb", "experiment": "exp.toml", "family": "sd3", "flavor": "3.5-large", "base": id,
            "method": { "seed": 1, "draws": 4, "guidance": null, "alpha": 0.05, "looks": [{ "pictures": 2, "share": 1.0 }], "looks_made": 1 },
            "pictures": [{ "file": "a.png", "digest": id }, { "file": "b.png", "digest": id }], "failed": 0,
            "candidates": [candidate(&["reference"], json!([]), "compared_with", json!(null)), candidate(&["<b>long"], change, "worse", difference)],
            "left_out": [], "conclusion": "reference is preferred",
        }))
        .expect("a report")
    }

    #[test]
    fn a_field_is_told_what_was_measured_of_it_from_its_own_side() {
        let (report, field) = (report(), "t5.tokens.max_tokens");
        let of =
            |ours, reference| measured(&report, field, Some(&json!(ours)), Some(&json!(reference)));
        assert_eq!(
            of(154, 77).as_deref(),
            Some("worse: +0.0083 loss (+0.0069 to +0.0097)")
        );
        assert_eq!(
            of(77, 154).as_deref(),
            Some("preferred: -0.0083 loss (-0.0097 to -0.0069)")
        );
        assert_eq!(of(256, 77), None);
        assert_eq!(
            measured(&report, "t5.tokens.pad", Some(&json!(1)), None),
            None
        );
    }

    #[test]
    fn every_candidate_is_in_the_table_and_what_has_an_interval_is_drawn() {
        let html = section(&report()).into_string();
        assert!(
            html.contains("&lt;b&gt;long")
                && html.contains("bar b")
                && html.contains("+0.0069 to +0.0097"),
            "{html}"
        );
        assert_eq!(html.matches("<tr>").count(), 3);
    }
}
