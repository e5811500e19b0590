"""Caches of text encoder outputs and latents by kohya-ss/sd-scripts, on the miniatures.

Runs, of the scripts: train_util.DreamBoothDataset (captions, buckets, new_cache_latents, new_cache_text_encoder_outputs) and, of each
family, the tokenize, encoding and caching strategies. Not theirs, because the scripts build their encoders with the sizes of the released
models: the encoders are opened by transformers (with eos_token_id 2, as the configs in the scripts say), and the VAE's code gets
the miniature's sizes and number of groups.

    python tools/foreign/kohya.py --trainer CLONE --family sd3 --out FOLDER
    python tools/foreign/kohya.py --trainer CLONE --family chroma --model MODEL --out FOLDER    (MODEL by tools/tiny_chroma.py)

Revision: 48d368f (2026-02-16), with transformers 4.57.6 (the scripts ask for 4.54.1), ftfy 6.3.1, diffusers 0.32.1.
"""

import sys

from common import (
    ASSETS, CAPTIONS, HARD, arguments, dataset, group_norms, manifest, original_vae_names, seed_of, tokenizer_for_transformers_4,
)

REVISION = "48d368fa557731ad0488c07304dfeba8c07910eb"
FAMILIES = {"sd3": "tiny-sd3", "flux1": "tiny-flux", "sdxl": "tiny-sdxl"}
# The folder of T5's tokenizer.
T5 = {"sd3": "tokenizer_3", "flux1": "tokenizer_2", "chroma": "tokenizer"}
# The first case is the trainer as it is; each other one differs in what its `changed` names.
FTFY = {"clip_l.tokens.implementation": "transformers_4_ftfy_6.3"}
CASES = {
    "sd3": {
        "default": {},
        "t5-length-154": dict(t5_length=154, changed={"t5.tokens.max_tokens": 154, "t5.tokens.min_tokens": 154}),
        "t5-length-77": dict(t5_length=77, changed={"t5.tokens.max_tokens": 77, "t5.tokens.min_tokens": 77}),
        "t5-mask": dict(t5_mask=True, changed={"t5.forward.mask": "pads"}),
        "lg-mask": dict(lg_mask=True, changed={"clip_l.forward.mask": "pads", "clip_g.forward.mask": "pads"}),
        "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
        "fp16": dict(dtype="float16", changed={"dtype": "f16"}),
        # Shorter, for files that are kept.
        "fp8": dict(dtype="bfloat16", fp8=True, t5_length=77, changed={"dtype": "bf16", "weights": "fp8"}),
        "stale": dict(stale=True),
        "hard": dict(captions=HARD, changed=FTFY | {"clip_g.tokens.implementation": "transformers_4_ftfy_6.3"}),
    },
    "flux1": {
        "default": {},
        "t5-length-256": dict(t5_length=256, changed={"t5.tokens.max_tokens": 256, "t5.tokens.min_tokens": 256}),
        "t5-mask": dict(t5_mask=True, changed={"t5.forward.mask": "pads", "assembly.mask": "pads"}),
        "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
        "stale": dict(stale=True),
        "hard": dict(captions=HARD, changed=FTFY),
    },
    # It refuses to train Chroma without `--apply_t5_attn_mask`.
    "chroma": {
        "default": dict(t5_mask=True),
        "t5-length-32": dict(t5_mask=True, t5_length=32, changed={"t5.tokens.max_tokens": 32, "t5.tokens.min_tokens": 32}),
        "bf16": dict(t5_mask=True, dtype="bfloat16", changed={"dtype": "bf16"}),
    },
    "sdxl": {
        "default": {},
        "max-token-length-150": dict(clip_length=150, changed={"clip_l.tokens.chunks": 2, "clip_g.tokens.chunks": 2}),
        "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
        "stale": dict(stale=True),
        "hard": dict(captions=HARD, changed=FTFY | {"clip_g.tokens.implementation": "transformers_4_ftfy_6.3"}),
    },
}


class AsOfTwelve(tuple):
    """Hidden states of a small CLIP-L of which index 11 is what it is of the real one with its twelve layers: the last but one."""

    def __getitem__(self, index):
        return super().__getitem__(-2 if index == 11 else index)


