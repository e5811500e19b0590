//! What a training step keeps of this network: see [`crate::models::activations`].

use super::architecture::Architecture;
use crate::models::activations::{Activations, BlockActivations, StepShape};
use crate::models::transformer::activations::{Gates, attention_input, feed_forward};

impl Architecture {
    pub(super) fn of_step(&self, step: &StepShape) -> Activations {
        let (b, d, side) = (step.samples, self.width(), self.patch_size);
        let picture = b * (step.latents.height / side) * (step.latents.width / side);
        let context = b * step.context;
        let blocks = (0..self.depth).map(|i| self.block(step, i, picture, context));
        let latents = picture * side * side * self.out_channels;
        Activations {
            outside: step.adapter("context_embedder", context, self.context_width)
                + step.adapter("proj_out", picture, d)
                + (picture * d + 2 * latents) as u64,
            blocks: blocks.collect(),
            passing: (6 * (picture + context) * d) as u64,
            chained: true,
        }
    }

    fn block(
        &self,
        step: &StepShape,
        i: usize,
        picture: usize,
        context: usize,
    ) -> BlockActivations {
        let own = |part: &str| format!("transformer_blocks.{i}.{part}");
        let (d, gates) = (self.width(), Gates::of(step));
        let attention = |name: &str| {
            let qkv = ["to_q", "to_k", "to_v"].map(|part| own(&format!("{name}.{part}")));
            attention_input(step, &qkv, (2, 1), self.qk_norm, (picture, d))
                + step.attended(&own(&format!("{name}.to_out.0")), picture, d)
                + gates.residual(picture, d)
        };
        let mut inner = attention("attn") + feed_forward(step, &own("ff"), gates, (picture, d));
        if self.dual_attention.contains(&i) {
            // Its norm reads what the first attention's does.
            inner += attention("attn2") - (picture * d) as u64;
        }
        let mut into = vec![own("attn.add_k_proj"), own("attn.add_v_proj")];
        if self.is_last(i) {
            inner += attention_input(step, &into, (1, 1), self.qk_norm, (context, d));
        } else {
            into.push(own("attn.add_q_proj"));
            inner += attention_input(step, &into, (2, 1), self.qk_norm, (context, d))
                + step.attended(&own("attn.to_add_out"), context, d)
                + gates.residual(context, d)
                + feed_forward(step, &own("ff_context"), gates, (context, d));
        }
        BlockActivations {
            inputs: ((picture + context) * d) as u64,
            inner,
        }
    }
}
