//! What an import came to: the Experiment, what became of every setting, and how the conditioning differs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::knowledge::Status;
use crate::recipe::Diff;
use crate::recipe::diff::readable;
use crate::shown;

/// A setting, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which of the files it stands in.
    pub file: usize,
    /// Its line, where the format tells.
    pub line: Option<usize>,
    /// Its place: `config.process[0].train.lr`, `--network_dim`.
    pub setting: String,
    /// What is written, or counts where nothing is.
    pub value: String,
    /// Whether it is written; else it is the trainer's default.
    pub written: bool,
    /// What becomes of it.
    pub status: Status,
    /// The fields of the Experiment that have it, with their values.
    pub fields: BTreeMap<String, serde_json::Value>,
    /// Why, in words.
    pub why: Option<String>,
    /// Where the trainer's source says so: file and lines, at the revision of the report.
    pub source: Option<String>,
}

/// How the trainer's conditioning differs from the base model's own.
#[derive(Clone, Debug, Serialize)]
pub struct RecipeChoice {
    /// The base model's recipe, as its authors' code has it.
    pub reference: String,
    /// The trainer's; none where plumb has no recipe of it for this model.
    pub trainers: Option<String>,
    /// Whether the Experiment keeps the trainer's.
    pub kept: bool,
    /// Fields in which they differ: `wanted` is the base model's.
    pub differences: Diff,
    /// By field, what the trainer's recipe says of it.
    pub notes: BTreeMap<String, String>,
}

/// A config brought into plumb.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The files it was read from.
    pub files: Vec<PathBuf>,
    /// Whose they are.
    pub trainer: &'static str,
    /// The trainer, for a person.
    pub title: String,
    /// The trainer's repository and the revision that sources are of, then others that they name.
    pub revision: String,
    /// The base model's family.
    pub family: String,
    /// Its flavor.
    pub flavor: String,
    /// How the conditioning is made.
    pub recipe: RecipeChoice,
    /// What became of every setting.
    pub settings: Vec<Row>,
    /// What else a person should know.
    pub notes: Vec<String>,
    /// The Experiment, as TOML.
    pub experiment: String,
}

impl Imported {
    /// Settings that are written in the files and of which something is lost, or an effective default of the trainer.
    pub fn lost(&self) -> usize {
        self.settings
            .iter()
            .filter(|row| row.status.is_lost())
            .count()
    }

    /// The table for a person.
    pub fn table(&self) -> String {
        let mut text = format!("{}, for {}/{}\n", self.title, self.family, self.flavor);
        if let [file] = self.files.as_slice() {
            text = format!("{}: {text}", shown::path(file));
        }
        for status in Status::ALL {
            let rows: Vec<&Row> = self.of(status, true).collect();
            self.group(&heading(status, self.trainer), &rows, &mut text);
        }
        let defaults: Vec<&Row> = Status::ALL
            .iter()
            .flat_map(|s| self.of(*s, false))
            .collect();
        // Of a variable alone nobody knows which options it is.
        let is_any = |row: &Row| row.written && row.setting.starts_with('$');
        let place = match self.settings.iter().any(is_any) {
            true => " in what can be read",
            false => "",
        };
        let title = format!(
            "not written{place}, so that {}'s defaults count",
            self.trainer
        );
        self.group(&title, &defaults, &mut text);
        text += &self.conditioning();
        for note in &self.notes {
            let _ = write!(text, "\nnote: {note}");
        }
        let _ = write!(text, "\nsources: {}\n", self.revision);
        text
    }

    fn of(&self, status: Status, written: bool) -> impl Iterator<Item = &Row> {
        let is_in = move |row: &&Row| row.status == status && row.written == written;
        self.settings.iter().filter(is_in)
    }

    fn group(&self, title: &str, rows: &[&Row], text: &mut String) {
        if rows.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{title} ({})", rows.len());
        for row in rows {
            let _ = writeln!(text, "  {}", self.line(row));
            let same = row.status == Status::Effective;
            let source = row.source.as_deref();
            match (&row.why, source) {
                (Some(why), Some(source)) => {
                    let _ = writeln!(text, "      {why} ({source})");
                }
                (Some(why), None) => {
                    let _ = writeln!(text, "      {why}");
                }
                (None, Some(source)) if !same => {
                    let _ = writeln!(text, "      ({source})");
                }
                _ => {}
            }
        }
    }

    fn line(&self, row: &Row) -> String {
        let mut line = String::new();
        if self.files.len() > 1 && row.written {
            let name = self.files.get(row.file).and_then(|f| f.file_name());
            let name = name.unwrap_or_default().to_string_lossy();
            let _ = write!(line, "{}:", shown::text(&name));
        }
        match row.line {
            Some(number) => {
                let _ = write!(line, "{number:<4} ");
            }
            None if !line.is_empty() => line.push(' '),
            None => {}
        }
        let _ = write!(
            line,
            "{} = {}",
            shown::text(&row.setting),
            match row.value.as_str() {
                "" => "\"\"".to_owned(),
                value => shown::text(value).to_string(),
            }
        );
        let fields: Vec<String> = row
            .fields
            .iter()
            .map(|(field, value)| {
                // A list of sizes is a data set for each.
                let (field, each) = match field.strip_suffix("resolutions") {
                    Some(start) => (format!("{start}resolution"), ", a data set each"),
                    None => (field.clone(), ""),
                };
                let value = readable(Some(value));
                format!("{field} = {}{each}", shown::text(&value))
            })
            .collect();
        if !fields.is_empty() {
            let _ = write!(line, "  ->  {}", fields.join(", "));
        }
        line
    }

    fn conditioning(&self) -> String {
        let choice = &self.recipe;
        let mut text = String::from("\nconditioning\n");
        let Some(trainers) = &choice.trainers else {
            let _ = writeln!(
                text,
                "  the Experiment has {}; plumb has no recipe of {} for this model",
                choice.reference, self.trainer
            );
            return text;
        };
        let count = choice.differences.fields.len();
        if count == 0 {
            let _ = writeln!(text, "  {trainers} makes the same as {}", choice.reference);
            return text;
        }
        let (has, other) = match choice.kept {
            true => (trainers, &choice.reference),
            false => (&choice.reference, trainers),
        };
        let _ = writeln!(
            text,
            "  the Experiment has {has}; {other} differs in {}:",
            shown::counted(count, "field")
        );
        for line in choice.differences.table("base model", self.trainer).lines() {
            let _ = writeln!(text, "    {line}");
        }
        for (field, note) in &choice.notes {
            let _ = writeln!(text, "  {field}: {note}");
        }
        text += match choice.kept {
            true => "  without --keep-recipe the Experiment has the base model's own\n",
            false => {
                "  --keep-recipe keeps the trainer's, as one who goes on with an older LoRA may want\n"
            }
        };
        text
    }
}

fn heading(status: Status, trainer: &str) -> String {
    match status {
        Status::Effective => "taken over".to_owned(),
        Status::Overridden => "overridden".to_owned(),
        Status::Constant => format!("constant in {trainer}, whatever is written"),
        Status::Inert => format!("inert in {trainer}"),
        Status::NotNeeded => "not needed in plumb".to_owned(),
        Status::NotSupported => "LOST: plumb has nothing like it".to_owned(),
        Status::NotLookedAt => "LOST: known to the trainer, not looked at here".to_owned(),
        Status::Unknown => format!("unknown to {trainer} too"),
    }
}
