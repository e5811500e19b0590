//! The recipes that ship with the program: TOML files under `configs/recipes/`, one a variant, in which
//! every field carries its source and how sure it is.
//!
//! A file without `base` is complete. A file with one names exactly the fields in which it differs, and its flavors where it
//! serves not all of its base's. Fields below
//! `[flavor.NAME]` are for that flavor only; a field that a file names outside is for all flavors, whatever its base has
//! for one.

use std::collections::BTreeMap;

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;
use crate::text::{self, Kind};

/// A shipped file: its path, and its text.
pub struct RecipeFile {
    /// The path, from the repository's root.
    pub path: String,
    /// Its TOML.
    pub text: &'static str,
}

static SHIPPED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/configs/recipes");

/// Every shipped recipe file, family by family: the reference, then the others by name. Adding a variant is adding its file.
pub fn files() -> Vec<RecipeFile> {
    let folders = SHIPPED.dirs().flat_map(Dir::files);
    let mut files: Vec<RecipeFile> = folders
        .filter_map(|file| {
            let (path, text) = (file.path().to_str()?, file.contents_utf8()?);
            Some(RecipeFile {
                path: format!("configs/recipes/{path}"),
                text,
            })
        })
        .collect();
    // The others are told by what differs from the reference, or from one whose name theirs begins with, which must be known
    // before them.
    files.sort_by_cached_key(|file| {
        let path = file.path.strip_suffix(".toml").unwrap_or(&file.path);
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        (folder.to_owned(), name != "reference", name.to_owned())
    });
    files
}

/// How sure a field's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Found in the source.
    Read,
    /// Found, and seen by running it.
    Run,
    /// Said by a model card or its authors.
    Card,
    /// Commonly held, only indirect evidence.
    Believed,
    /// Could not be checked.
    Unverified,
    /// Set under `[recipe.deviate]`.
    // No file may claim it.
    #[serde(skip_deserializing)]
    Deviation,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Card => "card",
            Self::Believed => "believed",
            Self::Unverified => "unverified",
            Self::Deviation => "deviation",
        })
    }
}

/// One field of a recipe, with where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    /// As the file has it, as JSON; "none" where TOML would need a null.
    pub value: Value,
    /// The file that says so, or `[recipe.deviate]`.
    pub file: String,
    /// Where that file has it from: `alias:path:line`.
    pub source: String,
    /// How sure it is.
    pub status: Status,
    /// What else a reader should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Something said about a base model that is not a rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The flavors it is about; empty: all.
    #[serde(default)]
    pub flavors: Vec<String>,
    /// What is said.
    pub text: String,
    /// Who says it.
    pub source: String,
    /// How sure it is.
    pub status: Status,
}

/// A slot's kind of encoder, and the folders of a diffusers checkpoint that hold it and its tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct SlotComponents {
    pub(super) network: &'static dyn Kind,
    pub(super) component: String,
    pub(super) tokenizer: String,
}

/// A variant, overlaid on its base.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    pub(super) family: String,
    pub(super) name: String,
    pub(super) title: String,
    pub(super) flavors: Vec<String>,
    pub(super) components: BTreeMap<String, SlotComponents>,
    pub(super) fields: BTreeMap<String, Field>,
    /// By flavor, the fields in which it differs from `fields`.
    pub(super) by_flavor: BTreeMap<String, BTreeMap<String, Field>>,
    pub(super) sources: BTreeMap<String, String>,
    pub(super) claims: Vec<Claim>,
}

#[derive(Deserialize)]
struct RawFile {
    family: String,
    variant: String,
    title: String,
    base: Option<String>,
    #[serde(default)]
    flavors: Vec<String>,
    #[serde(default)]
    sources: BTreeMap<String, String>,
    #[serde(default)]
    claims: Vec<Claim>,
    #[serde(default)]
    flavor: BTreeMap<String, toml::Table>,
    // Whatever else stands in the file; `RuleTables::collect` refuses what is no rule.
    #[serde(flatten)]
    rules: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    value: toml::Value,
    source: String,
    status: Status,
    note: Option<String>,
}

/// All shipped variants, in the order of [`files`].
///
/// # Errors
/// If a file is wrong, which the tests rule out for the shipped ones.
pub(super) fn variants(files: &[RecipeFile]) -> Result<Vec<Variant>, Error> {
    let mut variants: Vec<Variant> = Vec::new();
    for file in files {
        let wrong = |why: String| Error::Data {
            file: file.path.clone(),
            why,
        };
        let raw: RawFile = toml::from_str(file.text).map_err(|e| wrong(e.to_string()))?;
        // Among those before it only, so that one pass is enough and no two can be each other's base.
        let base = match &raw.base {
            None => None,
            Some(name) => Some(
                variants
                    .iter()
                    .find(|v| v.family == raw.family && v.name == *name)
                    .ok_or_else(|| {
                        wrong(format!(
                            "its base `{name}` is not among the files before it"
                        ))
                    })?
                    .clone(),
            ),
        };
        variants.push(variant(raw, base, &file.path).map_err(wrong)?);
    }
    Ok(variants)
}

