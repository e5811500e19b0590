"""Goldens of the Z-Image denoiser: small random ZImageTransformer2DModels of diffusers, in both namings, with peft.

    python tools/goldens/zimage.py

writes, per model (`two`, of two blocks and two refiners of each kind, and `one`, of one block, one refiner and one head):
    tests/golden/zimage_<model>.safetensors         diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients
    tests/golden/zimage_<model>_single.safetensors  the same weights as ComfyUI's single files name them; those of `one` as its
                                                    all-in-one files have it

`zimage_tiny.safetensors` is a model for tests of commands, and `zimage_two` also has the losses of 20 training steps.
The metadata carries config.json, the versions and which adapters each case has. The single-file names are written by
the inverse mapping below and then checked here: diffusers' own converter must give the first file back.

Captions and pictures are filled up to a multiple of 32 tokens by the network: the cases have some that need it and some that do not,
and batches whose captions need different numbers. Adapters on what a caption alone goes through are among them.
"""

import pathlib
import sys

import torch
from denoiser import check_conversion, linears, loss_curve, randomize, save, save_single_file, with_adapters
from diffusers import ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from denoisers import predict  # noqa: E402

SMALL = dict(
    in_channels=4,
    dim=32,
    n_layers=2,
    n_refiner_layers=2,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=20,
    axes_dims=[4, 6, 6],
    axes_lens=[256, 64, 64],
)
MODELS = {
    "two": {},
    "one": dict(dim=16, n_layers=1, n_refiner_layers=1, n_heads=1, n_kv_heads=1, in_channels=2),
}
# (samples, latent height, latent width, context tokens, rows that are the captions' own): 20 patches, 32 patches (no filling), 35; a
# batch of a short and a long caption, one of two that fill up differently within the same length; a caption of one token.
CASES = [
    (2, 8, 10, 5, None),
    (2, 8, 16, 32, None),
    (2, 14, 10, 40, [9, 40]),
    (2, 6, 8, 31, [31, 4]),
    (1, 8, 16, 33, [1]),
]


def to_single_file(state):
    """diffusers' names to ComfyUI's, which has queries, keys and values in one."""
    out = {}
    for name, tensor in state.items():
        if ".attention.to_k." in name or ".attention.to_v." in name:
            continue
        if ".attention.to_q." in name:
            parts = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            name, tensor = name.replace("to_q", "qkv"), torch.cat(parts)
        for ours, theirs in (
            ("all_x_embedder.2-1.", "x_embedder."),
            ("all_final_layer.2-1.", "final_layer."),
            (".attention.to_out.0.", ".attention.out."),
            (".attention.norm_q.", ".attention.q_norm."),
            (".attention.norm_k.", ".attention.k_norm."),
        ):
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


def inputs(config, case, generator):
    samples, height, width, tokens, counts = case
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    given = {
        "latents": rand(samples, config.in_channels, height, width),
        "context": rand(samples, tokens, config.cap_feat_dim),
        "pooled": torch.zeros(samples, 0),
        # One nearly clean, one nearly noise, neither a whole number.
        "timesteps": torch.tensor([12.34, 987.6], dtype=torch.float32)[:samples],
        "target": rand(samples, config.in_channels, height, width),
    }
    if counts:
        given["token_counts"] = torch.tensor(counts, dtype=torch.float32)
    return given


def call(model, given):
    return predict(model, *(given[k] for k in ("latents", "timesteps", "context", "pooled")), token_counts=given.get("token_counts"))


def random_model(overrides):
    model = randomize(ZImageTransformer2DModel(**{**SMALL, **overrides}))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # Weights of norms, all but those of heads, which `randomize` knows: around 1.
            if "_norm1." in name or "_norm2." in name or name == "cap_embedder.0.weight":
                tensor.copy_((1 + tensor).to(torch.bfloat16).float())
        # Always 1024 channels, of which 64 do something: what is zero takes no room in the repository.
        first, second = model.t_embedder.mlp[0], model.t_embedder.mlp[2]
        first.weight[64:] = first.bias[64:] = second.weight[:, 64:] = 0
        second.weight *= 4
    return model


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        torch.manual_seed(60 + seed)
        model = random_model(overrides)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.Generator().manual_seed(260 + seed)
        tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
        for i, case in enumerate(CASES):
            given = inputs(model.config, case, generator)
            with torch.no_grad():
                given["output"] = call(model, given)
            tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}

        given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
        every = linears(model)
        with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors)
        attention = [n for n in every if ".attention." in n]
        with_adapters(model, call, "attention", attention, 4.0, given, generator, tensors)
        if name == "two":
            case = (2, 4, 6, 5, [5, 3])
            given_of = lambda: {k: v for k, v in inputs(model.config, case, generator).items() if k in ("context", "pooled", "token_counts")}  # noqa: E731
            loss_curve(model, call, attention, (2, model.config.in_channels, *case[1:3]), given_of, generator, tensors)
        save(f"zimage_{name}", "tools/goldens/zimage.py", model, every, tensors, {"all": 6.0, "attention": 4.0})
        single = to_single_file(state)
        # ComfyUI's files have it; nothing reads it.
        single["norm_final.weight"] = torch.ones(model.config.dim)
        if name == "one":
            single = {f"model.diffusion_model.{k}": v for k, v in single.items()}
        check_conversion(convert_z_image_transformer_checkpoint_to_diffusers({k: v.clone() for k, v in single.items()}), state)
        save_single_file(f"zimage_{name}_single", "tools/goldens/zimage.py", single)
    tiny()


def tiny():
    """A denoiser that fits the Qwen3 of tests/golden/qwen3_pipelines.safetensors and the VAE of assets/tiny-flux, for tests of commands."""
    torch.manual_seed(69)
    model = random_model(dict(in_channels=16, n_layers=1, n_refiner_layers=1, cap_feat_dim=16))
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    save("zimage_tiny", "tools/goldens/zimage.py", model, linears(model), state, {})


if __name__ == "__main__":
    main()
