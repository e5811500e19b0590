"""Loads a LoRA of ours with diffusers and compares one denoiser call.

    python tools/check_lora.py LORA.safetensors BASE_FOLDER DUMP.safetensors

BASE_FOLDER is a model in the layout of diffusers (only its denoiser is read). DUMP holds what we gave the denoiser and
what it answered with the LoRA on: `latents`, `timesteps`, `context`, `pooled`, `output`, and `guidance`, `time_ids` and
`reference` where the model is told them.

Prints the largest error relative to the largest output; exits 1 if it is over 1e-4, if the LoRA changes nothing, or if
any of its tensors was not taken.
"""

import sys

import torch
from denoisers import component, load, pipeline, predict
from safetensors import safe_open
from safetensors.torch import load_file

LIMIT = 1e-4


@torch.no_grad()
def call(transformer, dump):
    names = ("latents", "timesteps", "context", "pooled", "guidance", "time_ids", "reference")
    given = {name: dump[name].float() for name in names if name in dump}
    return predict(transformer, **given)


def main(lora, base, dump):
    dump = load_file(dump)
    transformer = load(base)
    without = call(transformer, dump)
    loaded = pipeline(transformer)
    loaded.load_lora_weights(lora, adapter_name="ours")
    part = component(transformer)
    result = call(getattr(loaded, part), dump)

    with safe_open(lora, "pt") as file:
        stored = {name.removeprefix(f"{part}."): file.get_tensor(name).float() for name in file.keys()}
    taken = {
        name.replace(".ours.", "."): p.float() for name, p in getattr(loaded, part).named_parameters() if ".ours." in name
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
