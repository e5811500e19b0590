"""Goldens of the FLUX.1 denoiser: small random FluxTransformer2DModels of diffusers, in both namings, with peft.

    python tools/goldens/flux1.py

writes, per model (`dev`, which is told a guidance, and `schnell`, which is not):
    tests/golden/flux1_<model>.safetensors         diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients
    tests/golden/flux1_<model>_single.safetensors  the same weights as the authors' single file names them; dev's as it was
                                                   published, schnell's as ComfyUI's all-in-one files have it

`flux1_tiny.safetensors` is a model for tests of commands, and `flux1_dev` also has the losses of 20 training steps.
The metadata carries config.json, the versions and which adapters each case has. The single-file names are written by
the inverse mapping below and then checked here: diffusers' own converter must give the first file back.

The last inputs are of captions with pads that the denoiser must not see (`--apply_t5_attn_mask` of kohya's sd-scripts:
no query sees a pad's key). diffusers has no such argument, so each caption is called alone without its pads.
"""

import inspect
import pathlib
import sys

import torch
from denoiser import check_conversion, linears, loss_curve, randomize, save, save_single_file, with_adapters
from diffusers import FluxTransformer2DModel
from diffusers.loaders import single_file_utils

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from denoisers import predict  # noqa: E402

SMALL = dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=20,
    pooled_projection_dim=12,
    axes_dims_rope=(4, 6, 6),
)
MODELS = {
    "dev": dict(guidance_embeds=True),
    "schnell": dict(num_layers=1, attention_head_dim=32, num_attention_heads=1, axes_dims_rope=(4, 14, 14)),
}
# (latent height, latent width, context tokens): square, wide, tall; odd numbers of patches.
SHAPES = [(8, 8, 5), (6, 16, 7), (14, 10, 3)]
COUNTS = [3, 6]


