//! A training that starts from a LoRA that is there. Its update at the first step is the LoRA's, whatever alpha it goes on with;
//! what does not fit the Experiment is refused, and nothing of the LoRA is left out.

use super::Error;
use super::run::named_targets;
use crate::base_model::BaseModel;
use crate::convert::provenance::{StartedFrom, started_from};
use crate::digest::Digest;
use crate::experiment::{Experiment, StartSettings};
use crate::lora::{self, AdapterSet, LinearShape, formats::Module};
use crate::monitor::Monitor;
use crate::sample::read_for;
use crate::shown;

/// Where a training starts from a LoRA.
pub(super) struct Start {
    /// The LoRA's adapters, with the alpha that the training has.
    pub(super) adapters: AdapterSet,
    /// The digest of its file.
    pub(super) digest: Digest,
    /// It, and what it was started from itself.
    pub(super) from: Vec<StartedFrom>,
}

impl Start {
    /// Reads the LoRA that the Experiment names, if it names one.
    ///
    /// # Errors
    /// If the file is no LoRA for the base model, or rank or targets are set and others.
    pub(super) fn read(
        experiment: &Experiment,
        base: &BaseModel,
        monitor: &dyn Monitor,
    ) -> Result<Option<Self>, Error> {
        let Some(settings) = &base.settings.adapter.from else {
            return Ok(None);
        };
        let (read, made) = read_for(&settings.path, base, monitor)?;
        let name = shown::path(&read.file).to_string();
        let refused = |what: String| Error::Experiment {
            file: experiment.file.clone(),
            what,
        };
        let from = started_from(&read, made.as_ref());
        let digest = read.digest;
        let mut modules = read.lora.modules;
        check_rank(&modules, settings, &name).map_err(refused)?;
        if let Some(alpha) = settings.alpha
            && modules.iter().any(|module| module.alpha != alpha)
        {
            monitor.note(&format!(
                "adapter.alpha is {alpha}, that of {name} is {}: its numbers are scaled so that its update stays the same",
                distinct(modules.iter().map(|module| module.alpha))
            ));
        }
        for module in &mut modules {
            rescale(module, settings.alpha)
                .map_err(|what| refused(format!("adapter.from: {name}: {what}")))?;
        }
        let adapters = lora::formats::adapters(modules)?;
        adapters.check(base.denoiser.linears())?;
        if let Some(targets) = named_targets(base)? {
            check_targets(&adapters, &targets, &name).map_err(refused)?;
        }
        monitor.note(&format!(
            "starting from {name} ({}), {} of rank {}",
            digest.short(),
            shown::counted(adapters.adapters().len(), "module"),
            distinct(
                adapters
                    .adapters()
                    .iter()
                    .map(|adapter| adapter.rank as f64)
            ),
        ));
        Ok(Some(Self {
            adapters,
            digest,
            from,
        }))
    }

    /// Warns where the LoRA was trained on another base model.
    pub(super) fn tell_base(&self, base: Digest, monitor: &dyn Monitor) {
        let made = self.from.first().and_then(|from| from.made.as_ref());
        if let Some(made) = made
            && made.base != base
        {
            monitor.note(&format!(
                "warning: the LoRA that the training starts from was trained on another base model, {}; this one is {}",
                made.base.short(),
                base.short()
            ));
        }
    }

    /// The linears that carry its adapters.
    pub(super) fn linears(&self, base: &BaseModel) -> Vec<LinearShape> {
        let linears = base.denoiser.linears().iter();
        let adapted = linears.filter(|linear| self.adapters.get(&linear.name).is_some());
        adapted.cloned().collect()
    }

    /// The largest rank.
    pub(super) fn rank(&self) -> usize {
        let ranks = self.adapters.adapters().iter().map(|adapter| adapter.rank);
        ranks.max().unwrap_or(0)
    }
}

fn check_rank(modules: &[Module], settings: &StartSettings, name: &str) -> Result<(), String> {
    match settings.rank {
        Some(rank) if modules.iter().any(|module| module.rank() != rank) => Err(format!(
            "adapter.rank: expected {}, as {name} has, found {rank}; leave it out to take the file's",
            distinct(modules.iter().map(|module| module.rank() as f64))
        )),
        _ => Ok(()),
    }
}

/// Gives an adapter another alpha and the same update.
fn rescale(module: &mut Module, alpha: Option<f64>) -> Result<(), String> {
    if module.alpha == 0.0 {
        return Err(format!(
            "the alpha of `{}` is 0, so it would learn nothing",
            module.name
        ));
    }
    match alpha {
        Some(alpha) => module.set_alpha(alpha),
        None => Ok(()),
    }
}

fn check_targets(set: &AdapterSet, targets: &[LinearShape], name: &str) -> Result<(), String> {
    let wanted = |name: &str| targets.iter().any(|target| target.name == name);
    let beyond: Vec<_> = set
        .adapters()
        .iter()
        .map(|a| a.name.as_str())
        .filter(|n| !wanted(n))
        .collect();
    let lacking: Vec<_> = targets
        .iter()
        .map(|t| t.name.as_str())
        .filter(|n| set.get(n).is_none())
        .collect();
    let list = |names: &[&str]| {
        let first: Vec<_> = names
            .iter()
            .take(3)
            .map(|name| format!("`{name}`"))
            .collect();
        let more = if names.len() > 3 { ", ..." } else { "" };
        format!("{} ({}{more})", names.len(), first.join(", "))
    };
    let parts = [(&lacking, "lacks"), (&beyond, "has besides")];
    let told = parts.iter().filter(|(names, _)| !names.is_empty());
    let told: Vec<_> = told
        .map(|(names, verb)| format!("{verb} {}", list(names)))
        .collect();
    if told.is_empty() {
        return Ok(());
    }
    Err(format!(
        "adapter.targets: they are {} modules and {name} has {}: it {}; leave targets out to take the file's",
        targets.len(),
        set.adapters().len(),
        told.join(" and ")
    ))
}

/// The different numbers, rising.
fn distinct(numbers: impl Iterator<Item = f64>) -> String {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    let shown: Vec<_> = numbers.iter().take(5).map(f64::to_string).collect();
    let more = if numbers.len() > 5 { ", ..." } else { "" };
    shown.join(", ") + more
}
