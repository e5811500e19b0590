//! Where an Experiment says nothing of the noise schedule, its base model has the word; where both do, they must agree.

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
    /// If it says otherwise than the model.
    pub fn completed(
        &self,
        flavor: &Flavor,
        said: &Schedule,
    ) -> Result<(Self, Vec<String>), Error> {
        self.check_agrees(said)?;
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
        {
            model.zero_terminal_snr = Some(true);
            notes.push(format!(
                "the model says that its noise schedule ends in pure noise ({})",
                said.place
            ));
        }
        let (train, sample) = (&mut own.raw.train, &mut own.raw.sample);
        if let Some(said) = &said.shift
            && said.value != flavor.shift
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
