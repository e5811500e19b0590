//! What is on the page, as data.

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::super::Error;
use super::super::captions::Caption;
use super::super::vectors::{CaptionVectors, VectorKind, caption_vectors, plane};
use super::compare::{Comparer, Comparison};
use super::near::{Nearness, nearness};
use super::pairs::Pairs;
use super::run::{self, TrainingRun};
use super::strips::{Encoder, Strip, pieces};
use super::thumbnails::Thumbnails;
use super::{Budget, Sources};
use crate::cache::EncoderId;
use crate::dataset::{Item, Reference};
use crate::monitor::Monitor;
use crate::shown;
use crate::text::tokenizer::is_shortened;

/// Captions whose tokens are in memory at once, with what two recipes made of them.
const CHUNK: usize = 16;

/// All of it.
pub(super) struct Gathered {
    /// The captions that are shown one by one, by their places among all.
    pub(super) shown: Vec<usize>,
    /// Their texts, as a person may see them.
    pub(super) texts: Vec<String>,
    /// In the recipe's order.
    pub(super) encoders: Vec<EncoderView>,
    /// Of the shown captions, and of the pairs.
    pub(super) thumbnails: Thumbnails,
    pub(super) pairs: Pairs,
    pub(super) run: Option<TrainingRun>,
    pub(super) left_out: Vec<String>,
}

/// What one encoder makes of the captions.
pub(super) struct EncoderView {
    pub(super) slot: String,
    /// Of the vectors that the map and nearness are of.
    pub(super) kind: Option<VectorKind>,
    /// One for each shown caption; `None`: left out to keep the page small.
    pub(super) strips: Vec<Option<Strip>>,
    /// The pieces of the ids in the strips.
    pub(super) pieces: std::collections::BTreeMap<u32, String>,
    pub(super) largest_norm: f32,
    /// Of each shown caption that has a vector.
    pub(super) points: Vec<Option<[f64; 2]>>,
    pub(super) explained: [f64; 2],
    /// By places among the shown.
    pub(super) near: Nearness,
    /// Of all captions: cut behind the limit of tokens.
    pub(super) truncated: usize,
    /// Of all captions: those of which the recipe's clean-up drops text; none where the recipe is not known.
    pub(super) shortened: Option<usize>,
    pub(super) with_entry: usize,
    pub(super) missing: usize,
    /// How many are damaged, and what is wrong with the first.
    pub(super) damaged: (usize, String),
    pub(super) comparison: Option<Comparison>,
}

pub(super) fn gather(
    sources: &Sources<'_>,
    budget: Budget,
    monitor: &dyn Monitor,
) -> Result<Gathered, Error> {
    let all = &sources.captions.all;
    let shown = spread(all.len(), budget.captions);
    let mut left_out = Vec::new();
    if shown.len() < all.len() {
        left_out.push(format!(
            "{} of {} captions are shown one by one, evenly spread over all; counts are of all. `plumb inspect export` writes every one",
            shown.len(),
            all.len()
        ));
    }
    let mut encoders = Vec::new();
    for encoder in &sources.captions.encoders {
        encoders.push(view(sources, encoder, &shown, monitor)?);
    }
    let (token_bytes, without) = bound_tokens(&mut encoders, budget.token_bytes);
    left_out.extend(without);
    for encoder in &mut encoders {
        encoder.note_pieces(sources);
    }
    let captions: Vec<&Caption> = shown.iter().map(|&n| &all[n]).collect();
    let texts = texts(&captions, budget.text_bytes);
    let run = match &sources.output {
        Some(folder) => run::read(folder, sources.base, budget.preview_bytes, monitor),
        None => None,
    };
    let text_bytes: usize = texts.iter().map(String::len).sum();
    let previews = run.iter().flat_map(|run| &run.previews);
    let preview_bytes: usize = previews.map(|(_, jpeg)| jpeg.len()).sum();
    // Points of maps, pieces, tables and lists.
    let rest = 120_000 + captions.len() * (80 + 80 * encoders.len());
    let left = (budget.bytes).saturating_sub(token_bytes + text_bytes + preview_bytes + rest);
    let pairs = Pairs::of(&sources.captions.items);
    left_out.extend(pairs.left_out());
    let of_pairs = pairs.shown.iter().map(|&n| &sources.captions.items[n]);
    let of_pairs = of_pairs.map(|item| (Some(item), item.reference.as_ref()));
    let of_captions = captions.iter().map(|c| sources.captions.shown(c));
    let wanted = of_pairs.chain(of_captions).flat_map(|(item, reference)| {
        let item = item.map(Item::viewed);
        item.into_iter().chain(reference.map(Reference::viewed))
    });
    let thumbnails = Thumbnails::make(wanted, left, monitor);
    left_out.extend(thumbnails.left_out());
    left_out.extend(run.iter().filter_map(|run| run.left_out.clone()));
    Ok(Gathered {
        shown,
        texts,
        encoders,
        thumbnails,
        pairs,
        run,
        left_out,
    })
}

