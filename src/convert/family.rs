//! Which family a LoRA says that it is for. Modules of one family may have the names, and in small models the shapes, of another's: then
//! nothing but this tells that the file is used on a network that it was not made for.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Error;
use super::provenance::METADATA_KEY;
use crate::lora::formats::naming::{STATED, stated};
use crate::models::lora_names::namings;

/// Refuses a LoRA whose metadata names another family than the wanted one.
///
/// # Errors
/// If it does.
pub(super) fn check(
    metadata: &BTreeMap<String, String>,
    wanted: &str,
    path: &Path,
) -> Result<(), Error> {
    match said(metadata) {
        Some((said, key)) if said != wanted => Err(Error::OtherFamily {
            path: path.to_owned(),
            wanted: wanted.to_owned(),
            said,
            key,
        }),
        _ => Ok(()),
    }
}

/// The family that a LoRA's metadata names, and the key that does: plumb's own where it is there, else those in which other programs name
/// the base model, as far as one family alone has such a name.
fn said(metadata: &BTreeMap<String, String>) -> Option<(String, &'static str)> {
    // The field alone: what a later plumb adds to its entry does not hide it.
    let own = metadata
        .get(METADATA_KEY)
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(family) = own.as_ref().and_then(|own| own.get("family")?.as_str()) {
        return Some((family.to_owned(), METADATA_KEY));
    }
    let all: Vec<_> = namings().iter().collect();
    let family = stated(metadata, &all)?.family;
    let key = STATED.into_iter().find(|key| metadata.contains_key(*key))?;
    Some((family.to_owned(), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_told_by_plumbs_entry_or_by_what_one_family_alone_is_called() {
        let told = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            said(&pairs.collect()).map(|(family, key)| format!("{family} by {key}"))
        };
        let (model_spec, kohya) = ("modelspec.architecture", "ss_base_model_version");
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
        let cases: [Case<'_>; 9] = [
            (&[], None),
            (
                &[
                    ("plumb", r#"{"family": "sd3", "of_later": 1}"#),
                    (model_spec, "flux-1-dev/lora"),
                ],
                Some("sd3 by plumb"),
            ),
            (
                &[(model_spec, "Flux-1-dev/lora")],
                Some("flux1 by modelspec.architecture"),
            ),
            (
                &[(model_spec, "flux-2-klein-4b/lora")],
                Some("flux2 by modelspec.architecture"),
            ),
            (
                &[(model_spec, "chroma"), (kohya, "flux1")],
                Some("chroma by modelspec.architecture"),
            ),
            (&[(kohya, "sd3")], Some("sd3 by ss_base_model_version")),
            (
                &[(kohya, "sdxl_base_v1-0")],
                Some("sdxl by ss_base_model_version"),
            ),
            (&[(kohya, "sd_v2")], None),
            (&[(model_spec, "hunyuan-video")], None),
        ];
        for (pairs, expected) in cases {
            assert_eq!(told(pairs).as_deref(), expected, "{pairs:?}");
        }
    }
}
