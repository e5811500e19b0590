//! What a training step keeps of this network: see [`crate::models::activations`].

use super::architecture::{Architecture, PATCH};
use crate::models::activations::{Activations, BlockActivations, StepShape};
use crate::models::transformer::MLP_RATIO;
use crate::models::transformer::activations::{Gates, attention_input, feed_forward};
use crate::vae::Extents;

impl Architecture {
    pub(in crate::models) fn of_step(&self, step: &StepShape) -> Activations {
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
            passing: ((picture + context) * d * (MLP_RATIO + 2)) as u64,
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
        let own = |part: &&str| format!("transformer_blocks.{i}.{part}");
        let (d, gates) = (self.width(), Gates::of(step));
        let half = |rows: usize, qkv: [&str; 3], out: &str, ff: &str| {
            let qkv: Vec<String> = qkv.iter().map(own).collect();
            attention_input(step, &qkv, (2, 1), true, (rows, d))
                + step.attended(&own(&out), rows, d)
                + gates.residual(rows, d)
                + feed_forward(step, &own(&ff), gates, (rows, d))
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

    fn single(&self, step: &StepShape, i: usize, rows: usize) -> BlockActivations {
        let own = |part: &str| format!("single_transformer_blocks.{i}.{part}");
        let (d, inner) = (self.width(), MLP_RATIO * self.width());
        let into = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(own);
        BlockActivations {
            inputs: (rows * d) as u64,
            inner: attention_input(step, &into, (2, 1), true, (rows, d))
                + (rows * inner) as u64
                // The last layer reads a copy of attention's result.
                + (rows * d) as u64 * u64::from(step.attended)
                + step.adapter(&own("proj_out"), rows, d + inner)
                + Gates::of(step).residual(rows, d),
        }
    }
}
