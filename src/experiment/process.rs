//! What an Experiment makes of its flavor's process, and options that are not for it.

use super::{Error, Experiment};
use crate::diffusion::{LossWeighting, Prediction, Process, Sampler, TimestepSampling};

impl Experiment {
    /// The flavor's process with what `[model]` says otherwise; `embedded_guidance` is the
    /// usual input of its guidance embedding, if it has one. Options of `[train]` and `[sample]` that mean nothing to it are refused.
    ///
    /// # Errors
    /// For the first such option.
    pub(super) fn process(
        &self,
        of_flavor: Process,
        embedded_guidance: Option<f64>,
    ) -> Result<Process, Error> {
        let model = &self.raw.model;
        let found = match of_flavor.is_flow() {
            true => self.misplaced_in_flow(),
            false => self.misplaced_in_ddpm(),
        };
        if let Some((field, why)) = found {
            return Err(self.wrong(
                field,
                format!("{why}; `{}` is {}", self.raw.model.flavor, kind(of_flavor)),
            ));
        }
        let of_distilled = [
            ("train.guidance", self.raw.train.guidance),
            ("sample.true_cfg", self.raw.sample.true_cfg),
        ];
        let misplaced = of_distilled.into_iter().find(|(_, value)| value.is_some());
        if let (Some((field, _)), None) = (misplaced, embedded_guidance) {
            let why = "this option is for guidance-distilled models, which have a guidance embedding; leave it out";
            return Err(self.wrong(
                field,
                format!("{why}; `{}` has none", self.raw.model.flavor),
            ));
        }
        // After the checks above: only a DDPM flavor may be told another prediction.
        let prediction = model
            .prediction
            .map_or(of_flavor.prediction, Prediction::from);
        // A flavor's schedule ends in pure noise because of what it predicts.
        let of_flavor_too = prediction == of_flavor.prediction && of_flavor.zero_terminal_snr;
        let zero_terminal_snr = model.zero_terminal_snr.unwrap_or(of_flavor_too);
        if zero_terminal_snr && prediction == Prediction::Epsilon {
            let why = "a model that predicts noise learns nothing from pure noise; set `prediction = \"v\"` if the model was trained so";
            return Err(self.wrong("model.zero_terminal_snr", why.to_owned()));
        }
        Ok(Process {
            prediction,
            zero_terminal_snr,
        })
    }

    pub(super) fn wrong(&self, field: &str, why: String) -> Error {
        Error::Value {
            file: self.file.clone(),
            line: None,
            field: field.to_owned(),
            why,
        }
    }

    fn misplaced_in_flow(&self) -> Option<(&'static str, &'static str)> {
        let (model, train) = (&self.raw.model, &self.raw.train);
        let flow = Process::new(Prediction::Flow);
        let sampler = self.raw.sample.sampler;
        // An option at its default cannot be told from one that was left out, and does no harm.
        let options = [
            ("model.prediction", model.prediction.is_some()),
            (
                "model.zero_terminal_snr",
                model.zero_terminal_snr == Some(true),
            ),
            ("train.min_snr_gamma", train.min_snr_gamma.is_some()),
            ("train.noise_offset", train.noise_offset != 0.0),
        ];
        if sampler.is_some_and(|sampler| !sampler.fits(flow)) {
            return Some((
                "sample.sampler",
                "this sampler is for DDPM models; use `euler` or `unipc`",
            ));
        }
        let found = options.into_iter().find(|(_, set)| *set)?;
        Some((
            found.0,
            "this option is for DDPM models (`sd1`, `sdxl`); leave it out",
        ))
    }

    fn misplaced_in_ddpm(&self) -> Option<(&'static str, &'static str)> {
        let (train, sample) = (&self.raw.train, &self.raw.sample);
        if sample.sampler == Some(Sampler::Unipc) {
            return Some((
                "sample.sampler",
                "this sampler is for models of rectified flow; use another",
            ));
        }
        let is_uneven = |sampling| sampling != TimestepSampling::Uniform;
        if train.timestep_sampling.is_some_and(is_uneven) {
            return Some((
                "train.timestep_sampling",
                "the steps of a DDPM model are visited evenly: use `uniform`",
            ));
        }
        let options = [
            ("train.shift", train.shift.is_some()),
            (
                "train.loss_weighting",
                train.loss_weighting != LossWeighting::None,
            ),
            ("sample.shift", sample.shift.is_some()),
        ];
        let found = options.into_iter().find(|(_, set)| *set)?;
        Some((
            found.0,
            "this option is for models of rectified flow; leave it out",
        ))
    }
}

fn kind(of_flavor: Process) -> &'static str {
    match of_flavor.is_flow() {
        true => "a model of rectified flow",
        false => "a DDPM model",
    }
}
