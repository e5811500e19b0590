//! The fingerprints that entries are filed under.

use serde::Serialize;

use crate::base_model::BaseModel;
use crate::digest::{Digest, Fingerprint};
use crate::recipe::latents::{LatentKey, View};
use crate::recipe::spec::caption_entry;

/// A text encoder in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncoderId {
    /// Its slot in the recipe: `clip_l`, `t5`.
    pub slot: String,
    /// The fingerprint of its spec.
    pub spec: Fingerprint,
}

impl EncoderId {
    /// The entry of a caption.
    pub fn entry(&self, caption: &str) -> Fingerprint {
        caption_entry(&self.spec, caption)
    }
}

/// What a base model's conditioning and latents are filed under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specs {
    /// Its text encoders, in the recipe's order.
    pub encoders: Vec<EncoderId>,
    /// The fingerprint of its VAE's spec.
    pub latents: Fingerprint,
}

impl From<&BaseModel> for Specs {
    fn from(base: &BaseModel) -> Self {
        let id = |encoder: &crate::base_model::TextEncoderPart| EncoderId {
            slot: encoder.slot.clone(),
            spec: encoder.fingerprint,
        };
        Self {
            encoders: base.encoders.iter().map(id).collect(),
            latents: base.vae.fingerprint,
        }
    }
}

impl Specs {
    /// The entry of a view of a picture.
    pub fn view(&self, picture: Digest, view: View) -> Fingerprint {
        LatentKey::new(self.latents, picture, view).fingerprint()
    }
}
