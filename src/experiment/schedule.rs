//! Where an Experiment says nothing of the noise schedule, its base model has the word; where both do, they must agree.

use std::path::Path;

use super::{DdpmPrediction, Error, Experiment};
use crate::diffusion::Prediction;
use crate::models::schedule::{REMEDY, shift_word, word};
use crate::models::{Flavor, Schedule};
use crate::shown;

impl Experiment {
    /// The Experiment as if it had the lines that its model says; and what these are, as sentences, where the flavor's other models
    /// are not so.
    ///
    /// # Errors
    /// If it, or the flavor that it names, says otherwise than the model; or where nothing but the name of a model says that it is
    /// of the other kind.
    pub fn completed(
        &self,
        flavor: &Flavor,
        said: &Schedule,
    ) -> Result<(Self, Vec<String>), Error> {
        self.check_agrees(said)?;
        self.check_flavor_agrees(flavor, said)?;
        let (mut own, mut notes) = (self.clone(), Vec::new());
        let model = &mut own.raw.model;
        if let (None, Some(said)) = (model.prediction, &said.prediction)
            // What the flavor says anyway is left out: the fingerprints of trainings stay what they were.
            && said.value != flavor.process.prediction
        {
            model.prediction = Some(match said.value {
                Prediction::Velocity => DdpmPrediction::V,
                _ => DdpmPrediction::Epsilon,
            });
            let word = word(said.value);
            notes.push(format!(
                "the model says that it predicts {word} ({})",
                said.place
            ));
        }
        if let (None, Some(said)) = (model.zero_terminal_snr, &said.zero_terminal_snr)
            && said.value
            && !flavor.process.zero_terminal_snr
        {
            model.zero_terminal_snr = Some(true);
            notes.push(format!(
                "the model says that its noise schedule ends in pure noise ({})",
                said.place
            ));
        }
        // Most single files are silent, and a wrong guess trains to the end without an error.
        if model.prediction.is_none() && said.prediction.is_none() && !flavor.process.is_flow() {
            notes.push(format!(
                "the model does not say what it predicts: taken as {}, as flavor `{}` has it (else write `prediction` under [model])",
                word(flavor.process.prediction),
                flavor.name
            ));
        }
        let (train, sample) = (&mut own.raw.train, &mut own.raw.sample);
        if let Some(said) = &said.shift
            && flavor.shift.as_scheduler_says(said.value) != flavor.shift
            && (train.shift.is_none() || sample.shift.is_none())
        {
            train.shift = train.shift.or(Some(said.value));
            sample.shift = sample.shift.or(Some(said.value));
            notes.push(format!(
                "the model says that its noise levels are shifted by {}, others of its flavor by {} ({})",
                shift_word(said.value),
                shift_word(flavor.shift),
                said.place
            ));
        }
        Ok((own, notes))
    }

    /// A flavor that is of v-prediction says so by its name, as the Experiment does by `prediction`. Those of epsilon are the
    /// usual ones, and follow the model.
    fn check_flavor_agrees(&self, flavor: &Flavor, said: &Schedule) -> Result<(), Error> {
        let model = &self.raw.model;
        let process = flavor.process;
        if process.is_flow() || model.prediction.is_some() {
            return Ok(());
        }
        let of_flavor = word(process.prediction);
        if let Some(said) = &said.prediction {
            if process.prediction == Prediction::Velocity && said.value != process.prediction {
                let why = format!(
                    "the flavor `{}` predicts {of_flavor}, the model {} says {} ({}); name the flavor that the model is of, or {REMEDY}",
                    flavor.name,
                    shown::path(&model.path),
                    word(said.value),
                    said.place
                );
                return Err(self.wrong("model.flavor", why));
            }
        } else if let Some(named) =
            prediction_by_name(&model.path).filter(|named| *named != process.prediction)
        {
            let why = format!(
                "by its name the model {} predicts {}, in its files nothing says so, and the flavor `{}` predicts {of_flavor}: write `prediction = \"v\"` or `prediction = \"epsilon\"` under [model], whichever it was trained with (and `zero_terminal_snr = true` for NoobAI's v-prediction models)",
                shown::path(&model.path),
                word(named),
                flavor.name
            );
            return Err(self.wrong("model.prediction", why));
        }
        if let (true, None, Some(said)) = (
            process.zero_terminal_snr,
            model.zero_terminal_snr,
            &said.zero_terminal_snr,
        ) && !said.value
        {
            let why = format!(
                "the noise schedule of the flavor `{}` ends in pure noise, that of the model {} does not ({}); name the flavor that the model is of, or {REMEDY}",
                flavor.name,
                shown::path(&model.path),
                said.place
            );
            return Err(self.wrong("model.flavor", why));
        }
        Ok(())
    }

