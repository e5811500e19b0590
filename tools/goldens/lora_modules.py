"""Goldens of LoRA names: every module of the published networks that can carry an adapter.

    python tools/goldens/lora_modules.py

writes tests/golden/lora_modules.json: per network its linears and convolutions as diffusers' classes have them with
the published config.json, without weights: name -> shape of the weight. Blocks that are the same are there once:
`{"transformer_blocks.0-36": {...}}` stands for 37 blocks. `unet_tiny` is a UNet of SDXL's shape with few channels; its
config is there too.
"""

import json
import pathlib
import re

import diffusers
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "lora_modules.json"

SDXL = dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
TINY = dict(
    SDXL,
    sample_size=8,
    block_out_channels=(16, 32, 64),
    attention_head_dim=(1, 2, 4),
    transformer_layers_per_block=(1, 1, 2),
    cross_attention_dim=24,
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=64,
    norm_num_groups=8,
)
SD35 = dict(pos_embed_max_size=192, caption_projection_dim=2432, num_attention_heads=38, num_layers=38, qk_norm="rms_norm")
MODELS = {
    "flux1-dev": (FluxTransformer2DModel, dict(guidance_embeds=True)),
    "chroma": (ChromaTransformer2DModel, {}),
    "z-image": (ZImageTransformer2DModel, {}),
    "klein-base-4b": (
        Flux2Transformer2DModel,
        dict(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False),
    ),
    "sd3.5-large": (SD3Transformer2DModel, SD35),
    "sd3.5-medium": (
        SD3Transformer2DModel,
        dict(
            SD35,
            pos_embed_max_size=384,
            caption_projection_dim=1536,
            num_attention_heads=24,
            num_layers=24,
            dual_attention_layers=tuple(range(13)),
        ),
    ),
    # Of 2.1 14B and of both experts of 2.2 A14B.
    "wan-14b": (WanTransformer3DModel, {}),
    "sdxl": (UNet2DConditionModel, SDXL),
    "sd1": (UNet2DConditionModel, dict(sample_size=64, cross_attention_dim=768)),
    "unet_tiny": (UNet2DConditionModel, TINY),
}


def modules(cls, config):
    with torch.device("meta"):
        model = cls(**config)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    # Nobody trains Chroma's approximator.
    found = {name: m for name, m in model.named_modules() if not name.startswith("distilled_guidance_layer.")}
    return {name: list(m.weight.shape) for name, m in found.items() if isinstance(m, kinds)}


def folded(names):
    """Runs of equal numbered blocks as one."""
    blocks, out = {}, {}
    for name, shape in names.items():
        found = re.fullmatch(r"((?:.*\.)?(?:(?:single_)?transformer_blocks|noise_refiner|context_refiner|layers|blocks))\.(\d+)\.(.*)", name)
        if found:
            blocks.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = shape
        else:
            out[name] = shape
    for stem, by_number in blocks.items():
        runs = []
        for number, content in sorted(by_number.items()):
            if runs and runs[-1][2] == content and runs[-1][1] + 1 == number:
                runs[-1][1] = number
            else:
                runs.append([number, number, content])
        for first, last, content in runs:
            out[f"{stem}.{first}-{last}"] = content
    return out


def main():
    networks = {}
    for name, (cls, config) in MODELS.items():
        found = modules(cls, config)
        networks[name] = {"count": len(found), "modules": folded(found)}
        print(name, len(found))
    networks["unet_tiny"]["config"] = TINY
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    OUT.write_text(json.dumps({"versions": versions, "networks": networks}, separators=(",", ":")) + "\n")
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
