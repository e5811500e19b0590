//! `plumb recipe explain`.

use std::path::{Path, PathBuf};

use plumb::monitor::Monitor as _;
use plumb::probe::Report;
use plumb::probe::report::CandidateReport;
use plumb::recipe::diff;
use plumb::recipe::explain::{self, EffectClass, ExplainedField, FieldNote, Subject};
use plumb::text::config;
use serde_json::{Value, json};

use super::named;
use crate::CommandResult;
use crate::layout::wrapped;
use crate::probe::{interval, probability};
use crate::ui::{Failure, Ui};

#[derive(clap::Args)]
pub(super) struct Args {
    /// What to explain: `recipe`, `tokenizer`, a kind of text encoder such as `clip`, or a recipe's name such as
    /// sd3/3.5-large.
    /// [default: recipe, or what the file says it is]
    #[arg(value_name = "WHAT")]
    what: Option<String>,
    /// Explain the fields of this file: a text encoder's config.json, or a tokenizer's JSON.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only fields whose name contains this.
    #[arg(long, value_name = "TEXT")]
    field: Option<String>,
    /// Also show what `plumb probe --out REPORT` measured of each field; for the recipe that it compared with.
    #[arg(long, value_name = "REPORT", conflicts_with = "config")]
    measured: Option<PathBuf>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> CommandResult {
    if args.measured.is_some() && args.what.as_ref().is_none_or(|name| !name.contains('/')) {
        let why =
            "--measured: expected a recipe's name before it, the one that the probe compared with";
        return Err(Failure::usage(why));
    }
    let asked = match args.what.as_deref() {
        None => None,
        Some(name) => match Subject::all().find(|subject| subject.word() == name) {
            Some(subject) => Some(subject),
            None if args.config.is_none() && name.contains('/') => {
                return explain_recipe(name, args, ui);
            }
            None => {
                return Err(Failure::usage(format!(
                    "cannot explain `{name}`: expected {}, or (without --config) a recipe's name such as sd3/3.5-large",
                    words(", ")
                )));
            }
        },
    };
    match &args.config {
        None => explain_table(asked.unwrap_or(Subject::Recipe), args, ui),
        Some(file) => explain_file(file, asked, args, ui),
    }
}

/// The words for what can be explained.
fn words(between: &str) -> String {
    let all: Vec<&str> = Subject::all().map(Subject::word).collect();
    all.join(between)
}

fn explain_recipe(name: &str, args: &Args, ui: &Ui) -> CommandResult {
    let recipe = named(name, None)?;
    let mut fields = explain::recipe(&recipe).map_err(Failure::error)?;
    fields.retain(|f| matches(args, std::slice::from_ref(&f.field)));
    let Some(file) = &args.measured else {
        let text = format!("{}\n{}", recipe.name(), explained(&fields, &|_| Vec::new()));
        return ui.report(&fields, &text);
    };
    let report =
        Report::read(file).map_err(|why| Failure::error(format!("{}: {why}", file.display())))?;
    let against = report
        .candidates
        .first()
        .map(|c| c.recipe.as_str())
        .unwrap_or_default();
    if recipe.name().to_string() != against {
        return Err(Failure::usage(format!(
            "{}: it compares with {against}; `plumb recipe explain {against} --measured {0}` shows it",
            file.display()
        )));
    }
    let measured = |field: &str| report.measured(field).into_iter().map(sentence).collect();
    let text = format!(
        "{}, as measured on {} with base model {}\n{}",
        recipe.name(),
        report.subjects().counted(),
        report.base.short(),
        explained(&fields, &measured)
    );
    let json: Vec<Value> = fields
        .iter()
        .map(|field| json!({ "explained": field, "measured": report.measured(&field.field) }))
        .collect();
    ui.report(&json, &text)
}

/// What was measured of a candidate: `with 154: worse, +0.0083 +- 0.0014 (p <0.0001)`.
fn sentence(candidate: &CandidateReport) -> String {
    let change = candidate.differs.first();
    let value = diff::readable(change.map(|change| &change.value));
    let fields: Vec<&str> = candidate
        .differs
        .iter()
        .map(|change| change.field.as_str())
        .collect();
    let found = match &candidate.difference {
        None => String::new(),
        Some(found) => format!(
            ", {} (p {})",
            interval(found, 5),
            probability(found.p_corrected)
        ),
    };
    format!(
        "{} = {value}: {}{found}",
        fields.join(", "),
        candidate.verdict.words()
    )
}

fn matches(args: &Args, names: &[String]) -> bool {
    args.field
        .as_ref()
        .is_none_or(|text| names.iter().any(|name| name.contains(text.as_str())))
}

fn explain_table(subject: Subject, args: &Args, ui: &Ui) -> CommandResult {
    let mut entries = explain::table(subject).map_err(Failure::error)?;
    entries.retain(|entry| matches(args, &entry.names));
    let mut text = format!("{}\n", subject.title());
    for entry in &entries {
        let default = match &entry.default {
            None => String::new(),
            Some(value) => format!(" (left out: {})", diff::readable(Some(value))),
        };
        text += &paragraph(
            entry.class,
            &format!("{}{default}", entry.names.join(", ")),
            &format!("{} [{}]", entry.why, entry.source),
        );
    }
    if entries.is_empty() {
        text += "\n  no such field\n";
    }
    text += &format!(
        "\nAlso: `explain WHAT` for WHAT of {}; `explain sd3/3.5-large` for a recipe's values; --config FILE for a file's\n",
        words(", ")
    );
    ui.report(&entries, &text)
}

/// The largest is a tokenizer.json; the largest published one has 33 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

fn explain_file(file: &Path, asked: Option<Subject>, args: &Args, ui: &Ui) -> CommandResult {
    let bytes = plumb::files::read(file, MAX_FILE_BYTES)
        .map_err(|e| Failure::error(format!("{}: {e}", file.display())))?;
    let content: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Failure::error(format!("{}: not JSON: {e}", file.display())))?;
    let subject = asked
        .or_else(|| Subject::of_file(&content))
        .ok_or_else(|| {
            Failure::usage(format!(
                "{}: nothing in it says whether it is a CLIP's, a T5's or a tokenizer's: \
             give `clip`, `t5` or `tokenizer` before --config",
                file.display()
            ))
        })?;
    let mut fields = explain::file(subject, &content).map_err(Failure::error)?;
    fields.retain(|f| matches(args, std::slice::from_ref(&f.field)));
    let name = file.display().to_string();
    let read = match subject {
        Subject::Encoder(kind) => Some(config::from_config(&content, kind, &name)),
        Subject::Tokenizer | Subject::Recipe => None,
    };
    let text = format!(
        "{name}: {}\n{}",
        subject.title(),
        explained(&fields, &|_| Vec::new())
    );
    let refused = match &read {
        Some(Err(e)) => Some(e.to_string()),
        _ => None,
    };
    let report = json!({ "subject": subject, "fields": fields, "refused": refused });
    ui.report(&report, &text)?;
    if let Some(why) = refused {
        ui.problem(&format!("plumb cannot use this file: {why}"));
    }
    Ok(())
}

