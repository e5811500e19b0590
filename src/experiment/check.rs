//! What neither types nor the bounds of single numbers say.

use super::bounds::SMALL;
use super::file_name;
use super::raw::{Dataset, Precision, Products, QuantizedWeights, Raw, Warmup};
use crate::models;
use crate::shown;
use crate::store::Address;

/// A field by its dotted name, and what is wrong with it.
pub(super) type FieldProblem = (String, String);

impl Raw {
    /// The first field that contradicts another or names what cannot be.
    pub(super) fn check(&self) -> Result<(), FieldProblem> {
        let t = &self.train;
        if t.compute == Some(Precision::F16) {
            return wrong(
                "train.compute",
                "expected f32 or bf16 (in f16 gradients underflow), found f16",
            );
        }
        if let Some(why) = file_name::problem(&t.name) {
            return wrong("train.name", why);
        }
        if t.max_grad_norm > 0.0 && t.max_grad_norm < SMALL {
            let found = shown::number(t.max_grad_norm);
            let why = format!(
                "expected 0, which clips nothing, or at least {SMALL:e}, found {found}: clipped so far, gradients train nothing"
            );
            return wrong("train.max_grad_norm", why);
        }
        self.check_length()?;
        let prompts = self.check_prompts();
        prompts.map_err(|(field, why)| (field.to_owned(), why))?;
        self.check_store()?;
        self.check_model()?;
        self.check_datasets()?;
        self.check_clips()?;
        self.check_references()
    }

    /// That the training has one length, and its warm-up an end in it.
    fn check_length(&self) -> Result<(), FieldProblem> {
        let t = &self.train;
        if t.steps.is_some() && t.epochs.is_some() {
            return wrong("train.epochs", "expected `steps` or `epochs`, found both");
        }
        match (t.warmup_steps, t.steps) {
            (Warmup::Share(share), _) if !(0.0..1.0).contains(&share) => wrong(
                "train.warmup_steps",
                format!(
                    "expected a whole number of steps, or a share of at least 0 and less than 1, found {share}"
                ),
            ),
            // Of a training that is counted in epochs the steps are not known here.
            (Warmup::Steps(warmup), Some(steps)) if warmup > steps => wrong(
                "train.warmup_steps",
                format!("expected at most the {steps} steps of the training, found {warmup}"),
            ),
            _ => Ok(()),
        }
    }

    /// That a store on object storage has an address, and what only such a one has is said of no other.
    fn check_store(&self) -> Result<(), FieldProblem> {
        let store = &self.store;
        let address = store.path.as_deref().filter(|path| Address::is_one(path));
        if let Some(address) = address {
            let parsed = Address::parse(&address.to_string_lossy());
            return parsed.map_or_else(|why| wrong("store.path", why), |_| Ok(()));
        }
        let why = "only a store on object storage has it; leave it out, or give an address as `path`, such as s3://bucket/prefix";
        match (&store.cache, store.cache_gb, store.compress) {
            (Some(_), _, _) => wrong("store.cache", why),
            (None, Some(_), _) => wrong("store.cache_gb", why),
            (None, None, true) => wrong("store.compress", why),
            (None, None, false) => Ok(()),
        }
    }

    fn check_model(&self) -> Result<(), FieldProblem> {
        let (family, flavor) = (&self.model.family, &self.model.flavor);
        let found = models::family(family).and_then(|family| family.flavor(flavor));
        match found {
            Err(models::Error::NoSuchFamily { found, known }) => {
                let why = format!("expected one of {known}, found `{}`", shown::text(&found));
                wrong("model.family", why)
            }
            Err(e) => wrong("model.flavor", e.to_string()),
            Ok(_) => self.check_weights(),
        }
    }

    /// That products can read the weights as they are kept.
    fn check_weights(&self) -> Result<(), FieldProblem> {
        let kept = match (self.model.compute, self.model.weights) {
            (Some(Products::Fp8), Some(QuantizedWeights::Int8)) => "int8",
            (Some(Products::Fp8), Some(QuantizedWeights::Nf4)) => "nf4",
            _ => return Ok(()),
        };
        wrong(
            "model.weights",
            format!("expected `fp8`, or nothing, beside `compute = \"fp8\"`, found {kept}"),
        )
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
}

pub(super) fn wrong(field: &str, why: impl Into<String>) -> Result<(), FieldProblem> {
    Err((field.to_owned(), why.into()))
}

/// What stands in a caption for the trigger word, in any case.
pub(crate) const PLACEHOLDER: &str = "[trigger]";

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
        if !self.bucket {
            let bounds = [
                ("min_bucket", self.min_bucket),
                ("max_bucket", self.max_bucket),
            ];
            if let Some((field, _)) = bounds.into_iter().find(|(_, bound)| bound.is_some()) {
                return wrong(
                    field,
                    "with `bucket = false` there is one size; leave it out",
                );
            }
        }
        if self.no_upscale && !self.bucket {
            let why = "expected `bucket = true` beside it: without buckets every picture is brought to the resolution";
            return wrong("no_upscale", why);
        }
        self.check_captions()?;
        self.check_tags()?;
        self.check_buckets(multiple)
    }

    /// Whether there are variants of its captions.
    pub fn varies_tags(&self) -> bool {
        self.shuffle_tags || self.tag_dropout > 0.0
    }

    fn check_captions(&self) -> Result<(), FieldProblem> {
        let extension = self.caption_extension.as_deref();
        // What no file's name can end in, of the part behind its last point.
        let is_none = |text: &str| {
            let text = text.strip_prefix('.').unwrap_or(text);
            text.is_empty() || text.contains(['/', '\\', '.'])
        };
        if let Some(found) = extension.filter(|text| is_none(text)) {
            let found = shown::text(found);
            return wrong(
                "caption_extension",
                format!(
                    "expected what stands behind a name's last point, such as `txt`, found `{found}`"
                ),
            );
        }
        let trigger = self.trigger.as_deref().unwrap_or_default();
        match trigger.to_ascii_lowercase().contains(PLACEHOLDER) {
            true => wrong(
                "trigger",
                format!(
                    "`{PLACEHOLDER}` stands in captions for the word: expected the word itself, such as `sks`"
                ),
            ),
            false => Ok(()),
        }
    }

    fn check_tags(&self) -> Result<(), FieldProblem> {
        let separator = self.keep_tags_separator.as_deref();
        if separator.is_some_and(|text| text.trim().is_empty() || text.contains(',')) {
            let why = "expected signs that no tag has, such as `|||`, and no comma, which separates all tags";
            return wrong("keep_tags_separator", why);
        }
        if self.varies_tags() {
            return Ok(());
        }
        let options = [
            ("keep_tags", self.keep_tags > 0),
            ("keep_tags_separator", separator.is_some()),
            ("caption_variants", self.caption_variants.is_some()),
        ];
        match options.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((field, _)) => wrong(
                field,
                "tags are neither shuffled nor left out: set `shuffle_tags = true` (or `tag_dropout`), or leave it out",
            ),
        }
    }

    fn check_buckets(&self, multiple: u32) -> Result<(), FieldProblem> {
        let step = self.bucket_step;
        if !step.is_multiple_of(multiple) {
            return wrong(
                "bucket_step",
                format!("expected a multiple of {multiple} px, found {step}"),
            );
        }
        let sides = self.resolution.sides();
        if let Some(found) = sides.iter().find(|side| **side < step) {
            return wrong(
                "resolution",
                format!("expected at least the bucket_step of {step} px, found {found}"),
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
