//! `plumb recipe`: list, show, compare and explain conditioning recipes.

mod explain;

use clap::Subcommand;
use plumb::recipe::{Diff, Field, Recipe, RecipeName, Status, diff};
use serde_json::json;

use crate::CommandResult;
use crate::layout::{columns, wrapped};
use crate::ui::{Failure, Ui};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All recipes: families, flavors, and whose way each variant is.
    List,
    /// A recipe, field by field, each with its source and how sure it is.
    Show(ShowArgs),
    /// The fields in which two recipes differ.
    Diff(DiffArgs),
    /// What each field does to the numbers: effective, conditional or inert, and why.
    Explain(explain::Args),
}

#[derive(clap::Args)]
struct ShowArgs {
    /// FAMILY/FLAVOR or FAMILY/FLAVOR:VARIANT, such as sd3/3.5-large or sd3/3.5-large:kohya.
    recipe: String,
    /// The variant: another program's way to make the conditioning. [default: reference]
    #[arg(long)]
    variant: Option<String>,
    /// Also print the remarks on each field.
    #[arg(long)]
    notes: bool,
}

#[derive(clap::Args)]
struct DiffArgs {
    /// The one recipe, such as sd3/3.5-large.
    a: String,
    /// The other, such as sd3/3.5-large:kohya.
    b: String,
    /// Also print where each value comes from.
    #[arg(long)]
    sources: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    match &args.command {
        Command::List => list(ui),
        Command::Show(args) => show(args, ui),
        Command::Diff(args) => compare(args, ui),
        Command::Explain(args) => explain::run(args, ui),
    }
}

fn list(ui: &Ui) -> CommandResult {
    let listings = plumb::recipe::list().map_err(Failure::error)?;
    let mut rows = vec![["variant", "tokens", "differs in", "whose way"].map(str::to_owned)];
    let (mut family, mut all): (&str, &[String]) = ("", &[]);
    for listing in &listings {
        if listing.family != family {
            (family, all) = (&listing.family, &listing.flavors);
        }
        // A variant serves several flavors by the same rules; the first stands for them.
        let name = |variant: &str| RecipeName {
            family: listing.family.clone(),
            flavor: listing.flavors.first().cloned().unwrap_or_default(),
            variant: variant.to_owned(),
        };
        let recipe = Recipe::shipped(&name(&listing.variant)).map_err(Failure::error)?;
        let reference = Recipe::shipped(&name(plumb::recipe::REFERENCE)).map_err(Failure::error)?;
        let differs = Diff::between(&reference.rules(), &recipe.rules())
            .fields
            .len();
        rows.push([
            format!(":{}", listing.variant),
            lengths(&recipe),
            match differs {
                0 => "-".to_owned(),
                1 => "1 field".to_owned(),
                n => format!("{n} fields"),
            },
            match listing.flavors == all {
                true => listing.title.clone(),
                false => format!("{}; for {}", listing.title, listing.flavors.join(", ")),
            },
        ]);
    }
    // One width for the columns of all families.
    let table = columns(&rows);
    let mut lines = table.lines();
    let mut text = format!("  {}\n", lines.next().unwrap_or_default());
    let mut family = "";
    for (listing, line) in listings.iter().zip(lines) {
        if listing.family != family {
            family = &listing.family;
            text += &format!("{family}: {}\n", listing.flavors.join(", "));
        }
        text += &format!("  {line}\n");
    }
    text += "\nA recipe is named FAMILY/FLAVOR, or FAMILY/FLAVOR:VARIANT for another program's way:\n\
             \x20 plumb recipe show sd3/3.5-large\n\
             \x20 plumb recipe diff sd3/3.5-large sd3/3.5-large:kohya\n";
    ui.report(&listings, &text)
}

/// How many tokens each encoder gets: `clip_l 77, t5 77+`; those of joined windows (`chunks`) share a start and an end.
fn lengths(recipe: &Recipe) -> String {
    let length = |e: &plumb::recipe::EncoderRecipe| {
        let tokens = &e.rules.tokens;
        let windows = tokens.of_kind.get("chunks");
        let joined = windows.and_then(serde_json::Value::as_u64).unwrap_or(1) as usize;
        let whole = match windows {
            Some(windows) if windows.is_string() => " a window",
            _ => "",
        };
        let count = match tokens.max_tokens {
            None => format!("{}+", tokens.min_tokens),
            Some(most) if most == tokens.min_tokens => {
                (most.saturating_sub(2) * joined + 2).to_string()
            }
            Some(most) => format!("{}-{most}{whole}", tokens.min_tokens),
        };
        format!("{} {count}", e.slot)
    };
    recipe
        .encoders()
        .iter()
        .map(length)
        .collect::<Vec<_>>()
        .join(", ")
}

