//! Many captions on two sides, summed up.

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::side::{Found, pairings};
use super::{Pairing, Side};
use crate::cache::EncoderId;
use crate::cache::difference::{
    Compared, OutputDifference, RowsDifference, VectorDifference, compare_outputs,
};
use crate::inspect::Error;
use crate::monitor::Monitor;

/// Captions read at once: what both sides have of them is in memory together.
const CHUNK: usize = 32;

/// Captions that are named because they differ most.
const WORST: usize = 5;

/// What two sides make of many captions.
#[derive(Debug, Serialize)]
pub struct SetDiff {
    /// What the sides are called.
    pub sides: [String; 2],
    /// Different captions.
    pub captions: usize,
    /// Of each encoder.
    pub encoders: Vec<EncoderSetDiff>,
}

/// What an encoder of one side and its partner make of many captions.
#[derive(Debug, Serialize)]
pub struct EncoderSetDiff {
    /// Which encoders, and the parameters that differ.
    #[serde(flatten)]
    pub pairing: Pairing,
    /// Captions that both sides have an entry of.
    pub compared: u64,
    /// Of these, those with the same rows and numbers.
    pub equal: u64,
    /// Captions that each side has no entry of, or a damaged one.
    pub missing: [u64; 2],
    /// What is wrong with entries that cannot be read: the first of them.
    pub damage: Option<String>,
    /// Captions whose parts have other widths or are on one side alone, so that no number tells them apart.
    pub other_shapes: u64,
    /// Rows of true tokens.
    pub tokens: Spread,
    /// Rows of pads.
    pub pads: Spread,
    /// Pooled vectors.
    pub pooled: Spread,
    /// The captions whose true tokens or pooled vectors differ most.
    pub worst: Vec<WorstCaption>,
}

/// How much rows of many captions differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Rows that both sides have.
    pub rows: u64,
    /// Of these, those with the same numbers.
    pub equal: u64,
    /// Their mean cosine.
    pub mean_cosine: Option<f64>,
    /// Their smallest cosine.
    pub min_cosine: Option<f64>,
    /// The largest absolute difference of two numbers.
    pub max_abs: Option<f64>,
    /// Rows that each side alone has.
    pub one_sided: [u64; 2],
    /// Numbers that are NaN or infinite.
    pub non_finite: u64,
}

/// A caption that differs much.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstCaption {
    /// The caption.
    pub caption: String,
    /// The smallest cosine of its true tokens and its pooled vector.
    pub cosine: f64,
}

#[derive(Default)]
struct Sum {
    spread: Spread,
    cosines: f64,
    with_cosine: u64,
}

impl Sum {
    fn add(&mut self, difference: &VectorDifference) {
        let spread = &mut self.spread;
        spread.rows += 1;
        spread.equal += u64::from(difference.equal);
        spread.non_finite += difference.non_finite as u64;
        if let Some(cosine) = difference.cosine {
            self.cosines += cosine;
            self.with_cosine += 1;
            spread.min_cosine = Some(spread.min_cosine.map_or(cosine, |min| min.min(cosine)));
        }
        if let Some(largest) = difference.max_abs {
            spread.max_abs = Some(spread.max_abs.map_or(largest, |max| max.max(largest)));
        }
    }

    fn add_rows(&mut self, rows: &RowsDifference) {
        rows.rows.iter().for_each(|row| self.add(&row.difference));
        self.spread.one_sided[0] += rows.only_first.len() as u64;
        self.spread.one_sided[1] += rows.only_second.len() as u64;
    }

    fn finish(mut self) -> Spread {
        let count = self.with_cosine;
        self.spread.mean_cosine = (count > 0).then(|| self.cosines / count as f64);
        self.spread
    }
}

/// A caption as it was read: the difference, or on which sides it is missing.
enum Read {
    Both(OutputDifference),
    Missing([bool; 2], Option<String>),
}

