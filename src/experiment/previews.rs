//! What `[sample]` comes to for a flavor: its authors' sampler, steps, guidance, shift and negative prompt, where it says nothing.

use super::raw::{self, ReferenceSize};
use super::{Experiment, SampleSettings};
use crate::models::{self, Flavor};

impl Experiment {
    /// How previews are sampled.
    pub(super) fn previews(&self, flavor: &Flavor) -> SampleSettings {
        let sample = &self.raw.sample;
        let first = self.raw.dataset.first();
        // Previews show what was trained, so at its size, which like a bucket's is whole steps.
        let in_steps = |set: &raw::Dataset| {
            let step = set.bucket_step.max(1);
            let whole = |side: u32| if set.bucket { side / step * step } else { side };
            set.resolution.sides().map(whole)
        };
        let [width, height] = first.map_or([flavor.resolution_px; 2], in_steps);
        let trained = first.and_then(|set| self.references(set));
        let reference_size = trained.map_or(ReferenceSize::Preferred, |references| references.size);
        let (embedded_guidance, guidance) = match flavor.embedded_guidance {
            // What people call guidance of such a model is the embedding's input.
            Some(authors) => (
                Some(sample.guidance.unwrap_or(authors)),
                sample.true_cfg.unwrap_or(flavor.guidance),
            ),
            None => (None, sample.guidance.unwrap_or(flavor.guidance)),
        };
        SampleSettings {
            prompts: sample.prompts.clone(),
            references: sample.references.iter().map(|p| self.path(p)).collect(),
            reference_size: sample.reference_size.unwrap_or(reference_size),
            negative_prompt: self.negative_prompt(),
            negative_of_authors: sample.negative_prompt.is_none()
                && flavor.negative_prompt.is_some(),
            width: sample.width.unwrap_or(width),
            height: sample.height.unwrap_or(height),
            frames: self.raw.sample_frames(),
            rate: self.raw.sample_rate(),
            sampler: sample.sampler.unwrap_or(flavor.sampler),
            steps: sample.steps.unwrap_or(flavor.steps as usize),
            guidance,
            guidance_of_other: sample
                .guidance
                .unwrap_or_else(|| self.other_guidance(flavor)),
            guidance_rescale: sample.guidance_rescale,
            embedded_guidance,
            shift: sample.shift.unwrap_or(flavor.shift),
            spacing: flavor.spacing,
            size_conditioning: flavor.size_conditioning,
            seed: sample.seed,
        }
    }

    /// What previews are steered away from: the Experiment's caption, else that of the flavor's authors; None: the recipe's
    /// unconditional entry.
    pub(super) fn negative_prompt(&self) -> Option<String> {
        let model = &self.raw.model;
        let flavor = models::family(&model.family).and_then(|family| family.flavor(&model.flavor));
        let of_flavor = flavor.ok().and_then(|flavor| flavor.negative_prompt);
        let own = self.raw.sample.negative_prompt.clone();
        own.or(of_flavor.map(str::to_owned))
    }

    /// The guidance that the authors of a flavor have for its other expert.
    fn other_guidance(&self, flavor: &Flavor) -> f64 {
        let family = models::family(&self.raw.model.family).ok();
        let other = family.zip(flavor.expert);
        let other = other.and_then(|(family, expert)| family.flavor(expert.other).ok());
        other.unwrap_or(flavor).guidance
    }
}
