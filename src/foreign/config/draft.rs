//! The Experiment that is being made: fields with where each comes from, then its text, tried until it holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use toml::Value as Toml;

use super::base::Change;
use super::knowledge::Status;
use crate::experiment::{self, Experiment};
use crate::models::Flavor;
use crate::shown;

/// Sections of a file, in the order in which people read it.
const SECTIONS: [&str; 7] = [
    "model",
    "model.files",
    "recipe",
    "recipe.deviate",
    "store",
    "adapter",
    "train",
];

/// Where fields of the recipe stand.
const DEVIATE: &str = "recipe.deviate.";

/// How a setting stands among others of its field: whether it is one that wins, its rank, its order.
pub(super) type Rank = (bool, u8, usize);

/// A value of a field, with the row it comes from.
#[derive(Clone, Debug)]
struct Slot {
    value: Toml,
    rank: Rank,
    rows: Vec<usize>,
}

/// What some data sets, or all, have a field of the run at.
#[derive(Clone, Debug)]
struct Claim {
    sets: Vec<usize>,
    value: Toml,
    rank: Rank,
    row: usize,
}

/// An Experiment that holds.
#[derive(Default)]
pub(super) struct Settled {
    pub(super) text: String,
    /// What was taken out.
    pub(super) refused: Vec<Change>,
    /// Of data sets that were left out, why.
    pub(super) notes: Vec<String>,
}

/// Fields of a run and of each of its data sets.
#[derive(Debug, Default)]
pub(super) struct Draft {
    run: BTreeMap<String, Slot>,
    sets: BTreeMap<usize, BTreeMap<String, Slot>>,
    /// By field of the run, what was set and for which data sets.
    claims: BTreeMap<String, Vec<Claim>>,
    /// Where each row's values are from, as a comment says it.
    origins: BTreeMap<usize, String>,
    /// Rows that another one's value took the place of.
    displaced: BTreeMap<usize, usize>,
    /// Lines at the top.
    pub(super) header: Vec<String>,
}

impl Draft {
    /// Sets a field, where nothing that counts before it is set. `sets`: the data sets it is about.
    pub(super) fn put(&mut self, field: &str, value: Toml, rank: Rank, row: usize, sets: &[usize]) {
        let slot = Slot {
            value,
            rank,
            rows: vec![row],
        };
        // Previews are of no data set, and there may be many.
        if !field.starts_with("dataset.") && !field.starts_with("sample.") {
            let claims = self.claims.entry(field.to_owned()).or_default();
            claims.push(Claim {
                sets: sets.to_vec(),
                value: slot.value.clone(),
                rank,
                row,
            });
        }
        let displaced = &mut self.displaced;
        let Some(name) = field.strip_prefix("dataset.") else {
            return place(&mut self.run, field, slot, displaced);
        };
        for set in sets {
            place(
                self.sets.entry(*set).or_default(),
                name,
                slot.clone(),
                displaced,
            );
        }
    }

    /// Sets a field that is no setting of the config.
    pub(super) fn ours(&mut self, field: &str, value: Toml) {
        let slot = Slot {
            value,
            rank: (true, u8::MAX, usize::MAX),
            rows: Vec::new(),
        };
        self.run.insert(field.to_owned(), slot);
    }

    /// Multiplies a field that is a whole number, 1 where it is not set, on behalf of a row, whose setting is `place`.
    pub(super) fn multiply(&mut self, field: &str, factor: i64, row: usize, place: &str) {
        let slot = self.run.entry(field.to_owned()).or_insert_with(|| Slot {
            value: Toml::Integer(1),
            rank: (true, u8::MAX, usize::MAX),
            rows: Vec::new(),
        });
        let Some(product) = slot.value.as_integer().map(|n| n.saturating_mul(factor)) else {
            return;
        };
        slot.value = Toml::Integer(product);
        let origin = match slot.rows.first().and_then(|first| self.origins.get(first)) {
            Some(origin) => format!("{origin}, times {place}"),
            None => place.to_owned(),
        };
        // The first row's is what a line says.
        self.origins
            .insert(slot.rows.first().copied().unwrap_or(row), origin);
        slot.rows.push(row);
    }