/// Compares what two sides have of `captions`.
///
/// # Errors
/// If a store cannot be read.
pub fn set_diff(
    mut sides: [Side<'_>; 2],
    captions: &[&str],
    monitor: &dyn Monitor,
) -> Result<SetDiff, Error> {
    for side in &mut sides {
        side.load_ids(captions)?;
    }
    let mut encoders = Vec::new();
    for pairing in pairings(&sides[0], &sides[1])? {
        encoders.push(encoder_diff(&sides, pairing, captions, monitor)?);
    }
    Ok(SetDiff {
        sides: sides.map(|side| side.name),
        captions: captions.len(),
        encoders,
    })
}

fn encoder_diff(
    sides: &[Side<'_>; 2],
    pairing: Pairing,
    captions: &[&str],
    monitor: &dyn Monitor,
) -> Result<EncoderSetDiff, Error> {
    let mut report = EncoderSetDiff {
        compared: 0,
        equal: 0,
        missing: [0; 2],
        damage: None,
        other_shapes: 0,
        tokens: Spread::default(),
        pads: Spread::default(),
        pooled: Spread::default(),
        worst: Vec::new(),
        pairing,
    };
    let slots = &report.pairing.slots;
    let [Some(first), Some(second)] = [0, 1].map(|at: usize| sides[at].encoder(slots[at].as_ref()))
    else {
        return Ok(report);
    };
    let (mut tokens, mut pads, mut pooled) = (Sum::default(), Sum::default(), Sum::default());
    let stage = format!("comparing, {}", report.pairing.name());
    monitor.start(&stage, Some(captions.len() as u64));
    for some in captions.chunks(CHUNK) {
        let read: Vec<Read> = some
            .par_iter()
            .map(|caption| read(sides, [first, second], caption))
            .collect::<Result<_, Error>>()?;
        monitor.advance(some.len() as u64);
        for (caption, read) in some.iter().zip(read) {
            let difference = match read {
                Read::Both(difference) => difference,
                Read::Missing(missing, damage) => {
                    report.missing[0] += u64::from(missing[0]);
                    report.missing[1] += u64::from(missing[1]);
                    report.damage = report.damage.or(damage);
                    continue;
                }
            };
            report.compared += 1;
            report.equal += u64::from(difference.equal());
            let odd = |found: bool, neither: bool| !found && !neither;
            let hidden = difference.hidden.both();
            let vector = difference.pooled.both();
            report.other_shapes += u64::from(
                odd(
                    hidden.is_some(),
                    matches!(difference.hidden, Compared::Neither),
                ) || odd(
                    vector.is_some(),
                    matches!(difference.pooled, Compared::Neither),
                ),
            );
            if let Some(hidden) = hidden {
                tokens.add_rows(&hidden.tokens);
                pads.add_rows(&hidden.pads);
            }
            if let Some(vector) = vector {
                pooled.add(vector);
            }
            add_worst(&mut report.worst, caption, least_cosine(&difference));
        }
    }
    monitor.finish();
    report.tokens = tokens.finish();
    report.pads = pads.finish();
    report.pooled = pooled.finish();
    Ok(report)
}

/// The smallest cosine of true tokens and pooled vectors that are not equal.
fn least_cosine(difference: &OutputDifference) -> Option<f64> {
    let hidden = difference.hidden.both().into_iter();
    let rows = hidden.flat_map(|hidden| hidden.tokens.rows.iter().map(|row| &row.difference));
    let vectors = rows.chain(difference.pooled.both());
    let cosines = vectors.filter(|v| !v.equal).filter_map(|v| v.cosine);
    cosines.reduce(f64::min)
}

fn add_worst(worst: &mut Vec<WorstCaption>, caption: &str, cosine: Option<f64>) {
    let Some(cosine) = cosine else {
        return;
    };
    let place = worst.partition_point(|known| known.cosine <= cosine);
    if place < WORST {
        worst.insert(
            place,
            WorstCaption {
                caption: caption.to_owned(),
                cosine,
            },
        );
        worst.truncate(WORST);
    }
}

fn read(sides: &[Side<'_>; 2], encoders: [&EncoderId; 2], caption: &str) -> Result<Read, Error> {
    let first = sides[0].output(encoders[0], caption)?;
    let second = sides[1].output(encoders[1], caption)?;
    Ok(match (first, second) {
        (Found::Output(a, a_ids), Found::Output(b, b_ids)) => Read::Both(compare_outputs(
            (&a, a_ids.as_deref()),
            (&b, b_ids.as_deref()),
        )?),
        (first, second) => {
            let mut damage = None;
            let missing = [first, second].map(|found| match found {
                Found::Output(..) => false,
                Found::Missing(why) => {
                    damage = damage.take().or(why);
                    true
                }
            });
            Read::Missing(missing, damage)
        }
    })
}
