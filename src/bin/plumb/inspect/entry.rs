//! `plumb inspect entry`: one entry of a store.

use std::path::PathBuf;

use plumb::cache::{EncoderId, Specs};
use plumb::inspect::{self, EntryAddress, EntryReport, PartReport, PictureUse};
use plumb::monitor::Monitor as _;
use plumb::recipe::diff::readable;
use plumb::shown::{self, counted};
use plumb::store::{ElementType, EntryRange, Store, StoreReader};
use serde_json::Value;

use super::subject::Subject;
use crate::CommandResult;
use crate::layout::{columns, size};
use crate::ui::{Failure, Ui};

/// Show an entry of a store: what made it, where it lies, its statistics and norms token by token, and who uses it.
///
/// By its caption (of an Experiment: one entry for each encoder; of a store: under every spec that it has), or by its
/// fingerprint, of which the beginning is enough. Every payload is compared with its digest; damage gives exit status 3.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The store's folder, or an Experiment file.
    #[arg(value_name = "STORE|EXPERIMENT")]
    place: PathBuf,
    /// The entry's fingerprint, or 4 or more of its first digits.
    #[arg(required_unless_present = "caption", conflicts_with = "caption")]
    fingerprint: Option<String>,
    /// The entry's caption.
    #[arg(long, value_name = "TEXT")]
    caption: Option<String>,
}

/// Digits of a fingerprint that are asked for at least: fewer fit many entries.
const LEAST_DIGITS: usize = 4;

/// Entries that are shown; more fit only a short beginning.
const MOST_ENTRIES: usize = 32;

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    let subject = Subject::open(&args.place, ui)?;
    let store = subject.store()?;
    let (reader, found) = match (&args.caption, &args.fingerprint) {
        (Some(caption), _) => by_caption(&subject, caption, ui)?,
        (None, digits) => by_digits(store, digits.as_deref().unwrap_or_default(), ui)?,
    };
    let mut reports = Vec::new();
    for (slot, address) in &found {
        let report = inspect::entry(store, &reader, address).map_err(Failure::error)?;
        reports.extend(report.map(|report| (slot.clone(), report)));
    }
    find_pictures(&subject, &mut reports, ui)?;
    let texts: Vec<String> = reports.iter().map(|(slot, r)| describe(slot, r)).collect();
    let values: Vec<&EntryReport> = reports.iter().map(|(_, report)| report).collect();
    ui.report(&values, &texts.join("\n\n"))?;
    for (_, report) in &reports {
        if let Some(damage) = &report.damage {
            ui.problem(damage);
        }
        for part in report.parts.iter().filter(|part| part.non_finite > 0) {
            ui.problem(&format!(
                "entry {}: part {}: {} numbers are NaN or infinite, expected none; encode it again",
                report.entry.short(),
                part.part,
                part.non_finite
            ));
        }
    }
    Ok(())
}

/// Which pictures of an Experiment the latents among the entries are of.
fn find_pictures(
    subject: &Subject,
    reports: &mut [(Option<String>, EntryReport)],
    ui: &Ui,
) -> CommandResult {
    let Some(specs) = subject.base().map(Specs::from) else {
        return Ok(());
    };
    if reports.iter().all(|(_, r)| r.spec != specs.latents) {
        return Ok(());
    }
    let captions = subject.captions(ui)?;
    for (_, report) in reports {
        report.pictures = inspect::pictures_of(&captions, &specs, &report.entry);
    }
    Ok(())
}

/// Pictures that are named of an entry.
const MOST_PICTURES: usize = 8;

fn pictures(of: &[PictureUse]) -> String {
    let line = |of: &PictureUse| {
        let file = shown::path(&of.file);
        match (&of.beside, of.is_reference) {
            (Some(picture), _) => {
                format!("of {file}, the reference of {}\n", shown::path(picture))
            }
            (None, true) => format!("of {file}, the reference of a prompt\n"),
            (None, false) => format!("of {file}\n"),
        }
    };
    let mut text: String = of.iter().take(MOST_PICTURES).map(line).collect();
    let more = of.len().saturating_sub(MOST_PICTURES);
    if more > 0 {
        text += &format!("and of {more} more\n");
    }
    text
}