    /// The text of a field.
    pub(super) fn text_of(&self, field: &str) -> Option<String> {
        let slot = self.run.get(field)?;
        slot.value.as_str().map(str::to_owned)
    }

    /// The row whose value took the place of a row's.
    pub(super) fn instead_of(&self, row: usize) -> Option<usize> {
        self.displaced.get(&row).copied()
    }

    /// Takes out the fields of the recipe that the config has otherwise: their names, values and rows.
    pub(super) fn take_deviations(&mut self) -> Vec<(String, Toml, Vec<usize>)> {
        let is_one = |field: &String| field.starts_with(DEVIATE);
        let fields: Vec<String> = self.run.keys().filter(|f| is_one(f)).cloned().collect();
        let take = |field: String| {
            let slot = self.run.remove(&field)?;
            Some((field[DEVIATE.len()..].to_owned(), slot.value, slot.rows))
        };
        fields.into_iter().filter_map(take).collect()
    }

    /// Puts one of them back.
    pub(super) fn deviate(&mut self, name: &str, value: Toml, rows: Vec<usize>) {
        let rank = (true, u8::MAX, usize::MAX);
        let slot = Slot { value, rank, rows };
        self.run.insert(format!("{DEVIATE}{name}"), slot);
    }

    /// Says where a row's values are from.
    pub(super) fn origin(&mut self, row: usize, text: String) {
        self.origins.insert(row, text);
    }

    /// Whether a field is set.
    pub(super) fn has(&self, field: &str) -> bool {
        self.run.contains_key(field)
    }

    /// The fields that a row has in the end, with their values: of data sets the first's.
    pub(super) fn fields_of(&self, row: usize) -> Vec<(String, Toml)> {
        let of_run = self.run.iter().map(|(field, slot)| (field.clone(), slot));
        let of_sets = self.sets.values().flatten();
        let of_sets = of_sets.map(|(field, slot)| (format!("dataset.{field}"), slot));
        let mut found: Vec<(String, Toml)> = Vec::new();
        for (field, slot) in of_run
            .chain(of_sets)
            .filter(|(_, slot)| slot.rows.contains(&row))
        {
            if found.iter().all(|(known, _)| *known != field) {
                found.push((field, slot.value.clone()));
            }
        }
        found
    }

    /// Data sets without a folder, which are left out.
    pub(super) fn drop_sets_without_path(&mut self) -> usize {
        let before = self.sets.len();
        self.sets.retain(|_, set| set.contains_key("path"));
        before - self.sets.len()
    }

    /// What data sets have each their own value of, and a run has one: the settings that count for some of them.
    pub(super) fn differing(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (field, claims) in &self.claims {
            let of_set = |set: &usize| {
                let its = claims.iter().filter(|claim| claim.sets.contains(set));
                its.max_by_key(|claim| claim.rank)
            };
            let counting: Vec<Option<&Claim>> = self.sets.keys().map(of_set).collect();
            let mut values: Vec<String> = Vec::new();
            for claim in &counting {
                let value = claim.map_or("the default".to_owned(), |claim| written(&claim.value));
                if !values.contains(&value) {
                    values.push(value);
                }
            }
            let Some(slot) = self.run.get(field).filter(|_| values.len() > 1) else {
                continue;
            };
            values.truncate(8);
            let mut rows: Vec<usize> = counting.iter().flatten().map(|claim| claim.row).collect();
            rows.dedup();
            changes.push(Change {
                rows,
                status: Status::NotSupported,
                why: format!(
                    "data sets have it at {}, and plumb has one value for all: {field} = {}",
                    values.join(" and "),
                    written(&slot.value)
                ),
            });
        }
        changes
    }

