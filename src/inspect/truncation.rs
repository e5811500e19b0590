//! Which of many captions are cut, by which encoder, and what is lost of them. Counted by the code that encodes them; nothing is
//! encoded, and no store is asked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::Error;
use super::captions::Captions;
use crate::base_model::{BaseModel, TextEncoderPart};
use crate::encode::{lost_text, tokenize};
use crate::monitor::Monitor;
use crate::text::tokenizer::Lost;

/// What becomes of the captions of an Experiment.
#[derive(Debug, Serialize)]
pub struct TruncationReport {
    /// The pictures that they belong to.
    pub pictures: usize,
    /// Different captions, those of prompts and the empty one included where the Experiment needs them: what `encode` encodes.
    pub captions: usize,
    /// Of each encoder, in the recipe's order.
    pub encoders: Vec<EncoderCuts>,
    /// The captions of which text is lost, those that lose most tokens first.
    pub cut: Vec<CutCaption>,
}

/// What one encoder does to all captions.
#[derive(Debug, Default, Serialize)]
pub struct EncoderCuts {
    /// The encoder's slot in the recipe, such as `t5`.
    pub slot: String,
    /// The most ids that the recipe gives it; `None`: as many as a caption has.
    pub limit: Option<usize>,
    /// The most ids that a caption would take.
    pub longest: usize,
    /// Captions that are cut: the number that `encode` and `train` say.
    pub truncated: u64,
    /// Captions of which the recipe's clean-up drops text before anything is counted in tokens.
    pub shortened: u64,
    /// Ids that are cut off, of all captions.
    pub lost_tokens: u64,
    /// Captions with characters that the vocabulary has no token for.
    pub with_unknown: u64,
    /// The words with such characters, with the number of captions that they are in, the most frequent first.
    pub unknown_words: Vec<(String, u64)>,
}

/// A caption of which text is lost.
#[derive(Debug, Serialize)]
pub struct CutCaption {
    /// The caption.
    pub caption: String,
    /// The pictures that have it; none of a prompt.
    pub pictures: Vec<PathBuf>,
    /// The encoders that do not see all of it.
    pub by: Vec<CaptionCut>,
}

impl CutCaption {
    /// The most tokens that an encoder cuts off.
    pub fn lost_tokens(&self) -> usize {
        let lost = self.by.iter().map(|cut| cut.total - cut.count);
        lost.max().unwrap_or(0)
    }
}

/// What an encoder does not see of a caption.
#[derive(Debug, Serialize)]
pub struct CaptionCut {
    /// The encoder's slot in the recipe.
    pub slot: String,
    /// Ids before the pads.
    pub count: usize,
    /// What `count` would be had nothing been cut.
    pub total: usize,
    /// The text that is lost.
    pub lost: Lost,
}

/// Words with unknown characters that are counted; a data set of another script has as many as words.
const MOST_WORDS: usize = 10_000;

/// What becomes of the captions of an Experiment's pictures and of its prompts.
///
/// # Errors
/// If a caption cannot be tokenized.
pub fn truncation(
    base: &BaseModel,
    captions: &Captions,
    monitor: &dyn Monitor,
) -> Result<TruncationReport, Error> {
    let sources = &captions.all;
    monitor.start(
        "tokens of captions",
        Some((sources.len() * base.encoders.len()) as u64),
    );
    let mut encoders = Vec::new();
    let mut cut: Vec<CutCaption> = sources
        .iter()
        .map(|caption| CutCaption {
            caption: caption.text.clone(),
            pictures: captions.pictures(caption),
            by: Vec::new(),
        })
        .collect();
    for encoder in &base.encoders {
        let looked_at: Vec<CaptionCut> = sources
            .par_iter()
            .map(|caption| {
                monitor.advance(1);
                look_at(encoder, &caption.text)
            })
            .collect::<Result<_, Error>>()?;
        encoders.push(summary(encoder, &looked_at));
        for (caption, found) in cut.iter_mut().zip(looked_at) {
            if found.lost.cut.is_some() || !found.lost.dropped.is_empty() {
                caption.by.push(found);
            }
        }
    }
    monitor.finish();
    cut.retain(|caption| !caption.by.is_empty());
    // Stable: of those that lose the same the first in the data set comes first.
    cut.sort_by_key(|caption| std::cmp::Reverse(caption.lost_tokens()));
    Ok(TruncationReport {
        pictures: captions.items.len(),
        captions: sources.len(),
        encoders,
        cut,
    })
}

fn look_at(encoder: &TextEncoderPart, caption: &str) -> Result<CaptionCut, Error> {
    let tokens = tokenize(encoder, caption)?;
    Ok(CaptionCut {
        slot: encoder.slot.clone(),
        count: tokens.count,
        total: tokens.total,
        lost: lost_text(encoder, caption)?,
    })
}

fn summary(encoder: &TextEncoderPart, captions: &[CaptionCut]) -> EncoderCuts {
    let mut cuts = EncoderCuts {
        slot: encoder.slot.clone(),
        limit: encoder.tokenizer.limit(&encoder.tokens),
        ..EncoderCuts::default()
    };
    let mut words: BTreeMap<&str, u64> = BTreeMap::new();
    for caption in captions {
        let lost = &caption.lost;
        cuts.longest = cuts.longest.max(caption.total);
        cuts.truncated += u64::from(lost.cut.is_some());
        cuts.shortened += u64::from(!lost.dropped.is_empty());
        cuts.lost_tokens += (caption.total - caption.count) as u64;
        cuts.with_unknown += u64::from(lost.unknown_tokens > 0);
        for word in &lost.unknown_words {
            if words.len() < MOST_WORDS || words.contains_key(word.as_str()) {
                *words.entry(word).or_default() += 1;
            }
        }
    }
    let mut words: Vec<_> = words.into_iter().map(|(w, n)| (w.to_owned(), n)).collect();
    words.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    cuts.unknown_words = words;
    cuts
}
