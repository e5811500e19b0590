//! What an audit found of latents, in words.

use plumb::audit::{LatentsFinding, Moment, Other, Placed, Placement, Scaling};
use plumb::recipe::latents::Resampling;
use plumb::shown;

use super::MOST_NAMED;

/// What the latents are.
pub(super) fn words(found: &LatentsFinding) -> Vec<String> {
    let scaling = found.scaling.iter().map(|(scaling, n)| {
        let words = match scaling {
            Scaling::OfVae => "as the VAE gives them, unscaled",
            Scaling::OfDenoiser => "scaled as the denoiser takes them",
            Scaling::OfTrainer => {
                "scaled for the trainer's own statistics, which are not this VAE's"
            }
            Scaling::WithoutShift => "scaled without the base model's shift",
        };
        format!("{n} {words}")
    });
    let moment = found.moment.iter().map(|(moment, n)| {
        let words = match moment {
            Moment::Mean => "the mean",
            Moment::Sample => "a sample",
            Moment::Near => "near the mean",
        };
        format!("{n} {words}")
    });
    let mut facts: Vec<String> = scaling.chain(moment).collect();
    if facts.is_empty() {
        facts.push("none is of its picture".to_owned());
    }
    let compared = found.compared;
    let mut lines = vec![format!(
        "{:8} {compared} compared: {}",
        "latents",
        facts.join(", ")
    )];
    lines.extend(
        found
            .placed
            .iter()
            .map(|placed| format!("{:8} {}", "", placed_words(placed, compared))),
    );
    if let Some(stated) = &found.stated {
        lines.push(format!("{:8} {stated}", ""));
    }
    if !found.others.is_empty() {
        lines.push(format!(
            "{:8} {} of {compared} of another picture, or of another crop of it",
            "",
            found.others.len()
        ));
        let named = found.others.iter().take(MOST_NAMED);
        lines.extend(named.map(other_words));
    }
    if let Some(first) = found.other_sizes.first() {
        let px = |size: plumb::recipe::latents::Size| format!("{} x {}", size.width, size.height);
        lines.push(format!(
            "{:8} of another size than the Experiment's buckets: {}, first {}, {} px instead of {}",
            "",
            found.other_sizes.len(),
            shown::path(&first.path),
            px(first.cached),
            px(first.expected)
        ));
    }
    lines
}

/// `2 of 6 reproduced: cropped in the middle`
fn placed_words(placed: &Placed, compared: usize) -> String {
    let how = match (placed.reproduced, placed.expected) {
        (true, true) => "reproduced:",
        (true, false) => "reproduced only",
        (false, true) => "nearly:",
        (false, false) => "nearly, only",
    };
    let filters = placed.resampling.iter().filter_map(|filter| match filter {
        Resampling::Spec => None,
        Resampling::Lanczos3 => Some("Lanczos"),
        Resampling::Bicubic => Some("bicubic"),
        Resampling::Bilinear => Some("bilinear"),
    });
    let filters: Vec<&str> = filters.collect();
    let filter = match filters.is_empty() {
        true => String::new(),
        false => format!(", resized by another filter: {}", filters.join(" or ")),
    };
    let first = match placed.expected && placed.reproduced {
        true => String::new(),
        false => format!(", first {}", shown::path(&placed.first)),
    };
    let placement = placement(placed.placement, placed.mirrored);
    let window = placed.window.map_or_else(String::new, |window| {
        format!(
            ", {} frames from frame {} on at {} a second",
            window.frames, window.start, window.rate
        )
    });
    format!(
        "{} of {compared} {how} {placement}{window}{filter}{first}",
        placed.tensors
    )
}

fn placement(placement: Placement, mirrored: bool) -> String {
    let words = match placement {
        Placement::Whole => "whole pictures",
        Placement::Middle => "cropped in the middle",
        Placement::Left => "cropped at the left",
        Placement::Right => "cropped at the right",
        Placement::Top => "cropped at the top",
        Placement::Bottom => "cropped at the bottom",
        Placement::Elsewhere => "cropped elsewhere",
        Placement::Squashed => "squashed to the size, without a crop",
        Placement::Unscaled => "cropped in the middle without resizing",
    };
    format!("{words}{}", if mirrored { ", mirrored" } else { "" })
}

fn other_words(other: &Other) -> String {
    let path = shown::path(&other.path);
    match &other.nearest {
        Some(nearest) => format!(
            "  {path}; the nearest: {}, correlation {:.2}",
            placement(nearest.placement, nearest.mirrored),
            nearest.correlation
        ),
        None => format!("  {path}"),
    }
}
