//! What the numbers of an Experiment may be: one table, which the check of a file reads and the JSON Schema too, so that they cannot
//! differ. A bound is generous: it keeps what follows from overflowing and from asking for memory that no machine has, and
//! catches a slip of the keyboard. What fits into this machine's memory, the memory plan says.

use std::fmt;

use serde_json::{Value, json};

use crate::shown;

use Range::{Above, Below, Real, Whole};

/// The numbers that a field takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Range {
    /// Whole numbers, both ends included.
    Whole(i64, i64),
    /// Numbers, both ends included.
    Real(f64, f64),
    /// Numbers above the first, up to the second.
    Above(f64, f64),
    /// Numbers from the first to below the second.
    Below(f64, f64),
}

/// The largest whole number up to which JSON, that fingerprints are taken of, tells all from each other: two seeds beyond it
/// could have one fingerprint.
const EXACT: i64 = (1 << 53) - 1;
/// Steps of a training.
const STEPS: i64 = 1_000_000_000;
/// A picture's side in px.
const SIDE: i64 = 16_384;
/// What no scale needs more of.
const LARGE: f64 = 1e6;
/// What trains nothing: beside the numbers of any LoRA a change of this size is lost in the rounding of f32.
pub(super) const SMALL: f64 = 1e-30;

/// The fields with numbers, without the place in a list, and what they may be.
pub(super) const FIELDS: [(&str, Range); 51] = [
    // At least four packs, to an exabyte.
    ("store.cache_gb", Real(1.0, 1e9)),
    ("dataset.repeats", Whole(1, 100_000)),
    ("dataset.resolution", Whole(8, SIDE)),
    ("dataset.bucket_step", Whole(1, SIDE)),
    ("dataset.min_bucket", Whole(1, SIDE)),
    ("dataset.max_bucket", Whole(8, 2 * SIDE)),
    // Each crop is an entry of the store.
    ("dataset.crops", Whole(1, 64)),
    // The longest that a model makes has some hundreds.
    ("dataset.frames", Whole(1, 10_001)),
    // In thousandths.
    ("dataset.frame_rate", Real(0.001, 1000.0)),
    // A day.
    ("dataset.clip_start", Real(0.0, 86_400.0)),
    ("dataset.keep_tags", Whole(0, 1000)),
    ("dataset.tag_dropout", Below(0.0, 1.0)),
    // Each is an entry of the store for each encoder.
    ("dataset.caption_variants", Whole(2, 1000)),
    ("adapter.rank", Whole(1, 65_536)),
    ("adapter.alpha", Real(SMALL, LARGE)),
    // Dropout of 1 would leave nothing to scale up.
    ("adapter.dropout", Below(0.0, 1.0)),
    ("train.steps", Whole(1, STEPS)),
    // Far too high a rate is told when the loss becomes infinite.
    ("train.learning_rate", Real(SMALL, 1e30)),
    ("train.epochs", Whole(1, STEPS)),
    // A number of steps, or a share of them below 1.
    ("train.warmup_steps", Real(0.0, STEPS as f64)),
    ("train.batch_size", Whole(1, 4096)),
    ("train.gradient_accumulation", Whole(1, 65_536)),
    ("train.max_grad_norm", Real(0.0, LARGE)),
    // A beta of 1 would never move its moment.
    ("train.beta1", Below(0.0, 1.0)),
    ("train.beta2", Below(0.0, 1.0)),
    ("train.epsilon", Above(0.0, 1.0)),
    ("train.weight_decay", Real(0.0, 1000.0)),
    ("train.seed", Whole(0, EXACT)),
    ("train.caption_dropout", Below(0.0, 1.0)),
    ("train.logit_mean", Real(-100.0, 100.0)),
    ("train.logit_std", Above(0.0, 100.0)),
    // Beyond these its density would be negative (arXiv:2403.03206, section 3.1): -1 and 2 / (pi - 2), rounded.
    ("train.mode_scale", Real(-1.0, 1.75)),
    ("train.shift", Above(0.0, 1000.0)),
    ("train.guidance", Real(0.0, 1000.0)),
    ("train.min_snr_gamma", Real(SMALL, LARGE)),
    ("train.noise_offset", Real(0.0, 100.0)),
    ("train.checkpoint_every", Whole(0, STEPS)),
    ("train.keep_checkpoints", Whole(1, LARGE as i64)),
    ("train.validate_every", Whole(0, STEPS)),
    // A share of 1 would leave nothing to train from.
    ("train.validation_share", Below(0.0, 1.0)),
    ("train.sample_every", Whole(0, STEPS)),
    ("sample.width", Whole(8, SIDE)),
    ("sample.height", Whole(8, SIDE)),
    ("sample.frames", Whole(1, 10_001)),
    ("sample.frame_rate", Real(0.001, 1000.0)),
    ("sample.steps", Whole(1, 10_000)),
    // The input of a guidance embedding may be 0; classifier-free guidance not, see `effect.rs`.
    ("sample.guidance", Real(0.0, 1000.0)),
    ("sample.true_cfg", Real(1.0, 1000.0)),
    ("sample.guidance_rescale", Real(0.0, 1.0)),
    ("sample.shift", Above(0.0, 1000.0)),
    ("sample.seed", Whole(0, EXACT)),
];

