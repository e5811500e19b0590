//! What differs, in words and tables.

use plumb::audit::Verdict;
use plumb::cache::difference::{
    Compared, RowDifference, RowsDifference, SequenceDifference, VectorDifference,
};
use plumb::inspect::diff::{
    CaptionDiff, EncoderDiff, EncoderSetDiff, Pairing, Received, SetDiff, Spread,
};
use plumb::recipe::diff::{FieldDiff, readable};
use plumb::shown;

use crate::inspect::percent;
use crate::layout::columns;

/// What made a side that is a cache, as far as it can be told.
fn made(pairing: &Pairing, sides: &[String; 2]) -> String {
    let mut text = String::new();
    for (made, side) in pairing.made.iter().zip(sides) {
        let Some(made) = made else { continue };
        let like = match (made.as_experiment, made.like.as_str()) {
            (true, _) => "as the Experiment does",
            (false, "reference") => "as the authors' own code does",
            (false, like) => &format!("as {like} does, or nearly so"),
        };
        let weights = made.weights.map_or(String::new(), |weights| {
            format!(", with {}", weights.words())
        });
        let then = made.after.words();
        let then = then.map_or(String::new(), |words| format!(", then {words}"));
        let then = format!("{weights}{then}");
        let counts = shown::part_of(made.matching, made.compared, "entry");
        text += &match made.verdict {
            Verdict::Reproduced => {
                format!("  {side}: made {like}{then}; it gives {counts}\n")
            }
            Verdict::NotReproduced => format!(
                "  {side}: none of {} gives it; the nearest, with {counts}, makes it {like}{then}\n",
                shown::counted(made.tried, "recipe")
            ),
        };
    }
    text
}

/// The parameters that differ, the first of them first.
fn parameters(pairing: &Pairing) -> String {
    let fields = &pairing.parameters.fields;
    let line = |field: &FieldDiff| {
        let value = |value: &Option<_>| shown::text(&readable(value.as_ref())).to_string();
        format!(
            "{}: {} | {}",
            field.field,
            value(&field.wanted),
            value(&field.found)
        )
    };
    match (fields.split_first(), pairing.specs) {
        (None, [Some(_), Some(_)]) if pairing.made.iter().any(Option::is_some) => {
            "  no parameter differs that these captions tell\n".to_owned()
        }
        (None, [Some(a), Some(b)]) if a == b => "  same parameters\n".to_owned(),
        (None, _) => String::new(),
        (Some((first, rest)), _) => {
            let mut text = format!("  first differs {}\n", line(first));
            for field in rest {
                text += &format!("  also          {}\n", line(field));
            }
            text
        }
    }
}

fn title(pairing: &Pairing, sides: &[String; 2]) -> String {
    match &pairing.slots {
        [Some(_), Some(_)] => format!("\n{}\n", pairing.name()),
        [Some(slot), None] => format!("\n{slot}\n  only in {}\n", sides[0]),
        [None, Some(slot)] => format!("\n{slot}\n  only in {}\n", sides[1]),
        [None, None] => String::new(),
    }
}

pub(super) fn one(report: &CaptionDiff, most: usize) -> String {
    let [a, b] = &report.captions;
    let mut text = match a == b {
        true => format!(
            "`{}`\nfirst:  {}\nsecond: {}\n",
            shown::text(a),
            report.sides[0],
            report.sides[1]
        ),
        false => format!(
            "first:  `{}` under {}\nsecond: `{}` under {}\n",
            shown::text(a),
            report.sides[0],
            shown::text(b),
            report.sides[1]
        ),
    };
    for encoder in &report.encoders {
        text += &title(&encoder.pairing, &report.sides);
        text += &made(&encoder.pairing, &report.sides);
        text += &parameters(&encoder.pairing);
        text += &describe_encoder(encoder, &report.sides, most);
    }
    if let Some(received) = &report.received {
        text += &describe_received(received);
    }
    text
}