    /// How many data sets there are.
    pub(super) fn set_count(&self) -> usize {
        self.sets.len()
    }

    /// Takes out what no Experiment can have, until it holds. A data set that lacks what it needs, as its references where they cannot be
    /// taken over, is left out whole: without them it would be trained on as something else.
    ///
    /// # Errors
    /// If it lacks what every Experiment needs.
    pub(super) fn settle(&mut self, file: &Path, flavor: &Flavor) -> Result<Settled, String> {
        let mut settled = Settled::default();
        // Each turn takes out a field or a data set.
        for _ in 0..=self.run.len() + self.sets.values().map(|set| set.len() + 1).sum::<usize>() {
            settled.text = self.text();
            let tried = Experiment::parse(file, settled.text.clone())
                .and_then(|experiment| experiment.settings(flavor).map(|_| ()));
            let (field, why) = match tried {
                Ok(()) => return Ok(settled),
                Err(experiment::Error::Value { field, why, .. }) => (field, why),
                Err(e) => return Err(format!("the Experiment would not hold: {e}")),
            };
            let set = self.set_of(&field).map(|(set, _)| set);
            let (rows, why) = if let Some(rows) = self.take(&field) {
                let is_kept = rows.iter().any(|row| !self.fields_of(*row).is_empty());
                let set = set.filter(|_| is_kept);
                let path = set.and_then(|set| self.sets.get(&set)?.get("path")?.value.as_str());
                let why = match path {
                    Some(path) => format!("`{}` goes without it: {why}", shown::text(path)),
                    None => why,
                };
                (rows, why)
            } else if let Some((path, rows)) = self.leave_out(&field) {
                let path = shown::text(&path);
                settled.notes.push(format!(
                    "the data set `{path}` is left out, since it would not hold: {why}"
                ));
                (rows, "its data set is left out, see the notes".to_owned())
            } else {
                return Err(format!("the Experiment would not hold: `{field}`: {why}"));
            };
            settled.refused.push(Change {
                rows,
                status: Status::NotSupported,
                why,
            });
        }
        Err("the Experiment would not hold".to_owned())
    }

    /// Removes the data set of a field, by the name that an error has for this; gives its folder, and the rows that came to nothing else.
    fn leave_out(&mut self, field: &str) -> Option<(String, Vec<usize>)> {
        let (set, _) = self.set_of(field)?;
        let left = self.sets.remove(&set)?;
        let path = left.get("path").and_then(|slot| slot.value.as_str());
        let path = path.unwrap_or_default().to_owned();
        let rows = left.values().flat_map(|slot| slot.rows.iter().copied());
        let rows = rows.filter(|row| self.fields_of(*row).is_empty()).collect();
        Some((path, rows))
    }