    fn check_agrees(&self, said: &Schedule) -> Result<(), Error> {
        let model = &self.raw.model;
        let conflict = |field: &str, own: &str, theirs: &str, place: &str| {
            let (name, path) = (field.trim_start_matches("model."), shown::path(&model.path));
            let why = format!(
                "the Experiment says {own}, the model {path} says {theirs} ({place}); leave `{name}` out to follow the model, or {REMEDY}"
            );
            Err(self.wrong(field, why))
        };
        let own = model.prediction.map(Prediction::from);
        if let (Some(own), Some(said)) = (own, &said.prediction)
            && own != said.value
        {
            return conflict("model.prediction", word(own), word(said.value), &said.place);
        }
        if let (Some(own), Some(said)) = (model.zero_terminal_snr, &said.zero_terminal_snr)
            && own != said.value
        {
            let (own, theirs) = (own.to_string(), said.value.to_string());
            return conflict("model.zero_terminal_snr", &own, &theirs, &said.place);
        }
        Ok(())
    }
}

/// What the name of a model says that it predicts: a file's or folder's, and the whole of an address on the hub. Words as in
/// `noobaiXLNAIXL_vPred10Version` and `noobaiXLNAIXL_epsilonPred11Version`; where a name has both, neither counts.
fn prediction_by_name(path: &Path) -> Option<Prediction> {
    let whole = path.to_string_lossy();
    let name = match whole.starts_with("hf:") {
        true => whole.to_lowercase(),
        false => path.file_name()?.to_string_lossy().to_lowercase(),
    };
    let name: String = name
        .chars()
        .filter(|c| !matches!(c, '-' | '_' | ' '))
        .collect();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let velocity = has(&["vpred", "vparam"]);
    let epsilon = has(&["epsilon", "epspred"]);
    match (velocity, epsilon) {
        (true, false) => Some(Prediction::Velocity),
        (false, true) => Some(Prediction::Epsilon),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Process;
    use crate::models::{self, Said};

    const V: Option<Prediction> = Some(Prediction::Velocity);
    const EPSILON: Option<Prediction> = Some(Prediction::Epsilon);

    fn said(prediction: Option<Prediction>, zero: Option<bool>) -> Schedule {
        let place = || "there".to_owned();
        Schedule {
            prediction: prediction.map(|value| Said {
                value,
                place: place(),
            }),
            zero_terminal_snr: zero.map(|value| Said {
                value,
                place: place(),
            }),
            shift: None,
        }
    }

    /// The process that a flavor, a model's path, lines under [model] and what the model says come to.
    fn process(
        flavor: &str,
        path: &str,
        lines: &str,
        said: &Schedule,
    ) -> Result<(Process, Vec<String>), String> {
        let text =
            format!("[model]\nfamily = \"sdxl\"\nflavor = {flavor:?}\npath = {path:?}\n{lines}\n");
        let experiment = Experiment::parse(Path::new("a/b.toml"), text).expect("valid");
        let flavor = models::family("sdxl").and_then(|f| f.flavor(flavor));
        let flavor = flavor.expect("a flavor");
        let completed = experiment.completed(flavor, said);
        let (own, notes) = completed.map_err(|error| error.to_string())?;
        let settings = own.settings(flavor).map_err(|error| error.to_string())?;
        Ok((settings.process, notes))
    }

    #[test]
    fn a_model_of_v_prediction_is_never_taken_for_one_of_epsilon_nor_the_reverse() {
        let zero = |prediction| Process {
            prediction,
            zero_terminal_snr: true,
        };
        let plain = Process::new;
        let (v, epsilon) = (Prediction::Velocity, Prediction::Epsilon);
        for (flavor, path, lines, says, wanted, notes) in [
            ("base-1.0", "m", "", said(None, None), plain(epsilon), 1),
            ("base-1.0", "m", "", said(EPSILON, None), plain(epsilon), 0),
            ("illustrious-2.0", "m", "", said(V, None), plain(v), 1),
            ("noobai-1.1", "m", "", said(V, Some(true)), zero(v), 2),
            ("noobai-vpred-1.0", "m", "", said(None, None), zero(v), 1),
            ("noobai-vpred-1.0", "m", "", said(V, None), zero(v), 0),
            ("noobai-vpred-1.0", "m", "", said(V, Some(true)), zero(v), 0),
            (
                "noobai-vpred-1.0",
                "a_vPred.safetensors",
                "",
                said(None, None),
                zero(v),
                1,
            ),
            (
                "pony-v6",
                "a_vPred.safetensors",
                "",
                said(EPSILON, None),
                plain(epsilon),
                0,
            ),
            (
                "pony-v6",
                "a_vPred",
                "prediction = \"v\"",
                said(None, None),
                plain(v),
                0,
            ),
            (
                "pony-v6",
                "a_vPred",
                "prediction = \"epsilon\"",
                said(None, None),
                plain(epsilon),
                0,
            ),
            (
                "noobai-vpred-1.0",
                "m",
                "prediction = \"epsilon\"",
                said(EPSILON, None),
                plain(epsilon),
                0,
            ),
            (
                "noobai-vpred-1.0",
                "m",
                "zero_terminal_snr = false",
                said(V, None),
                plain(v),
                0,
            ),
        ] {
            let what = format!("{flavor} {path} {lines} {says:?}");
            let (found, told) = process(flavor, path, lines, &says).expect(&what);
            assert_eq!((found, told.len()), (wanted, notes), "{what}: {told:?}");
        }
        for (flavor, path, lines, says, why) in [
            (
                "noobai-vpred-1.0",
                "m",
                "",
                said(EPSILON, None),
                "predicts v, the model m says epsilon (there)",
            ),
            (
                "noobai-vpred-1.0",
                "m",
                "",
                said(V, Some(false)),
                "ends in pure noise, that of the model m does not",
            ),
            (
                "noobai-1.1",
                "a_vPred.safetensors",
                "",
                said(None, None),
                "by its name the model a_vPred.safetensors predicts v",
            ),
            (
                "noobai-vpred-1.0",
                "n_epsilonPred11",
                "",
                said(None, None),
                "by its name the model n_epsilonPred11 predicts epsilon",
            ),
            (
                "pony-v6",
                "m",
                "prediction = \"epsilon\"",
                said(V, None),
                "the Experiment says epsilon, the model m says v",
            ),
            (
                "base-1.0",
                "m",
                "",
                said(None, Some(true)),
                "learns nothing from pure noise",
            ),
        ] {
            let error = process(flavor, path, lines, &says).expect_err(why);
            assert!(error.contains(why) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn names_of_models_say_what_they_predict() {
        let by_name = |path: &str| prediction_by_name(Path::new(path));
        let v = Some(Prediction::Velocity);
        for name in [
            "noobaiXLNAIXL_vPred10Version.safetensors",
            "NoobAI-XL-Vpred-v1.0.safetensors",
            "models/sdxl_v-pred.safetensors",
            "some v prediction.safetensors",
            "hf://Laxhar/noobai-XL-Vpred-1.0",
        ] {
            assert_eq!(by_name(name), v, "{name}");
        }
        let epsilon = by_name("noobaiXLNAIXL_epsilonPred11Version.safetensors");
        assert_eq!(epsilon, Some(Prediction::Epsilon));
        for name in [
            "vpred/sd_xl_base_1.0.safetensors",
            "ponyDiffusionV6XL_v6StartWithThisOne.safetensors",
            "IllustriousXL_v0.1.safetensors",
            "epsilon-vs-vpred-merge.safetensors",
        ] {
            assert_eq!(by_name(name), None, "{name}");
        }
    }
}
