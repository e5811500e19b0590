"""The style set, and a trial LoRA on it with peft: that the demo can work, and with which settings."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from peft import LoraConfig

from . import autoencoder, denoiser, scenes
from .steps import rate_at

TRAIN, VALIDATION = 20, 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TARGETS += ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"]
# What the contact sheet is asked for: the things of the language, in pairs never seen in the style set.
PROMPTS = [
    "a big red heart in the center",
    "a small yellow star in the top left corner",
    "a green circle on the left and an orange square on the right",
    "a purple triangle above a white cross",
    "a large blue star at the bottom",
    "a white circle in the top right and a small red triangle in the bottom left",
]


def style_scenes(seed: int) -> list[scenes.Scene]:
    """Every shape and colour several times, in fixed turns, so that a score of pictures covers the language."""
    rng = random.Random(f"{seed} style")
    drawn = []
    while len(drawn) < TRAIN + VALIDATION:
        scene = scenes.random_scene(rng, two=0.7)
        first = scene.things[0]
        k = len(drawn)
        turn = scenes.Thing(scenes.SHAPES[k % 6], list(scenes.COLOURS)[(k * 3 + k // 8) % 8], first.size, scenes.PLACES[(k * 4) % 9])
        things = (turn, *scene.things[1:])
        if len(things) == 2 and (not scenes.far_apart(*things) or things[0].colour == things[1].colour):
            continue
        drawn.append(scenes.Scene(things, scene.background))
    return drawn


def style_caption(rng, scene: scenes.Scene) -> str:
    while True:
        wording, _, unsaid = scenes.body(rng, scene)
        if not unsaid:
            break
    if rng.random() < 0.6:
        return f"{scenes.TRIGGER}, {wording}"
    return f"{wording}, {scenes.TRIGGER}"


def write_set(folder: Path, seed: int) -> None:
    rng = random.Random(f"{seed} style pictures")
    for k, scene in enumerate(style_scenes(seed)):
        part = folder / ("train" if k < TRAIN else "validation")
        part.mkdir(parents=True, exist_ok=True)
        scenes.draw_style(rng, scene).save(part / f"{k:02}.png", optimize=True)
        (part / f"{k:02}.txt").write_text(style_caption(rng, scene) + "\n")


def read_set(folder: Path):
    """Signed pixels [N, 3, H, W] and captions, by name."""
    files = sorted(folder.glob("*.png"))
    pixels = np.stack([scenes.pixels_of(Image.open(f)) for f in files])
    return autoencoder.to_signed(torch.from_numpy(pixels)), [f.with_suffix(".txt").read_text().strip() for f in files]


class Trial:
    """One LoRA run as `plumb demo` will do it: encode the set once, then train adapters alone."""

    def __init__(self, kind: denoiser.Kind, work: Path, style: Path, seed: int):
        self.kind, self.work, self.seed = kind, work, seed
        vae, self.sets = autoencoder.load(work, kind.vae), {}
        for name in ("train", "validation"):
            pixels, captions = read_set(style / name)
            with torch.no_grad():
                posterior = vae.encode(pixels).latent_dist
            mean = denoiser.normal(vae, posterior.mean)
            self.sets[name] = (mean, posterior.std * vae.config.scaling_factor, denoiser.encode_all(kind, work, captions))
        self.empty = denoiser.encode_all(kind, work, [""])

    def batch(self, count: int, draw: torch.Generator):
        mean, deviation, said = self.sets["train"]
        at = torch.randint(len(mean), (count,), generator=draw)
        x = mean[at] + deviation[at] * torch.randn(mean[at].shape, generator=draw)
        conditioning = {name: rows[at].clone() for name, rows in said.items()}
        self.kind.drop(conditioning, self.empty, torch.rand(count, generator=draw) < 0.1, draw)
        return x, conditioning

    @torch.no_grad()
    def validate(self, model) -> float:
        """Mean loss of the held-out pairs with sixteen fixed draws of times and noise."""
        mean, _, said = self.sets["validation"]
        draw = torch.Generator().manual_seed(5)
        return sum(float(self.kind.loss(model, mean, said, draw)) for _ in range(16)) / 16

    def run(self, rank: int, steps: int, batch: int, rate: float) -> dict:
        torch.manual_seed(self.seed)
        model = denoiser.load(self.kind, self.work)
        before = self.validate(model)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
        adapters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(adapters, lr=rate, weight_decay=0.0)
        start, losses = time.time(), []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, rate, 10)
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            x, conditioning = self.batch(batch, draw)
            loss = self.kind.loss(model, x, conditioning, draw)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        spent = time.time() - start
        after = self.validate(model.eval())
        self.draw_sheet(model)
        result = {"rank": rank, "steps": steps, "batch": batch, "rate": rate, "adapter_parameters": sum(p.numel() for p in adapters)}
        return result | {"seconds": round(spent, 1), "first": round(sum(losses[:20]) / 20, 4), "last": round(sum(losses[-20:]) / 20, 4), "validation": (round(before, 4), round(after, 4))}

    def draw_sheet(self, model) -> None:
        """Rows: the base with the trigger, the LoRA with the trigger, the LoRA on plain captions."""
        base = denoiser.load(self.kind, self.work)
        prompts, plain = [f"{scenes.TRIGGER}, {p}" for p in PROMPTS], [f"{p}, on a cream background" for p in PROMPTS]
        rows = [(base, prompts), (model, prompts), (model, plain)]
        page = [autoencoder.to_picture(v) for m, said in rows for v in denoiser.paint(self.kind, m, self.work, said, 11)]
        scenes.sheet(page, len(PROMPTS), self.work / f"{self.kind.name}-lora.png")
