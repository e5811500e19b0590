"""A Z-Image pipeline of diffusers with random weights, small enough to try plumb's commands on: it makes noise.

    python tools/tiny_zimage.py FOLDER     (from the repository's root; needs diffusers, transformers)

Writes FOLDER as `ZImagePipeline.save_pretrained` does, with the scheduler of the released base. The denoiser is that of
tests/golden/zimage_tiny.safetensors, Qwen3 that of tests/golden/qwen3_pipelines.safetensors with its tokenizer, the VAE that of
assets/tiny-flux.
"""

import json
import pathlib
import sys

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def denoiser():
    weights, metadata = read("zimage_tiny")
    model = ZImageTransformer2DModel.from_config(json.loads(metadata["config"]))
    model.load_state_dict(weights)
    return model


def encoder():
    weights, metadata = read("qwen3_pipelines")
    model = Qwen3ForCausalLM(Qwen3Config(**json.loads(metadata["cases"])[0]["config"]))
    own = {name.removeprefix("model/"): tensor.float() for name, tensor in weights.items() if name.startswith("model/")}
    model.load_state_dict(own)
    return model


def main(folder):
    pipeline = ZImagePipeline(
        transformer=denoiser(),
        text_encoder=encoder(),
        tokenizer=AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / "qwen3"),
        vae=AutoencoderKL.from_pretrained(ROOT / "assets" / "tiny-flux" / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with torch.no_grad():
        main(sys.argv[1])
