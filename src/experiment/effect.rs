//! Options that have no effect beside the others. Who wrote one expects something of it, so each is refused by name.

use super::raw::{Raw, Train};
use super::{Error, Experiment, Settings};
use crate::diffusion::TimestepSampling;
use crate::shown;

/// A field, and why it has no effect or what it cannot be.
type FieldProblem = (&'static str, String);

/// Flags of kohya's prompt files, and what takes their place here.
const PROMPT_FLAGS: [(&str, &str); 12] = [
    ("--n", "set `negative_prompt` under [sample]"),
    ("--w", "set `width` under [sample]"),
    ("--h", "set `height` under [sample]"),
    ("--d", "set `seed` under [sample]"),
    ("--s", "set `steps` under [sample]"),
    (
        "--l",
        "set `guidance` under [sample] (`true_cfg` for a guidance-distilled model)",
    ),
    ("--g", "set `guidance` under [sample]"),
    ("--fs", "set `shift` under [sample]"),
    ("--ss", "set `sampler` under [sample]"),
    ("--am", "there is nothing like it here"),
    ("--ow", "there is nothing like it here"),
    ("--oh", "there is nothing like it here"),
];

impl Experiment {
    /// Refuses what has no effect for this flavor; `settings` are what the file comes to for it.
    pub(super) fn check_effects(&self, settings: &Settings) -> Result<(), Error> {
        let found = without_effect(&self.raw, settings);
        found.map_or(Ok(()), |(field, why)| Err(self.wrong(field, why)))
    }
}

impl Raw {
    /// The first prompt with a flag of another program in it.
    pub(super) fn check_prompts(&self) -> Result<(), FieldProblem> {
        let sample = &self.sample;
        let negative = sample
            .negative_prompt
            .iter()
            .map(|p| ("sample.negative_prompt", p));
        let prompts = sample.prompts.iter().map(|p| ("sample.prompts", p));
        for (field, prompt) in prompts.chain(negative) {
            if let Some(why) = prompt_flag(prompt) {
                return Err((field, why));
            }
        }
        Ok(())
    }
}

/// What to do with a flag in a prompt, which would be encoded as if it were words.
fn prompt_flag(prompt: &str) -> Option<String> {
    let mut words = prompt.split_whitespace();
    let (flag, instead) =
        words.find_map(|word| PROMPT_FLAGS.iter().find(|(flag, _)| *flag == word))?;
    Some(format!(
        "`{flag}` in `{}` is a flag of other programs and would be read as words; leave it out and {instead}",
        shown::text(prompt)
    ))
}

fn without_effect(raw: &Raw, settings: &Settings) -> Option<FieldProblem> {
    let sample = &settings.sample;
    // Of a guidance-distilled model this is `true_cfg`, which is bounded by itself.
    if sample.guidance < 1.0 {
        let why = format!(
            "expected 1 or more, found {}: below 1 the prompt loses its effect, down to none at 0; for no guidance, which is 0 in some programs, write 1",
            shown::number(sample.guidance)
        );
        return Some(("sample.guidance", why));
    }
    let steers = raw
        .sample
        .negative_prompt
        .as_deref()
        .is_some_and(|p| !p.is_empty());
    if steers && sample.guidance == 1.0 {
        let why = match sample.embedded_guidance {
            Some(_) => {
                "a guidance-distilled model is steered away from nothing: set `true_cfg` above 1, at twice the time, or leave it out"
            }
            None => {
                "with a guidance of 1 nothing is steered away from: set `guidance` above 1, or leave it out"
            }
        };
        return Some(("sample.negative_prompt", why.to_owned()));
    }
    if sample.guidance_rescale > 0.0 && sample.guidance == 1.0 {
        let why = "without classifier-free guidance nothing is rescaled: set `guidance` (or `true_cfg` of a guidance-distilled model) above 1, or leave it out";
        return Some(("sample.guidance_rescale", why.to_owned()));
    }
    of_timesteps(&raw.train, settings).or_else(|| of_training(raw))
}

/// Parameters of a density of noise levels that is not drawn from.
fn of_timesteps(train: &Train, settings: &Settings) -> Option<FieldProblem> {
    let defaults = Train::default();
    let sampling = settings.train.timesteps.sampling;
    let is_flow = settings.process.is_flow();
    let normal = is_flow && sampling == TimestepSampling::LogitNormal;
    let mode = is_flow && sampling == TimestepSampling::Mode;
    let options = [
        (
            "train.logit_mean",
            !normal && train.logit_mean != defaults.logit_mean,
            "logit_normal",
        ),
        (
            "train.logit_std",
            !normal && train.logit_std != defaults.logit_std,
            "logit_normal",
        ),
        (
            "train.mode_scale",
            !mode && train.mode_scale != defaults.mode_scale,
            "mode",
        ),
    ];
    let (field, _, of) = options.into_iter().find(|(_, is_idle, _)| *is_idle)?;
    let why = match is_flow {
        true => format!("only `timestep_sampling = \"{of}\"` has it; set that, or leave it out"),
        false => "this option is for models of rectified flow; leave it out".to_owned(),
    };
    Some((field, why))
}

/// What happens every so many steps, and has nothing to do or no time.
fn of_training(raw: &Raw) -> Option<FieldProblem> {
    let train = &raw.train;
    if train.validate_every > 0 && train.validation_share == 0.0 {
        let why = "no picture is held out to validate with: set `validation_share`, such as 0.1";
        return Some(("train.validate_every", why.to_owned()));
    }
    if train.validation_share > 0.0 && train.validate_every == 0 {
        let why =
            "pictures would be held out from training and never looked at: set `validate_every`";
        return Some(("train.validation_share", why.to_owned()));
    }
    if train.sample_every > 0 && raw.sample.prompts.is_empty() {
        let why = "there is no prompt to make previews of: set `prompts` under [sample]";
        return Some(("train.sample_every", why.to_owned()));
    }
    None
}