fn variant(raw: RawFile, base: Option<Variant>, path: &str) -> Result<Variant, String> {
    let mut tables = RuleTables::default();
    for (key, value) in raw.rules {
        let table = value
            .as_table()
            .ok_or_else(|| format!("`{key}` is not a table of rules"))?;
        tables.collect(&key, table, path)?;
    }
    // A complete file has no base whose fields it could misspell.
    let is_overlay = base.is_some();
    let mut variant = base.unwrap_or_else(|| Variant {
        family: raw.family,
        name: String::new(),
        title: String::new(),
        flavors: raw.flavors.clone(),
        components: BTreeMap::new(),
        fields: BTreeMap::new(),
        by_flavor: BTreeMap::new(),
        sources: BTreeMap::new(),
        claims: Vec::new(),
    });
    for (field, new) in tables.fields {
        // A value outside `[flavor]` is for all flavors: those that the base has for one give way.
        let in_flavors = variant.by_flavor.values_mut();
        let in_flavors = in_flavors.filter_map(|f| f.remove(&field)).count();
        if is_overlay {
            match variant.fields.get(&field) {
                None => return Err(format!("`{field}` is not a field of its base")),
                // A variant's file lists differences and nothing else, so that it can be read as a list of them.
                Some(old) if old.value == new.value && in_flavors == 0 => {
                    return Err(format!("`{field}` does not differ from its base"));
                }
                Some(_) => {}
            }
        }
        variant.fields.insert(field, new);
    }
    for (flavor, table) in raw.flavor {
        variant.add_flavor(flavor, &table, path)?;
    }
    if is_overlay && !raw.flavors.is_empty() {
        if let Some(unknown) = raw.flavors.iter().find(|f| !variant.flavors.contains(f)) {
            return Err(format!("`{unknown}` is not a flavor of its base"));
        }
        variant
            .by_flavor
            .retain(|flavor, _| raw.flavors.contains(flavor));
        variant.flavors = raw.flavors;
    }
    variant.components.extend(slot_components(tables.words)?);
    variant.name = raw.variant;
    variant.title = raw.title;
    variant.sources.extend(raw.sources);
    variant.claims.extend(raw.claims);
    Ok(variant)
}

impl Variant {
    /// The fields of a flavor.
    pub(super) fn fields_of(&self, flavor: &str) -> BTreeMap<String, Field> {
        let mut fields = self.fields.clone();
        fields.extend(self.by_flavor.get(flavor).cloned().unwrap_or_default());
        fields
    }

    fn add_flavor(
        &mut self,
        flavor: String,
        table: &toml::Table,
        path: &str,
    ) -> Result<(), String> {
        if !self.flavors.contains(&flavor) {
            return Err(format!("`flavor.{flavor}` is not one of its flavors"));
        }
        let mut tables = RuleTables::default();
        for (key, value) in table {
            let inner = value.as_table();
            let inner = inner.ok_or_else(|| format!("`flavor.{flavor}.{key}` is not a table"))?;
            tables.collect(key, inner, path)?;
        }
        if let Some(slot) = tables.words.keys().next() {
            return Err(format!(
                "`flavor.{flavor}.{slot}` has a word without source"
            ));
        }
        for (field, new) in tables.fields {
            match self.fields_of(&flavor).get(&field) {
                None => return Err(format!("`flavor.{flavor}.{field}` is not a field")),
                Some(old) if old.value == new.value => {
                    return Err(format!("`flavor.{flavor}.{field}` changes nothing"));
                }
                Some(_) => {
                    let changed = self.by_flavor.entry(flavor.clone()).or_default();
                    changed.insert(field, new);
                }
            }
        }
        Ok(())
    }
}

/// What a file's tables hold: rules by dotted path, and by slot the plain words that are no rules and need no source, such
/// as a component's name.
#[derive(Default)]
struct RuleTables {
    fields: BTreeMap<String, Field>,
    words: BTreeMap<String, BTreeMap<String, String>>,
}

impl RuleTables {
    fn collect(&mut self, path: &str, table: &toml::Table, file: &str) -> Result<(), String> {
        if table.contains_key("value") {
            // A table with a value is a rule, any other a group of them.
            let raw: RawField = toml::Value::Table(table.clone())
                .try_into()
                .map_err(|e| format!("`{path}`: {e}"))?;
            let value = json_of(&raw.value).map_err(|e| format!("`{path}`: {e}"))?;
            self.fields.insert(
                path.to_owned(),
                Field {
                    value,
                    file: file.to_owned(),
                    source: raw.source,
                    status: raw.status,
                    note: raw.note,
                },
            );
            return Ok(());
        }
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => self.collect(&format!("{path}.{key}"), inner, file)?,
                toml::Value::String(word) => {
                    let words = self.words.entry(path.to_owned()).or_default();
                    words.insert(key.clone(), word.clone());
                }
                _ => return Err(format!("`{path}.{key}` has neither value nor source")),
            }
        }
        Ok(())
    }
}

/// A field's value as JSON, which would have `null` for a number that is not finite.
pub(super) fn json_of(value: &toml::Value) -> Result<Value, String> {
    if !is_finite(value) {
        return Err("expected a finite number".to_owned());
    }
    serde_json::to_value(value).map_err(|e| e.to_string())
}

fn is_finite(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => number.is_finite(),
        toml::Value::Array(values) => values.iter().all(is_finite),
        toml::Value::Table(table) => table.values().all(is_finite),
        _ => true,
    }
}

fn slot_components(
    words: BTreeMap<String, BTreeMap<String, String>>,
) -> Result<BTreeMap<String, SlotComponents>, String> {
    words
        .into_iter()
        .map(|(slot, mut words)| {
            let mut take = |key: &str| {
                words
                    .remove(key)
                    .ok_or_else(|| format!("`{slot}.{key}` is missing"))
            };
            let network = take("network")?;
            let components_of = SlotComponents {
                component: take("component")?,
                tokenizer: take("tokenizer")?,
                network: text::kind(&network).map_err(|e| format!("`{slot}.network`: {e}"))?,
            };
            // What is left is a misspelt word, or a rule that lost its table.
            match words.keys().next() {
                None => Ok((slot, components_of)),
                Some(key) => Err(format!("`{slot}.{key}` has neither value nor source")),
            }
        })
        .collect()
}
