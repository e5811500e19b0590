//! Ranges that types cannot say.

use super::raw::{Dataset, Precision, Raw};
use crate::diffusion::Shift;
use crate::models;

/// A field by its dotted name, and what is wrong with it.
type FieldProblem = (String, String);

impl Raw {
    /// The first value out of its range, with its field.
    pub(super) fn check(&self) -> Result<(), FieldProblem> {
        self.check_positive()?;
        self.check_shares()?;
        self.check_not_negative()?;
        let t = &self.train;
        let finite = [
            ("train.logit_mean", t.logit_mean),
            ("train.mode_scale", t.mode_scale),
        ];
        first_without(&finite, f64::is_finite, "a finite number")?;
        if t.compute == Some(Precision::F16) {
            return wrong(
                "train.compute",
                "expected f32 or bf16 (in f16 gradients underflow), found f16",
            );
        }
        // It becomes the name of files in `train.output`, and must not lead out of it or hide them.
        if t.name.is_empty() || t.name.contains(['/', '\\', '\0']) || t.name.starts_with('.') {
            let why = format!("expected a plain file name, found `{}`", t.name);
            return wrong("train.name", why);
        }
        self.check_datasets()
    }

    fn check_datasets(&self) -> Result<(), FieldProblem> {
        // What the family's released models need. The model's own VAE, which nobody has opened yet, has the last word.
        let family = models::family(&self.model.family);
        let multiple = family.map_or(1, |family| family.latents().side_multiple());
        for (i, d) in self.dataset.iter().enumerate() {
            d.check(multiple)
                .map_err(|(field, why)| (format!("dataset[{i}].{field}"), why))?;
        }
        Ok(())
    }

    fn check_positive(&self) -> Result<(), FieldProblem> {
        let (t, s) = (&self.train, &self.sample);
        // A shift by resolution has no number to check.
        let fixed = |shift: Option<Shift>| shift.and_then(Shift::fixed).unwrap_or(1.0);
        // As f64, in which a large count is rounded: only 0 is told from the others here.
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
            ("train.shift", fixed(t.shift)),
            ("train.min_snr_gamma", t.min_snr_gamma.unwrap_or(1.0)),
            ("adapter.rank", self.adapter.rank as f64),
            ("adapter.alpha", self.adapter.alpha.unwrap_or(1.0)),
            ("sample.shift", fixed(s.shift)),
            ("sample.steps", s.steps.unwrap_or(1) as f64),
            ("sample.width", f64::from(s.width.unwrap_or(1))),
            ("sample.height", f64::from(s.height.unwrap_or(1))),
        ];
        let is_positive = |value: f64| value > 0.0 && value.is_finite();
        first_without(&positive, is_positive, "a number above 0")
    }

    fn check_shares(&self) -> Result<(), FieldProblem> {
        let t = &self.train;
        // A beta of 1 would never move its moment, dropout of 1 leave nothing to scale up, a share of 1 nothing to
        // train.
        let shares = [
            ("train.caption_dropout", t.caption_dropout),
            ("train.validation_share", t.validation_share),
            ("adapter.dropout", self.adapter.dropout),
            ("train.beta1", t.beta1),
            ("train.beta2", t.beta2),
        ];
        let is_share = |value: f64| (0.0..1.0).contains(&value);
        first_without(&shares, is_share, "at least 0 and less than 1")
    }

    fn check_not_negative(&self) -> Result<(), FieldProblem> {
        let t = &self.train;
        let not_negative = [
            ("train.max_grad_norm", t.max_grad_norm),
            ("train.weight_decay", t.weight_decay),
            ("train.noise_offset", t.noise_offset),
            ("train.guidance", t.guidance.unwrap_or(0.0)),
            ("sample.guidance", self.sample.guidance.unwrap_or(0.0)),
            ("sample.true_cfg", self.sample.true_cfg.unwrap_or(0.0)),
        ];
        let is_not_negative = |value: f64| value >= 0.0 && value.is_finite();
        first_without(&not_negative, is_not_negative, "0 or more")
    }
}

fn first_without(
    fields: &[(&str, f64)],
    is_right: impl Fn(f64) -> bool,
    expected: &str,
) -> Result<(), FieldProblem> {
    match fields.iter().find(|(_, value)| !is_right(*value)) {
        None => Ok(()),
        Some((field, found)) => wrong(field, format!("expected {expected}, found {found}")),
    }
}

fn wrong(field: &str, why: impl Into<String>) -> Result<(), FieldProblem> {
    Err((field.to_owned(), why.into()))
}

impl Dataset {
    /// The shortest side of a bucket, in px.
    pub fn min_bucket_px(&self) -> u32 {
        let [width, height] = self.resolution.sides();
        // 256 is kohya's default (`--min_bucket_reso`); it rounds down as well.
        let usual = (width.min(height) / 2).min(256);
        let in_steps = usual / self.bucket_step.max(1) * self.bucket_step;
        self.min_bucket.unwrap_or(in_steps.max(self.bucket_step))
    }

    /// The longest side of a bucket, in px.
    pub fn max_bucket_px(&self) -> u32 {
        let [width, height] = self.resolution.sides();
        // kohya rounds up as well.
        let usual = width.max(height).saturating_mul(2);
        let in_steps = usual
            .div_ceil(self.bucket_step.max(1))
            .saturating_mul(self.bucket_step);
        self.max_bucket.unwrap_or(in_steps)
    }

    /// `multiple`: what the sides of pictures are multiples of, in px.
    fn check(&self, multiple: u32) -> Result<(), FieldProblem> {
        if self.repeats == 0 {
            return wrong(
                "repeats",
                "expected 1 or more; leave the data set out to use none of it",
            );
        }
        // Each crop is an entry of the store.
        if !(1..=64).contains(&self.crops) {
            return wrong("crops", format!("expected 1 to 64, found {}", self.crops));
        }
        if self.no_upscale && !self.bucket {
            let why = "expected `bucket = true` beside it: without buckets every picture is brought to the resolution";
            return wrong("no_upscale", why);
        }
        self.check_buckets(multiple)
    }

    fn check_buckets(&self, multiple: u32) -> Result<(), FieldProblem> {
        let step = self.bucket_step;
        if step == 0 || !step.is_multiple_of(multiple) {
            return wrong(
                "bucket_step",
                format!("expected a multiple of {multiple} px, found {step}"),
            );
        }
        let sides = self.resolution.sides();
        if let Some(found) = sides.iter().find(|side| !(step..=16_384).contains(side)) {
            return wrong(
                "resolution",
                format!("expected {step} to 16384 px, found {found}"),
            );
        }
        if !self.bucket {
            return match sides.iter().find(|side| !side.is_multiple_of(multiple)) {
                None => Ok(()),
                Some(found) => {
                    let why = format!(
                        "expected multiples of {multiple} px without buckets, found {found}"
                    );
                    wrong("resolution", why)
                }
            };
        }
        let (min, max) = (self.min_bucket_px(), self.max_bucket_px());
        for (field, side) in [("min_bucket", min), ("max_bucket", max)] {
            if side == 0 || side > 1 << 16 || !side.is_multiple_of(step) {
                let why = format!(
                    "expected a multiple of `bucket_step` {step} px up to 65536, found {side}"
                );
                return wrong(field, why);
            }
        }
        match sides.iter().find(|side| !(min..=max).contains(side)) {
            None => Ok(()),
            Some(found) => {
                let why = format!(
                    "expected it within min_bucket {min} and max_bucket {max}, found {found}"
                );
                wrong("resolution", why)
            }
        }
    }
}
