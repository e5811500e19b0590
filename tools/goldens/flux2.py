"""Goldens of the FLUX.2 klein denoiser: small random Flux2Transformer2DModels of diffusers, in both namings, with peft.

    python tools/goldens/flux2.py

writes, per model (`two`, of two blocks of each kind, and `one`, of one double block and one head):
    tests/golden/flux2_<model>.safetensors         diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients
    tests/golden/flux2_<model>_single.safetensors  the same weights as the authors' single file names them; those of `one` as
                                                   ComfyUI's all-in-one files have it

`flux2_two` also has the losses of 20 training steps. The metadata carries config.json, the versions and which adapters each case
has. The single-file names are written by the inverse mapping below and then checked here: diffusers' own converter must give the
first file back.

`flux2_tiny.safetensors` and `flux2_tiny_text.safetensors` are a denoiser and a Qwen3 of 32 narrow layers that fit each other, the VAE of
`vae_flux2.safetensors` and the tokenizer in tests/golden/tokenizers/qwen3: together a pipeline, for tests of commands
(`tools/tiny_klein.py` writes it as a folder). `flux2_pipeline.safetensors` is what diffusers' pipeline makes of it.

`flux2_edit.safetensors` is the first one's build with a reference picture of the picture's size, smaller, and larger.
`flux2_pipeline.safetensors` also has a picture made beside a reference, `edit.*`, whose pixels are `edit_pixel` of their place.

The last inputs of `two` and `one` hide pads from every query, which no pipeline does and some trainers did: each caption is called alone without its
pads.
"""

import json
import pathlib
import sys

import diffusers
import numpy
import torch
import transformers
from denoiser import check_conversion, linears, loss_curve, randomize, save, save_single_file, with_adapters
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from encoders import FOLDER, stored
from PIL import Image
from qwen3 import TINY, model_of
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from denoisers import predict  # noqa: E402

SMALL = dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=20,
    axes_dims_rope=(4, 4, 4, 4),
    guidance_embeds=False,
)
MODELS = {"two": {}, "one": dict(num_layers=1, num_single_layers=3, attention_head_dim=32, num_attention_heads=1, axes_dims_rope=(8, 8, 8, 8))}
# (latent height, latent width, context tokens): square, wide, tall; odd numbers of patches.
SHAPES = [(8, 8, 5), (6, 16, 7), (14, 10, 3)]
COUNTS = [3, 6]


