//! `plumb inspect neighbors`: captions that an encoder takes for nearly the same.

use std::path::PathBuf;

use plumb::inspect::captions::{Caption, Captions, Origin};
use plumb::inspect::vectors::{CaptionVectors, VectorKind, caption_vectors};
use plumb::inspect::{
    Contradictions, NearestCaptions, NeighborOptions, Neighbors, contradictions, nearest_to,
    neighbors,
};
use plumb::monitor::Monitor as _;
use plumb::shown;
use serde_json::{Value, json};

use super::subject::Subject;
use crate::CommandResult;
use crate::ui::{Failure, Ui};

/// Show which captions an encoder takes for nearly the same, and which captions and pictures contradict each other.
///
/// Nearness is the cosine of the pooled vectors, or of the mean of the true tokens where an encoder has none. With --caption the
/// captions nearest to one; without, the near-duplicates of the whole set, those whose pictures differ first, captions that stand
/// on different pictures, and pictures that are there with different captions. Everything is read from the store.
#[derive(clap::Args)]
pub(super) struct Args {
    /// An Experiment file, or a store's folder, which knows nothing of pictures.
    #[arg(value_name = "EXPERIMENT|STORE")]
    place: PathBuf,
    /// Only the captions nearest to this one, which must be in the set.
    #[arg(long, value_name = "TEXT")]
    caption: Option<String>,
    /// Captions with at least this cosine are near-duplicates, from -1 to 1.
    #[arg(
        long,
        value_name = "COSINE",
        default_value_t = 0.98,
        allow_negative_numbers = true
    )]
    above: f32,
    /// Print so many of each list; --json has up to 10,000 pairs, and 5 neighbours of each caption.
    #[arg(long, value_name = "N", default_value_t = 10)]
    most: usize,
}

/// Pairs that are kept.
const MOST_PAIRS: usize = 10_000;

/// Neighbours of each caption, of a whole set.
const NEAREST: usize = 5;

/// Neighbours of one caption at most.
const MOST_NEAREST: usize = 1000;

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    if !(-1.0..=1.0).contains(&args.above) {
        return Err(Failure::usage(format!(
            "--above: expected a cosine from -1 to 1, found {}",
            args.above
        )));
    }
    let subject = Subject::open(&args.place, ui)?;
    let (captions, reader) = subject.read(ui)?;
    let wanted = args
        .caption
        .as_deref()
        .map(|caption| find(&captions, caption));
    let wanted = wanted.transpose()?;
    let texts = captions.texts();
    let (mut reports, mut text): (Vec<Value>, _) = (Vec::new(), String::new());
    for encoder in &captions.encoders {
        let mut vectors = caption_vectors(&reader, encoder, &texts, ui).map_err(Failure::error)?;
        tell_damage(&vectors, subject.base().is_some(), ui);
        match wanted {
            Some(place) => {
                let count = args.most.clamp(1, MOST_NEAREST);
                let found = nearest_to(&mut vectors, place, count).map_err(Failure::error)?;
                text += &describe_nearest(&vectors, found.as_ref(), &captions);
                reports.push(nearest_json(&vectors, found.as_ref(), &captions));
            }
            None => {
                let options = NeighborOptions {
                    above: args.above,
                    nearest: NEAREST,
                    most_pairs: MOST_PAIRS,
                };
                let found =
                    neighbors(&mut vectors, &captions, &options, ui).map_err(Failure::error)?;
                text += &describe_set(&found, &captions, args);
                reports.push(json!(found));
            }
        }
    }
    let found = contradictions(&captions);
    let mut value = json!({ "encoders": reports });
    if wanted.is_none() {
        text += &describe_contradictions(&found, &captions, args.most);
        value["captions"] = captions_json(&captions);
        value["contradictions"] = json!(found);
    }
    ui.report(&value, text.trim_start())
}

fn find(captions: &Captions, caption: &str) -> Result<usize, Failure> {
    let place = captions.all.iter().position(|c| c.text == caption);
    place.ok_or_else(|| {
        Failure::error(format!(
            "none of the {} captions is `{}`, to the letter; add it to the prompts and run `plumb encode`, or give one that is there",
            captions.all.len(),
            shown::text(caption)
        ))
    })
}

fn tell_damage(vectors: &CaptionVectors, wants_all: bool, ui: &Ui) {
    let slot = &vectors.encoder.slot;
    let missing = vectors
        .without
        .iter()
        .filter(|w| w.damage.is_none())
        .count();
    // A store has what it has; an Experiment wants all its captions.
    if missing > 0 && wants_all {
        ui.note(&format!(
            "{slot}: left out, without an entry: {}",
            shown::counted(missing, "caption")
        ));
    }
    for damage in vectors.without.iter().filter_map(|w| w.damage.as_ref()) {
        ui.problem(&format!("{slot}: {damage}"));
    }
}

fn head(slot: &str, kind: Option<VectorKind>, captions: usize) -> String {
    let kind = kind.map_or("nothing to compare", VectorKind::title);
    let captions = shown::counted(captions, "caption");
    format!("\n{slot}: {captions}, by the {kind}\n")
}

