//! How many numbers the parts in this module keep of a forward pass: see [`crate::models::activations`].
//!
//! Rows are tokens of all samples.

use super::MLP_RATIO;
use crate::models::activations::StepShape;

/// Whether modulations have gradients: then what they gate is kept.
#[derive(Clone, Copy)]
pub(in crate::models) struct Gates(bool);

impl Gates {
    /// If anything that makes the conditioning vector or a modulation carries an adapter.
    pub(in crate::models) fn of(step: &StepShape) -> Self {
        let makes = |name: &String| {
            name.starts_with("time_text_embed.")
                || name.starts_with("time_guidance_embed.")
                || name.contains("_stream_modulation")
                || name.ends_with("norm1.linear")
                || name.ends_with("norm1_context.linear")
                || name.ends_with(".norm.linear")
        };
        Self(step.adapted.keys().any(makes))
    }

    /// If something that makes them carries an adapter.
    pub(in crate::models) fn when(learned: bool) -> Self {
        Self(learned)
    }

    /// What one gated residual of rows of `width` keeps.
    pub(in crate::models) fn residual(self, rows: usize, width: usize) -> u64 {
        (rows * width) as u64 * u64::from(self.0)
    }
}

/// A norm with modulation, and the linears `into` queries, keys, values (and whatever else they begin) that read its
/// result; `q_and_k` of them give heads of queries or keys, which are normed if `normed`, `values` give values.
pub(in crate::models) fn attention_input(
    step: &StepShape,
    into: &[String],
    (q_and_k, values): (usize, usize),
    normed: bool,
    (rows, width): (usize, usize),
) -> u64 {
    let row = (rows * width) as u64;
    let read = into.iter().any(|name| step.has(name));
    let downs: u64 = into.iter().map(|name| step.down(name, rows)).sum();
    // What the norm reads, and its result where an adapter reads that.
    let norm = row * (1 + u64::from(read));
    let heads = q_and_k as u64 * (1 + u64::from(normed)) + values as u64;
    norm + row * heads + downs
}

/// A normed and gated feed-forward.
pub(in crate::models) fn feed_forward(
    step: &StepShape,
    name: &str,
    gates: Gates,
    (rows, width): (usize, usize),
) -> u64 {
    feed_forward_of(step, name, gates, (rows, width), MLP_RATIO * width)
}

/// One that is `inner` wide inside.
pub(in crate::models) fn feed_forward_of(
    step: &StepShape,
    name: &str,
    gates: Gates,
    (rows, width): (usize, usize),
    inner: usize,
) -> u64 {
    (rows * (width + inner)) as u64
        + step.adapter(&format!("{name}.net.0.proj"), rows, width)
        + step.adapter(&format!("{name}.net.2"), rows, inner)
        + gates.residual(rows, width)
}
