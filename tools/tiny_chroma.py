"""A Chroma pipeline of diffusers with random weights, small enough to try plumb's commands on: it makes noise.

    python tools/tiny_chroma.py FOLDER     (from the repository's root; needs diffusers, transformers)

Writes FOLDER as `ChromaPipeline.save_pretrained` does. The denoiser is that of tests/golden/chroma_tiny.safetensors, T5, its tokenizer and
the VAE those of assets/tiny-sd3.
"""

import json
import pathlib
import sys

import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from transformers import AutoTokenizer, T5EncoderModel

ROOT = pathlib.Path(__file__).resolve().parents[1]


def denoiser():
    with safe_open(ROOT / "tests/golden/chroma_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name) for name in file.keys()}
    model = ChromaTransformer2DModel.from_config(config)
    model.load_state_dict(weights)
    return model


def main(folder):
    world = ROOT / "assets/tiny-sd3"
    pipeline = ChromaPipeline(
        transformer=denoiser(),
        text_encoder=T5EncoderModel.from_pretrained(world / "text_encoder_3", dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(world / "tokenizer_3"),
        vae=AutoencoderKL.from_pretrained(world / "vae"),
        # By the picture's size, as the author samples.
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
