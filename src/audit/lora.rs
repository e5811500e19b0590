//! What a LoRA's file says about how the captions of its training were encoded, beside what its base model expects.
//!
//! Most programs record little of it, and that is said as well: for each field in which programs differ, what the file says, or that it
//! says nothing, and what the program does where nobody asks for something else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use crate::convert::provenance::{METADATA_KEY, Provenance};
use crate::convert::{self, ReadLora};
use crate::experiment::Experiment;
use crate::recipe::candidates::variants;
use crate::recipe::{REFERENCE, Recipe, RecipeName};
use crate::shown;

/// What a LoRA's file says.
#[derive(Clone, Debug, Serialize)]
pub struct LoraAudit {
    /// The file.
    pub file: PathBuf,
    /// Whose program wrote it, where the file tells.
    pub program: Option<String>,
    /// The family and flavor whose recipe it is told against.
    pub base: String,
    /// One for each field that was recorded, or in which programs differ.
    pub fields: Vec<LoraField>,
    /// What the file records that changes nothing: the key, its value, and why.
    pub inert: Vec<(String, String, String)>,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// A field of the recipe.
#[derive(Clone, Debug, Serialize)]
pub struct LoraField {
    /// The field: `t5.forward.mask`.
    pub field: String,
    /// What the base model expects.
    pub expected: Value,
    /// What the file says; `None`: nothing.
    pub said: Option<Value>,
    /// Where it says so.
    pub key: Option<String>,
    /// What the program does where nobody asks for something else, where plumb knows it.
    pub usual: Option<Value>,
}

impl LoraField {
    /// Whether the file says something else than the base model expects.
    pub fn differs(&self) -> bool {
        self.said
            .as_ref()
            .is_some_and(|said| *said != self.expected)
    }
}

/// A line of `lora_metadata.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    program: String,
    key: String,
    families: Vec<String>,
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    values: BTreeMap<String, Value>,
    #[serde(default)]
    add: i64,
    #[serde(default = "one")]
    times: i64,
    inert: Option<String>,
    #[expect(dead_code, reason = "for who reads the file")]
    source: String,
}

fn one() -> i64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    said: Vec<Said>,
}

fn table() -> Result<Vec<Said>, Error> {
    let table: Table = toml::from_str(include_str!("lora_metadata.toml"))
        .map_err(|e| Error::Data(e.to_string()))?;
    Ok(table.said)
}

/// Tells what a LoRA's file says; `experiment` names the base model's flavor where the file does not.
///
/// # Errors
/// If the file cannot be read or is no LoRA, or is for another family than the Experiment's.
pub fn lora(path: &Path, experiment: Option<&Experiment>) -> Result<LoraAudit, Error> {
    let model = experiment.map(Experiment::model);
    let options = ReadLora {
        family: model.as_ref().map(|m| m.family.as_str()),
        without_text_encoders: true,
        expert: None,
        damaged: true,
    };
    let read = convert::read_lora(path, &options)?;
    let (family, metadata) = (read.lora.naming.family, &read.lora.metadata);
    if let Some(model) = model.as_ref().filter(|m| m.family != family) {
        return Err(Error::Nothing {
            path: path.to_owned(),
            why: format!(
                "it is for {family}, the Experiment's base model is of {}",
                shown::text(&model.family)
            ),
        });
    }
    let made = Provenance::read(metadata).map_err(|e| Error::Nothing {
        path: path.to_owned(),
        why: format!("its `{METADATA_KEY}` metadata cannot be read: {e}"),
    })?;
    let mut notes = Vec::new();
    if let (Some(model), Some(made)) = (&model, &made)
        && made.flavor != model.flavor
    {
        notes.push(format!(
            "the file says that it was trained for {family} {}: it is told against the Experiment's {}",
            shown::text(&made.flavor),
            shown::text(&model.flavor)
        ));
    }
    let flavor = match (model, &made) {
        (Some(model), _) => model.flavor,
        (None, Some(made)) => made.flavor.clone(),
        (None, None) => {
            let flavor = crate::models::family(family).map_err(crate::base_model::Error::from)?;
            let first = flavor.flavors.first().map_or("", |f| f.name).to_owned();
            notes.push(format!(
                "the file does not name its base model: it is told against {family} {first}; an Experiment names another"
            ));
            first
        }
    };
    let reference = Recipe::shipped(&RecipeName::reference(family, &flavor))?;
    let program = match &made {
        Some(_) => Some("plumb".to_owned()),
        None => program(metadata),
    };
    let mut said = BTreeMap::new();
    let mut inert = Vec::new();
    if let Some(made) = &made {
        said = of_recipe(&reference, &made.recipe);
    } else if let Some(program) = &program {
        for line in table()?.iter().filter(|l| l.program == *program) {
            if line.families.iter().any(|f| f == family) {
                line.read(metadata, &mut said, &mut inert);
            }
        }
    }
    Ok(LoraAudit {
        file: read.file,
        base: format!("{family} {flavor}"),
        fields: fields(&reference, program.as_deref(), &said)?,
        program,
        inert,
        notes,
    })
}