def clip_l_of_sdxl(model):
    forward = model.forward

    def renumbered(*args, **kwargs):
        out = forward(*args, **kwargs)
        out["hidden_states"] = AsOfTwelve(out["hidden_states"])
        return out

    model.forward = renumbered
    return model


def encoders(family, base, dtype):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    def open_(kind, folder, **config):
        return kind.from_pretrained(base / folder, torch_dtype=dtype, **config).eval()

    if family == "sd3":
        return [
            open_(CLIPTextModelWithProjection, "text_encoder", eos_token_id=2),
            open_(CLIPTextModelWithProjection, "text_encoder_2", eos_token_id=2),
            open_(T5EncoderModel, "text_encoder_3"),
        ]
    if family == "flux1":
        return [open_(CLIPTextModel, "text_encoder", eos_token_id=2), open_(T5EncoderModel, "text_encoder_2")]
    if family == "chroma":
        from library.flux_utils import dummy_clip_l

        return [dummy_clip_l().eval(), open_(T5EncoderModel, "text_encoder")]
    return [
        clip_l_of_sdxl(open_(CLIPTextModel, "text_encoder", eos_token_id=2)),
        open_(CLIPTextModelWithProjection, "text_encoder_2", eos_token_id=2),
    ]


def vae(family, base):
    import json

    from safetensors.torch import load_file

    config = json.loads((base / "vae/config.json").read_text())
    if family == "sdxl":
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_pretrained(base / "vae").float().eval()
    state = {k: v.float() for k, v in original_vae_names(load_file(base / "vae/diffusion_pytorch_model.safetensors")).items()}
    ch = config["block_out_channels"][0]
    mult = [c / ch for c in config["block_out_channels"]]
    assert all(m == int(m) for m in mult), "the scripts' VAE has channels that are multiples of the first"
    mult = [int(m) for m in mult]
    undo = group_norms(config["norm_num_groups"])
    try:
        if family == "sd3":
            from library import sd3_models

            model = sd3_models.SDVAE()
            z = config["latent_channels"]
            model.encoder = sd3_models.VAEEncoder(ch=ch, ch_mult=mult, num_res_blocks=config["layers_per_block"], z_channels=z)
            model.decoder = sd3_models.VAEDecoder(ch=ch, ch_mult=mult, num_res_blocks=config["layers_per_block"], z_channels=z)
        else:
            from library.flux_models import AutoEncoder, AutoEncoderParams

            model = AutoEncoder(
                AutoEncoderParams(
                    config["sample_size"], 3, ch, 3, mult, config["layers_per_block"], config["latent_channels"],
                    config["scaling_factor"], config["shift_factor"],
                )
            )
    finally:
        undo()
    wrong = model.load_state_dict(state, strict=False)
    assert not wrong.missing_keys and not wrong.unexpected_keys, wrong
    return model.eval()


def strategies(family, tokenizers, case):
    from library import strategy_flux, strategy_sd, strategy_sd3, strategy_sdxl

    t5_mask, lg_mask = case.get("t5_mask", False), case.get("lg_mask", False)
    if family == "sd3":
        return (
            strategy_sd3.Sd3TokenizeStrategy(case.get("t5_length", 256), tokenizers),
            strategy_sd3.Sd3TextEncodingStrategy(lg_mask, t5_mask),
            strategy_sd3.Sd3TextEncoderOutputsCachingStrategy(True, 2, False, False, lg_mask, t5_mask),
            strategy_sd3.Sd3LatentsCachingStrategy(True, 1, False),
        )
    if family in ("flux1", "chroma"):
        return (
            strategy_flux.FluxTokenizeStrategy(case.get("t5_length", 512), tokenizers),
            strategy_flux.FluxTextEncodingStrategy(t5_mask),
            strategy_flux.FluxTextEncoderOutputsCachingStrategy(True, 2, False, False, t5_mask),
            strategy_flux.FluxLatentsCachingStrategy(True, 1, False),
        )
    return (
        strategy_sdxl.SdxlTokenizeStrategy(case.get("clip_length"), tokenizers),
        strategy_sdxl.SdxlTextEncodingStrategy(),
        strategy_sdxl.SdxlTextEncoderOutputsCachingStrategy(True, 2, False),
        strategy_sd.SdSdxlLatentsCachingStrategy(False, True, 1, False),
    )


