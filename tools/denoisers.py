"""diffusers' denoisers behind one call, for the tools that compare them with ours."""

import json
import pathlib

import diffusers
import torch


def load(base):
    """The denoiser in a diffusers folder, in f32, by the class that its config names."""
    return load_from(next(pathlib.Path(base) / part for part in ("transformer", "unet") if (pathlib.Path(base) / part).is_dir()))


def load_from(folder):
    """The denoiser whose own folder this is, in f32."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder, torch_dtype=torch.float32)


def component(model):
    """What a pipeline calls its denoiser."""
    return "unet" if type(model).__name__ == "UNet2DConditionModel" else "transformer"


def pipeline(transformer):
    """A pipeline of which only the denoiser is there: load_lora_weights is the pipeline's."""
    if component(transformer) == "unet":
        xl = transformer.config.addition_embed_type is not None
        absent = dict.fromkeys(["vae", "text_encoder", "tokenizer"] + ["text_encoder_2", "tokenizer_2"] * xl)
        scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
        if xl:
            return diffusers.StableDiffusionXLPipeline(unet=transformer, scheduler=scheduler, **absent)
        absent |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        return diffusers.StableDiffusionPipeline(unet=transformer, scheduler=scheduler, **absent)
    kind, parts = {
        "SD3Transformer2DModel": (diffusers.StableDiffusion3Pipeline, ["", "_2", "_3"]),
        "FluxTransformer2DModel": (diffusers.FluxPipeline, ["", "_2"]),
        "ChromaTransformer2DModel": (diffusers.ChromaPipeline, [""]),
        "WanTransformer3DModel": (diffusers.WanPipeline, [""]),
        "ZImageTransformer2DModel": (diffusers.ZImagePipeline, [""]),
        "Flux2Transformer2DModel": (diffusers.Flux2KleinPipeline, [""]),
    }[type(transformer).__name__]
    absent = {f"{what}{part}": None for what in ("text_encoder", "tokenizer") for part in parts}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return kind(transformer=transformer, scheduler=scheduler, vae=None, **absent)


def packed(latents):
    """Latents as tokens, and the ids of these."""
    b, c, h, w = latents.shape
    i, j = h // 2, w // 2
    ids = torch.zeros(i, j, 3)
    ids[..., 1] += torch.arange(i)[:, None]
    ids[..., 2] += torch.arange(j)[None, :]
    return latents.view(b, c, i, 2, j, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, i * j, c * 4), ids.reshape(-1, 3)


def four(ids):
    """Ids of patches with a fourth, which is 0."""
    return torch.nn.functional.pad(ids, (0, 1))


def predict(transformer, latents, timesteps, context, pooled, guidance=None, time_ids=None, token_counts=None, reference=None):
    """The prediction for latents [b, c, h, w], of Wan [b, c, f, h, w], at timesteps of 0 to 1000. `token_counts`: rows of each context that
    Chroma sees or that are a caption's own in Z-Image, the other classes have no mask; `reference` are the latents of the
    other picture of FLUX.1 Kontext or FLUX.2 klein."""
    if component(transformer) == "unet":
        added = None if time_ids is None else {"text_embeds": pooled, "time_ids": time_ids}
        return transformer(latents, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]
    given = dict(encoder_hidden_states=context, return_dict=False)
    kind = type(transformer).__name__
    if kind == "WanTransformer3DModel":
        return transformer(hidden_states=latents, timestep=timesteps, **given)[0]
    if kind == "ZImageTransformer2DModel":
        # As ZImagePipeline does: lists of pictures of one frame and of captions without pads, times from noise to picture, and the
        # negative of what comes.
        counts = [context.shape[1]] * len(context) if token_counts is None else token_counts.long().tolist()
        captions = [rows[:count] for rows, count in zip(context, counts)]
        out = transformer(list(latents.unsqueeze(2)), (1000 - timesteps) / 1000, captions, return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
    if kind not in ("FluxTransformer2DModel", "ChromaTransformer2DModel", "Flux2Transformer2DModel"):
        return transformer(hidden_states=latents, timestep=timesteps, pooled_projections=pooled, **given)[0]
    # As FluxPipeline does: 2 x 2 patches packed before, unpacked after, ids of rows and columns, times of 0 to 1.
    b, c, h, w = latents.shape
    i, j = h // 2, w // 2
    tokens, ids = packed(latents)
    text_ids = torch.zeros(context.shape[1], 3)
    if kind == "Flux2Transformer2DModel":
        # A fourth id counts the tokens of the caption.
        ids = four(ids)
        text_ids = torch.cat([text_ids, torch.arange(context.shape[1])[:, None]], 1)
    if kind == "FluxTransformer2DModel":
        given |= dict(pooled_projections=pooled, guidance=guidance)
    elif token_counts is not None:
        # Booleans: attention adds what is a number to its scores.
        seen = torch.arange(context.shape[1])[None] < token_counts.long()[:, None]
        given["attention_mask"] = torch.cat([seen, torch.ones(b, i * j, dtype=torch.bool)], dim=1)
    if reference is not None:
        # As FluxKontextPipeline and Flux2KleinPipeline do: behind the picture's, told apart by the first id, and left out of what is
        # predicted.
        others, their_ids = packed(reference)
        their_ids[..., 0] = 1
        if kind == "Flux2Transformer2DModel":
            their_ids = four(their_ids)
            their_ids[..., 0] = 10
        tokens, ids = torch.cat([tokens, others], 1), torch.cat([ids, their_ids])
    out = transformer(
        hidden_states=tokens,
        timestep=timesteps / 1000,
        img_ids=ids,
        txt_ids=text_ids,
        **given,
    )[0][:, : i * j]
    return out.view(b, i, j, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
