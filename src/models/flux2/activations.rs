//! What a training step keeps of this network: see [`crate::models::activations`].

use super::architecture::Architecture;
use crate::models::activations::{Activations, BlockActivations, StepShape};
use crate::models::flux1::architecture::PATCH;
use crate::models::transformer::activations::{Gates, attention_input};
use crate::vae::Extents;

impl Architecture {
    pub(super) fn of_step(&self, step: &StepShape) -> Activations {
        let (b, d) = (step.samples, self.width());
        let patches = |of: &Extents| of.height / PATCH * (of.width / PATCH);
        let (target, context) = (b * patches(&step.latents), b * step.context);
        let picture = target + step.reference.as_ref().map_or(0, |of| b * patches(of));
        let double = (0..self.num_double).map(|i| self.double(step, i, picture, context));
        let single = (0..self.num_single).map(|i| self.single(step, i, picture + context));
        let latents = target * self.token_channels;
        Activations {
            outside: step.adapter("x_embedder", picture, self.token_channels)
                + step.adapter("context_embedder", context, self.context_width)
                + step.adapter("proj_out", target, d)
                + (target * d + 2 * latents) as u64,
            blocks: double.chain(single).collect(),
            passing: ((picture + context) * (3 * d + 3 * self.inner)) as u64,
            chained: true,
        }
    }

    fn double(
        &self,
        step: &StepShape,
        i: usize,
        picture: usize,
        context: usize,
    ) -> BlockActivations {
        let own = |part: &str| format!("transformer_blocks.{i}.{part}");
        let (d, gates) = (self.width(), Gates::of(step));
        let half = |rows: usize, qkv: [&str; 3], out: &str, ff: &str| {
            let qkv = qkv.map(own);
            attention_input(step, &qkv, (2, 1), true, (rows, d))
                + step.attended(&own(out), rows, d)
                + 2 * gates.residual(rows, d)
                + self.feed_forward(step, &own(ff), rows)
        };
        let of_picture = half(
            picture,
            ["attn.to_q", "attn.to_k", "attn.to_v"],
            "attn.to_out.0",
            "ff",
        );
        let of_context = half(
            context,
            ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
            "attn.to_add_out",
            "ff_context",
        );
        BlockActivations {
            inputs: ((picture + context) * d) as u64,
            inner: of_picture + of_context,
        }
    }

    /// A normed feed-forward: what its norm reads, and both halves of its first linear.
    fn feed_forward(&self, step: &StepShape, name: &str, rows: usize) -> u64 {
        let d = self.width();
        (rows * (d + 2 * self.inner)) as u64
            + step.adapter(&format!("{name}.linear_in"), rows, d)
            + step.adapter(&format!("{name}.linear_out"), rows, self.inner)
    }

    fn single(&self, step: &StepShape, i: usize, rows: usize) -> BlockActivations {
        let own = |part: &str| format!("single_transformer_blocks.{i}.attn.{part}");
        let (d, inner) = (self.width(), self.inner);
        BlockActivations {
            inputs: (rows * d) as u64,
            inner: attention_input(step, &[own("to_qkv_mlp_proj")], (2, 1), true, (rows, d))
                + (rows * 2 * inner) as u64
                // The last layer reads a copy of attention's result.
                + (rows * d) as u64 * u64::from(step.attended)
                + step.adapter(&own("to_out"), rows, d + inner)
                + Gates::of(step).residual(rows, d),
        }
    }
}