type Named = (Option<String>, EntryAddress);

/// What was found, and the entries that it was found among.
type Found = (StoreReader, Vec<Named>);

fn tell_problems(reader: &StoreReader, ui: &Ui) {
    for problem in reader.problems() {
        ui.problem(&problem.to_string());
    }
}

fn by_caption(subject: &Subject, caption: &str, ui: &Ui) -> Result<Found, Failure> {
    let store = subject.store()?;
    let candidates: Vec<Named> = match subject.base() {
        None => {
            let found = inspect::entries_of_caption(store, caption).map_err(Failure::error)?;
            found.into_iter().map(|address| (None, address)).collect()
        }
        Some(base) => {
            let encoders = Specs::from(base).encoders.into_iter();
            let address = |encoder: EncoderId| {
                let (spec, entry) = (encoder.spec, encoder.entry(caption));
                (Some(encoder.slot), EntryAddress { spec, entry })
            };
            encoders.map(address).collect()
        }
    };
    let entries: Vec<_> = (candidates.iter())
        .map(|(_, address)| (address.spec, address.entry))
        .collect();
    let reader = store.reader_of_entries(&entries);
    let reader = reader.map_err(Failure::error)?;
    tell_problems(&reader, ui);
    let is_there = |(_, of): &Named| reader.contains(&of.spec, &of.entry);
    let (found, missing): (Vec<Named>, Vec<Named>) = candidates.into_iter().partition(is_there);
    let quoted = shown::text(caption);
    let missing = missing.iter().filter_map(|(slot, address)| {
        Some(format!(
            "{}: the store has no sound entry of `{quoted}` (entry {}); `plumb encode` makes it",
            slot.as_ref()?,
            address.entry.short()
        ))
    });
    let mut missing: Vec<String> = missing.collect();
    if found.is_empty() {
        return Err(Failure::error(match missing.is_empty() {
            false => missing.swap_remove(0),
            true => format!(
                "the store has no entry of `{quoted}` under any spec; captions are found as they stand, white space and case included"
            ),
        }));
    }
    for what in missing {
        ui.problem(&what);
    }
    Ok((reader, found))
}

fn by_digits(store: &Store, digits: &str, ui: &Ui) -> Result<Found, Failure> {
    let range = match digits.len() < LEAST_DIGITS {
        true => None,
        false => EntryRange::beginning(digits),
    };
    let range = range.ok_or_else(|| {
        Failure::usage(format!(
            "expected {LEAST_DIGITS} to 64 lower-case hexadecimal digits of an entry's fingerprint, found `{}`; with --caption an entry is found by its caption",
            shown::text(digits)
        ))
    })?;
    let reader = store.reader_of_range(&store.specs().map_err(Failure::error)?, range);
    let reader = reader.map_err(Failure::error)?;
    tell_problems(&reader, ui);
    let found = inspect::entries_of(&reader).map_err(Failure::error)?;
    match found.len() {
        0 => Err(Failure::error(format!(
            "the store has no entry whose fingerprint begins with {digits}"
        ))),
        n if n > MOST_ENTRIES => Err(Failure::error(format!(
            "{n} entries have a fingerprint that begins with {digits}; give more digits"
        ))),
        _ => Ok((
            reader,
            found.into_iter().map(|address| (None, address)).collect(),
        )),
    }
}

