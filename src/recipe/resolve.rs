//! From a name and the deviations a person wrote to a [`Recipe`].

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::digest::Fingerprint;

use super::data::{self, Claim, Field, SlotComponents, Status, Variant};
use super::diff::readable;
use super::encoder::EncoderRecipe;
use super::error::nearest;
use super::rules::{Assembly, EncoderRules};
use super::{Error, RecipeName, checks};

/// The version of the canonical form of a recipe's rules. A change of meaning of any field bumps it.
pub const RECIPE_VERSION: u32 = 1;

/// What [`Field::file`] is for a deviation.
const DEVIATE: &str = "[recipe.deviate]";

/// A recipe with every field resolved.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: RecipeName,
    title: String,
    encoders: Vec<EncoderRecipe>,
    assembly: Assembly,
    fields: BTreeMap<String, Field>,
    deviations: Vec<Deviation>,
    claims: Vec<Claim>,
    sources: BTreeMap<String, String>,
    fingerprint: Fingerprint,
}

/// A field that a person set otherwise than the recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deviation {
    /// The field's dotted path: `t5.tokens.max_tokens`.
    pub field: String,
    /// The value that is used.
    pub value: Value,
    /// The value that the recipe has.
    pub instead_of: Value,
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (value, instead_of) = (
            readable(Some(&self.value)),
            readable(Some(&self.instead_of)),
        );
        write!(f, "{} = {value} instead of {instead_of}", self.field)
    }
}

/// A shipped variant, as `plumb recipe list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listing {
    /// `sd3`, `flux1`, ...
    pub family: String,
    /// The flavors it serves.
    pub flavors: Vec<String>,
    /// `reference`, `diffusers`, `kohya`, ...
    pub variant: String,
    /// Whose way of making conditioning it is, for a person.
    pub title: String,
}

/// Every shipped variant.
///
/// # Errors
/// If a shipped file is wrong, which the tests rule out.
pub fn list() -> Result<Vec<Listing>, Error> {
    let listing = |v: Variant| Listing {
        family: v.family,
        flavors: v.flavors,
        variant: v.name,
        title: v.title,
    };
    Ok(data::variants(&data::files())?
        .into_iter()
        .map(listing)
        .collect())
}

impl Recipe {
    /// The shipped recipe of that name, with the fields under `deviate` set otherwise.
    ///
    /// `deviate` is the table `[recipe.deviate]` of an Experiment: dotted field paths, written as TOML's dotted
    /// keys (`t5.tokens.max_tokens = 154`) or as one quoted key.
    ///
    /// # Errors
    /// If no recipe has the name, a deviation names no field or has a wrong type, or fields contradict.
    pub fn resolve(
        family: &str,
        flavor: &str,
        variant: &str,
        deviate: &toml::Table,
    ) -> Result<Self, Error> {
        let name = RecipeName {
            family: family.to_owned(),
            flavor: flavor.to_owned(),
            variant: variant.to_owned(),
        };
        let variant = select_shipped(&name)?;
        Self::from_variant(name, variant, deviate)
    }

