//! What a training step keeps of this network: see [`crate::models::activations`].

use super::architecture::{Architecture, PATCH};
use super::names::{BLOCKS, MODULATION};
use crate::models::activations::{Activations, BlockActivations, StepShape};
use crate::models::transformer::activations::attention_input;

impl Architecture {
    pub(super) fn of_step(&self, step: &StepShape) -> Activations {
        let (b, d) = (step.samples, self.width);
        let patches = step.latents.height / PATCH * (step.latents.width / PATCH);
        let picture = b * Self::filled(patches);
        let caption = b * Self::filled(step.context);
        let flows = self.flows(step);
        let rows = [picture, caption, picture + caption];
        let lists = BLOCKS.iter().zip(rows.into_iter().zip(flows));
        let blocks = lists.flat_map(|(&(list, modulated), (rows, flows))| {
            let block = move |(i, flows): (usize, bool)| match flows {
                true => self.block(step, &format!("{list}.{i}"), modulated, rows),
                false => BlockActivations::default(),
            };
            flows.into_iter().enumerate().map(block)
        });
        let (x, last) = ("all_x_embedder.2-1", "all_final_layer.2-1.linear");
        Activations {
            outside: step.adapter(x, b * patches, self.token_channels())
                + step.adapter("cap_embedder.1", caption, self.context_width)
                + step.adapter(last, b * patches, d)
                + (b * patches * d + 2 * b * patches * self.token_channels()) as u64,
            blocks: blocks.collect(),
            passing: ((picture + caption) * (d + 2 * self.inner())) as u64,
            chained: true,
        }
    }

    /// Of each block, by list, whether a gradient flows through it: there is an adapter in it or before it. The others keep nothing.
    fn flows(&self, step: &StepShape) -> [Vec<bool>; 3] {
        let list = |at: usize, count: usize, before: bool| {
            let is_in = |i: usize| {
                let own = format!("{}.{i}.", BLOCKS[at].0);
                step.adapted.keys().any(|module| module.starts_with(&own))
            };
            let first = (0..count).find(|&i| is_in(i)).unwrap_or(count);
            (0..count).map(|i| before || i >= first).collect::<Vec<_>>()
        };
        let time = step.has("t_embedder.mlp.0") || step.has("t_embedder.mlp.2");
        let picture = time || step.has("all_x_embedder.2-1");
        let caption = step.has("cap_embedder.1");
        let refiners = [
            list(0, self.refiners, picture),
            list(1, self.refiners, caption),
        ];
        let refined = refiners.iter().any(|list| list.last() == Some(&true));
        let [of_picture, of_caption] = refiners;
        let both = list(2, self.layers, picture || caption || refined);
        [of_picture, of_caption, both]
    }

    fn block(
        &self,
        step: &StepShape,
        name: &str,
        modulated: bool,
        rows: usize,
    ) -> BlockActivations {
        let own = |part: &str| format!("{name}.{part}");
        let (d, inner) = (self.width, self.inner());
        let row = (rows * d) as u64;
        // Where what makes scales and gates has an adapter, what these are multiplied with is kept.
        let learns = step.has("t_embedder.mlp.0")
            || step.has("t_embedder.mlp.2")
            || step.has(&own(MODULATION));
        let modulation = 4 * row * u64::from(modulated && learns);
        let qkv = ["attention.to_q", "attention.to_k", "attention.to_v"].map(own);
        let ups = ["feed_forward.w1", "feed_forward.w3"].map(own);
        let read = ups.iter().any(|name| step.has(name));
        let downs: u64 = ups.iter().map(|name| step.down(name, rows)).sum();
        BlockActivations {
            inputs: row,
            inner: attention_input(step, &qkv, (2, 1), true, (rows, d))
                + step.attended(&own("attention.to_out.0"), rows, d)
                // What the norms behind attention and feed-forward read, and the one before the latter.
                + 3 * row
                + row * u64::from(read)
                + downs
                + 2 * (rows * inner) as u64
                + step.adapter(&own("feed_forward.w2"), rows, inner)
                + modulation,
        }
    }
}