/// Of a field of the recipe that an Experiment changes.
const DEVIATION: Range = Real(-LARGE, LARGE);
/// The longest context that a deviation may ask for: memory grows with its square.
const DEVIATION_TOKENS: Range = Whole(0, 8192);

/// The range of a field, by its dotted name without places in lists; None for what has no number.
pub(super) fn range(field: &str) -> Option<Range> {
    if let Some(deviation) = field.strip_prefix("recipe.deviate.") {
        return Some(match deviation.ends_with("_tokens") {
            true => DEVIATION_TOKENS,
            false => DEVIATION,
        });
    }
    let found = FIELDS.iter().find(|(name, _)| *name == field);
    found.map(|(_, range)| *range)
}

impl Range {
    /// Whether a whole number is in it.
    pub(super) fn has_whole(self, value: i128) -> bool {
        match self {
            Whole(least, most) => (i128::from(least)..=i128::from(most)).contains(&value),
            _ => self.has(value as f64),
        }
    }

    /// Whether a number is in it. A negative zero is not, unless numbers below 0 are: it is a slip, and could make another
    /// fingerprint than 0.
    pub(super) fn has(self, value: f64) -> bool {
        match self {
            Whole(least, most) => {
                value.fract() == 0.0 && Self::within(value, least as f64, most as f64)
            }
            Real(least, most) => Self::within(value, least, most),
            Above(least, most) => value > least && value <= most,
            Below(least, most) => Self::within(value, least, most) && value < most,
        }
    }

    fn within(value: f64, least: f64, most: f64) -> bool {
        let is_wrong_zero = value == 0.0 && value.is_sign_negative() && least >= 0.0;
        (least..=most).contains(&value) && !is_wrong_zero
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whole(least, most) => write!(f, "{least} to {most}"),
            Real(least, most) => {
                // Thirty zeros are counted by nobody.
                let (least, most) = (shown::number(*least), shown::number(*most));
                write!(f, "{least} to {most}")
            }
            Above(least, most) => write!(f, "more than {least} and at most {most}"),
            Below(least, most) => write!(f, "at least {least} and less than {most}"),
        }
    }
}

/// Writes the table into the JSON Schema of the Experiment.
pub(super) fn write_into(schema: &mut Value) {
    for (field, range) in FIELDS {
        let Some((section, field)) = field.split_once('.') else {
            continue;
        };
        let part = &schema["properties"][section];
        let part = part.get("items").unwrap_or(part);
        let Some(place) = part["$ref"].as_str().and_then(|at| at.strip_prefix('#')) else {
            continue;
        };
        let place = format!("{place}/properties/{field}");
        let Some(Value::Object(property)) = schema.pointer_mut(&place) else {
            continue;
        };
        let (least, most) = match range {
            Whole(least, most) => (("minimum", json!(least)), ("maximum", json!(most))),
            Real(least, most) => (("minimum", json!(least)), ("maximum", json!(most))),
            Above(least, most) => (("exclusiveMinimum", json!(least)), ("maximum", json!(most))),
            Below(least, most) => (("minimum", json!(least)), ("exclusiveMaximum", json!(most))),
        };
        property.remove("minimum");
        for (key, value) in [least, most] {
            property.insert(key.to_owned(), value);
        }
    }
}
