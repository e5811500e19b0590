//! The LoRAs that pictures are sampled with.

use std::path::{Path, PathBuf};

use super::Error;
use super::metadata::{UsedLora, name};
use crate::base_model::{BaseModel, OtherExpert};
use crate::convert::provenance::Provenance;
use crate::convert::{ReadFile, ReadLora, read_lora};
use crate::lora::formats::Expert;
use crate::lora::{self, AdapterSet};
use crate::models::schedule::{trained_otherwise, word};
use crate::models::{self, Family, Flavor};
use crate::monitor::Monitor;
use crate::recipe::Diff;
use crate::shown;

/// The strongest use of a LoRA, either way: beyond it numbers overflow, and no picture comes of it.
const MAX_STRENGTH: f64 = 100.0;

/// A LoRA and how strongly it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraUse {
    /// The file, or a folder that PEFT or diffusers saved.
    pub path: PathBuf,
    /// What its update is multiplied with; 1 is the whole, 0 is nothing, and below 0 it is turned round.
    pub strength: f64,
}

impl LoraUse {
    /// A path as a command line has it, with `:` and a strength behind it or without. A file that is there under the whole of it is
    /// meant as it stands.
    ///
    /// # Errors
    /// If the strength is out of range.
    pub fn parse(path: PathBuf) -> Result<Self, String> {
        let whole = |path| Self {
            path,
            strength: 1.0,
        };
        let split = path.to_str().and_then(|text| text.rsplit_once(':'));
        let strength = split.and_then(|(_, strength)| strength.parse::<f64>().ok());
        // Without a file before it, it is a path with a colon: `C:1`.
        let (Some((file, text)), Some(strength)) = (split, strength) else {
            return Ok(whole(path));
        };
        if file.is_empty() || path.exists() {
            return Ok(whole(path));
        }
        // Of numbers that are none, too.
        if !(-MAX_STRENGTH..=MAX_STRENGTH).contains(&strength) {
            return Err(format!(
                "{}: expected a strength from -{MAX_STRENGTH} to {MAX_STRENGTH}, found {}",
                shown::text(file),
                shown::text(text)
            ));
        }
        Ok(Self {
            path: PathBuf::from(file),
            strength,
        })
    }
}

/// What LoRAs add up to.
#[derive(Default)]
pub(super) struct Opened {
    /// Above the Experiment's network.
    pub(super) own: Option<AdapterSet>,
    /// Above the other of two experts.
    pub(super) other: Option<AdapterSet>,
    /// Each of them.
    pub(super) used: Vec<UsedLora>,
}

/// Reads LoRAs and adds them up; nothing where there is none. With two experts, each LoRA goes to the one that it says it is of, and one
/// that says nothing to the Experiment's; a file of both is two LoRAs.
///
/// # Errors
/// As [`open_lora`], or if they do not fit each other.
pub(super) fn open_loras(
    loras: &[LoraUse],
    base: &BaseModel,
    other: Option<&OtherExpert>,
    monitor: &dyn Monitor,
) -> Result<Opened, Error> {
    let (mut own, mut of_other, mut used) = (Vec::new(), Vec::new(), Vec::new());
    for LoraUse { path, strength } in loras {
        let (read, made) = read_any(path, base, monitor)?;
        let mut halves = vec![(read, made)];
        if let (Some(other), true) = (other, halves[0].0.lora.experts.has_both) {
            halves.push((read_lora(path, &wanted(base, other.flavor))?, None));
        }
        for (read, made) in halves {
            let said = flavor_said(&read, made.as_ref(), base.denoiser.family);
            let (network, list, flavor) = match (other, said) {
                (Some(other), Some((_, flavor))) if flavor.name == other.flavor.name => {
                    (&other.denoiser, &mut of_other, other.flavor)
                }
                _ => (&*base.denoiser, &mut own, base.flavor),
            };
            if other.is_some() {
                let (file, of) = (shown::path(&read.file), flavor.name);
                let what = match read.lora.experts.has_both {
                    true => "its adapters of that expert are",
                    false => "is",
                };
                monitor.note(&format!("{file}: {what} used on `{of}`"));
            }
            used.push(UsedLora {
                file: name(&read.file),
                digest: read.digest,
                strength: *strength,
                flavor: flavor.name,
            });
            let adapters = lora::formats::adapters(read.lora.modules)?;
            adapters.check(network.linears())?;
            list.push((adapters, *strength));
        }
    }
    let sum = |list: &[(AdapterSet, f64)]| match list {
        [] => Ok(None),
        some => AdapterSet::sum(some).map(Some),
    };
    Ok(Opened {
        own: sum(&own)?,
        other: sum(&of_other)?,
        used,
    })
}

/// Reads a LoRA and warns where it was trained otherwise than it is used.
///
/// # Errors
/// If the file is no LoRA of the base model's family, is damaged, or adapts what the base model has not.
pub fn open_lora(
    path: &Path,
    base: &BaseModel,
    monitor: &dyn Monitor,
) -> Result<AdapterSet, Error> {
    let (read, _) = read_for(path, base, monitor)?;
    let adapters = lora::formats::adapters(read.lora.modules)?;
    adapters.check(base.denoiser.linears())?;
    Ok(adapters)
}

/// Reads a LoRA for a base model, with what it says of its making, and tells what a person should know of it: above all where it
/// was trained otherwise than it is used.
///
/// # Errors
/// If the file is no LoRA of the base model's family, is damaged, or is of the other of two experts.
pub fn read_for(
    path: &Path,
    base: &BaseModel,
    monitor: &dyn Monitor,
) -> Result<(ReadFile, Option<Provenance>), Error> {
    let (read, made) = read_any(path, base, monitor)?;
    refuse_other_expert(&read, made.as_ref(), base)?;
    if read.lora.experts.has_both {
        let (file, of) = (shown::path(&read.file), base.flavor.name);
        monitor.note(&format!(
            "{file}: it has adapters of both experts, of which those of `{of}` are read"
        ));
    }
    Ok((read, made))
}