    /// This recipe with more deviations, which come before its own.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn deviating(&self, more: &[(String, Value)]) -> Result<Self, Error> {
        let name = &self.name;
        let table = self.deviate_with(more)?;
        Self::resolve(&name.family, &name.flavor, &name.variant, &table)
    }

    /// This recipe's deviations and more, the later ones before its own, as [`Self::resolve`] takes them.
    ///
    /// # Errors
    /// If a value is none that TOML has.
    pub(super) fn deviate_with(&self, more: &[(String, Value)]) -> Result<toml::Table, Error> {
        let own = self.deviations.iter().map(|d| (&d.field, &d.value));
        let mut table = toml::Table::new();
        for (field, value) in own.chain(more.iter().map(|(f, v)| (f, v))) {
            let toml = toml::Value::try_from(value).map_err(|e| Error::WrongValue {
                field: field.clone(),
                why: e.to_string(),
                found: value.to_string(),
                base: self
                    .fields
                    .get(field)
                    .map_or_else(String::new, |f| f.value.to_string()),
            })?;
            table.insert(field.clone(), toml);
        }
        Ok(table)
    }

    /// The shipped recipe of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn shipped(name: &RecipeName) -> Result<Self, Error> {
        Self::resolve(
            &name.family,
            &name.flavor,
            &name.variant,
            &toml::Table::new(),
        )
    }

    pub(super) fn from_variant(
        name: RecipeName,
        variant: Variant,
        deviate: &toml::Table,
    ) -> Result<Self, Error> {
        let mut fields = variant.fields_of(&name.flavor);
        let broken = |why: String| Error::Data {
            file: format!("configs/recipes/{}/{}.toml", name.family, name.variant),
            why,
        };
        let mut rules = TypedRules::of(&fields, &variant.components).map_err(broken)?;
        let mut deviations = Vec::new();
        for (field, value) in flattened(deviate) {
            let Some(old) = fields.get(&field).cloned() else {
                return Err(Error::UnknownField {
                    recipe: name.to_string(),
                    nearest: nearest(&field, fields.keys().map(String::as_str)),
                    field,
                });
            };
            let wrong = |found: String, why: String| Error::WrongValue {
                field: field.clone(),
                // serde names the type of Rust.
                why: why.replace("expected usize", "expected a whole number"),
                found,
                base: old.value.to_string(),
            };
            let value = data::json_of(&value).map_err(|why| wrong(value.to_string(), why))?;
            // What is set to what it is anyway is no deviation: no report and no fingerprint knows of it.
            if value == old.value {
                continue;
            }
            // Parsed after each, so that an error is this field's.
            fields.insert(field.clone(), deviated(value.clone(), &old));
            rules = TypedRules::of(&fields, &variant.components)
                .map_err(|why| wrong(value.to_string(), why))?;
            deviations.push(Deviation {
                field,
                value,
                instead_of: old.value,
            });
        }
        // After all of them: two deviations that only fit together may come in any order.
        let encoders =
            checks::in_order(rules.encoders, &variant.components, &rules.assembly, &name)?;
        let fingerprint = Fingerprint::of(&canonical(&encoders, &rules.assembly));
        let claims = variant
            .claims
            .into_iter()
            .filter(|c| c.flavors.is_empty() || c.flavors.contains(&name.flavor))
            .collect();
        Ok(Self {
            name,
            title: variant.title,
            encoders,
            assembly: rules.assembly,
            fields,
            deviations,
            claims,
            sources: variant.sources,
            fingerprint,
        })
    }

    /// As asked for; deviations do not change it.
    pub fn name(&self) -> &RecipeName {
        &self.name
    }

    /// Whose way of making conditioning it is, for a person.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The encoders, in the order of the assembly's context, then of its pooled rows.
    pub fn encoders(&self) -> &[EncoderRecipe] {
        &self.encoders
    }

    /// The encoder of a slot.
    pub fn encoder(&self, slot: &str) -> Option<&EncoderRecipe> {
        self.encoders.iter().find(|e| e.slot == slot)
    }

    /// How encoder outputs become the Conditioning.
    pub fn assembly(&self) -> &Assembly {
        &self.assembly
    }

    /// Every field by its dotted path, with where it comes from.
    pub fn fields(&self) -> &BTreeMap<String, Field> {
        &self.fields
    }

    /// What the recipe's sources' aliases stand for.
    pub fn sources(&self) -> &BTreeMap<String, String> {
        &self.sources
    }

    /// What is said about the base model's training without being a rule.
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// The fields that a person set otherwise, by name.
    pub fn deviations(&self) -> &[Deviation] {
        &self.deviations
    }

    /// The id of the rules: BLAKE3 of the canonical JSON of `{"rules": ..., "version": 1}`. Names, sources and
    /// places in the checkpoint do not enter.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The rules as JSON: one object a slot, and `assembly`. What a diff of two recipes compares.
    pub fn rules(&self) -> Value {
        rules_json(&self.encoders, &self.assembly)
    }

    /// A readable description: names, fingerprint, deviations and rules. It travels in a LoRA's metadata.
    pub fn describe(&self) -> Value {
        json!({
            "family": self.name.family,
            "flavor": self.name.flavor,
            "variant": self.name.variant,
            "fingerprint": self.fingerprint,
            "version": RECIPE_VERSION,
            "deviations": self.deviations,
            "rules": self.rules(),
        })
    }

    /// Where a field comes from, for a diff: the file (or `[recipe.deviate]`) and its source. A path below a
    /// field (`assembly.context.0`) is its field's.
    pub fn origin(&self, path: &str) -> Option<String> {
        let mut path = path;
        loop {
            if let Some(field) = self.fields.get(path) {
                return Some(match field.status {
                    Status::Deviation => format!("{DEVIATE} {}", field.source),
                    _ => format!("{} ({})", field.file, field.source),
                });
            }
            path = path.rsplit_once('.')?.0;
        }
    }
}

/// Unit tests add a family, to see that nothing else is needed for one.
#[cfg(test)]
fn with_that_of_the_tests(mut files: Vec<data::RecipeFile>) -> Vec<data::RecipeFile> {
    files.push(data::RecipeFile {
        path: "configs/recipes/fake/reference.toml".to_owned(),
        text: include_str!("../../tests/fake_family/reference.toml"),
    });
    files
}

