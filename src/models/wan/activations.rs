//! What a training step keeps of this network: see [`crate::models::activations`].

use super::architecture::{Architecture, PATCH};
use crate::models::activations::{Activations, BlockActivations, StepShape};
use crate::models::transformer::activations::{Gates, attention_input, feed_forward_of};

/// What makes the context of the caption's rows.
const TEXT: &str = "condition_embedder.text_embedder.";

impl Architecture {
    pub(super) fn of_step(&self, step: &StepShape) -> Activations {
        let (b, d) = (step.samples, self.width());
        let latents = &step.latents;
        let patches = latents.frames * (latents.height / PATCH) * (latents.width / PATCH);
        let (rows, context) = (b * patches, b * step.context);
        let pixels = rows * self.channels * PATCH * PATCH;
        let text = |part: &str| format!("{TEXT}{part}");
        // The hidden rows of the context count where they have a gradient.
        let hidden = (context * d) as u64 * u64::from(step.has(&text("linear_1")));
        Activations {
            outside: step.adapter(&text("linear_1"), context, self.context_width)
                + hidden
                + step.adapter(&text("linear_2"), context, d)
                + (context * d) as u64
                + step.adapter("proj_out", rows, d)
                + (rows * d + 2 * pixels) as u64,
            blocks: (0..self.num_blocks)
                .map(|i| self.block(step, i, rows, context))
                .collect(),
            passing: (rows * (self.feed_forward + 2 * d)) as u64,
            chained: true,
        }
    }

    fn block(&self, step: &StepShape, i: usize, rows: usize, context: usize) -> BlockActivations {
        let own = |part: &str| format!("blocks.{i}.{part}");
        let d = self.width();
        let of_time = |name: &String| name.starts_with("condition_embedder.time_");
        let gates = Gates::when(step.adapted.keys().any(of_time));
        let of_video = ["attn1.to_q", "attn1.to_k", "attn1.to_v"].map(own);
        let inner = attention_input(step, &of_video, (2, 1), true, (rows, d))
            + step.attended(&own("attn1.to_out.0"), rows, d)
            + gates.residual(rows, d)
            + attention_input(step, &[own("attn2.to_q")], (1, 0), true, (rows, d))
            + self.of_context(step, i, context)
            + step.attended(&own("attn2.to_out.0"), rows, d)
            + feed_forward_of(step, &own("ffn"), gates, (rows, d), self.feed_forward);
        BlockActivations {
            inputs: (rows * d) as u64,
            inner,
        }
    }

    /// Keys and values of the context, which all blocks read as it is.
    fn of_context(&self, step: &StepShape, i: usize, rows: usize) -> u64 {
        let [k, v] = ["k", "v"].map(|part| format!("blocks.{i}.attn2.to_{part}"));
        let learns = step.has(&k) || step.adapted.keys().any(|name| name.starts_with(TEXT));
        let width = (rows * self.width()) as u64;
        width * (2 + u64::from(learns)) + step.down(&k, rows) + step.down(&v, rows)
    }
}