fn describe_encoder(encoder: &EncoderDiff, sides: &[String; 2], most: usize) -> String {
    let Some(difference) = &encoder.difference else {
        let lacks = encoder
            .token_counts
            .iter()
            .zip(sides)
            .zip(&encoder.pairing.slots);
        let lacks = lacks.filter(|((count, _), slot)| count.is_none() && slot.is_some());
        return lacks
            .map(|((_, side), _)| format!("  no sound entry in {side}\n"))
            .collect();
    };
    let mut text = String::new();
    if difference.equal() {
        text += "  the same numbers\n";
    } else if encoder.pairing.specs[0] == encoder.pairing.specs[1]
        && encoder.tokens[0] == encoder.tokens[1]
        && !encoder.tokens[0].is_empty()
        && encoder.pairing.made.iter().all(Option::is_none)
    {
        text += "  one spec and other numbers: one of both was computed on another device or by another version\n";
    }
    match &difference.hidden {
        Compared::Both(hidden) => {
            text += &rows_line("true tokens", &hidden.tokens);
            text += &rows_line("pads", &hidden.pads);
            if !hidden.tokens.equal() {
                text += &table(hidden, &encoder.tokens, most);
            }
        }
        other => text += &odd("sequence", other),
    }
    match &difference.pooled {
        Compared::Both(pooled) => text += &format!("  {:13} {}\n", "pooled", vector(pooled)),
        other => text += &odd("pooled", other),
    }
    text
}

