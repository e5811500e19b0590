//! What a tensor is, by the name that a trainer gives it. The names of the trainers do not contradict each other, so one list serves.
//!
//! - kohya-ss/sd-scripts at 48d368f: `library/strategy_sdxl.py`, `strategy_sd3.py`, `strategy_flux.py`, `strategy_base.py`
//! - kohya-ss/musubi-tuner at 30c658c: `dataset/cache_io.py`
//! - ostris/ai-toolkit at 27a03a9: `toolkit/prompt_utils.py` (`PromptEmbeds.save`), `toolkit/dataloader_mixins.py`
//! - bghira/SimpleTuner at bc8e6ab: `_format_text_embedding` of `models/{sd3,flux,sdxl,chroma,wan,flux2,z_image}/model.py`
//! - Nerogar/OneTrainer at 23df383: `_cache_modules` of `modules/dataLoader/*BaseDataLoader.py`
//! - tdrussell/diffusion-pipe at 8f83dbf: `get_call_text_encoder_fn` of `models/sd3.py`, `models/flux.py` and `models/wan/wan.py`
//! - plumb's own `inspect conditioning` and `inspect latents`

use super::{LatentFacts, Role};

/// Suffixes by which musubi's names say how numbers are stored.
const TYPES: [&str; 8] = [
    "float32", "float16", "bfloat16", "fp32", "fp16", "bf16", "float", "half",
];

/// What musubi's names of sequences without pads begin with.
const VARLEN: &str = "varlen_";

/// What a tensor of this name is.
pub(super) fn role(name: &str) -> Role {
    let hidden = |slots: &[&str]| Role::Hidden(owned(slots));
    let pooled = |slots: &[&str]| Role::Pooled(owned(slots));
    match plain(name) {
        // musubi's of Wan, whose T5 is UMT5; that of FLUX.1 is `t5_vec`.
        "t5" if name.starts_with(VARLEN) => hidden(&["umt5"]),
        "hidden_state1" => hidden(&["clip_l"]),
        "hidden_state2" | "prompt_2_embed" => hidden(&["clip_g"]),
        "prompt_embed" => hidden(&["clip_l"]),
        "pool2" | "pooled_prompt_2_embed" => pooled(&["clip_g"]),
        "lg_out" => hidden(&["clip_l", "clip_g"]),
        "lg_pooled" => pooled(&["clip_l", "clip_g"]),
        "t5_out" | "t5_vec" | "t5" | "t5_embed" | "t5_prompt_embed" => hidden(&["t5"]),
        "l_pooled" | "clip_l_pooler" | "clip_embed" | "pooled_prompt_embed" => pooled(&["clip_l"]),
        "clip_l_attn_mask" => Role::Mask(Some("clip_l".to_owned())),
        "clip_g_attn_mask" => Role::Mask(Some("clip_g".to_owned())),
        "t5_attn_mask" => Role::Mask(Some("t5".to_owned())),
        "context" | "ctx_vec" | "text_embed" | "text_embed_0" | "text_embeds_0"
        | "text_embeddings" | "prompt_embeds" | "llm_embed" => Role::Context,
        "pooled" | "pooled_embed" | "pooled_prompt_embeds" => Role::ContextPooled,
        "mask"
        | "attention_mask"
        | "attention_mask_0"
        | "attention_masks"
        | "prompt_attention_mask" => Role::Mask(None),
        "mean" | "latent_image" => Role::Latents(LatentFacts::default()),
        other => numbered(other)
            .or_else(|| of_slot(other))
            .or_else(|| latents(other))
            .unwrap_or(Role::Other),
    }
}

/// The resolution's suffix of a name of kohya's, for the names that belong to it: `_8x8` of `latents_flipped_8x8`.
pub(super) fn resolution(name: &str) -> &str {
    let at = name.rfind('_').filter(|at| is_resolution(&name[at + 1..]));
    at.map_or("", |at| &name[at..])
}

fn owned(slots: &[&str]) -> Vec<String> {
    slots.iter().map(|slot| (*slot).to_owned()).collect()
}

/// Without musubi's `varlen_`, and its type.
fn plain(name: &str) -> &str {
    let name = name.strip_prefix(VARLEN).unwrap_or(name);
    match name.rsplit_once('_') {
        Some((rest, last)) if TYPES.contains(&last) => rest,
        _ => name,
    }
}

