"""Replays one training step of plumb in diffusers + peft and compares.

    plumb train EXPERIMENT --dump-step K step.safetensors
    python tools/replay_step.py step.safetensors path/to/base

A UNet is taken to predict noise. Checks the noisy latents, the prediction, the loss and the gradient of every adapter tensor; exits with 1
where a relative error is above 1e-4. The names in the dump are explained by `plumb train --help`.
"""

import argparse
import sys

from denoisers import component, load, predict
from diffusers import DDPMScheduler
from peft import LoraConfig
from safetensors import safe_open

TOLERANCE = 1e-4


def relative_error(ours, theirs):
    scale = theirs.abs().max().clamp_min(1e-12)
    return ((ours - theirs).abs().max() / scale).item()


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def load_with_adapters(base, dump, metadata, change=None):
    """The denoiser, which `change` is given in f32, and the parameters of its adapters by name."""
    transformer = load(base)
    modules = sorted({n.split(".", 1)[1].rsplit(".lora_", 1)[0] for n in dump if n.startswith("adapter.")})
    # What lies beneath the adapters is not trained: as part of the weights. In f64, or the sum would be rounded.
    transformer = transformer.double()
    for name, down in dump.items():
        if name.startswith("beneath.") and name.endswith(".lora_A.weight"):
            up = dump[name.replace(".lora_A.", ".lora_B.")]
            module = transformer.get_submodule(name.removeprefix("beneath.").removesuffix(".lora_A.weight"))
            module.weight.data += up.double() @ down.double()
    if change:
        change(transformer.float())
    config = LoraConfig(
        r=int(metadata["rank"]), lora_alpha=float(metadata["alpha"]), target_modules=modules, lora_dropout=0.0
    )
    transformer.add_adapter(config, "step")
    parameters = {}
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            key = name.replace(".step.weight", ".weight")
            parameter.data.copy_(dump[f"adapter.{key}"])
            parameters[key] = parameter
    expected = {n.removeprefix("adapter.") for n in dump if n.startswith("adapter.")}
    if set(parameters) != expected:
        sys.exit(f"adapters differ: {sorted(set(parameters) ^ expected)[:4]}")
    return transformer, parameters


def noisy_of_flow(dump):
    sigma = dump["sigma"].view(-1, *[1] * (dump["latents"].dim() - 1))
    return (1 - sigma) * dump["latents"] + sigma * dump["noise"]


def predicted(transformer, dump, noisy):
    given = [dump["timestep"], dump["context"], dump["pooled"], *map(dump.get, ("guidance", "time_ids", "token_counts", "reference"))]
    return predict(transformer, noisy, *given)


def loss_of(dump, prediction, target):
    weight = dump["loss_weight"].view(-1, *[1] * (prediction.dim() - 1))
    return (weight * (prediction - target) ** 2).mean()


def asked(description, base):
    """The base model's folder, and the dump with its metadata, as the command line names them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump")
    parser.add_argument("base", help=base)
    arguments = parser.parse_args()
    dump, metadata = read(arguments.dump)
    if int(metadata["micro_batches"]) != 1 or float(metadata["dropout"]) != 0:
        sys.exit("only steps of one micro-batch without adapter dropout can be replayed")
    return arguments.base, dump, metadata


def main():
    base, dump, metadata = asked(__doc__, "the base model's diffusers folder")
    transformer, parameters = load_with_adapters(base, dump, metadata)

    # In f64: some gradients are small differences of large numbers, of which f32 keeps three digits.
    transformer, dump = transformer.double(), {name: tensor.double() for name, tensor in dump.items()}
    if component(transformer) == "unet":
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        noisy = scheduler.add_noise(dump["latents"], dump["noise"], dump["timestep"].long())
        target = dump["noise"]
    else:
        noisy = noisy_of_flow(dump)
        target = dump["noise"] - dump["latents"]
    prediction = predicted(transformer, dump, noisy)
    loss = loss_of(dump, prediction, target)
    loss.backward()

    errors = {
        "noisy_latents": relative_error(dump["noisy_latents"], noisy),
        "prediction": relative_error(dump["prediction"], prediction.detach()),
        "target": relative_error(dump["target"], target),
        "loss": relative_error(dump["loss"].reshape(()), loss.detach()),
    }
    for name, parameter in parameters.items():
        errors[f"gradient.{name}"] = relative_error(dump[f"gradient.{name}"], parameter.grad)
    worst = sorted(errors, key=errors.get, reverse=True)[:3]
    named = ", ".join(f"{errors[name]:.2e} ({name})" for name in worst)
    print(f"{len(parameters)} adapter tensors, loss {loss.item():.6f}, worst relative errors {named}")
    sys.exit(0 if errors[worst[0]] <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
