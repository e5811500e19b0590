//! A LoRA that is to be compared: what it is, what it says of its making, and where the Experiment is that made it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Error;
use crate::base_model::BaseModel;
use crate::convert::provenance::Provenance;
use crate::convert::{ReadFile, ReadLora, read_lora};
use crate::experiment::{Experiment, Variables};
use crate::lora::{self, AdapterSet};
use crate::recipe::{Diff, Recipe};
use crate::sample;
use crate::shown;

/// A LoRA, and what it says of its making.
pub(super) struct Lora {
    read: ReadFile,
    pub(super) made: Option<Provenance>,
}

impl Lora {
    /// Reads it from a file, or from the folder of a training. `family`: of the base model, where that is known.
    pub(super) fn read(path: &Path, family: Option<&str>) -> Result<Self, Error> {
        let options = ReadLora {
            family,
            ..ReadLora::default()
        };
        let read = read_lora(path, &options)?;
        let made = Provenance::read(&read.lora.metadata).map_err(|source| {
            let path = read.file.clone();
            sample::Error::Provenance { path, source }
        })?;
        Ok(Self { read, made })
    }

    /// Its file.
    pub(super) fn file(&self) -> &Path {
        &self.read.file
    }

    pub(super) fn read_file(&self) -> &ReadFile {
        &self.read
    }

    /// The share of its pictures that it held out of training; None where that is not known.
    pub(super) fn validation_share(&self) -> Option<f64> {
        let text = &self.made.as_ref()?.experiment;
        let experiment = Experiment::parse(Path::new(""), text.clone()).ok()?;
        Some(experiment.validation_share())
    }

    /// The recipe that it says it was trained with; None where it says nothing.
    pub(super) fn recipe(&self) -> Result<Option<Recipe>, Error> {
        let Some(made) = &self.made else {
            return Ok(None);
        };
        let failed = |why: String| Error::NoRecipe {
            lora: self.file().to_owned(),
            why,
        };
        let described = &made.recipe;
        let variant = described.get("variant").and_then(Value::as_str);
        let variant = variant.ok_or_else(|| failed("it names no variant".to_owned()))?;
        let mut deviate = toml::Table::new();
        let deviations = described.get("deviations").and_then(Value::as_array);
        for deviation in deviations.into_iter().flatten() {
            let field = deviation.get("field").and_then(Value::as_str);
            let value = deviation.get("value").map(toml::Value::try_from);
            if let (Some(field), Some(Ok(value))) = (field, value) {
                deviate.insert(field.to_owned(), value);
            }
        }
        let recipe = Recipe::resolve(&made.family, &made.flavor, variant, &deviate)
            .map_err(|e| failed(e.to_string()))?;
        if recipe.fingerprint() == made.recipe_fingerprint {
            return Ok(Some(recipe));
        }
        // A later version may have corrected a recipe's data: what it has now is not what the LoRA saw.
        let rules = described.get("rules").cloned().unwrap_or_default();
        let diff = Diff::between(&rules, &recipe.rules());
        let first = diff
            .fields
            .first()
            .map(|f| shown::text(&f.field).to_string());
        Err(failed(format!(
            "`{}` has become another one since{}",
            shown::text(variant),
            first.map_or_else(String::new, |field| format!(", first in `{field}`"))
        )))
    }

    /// Its adapters, checked to fit a base model.
    pub(super) fn adapters(self, base: &BaseModel) -> Result<AdapterSet, Error> {
        let adapters = lora::formats::adapters(self.read.lora.modules)?;
        adapters.check(base.denoiser.linears())?;
        Ok(adapters)
    }
}

/// The name of an Experiment that lies in no file.
const CARRIED: &str = "the LoRA's Experiment";

/// What a message calls the Experiment of a comparison: by its file, or by A, which carries it.
pub(super) fn named(experiment: &Experiment, a: &Lora) -> String {
    match experiment.file.file_name() == Some(CARRIED.as_ref()) {
        true => format!("the Experiment in {}", shown::path(a.file())),
        false => shown::path(&experiment.file).to_string(),
    }
}

/// The Experiment that a LoRA of ours carries. Its relative paths start from where the training's folder says that the Experiment
/// lay: a file `work/out/style.safetensors` whose Experiment has `output = "out"` was made by one in `work`.
///
/// # Errors
/// If the file is no LoRA of ours, its Experiment cannot be read, or it does not lie where the Experiment says.
pub fn experiment_of(path: &Path, variables: &Variables) -> Result<Experiment, Error> {
    let lora = Lora::read(path, None)?;
    let no_experiment = |why: String| Error::NoExperiment {
        lora: lora.file().to_owned(),
        why,
    };
    let Some(made) = &lora.made else {
        return Err(no_experiment("says nothing of its Experiment".to_owned()));
    };
    let unreadable = |e: crate::experiment::Error| {
        no_experiment(format!(
            "the Experiment that it carries cannot be read: {e}"
        ))
    };
    let name = Path::new(CARRIED);
    let parsed = Experiment::parse(name, made.experiment.clone()).map_err(unreadable)?;
    let output = parsed.output_path().unwrap_or_default();
    let folder = std::path::absolute(lora.file()).unwrap_or_else(|_| lora.file().to_owned());
    let folder = folder.parent().unwrap_or(Path::new("."));
    let root = root(folder, &output).ok_or_else(|| {
        no_experiment(format!(
            "its Experiment says `output = \"{}\"`, and it lies elsewhere now",
            shown::path(&output)
        ))
    })?;
    Experiment::of_text(&root.join(name), made.experiment.clone(), variables).map_err(unreadable)
}

/// The folder of an Experiment whose `output` is `folder`.
fn root(folder: &Path, output: &Path) -> Option<PathBuf> {
    let plain: PathBuf = output
        .components()
        .filter(|part| !matches!(part, std::path::Component::CurDir))
        .collect();
    if plain.as_os_str().is_empty() || !folder.ends_with(&plain) {
        return None;
    }
    if plain.is_absolute() {
        // Only absolute paths can be meant by it; a relative one fails by its name where it is used.
        return Some(folder.to_owned());
    }
    folder
        .ancestors()
        .nth(plain.components().count())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::root;
    use std::path::{Path, PathBuf};

    #[test]
    fn an_experiment_lies_where_its_output_starts() {
        let of = |folder: &str, output: &str| root(Path::new(folder), Path::new(output));
        assert_eq!(of("/runs/a/out", "out"), Some(PathBuf::from("/runs/a")));
        assert_eq!(of("/runs/a/out", "./out"), Some(PathBuf::from("/runs/a")));
        assert_eq!(of("/runs/a/out", "a/out"), Some(PathBuf::from("/runs")));
        assert_eq!(
            of("/runs/out", "/runs/out"),
            Some(PathBuf::from("/runs/out"))
        );
        assert_eq!(of("/runs/moved", "out"), None);
        assert_eq!(of("/runs/out", ""), None);
        // A folder beside the Experiment's: where it lay is not told by the end of the path.
        assert_eq!(of("/runs/out", "../out"), None);
    }
}
