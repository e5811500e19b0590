//! A scheduler's configuration as diffusers writes it, read as `from_pretrained` reads it.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Said, Schedule, place, wrong};
use crate::diffusion::{Prediction, Shift, ShiftRule};
use crate::models::Error;
use crate::models::layout::read_json;
use crate::shown;

pub(super) const FILE: &str = "scheduler_config.json";

/// Fields of DDPM's schedule that have one value here.
const BETAS: [(&str, Expected); 3] = [
    ("beta_schedule", Expected::Text("scaled_linear")),
    ("beta_start", Expected::Number(0.00085)),
    ("beta_end", Expected::Number(0.012)),
];

/// The rule of a shift by resolution that there is here: FLUX.1's. Absent fields have these values in diffusers too.
const RESOLUTION: [(&str, Expected); 5] = [
    ("base_shift", Expected::Number(0.5)),
    ("max_shift", Expected::Number(1.15)),
    ("base_image_seq_len", Expected::Number(256.0)),
    ("max_image_seq_len", Expected::Number(4096.0)),
    ("time_shift_type", Expected::Text("exponential")),
];

const STEPS: (&str, Expected) = ("num_train_timesteps", Expected::Number(1000.0));

/// Schedulers whose defaults are the betas above; those of all others are not.
const RIGHT_DEFAULTS: [&str; 2] = ["LCMScheduler", "TCDScheduler"];

#[derive(Clone, Copy)]
enum Expected {
    Number(f64),
    Text(&'static str),
}

impl Expected {
    fn is(self, value: &Value) -> bool {
        match self {
            // Written by Python from the same decimal digits.
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Text(text) => value.as_str() == Some(text),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What the configuration says, for a model of rectified flow or of DDPM.
pub(super) fn read(path: &Path, flow: bool) -> Result<Schedule, Error> {
    let config = Config(read_json(path)?);
    let said = match flow {
        true => config.flow(path),
        false => config.ddpm(path),
    };
    said.map_err(|what| wrong(path, what))
}

struct Config(Map<String, Value>);

impl Config {
    /// A field's value; what is null is not there.
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn read<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        as_type: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let read = |value| {
            let wrong = || format!("`{field}`: expected {expected}, found {}", json(value));
            as_type(value).ok_or_else(wrong)
        };
        self.get(field).map(read).transpose()
    }

    fn text(&self, field: &str) -> Result<Option<&str>, String> {
        self.read(field, "a text", Value::as_str)
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, String> {
        self.read(field, "true or false", Value::as_bool)
    }

    fn number(&self, field: &str) -> Result<Option<f64>, String> {
        self.read(field, "a number", Value::as_f64)
    }

    fn expect(&self, (field, expected): (&str, Expected)) -> Result<(), String> {
        match self.get(field) {
            Some(value) if !expected.is(value) => Err(format!(
                "`{field}`: expected {expected}, which plumb trains and samples with, found {}",
                json(value)
            )),
            _ => Ok(()),
        }
    }

    /// Whether it is a scheduler of rectified flow; None where it does not say what it is.
    fn is_flow(&self) -> Result<Option<bool>, String> {
        let of_flow = self.text("prediction_type")? == Some("flow_prediction")
            || self.flag("use_flow_sigmas")? == Some(true);
        let class = self.text("_class_name")?;
        Ok(match class {
            _ if of_flow => Some(true),
            Some(class) => Some(class.starts_with("FlowMatch")),
            None => None,
        })
    }

    fn ddpm(&self, path: &Path) -> Result<Schedule, String> {
        let class = self.text("_class_name")?.unwrap_or_default();
        if self.is_flow()? == Some(true) {
            return Err(format!(
                "`_class_name`: expected a scheduler of DDPM, found one of rectified flow (`{}`)",
                shown::text(class)
            ));
        }
        if class.starts_with("EDM") || self.text("timestep_type")? == Some("continuous") {
            return Err(format!(
                "`_class_name`: expected a scheduler of DDPM, found one of EDM (`{}`), which plumb does not train",
                shown::text(class)
            ));
        }
        self.expect(STEPS)?;
        if let Some(betas) = self.get("trained_betas") {
            let found = json(betas);
            return Err(format!("`trained_betas`: expected none, found {found}"));
        }
        for (field, expected) in BETAS {
            self.expect((field, expected))?;
            // What is not there has the class's default.
            if !class.is_empty() && !RIGHT_DEFAULTS.contains(&class) && self.get(field).is_none() {
                return Err(format!(
                    "`{field}`: expected {expected}, found none, for which diffusers' {} has another default",
                    shown::text(class)
                ));
            }
        }
        let field = "prediction_type";
        let prediction = match self.text(field)? {
            None => None,
            Some("epsilon") => Some(Prediction::Epsilon),
            Some("v_prediction") => Some(Prediction::Velocity),
            Some(other) => {
                let found = shown::text(other);
                return Err(format!(
                    "`{field}`: expected epsilon or v_prediction, found `{found}`"
                ));
            }
        };
        Ok(Schedule {
            prediction: said(prediction, field, path),
            zero_terminal_snr: said(
                self.flag("rescale_betas_zero_snr")?,
                "rescale_betas_zero_snr",
                path,
            ),
            shift: None,
        })
    }

    fn flow(&self, path: &Path) -> Result<Schedule, String> {
        if self.is_flow()? == Some(false) {
            return Err(format!(
                "`_class_name`: expected a scheduler of rectified flow, found `{}`",
                shown::text(self.text("_class_name")?.unwrap_or_default())
            ));
        }
        self.expect(STEPS)?;
        let (field, shift) = if self.flag("use_dynamic_shifting")? == Some(true) {
            for rule in RESOLUTION {
                self.expect(rule)?;
            }
            ("use_dynamic_shifting", Shift::By(ShiftRule::Resolution))
        } else {
            // Other schedulers than flow matching's call it so.
            let field = match self.get("flow_shift") {
                Some(_) => "flow_shift",
                None => "shift",
            };
            let named = self.number(field)?;
            // The default of diffusers' classes of flow matching.
            let shift = named.or(self.text("_class_name")?.map(|_| 1.0));
            let Some(shift) = shift else {
                return Ok(Schedule::default());
            };
            if !(shift.is_finite() && shift > 0.0) {
                return Err(format!(
                    "`{field}`: expected a number above 0, found {shift}"
                ));
            }
            (field, Shift::Fixed(shift))
        };
        Ok(Schedule {
            shift: said(Some(shift), field, path),
            ..Schedule::default()
        })
    }
}

fn said<T>(value: Option<T>, field: &str, path: &Path) -> Option<Said<T>> {
    value.map(|value| Said {
        value,
        place: place(format_args!("`{field}`"), path),
    })
}

fn json(value: &Value) -> String {
    shown::text(&value.to_string()).to_string()
}
