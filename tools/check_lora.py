"""Loads a LoRA of ours with diffusers and compares one denoiser call.

    python tools/check_lora.py LORA.safetensors BASE_FOLDER DUMP.safetensors

BASE_FOLDER is a model in the layout of diffusers (only `transformer/` is read). DUMP holds what we gave the
denoiser and what it answered with the LoRA on: `latents`, `timesteps`, `context`, `pooled`, `output`.

Prints the largest error relative to the largest output; exits 1 if it is over 1e-4, if the LoRA changes nothing, or if
any of its tensors was not taken.
"""

import sys

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors import safe_open
from safetensors.torch import load_file

LIMIT = 1e-4


@torch.no_grad()
def call(transformer, dump):
    return transformer(
        hidden_states=dump["latents"].float(),
        encoder_hidden_states=dump["context"].float(),
        pooled_projections=dump["pooled"].float(),
        timestep=dump["timesteps"].float(),
        return_dict=False,
    )[0]


def main(lora, base, dump):
    dump = load_file(dump)
    transformer = SD3Transformer2DModel.from_pretrained(base, subfolder="transformer", torch_dtype=torch.float32)
    without = call(transformer, dump)
    # A pipeline of which only the denoiser is there: load_lora_weights is the pipeline's.
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.load_lora_weights(lora, adapter_name="ours")
    result = call(pipeline.transformer, dump)

    with safe_open(lora, "pt") as file:
        stored = {name.removeprefix("transformer."): file.get_tensor(name).float() for name in file.keys()}
    taken = {
        name.replace(".ours.", "."): p.float() for name, p in pipeline.transformer.named_parameters() if ".ours." in name
    }
    wrong = [n for n in sorted(stored.keys() | taken.keys()) if n not in stored or n not in taken or not torch.equal(stored[n], taken[n])]
    if wrong:
        print(f"{len(wrong)} tensors were not taken as they are, the first is {wrong[0]}")
        return 1
    scale = result.abs().max()
    error = ((dump["output"].float() - result).abs().max() / scale).item()
    change = ((result - without).abs().max() / scale).item()
    print(f"{len(stored)} tensors taken; max relative error {error:.2e} (limit {LIMIT:.0e}); the LoRA changes the output by {change:.2e}")
    return 0 if error <= LIMIT and change > 0 else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