/// Values and where they stand, by field.
type SaidFields = BTreeMap<String, (Value, String)>;

impl Said {
    fn read(
        &self,
        metadata: &BTreeMap<String, String>,
        said: &mut SaidFields,
        inert: &mut Vec<(String, String, String)>,
    ) {
        let text = match self.key.split_once('/') {
            None => metadata.get(&self.key).cloned(),
            Some((outer, inner)) => metadata
                .get(outer)
                .and_then(|text| serde_json::from_str::<Value>(text).ok())
                .and_then(|object| object.get(inner).cloned())
                .map(|value| match value {
                    Value::String(text) => text,
                    Value::Null => "None".to_owned(),
                    other => other.to_string(),
                }),
        };
        let Some(text) = text else { return };
        if let Some(why) = &self.inert {
            inert.push((self.key.clone(), text, why.clone()));
            return;
        }
        let number = || {
            let number: i64 = text.parse().ok()?;
            Some(json!(
                number.checked_add(self.add)?.checked_mul(self.times)?
            ))
        };
        // A value that the program does not have says nothing.
        let Some(value) = self.values.get(&text).cloned().or_else(number) else {
            return;
        };
        for field in &self.fields {
            said.insert(field.clone(), (value.clone(), self.key.clone()));
        }
    }
}

/// The fields that plumb's own metadata has: all.
fn of_recipe(reference: &Recipe, made: &Value) -> SaidFields {
    let mut said = SaidFields::new();
    let Some(rules) = made.get("rules") else {
        return said;
    };
    for field in reference.fields().keys() {
        let pointer = format!("/{}", field.replace('.', "/"));
        if let Some(value) = rules.pointer(&pointer) {
            said.insert(field.clone(), (value.clone(), METADATA_KEY.to_owned()));
        }
    }
    said
}

/// Whose metadata it is, by keys that only one program writes.
fn program(metadata: &BTreeMap<String, String>) -> Option<String> {
    let has = |key: &str| metadata.contains_key(key);
    let starts = |prefix: &str| metadata.keys().any(|key| key.starts_with(prefix));
    let software = metadata.get("software").map_or("", String::as_str);
    let name = match () {
        () if software.contains("ai-toolkit") => "ai-toolkit",
        () if has("ot_branch") || has("ot_revision") => "onetrainer",
        // Of kohya's two programs only sd-scripts records the length of CLIP's captions.
        () if has("ss_clip_skip") || has("ss_max_token_length") => "kohya",
        () if starts("ss_") => "musubi",
        () if has("lora_adapter_metadata") => "diffusers",
        () => return None,
    };
    Some(name.to_owned())
}

