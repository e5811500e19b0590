//! The recipe beside the base model's own.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde_json::Value;

use super::super::Error;
use super::probe;
use crate::base_model::BaseModel;
use crate::probe::report::Report as ProbeReport;
use crate::recipe::diff::readable;
use crate::recipe::explain::{self, ExplainedField};
use crate::recipe::{self, Recipe, RecipeName};

/// A field of the recipe, and of the base model's own.
pub(super) struct Row {
    pub(super) field: String,
    pub(super) ours: Option<Value>,
    pub(super) reference: Option<Value>,
    /// What is known of it.
    note: Option<explain::FieldNote>,
    /// Where the base model's value is from.
    source: Option<String>,
}

impl Row {
    pub(super) fn differs(&self) -> bool {
        self.ours != self.reference
    }
}

/// Every field of both recipes, those that differ first.
///
/// # Errors
/// If the base model has no recipe of its own, which the tests rule out.
pub(super) fn rows(base: &BaseModel) -> Result<Vec<Row>, recipe::Error> {
    let name = base.recipe.name();
    let reference = Recipe::shipped(&RecipeName::reference(&name.family, &name.flavor))?;
    let by_field = |recipe: &Recipe| -> Result<BTreeMap<String, ExplainedField>, recipe::Error> {
        let fields = explain::recipe(recipe)?.into_iter();
        Ok(fields.map(|f| (f.field.clone(), f)).collect())
    };
    let (ours, theirs) = (by_field(&base.recipe)?, by_field(&reference)?);
    let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    names.sort();
    names.dedup();
    let row = |field: &String| {
        let (our, their) = (ours.get(field), theirs.get(field));
        Row {
            field: field.clone(),
            ours: our.and_then(|f| f.value.clone()),
            reference: their.and_then(|f| f.value.clone()),
            note: our.or(their).and_then(|f| f.entry.clone()),
            source: reference.fields().get(field).map(|f| f.source.clone()),
        }
    };
    let mut rows: Vec<Row> = names.into_iter().map(row).collect();
    rows.sort_by_key(|row| !row.differs());
    Ok(rows)
}

/// The section.
pub(super) fn section(base: &BaseModel, probe: Option<&ProbeReport>) -> Result<Markup, Error> {
    let rows = rows(base).map_err(crate::base_model::Error::from);
    let rows = rows.map_err(crate::encode::Error::from)?;
    let differ = rows.iter().filter(|row| row.differs()).count();
    let count = rows.len();
    let name = base.recipe.name();
    Ok(html! {
        section #recipe aria-labelledby="h-recipe" {
            h2 #h-recipe { "Recipe" }
            p { b { (name) } ", " (base.recipe.title()) ". Fingerprint " code { (base.recipe.fingerprint().short()) } "." }
            @if differ == 0 {
                p.good { "Every one of its " (count) " fields is as the base model's own recipe (" (name.family) "/" (name.flavor) ":reference) has it." }
            } @else {
                p.warn { b { (differ) " of " (count) " fields differ" } " from the base model's own recipe (" (name.family) "/" (name.flavor) ":reference)." }
                (table(rows.iter().filter(|row| row.differs()), probe))
            }
            details {
                summary { "All " (count) " fields" }
                (table(rows.iter(), probe))
            }
        }
    })
}

fn table<'a>(rows: impl Iterator<Item = &'a Row>, probe: Option<&ProbeReport>) -> Markup {
    html! {
        div.wide {
            table {
                thead { tr { th scope="col" { "field" } th scope="col" { "here" } th scope="col" { "base model" } th scope="col" { "what it does" } } }
                tbody {
                    @for row in rows {
                        tr.differs[row.differs()] {
                            th scope="row" { code { (row.field) } @if row.differs() { " " span.mark { "differs" } } }
                            td { (readable(row.ours.as_ref())) }
                            td title=[row.source.as_ref()] { (readable(row.reference.as_ref())) }
                            td {
                                @match &row.note {
                                    Some(note) => { b { (note.class) } ": " (note.why) " " span.fine { (known_by(&note.source)) } }
                                    None => { "not known, so it may matter" }
                                }
                                @if row.differs() { (cost(row, probe)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How it is known what a field does.
fn known_by(source: &str) -> String {
    match source {
        "measured" => "(tried on small models)".to_owned(),
        source => format!("(source: {source})"),
    }
}

/// What a probe measured of a field that differs.
fn cost(row: &Row, report: Option<&ProbeReport>) -> Markup {
    let measured = report.and_then(|report| {
        probe::measured(
            report,
            &row.field,
            row.ours.as_ref(),
            row.reference.as_ref(),
        )
    });
    html! {
        br;
        @match measured {
            Some(measured) => { b { "Measured" } ", " (measured) }
            None if report.is_some() => span.fine { "This probe did not measure what it costs." },
            None => span.fine { "What it costs is not measured; " code { "plumb probe" } " does that." },
        }
    }
}