def to_single_file(state, config):
    """diffusers' names and layout to the authors'."""
    out = {}

    def put(new, *olds):
        out[f"{new}.weight"] = torch.cat([state[f"{old}.weight"] for old in olds])

    def norm(new, old):
        out[f"{new}.scale"] = state[f"{old}.weight"]

    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    for new, old in (("in_layer", "linear_1"), ("out_layer", "linear_2")):
        put(f"time_in.{new}", f"time_guidance_embed.timestep_embedder.{old}")
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        put(f"{name}.lin", f"{name}.linear")
    put("final_layer.linear", "proj_out")
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    out["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for i in range(config.num_layers):
        new, old = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for stream, qkv, proj, norms, ff in (
            ("img", ("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), "ff"),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", ("norm_added_q", "norm_added_k"), "ff_context"),
        ):
            put(f"{new}.{stream}_attn.qkv", *(f"{old}.attn.{part}" for part in qkv))
            put(f"{new}.{stream}_attn.proj", f"{old}.attn.{proj}")
            for kind, name in zip(("query_norm", "key_norm"), norms):
                norm(f"{new}.{stream}_attn.norm.{kind}", f"{old}.attn.{name}")
            put(f"{new}.{stream}_mlp.0", f"{old}.{ff}.linear_in")
            put(f"{new}.{stream}_mlp.2", f"{old}.{ff}.linear_out")
    for i in range(config.num_single_layers):
        new, old = f"single_blocks.{i}", f"single_transformer_blocks.{i}.attn"
        put(f"{new}.linear1", f"{old}.to_qkv_mlp_proj")
        put(f"{new}.linear2", f"{old}.to_out")
        norm(f"{new}.norm.query_norm", f"{old}.norm_q")
        norm(f"{new}.norm.key_norm", f"{old}.norm_k")
    return out


def inputs(config, shape, generator, counts=None):
    height, width, tokens = shape
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    channels = config.in_channels // 4
    given = {
        "latents": rand(2, channels, height, width),
        "context": rand(2, tokens, config.joint_attention_dim),
        "pooled": torch.zeros(2, 0),
        # One nearly clean, one nearly noise, neither a whole number.
        "timesteps": torch.tensor([12.34, 987.6], dtype=torch.float32),
        "target": rand(2, channels, height, width),
    }
    if counts:
        given["token_counts"] = torch.tensor(counts, dtype=torch.float32)
    return given


def call(model, given):
    whole = lambda part: predict(model, *(part[k] for k in ("latents", "timesteps", "context", "pooled")))  # noqa: E731
    if "token_counts" not in given:
        return whole(given)
    rows = []
    for row, count in enumerate(given["token_counts"].long().tolist()):
        part = {k: given[k][row : row + 1] for k in ("latents", "timesteps", "context", "pooled")}
        rows.append(whole(part | {"context": part["context"][:, :count]}))
    return torch.cat(rows)


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        torch.manual_seed(40 + seed)
        model = randomize(Flux2Transformer2DModel(**{**SMALL, **overrides}))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.Generator().manual_seed(240 + seed)
        tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
        cases = [(shape, None) for shape in SHAPES] + [((6, 10, 8), COUNTS)]
        for i, (shape, counts) in enumerate(cases):
            given = inputs(model.config, shape, generator, counts)
            with torch.no_grad():
                given["output"] = call(model, given)
            tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}

        given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
        every = linears(model)
        with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors)
        with_adapters(model, call, "attention", [n for n in every if ".attn." in n], 4.0, given, generator, tensors)
        if name == "two":
            given_of = lambda: {k: v for k, v in inputs(model.config, (4, 6, 5), generator).items() if k in ("context", "pooled")}  # noqa: E731
            channels = model.config.in_channels // 4
            loss_curve(model, call, [n for n in every if ".attn." in n], (2, channels, 4, 6), given_of, generator, tensors)
        save(f"flux2_{name}", "tools/goldens/flux2.py", model, every, tensors, {"all": 6.0, "attention": 4.0})
        single = to_single_file(state, model.config)
        check_conversion(convert_flux2_transformer_checkpoint_to_diffusers({k: v.clone() for k, v in single.items()}), state)
        if name == "one":
            single = {f"model.diffusion_model.{k}": v for k, v in single.items()}
        save_single_file(f"flux2_{name}_single", "tools/goldens/flux2.py", single)
    edit()
    tiny()
    pipeline()


# As SHAPES, and height and width of the reference's latents.
EDITS = [((8, 8, 5), (8, 8)), ((6, 16, 7), (4, 10)), ((4, 6, 3), (10, 4))]


def call_beside(model, given):
    return predict(model, *(given[k] for k in ("latents", "timesteps", "context", "pooled")), reference=given["reference"])


def edit():
    torch.manual_seed(47)
    model = randomize(Flux2Transformer2DModel(**SMALL))
    tensors = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(247)
    for i, (shape, reference) in enumerate(EDITS):
        given = inputs(model.config, shape, generator)
        given["reference"] = torch.randn(2, model.config.in_channels // 4, *reference, generator=generator)
        with torch.no_grad():
            given["output"] = call_beside(model, given)
        tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}
    given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
    every = linears(model)
    with_adapters(model, call_beside, "all", list(every), 6.0, given, generator, tensors)
    save("flux2_edit", "tools/goldens/flux2.py", model, every, tensors, {"all": 6.0})


def edit_pixel(x, y, c):
    """That of a reference, as tests/it/klein.rs has it."""
    return (x * (c + 1) * 3 + y * 5) % 256