/// OneTrainer counts encoders: `text_encoder_2_hidden_state`, `tokens_2`.
fn numbered(name: &str) -> Option<Role> {
    let component = |number: &str| match number {
        "" | "1" => Some("text_encoder".to_owned()),
        "2" | "3" => Some(format!("text_encoder_{number}")),
        _ => None,
    };
    let between = |before: &str, after: &str| {
        let inner = name.strip_prefix(before)?.strip_suffix(after)?;
        component(inner.trim_start_matches('_'))
    };
    if let Some(encoder) = between("text_encoder", "_hidden_state") {
        return Some(Role::Hidden(vec![encoder]));
    }
    if let Some(encoder) = between("text_encoder", "_pooled_state") {
        return Some(Role::Pooled(vec![encoder]));
    }
    if let Some(encoder) = between("tokens_mask", "") {
        return Some(Role::Mask(Some(encoder)));
    }
    between("tokens", "").map(Role::Ids)
}

/// plumb writes `SLOT.hidden`, `SLOT.pooled` and `SLOT.token_ids`.
fn of_slot(name: &str) -> Option<Role> {
    let (slot, part) = name.rsplit_once('.')?;
    let slot = slot.to_owned();
    match part {
        "hidden" => Some(Role::Hidden(vec![slot])),
        "pooled" => Some(Role::Pooled(vec![slot])),
        "token_ids" => Some(Role::Ids(slot)),
        _ => None,
    }
}

/// `latents`, `latents_8x8`, `latents_flipped_8x8`, `latents_1x8x8`, `latent`.
fn latents(name: &str) -> Option<Role> {
    let rest = name
        .strip_prefix("latents")
        .or_else(|| name.strip_prefix("latent"))?;
    let (flipped, rest) = match rest.strip_prefix("_flipped") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let known = rest.is_empty() || rest.strip_prefix('_').is_some_and(is_resolution);
    let facts = LatentFacts {
        flipped,
        ..LatentFacts::default()
    };
    known.then_some(Role::Latents(facts))
}

fn is_resolution(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('x').collect();
    let is_number = |n: &&str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    (2..=3).contains(&numbers.len()) && numbers.iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::{LatentFacts, Role, resolution, role};

    #[test]
    fn names_of_all_trainers_are_known() {
        let hidden = |slots: &[&str]| Role::Hidden(super::owned(slots));
        let flipped = Role::Latents(LatentFacts {
            flipped: true,
            ..LatentFacts::default()
        });
        let latents = Role::Latents(LatentFacts::default());
        for (name, wanted) in [
            ("lg_out", hidden(&["clip_l", "clip_g"])),
            ("t5_vec_bfloat16", hidden(&["t5"])),
            ("varlen_t5_bfloat16", hidden(&["umt5"])),
            ("text_embeddings", Role::Context),
            ("text_encoder_1_hidden_state", hidden(&["text_encoder"])),
            ("text_encoder_hidden_state", hidden(&["text_encoder"])),
            ("text_encoder_3_hidden_state", hidden(&["text_encoder_3"])),
            (
                "text_encoder_2_pooled_state",
                Role::Pooled(vec!["text_encoder_2".to_owned()]),
            ),
            ("tokens_2", Role::Ids("text_encoder_2".to_owned())),
            ("tokens_mask_1", Role::Mask(Some("text_encoder".to_owned()))),
            ("clip_l.hidden", hidden(&["clip_l"])),
            ("text_embed", Role::Context),
            ("text_embed_0", Role::Context),
            ("varlen_llm_embed_bfloat16", Role::Context),
            ("ctx_vec_bfloat16", Role::Context),
            ("latents_8x16", latents.clone()),
            ("latents_1x8x8_bfloat16", latents.clone()),
            ("latents_5x8x8_float32", latents.clone()),
            ("latent", latents),
            ("latents_flipped_8x8", flipped),
            ("latents_control_1x8x8_bfloat16", Role::Other),
            ("latents_image_5x8x8_float32", Role::Other),
            ("latent_mask", Role::Other),
            ("txt_ids", Role::Other),
            ("text_encoder_9_hidden_state", Role::Other),
        ] {
            assert_eq!(role(name), wanted, "{name}");
        }
        assert_eq!(resolution("latents_flipped_8x16"), "_8x16");
        assert_eq!(resolution("latents"), "");
        assert_eq!(resolution("crop_ltrb"), "");
    }
}
