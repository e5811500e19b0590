"""What the goldens of all denoisers share: random weights, peft's adapters with their gradients, and the files."""

import json
import pathlib

import diffusers
import peft
import torch
from peft import LoraConfig
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"


def randomize(model, special=lambda key, tensor, noise: False):
    """Nothing stays at its start value, biases and norms included; then all is rounded to bf16, so that both sides
    compute in f32 with the same numbers. `special` fills what it returns true for."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            noise = torch.randn_like(tensor)
            if "norm_" in key and key.endswith("weight") and tensor.ndim == 1:
                tensor.copy_(1.0 + 0.2 * noise)
            elif tensor.ndim == 1:
                tensor.copy_(0.1 * noise)
            elif not special(key, tensor, noise):
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            tensor.copy_(tensor.to(torch.bfloat16).float())
    return model.eval()


def linears(model):
    """The linears of a model without adapters, by name: [outputs, inputs]."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {n: [m.out_features, m.in_features] for n, m in found.items()}


def with_adapters(model, call, case, targets, alpha, given, generator, out, unused=lambda name: False):
    """Output and every adapter's gradient with random A and B, through a mean squared error. `unused` tells the
    parameters that the output does not depend on."""
    model.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=targets), adapter_name=case)
    # A module may be called as the case is.
    parameters = {n: p for n, p in model.named_parameters() if f".lora_A.{case}." in n or f".lora_B.{case}." in n}
    with torch.no_grad():
        for _, p in sorted(parameters.items()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 / p.shape[1] ** 0.5)
    prediction = call(model, given)
    torch.nn.functional.mse_loss(prediction, given["target"]).backward()
    out[f"golden.{case}.output"] = prediction.detach()
    for name, p in parameters.items():
        assert unused(name) == (p.grad is None or p.grad.abs().max() == 0), name
        gradient = torch.zeros_like(p) if unused(name) else p.grad
        head, part, rest = name.rpartition(".lora_")
        name = head + part + rest.replace(f".{case}.", ".")
        out[f"golden.{case}.{name}"] = p.detach()
        out[f"golden.{case}.{name}.grad"] = gradient
    model.delete_adapters(case)
    model.requires_grad_(True).zero_grad()


# Of the loss curve; what `src/models/testing.rs` trains with.
STEPS, RATE = 20, 1e-2


def loss_curve(model, call, targets, latents_shape, given_of, generator, out):
    """The losses of some steps of rectified flow with AdamW and a clipped gradient, on random latents, noise, noise levels
    and what `given_of` draws; all of it stored, stacked by step."""
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets), adapter_name="curve")
    parameters = {n: p for n, p in model.named_parameters() if ".curve." in n}
    with torch.no_grad():
        for name, p in sorted(parameters.items()):
            # As a training starts: B is zero.
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 / p.shape[1] ** 0.5 if ".lora_A." in name else 0.0))
            out[f"golden.curve.{name.replace('.curve.', '.')}"] = p.detach().clone()
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    steps = []
    for _ in range(STEPS):
        given = given_of()
        latents, noise = (torch.randn(latents_shape, generator=generator) for _ in range(2))
        sigmas = torch.rand(latents_shape[0], generator=generator)
        mix = sigmas.view(-1, *[1] * (len(latents_shape) - 1))
        noisy = (1 - mix) * latents + mix * noise
        prediction = call(model, given | {"latents": noisy, "timesteps": sigmas * 1000})
        loss = torch.nn.functional.mse_loss(prediction, noise - latents)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        steps.append(given | {"latents": latents, "noise": noise, "sigmas": sigmas, "loss": loss.detach()})
    assert steps[-1]["loss"] != steps[0]["loss"]
    out |= {f"golden.curve.{k}": torch.stack([step[k] for step in steps]) for k in steps[0]}
    model.delete_adapters("curve")


def save(name, script, model, shapes, tensors, alphas):
    """The golden file: tensors, and in the metadata config.json, the linears, the cases' alphas and the versions."""
    metadata = {
        "script": script,
        "versions": json.dumps({m.__name__: m.__version__ for m in (torch, diffusers, peft)}),
        "config": json.dumps({**dict(model.config), "_class_name": type(model).__name__}),
        "linears": json.dumps(shapes),
        "alphas": json.dumps(alphas),
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / f"{name}.safetensors", metadata=metadata)


def save_single_file(name, script, single):
    single = {k: v.to(torch.bfloat16).contiguous() for k, v in single.items()}
    save_file(single, OUT / f"{name}.safetensors", metadata={"script": script})


def check_conversion(back, state):
    """That a converter of diffusers gave the first file back, tensor for tensor."""
    assert back.keys() == state.keys(), set(back) ^ set(state)
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key
