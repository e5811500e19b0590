//! One caption (or two) on two sides, row by row.

use serde::Serialize;

use super::side::{Found, pairings};
use super::{Pairing, Side};
use crate::cache::difference::{
    Compared, OutputDifference, Sequence, SequenceDifference, VectorDifference, compare_outputs,
    compare_rows, compare_vectors,
};
use crate::cache::{Conditioning, EncoderOutputs, assemble};
use crate::inspect::Error;
use crate::recipe::Diff;

/// What two sides make of a caption, or of two.
#[derive(Debug, Serialize)]
pub struct CaptionDiff {
    /// What the sides are called.
    pub sides: [String; 2],
    /// The caption on each side.
    pub captions: [String; 2],
    /// Of each encoder.
    pub encoders: Vec<EncoderDiff>,
    /// What the denoiser receives, where both sides have a recipe and every entry.
    pub received: Option<Received>,
}

/// What an encoder of one side and its partner make of a caption.
#[derive(Debug, Serialize)]
pub struct EncoderDiff {
    /// Which encoders, and the parameters that differ.
    #[serde(flatten)]
    pub pairing: Pairing,
    /// Rows of true tokens; `None` where a side has no entry.
    pub token_counts: [Option<usize>; 2],
    /// The tokens of the rows, pads included.
    pub tokens: [Vec<String>; 2],
    /// Why a side's entry cannot be read; `None` also where it has none.
    pub damage: [Option<String>; 2],
    /// The numbers, where both sides have them.
    pub difference: Option<OutputDifference>,
}

/// What the denoiser receives on both sides.
#[derive(Debug, Serialize)]
pub struct Received {
    /// The fields of the recipes' assembly that differ.
    pub assembly: Diff,
    /// The contexts, row by row in their places.
    pub context: Compared<SequenceDifference>,
    /// The pooled vectors.
    pub pooled: Compared<VectorDifference>,
    /// Rows before the pads that the denoiser masks; `None`: it masks none.
    pub unmasked: [Option<usize>; 2],
}

/// Compares what two sides have of `captions`, one of each side.
///
/// # Errors
/// If a store cannot be read.
pub fn caption_diff(sides: [&Side<'_>; 2], captions: [&str; 2]) -> Result<CaptionDiff, Error> {
    let mut outputs = [EncoderOutputs::new(), EncoderOutputs::new()];
    let mut encoders = Vec::new();
    for pairing in pairings(sides[0], sides[1])? {
        let mut found: [Option<(_, _)>; 2] = [None, None];
        let mut damage = [None, None];
        let mut tokens = [Vec::new(), Vec::new()];
        for at in 0..2 {
            let Some(encoder) = sides[at].encoder(pairing.slots[at].as_ref()) else {
                continue;
            };
            match sides[at].output(encoder, captions[at])? {
                Found::Missing(why) => damage[at] = why,
                Found::Output(output, ids) => {
                    tokens[at] = sides[at].words(&encoder.slot, ids.as_deref().unwrap_or_default());
                    outputs[at].insert(encoder.slot.clone(), output.clone());
                    found[at] = Some((output, ids));
                }
            }
        }
        let difference = match &found {
            [Some((a, a_ids)), Some((b, b_ids))] => Some(compare_outputs(
                (a, a_ids.as_deref()),
                (b, b_ids.as_deref()),
            )?),
            _ => None,
        };
        let count = |at: usize| found[at].as_ref().map(|(output, _)| output.token_count);
        encoders.push(EncoderDiff {
            pairing,
            token_counts: [count(0), count(1)],
            tokens,
            damage,
            difference,
        });
    }
    Ok(CaptionDiff {
        sides: sides.map(|side| side.name.clone()),
        captions: captions.map(str::to_owned),
        encoders,
        received: received(sides, &outputs)?,
    })
}

fn received(
    sides: [&Side<'_>; 2],
    outputs: &[EncoderOutputs; 2],
) -> Result<Option<Received>, Error> {
    let [Some(first), Some(second)] = sides.map(|side| side.base) else {
        return Ok(None);
    };
    let is_whole = |at: usize| outputs[at].len() == sides[at].encoders.len();
    if !is_whole(0) || !is_whole(1) {
        return Ok(None);
    }
    let made = |base: &crate::base_model::BaseModel, outputs| {
        assemble(&base.recipe, outputs, base.denoiser.context_width())
    };
    let (a, b) = (made(first, &outputs[0])?, made(second, &outputs[1])?);
    let rows = |made: &Conditioning| made.context.dim(0);
    fn sequence(made: &Conditioning, token_count: usize) -> Sequence<'_> {
        Sequence {
            rows: &made.context,
            // The pads of several encoders stand among their tokens.
            token_count,
            ids: None,
        }
    }
    let assembly = |base: &crate::base_model::BaseModel| {
        let rules = base.recipe.rules();
        serde_json::json!({ "assembly": rules.get("assembly") })
    };
    Ok(Some(Received {
        assembly: Diff::between(&assembly(first), &assembly(second)),
        context: compare_rows(sequence(&a, rows(&a)?), sequence(&b, rows(&b)?))?,
        pooled: compare_vectors(&a.pooled, &b.pooled)?,
        unmasked: [a.token_count, b.token_count],
    }))
}
