"""What diffusers' SDXL pipelines make of latents with a VAE that has `latents_mean` and `latents_std`.

    python tools/goldens/latent_statistics.py      # reads assets/, writes tests/golden/latent_statistics.safetensors

The bundled SDXL gets such a configuration, with made-up numbers. From the VAE to the denoiser the image-to-image
pipeline brings them (`encoded` to `given`), back the pipeline itself (`made` to `decoded`). Neither network takes part.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}
ROWS, COLUMNS = 4, 6


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    pipeline = StableDiffusionXLPipeline.from_pretrained(ROOT / "assets/tiny-sdxl", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    vae = pipeline.vae
    vae.register_to_config(**CONFIG)

    encoded = torch.randn(1, 4, ROWS, COLUMNS) * 5 + 1
    vae.encode = lambda pixels: SimpleNamespace(latents=encoded)
    pixels = torch.zeros(1, 3, ROWS * 8, COLUMNS * 8)
    painter = StableDiffusionXLImg2ImgPipeline(**pipeline.components)
    given = painter.prepare_latents(pixels, None, 1, 1, torch.float32, "cpu", add_noise=False)

    seen = []
    vae.decode = lambda latents, **_: (seen.append(latents), (pixels,))[1]
    noise = torch.randn(1, 4, ROWS, COLUMNS)
    sample = dict(height=ROWS * 8, width=COLUMNS * 8, num_inference_steps=1, guidance_scale=1.0, latents=noise)
    made = pipeline("", output_type="latent", **sample).images
    pipeline("", output_type="pt", **sample)
    (decoded,) = seen

    about = {"script": "tools/goldens/latent_statistics.py", "config": json.dumps(dict(vae.config))}
    about |= {m.__name__: m.__version__ for m in (torch, diffusers)}
    tensors = {"encoded": encoded, "given": given, "made": made, "decoded": decoded}
    target = ROOT / "tests/golden/latent_statistics.safetensors"
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, target, metadata=about)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
