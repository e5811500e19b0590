//! The cache of kohya's sd-scripts: `library/strategy_sd3.py`, `strategy_flux.py`, `strategy_sdxl.py`, `strategy_sd.py`, and
//! `strategy_base.py` `save_latents_to_disk`.

use candle_core::Tensor;

use super::CacheError;
use super::values::{Source, Text, write};
use crate::dataset::Item;
use crate::foreign::cache::{ToWrite, npz};
use crate::models::cache_names::{KohyaArrays, KohyaNames};
use crate::text::spec::Dtype;

type Made = Result<Result<Vec<u8>, String>, CacheError>;

pub(super) fn text(source: &Source<'_>, text: &Text<'_>, names: &KohyaNames) -> Made {
    let (context, pooled) = (&text.made.context, &text.made.pooled);
    let arrays = match names.arrays {
        KohyaArrays::TwoClips => {
            let Some((_, width)) = text.hidden("clip_l") else {
                return Ok(Err(no_clip()));
            };
            let rest = context.dim(1)? - width;
            vec![
                source.write("hidden_state1", &context.narrow(1, 0, width)?)?,
                source.write("hidden_state2", &context.narrow(1, width, rest)?)?,
                source.write("pool2", pooled)?,
            ]
        }
        KohyaArrays::ClipsAndT5 => {
            let (Some((rows, l)), Some((_, g))) = (text.hidden("clip_l"), text.hidden("clip_g"))
            else {
                return Ok(Err(no_clip()));
            };
            let t5_rows = context.dim(0)? - rows;
            let clips = context.narrow(0, 0, rows)?.narrow(1, 0, l + g)?;
            vec![
                source.write("lg_out", &clips)?,
                source.write("lg_pooled", pooled)?,
                source.write("t5_out", &context.narrow(0, rows, t5_rows)?)?,
                ToWrite::whole("clip_l_attn_mask", vec![rows], &text.mask("clip_l", rows)),
                ToWrite::whole("clip_g_attn_mask", vec![rows], &text.mask("clip_g", rows)),
                ToWrite::whole("t5_attn_mask", vec![t5_rows], &text.mask("t5", t5_rows)),
                // What the scripts compare with their options: both are off by default, and neither changes how they train.
                ToWrite::flag("apply_lg_attn_mask", false),
                ToWrite::flag("apply_t5_attn_mask", false),
            ]
        }
        KohyaArrays::PooledAndT5 => {
            let rows = context.dim(0)?;
            let ids = Tensor::zeros((rows, 3), context.dtype(), context.device())?;
            vec![
                source.write("l_pooled", pooled)?,
                source.write("t5_out", context)?,
                write("txt_ids", &ids, Dtype::F32)?,
                ToWrite::whole("t5_attn_mask", vec![rows], &text.mask("t5", rows)),
                // With it the scripts mask pads in the denoiser, and look for this flag.
                ToWrite::flag("apply_t5_attn_mask", source.masked),
            ]
        }
    };
    Ok(npz(&arrays))
}

fn no_clip() -> String {
    "kohya's files hold CLIP-L beside CLIP-G, of which the Experiment has none".to_owned()
}

pub(super) fn latents(source: &Source<'_>, item: &Item, names: &KohyaNames) -> Made {
    let mut arrays = Vec::new();
    for &view in &item.views {
        let latents = source.as_stored(item, view, names.statistics)?;
        let (_, height, width) = latents.dims3()?;
        // Those of SD and SDXL have one resolution a file.
        let of = match names.resolutions {
            false => String::new(),
            true => format!("_{height}x{width}"),
        };
        if view.flip {
            let name = format!("latents_flipped{of}");
            arrays.push(write(&name, &latents, Dtype::F32)?);
            continue;
        }
        let size = [item.size.width, item.size.height].map(i64::from);
        let (left, top) = (f64::from(view.left), f64::from(view.top));
        let (right, bottom) = (view.left + view.bucket.width, view.top + view.bucket.height);
        arrays.push(write(&format!("latents{of}"), &latents, Dtype::F32)?);
        arrays.push(ToWrite::whole(
            &format!("original_size{of}"),
            vec![2],
            &size,
        ));
        // Where the crop lies in truth; the scripts write what get_crop_ltrb gives.
        let crop = [left, top, f64::from(right), f64::from(bottom)];
        arrays.push(ToWrite::doubles(&format!("crop_ltrb{of}"), &crop));
    }
    Ok(npz(&arrays))
}
