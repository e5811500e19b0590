//! FLUX.1: double blocks fuse queries, keys and values of each stream; single blocks fuse them with the first linear
//! of the feed-forward part, whose outputs are four times the inputs.

use super::names::Pieces;
use super::{DOUBLE, OUTER, SINGLE};
use crate::lora::formats::{AiToolkitNaming, Naming, Row, Spelling};
use crate::models::lora_names::THIRDS;

const LINEAR1: &[usize] = &[1, 1, 1, 4];

/// The rows of a network of double and single blocks: the modules of each and those around them, under diffusers' names and the
/// authors'; `units` are the parts of what a single block fuses, each with the outputs that it has beside the others'.
pub(in crate::models) fn rows(
    double: &[(&str, &str, Pieces)],
    (single, units): (&[(&str, &str, Pieces)], &'static [usize]),
    outer: &[(&'static str, &'static str)],
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (ours_blocks, native_blocks, parts, units) in [
        ("transformer_blocks", "double_blocks", double, THIRDS),
        ("single_transformer_blocks", "single_blocks", single, units),
    ] {
        for (ours, native, pieces) in parts {
            let row = Row::new(
                format!("{ours_blocks}.{{}}.{ours}"),
                format!("{native_blocks}.{{}}.{native}"),
            );
            // The parts before a part are of one piece each, so it is as many as there are pieces before it.
            rows.push(match pieces {
                Some((index, ..)) => row.part(*index, units),
                None => row,
            });
        }
    }
    rows.extend(outer.iter().map(|(ours, native)| {
        let row = Row::new(*ours, *native);
        match *ours {
            "norm_out.linear" => row.swapped(),
            _ => row,
        }
    }));
    rows
}

pub(in crate::models) fn naming() -> Naming {
    Naming {
        family: "flux1",
        component: "transformer",
        kohya: Spelling::Native,
        network_module: "networks.lora_flux",
        implementation: "https://github.com/black-forest-labs/flux",
        base_version: Some("flux1"),
        metadata_marks: &["flux"],
        widths: &[
            (".attn.to_q", 3072),
            (".proj_out", 15360),
            (".ff.net.2", 12288),
        ],
        only_where_stated: false,
        ai_toolkit: AiToolkitNaming::Diffusers,
        ai_toolkit_modules: &["transformer_blocks."],
        rows: rows(DOUBLE, (SINGLE, LINEAR1), OUTER),
    }
}
