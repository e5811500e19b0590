//! What two recipes make of the same captions, token by token.

use crate::base_model::BaseModel;
use crate::cache::difference::{Compared, compare_outputs};
use crate::cache::{EncoderId, EncoderOutput};
use crate::encode::tokenize;

use super::super::Error;
use super::Other;
use super::strips::{Strip, output};

/// How two encoders' outputs differ over all captions that both have.
pub(super) struct Comparison {
    pub(super) slot: String,
    pub(super) state: State,
}

pub(super) enum State {
    /// Both recipes ask for the same entries.
    Same,
    /// The other recipe has no such encoder.
    Absent,
    /// No caption has entries of both.
    NotEncoded,
    /// Their rows are of different widths.
    Widths,
    Differ(Differences),
}

/// Sums over captions.
#[derive(Default)]
pub(super) struct Differences {
    pub(super) captions: usize,
    pub(super) without: usize,
    pub(super) tokens: Cosines,
    pub(super) pads: Cosines,
    pub(super) pooled: Cosines,
    /// Tokens that only one of both sees.
    pub(super) only_ours: usize,
    pub(super) only_theirs: usize,
    /// By the place in the caption: the sum of cosines and their number.
    pub(super) by_place: Vec<(f64, usize)>,
}

#[derive(Default)]
pub(super) struct Cosines {
    sum: f64,
    count: usize,
    pub(super) least: Option<f64>,
}

impl Cosines {
    fn add(&mut self, cosine: Option<f64>) {
        if let Some(cosine) = cosine {
            self.sum += cosine;
            self.count += 1;
            self.least = Some(self.least.map_or(cosine, |least| least.min(cosine)));
        }
    }

    pub(super) fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// One encoder's comparison, filled caption by caption.
pub(super) struct Comparer<'a> {
    other: &'a Other<'a>,
    theirs: Option<EncoderId>,
    is_same: bool,
    widths: bool,
    pub(super) found: Differences,
}

impl<'a> Comparer<'a> {
    pub(super) fn new(ours: &EncoderId, other: &'a Other<'a>) -> Self {
        let part = other.base.encoders.iter().find(|e| e.slot == ours.slot);
        let theirs = part.map(|e| EncoderId {
            slot: e.slot.clone(),
            spec: e.fingerprint,
        });
        Self {
            is_same: theirs.as_ref().is_some_and(|t| t.spec == ours.spec),
            theirs,
            other,
            widths: false,
            found: Differences::default(),
        }
    }

    /// Compares a caption's outputs, and notes the cosines in its strip.
    pub(super) fn add(
        &mut self,
        caption: &str,
        strip: &mut Strip,
        ours: Option<&EncoderOutput>,
    ) -> Result<(), Error> {
        let Some(id) = self.theirs.as_ref().filter(|_| !self.is_same) else {
            return Ok(());
        };
        let (theirs, _) = output(self.other.reader, id, caption)?;
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            self.found.without += 1;
            return Ok(());
        };
        let ids = ids_of(self.other.base, &id.slot, caption)?;
        let mut our_ids = strip.ids.clone();
        // Aligned by ids where all are known; a very long strip is shown in part only.
        let known = our_ids.len() == strip.count;
        our_ids.truncate(strip.count);
        let pair = match known {
            true => (
                (ours, Some(our_ids.as_slice())),
                (&theirs, Some(ids.as_slice())),
            ),
            false => ((ours, None), (&theirs, None)),
        };
        let difference = compare_outputs(pair.0, pair.1)?;
        self.found.captions += 1;
        if let Compared::Both(pooled) = &difference.pooled {
            self.found.pooled.add(pooled.cosine);
        }
        let hidden = match difference.hidden {
            Compared::Both(hidden) => hidden,
            Compared::Widths(..) => {
                self.widths = true;
                return Ok(());
            }
            _ => return Ok(()),
        };
        strip.cosines = vec![None; strip.ids.len()];
        for row in &hidden.tokens.rows {
            let cosine = row.difference.cosine;
            self.found.tokens.add(cosine);
            if let Some(cell) = strip.cosines.get_mut(row.rows[0]) {
                *cell = cosine;
            }
            self.add_place(row.rows[0], cosine);
        }
        for row in &hidden.pads.rows {
            self.found.pads.add(row.difference.cosine);
        }
        self.found.only_ours += hidden.tokens.only_first.len();
        self.found.only_theirs += hidden.tokens.only_second.len();
        Ok(())
    }

    fn add_place(&mut self, place: usize, cosine: Option<f64>) {
        let places = &mut self.found.by_place;
        if places.len() <= place {
            places.resize(place + 1, (0.0, 0));
        }
        if let (Some(cosine), Some(at)) = (cosine, places.get_mut(place)) {
            *at = (at.0 + cosine, at.1 + 1);
        }
    }

    pub(super) fn done(self, slot: &str) -> Comparison {
        let state = match &self.theirs {
            None => State::Absent,
            Some(_) if self.is_same => State::Same,
            Some(_) if self.widths => State::Widths,
            Some(_) if self.found.captions == 0 => State::NotEncoded,
            Some(_) => State::Differ(self.found),
        };
        Comparison {
            slot: slot.to_owned(),
            state,
        }
    }
}

/// A caption's ids before the pads.
fn ids_of(base: &BaseModel, slot: &str, caption: &str) -> Result<Vec<u32>, Error> {
    let Some(part) = base.encoders.iter().find(|e| e.slot == slot) else {
        return Ok(Vec::new());
    };
    let mut tokens = tokenize(part, caption)?;
    tokens.ids.truncate(tokens.count);
    Ok(tokens.ids)
}
