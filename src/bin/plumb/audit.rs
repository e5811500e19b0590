//! `plumb audit`: what made another trainer's cache, in words.

mod latents;

use std::path::{Path, PathBuf};

use plumb::audit::{
    self, AuditOptions, CacheReport, EncoderFinding, Error, FieldSaid, LatentsFinding, Reading,
    Verdict,
};
use plumb::monitor::Monitor as _;
use plumb::shown::{self, counted};

use crate::CommandResult;
use crate::ui::{Failure, Ui};
use crate::world::{self, DeviceArgs, WaitArgs};

/// Files that are named of a list.
const MOST_NAMED: usize = 10;

/// Find out what made another trainer's cache of embeddings, and which entries are stale.
///
/// A sample of the captions is encoded again under every recipe that could have made the cache; for each encoder the recipe that
/// reproduces it is named, or the nearest. Caches of kohya, musubi, ai-toolkit, SimpleTuner, OneTrainer and diffusion-pipe are read,
/// and folders of safetensors files. Nothing is written.
///
/// With `--lora FILE [EXPERIMENT]`: what a LoRA's file says of how its captions were encoded, beside what its base model expects.
///
/// Exit status: 0 where the cache is what the base model's own recipe gives, 3 where it differs or an entry is stale, 1 where it cannot
/// be read.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cache, a folder or a file; with `--lora`, the Experiment file.
    #[arg(value_name = "CACHE", required_unless_present = "lora")]
    cache: Option<PathBuf>,
    /// The Experiment file: base model, pictures and captions.
    #[arg(required_unless_present = "lora", conflicts_with = "lora")]
    experiment: Option<PathBuf>,
    /// Tell what this LoRA's file says instead.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Entries to look at, spread over the cache from the shortest caption to the longest.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    if let Some(file) = &args.lora {
        return lora(file, args.cache.as_deref(), ui);
    }
    let (Some(cache), Some(experiment)) = (&args.cache, &args.experiment) else {
        return Err(Failure::usage("expected a cache and an Experiment file"));
    };
    let experiment = world::open_experiment(experiment, ui)?;
    let device = args.device.open(ui)?;
    let options = AuditOptions {
        sample: args.sample as usize,
        encode: world::encode_options(&device, &WaitArgs::default()),
    };
    let mut memo = world::digest_memo();
    let report = audit::cache(&experiment, cache, &options, &mut memo, ui);
    let report = report.map_err(failure)?;
    ui.report(&report, &words(&report))?;
    let differs = report.encoders.iter().any(|e| !e.same_as_base);
    if differs || report.reading != Reading::Experiment {
        ui.problem("the cache is not what the base model's own recipe makes of these captions");
    }
    if report
        .pictures
        .as_ref()
        .is_some_and(|p| !p.others.is_empty())
    {
        ui.problem("the cache has latents that are not of the Experiment's pictures");
    }
    if report
        .pictures
        .as_ref()
        .is_some_and(LatentsFinding::is_misplaced)
    {
        ui.problem(
            "the cache has latents of other parts of the Experiment's pictures than it or the Experiment says",
        );
    }
    if !report.stale.is_empty() {
        ui.problem("the cache has entries of other captions than the Experiment's");
    }
    Ok(())
}

fn lora(file: &Path, experiment: Option<&Path>, ui: &Ui) -> CommandResult {
    let experiment = experiment
        .map(|path| world::open_experiment(path, ui))
        .transpose()?;
    let report = audit::lora(file, experiment.as_ref()).map_err(failure)?;
    for note in &report.notes {
        ui.note(note);
    }
    let program = report
        .program
        .as_deref()
        .unwrap_or("a program that the file does not name");
    let mut lines = vec![format!(
        "{}: by {program}, for {}",
        shown::path(&report.file),
        report.base
    )];
    for field in &report.fields {
        let expected = value(&field.expected);
        let said = match (&field.said, &field.key, &field.usual) {
            (Some(said), Some(key), _) => {
                let word = if field.differs() { "differs: " } else { "" };
                format!("{word}{} ({})", value(said), shown::text(key))
            }
            (_, _, Some(usual)) => {
                format!("not recorded; {program} has {} by default", value(usual))
            }
            _ => "not recorded".to_owned(),
        };
        lines.push(format!("  {:28} base {expected:24} {said}", field.field));
    }
    for (key, found, why) in &report.inert {
        lines.push(format!(
            "  {} = {}: without effect, {why}",
            shown::text(key),
            shown::text(found)
        ));
    }
    let is_ours = report.program.as_deref() == Some("plumb");
    if is_ours && report.fields.is_empty() {
        lines.push("Its captions were encoded as the base model expects.".to_owned());
    } else if !is_ours && report.fields.iter().all(|f| f.said.is_none()) {
        lines.push("The file records nothing of how its captions were encoded.".to_owned());
    }
    ui.report(&report, &lines.join("\n"))?;
    if report.fields.iter().any(plumb::audit::LoraField::differs) {
        ui.problem("it was trained otherwise than the base model expects");
    }
    Ok(())
}

pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Base(error) => world::base_failure(error),
        Error::Recipe(error) => Failure::usage(error),
        other => Failure::error(other),
    }
}

fn words(report: &CacheReport) -> String {
    let trainers: Vec<&str> = report.trainers.iter().map(|t| t.name()).collect();
    let mut lines = vec![format!(
        "{}: {}, embeddings of {}, {} of latents; encoded again: {}",
        shown::path(&report.path),
        trainers.join(", "),
        counted(report.texts, "caption"),
        // Of pictures and of windows of clips.
        counted(report.latents, "file"),
        counted(report.looked_at, "caption")
    )];
    if report.reading == Reading::CaptionFiles {
        lines.push(
            "captions: as their files have them, without the Experiment's trigger word".to_owned(),
        );
    }
    if report.reading == Reading::LineEnds {
        lines.push(
            "captions: with the line's end that their files have, which is a token to this encoder; plumb and other programs take it off"
                .to_owned(),
        );
    }
    for found in &report.encoders {
        lines.push(format!("{:8} {}", found.slot, made_by(found)));
        let more = [
            numbers(found),
            others(found),
            whole_weights(found),
            against_base(found, &report.base),
        ];
        lines.extend(
            more.into_iter()
                .flatten()
                .map(|line| format!("{:8} {line}", "")),
        );
    }
    if !report.absent.is_empty() {
        let slots = report.absent.join(", ");
        lines.push(format!("{slots}: the cache has nothing of it"));
    }
    if let Some(found) = &report.pictures {
        lines.extend(latents::words(found));
    }
    lines.extend(list_of(report));
    lines.join("\n")
}

/// `as kohya makes it, with tokens.max_tokens 154 instead of 256`
fn made_by(found: &EncoderFinding) -> String {
    let like = match found.like.as_str() {
        "reference" => "as the authors' own code makes it".to_owned(),
        variant => format!("as {variant} makes it"),
    };
    let mut changes = changes(&found.changed, change);
    changes.extend(found.weights.map(|weights| weights.words().to_owned()));
    changes.extend(found.after.words().map(str::to_owned));
    let with = match changes.is_empty() {
        true => String::new(),
        false => format!(", with {}", changes.join(", ")),
    };
    match found.verdict {
        Verdict::Reproduced => format!("{like}{with}"),
        Verdict::NotReproduced if found.matching == 0 => format!(
            "none of {} gives it; the nearest: {like}{with}",
            counted(found.tried, "recipe")
        ),
        // No recipe fits an entry by chance.
        Verdict::NotReproduced => format!(
            "none of {} gives most of it; the nearest: {like}{with}, which gives {} of {}; the others may be of captions that \
             were changed since, or mixed up",
            counted(found.tried, "recipe"),
            found.matching,
            found.compared
        ),
    }
}

fn numbers(found: &EncoderFinding) -> Option<String> {
    let (errors, tolerance) = (&found.errors, &found.tolerance);
    let cosine = errors
        .cosine
        .map_or(String::new(), |c| format!(", cosine {c:.6}"));
    Some(format!(
        "{} of {}, relative difference {:.0e}{cosine} (in {}, up to {:.0e} counts as the same)",
        found.matching,
        counted(found.compared, "caption"),
        errors.worst(),
        shown::word(&tolerance.precision),
        tolerance.relative,
    ))
}

/// What these captions cannot tell from it.
fn others(found: &EncoderFinding) -> Option<String> {
    let mut names = found.also.clone();
    let most = names.len() + 3;
    names.extend(found.or.iter().cloned());
    let more = names.len().saturating_sub(most);
    names.truncate(most);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    (found.verdict == Verdict::Reproduced && !names.is_empty())
        .then(|| format!("these captions cannot tell it from: {}", names.join(", ")))
}

