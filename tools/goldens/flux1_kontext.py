"""Goldens of FLUX.1 Kontext: a small random FluxTransformer2DModel of diffusers that is given a reference picture's tokens, with peft,
and reference pictures as FluxKontextPipeline resizes them.

    python tools/goldens/flux1_kontext.py

writes
    tests/golden/flux1_kontext.safetensors    as tools/goldens/flux1.py writes its models: inputs, outputs, adapters, gradients, and the
                                              losses of 20 training steps; `reference` are the latents of the reference
    tests/golden/kontext_pictures.safetensors for pictures of some sizes, `N.size` (width, height) of the file and of what the VAE is
                                              given, and of some also `N.rows`, those rows of it whose numbers are in `N.places`; the
                                              pictures' pixels are made by `pixel` here and in the test

Pillow resizes across first, then down; Pillow 13 also the other way round, for sizes that are not compared here.

References are of other sizes than the pictures: smaller, larger, of another shape.
"""

import pathlib
import sys

import numpy as np
import torch
from denoiser import OUT, linears, loss_curve, randomize, save, with_adapters
from diffusers import FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux import pipeline_flux_kontext
from flux1 import SMALL, inputs
from PIL import Image
from safetensors.torch import save_file

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from denoisers import packed, predict  # noqa: E402

# (latent height, latent width, context tokens), and height and width of the reference's latents.
SHAPES = [((8, 8, 5), (8, 8)), ((6, 16, 7), (10, 4)), ((14, 10, 3), (4, 18))]

# (width, height) of reference pictures; of the first ones pixels are compared.
COMPARED = [(300, 200), (1600, 1200), (2000, 900)]
SIZES = COMPARED + [(64, 64), (1, 3000), (3000, 1), (1024, 1000), (1025, 1024), (672, 1568), (1200, 1030), (17, 16), (4000, 2250)]
PLACES = [0, 1, 333, 671]


def call(model, given):
    parts = (given[k] for k in ("latents", "timesteps", "context", "pooled"))
    return predict(model, *parts, given["guidance"], reference=given["reference"])


def paired(config, shape, reference, generator):
    given = inputs(config, shape, generator)
    given["reference"] = torch.randn(2, config.in_channels // 4, *reference, generator=generator)
    return given


def check_packing(latents):
    """That `predict` packs as the pipeline does."""
    pipeline = pipeline_flux_kontext.FluxKontextPipeline
    b, c, h, w = latents.shape
    tokens, ids = packed(latents)
    assert torch.equal(tokens, pipeline._pack_latents(latents, b, c, h, w))
    assert torch.equal(ids, pipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32))


def network():
    torch.set_num_threads(1)
    torch.manual_seed(31)
    model = randomize(FluxTransformer2DModel(**{**SMALL, "num_layers": 1, "guidance_embeds": True}))
    generator = torch.Generator().manual_seed(231)
    tensors = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    for i, (shape, reference) in enumerate(SHAPES):
        given = paired(model.config, shape, reference, generator)
        with torch.no_grad():
            given["output"] = call(model, given)
        tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}
    check_packing(tensors["golden.1.reference"])
    every = linears(model)
    given = {k.removeprefix("golden.1."): v for k, v in tensors.items() if k.startswith("golden.1.")}
    with_adapters(model, call, "all", list(every), 6.0, given, generator, tensors)
    shape = (4, 6, 5)
    kept = ("context", "pooled", "guidance", "reference")
    given_of = lambda: {k: v for k, v in paired(model.config, shape, (6, 4), generator).items() if k in kept}  # noqa: E731
    channels = model.config.in_channels // 4
    loss_curve(model, call, [n for n in every if ".attn." in n], (2, channels, *shape[:2]), given_of, generator, tensors)
    save("flux1_kontext", "tools/goldens/flux1_kontext.py", model, every, tensors, {"all": 6.0})


def pixel(x, y, c):
    """Edges, slopes and noise, from whole numbers alone."""
    noise = ((x * 2654435761 + y * 40503 + c * 97) & 0xFFFFFFFF) >> 24
    slope = (x * (c + 1) + y * 3) % 256
    return np.where((x // 9 + y // 6) % 2 == 0, slope, noise).astype(np.uint8)


def resized(size):
    """A picture as FluxKontextPipeline.__call__ gives it to the VAE, [3, height, width] in [-1, 1]."""
    width, height = size
    aspect = width / height
    _, width, height = min((abs(aspect - w / h), w, h) for w, h in pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS)
    width, height = width // 16 * 16, height // 16 * 16
    if size not in COMPARED:
        return width, height, None
    y, x, c = np.mgrid[0 : size[1], 0 : size[0], 0:3].astype(np.int64)
    picture = Image.fromarray(pixel(x, y, c))
    processor = VaeImageProcessor(vae_scale_factor=16)
    return width, height, processor.preprocess(processor.resize(picture, height, width), height, width)[0]


def pictures():
    tensors = {}
    for n, size in enumerate(SIZES):
        width, height, pixels = resized(size)
        tensors[f"{n}.size"] = torch.tensor([*size, width, height])
        if pixels is not None:
            places = torch.tensor([min(place, height - 1) for place in PLACES])
            levels = ((pixels + 1) * 127.5).round().to(torch.uint8)
            assert torch.allclose(levels / 127.5 - 1, pixels, atol=1e-6)
            tensors |= {f"{n}.places": places, f"{n}.rows": levels[:, places]}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, OUT / "kontext_pictures.safetensors", metadata={"script": "tools/goldens/flux1_kontext.py"})


if __name__ == "__main__":
    network()
    pictures()