/// The fields by what they do, those with one reason together; at last those of which nothing is known.
fn explained(fields: &[ExplainedField], measured: &dyn Fn(&str) -> Vec<String>) -> String {
    let mut text = String::new();
    for class in [
        EffectClass::Effective,
        EffectClass::Conditional,
        EffectClass::Inert,
    ] {
        let mut done: Vec<&FieldNote> = Vec::new();
        for entry in fields.iter().filter_map(|f| f.entry.as_ref()) {
            if entry.class != class || done.contains(&entry) {
                continue;
            }
            done.push(entry);
            let alike = fields.iter().filter(|f| f.entry.as_ref() == Some(entry));
            let what: Vec<String> = match class {
                EffectClass::Inert => alike.map(|f| f.field.clone()).collect(),
                EffectClass::Effective | EffectClass::Conditional => alike.map(valued).collect(),
            };
            let why = format!("{} [{}]", entry.why, entry.source);
            text += &paragraph(class, &what.join(", "), &why);
            let alike = fields.iter().filter(|f| f.entry.as_ref() == Some(entry));
            let mut told: Vec<String> = alike.flat_map(|f| measured(&f.field)).collect();
            told.dedup();
            for found in told {
                text += &wrapped(&found, "               measured: ", 25);
            }
        }
    }
    let unknown: Vec<&str> = fields
        .iter()
        .filter(|f| f.entry.is_none())
        .map(|f| f.field.as_str())
        .collect();
    if !unknown.is_empty() {
        text += &wrapped(&unknown.join(", "), "\n  unknown      ", 15);
        text += "               plumb does not read these, and nothing is known of them\n";
    }
    if fields.is_empty() {
        text += "\n  no such field\n";
    }
    text
}

/// `hidden_size = 768`, or what stands in for a field that the file leaves out.
fn valued(field: &ExplainedField) -> String {
    let default = field.entry.as_ref().and_then(|e| e.default.as_ref());
    match (&field.value, default) {
        (Some(value), _) => format!("{} = {}", field.field, diff::readable(Some(value))),
        (None, Some(default)) => format!(
            "{} left out: {} is used, as in transformers",
            field.field,
            diff::readable(Some(default))
        ),
        (None, None) => field.field.clone(),
    }
}

/// A class, what it is about, and below it the reason.
fn paragraph(class: EffectClass, what: &str, why: &str) -> String {
    let first = wrapped(what, &format!("\n  {class:11}  "), 15);
    format!("{first}{}", wrapped(why, &" ".repeat(15), 15))
}
