//! Laying out text for a terminal.

/// Columns of the terminal that text is wrapped to.
const WIDTH: usize = 100;

/// Cells under one another, two spaces apart, nothing after the last.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths).filter(|(_, width)| **width > 0) {
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// `text` broken at spaces, after `first`, later lines indented.
pub(crate) fn wrapped(text: &str, first: &str, indent: usize) -> String {
    wrapped_to(WIDTH, text, first, indent)
}

/// The same, to `width` columns.
pub(crate) fn wrapped_to(width: usize, text: &str, first: &str, indent: usize) -> String {
    let mut lines = first.to_owned();
    let mut used = first.trim_start_matches('\n').chars().count();
    let mut fresh = true;
    for word in text.split(' ') {
        let length = word.chars().count();
        if !fresh && used + 1 + length > width {
            lines += "\n";
            lines += &" ".repeat(indent);
            used = indent;
            fresh = true;
        }
        if !fresh {
            lines += " ";
            used += 1;
        }
        lines += word;
        used += length;
        fresh = false;
    }
    lines + "\n"
}

/// A size in the unit that suits it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} bytes")
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}
