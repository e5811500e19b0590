//! What a LoRA file says about itself besides its tensors, in the keys that other tools read: the MUST keys of
//! ModelSpec 1.0.1 and the few `ss_` keys from which tools tell base model, rank and alpha; and the hashes that tell whether
//! the file is still what was written (`seal`).

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::AdapterSet;
use super::file::commonest_rank;

/// Under this key a LoRA that plumb trained says how.
pub const PROVENANCE: &str = "plumb";

/// Under this key a LoRA that plumb converted says what it was made from.
pub const CONVERTED: &str = "plumb.converted";

/// What the standard keys are made from.
#[derive(Clone, Copy, Debug)]
pub struct FileInfo<'a> {
    /// ModelSpec's name of the base model, such as `stable-diffusion-3-5-large`.
    pub architecture: &'a str,
    /// kohya's name of the base model, such as `5-large`.
    pub base_version: &'a str,
    /// The title that programs show for the file.
    pub title: &'a str,
    /// Width and height trained at, in pixels.
    pub resolution: (u32, u32),
}

/// The standard keys. The alpha is the file's, which is the rank because alpha / rank is folded into the tensors;
/// `ss_network_module` is left out because the tensors do not have the names that it would promise.
pub fn standard(set: &AdapterSet, info: &FileInfo<'_>) -> BTreeMap<String, String> {
    let rank = commonest_rank(set.adapters().iter().map(|adapter| adapter.rank));
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
        ("ss_v2", "False".to_owned()),
        ("ss_base_model_version", info.base_version.to_owned()),
        ("ss_network_dim", rank.to_string()),
        ("ss_network_alpha", format!("{rank}.0")),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The SHA-256 of `parts`, one after the other, as lower-case hex digits.
pub(super) fn sha256<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    parts.for_each(|part| hasher.update(part));
    format!("{:x}", hasher.finalize())
}

/// Where the window of the legacy hash begins and ends: the first hash that web UIs had for a checkpoint, 64 KiB at 1 MiB.
const LEGACY_WINDOW: (usize, usize) = (0x10_0000, 0x11_0000);

/// The hashes by which other tools know a LoRA file, as kohya's scripts define them: `sshs_model_hash` and
/// `modelspec.hash_sha256` are the SHA-256 of the tensors' bytes, so metadata does not change them;
/// `sshs_legacy_hash` is of 64 KiB at 1 MiB of a file whose metadata are the `ss_` keys only.
///
/// `trained_header` is that file's header with its length, `data` the tensors' bytes in the file's order.
pub(super) fn hashes(trained_header: &[u8], data: &[&[u8]]) -> BTreeMap<String, String> {
    // In pieces: the file is not put together to be hashed.
    let model = sha256(data.iter().copied());
    let mut position = 0;
    let mut window = Vec::new();
    for part in std::iter::once(&trained_header).chain(data) {
        // The window may begin and end in the header or in any tensor, or lie beyond the file: then it is empty.
        let inside = |place: usize| place.saturating_sub(position).min(part.len());
        window.push(&part[inside(LEGACY_WINDOW.0)..inside(LEGACY_WINDOW.1)]);
        position += part.len();
    }
    let legacy = sha256(window.into_iter());
    BTreeMap::from([
        ("modelspec.hash_sha256".to_owned(), format!("0x{model}")),
        ("sshs_legacy_hash".to_owned(), legacy[..8].to_owned()),
        ("sshs_model_hash".to_owned(), model),
    ])
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
            kernel: None,
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
            ss_network_dim = 8
            ss_v2 = False"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn the_legacy_hash_is_of_a_window_of_the_file_wherever_its_parts_end() {
        let file: Vec<u8> = (0..0x12_0000u32).map(|i| (i / 7 % 251) as u8).collect();
        let window = sha256(std::iter::once(&file[0x10_0000..0x11_0000]));
        for cuts in [
            [8, 9],
            [8, 0x10_8000],
            [0x10_0000, 0x11_0000],
            [0x10_0001, 0x10_ffff],
        ] {
            let (header, data) = file.split_at(cuts[0]);
            let (first, second) = data.split_at(cuts[1] - cuts[0]);
            let found = hashes(header, &[first, &[], second]);
            assert_eq!(found["sshs_legacy_hash"], window[..8], "{cuts:x?}");
            let tensors = sha256(std::iter::once(data));
            assert_eq!(found["sshs_model_hash"], tensors);
            assert_eq!(found["modelspec.hash_sha256"], format!("0x{tensors}"));
        }
        let empty = sha256(std::iter::empty());
        let found = hashes(&file[..8], &[&file[8..100]]);
        assert_eq!(found["sshs_legacy_hash"], empty[..8]);
    }
}