impl Gathered {
    /// Captions without an entry, by encoder, where there are such.
    pub(super) fn missing(&self) -> Vec<(String, usize)> {
        let some = self.encoders.iter().filter(|e| e.missing > 0);
        some.map(|e| (e.slot.clone(), e.missing)).collect()
    }

    /// Captions with a damaged entry, by encoder, where there are such.
    pub(super) fn damaged(&self) -> Vec<(String, usize, String)> {
        let some = self.encoders.iter().filter(|e| e.damaged.0 > 0);
        some.map(|e| (e.slot.clone(), e.damaged.0, e.damaged.1.clone()))
            .collect()
    }
}

/// At most `most` of `count` places, evenly spread.
pub(super) fn spread(count: usize, most: usize) -> Vec<usize> {
    let kept = count.min(most);
    (0..kept).map(|n| n * count / kept.max(1)).collect()
}

fn view(
    sources: &Sources<'_>,
    id: &EncoderId,
    shown: &[usize],
    monitor: &dyn Monitor,
) -> Result<EncoderView, Error> {
    let all = &sources.captions.all;
    let mut vectors = caption_vectors(sources.reader, id, &sources.captions.texts(), monitor)?;
    let plane = plane(&mut vectors.rows)?;
    let mut row_of = vec![None; all.len()];
    for (row, of) in vectors.of.iter().enumerate() {
        row_of[of.caption] = Some(row);
    }
    let near = near(&mut vectors, shown, &row_of)?;
    let captions: Vec<&Caption> = shown.iter().map(|&n| &all[n]).collect();
    let (strips, comparison) = strips(sources, id, &captions, monitor)?;
    let norms = strips.iter().flat_map(|strip| &strip.norms).copied();
    let damage: Vec<&String> = (vectors.without.iter())
        .filter_map(|w| w.damage.as_ref())
        .collect();
    Ok(EncoderView {
        slot: id.slot.clone(),
        kind: vectors.kind,
        largest_norm: norms.fold(0.0, f32::max),
        strips: strips.into_iter().map(Some).collect(),
        pieces: Default::default(),
        points: shown
            .iter()
            .map(|&n| row_of[n].map(|row| plane.points[row]))
            .collect(),
        explained: plane.explained,
        near,
        truncated: vectors.of.iter().filter(|of| of.truncated).count(),
        shortened: part(sources, id).map(|part| {
            let steps = &part.tokens.cleanup;
            all.iter().filter(|c| is_shortened(steps, &c.text)).count()
        }),
        with_entry: vectors.of.len(),
        missing: vectors.without.len() - damage.len(),
        damaged: (
            damage.len(),
            damage.first().map(|s| (*s).clone()).unwrap_or_default(),
        ),
        comparison,
    })
}

/// Nearness of the shown captions, by their places among them.
fn near(
    vectors: &mut CaptionVectors,
    shown: &[usize],
    row_of: &[Option<usize>],
) -> Result<Nearness, Error> {
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    for (place, &caption) in shown.iter().enumerate() {
        if let Some(row) = row_of[caption] {
            rows.extend(vectors.rows.read(row, 1)?);
            places.push(place);
        }
    }
    let mut near = nearness(&rows, vectors.rows.width());
    for pair in near.pairs.iter_mut().chain(&mut near.far) {
        pair.places = pair.places.map(|n| places[n]);
    }
    Ok(near)
}