def to_single_file(state, config):
    """diffusers' names and layout to the authors'."""
    out = {}

    def put(new, *olds):
        for kind in ("weight", "bias"):
            if f"{olds[0]}.{kind}" in state:
                out[f"{new}.{kind}"] = torch.cat([state[f"{old}.{kind}"] for old in olds])

    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    for new, old in (("time_in", "timestep_embedder"), ("guidance_in", "guidance_embedder"), ("vector_in", "text_embedder")):
        put(f"{new}.in_layer", f"time_text_embed.{old}.linear_1")
        put(f"{new}.out_layer", f"time_text_embed.{old}.linear_2")
    for i in range(config.num_layers):
        ours, theirs = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for half, norm, qkv, out_proj, added, ff in (
            ("img", "norm1", ["to_q", "to_k", "to_v"], "to_out.0", "", "ff"),
            ("txt", "norm1_context", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out", "added_", "ff_context"),
        ):
            put(f"{theirs}.{half}_mod.lin", f"{ours}.{norm}.linear")
            put(f"{theirs}.{half}_attn.qkv", *[f"{ours}.attn.{n}" for n in qkv])
            put(f"{theirs}.{half}_attn.proj", f"{ours}.attn.{out_proj}")
            put(f"{theirs}.{half}_mlp.0", f"{ours}.{ff}.net.0.proj")
            put(f"{theirs}.{half}_mlp.2", f"{ours}.{ff}.net.2")
            for n, long in (("q", "query"), ("k", "key")):
                out[f"{theirs}.{half}_attn.norm.{long}_norm.scale"] = state[f"{ours}.attn.norm_{added}{n}.weight"]
    for i in range(config.num_single_layers):
        ours, theirs = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        put(f"{theirs}.modulation.lin", f"{ours}.norm.linear")
        put(f"{theirs}.linear1", *[f"{ours}.attn.to_{n}" for n in "qkv"], f"{ours}.proj_mlp")
        put(f"{theirs}.linear2", f"{ours}.proj_out")
        for n, long in (("q", "query"), ("k", "key")):
            out[f"{theirs}.norm.{long}_norm.scale"] = state[f"{ours}.attn.norm_{n}.weight"]
    put("final_layer.linear", "proj_out")
    put("final_layer.adaLN_modulation.1", "norm_out.linear")
    for kind in ("weight", "bias"):  # (scale, shift) to (shift, scale)
        name = f"final_layer.adaLN_modulation.1.{kind}"
        if name in out:  # Chroma has none
            out[name] = torch.cat(out[name].chunk(2)[::-1])
    return out


def to_diffusers(single, width):
    """diffusers' converter, whose one constant is the width of the released models."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert "inner_dim = 3072" in source
    scope = {"torch": torch}
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), scope)
    return scope["convert_flux_transformer_checkpoint_to_diffusers"]({k: v.clone() for k, v in single.items()})


def inputs(config, shape, generator):
    height, width, tokens = shape
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    channels = config.in_channels // 4
    given = {
        "latents": rand(2, channels, height, width),
        "context": rand(2, tokens, config.joint_attention_dim),
        "pooled": rand(2, config.pooled_projection_dim),
        # One nearly clean, one nearly noise, neither a whole number.
        "timesteps": torch.tensor([12.34, 987.6], dtype=torch.float32),
        "target": rand(2, channels, height, width),
    }
    if config.guidance_embeds:
        given["guidance"] = torch.tensor([1.0, 3.5])
    return given


def call(model, given):
    return predict(model, *(given[k] for k in ("latents", "timesteps", "context", "pooled")), given.get("guidance"))


def call_without_pads(model, given):
    rows = []
    for row, count in enumerate(COUNTS):
        alone = {k: v[row : row + 1] for k, v in given.items()}
        alone["context"] = alone["context"][:, :count]
        rows.append(call(model, alone))
    return torch.cat(rows)


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = randomize(FluxTransformer2DModel(**{**SMALL, **overrides}))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.Generator().manual_seed(200 + seed)
        tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
        for i, shape in enumerate(SHAPES):
            given = inputs(model.config, shape, generator)
            with torch.no_grad():
                given["output"] = call(model, given)
            tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}
        given = inputs(model.config, SHAPES[1], generator)
        with torch.no_grad():
            given["output"] = call_without_pads(model, given)
        given["token_counts"] = torch.tensor(COUNTS, dtype=torch.float32)
        tensors |= {f"golden.{len(SHAPES)}.{k}": v for k, v in given.items()}

        given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
        every = linears(model)
        with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors)
        with_adapters(model, call, "attention", [n for n in every if ".attn." in n], 4.0, given, generator, tensors)
        if name == "dev":
            shape = (4, 6, 5)
            given_of = lambda: {k: v for k, v in inputs(model.config, shape, generator).items() if k in ("context", "pooled", "guidance")}  # noqa: E731
            channels = model.config.in_channels // 4
            loss_curve(model, call, [n for n in every if ".attn." in n], (2, channels, *shape[:2]), given_of, generator, tensors)
        save(f"flux1_{name}", "tools/goldens/flux1.py", model, every, tensors, {"all": 6.0, "attention": 4.0})
        single = to_single_file(state, model.config)
        if name == "schnell":
            single = {f"model.diffusion_model.{k}": v for k, v in single.items()}
        width = model.config.num_attention_heads * model.config.attention_head_dim
        check_conversion(to_diffusers(single, width), state)
        save_single_file(f"flux1_{name}_single", "tools/goldens/flux1.py", single)
    tiny()


def tiny():
    """A denoiser that fits the encoders and the VAE of assets/tiny-sd3, for tests of commands."""
    torch.manual_seed(9)
    overrides = dict(in_channels=64, num_layers=1, num_single_layers=1, joint_attention_dim=128, pooled_projection_dim=48, guidance_embeds=True)
    model = randomize(FluxTransformer2DModel(**{**SMALL, **overrides}))
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    save("flux1_tiny", "tools/goldens/flux1.py", model, linears(model), state, {})


if __name__ == "__main__":
    main()
