//! Ranges that types cannot say.

use super::raw::{Dataset, Precision, Raw};
use crate::diffusion::Shift;
use crate::models;

impl Raw {
    /// The first value out of its range, with its field.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let t = &self.train;
        let fail = |field: &str, why: String| Err((field.to_owned(), why));
        let positive = [
            ("train.steps", t.steps as f64),
            ("train.batch_size", t.batch_size as f64),
            (
                "train.gradient_accumulation",
                t.gradient_accumulation as f64,
            ),
            ("train.learning_rate", t.learning_rate),
            ("train.epsilon", t.epsilon),
            ("train.keep_checkpoints", t.keep_checkpoints as f64),
            ("train.logit_std", t.logit_std),
            ("train.shift", t.shift.and_then(Shift::fixed).unwrap_or(1.0)),
            ("train.min_snr_gamma", t.min_snr_gamma.unwrap_or(1.0)),
            ("adapter.rank", self.adapter.rank as f64),
            ("adapter.alpha", self.adapter.alpha.unwrap_or(1.0)),
            (
                "sample.shift",
                self.sample.shift.and_then(Shift::fixed).unwrap_or(1.0),
            ),
            ("sample.steps", self.sample.steps.unwrap_or(1) as f64),
            ("sample.width", f64::from(self.sample.width.unwrap_or(1))),
            ("sample.height", f64::from(self.sample.height.unwrap_or(1))),
        ];
        for (field, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return fail(field, format!("expected a number above 0, found {value}"));
            }
        }
        let shares = [
            ("train.caption_dropout", t.caption_dropout),
            ("train.validation_share", t.validation_share),
            ("adapter.dropout", self.adapter.dropout),
            ("train.beta1", t.beta1),
            ("train.beta2", t.beta2),
        ];
        for (field, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return fail(
                    field,
                    format!("expected at least 0 and less than 1, found {value}"),
                );
            }
        }
        let not_negative = [
            ("train.max_grad_norm", t.max_grad_norm),
            ("train.weight_decay", t.weight_decay),
            ("train.noise_offset", t.noise_offset),
            ("train.guidance", t.guidance.unwrap_or(0.0)),
            ("sample.guidance", self.sample.guidance.unwrap_or(0.0)),
            ("sample.true_cfg", self.sample.true_cfg.unwrap_or(0.0)),
        ];
        for (field, value) in not_negative {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(field, format!("expected 0 or more, found {value}"));
            }
        }
        for (field, value) in [
            ("train.logit_mean", t.logit_mean),
            ("train.mode_scale", t.mode_scale),
        ] {
            if !value.is_finite() {
                return fail(field, format!("expected a finite number, found {value}"));
            }
        }
        if t.compute == Some(Precision::F16) {
            return fail(
                "train.compute",
                "expected f32 or bf16 (in f16 gradients underflow), found f16".to_owned(),
            );
        }
        if t.name.is_empty() || t.name.contains(['/', '\\', '\0']) || t.name.starts_with('.') {
            return fail(
                "train.name",
                format!("expected a plain file name, found `{}`", t.name),
            );
        }
        self.check_datasets()
    }

    fn check_datasets(&self) -> Result<(), (String, String)> {
        // What the family's released models need. The model's own VAE, which nobody has opened yet, has the last word.
        let family = models::family(&self.model.family);
        let multiple = family.map_or(1, |family| family.latents().side_multiple());
        for (i, d) in self.dataset.iter().enumerate() {
            d.check(multiple)
                .map_err(|(field, why)| (format!("dataset[{i}].{field}"), why))?;
        }
        Ok(())
    }
}

impl Dataset {
    /// The shortest side of a bucket, in px.
    pub fn min_bucket_px(&self) -> u32 {
        self.min_bucket
            .unwrap_or_else(|| (self.resolution / 2).clamp(self.bucket_step, 256))
    }

    /// The longest side of a bucket, in px.
    pub fn max_bucket_px(&self) -> u32 {
        self.max_bucket.unwrap_or(self.resolution.saturating_mul(2))
    }

    /// `multiple`: what the sides of pictures are multiples of, in px.
    fn check(&self, multiple: u32) -> Result<(), (String, String)> {
        let fail = |field: &str, why: String| Err((field.to_owned(), why));
        if self.repeats == 0 {
            return fail(
                "repeats",
                "expected 1 or more; leave the data set out to use none of it".to_owned(),
            );
        }
        if !(1..=64).contains(&self.crops) {
            return fail("crops", format!("expected 1 to 64, found {}", self.crops));
        }
        if self.bucket_step == 0 || !self.bucket_step.is_multiple_of(multiple) {
            let found = self.bucket_step;
            return fail(
                "bucket_step",
                format!("expected a multiple of {multiple} px, found {found}"),
            );
        }
        if !(self.bucket_step..=16_384).contains(&self.resolution) {
            let (step, found) = (self.bucket_step, self.resolution);
            return fail(
                "resolution",
                format!("expected {step} to 16384 px, found {found}"),
            );
        }
        if self.min_bucket_px() > self.resolution || self.max_bucket_px() < self.resolution {
            let (min, max) = (self.min_bucket_px(), self.max_bucket_px());
            let found = self.resolution;
            return fail(
                "resolution",
                format!("expected it within min_bucket {min} and max_bucket {max}, found {found}"),
            );
        }
        Ok(())
    }
}
