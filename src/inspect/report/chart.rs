//! Line charts as SVG whose colors follow the page's: strokes and fills are classes of its style sheet.
//!
//! Not `plotters`: it writes fixed colors and no classes, so that a chart could not follow a dark page.

use maud::{Markup, html};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 34.0;
/// Room for the label of y above its axis.
const TOP: f64 = 26.0;
const RIGHT: f64 = 12.0;
/// Points of a line that are drawn: more than there are pixels show nothing.
const MOST_POINTS: usize = 400;

/// A line of a chart.
pub(super) struct Series {
    pub(super) name: String,
    /// The class of its stroke.
    pub(super) class: &'static str,
    /// Rising in x.
    pub(super) points: Vec<(f64, f64)>,
    /// Whether each point has a dot.
    pub(super) dots: bool,
}

/// Lines over a common x, with a legend; `title` says in words what they show.
pub(super) fn lines(title: &str, (x_label, y_label): (&str, &str), series: &[Series]) -> Markup {
    let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let points = || series.iter().flat_map(|s| &s.points).filter(finite);
    let xs = range(points().map(|p| p.0));
    let ys = range(points().map(|p| p.1));
    let x = |value: f64| LEFT + (value - xs.0) / (xs.1 - xs.0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - ys.0) / (ys.1 - ys.0) * (HEIGHT - BOTTOM - TOP);
    let drawn: Vec<_> = series.iter().map(|s| (s, thinned(&s.points))).collect();
    html! {
        figure.chart {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
                @for (tick, label) in ticks(ys) {
                    line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y(tick))) y2=(px(y(tick))) {}
                    text.tick.end x=(LEFT - 8.0) y=(px(y(tick) + 4.0)) { (label) }
                }
                @for (tick, label) in ticks(xs) {
                    text.tick.mid x=(px(x(tick))) y=(HEIGHT - BOTTOM + 16.0) { (label) }
                }
                text.tick.end x=(WIDTH - RIGHT) y=(HEIGHT - 3.0) { (x_label) }
                text.tick x="4" y="13" { (y_label) }
                @for (series, points) in &drawn {
                    polyline class=(format!("line {}", series.class))
                        points=(points.iter().map(|p| format!("{},{}", px(x(p.0)), px(y(p.1)))).collect::<Vec<_>>().join(" ")) {}
                    @if series.dots {
                        @for point in points {
                            circle class=(format!("dot {}", series.class)) cx=(px(x(point.0))) cy=(px(y(point.1))) r="3" {
                                title { (number(point.0)) ": " (number(point.1)) }
                            }
                        }
                    }
                }
            }
            figcaption {
                @for series in series {
                    span class=(format!("key {}", series.class)) { (series.name) }
                }
            }
        }
    }
}

/// A position with one decimal.
pub(super) fn px(value: f64) -> String {
    format!("{value:.1}")
}

/// The mean of each of at most [`MOST_POINTS`] equally long stretches.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let points: Vec<(f64, f64)> = points.iter().filter(finite).copied().collect();
    let some = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |some: &[(f64, f64)]| {
        let count = some.len() as f64;
        let sum = some
            .iter()
            .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(some).map(mean).collect()
}

/// The smallest and the largest, never the same.
pub(super) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = values.fold((f64::INFINITY, f64::NEG_INFINITY), |ends, value| {
        (ends.0.min(value), ends.1.max(value))
    });
    match ends {
        (low, high) if low < high => ends,
        (0.0, _) => (-0.5, 0.5),
        // A learning rate of 1e-4 would lie on 0 between -0.5 and 0.5.
        (low, _) if low.is_finite() => (low - low.abs() / 2.0, low + low.abs() / 2.0),
        _ => (0.0, 1.0),
    }
}

/// Round numbers in a range, four to eight of them, with labels that tell them apart.
pub(super) fn ticks((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.iter().map(|s| s * power).find(|s| *s >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let ticks = (0..20).map(|n| (first + n) as f64 * step);
    let ticks: Vec<f64> = ticks
        .take_while(|tick| *tick <= high + step * 1e-9)
        .collect();
    let mut labels: Vec<String> = ticks.iter().map(|tick| number(*tick)).collect();
    if labels.windows(2).any(|pair| pair[0] == pair[1]) {
        let digits = (-step.log10()).ceil().clamp(0.0, 12.0) as usize;
        labels = ticks
            .iter()
            .map(|tick| format!("{tick:.digits$}"))
            .collect();
    }
    ticks.into_iter().zip(labels).collect()
}

/// A number with as many digits as say something.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        0.0 => return "0".to_owned(),
        _ if !(1e-4..1e6).contains(&size) => return format!("{value:.2e}"),
        _ if size >= 1000.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::{Series, lines, number, range, thinned, ticks};

    #[test]
    fn ticks_are_round_and_inside() {
        let places = |range| ticks(range).into_iter().map(|tick| tick.0);
        let labels = |range| ticks(range).into_iter().map(|tick| tick.1);
        assert!(places((0.0, 240.0)).eq([0.0, 50.0, 100.0, 150.0, 200.0]));
        assert!(labels((0.0, 240.0)).eq(["0", "50", "100", "150", "200"]));
        assert_eq!(ticks((0.11, 0.19)).len(), 4);
        // Of a loss that hardly moves.
        assert!(
            labels((1.2131, 1.2136))
                .eq(["1.2131", "1.2132", "1.2133", "1.2134", "1.2135", "1.2136"])
        );
        assert_eq!(range([2.0].into_iter()), (1.0, 3.0));
        assert_eq!(range([-0.5].into_iter()), (-0.75, -0.25));
        assert_eq!(range([0.0].into_iter()), (-0.5, 0.5));
        assert_eq!(range([].into_iter()), (0.0, 1.0));
        assert_eq!(number(0.25), "0.25");
        assert_eq!(
            (number(1500.0), number(3e-7)),
            ("1500".to_owned(), "3.00e-7".to_owned())
        );
    }

    #[test]
    fn long_lines_are_thinned_and_what_is_no_number_is_left_out() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|n| (f64::from(n), 1.0)).collect();
        points[7].1 = f64::NAN;
        assert!(thinned(&points).len() <= 401);
        let series = Series {
            name: "<loss>".to_owned(),
            class: "a",
            points,
            dots: false,
        };
        let drawn = lines("\"x\"", ("step", "loss"), &[series]).into_string();
        assert!(!drawn.contains("NaN") && drawn.contains("&lt;loss&gt;"));
    }
}
