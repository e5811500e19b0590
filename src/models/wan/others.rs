//! Models of Wan's authors and others' that are not text to video of 16 channels, each by the tensors or channels that it alone has.
//! Their networks are given more than noise and a caption, so that what is trained of them here would be wrong or nothing.

use std::path::Path;

use crate::models::Error;
use crate::nn::weights::Weights;

/// What the names of tensors that only it has begin with, and what it is called.
const BY_TENSORS: [(&str, &str); 9] = [
    ("vace_", "VACE, which is given videos to edit"),
    (
        "face_",
        "Animate, which is given a character and its motion",
    ),
    (
        "motion_encoder.",
        "Animate, which is given a character and its motion",
    ),
    ("casual_audio_encoder.", "S2V, which is given sound"),
    ("audio_proj.", "a model that is given sound"),
    ("ref_conv.", "Fun Control, which is given a control video"),
    (
        "control_adapter.",
        "Fun Camera, which is given a path of the camera",
    ),
    (
        "img_emb.",
        "image to video (I2V), which is given a first picture",
    ),
    (
        "condition_embedder.image_embedder.",
        "image to video (I2V), which is given a first picture",
    ),
];

/// What a number of input channels says of a network of 16 or 48 channels that go out.
const BY_CHANNELS: [(usize, &str); 5] = [
    (32, "Fun or VACE, which is given a video"),
    (
        36,
        "image to video (I2V) or Fun InP, which is given a picture",
    ),
    (
        48,
        "Wan 2.2 TI2V-5B, which has a timestep for each token and another VAE, or Fun Control",
    ),
    (52, "Fun Control, which is given a control video"),
    (100, "Fun 5B, which is given a picture or a control video"),
];

/// Refuses weights, under whatever names, that belong to one of these.
///
/// # Errors
/// With the name of the model.
pub(super) fn refuse(path: &Path, stored: &Weights) -> Result<(), Error> {
    let names = stored.names();
    let sign = |(sign, _): &&(&str, &str)| names.iter().any(|name| name.starts_with(sign));
    let by_tensors = BY_TENSORS.iter().find(sign).map(|(_, what)| *what);
    // A network for pixels of a given picture takes more channels than it gives.
    let shape = stored.shape("patch_embedding.weight").unwrap_or_default();
    let channels = shape.get(1).copied();
    let by_channels = BY_CHANNELS
        .iter()
        .find(|(count, _)| channels == Some(*count));
    let Some(what) = by_tensors.or(by_channels.map(|(_, what)| *what)) else {
        return Ok(());
    };
    Err(Error::Config {
        path: path.to_owned(),
        what: format!(
            "it is {what}; of Wan, text to video is trained here: 2.1 (1.3B, 14B) and 2.2 (A14B)"
        ),
    })
}
