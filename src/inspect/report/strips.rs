//! Each caption's tokens under each encoder: ids, the norms of their rows, what is cut.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::super::Error;
use super::super::captions::Caption;
use super::packed;
use crate::base_model::TextEncoderPart;
use crate::cache::{self, EncoderId, EncoderOutput};
use crate::digest::Fingerprint;
use crate::encode::{lost_text, tokenize};
use crate::shown;
use crate::store::{self, StoreReader};
use crate::text::tokenizer::Lost;

/// Tokens of a caption that are shown; the longest sequences have 512.
const MOST_TOKENS: usize = 512;

/// Characters of lost text that are shown.
const MOST_LOST: usize = 600;

/// A caption's tokens under one encoder.
pub(super) struct Strip {
    /// Ids before the pads, at most [`MOST_TOKENS`].
    pub(super) ids: Vec<u32>,
    /// The norms of their rows; none where there is no entry.
    pub(super) norms: Vec<f32>,
    /// The cosine of each row with the same token's under another recipe, where that is known.
    pub(super) cosines: Vec<Option<f64>>,
    /// Ids before the pads.
    pub(super) count: usize,
    /// What `count` would be had nothing been cut, where that is known.
    pub(super) total: Option<usize>,
    /// Pads, and their id.
    pub(super) pads: usize,
    pub(super) pad: Option<u32>,
    /// The text that is lost.
    pub(super) lost: String,
    /// Whether tokens were cut.
    pub(super) truncated: bool,
    /// Whether the recipe's clean-up drops text.
    pub(super) shortened: bool,
    /// Why there are no norms.
    pub(super) fault: Option<String>,
}

/// As the page's script reads it.
#[derive(Serialize)]
pub(super) struct PackedStrip {
    #[serde(rename = "i")]
    ids: String,
    #[serde(rename = "n")]
    norms: String,
    #[serde(rename = "c", skip_serializing_if = "String::is_empty")]
    cosines: String,
    #[serde(rename = "k")]
    count: usize,
    #[serde(rename = "t", skip_serializing_if = "Option::is_none")]
    total: Option<usize>,
    #[serde(rename = "p")]
    pads: usize,
    #[serde(rename = "q", skip_serializing_if = "Option::is_none")]
    pad: Option<u32>,
    #[serde(rename = "l", skip_serializing_if = "String::is_empty")]
    lost: String,
    #[serde(rename = "d", skip_serializing_if = "std::ops::Not::not")]
    shortened: bool,
    #[serde(rename = "f", skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

impl Strip {
    pub(super) fn packed(&self, largest_norm: f32) -> PackedStrip {
        let has_cosines = self.cosines.iter().any(Option::is_some);
        PackedStrip {
            ids: packed::ids(&self.ids),
            norms: packed::parts(&self.norms, largest_norm),
            cosines: match has_cosines {
                true => packed::units(&self.cosines),
                false => String::new(),
            },
            count: self.count,
            total: self.total.filter(|total| *total > self.count),
            pads: self.pads,
            pad: self.pad,
            lost: self.lost.clone(),
            shortened: self.shortened,
            fault: self.fault.clone(),
        }
    }

    /// The bytes that it takes on the page, about.
    pub(super) fn bytes(&self) -> usize {
        4 * self.ids.len() + 3 * self.norms.len() + 3 * self.cosines.len() + self.lost.len() + 40
    }
}

/// An encoder whose captions are shown, and where its token ids are from.
pub(super) struct Encoder<'a> {
    pub(super) id: &'a EncoderId,
    pub(super) part: Option<&'a TextEncoderPart>,
    /// The ids that a store's index has, where there is no tokenizer.
    recorded: HashMap<Fingerprint, (Vec<u32>, usize, bool)>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(
        id: &'a EncoderId,
        part: Option<&'a TextEncoderPart>,
        reader: &StoreReader,
        captions: &[&Caption],
    ) -> Result<Self, Error> {
        let mut recorded = HashMap::new();
        if part.is_none() {
            let wanted: Vec<_> = captions.iter().map(|c| id.entry(&c.text)).collect();
            let records = reader.records_of(&id.spec, &wanted);
            let records = records.map_err(cache::Error::from)?.into_values();
            recorded.extend(
                records.map(|r| (r.entry, (r.tokens, r.token_count as usize, r.truncated))),
            );
        }
        Ok(Self { id, part, recorded })
    }