fn odd<T>(what: &str, found: &Compared<T>) -> String {
    let says = match found {
        Compared::Neither | Compared::Both(_) => return String::new(),
        Compared::OnlyFirst => "only on the first side".to_owned(),
        Compared::OnlySecond => "only on the second side".to_owned(),
        Compared::Widths(a, b) => format!("{a} channels | {b} channels: not to be compared"),
    };
    format!("  {what:13} {says}\n")
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn vector(d: &VectorDifference) -> String {
    if d.equal {
        return "equal".to_owned();
    }
    let finite = match d.non_finite {
        0 => String::new(),
        n => format!(", {n} numbers NaN or infinite"),
    };
    format!(
        "cosine {}, largest difference {}, norms {:.4} | {:.4}{finite}",
        number(d.cosine, 6),
        number(d.max_abs, 6),
        d.norms[0],
        d.norms[1]
    )
}

/// Some rows in a line; nothing where neither side has any.
fn rows_line(what: &str, rows: &RowsDifference) -> String {
    let mut parts = Vec::new();
    let both = rows.rows.len();
    if both > 0 {
        let equal = rows.rows.iter().filter(|row| row.difference.equal).count();
        parts.push(match equal == both {
            true => format!("{both} rows, equal"),
            false => {
                let relative = rows.relative().map(|part| part * 100.0);
                let relative = relative.map_or(String::new(), |part| format!(" ({part:.2} %)"));
                format!(
                    "{both} rows, {equal} equal; cosine {} mean, {} least; largest difference {}{relative}",
                    number(rows.mean_cosine(), 6),
                    number(rows.min_cosine(), 6),
                    number(rows.max_abs(), 6)
                )
            }
        });
    }
    for (rows, side) in [(&rows.only_first, "first"), (&rows.only_second, "second")] {
        if !rows.is_empty() {
            parts.push(format!("{} only on the {side} side", rows.len()));
        }
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("  {what:13} {}\n", parts.join("; ")),
    }
}

/// The rows of true tokens that differ most, in their order.
fn table(hidden: &SequenceDifference, tokens: &[Vec<String>; 2], most: usize) -> String {
    let word = |side: usize, row: usize| {
        let word = tokens[side].get(row).map_or("?", String::as_str);
        shown::text(word).to_string()
    };
    let mut rows: Vec<&RowDifference> = hidden.tokens.rows.iter().collect();
    let total = rows.len();
    rows.sort_by(|a, b| {
        let cosine = |row: &RowDifference| row.difference.cosine.unwrap_or(f64::NEG_INFINITY);
        cosine(a).total_cmp(&cosine(b)).then(a.rows.cmp(&b.rows))
    });
    rows.truncate(most);
    rows.sort_by_key(|row| row.rows);
    let head = ["  row", "token", "cosine", "largest difference"].map(str::to_owned);
    let mut lines = vec![head];
    for row in &rows {
        let [a, b] = row.rows;
        let (place, token) = (
            if a == b {
                a.to_string()
            } else {
                format!("{a} | {b}")
            },
            match row.same_token {
                Some(false) => format!("{} | {}", word(0, a), word(1, b)),
                _ => word(0, a),
            },
        );
        let (cosine, largest) = match row.difference.equal {
            true => ("equal".to_owned(), String::new()),
            false => (
                number(row.difference.cosine, 6),
                number(row.difference.max_abs, 6),
            ),
        };
        lines.push([format!("  {place}"), token, cosine, largest]);
    }
    let mut text = columns(&lines);
    if rows.iter().all(|row| row.difference.equal) {
        // The rows that both sides have are equal: what differs is on one side alone.
        text.clear();
    } else if rows.len() < total {
        text += &format!(
            "  ... these {} rows differ most, of {total} (--rows)\n",
            rows.len()
        );
    }
    for (side, alone, what) in [
        (0, &hidden.tokens.only_first, "first"),
        (1, &hidden.tokens.only_second, "second"),
    ] {
        if !alone.is_empty() {
            let words = alone.iter().take(most).map(|row| word(side, *row));
            let words: Vec<String> = words.collect();
            let more = match alone.len() - words.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            text += &format!("  only {what}: {}{more}\n", words.join(" "));
        }
    }
    text
}

fn describe_received(received: &Received) -> String {
    let mut text = "\nwhat the denoiser receives\n".to_owned();
    for field in &received.assembly.fields {
        let value = |value: &Option<_>| readable(value.as_ref());
        text += &format!(
            "  differs       {}: {} | {}\n",
            field.field,
            value(&field.wanted),
            value(&field.found)
        );
    }
    match &received.context {
        Compared::Both(context) => text += &rows_line("context", &context.tokens),
        other => text += &odd("context", other),
    }
    match &received.pooled {
        Compared::Both(pooled) if pooled.norms != [0.0; 2] => {
            text += &format!("  {:13} {}\n", "pooled", vector(pooled));
        }
        Compared::Both(_) => {}
        other => text += &odd("pooled", other),
    }
    if received.unmasked[0] != received.unmasked[1] {
        let rows = |n: Option<usize>| n.map_or("all".to_owned(), |n| n.to_string());
        text += &format!(
            "  {:13} {} | {}\n",
            "unmasked rows",
            rows(received.unmasked[0]),
            rows(received.unmasked[1])
        );
    }
    text
}

pub(super) fn all(report: &SetDiff) -> String {
    let mut text = format!(
        "{}\nfirst:  {}\nsecond: {}\n",
        shown::counted(report.captions, "caption"),
        report.sides[0],
        report.sides[1]
    );
    for encoder in &report.encoders {
        text += &title(&encoder.pairing, &report.sides);
        text += &made(&encoder.pairing, &report.sides);
        text += &parameters(&encoder.pairing);
        text += &describe_set(encoder, &report.sides);
    }
    text
}

fn describe_set(encoder: &EncoderSetDiff, sides: &[String; 2]) -> String {
    if encoder.pairing.slots.iter().any(Option::is_none) {
        return String::new();
    }
    let mut text = format!(
        "  {} compared, {} equal",
        shown::counted(encoder.compared, "caption"),
        encoder.equal
    );
    if encoder.equal > 0 && encoder.equal < encoder.compared {
        text += &format!(" ({})", percent(encoder.equal, encoder.compared));
    }
    text += "\n";
    for (missing, side) in encoder.missing.iter().zip(sides) {
        if *missing > 0 {
            text += &format!("  {missing} without a sound entry in {side}\n");
        }
    }
    if encoder.other_shapes > 0 {
        text += &format!(
            "  {} with parts of other widths, or parts that one side lacks\n",
            encoder.other_shapes
        );
    }
    if encoder.compared == encoder.equal {
        return text;
    }
    for (what, spread) in [
        ("true tokens", &encoder.tokens),
        ("pads", &encoder.pads),
        ("pooled", &encoder.pooled),
    ] {
        text += &spread_line(what, spread);
    }
    if !encoder.worst.is_empty() {
        text += "  the captions that differ most, with their least cosine\n";
    }
    for worst in &encoder.worst {
        text += &format!(
            "    {:8.6}  `{}`\n",
            worst.cosine,
            shown::text(&worst.caption)
        );
    }
    text
}

fn spread_line(what: &str, spread: &Spread) -> String {
    let mut parts = Vec::new();
    if spread.rows > 0 {
        parts.push(match spread.equal == spread.rows {
            true => format!("{} rows, equal", spread.rows),
            false => format!(
                "{} rows, {} equal; cosine {} mean, {} least; largest difference {}",
                spread.rows,
                spread.equal,
                number(spread.mean_cosine, 6),
                number(spread.min_cosine, 6),
                number(spread.max_abs, 6)
            ),
        });
    }
    for (rows, side) in spread.one_sided.iter().zip(["first", "second"]) {
        if *rows > 0 {
            parts.push(format!("{rows} only on the {side} side"));
        }
    }
    if spread.non_finite > 0 {
        parts.push(format!("{} numbers NaN or infinite", spread.non_finite));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("  {what:13} {}\n", parts.join("; ")),
    }
}
