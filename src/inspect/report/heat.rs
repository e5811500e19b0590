//! Cosines of tokens under two recipes as a heat map: a row a caption, a column a token.

use maud::{Markup, html};

use super::gather::EncoderView;

/// Captions that are drawn: those that differ most.
const ROWS: usize = 48;
/// Tokens that are drawn.
const COLUMNS: usize = 128;
const CELL_WIDTH: usize = 6;
const CELL_HEIGHT: usize = 9;
/// How far from 1 a cosine is at most, for each shade but the last.
const SHADES: [(f64, &str); 6] = [
    (1e-6, "equal to 1e-6"),
    (1e-4, "to 0.0001"),
    (1e-3, "to 0.001"),
    (1e-2, "to 0.01"),
    (0.05, "to 0.05"),
    (0.2, "to 0.2"),
];

/// The captions whose tokens differ most, by their places among the shown; nothing where no cosine is known.
pub(super) fn heat_map(encoder: &EncoderView) -> Markup {
    let mut rows: Vec<(f64, usize, &[Option<f64>])> = Vec::new();
    for (place, strip) in encoder.strips.iter().enumerate() {
        let cosines = strip.as_ref().map_or(&[][..], |strip| &strip.cosines);
        let known: Vec<f64> = cosines.iter().flatten().copied().collect();
        if !known.is_empty() {
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            rows.push((mean, place, &cosines[..cosines.len().min(COLUMNS)]));
        }
    }
    let all = rows.len();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    rows.truncate(ROWS);
    let columns = rows.iter().map(|row| row.2.len()).max().unwrap_or(0);
    if columns == 0 {
        return html! {};
    }
    let (width, height) = (columns * CELL_WIDTH, rows.len() * CELL_HEIGHT);
    let title = format!(
        "Cosine of each token of the {} captions that differ most",
        rows.len()
    );
    html! {
        figure.heat {
            svg viewBox=(format!("0 0 {width} {height}")) width=(2 * width) role="img" aria-label=(title) {
                @for shade in 0..=SHADES.len() { path class=(format!("h{shade}")) d=(cells(&rows, shade)) {} }
                @for (n, row) in rows.iter().enumerate() {
                    rect.row data-open=(row.1) x="0" y=(n * CELL_HEIGHT) width=(width) height=(CELL_HEIGHT) {
                        title { "caption " (row.1 + 1) ", mean cosine " (format!("{:.4}", row.0)) }
                    }
                }
            }
            figcaption {
                "A row a caption (of " (all) ", those that differ most), a column a token; the cosine is below 1 by"
                @for (shade, (_, words)) in SHADES.iter().enumerate() { " " span.shade { svg.swatch viewBox="0 0 10 10" aria-hidden="true" { rect class=(format!("h{shade}")) width="10" height="10" {} } " " (words) } }
                " " span.shade { svg.swatch viewBox="0 0 10 10" aria-hidden="true" { rect class=(format!("h{}", SHADES.len())) width="10" height="10" {} } " more" }
            }
        }
    }
}

/// The cells of one shade, as the path of their rectangles; cells side by side are one.
fn cells(rows: &[(f64, usize, &[Option<f64>])], shade: usize) -> String {
    let mut path = String::new();
    for (n, (_, _, cosines)) in rows.iter().enumerate() {
        let mut start = 0;
        while start < cosines.len() {
            let run = cosines[start..].iter();
            let run = run.take_while(|c| c.map(shade_of) == Some(shade)).count();
            if run > 0 {
                let (x, y) = (start * CELL_WIDTH, n * CELL_HEIGHT);
                let wide = run * CELL_WIDTH;
                path += &format!("M{x} {y}h{wide}v{CELL_HEIGHT}h-{wide}z");
            }
            start += run.max(1);
        }
    }
    path
}

fn shade_of(cosine: f64) -> usize {
    let apart = 1.0 - cosine;
    let fits = SHADES.iter().position(|(most, _)| apart <= *most);
    fits.unwrap_or(SHADES.len())
}

#[cfg(test)]
mod tests {
    use super::{SHADES, cells, shade_of};

    #[test]
    fn cells_of_one_shade_side_by_side_are_one_rectangle() {
        assert_eq!(
            (shade_of(1.0), shade_of(0.995), shade_of(-1.0)),
            (0, 3, SHADES.len())
        );
        let row = [Some(1.0), Some(1.0), None, Some(1.0), Some(0.5)];
        let rows = [(0.9, 0, &row[..])];
        assert_eq!(cells(&rows, 0), "M0 0h12v9h-12zM18 0h6v9h-6z");
        assert_eq!(cells(&rows, SHADES.len()), "M24 0h6v9h-6z");
        assert_eq!(cells(&rows, 1), "");
    }
}