fn named(text: &str, variant: Option<&str>) -> Result<Recipe, Failure> {
    let mut name: RecipeName = text.parse().map_err(Failure::usage)?;
    if let Some(variant) = variant {
        if text.contains(':') && name.variant != variant {
            return Err(Failure::usage(format!(
                "`{text}` names the variant {}, --variant names {variant}: give one",
                name.variant
            )));
        }
        variant.clone_into(&mut name.variant);
    }
    Recipe::shipped(&name).map_err(Failure::usage)
}

fn show(args: &ShowArgs, ui: &Ui) -> CommandResult {
    let recipe = named(&args.recipe, args.variant.as_deref())?;
    let name = recipe.name();
    let reference = RecipeName {
        variant: plumb::recipe::REFERENCE.to_owned(),
        ..name.clone()
    };
    let reference = Recipe::shipped(&reference).map_err(Failure::error)?;
    let mut text = format!(
        "{name}: {}\nfingerprint {}\n",
        recipe.title(),
        recipe.fingerprint().short()
    );
    let mut differs = false;
    for encoder in recipe.encoders() {
        let slot = &encoder.slot;
        text += &format!(
            "\n{slot} (checkpoint folders {} and {})\n",
            encoder.component, encoder.tokenizer_component
        );
        text += &fields(
            &recipe,
            &reference,
            &format!("{slot}."),
            args.notes,
            &mut differs,
        );
    }
    text += "\nassembly (how the outputs become what the denoiser receives)\n";
    text += &fields(&recipe, &reference, "assembly.", args.notes, &mut differs);
    if !recipe.claims().is_empty() {
        text += "\nsaid about the base model, without being a rule here\n";
        for claim in recipe.claims() {
            let line = format!("{} ({}: {})", claim.text, claim.status, claim.source);
            text += &wrapped(&line, "  - ", 4);
        }
    }
    text += "\nsources\n";
    for (alias, source) in recipe
        .sources()
        .iter()
        .filter(|(alias, _)| cited(&recipe, alias))
    {
        text += &wrapped(source, &format!("  {alias}: "), 4);
    }
    text += "\n";
    if differs {
        text += "* differs from the reference\n";
    }
    if !args.notes && recipe.fields().values().any(|f| f.note.is_some()) {
        text += "--notes prints the remarks on the fields; `plumb recipe explain` says what each does\n";
    }
    let value = json!({
        "name": name,
        "title": recipe.title(),
        "fingerprint": recipe.fingerprint(),
        "fields": recipe.fields(),
        "claims": recipe.claims(),
        "sources": recipe.sources(),
    });
    ui.report(&value, &text)
}

/// Whether a field or a claim has its source under this alias.
fn cited(recipe: &Recipe, alias: &str) -> bool {
    let of_fields = recipe.fields().values().map(|f| &f.source);
    let of_claims = recipe.claims().iter().map(|c| &c.source);
    of_fields.chain(of_claims).any(|source| {
        source
            .strip_prefix(alias)
            .is_some_and(|rest| rest.starts_with(':'))
    })
}

/// The fields below `prefix`, a line each.
fn fields(
    recipe: &Recipe,
    reference: &Recipe,
    prefix: &str,
    notes: bool,
    differs: &mut bool,
) -> String {
    let of = |recipe: &Recipe| -> Vec<(String, Field)> {
        let below = recipe.fields().iter().filter_map(|(path, field)| {
            Some((path.strip_prefix(prefix)?.to_owned(), field.clone()))
        });
        below.collect()
    };
    let old = of(reference);
    let fields = of(recipe);
    let rows: Vec<[String; 4]> = fields
        .iter()
        .map(|(path, field)| {
            let same = old.iter().any(|(p, f)| p == path && f.value == field.value);
            *differs |= !same;
            [
                format!("{} {path}", if same { " " } else { "*" }),
                diff::readable(Some(&field.value)),
                sureness(field.status),
                field.source.clone(),
            ]
        })
        .collect();
    let table = columns(&rows);
    let mut text = String::new();
    for (line, (_, field)) in table.lines().zip(&fields) {
        text += line;
        text += "\n";
        if let (true, Some(note)) = (notes, &field.note) {
            text += &wrapped(note, "      ", 6);
        }
    }
    text
}

/// A status, shown where it is a warning.
fn sureness(status: Status) -> String {
    match status {
        Status::Read | Status::Run => String::new(),
        other => format!("({other})"),
    }
}

fn compare(args: &DiffArgs, ui: &Ui) -> CommandResult {
    let (a, b) = (named(&args.a, None)?, named(&args.b, None)?);
    let plain = Diff::between(&a.rules(), &b.rules());
    let sourced = plain
        .clone()
        .wanted_from(|path| a.origin(path))
        .found_from(|path| b.origin(path));
    let (one, other) = (a.name().to_string(), b.name().to_string());
    let text = match (plain.is_empty(), args.sources) {
        (true, _) => format!("{one} and {other} have the same rules"),
        (false, true) => sourced.table(&one, &other),
        (false, false) => plain.table(&one, &other),
    };
    ui.report(&sourced, &text)
}
