"""Goldens of the Chroma denoiser: small random ChromaTransformer2DModels of diffusers, in both namings, with peft.

    python tools/goldens/chroma.py

writes, per model (`two`, of two blocks of each kind, and `one`, of one double block and one head):
    tests/golden/chroma_<model>.safetensors         diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients
    tests/golden/chroma_<model>_single.safetensors  the same weights as the author's single file names them; those of `one` as
                                                    ComfyUI's all-in-one files have it

`chroma_tiny.safetensors` is a model for tests of commands, and `chroma_two` also has the losses of 20 training steps.
The metadata carries config.json, the versions and which adapters each case has. The single-file names are written by
the inverse mapping below and then checked here: diffusers' own converter must give the first file back.

The last inputs are masked: contexts of different lengths in a batch, and a batch of one with two rows, which is the empty
caption's (its end token and one pad). The mask is of booleans: the pipeline's own, of numbers, hides nothing. Adapters are on
everything but the approximator (`distilled_guidance_layer`), which nobody trains.
"""

import inspect
import pathlib
import sys

import torch
from denoiser import check_conversion, linears, loss_curve, randomize, save, save_single_file, with_adapters
from diffusers import ChromaTransformer2DModel
from diffusers.loaders import single_file_utils

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import flux1  # noqa: E402
from denoisers import predict  # noqa: E402

SMALL = dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=20,
    axes_dims_rope=(4, 6, 6),
    approximator_num_channels=16,
    approximator_hidden_dim=24,
    approximator_layers=2,
)
MODELS = {
    "two": {},
    "one": dict(num_layers=1, num_single_layers=3, attention_head_dim=32, num_attention_heads=1, axes_dims_rope=(4, 14, 14), approximator_layers=1),
}
# (samples, latent height, latent width, context tokens, rows that are seen): square, wide, tall; odd numbers of patches.
CASES = [
    (2, 8, 8, 5, None),
    (2, 6, 16, 7, None),
    (2, 14, 10, 3, None),
    (2, 6, 10, 9, [4, 9]),
    (1, 10, 6, 9, [2]),
]


def to_single_file(state, config):
    """diffusers' names and layout to the author's: FLUX.1's, and the approximator."""
    out = {k: v for k, v in flux1.to_single_file(state, config).items() if not k.startswith("distilled")}
    for name, tensor in state.items():
        if name.startswith("distilled_guidance_layer."):
            for ours, theirs in ((".linear_1.", ".in_layer."), (".linear_2.", ".out_layer.")):
                name = name.replace(ours, theirs)
            if ".norms." in name:
                name = name.replace(".weight", ".scale")
            out[name] = tensor
    return out


def to_diffusers(single, width):
    """diffusers' converter, whose one constant is the width of the released models."""
    source = inspect.getsource(single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers)
    assert "inner_dim = 3072" in source
    scope = {"torch": torch}
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), scope)
    return scope["convert_chroma_transformer_checkpoint_to_diffusers"]({k: v.clone() for k, v in single.items()})


def inputs(config, case, generator):
    samples, height, width, tokens, counts = case
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    channels = config.in_channels // 4
    given = {
        "latents": rand(samples, channels, height, width),
        "context": rand(samples, tokens, config.joint_attention_dim),
        "pooled": torch.zeros(samples, 0),
        # One nearly clean, one nearly noise, neither a whole number.
        "timesteps": torch.tensor([12.34, 987.6], dtype=torch.float32)[:samples],
        "target": rand(samples, channels, height, width),
    }
    if counts:
        given["token_counts"] = torch.tensor(counts, dtype=torch.float32)
    return given


def call(model, given):
    return predict(model, *(given[k] for k in ("latents", "timesteps", "context", "pooled")), token_counts=given.get("token_counts"))


def random_model(overrides):
    model = randomize(ChromaTransformer2DModel(**{**SMALL, **overrides}))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".norms." in name:
                tensor.copy_((1 + tensor).to(torch.bfloat16).float())
    return model


def adaptable(model):
    return {name: shape for name, shape in linears(model).items() if not name.startswith("distilled_guidance_layer.")}


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        torch.manual_seed(20 + seed)
        model = random_model(overrides)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.Generator().manual_seed(220 + seed)
        tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
        for i, case in enumerate(CASES):
            given = inputs(model.config, case, generator)
            with torch.no_grad():
                given["output"] = call(model, given)
            tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}

        given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
        every = adaptable(model)
        with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors)
        with_adapters(model, call, "attention", [n for n in every if ".attn." in n], 4.0, given, generator, tensors)
        if name == "two":
            case = (2, 4, 6, 5, [5, 3])
            given_of = lambda: {k: v for k, v in inputs(model.config, case, generator).items() if k in ("context", "pooled", "token_counts")}  # noqa: E731
            channels = model.config.in_channels // 4
            loss_curve(model, call, [n for n in every if ".attn." in n], (2, channels, *case[1:3]), given_of, generator, tensors)
        save(f"chroma_{name}", "tools/goldens/chroma.py", model, every, tensors, {"all": 6.0, "attention": 4.0})
        single = to_single_file(state, model.config)
        if name == "one":
            single = {f"model.diffusion_model.{k}": v for k, v in single.items()}
        width = model.config.num_attention_heads * model.config.attention_head_dim
        check_conversion(to_diffusers(single, width), state)
        save_single_file(f"chroma_{name}_single", "tools/goldens/chroma.py", single)
    tiny()


def tiny():
    """A denoiser that fits the encoder and the VAE of assets/tiny-sd3, for tests of commands."""
    torch.manual_seed(29)
    model = random_model(dict(in_channels=64, num_layers=1, num_single_layers=1, joint_attention_dim=128))
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    save("chroma_tiny", "tools/goldens/chroma.py", model, adaptable(model), state, {})


if __name__ == "__main__":
    main()
