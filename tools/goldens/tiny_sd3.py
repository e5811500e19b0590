"""What the reference libraries compute from the saved tiny SD3 folder, for our end-to-end comparison.

    python tools/goldens/tiny_sd3.py        # reads assets/, writes tests/golden/tiny_sd3.safetensors

Loads `assets/tiny-sd3` afresh (f16 weights, computed in f32) and follows the reference recipe: CLIP
penultimate rows without the final norm, pooled L and projected pooled G, `!` an ordinary token of both
CLIPs, CLIP-G padded with 0, T5 padded to 77, no masks.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL, PICTURE = ROOT / "assets/tiny-sd3", "assets/tiny-style/train/00.png"
CAPTIONS = [
    "a big red heart in the center, on a cream background",
    "A small green star above a large blue circle!",
    "",
]
STEPS, GUIDANCE = 8, 3.5


def ids_of(captions):
    """Ids by the reference rule, and CLIP-G's as diffusers' own `tokenizer_2` gives them."""
    clip, clip_2, t5 = (kind.from_pretrained(MODEL / name) for kind, name in ((CLIPTokenizer, "tokenizer"), (CLIPTokenizer, "tokenizer_2"), (T5Tokenizer, "tokenizer_3")))
    full = dict(padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    l = clip(captions, **full)
    g = l.input_ids.masked_fill(l.attention_mask == 0, 0)
    return {"l": l.input_ids, "g": g, "g_diffusers": clip_2(captions, **full).input_ids, "t5": t5(captions, **full).input_ids}


def encoded(ids) -> dict[str, torch.Tensor]:
    f32 = dict(dtype=torch.float32)
    l = CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder", **f32).eval()(ids["l"], output_hidden_states=True)
    g = CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder_2", **f32).eval()(ids["g"], output_hidden_states=True)
    t5 = T5EncoderModel.from_pretrained(MODEL / "text_encoder_3", **f32).eval()(ids["t5"]).last_hidden_state
    return {"l.hidden": l.hidden_states[-2], "l.pooled": l.text_embeds, "g.hidden": g.hidden_states[-2], "g.pooled": g.text_embeds, "t5.hidden": t5}


def conditioning(parts):
    both = torch.cat([parts["l.hidden"], parts["g.hidden"]], dim=-1)
    both = F.pad(both, (0, parts["t5.hidden"].shape[-1] - both.shape[-1]))
    return torch.cat([both, parts["t5.hidden"]], dim=1), torch.cat([parts["l.pooled"], parts["g.pooled"]], dim=-1)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ids = ids_of(CAPTIONS)
    parts = encoded(ids)
    context, pooled = conditioning(parts)
    out = {f"ids.{name}": value.to(torch.int32) for name, value in ids.items()} | parts
    out |= {"context.0": context[0], "pooled": pooled}

    vae = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32).eval()
    picture = torch.from_numpy(np.asarray(Image.open(ROOT / PICTURE).convert("RGB")).copy())
    posterior = vae.encode((picture.permute(2, 0, 1)[None].float() / 127.5) - 1.0).latent_dist
    out |= {"vae.picture_hwc": picture, "vae.mean": posterior.mean, "vae.logvar": posterior.logvar}
    latents = posterior.mean[:, :, 4:12, 4:12].contiguous()
    out |= {"vae.decode.latents": latents, "vae.decode.pixels": vae.decode(latents).sample}

    model = SD3Transformer2DModel.from_pretrained(MODEL / "transformer", torch_dtype=torch.float32).eval()
    x, t = torch.randn(2, 16, 16, 16), torch.tensor([700.0, 125.5])
    out |= {"denoiser.latents": x, "denoiser.timesteps": t, "denoiser.out": model(x, context[:2], pooled[:2], t).sample}

    clock = FlowMatchEulerDiscreteScheduler.from_pretrained(MODEL / "scheduler")
    clock.set_timesteps(STEPS)
    z = noise = torch.randn(1, 16, 16, 16)
    for t in clock.timesteps:
        said, empty = model(torch.cat([z, z]), context[[0, 2]], pooled[[0, 2]], t.expand(2)).sample.chunk(2)
        z = clock.step(empty + GUIDANCE * (said - empty), t, z).prev_sample
    out |= {"sample.noise": noise, "sample.sigmas": clock.sigmas, "sample.timesteps": clock.timesteps, "sample.latents": z}

    about = {"script": "tools/goldens/tiny_sd3.py", "captions": json.dumps(CAPTIONS), "picture": PICTURE, "guidance": str(GUIDANCE)}
    about |= {m.__name__: m.__version__ for m in (torch, transformers, diffusers, tokenizers)}
    target = ROOT / "tests/golden/tiny_sd3.safetensors"
    save_file({k: v.contiguous().clone() for k, v in out.items()}, target, metadata=about)
    print(f"{target}: {target.stat().st_size} bytes")
    for name, value in out.items():
        print(f"{name:20} {str(value.dtype):14} {tuple(value.shape)}")


if __name__ == "__main__":
    main()
