//! The captions in the plane of their first two principal components, as SVG.

use maud::{Markup, html};

use super::chart::{px, range};
use super::gather::EncoderView;
use crate::inspect::captions::{Caption, Origin};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 14.0;

/// A point for each caption that has a vector; its number is the caption's place among the shown.
pub(super) fn map(encoder: &EncoderView, captions: &[&Caption]) -> Markup {
    let there = || encoder.points.iter().flatten();
    let (xs, ys) = (range(there().map(|p| p[0])), range(there().map(|p| p[1])));
    // One scale for both axes: distances on the map are distances.
    let scale =
        ((WIDTH - 2.0 * MARGIN) / (xs.1 - xs.0)).min((HEIGHT - 2.0 * MARGIN) / (ys.1 - ys.0));
    let x = |value: f64| WIDTH / 2.0 + (value - (xs.0 + xs.1) / 2.0) * scale;
    let y = |value: f64| HEIGHT / 2.0 - (value - (ys.0 + ys.1) / 2.0) * scale;
    let points = encoder.points.iter().enumerate();
    let points: Vec<_> = points
        .filter_map(|(n, point)| Some((n, (*point)?)))
        .collect();
    let [first, second] = encoder.explained.map(|part| 100.0 * part);
    let kind = encoder.kind.map_or("", |kind| kind.title());
    html! {
        figure.map {
            figcaption { b { (encoder.slot) } " " (kind) }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) tabindex="0" role="group"
                aria-label=(format!("Map of {} captions under {}. Arrow keys move to the nearest caption in a direction, Enter opens it.", points.len(), encoder.slot)) {
                line.axis x1=(px(x(0.0))) x2=(px(x(0.0))) y1="0" y2=(HEIGHT) {}
                line.axis x1="0" x2=(WIDTH) y1=(px(y(0.0))) y2=(px(y(0.0))) {}
                @for (n, point) in &points {
                    circle.prompt[captions[*n].origin == Origin::Prompt].lone[encoder.is_far(*n)]
                        data-n=(n) cx=(px(x(point[0]))) cy=(px(y(point[1]))) r="4" {}
                }
            }
            p.fine { "across " (format!("{first:.0}")) " %, up " (format!("{second:.0}")) " % of the variance" }
        }
    }
}

impl EncoderView {
    fn is_far(&self, place: usize) -> bool {
        self.near.far.iter().any(|pair| pair.places[0] == place)
    }
}
