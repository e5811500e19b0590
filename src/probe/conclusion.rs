//! What a probe found, in a few sentences.

use super::report::{CandidateReport, Report, Verdict};

/// More names than a person reads.
const MOST_NAMED: usize = 6;

/// The sentences of a report, whose numbers are there already.
pub(super) fn of(report: &Report) -> String {
    let Some(against) = report.candidates.first() else {
        return String::new();
    };
    let of_verdict = |verdict: Verdict| -> Vec<&CandidateReport> {
        report
            .distinct()
            .into_iter()
            .filter(|c| c.verdict == verdict)
            .collect()
    };
    let (preferred, worse) = (of_verdict(Verdict::Preferred), of_verdict(Verdict::Worse));
    let unclear = of_verdict(Verdict::Indistinguishable);
    let label = against.label();
    let mut sentences = Vec::new();
    if preferred.is_empty() && worse.is_empty() && unclear.is_empty() {
        sentences.push(format!(
            "On this base model and these captions every recipe that was tried gives the denoiser the same tensors as {label}."
        ));
    } else if preferred.is_empty() {
        sentences.push(format!("No recipe that was tried is preferred to {label}."));
    } else {
        let best = preferred.iter().min_by(|a, b| mean(a).total_cmp(&mean(b)));
        let best = best.map_or_else(String::new, |best| {
            format!(", most of all {}", report.label(best))
        });
        sentences.push(match preferred.len() {
            1 => format!(
                "This base model prefers {} to {label}.",
                report.label(preferred[0])
            ),
            n => format!("This base model prefers {n} recipes to {label}{best}."),
        });
    }
    if !worse.is_empty() {
        sentences.push(format!("Worse than {label}: {}.", named(report, &worse)));
    }
    if !unclear.is_empty() {
        sentences.push(format!(
            "Not to be told from {label} at this size: {}.",
            named(report, &unclear)
        ));
        let sizes = unclear.iter().filter_map(|c| c.pictures_to_tell);
        if let Some(least) = sizes.min() {
            sentences.push(format!(
                "If the differences are as they seem, {} pictures would tell the first of them.",
                count(least)
            ));
        }
    }
    sentences.push(
        "This is evidence of what the base model was trained with, from these pictures; it is no proof, and a recipe that was not \
         tried may be better."
            .to_owned(),
    );
    sentences.join(" ")
}

fn mean(candidate: &CandidateReport) -> f64 {
    candidate
        .difference
        .map_or(0.0, |difference| difference.mean)
}

/// A number of pictures as a person wants it.
pub fn count(pictures: u64) -> String {
    match pictures {
        0..=999 => format!("about {pictures}"),
        1000..=999_999 => format!("about {}", pictures / 100 * 100),
        _ => "more than a million".to_owned(),
    }
}

fn named(report: &Report, candidates: &[&CandidateReport]) -> String {
    let names: Vec<String> = candidates
        .iter()
        .take(MOST_NAMED)
        .map(|c| report.label(c))
        .collect();
    let rest = candidates.len() - names.len();
    let names = names.join("; ");
    match rest {
        0 => names,
        n => format!("{names}; and {n} more"),
    }
}
