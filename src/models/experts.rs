//! Which of two experts a model is (Wan 2.2's A14B: one network for high noise, one for low). No tensor tells: in a folder of diffusers the
//! place does, of a single file the name that it is published under.

use std::path::Path;

use serde_json::Value;

use super::{Components, Error, Expert, Family, Flavor};
use crate::{files, shown};

/// The part of `components` that is the denoiser of `flavor`.
///
/// # Errors
/// If place or name say that the model is of another flavor.
pub(super) fn part(
    family: &Family,
    components: &Components,
    flavor: &Flavor,
) -> Result<&'static str, Error> {
    let experts: Vec<(&Flavor, Expert)> = family
        .flavors
        .iter()
        .filter_map(|flavor| Some((flavor, flavor.expert?)))
        .collect();
    if experts.is_empty() {
        return Ok(family.denoiser());
    }
    let wrong = |why: String| {
        Err(Error::WrongExpert {
            path: components.path.clone(),
            why,
        })
    };
    let names: Vec<String> = experts
        .iter()
        .map(|(of, _)| format!("`{}`", of.name))
        .collect();
    let names = names.join(" or ");
    if components.path.is_dir() {
        let has = |(_, expert): &(&Flavor, Expert)| components.parts.contains_key(expert.component);
        let both = experts.iter().all(has);
        return match flavor.expert {
            None if both => wrong(format!(
                "it holds two experts ({}), so it is of flavor {names}, not `{}`",
                folders(&experts),
                flavor.name
            )),
            Some(_) if !both => wrong(format!(
                "flavor `{}` is one of two experts, and the folder does not hold both ({})",
                flavor.name,
                folders(&experts)
            )),
            Some(expert) => {
                check_boundary(components, flavor, expert)?;
                Ok(expert.component)
            }
            None => Ok(family.denoiser()),
        };
    }
    let file = &components.path;
    let named = expert_of_name(family, file);
    let said = match (named, version_of_name(family, file)) {
        (Some(named), _) if named.name != flavor.name => format!("flavor `{}`", named.name),
        (None, Some(version)) if version != flavor.base_version => version.to_owned(),
        _ => return Ok(family.denoiser()),
    };
    wrong(format!(
        "by its name it is of {said}, and flavor `{}` is another network: name the flavor that the file is of (rename the file if its name is wrong)",
        flavor.name
    ))
}

/// Refuses a folder that says that the networks change at another noise level, as Wan 2.2's image-to-video does: `boundary_ratio`, which
/// diffusers' pipelines read from `model_index.json`.
fn check_boundary(components: &Components, flavor: &Flavor, expert: Expert) -> Result<(), Error> {
    let path = components.path.join("model_index.json");
    let wrong = |why: String| Error::WrongExpert {
        path: path.clone(),
        why,
    };
    if !path.is_file() {
        return Ok(());
    }
    let index = files::read(&path, files::MAX_CONFIG_BYTES);
    let index = index.map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let index: Value = serde_json::from_slice(&index)
        .map_err(|e| wrong(format!("expected JSON, as diffusers writes it: {e}")))?;
    let expected = match expert.levels.from == 0.0 {
        true => expert.levels.to,
        false => expert.levels.from,
    };
    match index.get("boundary_ratio") {
        None | Some(Value::Null) => Ok(()),
        Some(found) if found.as_f64() == Some(expected) => Ok(()),
        Some(found) => Err(wrong(format!(
            "`boundary_ratio`: expected {expected}, the noise level at which flavor `{}` and the other network change, found {}: it is another \
             model (2.2's image-to-video has 0.9), or the number was changed",
            flavor.name,
            shown::text(&found.to_string())
        ))),
    }
}

fn folders(experts: &[(&Flavor, Expert)]) -> String {
    let folders: Vec<String> = experts
        .iter()
        .map(|(_, expert)| format!("`{}/`", expert.component))
        .collect();
    folders.join(" and ")
}

/// The flavor that the name of a file says it is of, where it says so: `wan2.2_t2v_high_noise_14B_fp16.safetensors`,
/// `Wan2.2-T2V-A14B-LowNoise-Q4_K_M.gguf`, `my_lora_high_noise.safetensors`.
pub fn expert_of_name(family: &Family, path: &Path) -> Option<&'static Flavor> {
    let name = plain(&path.file_name()?.to_string_lossy());
    let says = |flavor: &&'static Flavor| {
        let expert = flavor.expert.map(|expert| plain(expert.name));
        expert.is_some_and(|expert| name.contains(&expert))
    };
    let mut found = family.flavors.iter().filter(says);
    match (found.next(), found.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// The version of the family that the name of a file says, where it says one: `wan2.1`.
fn version_of_name(family: &Family, path: &Path) -> Option<&'static str> {
    let name = plain(&path.file_name()?.to_string_lossy());
    let versions = family.flavors.iter().map(|flavor| flavor.base_version);
    let mut found = versions.filter(|version| name.contains(&plain(version)));
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

fn plain(name: &str) -> String {
    name.to_lowercase().replace(['_', '-', ' ', '.'], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::wan::WAN;

    #[test]
    fn names_of_files_say_which_expert_they_are() {
        for (name, expert, version) in [
            (
                "wan2.2_t2v_high_noise_14B_fp16.safetensors",
                "2.2-t2v-a14b-high",
                "wan2.2",
            ),
            (
                "Wan2.2-T2V-A14B-LowNoise-Q4_K_M.gguf",
                "2.2-t2v-a14b-low",
                "wan2.2",
            ),
            ("my lora_low-noise.safetensors", "2.2-t2v-a14b-low", ""),
            ("wan2.1_t2v_14B_bf16.safetensors", "", "wan2.1"),
            ("Wan21-T2V.safetensors", "", "wan2.1"),
            ("high_noise_and_low_noise.safetensors", "", ""),
            ("from wan2.1 to wan2.2.safetensors", "", ""),
            ("model.safetensors", "", ""),
        ] {
            let path = Path::new(name);
            let found = expert_of_name(&WAN, path).map_or("", |flavor| flavor.name);
            let found = (found, version_of_name(&WAN, path).unwrap_or_default());
            assert_eq!(found, (expert, version), "{name}");
        }
    }
}
