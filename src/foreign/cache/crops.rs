//! SimpleTuner's list of crops: `aspect_ratio_bucket_metadata_ID.json` in the folder of the pictures
//! (`simpletuner/helpers/metadata/backends/discovery.py` at bc8e6ab). It is written before the pictures are encoded, and never again: for
//! a random crop it has the middle (`training_sample.py:697-708`), whatever part is encoded later, and SDXL is told what it has
//! (`training/collate.py:502-520`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::files;

/// The largest list that is read: of about a million pictures.
const MAX_BYTES: u64 = 256 << 20;

/// Where a picture is said to be cropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatedCrop {
    /// The picture's file name.
    pub picture: String,
    /// Width and height of the crop in px.
    pub size: [u32; 2],
    /// Left and top of it in the resized picture, in px.
    pub place: [u32; 2],
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    target_size: Value,
    #[serde(default)]
    crop_coordinates: Value,
}

/// Whether a file of that name is such a list.
pub fn is_list_of_crops(name: &str) -> bool {
    name.starts_with("aspect_ratio_bucket_metadata") && name.ends_with(".json")
}

/// The crops in such a list.
///
/// # Errors
/// If the file cannot be read, is larger than 256 MiB, or is no such list.
pub fn stated_crops(path: &Path) -> Result<Vec<StatedCrop>, Error> {
    let bytes = files::read(path, MAX_BYTES).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    read(&bytes).map_err(|why| Error::Unreadable {
        path: path.to_owned(),
        why: format!("expected SimpleTuner's list of crops by picture, found {why}"),
    })
}

pub(super) fn read(bytes: &[u8]) -> Result<Vec<StatedCrop>, serde_json::Error> {
    let rows: BTreeMap<String, Row> = serde_json::from_slice(bytes)?;
    let crops = rows.iter().filter_map(|(path, row)| {
        let [top, left] = pair(&row.crop_coordinates)?;
        Some(StatedCrop {
            picture: path.rsplit(['/', '\\']).next()?.to_owned(),
            size: pair(&row.target_size)?,
            place: [left, top],
        })
    });
    Ok(crops.collect())
}

fn pair(value: &Value) -> Option<[u32; 2]> {
    let numbers = value.as_array()?.iter();
    let numbers: Option<Vec<u32>> = numbers.map(|n| n.as_u64()?.try_into().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_read_by_picture_and_what_has_none_is_passed_over() {
        let text = br#"{
            "/data/a b.png": {"original_size": [96, 64], "crop_coordinates": [3, 16], "target_size": [64, 56],
                "intermediary_size": [96, 64], "aspect_ratio": 1.14},
            "C:\\data\\c.png": {"crop_coordinates": [-1, 2], "target_size": [64, 64]},
            "d.png": {"crop_coordinates": [1, 2, 3], "target_size": [64, 64]},
            "e.wav": {"sample_rate": 1}}"#;
        let found = read(text).expect("a list");
        let wanted = StatedCrop {
            picture: "a b.png".to_owned(),
            size: [64, 56],
            place: [16, 3],
        };
        assert_eq!(found, [wanted]);
        for bad in ["[]", "{\"a\": 1}", "{", ""] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