fn strips(
    sources: &Sources<'_>,
    id: &EncoderId,
    captions: &[&Caption],
    monitor: &dyn Monitor,
) -> Result<(Vec<Strip>, Option<Comparison>), Error> {
    let part = part(sources, id);
    let encoder = Encoder::new(id, part, sources.reader, captions)?;
    let mut comparer = sources.other.as_ref().map(|other| Comparer::new(id, other));
    let mut strips = Vec::with_capacity(captions.len());
    monitor.start(&format!("tokens, {}", id.slot), Some(captions.len() as u64));
    for some in captions.chunks(CHUNK) {
        let read: Vec<_> = some
            .par_iter()
            .map(|caption| encoder.strip(&caption.text, sources.reader))
            .collect::<Result<_, Error>>()?;
        for ((mut strip, output), caption) in read.into_iter().zip(some) {
            if let Some(comparer) = &mut comparer {
                comparer.add(&caption.text, &mut strip, output.as_ref())?;
            }
            strips.push(strip);
        }
        monitor.advance(some.len() as u64);
    }
    monitor.finish();
    Ok((strips, comparer.map(|comparer| comparer.done(&id.slot))))
}

fn part<'a>(
    sources: &Sources<'a>,
    id: &EncoderId,
) -> Option<&'a crate::base_model::TextEncoderPart> {
    let mut parts = sources.base?.encoders.iter();
    parts.find(|part| part.fingerprint == id.spec && part.slot == id.slot)
}

/// Leaves out the tokens of the last captions where all take more than `most` bytes.
fn bound_tokens(encoders: &mut [EncoderView], most: usize) -> (usize, Option<String>) {
    let captions = encoders.first().map_or(0, |e| e.strips.len());
    let (mut bytes, mut without) = (0, 0);
    for n in 0..captions {
        let strips = encoders.iter().filter_map(|e| e.strips[n].as_ref());
        let more: usize = strips.map(Strip::bytes).sum();
        if bytes + more <= most {
            bytes += more;
            continue;
        }
        without += 1;
        for encoder in encoders.iter_mut() {
            encoder.strips[n] = None;
        }
    }
    let captions = shown::counted(without, "caption");
    let told = format!("the tokens of {captions} are left out to keep the page small");
    (bytes, (without > 0).then_some(told))
}

/// The least of a text that is shown.
const LEAST_TEXT: usize = 200;

/// The captions' texts, escaped, and cut where all take more than `most` bytes.
fn texts(captions: &[&Caption], most: usize) -> Vec<String> {
    let texts: Vec<String> = captions.iter().map(|c| shown::line(&c.text)).collect();
    if texts.iter().map(String::len).sum::<usize>() <= most {
        return texts;
    }
    // Those that are shorter than their share leave the rest of it to others: what is cut is cut at one length.
    let mut lengths: Vec<usize> = texts.iter().map(String::len).collect();
    lengths.sort_unstable();
    let (mut left, mut share) = (most, 0);
    for (n, length) in lengths.iter().enumerate() {
        share = left / (lengths.len() - n);
        if *length > share {
            break;
        }
        left -= length;
    }
    let share = share.max(LEAST_TEXT);
    let cut = |text: String| match text.len() > share {
        false => text,
        true => {
            let end = text.floor_char_boundary(share);
            let more = text[end..].chars().count();
            format!("{}... ({more} more characters)", &text[..end])
        }
    };
    texts.into_iter().map(cut).collect()
}

impl EncoderView {
    fn note_pieces(&mut self, sources: &Sources<'_>) {
        let ids = &sources.captions.encoders;
        let Some(id) = ids.iter().find(|id| id.slot == self.slot) else {
            return;
        };
        if let Some(part) = part(sources, id) {
            self.pieces = pieces(part, self.strips.iter().flatten());
        }
    }
}