    /// The tokens of a caption and what the encoder made of it; the second is `None` where the store has no sound entry.
    pub(super) fn strip(
        &self,
        caption: &str,
        reader: &StoreReader,
    ) -> Result<(Strip, Option<EncoderOutput>), Error> {
        let (output, fault) = output(reader, self.id, caption)?;
        let mut strip = match self.part {
            Some(part) => of_tokens(part, caption)?,
            None => self.of_record(&self.id.entry(caption)),
        };
        strip.fault = fault;
        if let Some(hidden) = output.as_ref().and_then(|o| o.hidden.as_ref()) {
            let rows = hidden.to_vec2::<f32>()?;
            let shown = rows.iter().take(strip.ids.len());
            strip.norms = shown.map(|row| norm(row)).collect();
        }
        Ok((strip, output))
    }

    fn of_record(&self, entry: &Fingerprint) -> Strip {
        let nothing = (Vec::new(), 0, false);
        let (tokens, count, truncated) = self.recorded.get(entry).unwrap_or(&nothing);
        strip(tokens, *count, None, *truncated)
    }
}

/// The pieces of the ids in some strips, by id.
pub(super) fn pieces<'s>(
    part: &TextEncoderPart,
    strips: impl Iterator<Item = &'s Strip>,
) -> BTreeMap<u32, String> {
    let mut pieces = BTreeMap::new();
    for strip in strips {
        for id in strip.ids.iter().copied().chain(strip.pad) {
            pieces.entry(id).or_insert_with(|| piece(part, id));
        }
    }
    pieces
}

fn piece(part: &TextEncoderPart, id: u32) -> String {
    let piece = part
        .tokenizer
        .token(id)
        .unwrap_or_else(|| format!("<{id}>"));
    shown::text(&piece).to_string()
}

fn of_tokens(part: &TextEncoderPart, caption: &str) -> Result<Strip, Error> {
    let tokens = tokenize(part, caption)?;
    let total = Some(tokens.total);
    let lost = lost_text(part, caption)?;
    Ok(Strip {
        shortened: !lost.dropped.is_empty(),
        lost: lost_words(lost),
        ..strip(&tokens.ids, tokens.count, total, tokens.truncated)
    })
}

fn strip(ids: &[u32], count: usize, total: Option<usize>, truncated: bool) -> Strip {
    let count = count.min(ids.len());
    Strip {
        ids: ids[..count.min(MOST_TOKENS)].to_vec(),
        norms: Vec::new(),
        cosines: Vec::new(),
        count,
        total,
        pads: ids.len() - count,
        pad: ids.get(count).copied(),
        lost: String::new(),
        truncated,
        shortened: false,
        fault: None,
    }
}

/// The text that is lost, what clean-up drops first; of much, the beginning.
fn lost_words(lost: Lost) -> String {
    let dropped = lost.dropped.into_iter().map(|dropped| dropped.text);
    let all = dropped.chain(lost.cut.map(|cut| cut.text));
    let all: Vec<String> = all.map(|text| text.trim().to_owned()).collect();
    let text = all.join(" \u{2026} ");
    match text.char_indices().nth(MOST_LOST) {
        Some((end, _)) => text[..end].to_owned() + "\u{2026}",
        None => text,
    }
}

fn norm(row: &[f32]) -> f32 {
    row.iter()
        .map(|v| f64::from(*v).powi(2))
        .sum::<f64>()
        .sqrt() as f32
}

/// What an encoder made of a caption, or why that cannot be told.
pub(super) fn output(
    reader: &StoreReader,
    encoder: &EncoderId,
    caption: &str,
) -> Result<(Option<EncoderOutput>, Option<String>), Error> {
    let entry = match reader.get(&encoder.spec, &encoder.entry(caption)) {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok((None, Some("not in the store".to_owned()))),
        Err(e @ store::Error::Damaged { .. }) => return Ok((None, Some(e.to_string()))),
        Err(e) => return Err(cache::Error::from(e).into()),
    };
    let made = || -> candle_core::Result<EncoderOutput> {
        let output = EncoderOutput::of_entry(&entry)?;
        if let Some(hidden) = &output.hidden {
            hidden.dims2()?;
        }
        Ok(output)
    };
    Ok(match made() {
        Ok(output) => (Some(output), None),
        Err(e) => (None, Some(format!("entry {}: {e}", entry.entry.short()))),
    })
}
