//! What other trainers call a family in their caches of embeddings and latents, and how they lay it out there.

/// A family in the caches of those trainers that keep both its embeddings and its latents.
#[derive(Debug)]
pub struct CacheNames {
    /// The encoders whose sequences the trainers join themselves: side by side, then one below the other.
    pub context: &'static [&'static [&'static str]],
    /// The encoders whose pooled vectors they join.
    pub pooled: &'static [&'static str],
    /// kohya's sd-scripts.
    pub kohya: KohyaNames,
    /// musubi-tuner's short and long name; none where it does not train the family.
    pub musubi: Option<(&'static str, &'static str)>,
    /// ai-toolkit.
    pub ai_toolkit: AiToolkitNames,
    /// SimpleTuner.
    pub simpletuner: SimpleTunerNames,
}

/// In kohya's `.npz` files.
#[derive(Debug)]
pub struct KohyaNames {
    /// What follows a picture's name in that of its embeddings.
    pub texts: &'static str,
    /// What follows a picture's name and size in that of its latents.
    pub latents: &'static str,
    /// The arrays of embeddings.
    pub arrays: KohyaArrays,
    /// What the scripts multiply latents by and take off them once they are read, (scale, shift); none where the file has them as the
    /// denoiser takes them.
    pub statistics: Option<(f64, f64)>,
    /// Whether a file holds latents of several resolutions, each under its own name.
    pub resolutions: bool,
    /// Whether the denoiser masks pads where the file says so.
    pub masks: bool,
}

/// Which arrays of embeddings kohya's files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KohyaArrays {
    /// `hidden_state1`, `hidden_state2`, `pool2`.
    TwoClips,
    /// `lg_out`, `lg_pooled`, `t5_out`, a mask of each encoder.
    ClipsAndT5,
    /// `l_pooled`, `t5_out`, `txt_ids`, a mask of T5.
    PooledAndT5,
}

/// In ai-toolkit's keys.
#[derive(Debug)]
pub struct AiToolkitNames {
    /// Of embeddings: `text_embedding_space_version`.
    pub texts: &'static str,
    /// Of latents: `latent_space_version`.
    pub latents: &'static str,
    /// Latents that the sides of its crops are multiples of.
    pub step: u32,
}

/// In SimpleTuner's names.
#[derive(Debug)]
pub struct SimpleTunerNames {
    /// `model_family`.
    pub name: &'static str,
    /// Whether the file has ids of the text's tokens and a mask of pads, by which the denoiser can mask them.
    pub masks: bool,
}
