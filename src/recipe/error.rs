//! Why a recipe could not be had, or does not fit a checkpoint.

use strsim::{jaro_winkler, normalized_damerau_levenshtein};

use crate::shown;
use crate::text::ConfigError;

/// Why a recipe could not be had, or does not fit a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe's name is not of the form that names have.
    #[error(
        "`{0}` is not a recipe's name: expected FAMILY/FLAVOR or FAMILY/FLAVOR:VARIANT, such as \
         sd3/3.5-large or sd3/3.5-large:kohya; `plumb recipe list` shows all"
    )]
    MalformedName(String),
    /// No recipe has this family, flavor or variant.
    #[error("no {what} `{name}`{}; there is: {}", did_you_mean(nearest.as_deref()), known.join(", "))]
    Unknown {
        /// `family`, `flavor of sd3`, `variant of sd3`.
        what: String,
        /// As written.
        name: String,
        /// The nearest known name.
        nearest: Option<String>,
        /// All known names.
        known: Vec<String>,
    },
    /// A deviation names no field of the recipe.
    #[error(
        "[recipe.deviate]: the recipe {recipe} has no field `{field}`{}; `plumb recipe show {recipe}` \
         lists its fields",
        did_you_mean(nearest.as_deref())
    )]
    UnknownField {
        /// Its name, as `plumb recipe show` takes it.
        recipe: String,
        /// As written.
        field: String,
        /// The nearest known field.
        nearest: Option<String>,
    },
    /// A deviation's value is not of the field's type.
    #[error("[recipe.deviate] `{field}`: {}", wrong_value(why, found, base))]
    WrongValue {
        /// The field's dotted path.
        field: String,
        /// What is wrong.
        why: String,
        /// The deviation's value, as TOML or JSON has it.
        found: String,
        /// The recipe's own value, as JSON.
        base: String,
    },
    /// What a person wants to be tried is not a sweep, or cannot be tried.
    #[error("--vary {}: {why}", shown::text(sweep))]
    Sweep {
        /// The sweep as written, or its fields.
        sweep: String,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// Two fields exclude each other.
    #[error("{fields} in the recipe {recipe}: {why}")]
    Contradiction {
        /// Its name.
        recipe: String,
        /// The fields, with their values.
        fields: String,
        /// Why that cannot be.
        why: String,
    },
    /// The rules do not fit the checkpoint.
    #[error("the recipe's `{field}` does not fit this checkpoint's {slot}: {why}")]
    DoesNotFit {
        /// What does not fit: the encoder's folder in the checkpoint, or `denoiser`.
        slot: String,
        /// The field's dotted path, its encoder's slot first.
        field: String,
        /// Expected and found.
        why: String,
    },
    /// The checkpoint's configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A recipe's data file is wrong.
    #[error("{file}: {why}")]
    Data {
        /// The file's path, or what it describes.
        file: String,
        /// What is wrong.
        why: String,
    },
}

/// Why a value cannot be, with what was found, where that is not said yet, and what the recipe has.
pub(super) fn wrong_value(why: &str, found: &str, base: &str) -> String {
    match why.ends_with(&format!("found {found}")) {
        true => format!("{why} (the recipe has {base})"),
        false => format!("{why} (found {found}; the recipe has {base})"),
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}

/// The name nearest to `name`, if one is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Nobody mistypes so much, and comparing takes memory by the square.
    if name.len() > 200 {
        return None;
    }
    // A field whose last part is right is likelier meant than one that merely looks alike. Jaro-Winkler, which
    // favours a common start, finds something near for any name below the right slot; hence its handicap.
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |candidate: &str| {
        let same_end = f64::from(u8::from(last(candidate) == last(name)));
        normalized_damerau_levenshtein(candidate, name).max(jaro_winkler(candidate, name) - 0.2)
            + 0.2 * same_end
    };
    known
        .into_iter()
        .map(|candidate| (score(candidate), candidate))
        .filter(|(score, _)| *score > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}