/// The shipped variant that a name means.
pub(super) fn select_shipped(name: &RecipeName) -> Result<Variant, Error> {
    let files = data::files();
    #[cfg(test)]
    let files = with_that_of_the_tests(files);
    select(data::variants(&files)?, name)
}

/// The variant that a name means.
fn select(variants: Vec<Variant>, name: &RecipeName) -> Result<Variant, Error> {
    let unknown = |what: String, name: &str, mut known: Vec<String>| {
        // Files come family by family, so that equal names are neighbours.
        known.dedup();
        Error::Unknown {
            what,
            name: name.to_owned(),
            nearest: nearest(name, known.iter().map(String::as_str)),
            known,
        }
    };
    let (family, others): (Vec<_>, Vec<_>) =
        variants.into_iter().partition(|v| v.family == name.family);
    if family.is_empty() {
        let known = others.into_iter().map(|v| v.family).collect();
        return Err(unknown("family".into(), &name.family, known));
    }
    let serving = family.iter().filter(|v| v.flavors.contains(&name.flavor));
    let names = serving.map(|v| v.name.clone()).collect();
    let flavors: Vec<String> = family.iter().flat_map(|v| v.flavors.clone()).collect();
    if !flavors.contains(&name.flavor) {
        let mut known: Vec<String> = Vec::new();
        for flavor in flavors {
            if !known.contains(&flavor) {
                known.push(flavor);
            }
        }
        return Err(unknown(
            format!("flavor of {}", name.family),
            &name.flavor,
            known,
        ));
    }
    family
        .into_iter()
        .find(|v| v.name == name.variant && v.flavors.contains(&name.flavor))
        .ok_or_else(|| unknown(format!("variant of {}", name.family), &name.variant, names))
}

/// A table's leaves by dotted path. No field's value is itself a table.
fn flattened(table: &toml::Table) -> Vec<(String, toml::Value)> {
    // Dotted keys come as tables, a quoted key as one with dots in it: both give one path.
    let mut leaves = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => leaves.extend(
                flattened(inner)
                    .into_iter()
                    .map(|(path, value)| (format!("{key}.{path}"), value)),
            ),
            _ => leaves.push((key.clone(), value.clone())),
        }
    }
    leaves
}

fn deviated(value: Value, old: &Field) -> Field {
    Field {
        value,
        file: DEVIATE.to_owned(),
        source: format!("instead of {} from {}", old.value, old.file),
        status: Status::Deviation,
        // The note was on the other value.
        note: None,
    }
}

/// The fields as types, without their sources.
struct TypedRules {
    encoders: BTreeMap<String, EncoderRules>,
    assembly: Assembly,
}

impl TypedRules {
    fn of(
        fields: &BTreeMap<String, Field>,
        components: &BTreeMap<String, SlotComponents>,
    ) -> Result<Self, String> {
        let mut tree = Map::new();
        for (path, field) in fields {
            insert(&mut tree, path, field.value.clone());
        }
        let assembly = tree.remove("assembly").unwrap_or(Value::Null);
        let assembly = serde_json::from_value(assembly).map_err(|e| e.to_string())?;
        // Every other group of rules is an encoder's, by its slot.
        let mut encoders = BTreeMap::new();
        for (slot, value) in tree {
            let components_of = components
                .get(&slot)
                .ok_or_else(|| format!("`{slot}.network` is missing"))?;
            let rules = EncoderRules::from_json(components_of.network, value)?;
            encoders.insert(slot, rules);
        }
        Ok(Self { encoders, assembly })
    }
}

fn insert(tree: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            tree.insert(path.to_owned(), value);
        }
        Some((head, rest)) => {
            let inner = tree
                .entry(head)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

fn rules_json(encoders: &[EncoderRecipe], assembly: &Assembly) -> Value {
    let mut rules: Map<String, Value> = encoders
        .iter()
        .map(|e| (e.slot.clone(), json!(e.rules)))
        .collect();
    rules.insert("assembly".into(), json!(assembly));
    Value::Object(rules)
}

fn canonical(encoders: &[EncoderRecipe], assembly: &Assembly) -> Value {
    let mut encoders = encoders.to_vec();
    for encoder in &mut encoders {
        let rules = &mut encoder.rules;
        rules.tokens.of_kind = rules.network.without_defaults(&rules.tokens.of_kind);
    }
    json!({ "version": RECIPE_VERSION, "rules": rules_json(&encoders, assembly) })
}
