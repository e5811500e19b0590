//! What a LoRA file says about itself besides its tensors, in the keys that other tools read: the MUST keys of
//! ModelSpec 1.0.1 and the few `ss_` keys from which tools tell base model, rank and alpha.

use std::collections::BTreeMap;

use super::AdapterSet;
use super::file::commonest_rank;

/// What the standard keys are made from.
#[derive(Clone, Copy, Debug)]
pub struct FileInfo<'a> {
    /// ModelSpec's name of the base model, such as `stable-diffusion-3-5-large`.
    pub architecture: &'a str,
    /// kohya's name of the base model, such as `5-large`.
    pub base_version: &'a str,
    /// The file's title.
    pub title: &'a str,
    /// Width and height trained at, in pixels.
    pub resolution: (u32, u32),
}

/// The standard keys. The alpha is the file's, which is the rank because alpha / rank is folded into the tensors;
/// `ss_network_module` is left out because the tensors do not have the names that it would promise.
pub fn standard(set: &AdapterSet, info: &FileInfo<'_>) -> BTreeMap<String, String> {
    let rank = commonest_rank(set);
    let (width, height) = info.resolution;
    [
        ("modelspec.sai_model_spec", "1.0.1".to_owned()),
        (
            "modelspec.architecture",
            format!("{}/lora", info.architecture),
        ),
        ("modelspec.implementation", "diffusers".to_owned()),
        ("modelspec.title", info.title.to_owned()),
        ("modelspec.resolution", format!("{width}x{height}")),
        ("ss_base_model_version", info.base_version.to_owned()),
        ("ss_network_dim", rank.to_string()),
        ("ss_network_alpha", format!("{rank}.0")),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::LinearShape;

    #[test]
    fn the_standard_keys_say_what_the_file_is() {
        let shape = |name: &str| LinearShape {
            name: name.to_owned(),
            outputs: 4,
            inputs: 3,
            reached: true,
        };
        let set = AdapterSet::new(&[shape("a"), shape("b")], 8, 2.0, 0).unwrap();
        let info = FileInfo {
            architecture: "stable-diffusion-3-5-medium",
            base_version: "5-medium",
            title: "stamps",
            resolution: (1024, 768),
        };
        let lines: Vec<_> = standard(&set, &info)
            .into_iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        expect_test::expect![[r#"
            modelspec.architecture = stable-diffusion-3-5-medium/lora
            modelspec.implementation = diffusers
            modelspec.resolution = 1024x768
            modelspec.sai_model_spec = 1.0.1
            modelspec.title = stamps
            ss_base_model_version = 5-medium
            ss_network_alpha = 8.0
            ss_network_dim = 8"#]]
        .assert_eq(&lines.join("\n"));
    }
}