def tiny():
    """A denoiser and a text encoder, of which three hidden states of 16 channels are a row."""
    torch.manual_seed(49)
    model = randomize(Flux2Transformer2DModel(**{**SMALL, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 48}))
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    save("flux2_tiny", "tools/goldens/flux2.py", model, linears(model), state, {})
    # As many layers as diffusers' script takes from.
    config, whole = model_of(32, 16, 24, 2, 1, 8, "silu", 1e-6, 1e6, len(AutoTokenizer.from_pretrained(TINY)), 49)
    config.architectures = ["Qwen3ForCausalLM"]
    metadata = {"script": "tools/goldens/flux2.py", "config": json.dumps(config.to_dict())}
    with torch.no_grad():
        # Deep and random: each layer adds little, so that the last ones are numbers too.
        for name, weight in whole.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.3)
        save_file(stored(whole.model, torch.bfloat16), FOLDER / "flux2_tiny_text.safetensors", metadata)


def golden_model(kind, file, **extra):
    """A model of a golden file, in f32."""
    with safe_open(FOLDER / f"{file}.safetensors", "pt") as golden:
        config = json.loads(golden.metadata()["config"])
        weights = {k: golden.get_tensor(k) for k in golden.keys() if not k.startswith("golden.")}
    if kind is Qwen3ForCausalLM:
        model = kind(Qwen3Config.from_dict(config))
        model.model.load_state_dict(weights)
    else:
        model = kind.from_config(config)
        model.load_state_dict(weights)
    return model.float().eval()


def tiny_pipeline():
    """The miniature, as diffusers has it."""
    return Flux2KleinPipeline(
        transformer=golden_model(Flux2Transformer2DModel, "flux2_tiny"),
        text_encoder=golden_model(Qwen3ForCausalLM, "flux2_tiny_text"),
        tokenizer=AutoTokenizer.from_pretrained(TINY),
        vae=golden_model(AutoencoderKLFlux2, "vae_flux2"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


SEEN = []


def seen(function):
    """A function that also keeps what it gives in SEEN."""

    def wrapped(*args, **kwargs):
        SEEN.append(function(*args, **kwargs))
        return SEEN[-1]

    return wrapped


CAPTIONS = ["a red circle, number 2", ""]
SIDE, STEPS, GUIDANCE = 64, 6, 4.0


@torch.no_grad()
def pipeline():
    """Contexts by the pipeline's layers and by those of the script, and a picture."""
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    context, _ = made.encode_prompt(CAPTIONS)
    of_script, _ = made.encode_prompt(CAPTIONS, text_encoder_out_layers=(10, 20, 30))
    torch.manual_seed(50)
    noise = torch.randn(1, 4, SIDE // 8, SIDE // 8)
    run = lambda kind: made(  # noqa: E731
        prompt=CAPTIONS[0], height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=Flux2KleinPipeline._patchify_latents(noise), output_type=kind,
    ).images
    # Every eighth row, of true tokens and pads; of the script what a trainer would store. Latents as the VAE has them: scaled back.
    out = {"context": context[:, ::8], "script": of_script[0].bfloat16(), "noise": noise, "latents": run("latent"), "pixels": run("pt") * 2 - 1}
    width, height = 100, 67
    pixels = [[[edit_pixel(x, y, c) for c in range(3)] for x in range(width)] for y in range(height)]
    reference = Image.fromarray(numpy.array(pixels, dtype=numpy.uint8))
    made.image_processor.preprocess, plain = seen(made.image_processor.preprocess), made.image_processor.preprocess
    out["edit.latents"] = made(
        image=reference, prompt=CAPTIONS[0], height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=Flux2KleinPipeline._patchify_latents(noise), output_type="latent",
    ).images
    made.image_processor.preprocess, out["edit.reference"] = plain, SEEN.pop()
    metadata = {
        "script": "tools/goldens/flux2.py",
        "versions": json.dumps({m.__name__: m.__version__ for m in (torch, diffusers, transformers)}),
    }
    save_file({f"golden.{k}": v.contiguous() for k, v in out.items()}, FOLDER / "flux2_pipeline.safetensors", metadata)


if __name__ == "__main__":
    main()
