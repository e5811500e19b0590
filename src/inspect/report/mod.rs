//! A page for a browser that shows what a store holds of an Experiment's captions, or a store by itself: the recipe beside the base
//! model's own, each caption's tokens, a map of the captions, what is cut, what another recipe makes of them, and the training's
//! curves. One file, which asks no network for anything.
//!
//! Nothing is encoded here: what the store lacks is told on the page. The page's size is bounded ([`Budget`]), and what is left out
//! is told too. Foreign text (captions, names, tokens) reaches the page through `maud`, which escapes it, or as JSON in which no `<`
//! stands; a Content-Security-Policy forbids every script but the page's own and every request.
//!
//! - `gather`: what is on the page, as data
//! - `pairs`: pictures beside their references; `thumbnails`: pictures in small
//! - `strips`: each caption's tokens; `compare`, `heat`: the same under two recipes; `near`: far and near captions
//! - `page`: the HTML; `recipe`, `map`, `chart`, `compared`, `probe`, `run`: parts of it
//! - `packed`: numbers as text, for the page's script

mod chart;
mod compare;
mod compared;
mod gather;
mod heat;
mod map;
mod near;
mod packed;
mod page;
mod pairs;
mod probe;
mod recipe;
mod run;
mod strips;
mod thumbnails;

use std::path::PathBuf;

use serde::Serialize;

use super::Error;
use super::captions::Captions;
use crate::base_model::BaseModel;
use crate::monitor::Monitor;
use crate::probe::report::Report as ProbeReport;
use crate::store::StoreReader;

/// What a page may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Captions that are shown one by one.
    pub captions: usize,
    /// Bytes of the whole page, about.
    pub bytes: usize,
    /// Of these, for the captions' texts.
    pub text_bytes: usize,
    /// Of these, for their tokens.
    pub token_bytes: usize,
    /// Of these, for a training's previews.
    pub preview_bytes: usize,
}

impl Default for Budget {
    /// Below 5 MB in all, with 1,000 captions.
    fn default() -> Self {
        Self {
            captions: 1000,
            bytes: 4_800_000,
            text_bytes: 800_000,
            token_bytes: 2_300_000,
            preview_bytes: 500_000,
        }
    }
}

/// A base model under another recipe, with the entries that a store has of it.
pub struct Other<'a> {
    /// What a person calls it.
    pub name: String,
    /// The base model.
    pub base: &'a BaseModel,
    /// Its entries.
    pub reader: &'a StoreReader,
    /// The command that encodes what is missing.
    pub command: String,
}

/// What a page is made of.
pub struct Sources<'a> {
    /// What it is of: the Experiment's file or the store's folder.
    pub title: String,
    /// The base model of an Experiment; `None`: a store by itself.
    pub base: Option<&'a BaseModel>,
    /// The captions.
    pub captions: &'a Captions,
    /// Their entries.
    pub reader: &'a StoreReader,
    /// What to compare with.
    pub other: Option<Other<'a>>,
    /// What a probe measured of this base model.
    pub probe: Option<&'a ProbeReport>,
    /// The folder of a training.
    pub output: Option<PathBuf>,
}

/// A page, and what is on it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The HTML.
    #[serde(skip)]
    pub html: String,
    /// Its size.
    pub bytes: usize,
    /// All captions.
    pub captions: usize,
    /// Of these, shown one by one.
    pub shown: usize,
    /// Captions that the store has no entry of, by encoder.
    pub missing: Vec<(String, usize)>,
    /// Captions whose entry is damaged, by encoder, with what is wrong with the first.
    pub damaged: Vec<(String, usize, String)>,
    /// What was left out to keep the page small, as sentences.
    pub left_out: Vec<String>,
}

/// Makes the page.
///
/// # Errors
/// If the store cannot be read.
pub fn report(
    sources: &Sources<'_>,
    budget: Budget,
    monitor: &dyn Monitor,
) -> Result<Report, Error> {
    let mut gathered = gather::gather(sources, budget, monitor)?;
    let html = page::page(sources, &mut gathered)?;
    Ok(Report {
        bytes: html.len(),
        html,
        captions: sources.captions.all.len(),
        shown: gathered.shown.len(),
        missing: gathered.missing(),
        damaged: gathered.damaged(),
        left_out: gathered.left_out,
    })
}
