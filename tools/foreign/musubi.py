"""Caches of text encoder outputs and latents by kohya-ss/musubi-tuner, of FLUX.1 Kontext [dev], on the miniature of FLUX.1.

Runs, of the tuner: encode_and_save_batch of flux_kontext_cache_text_encoder_outputs.py and of flux_kontext_cache_latents.py, which save
through dataset/cache_io.py; ImageDataset of dataset/image_video_dataset.py for captions, buckets and names. Not its own: the encoders
are opened by transformers, because load_t5xxl and load_clip_l have the sizes of the released models written into them, and the VAE's
code gets the miniature's sizes and number of groups. Each picture is its own control picture.

    python tools/foreign/musubi.py --trainer CLONE --family flux1 --out FOLDER

Revision: 30c658c (2026-06-24), with transformers 4.57.6, ftfy 6.3.1, diffusers 0.32.1, as it asks for.
"""

import json
import sys

from common import (
    ASSETS, CAPTIONS, HARD, arguments, dataset, group_norms, manifest, original_vae_names, seed_of, tokenizer_for_transformers_4, without,
)

REVISION = "30c658c4f4b0bf05038b3346eff9670259b10fc7"
CASES = {
    # f32 is no choice of the tuner's: its constant is bf16.
    "default": dict(dtype="float32"),
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "stale": dict(dtype="float32", stale=True),
    "hard": dict(dtype="float32", captions=HARD),
    "t5-length-256": dict(dtype="float32", t5_length=256, changed={"t5.tokens.max_tokens": 256, "t5.tokens.min_tokens": 256}),
}


def autoencoder(base):
    from musubi_tuner.flux.flux_models import AutoEncoder, AutoEncoderParams
    from safetensors.torch import load_file

    config = json.loads((base / "vae/config.json").read_text())
    ch = config["block_out_channels"][0]
    mult = [c // ch for c in config["block_out_channels"]]
    undo = group_norms(config["norm_num_groups"])
    try:
        model = AutoEncoder(
            AutoEncoderParams(
                config["sample_size"], 3, ch, 3, mult, config["layers_per_block"], config["latent_channels"],
                config["scaling_factor"], config["shift_factor"],
            )
        )
    finally:
        undo()
    state = original_vae_names(load_file(base / "vae/diffusion_pytorch_model.safetensors"))
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return model.eval()


def image_dataset(folder, controls=None):
    from musubi_tuner.dataset.image_video_dataset import ARCHITECTURE_FLUX_KONTEXT, ImageDataset

    return ImageDataset(
        resolution=(128, 128), caption_extension=".txt", batch_size=1, num_repeats=1, enable_bucket=True, bucket_no_upscale=False,
        image_directory=str(folder), control_directory=str(controls or folder), cache_directory=str(folder), no_resize_control=False,
        architecture=ARCHITECTURE_FLUX_KONTEXT,
    )


def run(name, case, out):
    import musubi_tuner.flux_kontext_cache_latents as latents
    import musubi_tuner.flux_kontext_cache_text_encoder_outputs as texts
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    base = ASSETS / "tiny-flux"
    folder = out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    tokenizers = out / "tokenizers"
    tokenizer_for_transformers_4(base / "tokenizer", tokenizers / "clip_l")
    tokenizer_for_transformers_4(base / "tokenizer_2", tokenizers / "t5")
    clip, t5 = CLIPTokenizer.from_pretrained(tokenizers / "clip_l"), T5Tokenizer.from_pretrained(tokenizers / "t5")
    dtype = getattr(torch, case["dtype"])
    clip_l = CLIPTextModel.from_pretrained(base / "text_encoder", torch_dtype=dtype, eos_token_id=2).eval()
    t5xxl = T5EncoderModel.from_pretrained(base / "text_encoder_2", torch_dtype=dtype).eval()
    texts.flux_models.T5XXL_MAX_LENGTH = case.get("t5_length", 512)

    for batch in image_dataset(folder).retrieve_text_encoder_output_cache_batches(1):
        if dtype is torch.float32:
            with torch.autocast("cpu", enabled=False):
                encode_in_f32(texts, t5, t5xxl, clip, clip_l, batch)
        else:
            texts.encode_and_save_batch(t5, t5xxl, clip, clip_l, batch, torch.device("cpu"))
    ae = autoencoder(base)
    for _, batch in image_dataset(folder).retrieve_latent_cache_batches(1):
        for item in batch:
            torch.manual_seed(seed_of(item.item_key.rsplit("/", 1)[-1]))
            latents.encode_and_save_batch(ae, [item])
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="kohya-ss/musubi-tuner", revision=REVISION, family="flux1", model="tiny-flux", case=name, variant="musubi",
        changed=case.get("changed", {}), dtype=case["dtype"], captions=captions, stale=["01.png"] if case.get("stale") else [],
        latents={"seeds": {k: seed_of(k) for k in captions}, "resolution": 128, "is": "sample, scaled and shifted"},
        options={k: v for k, v in case.items() if k in ("t5_length", "dtype")},
    )


def encode_in_f32(texts, t5, t5xxl, clip, clip_l, batch):
    """encode_and_save_batch opens torch.autocast with the encoder's dtype, which a CPU refuses for f32: it gets one that does nothing."""
    import contextlib

    import torch

    real = torch.autocast
    texts.torch.autocast = lambda **_: contextlib.nullcontext()
    try:
        texts.encode_and_save_batch(t5, t5xxl, clip, clip_l, batch, torch.device("cpu"))
    finally:
        torch.autocast = real


def main():
    args = arguments(__doc__, ["flux1"])
    sys.path.insert(0, str(args.trainer / "src"))
    without("av", "bitsandbytes", "easydict", "flash_attn", "sageattention", "xformers")
    for name, case in CASES.items():
        if args.only in (None, name):
            run(name, case, args.out)


if __name__ == "__main__":
    main()