fn named(captions: &Captions, place: usize) -> String {
    let caption = &captions.all[place];
    format!(
        "`{}`{}",
        shown::text(&caption.text),
        picture(captions, caption)
    )
}

fn picture(captions: &Captions, caption: &Caption) -> String {
    match (captions.pictures(caption).as_slice(), caption.origin) {
        ([], Origin::Store) => String::new(),
        ([], _) => " (a prompt)".to_owned(),
        ([one], _) => format!(" ({})", shown::path(one)),
        ([first, others @ ..], _) => {
            format!(" ({} and {} more)", shown::path(first), others.len())
        }
    }
}

fn describe_nearest(
    vectors: &CaptionVectors,
    found: Option<&NearestCaptions>,
    captions: &Captions,
) -> String {
    let mut text = head(&vectors.encoder.slot, vectors.kind, vectors.of.len());
    match found {
        None => text += "  the store has no sound entry of this caption\n",
        Some(found) => {
            for neighbor in &found.neighbors {
                text += &format!(
                    "  {:7.4}  {}\n",
                    neighbor.cosine,
                    named(captions, neighbor.caption)
                );
            }
        }
    }
    text
}

fn nearest_json(
    vectors: &CaptionVectors,
    found: Option<&NearestCaptions>,
    captions: &Captions,
) -> Value {
    let neighbors = found.map(|found| {
        let of = |n: &plumb::inspect::Neighbor| {
            let caption = &captions.all[n.caption];
            json!({
                "caption": caption.text,
                "pictures": captions.pictures(caption),
                "cosine": n.cosine,
            })
        };
        found.neighbors.iter().map(of).collect::<Vec<_>>()
    });
    json!({
        "slot": vectors.encoder.slot,
        "vectors": vectors.kind,
        "captions": vectors.of.len(),
        "neighbors": neighbors,
    })
}

fn captions_json(captions: &Captions) -> Value {
    let of = |caption: &Caption| json!({ "caption": caption.text, "pictures": captions.pictures(caption) });
    captions.all.iter().map(of).collect()
}

fn describe_set(found: &Neighbors, captions: &Captions, args: &Args) -> String {
    let mut text = head(&found.slot, found.vectors, found.captions);
    if let Some(typical) = found.typical_cosine {
        text += &format!("  two captions of this set typically have the cosine {typical:.4}\n");
    }
    let has_pictures = !captions.items.is_empty();
    let others = match has_pictures {
        true => format!(
            ", {} of them with other pictures",
            found.with_other_pictures
        ),
        false => String::new(),
    };
    text += &format!(
        "  {} with a cosine of at least {}{others}\n",
        shown::counted(found.near_duplicates, "pair"),
        args.above
    );
    for pair in found.pairs.iter().take(args.most) {
        let [a, b] = pair.captions.map(|place| named(captions, place));
        let same = match has_pictures && !pair.other_pictures {
            true => "  (no picture of its own)",
            false => "",
        };
        text += &format!("  {:7.4}  {a}\n           {b}{same}\n", pair.cosine);
    }
    let more = found.near_duplicates.saturating_sub(args.most as u64);
    if more > 0 {
        text += &format!("  ... and {more} more (--most, --above)\n");
    }
    if found.near_duplicates == 0 {
        text += &describe_closest(found, captions);
    }
    text
}

/// The nearest two, where none are near.
fn describe_closest(found: &Neighbors, captions: &Captions) -> String {
    let first = |of: &NearestCaptions| of.neighbors.first().map(|n| (of.caption, *n));
    let pairs = found.nearest.iter().filter_map(first);
    let nearest = pairs.max_by(|(_, a), (_, b)| a.cosine.total_cmp(&b.cosine));
    nearest.map_or(String::new(), |(caption, neighbor)| {
        format!(
            "  the nearest two: {:.4}  {}\n                           {}\n",
            neighbor.cosine,
            named(captions, caption),
            named(captions, neighbor.caption)
        )
    })
}

fn describe_contradictions(found: &Contradictions, captions: &Captions, most: usize) -> String {
    if captions.items.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{} of several different pictures\n",
        shown::counted(found.same_caption.len(), "caption")
    );
    for same in found.same_caption.iter().take(most) {
        let files = same.pictures.iter().take(3);
        let files: Vec<String> = files.map(|file| shown::path(file).to_string()).collect();
        let more = match same.pictures.len() - files.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        text += &format!(
            "  `{}`: {}{more}\n",
            shown::text(&same.caption),
            files.join(", ")
        );
    }
    text += &more(found.same_caption.len(), most);
    text += &format!(
        "\n{} with different captions\n",
        shown::counted(found.same_picture.len(), "picture")
    );
    for same in found.same_picture.iter().take(most) {
        for (n, (caption, file)) in same.captions.iter().enumerate() {
            let indent = if n == 0 { "  " } else { "    and " };
            text += &format!(
                "{indent}{}: `{}`\n",
                shown::path(file),
                shown::text(caption)
            );
        }
    }
    text + &more(found.same_picture.len(), most)
}

fn more(count: usize, most: usize) -> String {
    match count.saturating_sub(most) {
        0 => String::new(),
        n => format!("  ... and {n} more (--most)\n"),
    }
}
