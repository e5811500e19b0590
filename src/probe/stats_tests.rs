//! Against scipy's numbers, closed forms, and what the corrections promise.

use serde_json::Value;

use super::{FEWEST_CHANGED, Paired, holm, looks, t_quantile, t_two_sided};
use crate::rng::{Rng, Stream};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/probe_statistics.json")).expect("JSON")
}

fn rows<const N: usize>(name: &str) -> Vec<[f64; N]> {
    let rows = golden()[name].as_array().expect("rows").clone();
    let row = |row: Value| serde_json::from_value::<Vec<f64>>(row).expect("numbers");
    let sized = |row: Vec<f64>| <[f64; N]>::try_from(row).expect("as many numbers");
    rows.into_iter().map(row).map(sized).collect()
}

fn near(found: f64, expected: f64, what: &str) {
    let off = (found - expected).abs() / expected.abs().max(1e-300);
    // A million degrees of freedom lose some digits in the gamma functions.
    assert!(off < 1e-8, "{what}: expected {expected}, found {found}");
}

#[test]
fn tails_and_quantiles_are_scipys() {
    for [t, freedom, expected] in rows("t_two_sided") {
        near(
            t_two_sided(t, freedom),
            expected,
            &format!("t {t}, {freedom}"),
        );
    }
    for [alpha, freedom, expected] in rows("t_quantile") {
        near(
            t_quantile(alpha, freedom),
            expected,
            &format!("alpha {alpha}, {freedom}"),
        );
    }
    for [alpha, expected] in rows("normal_quantile") {
        near(
            t_quantile(alpha, f64::INFINITY),
            expected,
            &format!("alpha {alpha}"),
        );
    }
    // With one degree of freedom it is Cauchy's, with two an algebraic function.
    let t = 2.5f64;
    near(
        t_two_sided(t, 1.0),
        1.0 - 2.0 * t.atan() / std::f64::consts::PI,
        "Cauchy",
    );
    near(
        t_two_sided(t, 2.0),
        1.0 - t / (2.0 + t * t).sqrt(),
        "two degrees",
    );
}

#[test]
fn a_paired_comparison_is_scipys_t_test() {
    for sample in golden()["samples"].as_array().expect("samples") {
        let values: Vec<f64> = serde_json::from_value(sample["values"].clone()).expect("numbers");
        let number = |name: &str| sample[name].as_f64().expect("a number");
        let found = Paired::of(&values);
        // Never below what sign flips could give.
        let floor = (1.0 - values.len() as f64).exp2();
        near(found.p, number("p").max(floor), "p");
        let (low, high) = found.interval(0.05).expect("an interval");
        near(low, number("low"), "low");
        near(high, number("high"), "high");
        assert_eq!(
            (found.pictures, found.changed),
            (values.len(), values.len())
        );
    }
}

#[test]
fn pictures_that_did_not_change_dilute_the_mean_and_add_no_certainty() {
    let changed = [0.1, 0.3, 0.2, 0.4, 0.2, 0.3];
    let alone = Paired::of(&changed);
    let diluted = Paired::of(&[&changed[..], &[0.0; 18]].concat());
    assert_eq!((diluted.pictures, diluted.changed), (24, 6));
    near(diluted.mean, alone.mean / 4.0, "mean");
    near(diluted.p, alone.p, "p");
    near(diluted.effect_size, alone.effect_size, "effect");
    assert_eq!(alone.p, 0.03125, "six signs that agree, and no less");
    let few = Paired::of(&[&changed[..FEWEST_CHANGED - 1], &[0.0; 100]].concat());
    assert_eq!((few.p, few.interval(0.05)), (1.0, None));
    assert_eq!(few.pictures_to_tell(0.05), None);
    let none = Paired::of(&[0.0; 50]);
    assert_eq!((none.changed, none.mean, none.p), (0, 0.0, 1.0));
    assert_eq!(Paired::of(&[]).p, 1.0);
}

#[test]
fn equal_differences_are_as_sure_as_their_signs() {
    let found = Paired::of(&[0.5; 10]);
    assert_eq!((found.p, found.effect_size), (2f64.powi(-9), 0.0));
}

#[test]
fn the_looks_spend_alpha_late_and_all_of_it() {
    let all = looks(128, 0.05);
    assert_eq!(
        all.iter().map(|l| l.0).collect::<Vec<_>>(),
        [32, 64, 96, 128]
    );
    // Spent by then, two-sided: 2 - 2 Phi(1.96 / sqrt(t)), tabulated by Lan and DeMets.
    let by_then = |n: usize| 0.05 * all.iter().take(n).map(|l| l.1).sum::<f64>();
    assert!((by_then(1) - 0.000_09).abs() < 1e-5, "{}", by_then(1));
    assert!((by_then(2) - 0.005_57).abs() < 1e-5, "{}", by_then(2));
    assert!((by_then(3) - 0.023_62).abs() < 1e-5, "{}", by_then(3));
    assert!((by_then(4) - 0.05).abs() < 1e-9, "{}", by_then(4));
    // Few pictures are looked at once.
    assert_eq!(
        looks(20, 0.05).iter().map(|l| l.0).collect::<Vec<_>>(),
        [15, 20]
    );
    assert_eq!(looks(11, 0.05).len(), 1);
    assert!((looks(11, 0.05)[0].1 - 1.0).abs() < 1e-9);
}

#[test]
fn holm_corrects_step_by_step() {
    // Four hypotheses, by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.5.
    let corrected = holm(&[0.5, 0.01, 0.03, 0.02]);
    for (found, expected) in corrected.iter().zip([0.5, 0.04, 0.06, 0.06]) {
        near(*found, expected, "Holm");
    }
    assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    assert!(holm(&[]).is_empty());
}

#[test]
fn the_size_that_would_tell_is_the_textbooks() {
    // Effect size 0.5, alpha 0.05, power 0.8: 32 by the normal approximation (Cohen 1988 has 34 with t).
    let mut values = Vec::new();
    for n in 0..64 {
        values.push(0.5 + if n % 2 == 0 { 1.0 } else { -1.0 } * (63.0f64 / 64.0).sqrt());
    }
    let found = Paired::of(&values);
    near(found.effect_size, 0.5, "effect");
    assert_eq!(found.pictures_to_tell(0.05), Some(32));
}

/// Normals without a difference, 2000 sequences of looks: a false alarm in at most 5 % of them, within what chance leaves.
#[test]
fn looking_four_times_raises_no_more_alarms_than_once() {
    let (mut alarms, runs) = (0, 2000u64);
    for run in 0..runs {
        let mut rng = Rng::new(1, Stream::Probe, 0, run);
        let values: Vec<f64> = rng.normals(64).into_iter().map(f64::from).collect();
        let alarm = |(size, share): &(usize, f64)| Paired::of(&values[..*size]).p / share <= 0.05;
        alarms += usize::from(looks(64, 0.05).iter().any(alarm));
    }
    // Three standard deviations of a binomial above 5 %.
    assert!(alarms <= 129, "{alarms} of {runs}");
    assert!(
        alarms > 30,
        "a test that never rejects is no test: {alarms} of {runs}"
    );
}
