//! What other trainers call a family in their caches of embeddings and latents, and how they lay it out there.

/// A family in the caches of those trainers that keep both its embeddings and its latents; none for a trainer that does not, or whose
/// cache is not written.
#[derive(Debug)]
pub struct CacheNames {
    /// The encoders whose sequences the trainers join themselves: side by side, then one below the other.
    pub context: &'static [&'static [&'static str]],
    /// The encoders whose pooled vectors they join.
    pub pooled: &'static [&'static str],
    /// kohya's sd-scripts.
    pub kohya: Option<KohyaNames>,
    /// musubi-tuner.
    pub musubi: Option<MusubiNames>,
    /// ai-toolkit.
    pub ai_toolkit: Option<AiToolkitNames>,
    /// SimpleTuner.
    pub simpletuner: Option<SimpleTunerNames>,
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

/// In musubi-tuner's names and metadata.
#[derive(Debug)]
pub struct MusubiNames {
    /// Its short and long name of a flavor, by what the flavor's name contains; the first that fits.
    pub architectures: &'static [(&'static str, &'static str, &'static str)],
    /// Which tensors of embeddings.
    pub texts: MusubiTexts,
    /// Which tensors of latents.
    pub latents: MusubiLatents,
    /// What the tuner multiplies latents by and takes off them once they are read, (scale, shift); none where the file has them as the
    /// denoiser takes them.
    pub statistics: Option<(f64, f64)>,
}

/// Which tensors of embeddings musubi's files have, but for their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MusubiTexts {
    /// `t5_vec` and `clip_l_pooler`.
    T5AndPooled,
    /// All rows, under this name.
    Rows(&'static str),
    /// The rows of true tokens alone, under this name; the denoiser fills up with zeros, or sees no other row.
    TrueRows(&'static str),
}

/// How musubi's tensors of latents are shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MusubiLatents {
    /// `latents_1xHxW` beside `latents_control_1xHxW`, those of a reference: it has none of a picture alone.
    Pairs,
    /// `latents_1xHxW`, [channels, height, width].
    Pictures,
    /// `latents_HxW`, with patches joined to channels.
    Patches,
    /// `latents_FxHxW`, [channels, frames, height, width].
    Clips,
}

/// In ai-toolkit's keys and files.
#[derive(Debug)]
pub struct AiToolkitNames {
    /// Of embeddings: `text_embedding_space_version`, by what the flavor's name contains; the first that fits.
    pub texts: &'static [(&'static str, &'static str)],
    /// Of latents: `latent_space_version`; none where it is the same.
    pub latents: Option<&'static str>,
    /// Latents that the sides of its crops are multiples of.
    pub step: u32,
    /// Which tensors of embeddings.
    pub tensors: AiToolkitTexts,
}

/// Which tensors of embeddings ai-toolkit's files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AiToolkitTexts {
    /// `text_embed` and `pooled_embed`.
    Pooled,
    /// `text_embed`.
    Alone,
    /// `text_embed_0`, without rows of pads.
    Listed,
    /// `text_embed` of so many rows, and `attention_mask` of true tokens, behind which the denoiser sees one pad.
    Masked(usize),
}

/// In SimpleTuner's names.
#[derive(Debug)]
pub struct SimpleTunerNames {
    /// `model_family`.
    pub name: &'static str,
    /// Which tensors of embeddings.
    pub tensors: SimpleTunerTexts,
}

/// Which tensors of embeddings SimpleTuner's files have beside `prompt_embeds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimpleTunerTexts {
    /// `pooled_prompt_embeds`.
    Pooled,
    /// The same, ids of the text's tokens, and `attention_masks` of true tokens, by which the denoiser can mask them.
    PooledAndMask,
    /// None that is used.
    Alone,
    /// `attention_mask` of true tokens, at which the denoiser does not look.
    MaskAside,
    /// So many rows, of which the denoiser sees those of this mask.
    Masked(&'static str, usize),
}

impl MusubiNames {
    /// The short and the long name of a flavor.
    pub fn architecture(&self, flavor: &str) -> (&'static str, &'static str) {
        let of = |(part, ..): &&(&str, &'static str, &'static str)| flavor.contains(part);
        let found = self.architectures.iter().find(of);
        found.map_or(("", ""), |(_, short, long)| (*short, *long))
    }
}

impl AiToolkitNames {
    /// Its `arch` of a flavor.
    pub fn arch(&self, flavor: &str) -> &'static str {
        let found = self.texts.iter().find(|(part, _)| flavor.contains(part));
        found.map_or("", |(_, arch)| *arch)
    }
}

impl SimpleTunerTexts {
    /// Whether the denoiser can mask pads.
    pub fn masks(self) -> bool {
        matches!(self, Self::PooledAndMask | Self::Masked(..))
    }
}
