//! What a training step keeps of this network: see [`crate::models::activations`]. A block is a residual block with the
//! transformer beside it, as they are run again.

use super::architecture::{Architecture, Level};
use crate::models::activations::{Activations, BlockActivations, StepShape};

/// A place in the network: the names of its modules begin with `place`, and it works on a picture of `pixels` pixels.
struct BlockPlace<'a> {
    step: &'a StepShape,
    place: String,
    i: usize,
    /// Of all samples.
    pixels: usize,
}

impl Architecture {
    pub(super) fn of_step(&self, step: &StepShape) -> Activations {
        let whole = (step.latents.height, step.latents.width);
        let mut size = whole;
        let pixels = |(h, w): (usize, usize)| step.samples * h * w;
        let first = self.levels.first().map_or(0, |level| level.width);
        let (mut width, mut sizes) = (first, Vec::new());
        let mut blocks: Vec<BlockActivations> = Vec::new();
        let mut outside = 0;
        let mut kept = vec![width];
        for (number, &level) in self.levels.iter().enumerate() {
            for i in 0..self.layers {
                let place = BlockPlace {
                    step,
                    place: format!("down_blocks.{number}"),
                    i,
                    pixels: pixels(size),
                };
                blocks.push(self.block(&place, width, level));
                width = level.width;
                kept.push(width);
            }
            sizes.push(size);
            if number + 1 < self.levels.len() {
                // The way up reads what is halved here for the way down; so may an adapter.
                if let Some(last) = blocks.last_mut() {
                    last.inputs += numbers(pixels(size), width);
                }
                let halve = format!("down_blocks.{number}.downsamplers.0.conv");
                outside += step.down(&halve, pixels(size) / 4);
                size = (size.0.div_ceil(2), size.1.div_ceil(2));
                kept.push(width);
            }
        }
        let last = self.levels.last().copied();
        for (i, depth) in [(0, self.middle_depth), (1, 0)] {
            let place = BlockPlace {
                step,
                place: "mid_block".to_owned(),
                i,
                pixels: pixels(size),
            };
            let level = last.map(|level| Level { depth, ..level });
            blocks.extend(level.map(|level| self.block(&place, width, level)));
        }
        for (number, (&level, &size)) in self.levels.iter().zip(&sizes).rev().enumerate() {
            for i in 0..=self.layers {
                let place = BlockPlace {
                    step,
                    place: format!("up_blocks.{number}"),
                    i,
                    pixels: pixels(size),
                };
                // What comes from the way down is kept there already.
                let inputs = numbers(place.pixels, width);
                width += kept.pop().unwrap_or(0);
                let block = self.block(&place, width, level);
                blocks.push(BlockActivations { inputs, ..block });
                width = level.width;
            }
            if let Some(&larger) = (sizes.len() - 1)
                .checked_sub(number + 1)
                .and_then(|n| sizes.get(n))
            {
                let double = format!("up_blocks.{number}.upsamplers.0.conv");
                outside += step.adapter(&double, pixels(larger), width);
            }
        }
        let all = pixels(whole);
        Activations {
            // The last norm's input, and the prediction with its target.
            outside: outside
                + numbers(all, first + 2 * self.out_channels)
                + step.adapter("conv_in", all, self.in_channels)
                + step.adapter("conv_out", all, first),
            passing: (all * first * 8) as u64,
            blocks,
            // The way up reads what the way down made.
            chained: false,
        }
    }

    fn block(&self, at: &BlockPlace<'_>, inputs: usize, level: Level) -> BlockActivations {
        BlockActivations {
            inputs: numbers(at.pixels, inputs),
            inner: at.resnet(inputs, level.width) + self.transformer(at, level),
        }
    }

    fn transformer(&self, at: &BlockPlace<'_>, level: Level) -> u64 {
        if level.depth == 0 {
            return 0;
        }
        let name = format!("{}.attentions.{}", at.place, at.i);
        let c = level.width;
        let blocks = (0..level.depth)
            .map(|k| self.transformer_block(at, &format!("{name}.transformer_blocks.{k}"), c));
        (at.pixels * c) as u64
            + at.read(&format!("{name}.proj_in"), c)
            + at.read(&format!("{name}.proj_out"), c)
            + blocks.sum::<u64>()
    }

    fn transformer_block(&self, at: &BlockPlace<'_>, name: &str, c: usize) -> u64 {
        let own = |part: &str| format!("{name}.{part}");
        let numbers = |channels| numbers(at.pixels, channels);
        let context = at.step.samples * at.step.context;
        let qkv = ["attn1.to_q", "attn1.to_k", "attn1.to_v"].map(own);
        let read = |names: &[String]| u64::from(names.iter().any(|n| at.step.has(n)));
        let downs =
            |names: &[String], rows| -> u64 { names.iter().map(|n| at.step.down(n, rows)).sum() };
        let of_context = ["attn2.to_k", "attn2.to_v"].map(own);
        let query = [own("attn2.to_q")];
        // Norms read their inputs; queries, keys and values are kept, and what an adapter reads.
        let own_attention = numbers(c) * (1 + read(&qkv) + 3) + downs(&qkv, at.pixels);
        let cross_attention = numbers(c) * (1 + read(&query) + 1)
            + downs(&query, at.pixels)
            + 2 * (context * c) as u64
            + downs(&of_context, context);
        // The wide result is cut into value and gate, which are kept.
        let feed_forward = numbers(c)
            + numbers(8 * c)
            + at.read(&own("ff.net.0.proj"), c)
            + at.read(&own("ff.net.2"), 4 * c);
        own_attention
            + cross_attention
            + feed_forward
            + at.step.attended(&own("attn1.to_out.0"), at.pixels, c)
            + at.step.attended(&own("attn2.to_out.0"), at.pixels, c)
    }
}

fn numbers(pixels: usize, channels: usize) -> u64 {
    (pixels * channels) as u64
}

impl BlockPlace<'_> {
    fn resnet(&self, inputs: usize, outputs: usize) -> u64 {
        let own = |part: &str| format!("{}.resnets.{}.{part}", self.place, self.i);
        // What the two norms read.
        (self.pixels * (inputs + outputs)) as u64
            + self.read(&own("conv1"), inputs)
            + self.read(&own("conv2"), outputs)
            + self.read(&own("conv_shortcut"), inputs)
    }

    /// What an adapter on a module that reads `width` channels of each pixel keeps.
    fn read(&self, module: &str, width: usize) -> u64 {
        self.step.adapter(module, self.pixels, width)
    }
}