/// Fields that were recorded, and those in which programs differ.
fn fields(
    reference: &Recipe,
    program: Option<&str>,
    said: &SaidFields,
) -> Result<Vec<LoraField>, Error> {
    let name = reference.name();
    let variants = variants(&name.family, &name.flavor)?;
    let own = variants
        .iter()
        .find(|v| v.labels.iter().any(|l| Some(l.as_str()) == program));
    let is_rule = |field: &str| {
        let known = [".tokens.", ".forward.", "assembly.pads.", "assembly.mask"];
        known.iter().any(|part| field.contains(part))
    };
    let mut found = Vec::new();
    for (field, expected) in reference.fields() {
        let of = |recipe: &Recipe| recipe.fields().get(field).map(|f| f.value.clone());
        let recorded = said.get(field);
        let usual = own
            .and_then(|v| of(&v.recipe))
            .filter(|_| program != Some(REFERENCE));
        let recorded_otherwise = recorded.is_some_and(|(v, _)| *v != expected.value);
        let of_interest = match recorded {
            // plumb records every field: those that are as expected are no news.
            Some((_, key)) if key == METADATA_KEY => recorded_otherwise,
            Some(_) => true,
            // Even where the program usually does as expected: what nobody recorded may have been set otherwise.
            None => variants
                .iter()
                .any(|v| of(&v.recipe).as_ref() != Some(&expected.value)),
        };
        if !is_rule(field) || !of_interest {
            continue;
        }
        found.push(LoraField {
            field: field.clone(),
            expected: expected.value.clone(),
            said: recorded.map(|(value, _)| value.clone()),
            key: recorded.map(|(_, key)| key.clone()),
            usual,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::{fields, program, table};
    use crate::recipe::{Recipe, RecipeName};

    fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn said(family: &str, flavor: &str, pairs: &[(&str, &str)]) -> (Vec<super::LoraField>, usize) {
        let metadata = metadata(pairs);
        let program = program(&metadata).expect("a known program");
        let (mut said, mut inert) = (BTreeMap::new(), Vec::new());
        for line in table()
            .expect("a table")
            .iter()
            .filter(|l| l.program == program)
        {
            if line.families.iter().any(|f| f == family) {
                line.read(&metadata, &mut said, &mut inert);
            }
        }
        let reference = Recipe::shipped(&RecipeName::reference(family, flavor)).expect("shipped");
        let fields = fields(&reference, Some(&program), &said).expect("fields");
        (fields, inert.len())
    }

    #[test]
    fn every_field_of_the_table_is_one_of_a_recipe_of_its_families() {
        for line in table().expect("a table") {
            for family in &line.families {
                let family = crate::models::family(family).expect("a family");
                let flavor = family.flavors.first().expect("a flavor").name;
                let name = RecipeName::reference(family.name, flavor);
                let recipe = Recipe::shipped(&name).expect("shipped");
                // Of encoders that one of several families lacks, there is no field.
                let known = |field: &&String| recipe.fields().contains_key(*field);
                assert!(
                    line.inert.is_some() || line.fields.iter().any(|f| known(&f)),
                    "{}",
                    line.key
                );
            }
        }
    }

    #[test]
    fn what_kohya_records_is_told_and_what_it_does_not() {
        let (fields, inert) = said(
            "flux1",
            "dev",
            &[
                ("ss_apply_t5_attn_mask", "True"),
                ("ss_clip_skip", "2"),
                ("ss_max_token_length", "225"),
            ],
        );
        let of = |name: &str| fields.iter().find(|f| f.field == name);
        let mask = of("t5.forward.mask").expect("recorded");
        assert!(mask.differs());
        assert_eq!(mask.said, Some(json!("pads")));
        assert_eq!(inert, 2);
        let cleanup = of("t5.tokens.cleanup").expect("kohya's own");
        assert_eq!((cleanup.said.clone(), cleanup.differs()), (None, false));
        // As expected by default, but it can be set, and the file does not tell.
        let length = of("t5.tokens.max_tokens").expect("of interest");
        assert_eq!((&length.said, &length.usual), (&None, &Some(json!(512))));
    }

    #[test]
    fn numbers_are_counted_as_the_recipe_counts() {
        let config = r#"{"text_encoder_layer_skip": 1, "text_encoder_2_layer_skip": 0}"#;
        let pairs = [("ot_branch", "master"), ("ot_config", config)];
        let (fields, _) = said("sdxl", "base-1.0", &pairs);
        let of = |name: &str| {
            fields
                .iter()
                .find(|f| f.field == name)
                .and_then(|f| f.said.clone())
        };
        assert_eq!(of("clip_l.forward.hidden_layer"), Some(json!(-3)));
        assert_eq!(of("clip_g.forward.hidden_layer"), Some(json!(-2)));
    }
}