    /// The data set of a field, by the name that an error has for this: `dataset[1].resolution`; and the field's name there.
    fn set_of<'f>(&self, field: &'f str) -> Option<(usize, &'f str)> {
        let (number, name) = field.strip_prefix("dataset[")?.split_once("].")?;
        let mut number: usize = number.parse().ok()?;
        for (place, set) in &self.sets {
            let copies = copies(set).len();
            if number < copies {
                return Some((*place, name));
            }
            number -= copies;
        }
        None
    }

    /// Removes a field by the name that an error has for it: `dataset[1].resolution`, `sample.prompts`.
    fn take(&mut self, field: &str) -> Option<Vec<usize>> {
        // A place in a list is part of its field.
        let whole = |name: &str| name.split('[').next().unwrap_or(name).to_owned();
        let Some((place, name)) = self.set_of(field) else {
            return self.run.remove(&whole(field)).map(|slot| slot.rows);
        };
        let (set, name) = (self.sets.get_mut(&place)?, whole(name));
        let found = set
            .remove(&name)
            .or_else(|| (name == "resolution").then(|| set.remove("resolutions"))?);
        found.map(|slot| slot.rows)
    }

    /// The Experiment as a file.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.header {
            let _ = writeln!(text, "# {}", shown::line(line));
        }
        for section in SECTIONS {
            if section == "adapter" {
                for set in self.sets.values() {
                    for size in copies(set) {
                        text += "\n[[dataset]]\n";
                        self.lines(set, size.as_ref(), &mut text);
                    }
                }
            }
            self.section(section, &mut text);
        }
        self.section("sample", &mut text);
        text
    }

    fn section(&self, section: &str, text: &mut String) {
        let inside = |field: &str| {
            let rest = field.strip_prefix(section)?.strip_prefix('.')?;
            let is_deeper = SECTIONS.iter().any(|other| {
                other.len() > section.len() && field.starts_with(&format!("{other}."))
            });
            (!is_deeper).then(|| rest.to_owned())
        };
        let fields: BTreeMap<String, Slot> = self
            .run
            .iter()
            .filter_map(|(field, slot)| Some((inside(field)?, slot.clone())))
            .collect();
        if !fields.is_empty() {
            let _ = writeln!(text, "\n[{section}]");
            self.lines(&fields, None, text);
        }
    }

    fn lines(&self, fields: &BTreeMap<String, Slot>, size: Option<&Toml>, text: &mut String) {
        // What it is about first.
        let first =
            |field: &str| !matches!(field, "family" | "flavor" | "path" | "output" | "steps");
        let mut sorted: Vec<(&String, &Slot)> = fields.iter().collect();
        sorted.sort_by_key(|(field, _)| first(field));
        for (field, slot) in sorted {
            let (field, value) = match field.as_str() {
                "resolutions" => ("resolution", size.unwrap_or(&slot.value)),
                field => (field, &slot.value),
            };
            let _ = write!(text, "{field} = {}", written(value));
            let origins: Vec<&str> = slot
                .rows
                .iter()
                .filter_map(|row| self.origins.get(row).map(String::as_str))
                .collect();
            match origins.first() {
                Some(origin) => {
                    let _ = writeln!(text, " # {}", shown::text(origin));
                }
                None => text.push('\n'),
            }
        }
    }
}

fn place(
    fields: &mut BTreeMap<String, Slot>,
    field: &str,
    slot: Slot,
    displaced: &mut BTreeMap<usize, usize>,
) {
    match fields.get_mut(field) {
        // Prompts that stand one by one.
        Some(Slot {
            value: Toml::Array(list),
            rows,
            ..
        }) if field == "sample.prompts" => {
            if let Toml::Array(more) = slot.value {
                list.extend(more);
            }
            rows.extend(slot.rows);
        }
        Some(old) => {
            let (loser, winner) = match old.rank > slot.rank {
                true => (slot, &*old),
                false => (std::mem::replace(old, slot), &*old),
            };
            let winner = winner.rows.first().copied();
            let pairs = loser
                .rows
                .into_iter()
                .filter_map(|row| Some((row, winner?)));
            displaced.extend(pairs);
        }
        None => {
            fields.insert(field.to_owned(), slot);
        }
    }
}

/// A data set stands once for each of its sizes.
fn copies(set: &BTreeMap<String, Slot>) -> Vec<Option<Toml>> {
    match set.get("resolutions").map(|slot| &slot.value) {
        Some(Toml::Array(sizes)) => sizes.iter().cloned().map(Some).collect(),
        _ => vec![None],
    }
}

/// A value on one line.
fn written(value: &Toml) -> String {
    match value {
        // Whole numbers stay readable: 16 and not 16.0.
        Toml::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            format!("{number:.0}")
        }
        Toml::Float(number) if number.abs() < 1e-3 => format!("{number:e}"),
        Toml::String(text) => quoted(text),
        Toml::Array(items) => {
            let items: Vec<String> = items.iter().map(written).collect();
            format!("[{}]", items.join(", "))
        }
        value => value.to_string(),
    }
}

/// A text on one line, with every control character escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted += "\\n",
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
