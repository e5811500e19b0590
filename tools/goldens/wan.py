"""Goldens of the Wan denoiser: small random WanTransformer3DModels of diffusers, in both namings, with peft.

    python tools/goldens/wan.py

writes, per model (`two`, of two blocks, and `one`, of one block, one head and no norm before the context):
    tests/golden/wan_<model>.safetensors            diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients

    tests/golden/wan_<model>_single.safetensors     the same weights as the authors' code names them; those of `one` as ComfyUI's
                                                    all-in-one files have it. diffusers' own converter gives the first file back.

`wan_two` also has the losses of 20 training steps.
The metadata carries config.json, the versions and which adapters each case has.
"""

import pathlib
import sys

import torch
from denoiser import check_conversion, linears, loss_curve, randomize, save, save_single_file, with_adapters
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from denoisers import predict  # noqa: E402

SMALL = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=20, freq_dim=16, ffn_dim=40,
    num_layers=2, rope_max_seq_len=32,
)  # fmt: skip
MODELS = {"two": {}, "one": dict(num_layers=1, num_attention_heads=1, attention_head_dim=26, cross_attn_norm=False)}
# (samples, latent frames, height, width, context tokens): a picture, one more frame, five; odd numbers of patches.
CASES = [(2, 1, 8, 8, 5), (2, 2, 6, 10, 7), (1, 5, 10, 6, 3), (1, 1, 2, 14, 1)]


def special(key, tensor, noise):
    """The tables, of which nothing divides the noise, as `randomize` would."""
    if key.endswith("scale_shift_table"):
        tensor.copy_(0.3 * noise)
        return True
    return False


def random_model(overrides):
    model = randomize(WanTransformer3DModel(**{**SMALL, **overrides}), special)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("norm2.weight"):
                tensor.copy_((1 + tensor).to(torch.bfloat16).float())
    return model


def inputs(config, case, generator):
    samples, frames, height, width, tokens = case
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return {
        "latents": rand(samples, config.in_channels, frames, height, width),
        "context": rand(samples, tokens, config.text_dim),
        "pooled": torch.zeros(samples, 0),
        # One nearly clean, one nearly noise, neither a whole number.
        "timesteps": torch.tensor([12.34, 987.6], dtype=torch.float32)[:samples],
        "target": rand(samples, config.in_channels, frames, height, width),
    }


def call(model, given):
    return predict(model, *(given[k] for k in ("latents", "timesteps", "context", "pooled")))


def to_single_file(state):
    """diffusers' names to the authors'."""
    pairs = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"), ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"), ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"), ("attn1.", "self_attn."), ("attn2.", "cross_attn."), (".to_out.0.", ".o."),
        (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), (".norm2.", ".norm3."),
        ("proj_out", "head.head"),
    ]  # fmt: skip
    out = {}
    for name, tensor in state.items():
        name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        torch.manual_seed(60 + seed)
        model = random_model(overrides)
        generator = torch.Generator().manual_seed(260 + seed)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
        for i, case in enumerate(CASES):
            given = inputs(model.config, case, generator)
            with torch.no_grad():
                given["output"] = call(model, given)
            tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}

        given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
        every = linears(model)
        with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors)
        with_adapters(model, call, "attention", [n for n in every if ".attn" in n], 4.0, given, generator, tensors)
        if name == "two":
            given_of = lambda: {k: v for k, v in inputs(model.config, (2, 2, 4, 6, 5), generator).items() if k in ("context", "pooled")}  # noqa: E731
            channels = model.config.in_channels
            loss_curve(model, call, [n for n in every if ".attn" in n], (2, channels, 2, 4, 6), given_of, generator, tensors)
        save(f"wan_{name}", "tools/goldens/wan.py", model, every, tensors, {"all": 6.0, "attention": 4.0})
        single = to_single_file(state)
        check_conversion(convert_wan_transformer_to_diffusers(dict(single)), state)
        if name == "one":
            single = {f"model.diffusion_model.{k}": v for k, v in single.items()}
        save_single_file(f"wan_{name}_single", "tools/goldens/wan.py", single)


if __name__ == "__main__":
    main()