fn describe(slot: &Option<String>, report: &EntryReport) -> String {
    let record = &report.record;
    let slot = slot
        .as_ref()
        .map_or(String::new(), |slot| format!("{slot}: "));
    let mut text = format!(
        "{slot}entry {}\nof `{}`\n",
        report.entry,
        shown::text(&record.source)
    );
    text += &pictures(&report.pictures);
    let pads = record
        .tokens
        .len()
        .saturating_sub(record.token_count as usize);
    if !record.tokens.is_empty() {
        let cut = if record.truncated { ", CUT" } else { "" };
        let tokens = counted(record.token_count, "token");
        text += &format!("{tokens} and {}{cut}\n", counted(pads, "pad"));
    }
    text += &format!(
        "made by {} under spec {}\n",
        record.tool,
        report.spec.short()
    );
    text += &format!("  {}\n", shown::text(&report.made_by));
    text += &fields(&report.fields);
    text += &format!("in {}\n", shown::path(&report.file));
    text += &places(report);
    for part in &report.parts {
        if let Some(norms) = norms(part, record.token_count as usize) {
            text += &norms;
        }
    }
    text += match (&report.damage, report.parts.is_empty()) {
        (Some(_), _) => "DAMAGED: see below\n",
        (None, true) => "",
        (None, false) => "every part is what was written: its digest was compared\n",
    };
    match report.runs.as_slice() {
        [] => text += "no run uses it\n",
        runs => {
            for run in runs {
                let of = run.experiment.as_deref().unwrap_or("an unknown Experiment");
                text += &format!("used by {} of {}\n", run.id, shown::text(of));
            }
        }
    }
    text.trim_end().to_owned()
}

/// The spec's fields but those of the line above, each on a line of its own.
fn fields(spec: &Value) -> String {
    fn walk(path: &str, value: &Value, rows: &mut Vec<[String; 2]>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let path = match path {
                        "" => name.clone(),
                        _ => format!("{path}.{name}"),
                    };
                    walk(&path, value, rows);
                }
            }
            other => {
                let value = readable(Some(other));
                rows.push([format!("  {path}"), shown::text(&value).to_string()]);
            }
        }
    }
    let mut rows = Vec::new();
    walk("", spec, &mut rows);
    // The architecture is the checkpoint's; --json has it.
    rows.retain(|[path, _]| !path.starts_with("  architecture") && !path.is_empty());
    columns(&rows)
}

fn places(report: &EntryReport) -> String {
    let head = [
        "part",
        "type",
        "shape",
        "offset",
        "bytes",
        "mean",
        "std",
        "min",
        "max",
        "non-finite",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for part in &report.record.parts {
        let number = |value: f32| format!("{value:.4}");
        let s = &part.summary;
        let found = report.parts.iter().find(|read| read.part == part.part);
        rows.push([
            part.part.clone(),
            type_name(part.dtype),
            format!("{:?}", part.shape),
            part.offset.to_string(),
            size(part.length),
            number(s.mean),
            number(s.std),
            number(s.min),
            number(s.max),
            found
                .map_or(s.non_finite, |read| read.non_finite)
                .to_string(),
        ]);
    }
    columns(&rows)
}

fn type_name(dtype: ElementType) -> String {
    dtype.name().to_lowercase()
}

/// Marks of a scale from the smallest norm to the largest.
const MARKS: &[u8] = b".:-=+*#%@";

/// Marks on a line.
const LINE: usize = 80;

/// The norms of a sequence's rows, as marks of a scale; of a vector, its norm.
fn norms(part: &PartReport, token_count: usize) -> Option<String> {
    let finite = || part.norms.iter().copied().filter(|norm| norm.is_finite());
    let (least, most) = (finite().reduce(f64::min)?, finite().reduce(f64::max)?);
    if part.norms.len() == 1 {
        return Some(format!("norm of {}: {least:.4}\n", part.part));
    }
    let mark = |norm: &f64| match norm {
        norm if !norm.is_finite() => '!',
        norm if *norm == 0.0 => '0',
        norm => {
            let part = (norm - least) / (most - least).max(f64::MIN_POSITIVE);
            let place = (part * (MARKS.len() - 1) as f64).round() as usize;
            char::from(MARKS[place.min(MARKS.len() - 1)])
        }
    };
    let mut text = format!(
        "norms of {}, token by token: . {least:.3} to @ {most:.3}{}\n",
        part.part,
        match part.zero_rows {
            0 => String::new(),
            n => format!(", 0 where all is zero ({n} rows)"),
        }
    );
    let split = token_count.min(part.norms.len());
    for (what, norms) in [
        ("tokens", &part.norms[..split]),
        ("pads", &part.norms[split..]),
    ] {
        let marks: Vec<char> = norms.iter().map(mark).collect();
        for (n, line) in marks.chunks(LINE).enumerate() {
            let what = if n == 0 { what } else { "" };
            text += &format!("  {what:7}{}\n", line.iter().collect::<String>());
        }
    }
    Some(text)
}