def dream_booth(folder, resolution=128, steps=16):
    """The scripts' data set of one folder, with their defaults, at the miniature's resolution."""
    from library import train_util

    subset = train_util.DreamBoothSubset(
        str(folder), False, None, ".txt", False, False, 1, False, ",", 0, "", None, False, False, False, None, False,
        0.0, 0, 0.0, None, None, 1, 0,
    )
    data = train_util.DreamBoothDataset(
        [subset], True, 1, (resolution, resolution), 1.0, True, 64, 256, steps, False, 1.0, False, 0.0, None, None
    )
    data.make_buckets()
    return data


def set_strategies(tokenize, encode, texts, latents):
    from library import strategy_base as base

    for kind, strategy in [
        (base.TokenizeStrategy, tokenize), (base.TextEncodingStrategy, encode),
        (base.TextEncoderOutputsCachingStrategy, texts), (base.LatentsCachingStrategy, latents),
    ]:
        kind._strategy = None
        kind.set_strategy(strategy)


def tokenizer_folder(family, base, out):
    """The folder that `--tokenizer_cache_dir` names: each tokenizer under its name on the hub."""
    folder = out / "tokenizers"
    # Of Chroma's captions they make CLIP's tokens as well, which nothing reads.
    clip = base if family in FAMILIES else ASSETS / FAMILIES["flux1"]
    tokenizer_for_transformers_4(clip / "tokenizer", folder / "openai_clip-vit-large-patch14")
    # That of laion, in which `!` is no special token, is OpenAI's with another pad token; the scripts then set the pad to 0.
    tokenizer_for_transformers_4(clip / "tokenizer", folder / "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
    if family in T5:
        tokenizer_for_transformers_4(base / T5[family], folder / "google_t5-v1_1-xxl")
    return str(folder)


def run(family, base, name, case, out, accelerator):
    import torch

    folder = out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    dtype = getattr(torch, case.get("dtype", "float32"))
    set_strategies(*strategies(family, tokenizer_folder(family, base, out), case))
    models = encoders(family, base, dtype)
    data = dream_booth(folder)
    if case.get("fp8"):
        # With `--fp8_base` a T5 whose file is in fp8 stays so, and computes under autocast (`cache_text_encoder_outputs_if_needed`).
        import sd3_train_network

        trainer = sd3_train_network.Sd3NetworkTrainer()
        trainer.prepare_text_encoder_fp8(2, models[2], torch.float8_e4m3fn, dtype)
        with torch.autocast("cpu", dtype=dtype):
            data.new_cache_text_encoder_outputs(models, accelerator)
    else:
        data.new_cache_text_encoder_outputs(models, accelerator)
    latents(data, vae(family, base), accelerator)
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="kohya-ss/sd-scripts", revision=REVISION, family=family, model=FAMILIES.get(family, str(base)), case=name, variant="kohya",
        changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [],
        latents={"seeds": {k: seed_of(k) for k in captions}, "resolution": 128, "bucket_step": 16, "is": "sample" + (", scaled and shifted" if family in ("flux1", "chroma") else "")},
        options={k: v for k, v in case.items() if k not in ("changed", "captions", "stale")},
    )


def latents(data, model, accelerator):
    import os

    import torch

    strategy_class = type(__import__("library.strategy_base").strategy_base.LatentsCachingStrategy.get_strategy())
    real = strategy_class.cache_batch_latents

    def seeded(self, model, batch, *rest):
        torch.manual_seed(seed_of(os.path.basename(batch[0].absolute_path)))
        return real(self, model, batch, *rest)

    strategy_class.cache_batch_latents = seeded
    try:
        with torch.no_grad():
            data.new_cache_latents(model, accelerator)
    finally:
        strategy_class.cache_batch_latents = real


def main():
    args = arguments(__doc__, list(CASES))
    base = args.model or ASSETS / FAMILIES[args.family]
    sys.path.insert(0, str(args.trainer))
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    for name, case in CASES[args.family].items():
        if args.only in (None, name):
            run(args.family, base, name, case, args.out, accelerator)


if __name__ == "__main__":
    main()