/// Where the Experiment's own weights are of a few bits, its encoder is not the one that others have.
fn whole_weights(found: &EncoderFinding) -> Option<String> {
    let is_told = found.verdict == Verdict::NotReproduced && !found.stored_as.is_empty();
    is_told.then(|| {
        format!(
            "the Experiment's own weights are stored as {}: the cache may be of the whole ones, which only an Experiment that names these tells",
            found.stored_as.join(", ")
        )
    })
}

fn against_base(found: &EncoderFinding, base: &str) -> Option<String> {
    if found.same_as_base {
        return Some(format!("the base model ({base}) expects this"));
    }
    let matters = |f: &&FieldSaid| f.matters != Some(false);
    let mut of_weight: Vec<FieldSaid> = found.base.iter().filter(matters).cloned().collect();
    // Fields that make a difference only together.
    if of_weight.is_empty() && found.after.words().is_none() && found.weights.is_none() {
        of_weight = found.base.clone();
    }
    let idle = found.base.len() - of_weight.len();
    let mut fields = changes(&of_weight, expectation);
    if let Some(weights) = found.weights {
        fields.push(format!(
            "the weights as they are (here: {})",
            weights.words()
        ));
    }
    if let Some(words) = found
        .after
        .words()
        .filter(|_| !found.after.is_the_recipes())
    {
        fields.push(format!("rows as the encoder gives them (here: {words})"));
    }
    if fields.is_empty() {
        return None;
    }
    let idle = match idle {
        0 => String::new(),
        1 => "; another field differs without effect on these captions".to_owned(),
        n => format!("; {n} other fields differ without effect on these captions"),
    };
    Some(format!(
        "the base model ({base}) expects {}{idle}",
        fields.join(", ")
    ))
}

/// The fields in words; both lengths of an encoder in one where they are equal.
fn changes(fields: &[FieldSaid], words: fn(&FieldSaid) -> String) -> Vec<String> {
    let max = fields.iter().find(|f| f.field == "tokens.max_tokens");
    let is_told = |f: &FieldSaid| {
        f.field == "tokens.min_tokens"
            && max.is_some_and(|m| m.cached == f.cached && m.expected == f.expected)
    };
    fields.iter().filter(|f| !is_told(f)).map(words).collect()
}

fn change(field: &FieldSaid) -> String {
    let (cached, expected) = (value(&field.cached), value(&field.expected));
    format!("{} {cached} instead of {expected}", field.field)
}

fn expectation(field: &FieldSaid) -> String {
    let (cached, expected) = (value(&field.cached), value(&field.expected));
    format!("{} {expected} (here: {cached})", field.field)
}

fn value(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "none".to_owned(),
        // Templates have line ends.
        serde_json::Value::String(text) => shown::line(text),
        serde_json::Value::Array(items) if items.is_empty() => "nothing".to_owned(),
        serde_json::Value::Array(items) => {
            let items: Vec<String> = items.iter().map(self::value).collect();
            items.join("+")
        }
        other => other.to_string(),
    }
}

/// Entries and captions that do not belong together, or are not what they should be.
fn list_of(report: &CacheReport) -> Vec<String> {
    let mut lines = Vec::new();
    if !report.stale.is_empty() {
        lines.push(format!(
            "stale: {}",
            shown::part_of(
                report.stale.len(),
                report.looked_at,
                "entry of those looked at"
            )
        ));
        for stale in report.stale.iter().take(MOST_NAMED) {
            let made_of = match &stale.made_of {
                Some(text) => format!("it was made of `{}`", shown::text(text)),
                None => "it was made of no caption of the Experiment".to_owned(),
            };
            lines.push(format!(
                "  {}: not of `{}`; {made_of}",
                shown::path(&stale.path),
                shown::text(&stale.caption)
            ));
        }
    }
    let mut list = |what: &str, paths: &[PathBuf]| {
        if paths.is_empty() {
            return;
        }
        lines.push(format!("{what}: {}", paths.len()));
        for path in paths.iter().take(MOST_NAMED) {
            lines.push(format!("  {}", shown::path(path)));
        }
        if paths.len() > MOST_NAMED {
            lines.push(format!("  and {} more", paths.len() - MOST_NAMED));
        }
    };
    list(
        "entries of no picture or caption of the Experiment",
        &report.strangers,
    );
    list("pictures whose caption has no entry", &report.without_entry);
    if report.uncertain > 0 {
        lines.push(format!(
            "paired by a name that several pictures have, or by a row alone: {}",
            counted(report.uncertain, "entry")
        ));
    }
    for left in report.left_out.iter().take(MOST_NAMED) {
        lines.push(format!(
            "not read: {}: {}",
            shown::path(&left.path),
            left.why
        ));
    }
    lines
}
