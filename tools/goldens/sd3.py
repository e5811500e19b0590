"""Goldens of the SD3 denoiser: small random SD3Transformer2DModels of diffusers, in both namings, with peft.

    python tools/goldens/sd3.py

writes, per model (`plain`, `qk_norm`, `dual`):
    tests/golden/sd3_<model>.safetensors         diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients
    tests/golden/sd3_<model>_single.safetensors  the same weights as Stability's single file names them (plain, dual)

Weights are rounded to bf16 first, so that both sides compute in f32 with the same numbers. The metadata
carries config.json, the versions and which adapters each case has.

`sd3_dual` also has the losses of 20 training steps.

The single-file names are written by the inverse mapping below and then checked here: diffusers' own
converter must give the first file back, tensor for tensor.
"""

import torch
from denoiser import check_conversion, linears, loss_curve, randomize, save, save_single_file, with_adapters
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

SMALL = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    caption_projection_dim=24,
    joint_attention_dim=20,
    pooled_projection_dim=28,
    pos_embed_max_size=8,
)
MODELS = {
    "plain": {},
    "qk_norm": dict(qk_norm="rms_norm"),
    # As SD3.5-medium: the first layers have a second attention, the last has not.
    "dual": dict(qk_norm="rms_norm", num_layers=3, dual_attention_layers=(0, 1), pos_embed_max_size=9),
}
# (latent height, latent width, context tokens): square, wide, tall; an odd number of patches in both.
SHAPES = [(8, 8, 5), (6, 16, 7), (14, 10, 3)]


def position_table(key, tensor, noise):
    if key == "pos_embed.pos_embed":
        tensor.copy_(0.5 * noise)
        return True
    return False


def to_single_file(state, layers):
    """diffusers' names and layout to Stability's."""
    out = {}

    def swapped(t):  # (scale, shift) to (shift, scale)
        half = t.shape[0] // 2
        return torch.cat([t[half:], t[:half]])

    def put(new, old, change=lambda t: t):
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in state:
                out[f"{new}.{kind}"] = change(state[f"{old}.{kind}"])

    def fuse(new, olds):
        for kind in ("weight", "bias"):
            if f"{olds[0]}.{kind}" in state:
                out[f"{new}.{kind}"] = torch.cat([state[f"{o}.{kind}"] for o in olds])

    out["pos_embed"] = state["pos_embed.pos_embed"]
    put("x_embedder.proj", "pos_embed.proj")
    put("context_embedder", "context_embedder")
    for new, old in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        put(f"{new}.mlp.0", f"time_text_embed.{old}.linear_1")
        put(f"{new}.mlp.2", f"time_text_embed.{old}.linear_2")
    for i in range(layers):
        ours, theirs = f"transformer_blocks.{i}", f"joint_blocks.{i}"
        x, c = f"{theirs}.x_block", f"{theirs}.context_block"
        last = i == layers - 1
        fuse(f"{x}.attn.qkv", [f"{ours}.attn.to_{n}" for n in "qkv"])
        fuse(f"{c}.attn.qkv", [f"{ours}.attn.add_{n}_proj" for n in "qkv"])
        fuse(f"{x}.attn2.qkv", [f"{ours}.attn2.to_{n}" for n in "qkv"])
        put(f"{x}.attn.proj", f"{ours}.attn.to_out.0")
        put(f"{x}.attn2.proj", f"{ours}.attn2.to_out.0")
        put(f"{c}.attn.proj", f"{ours}.attn.to_add_out")
        for n in "qk":
            put(f"{x}.attn.ln_{n}", f"{ours}.attn.norm_{n}")
            put(f"{x}.attn2.ln_{n}", f"{ours}.attn2.norm_{n}")
            put(f"{c}.attn.ln_{n}", f"{ours}.attn.norm_added_{n}")
        put(f"{x}.mlp.fc1", f"{ours}.ff.net.0.proj")
        put(f"{x}.mlp.fc2", f"{ours}.ff.net.2")
        put(f"{c}.mlp.fc1", f"{ours}.ff_context.net.0.proj")
        put(f"{c}.mlp.fc2", f"{ours}.ff_context.net.2")
        put(f"{x}.adaLN_modulation.1", f"{ours}.norm1.linear")
        put(f"{c}.adaLN_modulation.1", f"{ours}.norm1_context.linear", swapped if last else lambda t: t)
    put("final_layer.linear", "proj_out")
    put("final_layer.adaLN_modulation.1", "norm_out.linear", swapped)
    return {f"model.diffusion_model.{k}": v.contiguous() for k, v in out.items()}


def inputs(config, shape, generator):
    height, width, tokens = shape
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return {
        "latents": rand(2, config.in_channels, height, width),
        "context": rand(2, tokens, config.joint_attention_dim),
        "pooled": rand(2, config.pooled_projection_dim),
        # One nearly clean, one nearly noise, neither a whole number.
        "timesteps": torch.tensor([12.34, 987.6], dtype=torch.float32),
        "target": rand(2, config.out_channels, height, width),
    }


def call(model, given):
    return model(
        hidden_states=given["latents"],
        encoder_hidden_states=given["context"],
        pooled_projections=given["pooled"],
        timestep=given["timesteps"],
        return_dict=False,
    )[0]


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = randomize(SD3Transformer2DModel(**{**SMALL, **overrides}), position_table)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.Generator().manual_seed(100 + seed)
        tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
        for i, shape in enumerate(SHAPES):
            given = inputs(model.config, shape, generator)
            with torch.no_grad():
                given["output"] = call(model, given)
            tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}
        given = {k: tensors[f"golden.1.{k}"] for k in ("latents", "context", "pooled", "timesteps", "target")}
        # The last block drops its context, and with it all that the context's query does.
        last = f"transformer_blocks.{model.config.num_layers - 1}.attn.add_q_proj."
        unused = lambda parameter: parameter.startswith(last)  # noqa: E731
        every = linears(model)
        with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors, unused)
        attention = [n for n in every if ".attn" in n]
        with_adapters(model, call, "attention", attention, 4.0, given, generator, tensors, unused)
        if name == "dual":
            shape = (4, 6, 5)
            given_of = lambda: {k: v for k, v in inputs(model.config, shape, generator).items() if k in ("context", "pooled")}  # noqa: E731
            loss_curve(model, call, attention, (2, model.config.in_channels, *shape[:2]), given_of, generator, tensors)
        save(f"sd3_{name}", "tools/goldens/sd3.py", model, every, tensors, {"all": 6.0, "attention": 4.0})
        if name != "qk_norm":
            single = to_single_file(state, model.config.num_layers)
            check_conversion(convert_sd3_transformer_checkpoint_to_diffusers({k: v.clone() for k, v in single.items()}), state)
            save_single_file(f"sd3_{name}_single", "tools/goldens/sd3.py", single)


if __name__ == "__main__":
    main()
