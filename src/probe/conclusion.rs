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
    let negligible = of_verdict(Verdict::Negligible);
    let label = against.title();
    let things = report.subjects().several();
    let mut sentences = Vec::new();
    sentences.extend(doubt(report));
    if [&preferred, &worse, &unclear, &negligible]
        .iter()
        .all(|v| v.is_empty())
    {
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
                "If the differences are as they seem, {} {things} would tell the first of them.",
                count(least)
            ));
        }
    }
    sentences.push(format!(
        "This is evidence, no proof, and a recipe that was not tried may be better. It holds for {things} of the kind and the \
         resolution that the base model was trained on: on others a base may prefer recipes that it was not trained with."
    ));
    sentences.join(" ")
}

/// What a failed control means.
fn doubt(report: &Report) -> Option<String> {
    let control = report.control.as_ref()?;
    let (one, several) = (report.subjects().one(), report.subjects().several());
    (control.verdict != Verdict::Worse).then(|| {
        format!(
            "Do not believe the preferences found here: another {one}'s caption does no clear harm here, so this base model does not use \
             what it is told of these {several}. Are they of the kind and the resolution that it was trained on?"
        )
    })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of;
    use crate::probe::report::{Report, Verdict};

    #[test]
    fn preferences_are_doubted_where_another_caption_does_no_harm() {
        let id = "0".repeat(64);
        let reference = json!({
            "labels": ["reference"], "recipe": "sd3/3.5-large", "fingerprint": id, "differs": [], "verdict": "compared_with",
            "loss": 0.5, "changed": 0, "difference": null, "bands": [], "pictures_to_tell": null, "by_picture": [],
        });
        let report = |verdict: Verdict| -> Report {
            serde_json::from_value(json!({
                "version": 2, "tool": "plumb", "experiment": "exp.toml", "family": "sd3", "flavor": "3.5-large", "base": id,
                "method": { "seed": 1, "draws": 4, "guidance": null, "alpha": 0.05, "negligible": 0.001, "looks": [], "looks_made": 1 },
                "pictures": [], "failed": 0, "candidates": [reference], "control": { "verdict": verdict, "difference": null },
                "left_out": [], "conclusion": "",
            }))
            .expect("a report")
        };
        let doubt = "Do not believe the preferences";
        assert!(!of(&report(Verdict::Worse)).contains(doubt));
        let mut clips = report(Verdict::Same);
        let id: crate::digest::Digest = id.parse().expect("a digest");
        clips.pictures = vec![crate::probe::report::Picture {
            file: "a.gif".to_owned(),
            digest: id,
        }];
        clips.clips = 1;
        let said = of(&clips);
        assert!(
            said.contains("another clip's caption") && !said.contains("picture"),
            "{said}"
        );
        for verdict in [
            Verdict::Indistinguishable,
            Verdict::Preferred,
            Verdict::Same,
        ] {
            assert!(of(&report(verdict)).starts_with(doubt));
        }
    }
}