/// Refuses a LoRA of another of two experts than the base model's.
///
/// # Errors
/// If it says that it is of that.
pub fn refuse_other_expert(
    read: &ReadFile,
    made: Option<&Provenance>,
    base: &BaseModel,
) -> Result<(), Error> {
    let said = flavor_said(read, made, base.denoiser.family);
    match (said, base.flavor.expert) {
        (Some((says, of)), Some(_)) if of.expert.is_some() && of.name != base.flavor.name => {
            Err(Error::OtherExpert {
                path: read.file.clone(),
                says,
                of: of.name,
                flavor: base.flavor.name,
            })
        }
        _ => Ok(()),
    }
}

/// What says which flavor a LoRA is of, and that flavor: its provenance, else its name where that tells an expert.
fn flavor_said(
    read: &ReadFile,
    made: Option<&Provenance>,
    family: &Family,
) -> Option<(&'static str, &'static Flavor)> {
    let named = |name: &str| family.flavors.iter().find(|flavor| flavor.name == name);
    if let Some(expert) = read.lora.experts.expert {
        let is_it = |flavor: &&Flavor| flavor.expert.is_some_and(|of| of.name == expert.name());
        return Some(("names in it say", family.flavors.iter().find(is_it)?));
    }
    if let Some(made) = made {
        return Some(("it says", named(&made.flavor)?));
    }
    Some(("its name says", models::expert_of_name(family, &read.file)?))
}

/// What is wanted of a LoRA's file for a network of this flavor.
fn wanted<'a>(base: &BaseModel, flavor: &Flavor) -> ReadLora<'a> {
    let expert = flavor.expert.and_then(|expert| Expert::named(expert.name));
    ReadLora {
        family: Some(base.denoiser.family.name),
        expert,
        ..ReadLora::default()
    }
}

fn read_any(
    path: &Path,
    base: &BaseModel,
    monitor: &dyn Monitor,
) -> Result<(ReadFile, Option<Provenance>), Error> {
    let read = read_lora(path, &wanted(base, base.flavor))?;
    read.tell(monitor);
    let made = Provenance::read(&read.lora.metadata).map_err(|source| Error::Provenance {
        path: read.file.clone(),
        source,
    })?;
    let process = base.settings.process;
    for claim in trained_otherwise(&read.lora.metadata, process) {
        monitor.note(&format!(
            "warning: {} says that it was trained with {claim}, this model with prediction {}{}: its effect will not be the one that it was trained for",
            shown::path(&read.file),
            word(process.prediction),
            match process.zero_terminal_snr {
                true => " and zero_terminal_snr",
                false => "",
            }
        ));
    }
    if let Some(made) = &made
        && made.recipe_fingerprint != base.recipe.fingerprint()
    {
        let rules = made.recipe.get("rules").cloned().unwrap_or_default();
        let diff = Diff::between(&base.recipe.rules(), &rules);
        monitor.note(&format!(
            "warning: {} was trained with another recipe than this Experiment's:\n{diff}",
            shown::path(&read.file)
        ));
    }
    // Networks of other noise levels, or of all of them: the shapes fit, and what comes of it is a guess.
    if let Some((says, of)) = flavor_said(&read, made.as_ref(), base.denoiser.family)
        && of.expert.is_some() != base.flavor.expert.is_some()
    {
        monitor.note(&format!(
            "warning: {}: {says} that it is of flavor `{}`, and the Experiment is of `{}`",
            shown::path(&read.file),
            of.name,
            base.flavor.name
        ));
    }
    Ok((read, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_is_a_number_behind_the_last_colon() {
        let shown = |text: &str| match LoraUse::parse(PathBuf::from(text)) {
            Ok(used) => format!("{} {}", used.path.display(), used.strength),
            Err(error) => error,
        };
        let texts = [
            "a.safetensors",
            "a.safetensors:0.6",
            "a.safetensors:-1",
            "a.safetensors:0",
            "a.safetensors:1e-1",
            "C:\\loras\\a.safetensors",
            "C:\\loras\\a.safetensors:.5",
            "a:b",
            "a.safetensors:",
            ":1",
            "a.safetensors:nan",
            "a.safetensors:inf",
            "a.safetensors:1e300",
        ];
        let lines: Vec<_> = texts
            .map(|text| format!("{text} = {}", shown(text)))
            .to_vec();
        expect_test::expect![[r#"
            a.safetensors = a.safetensors 1
            a.safetensors:0.6 = a.safetensors 0.6
            a.safetensors:-1 = a.safetensors -1
            a.safetensors:0 = a.safetensors 0
            a.safetensors:1e-1 = a.safetensors 0.1
            C:\loras\a.safetensors = C:\loras\a.safetensors 1
            C:\loras\a.safetensors:.5 = C:\loras\a.safetensors 0.5
            a:b = a:b 1
            a.safetensors: = a.safetensors: 1
            :1 = :1 1
            a.safetensors:nan = a.safetensors: expected a strength from -100 to 100, found nan
            a.safetensors:inf = a.safetensors: expected a strength from -100 to 100, found inf
            a.safetensors:1e300 = a.safetensors: expected a strength from -100 to 100, found 1e300"#]]
        .assert_eq(&lines.join("\n"));
    }
}
