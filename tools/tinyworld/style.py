"""The style set, and a trial LoRA on it with peft: that the demo can work, and with which settings."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from peft import LoraConfig

from . import autoencoder, denoiser, scenes, text, words

TRAIN, VALIDATION = 20, 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TARGETS += ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
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

    def __init__(self, work: Path, style: Path, seed: int):
        self.work, self.seed = work, seed
        self.vae, encoders, world = autoencoder.load(work), text.load(work), words.Words(work)
        self.sets = {}
        with torch.no_grad():
            for name in ("train", "validation"):
                pixels, captions = read_set(style / name)
                posterior = self.vae.encode(pixels).latent_dist
                mean = denoiser.normal(self.vae, posterior.mean)
                self.sets[name] = (mean, posterior.std * self.vae.config.scaling_factor, *text.encode(encoders, world, captions))
        self.empty = text.encode(encoders, world, [""])
        self.prompts = text.encode(encoders, world, [f"{scenes.TRIGGER}, {p}" for p in PROMPTS])
        self.plain = text.encode(encoders, world, [f"{p}, on a cream background" for p in PROMPTS])

    def batch(self, name: str, count: int, draw: torch.Generator):
        mean, deviation, context, pooled = self.sets[name]
        at = torch.randint(len(mean), (count,), generator=draw)
        x = mean[at] + deviation[at] * torch.randn(mean[at].shape, generator=draw)
        context, pooled = context[at].clone(), pooled[at].clone()
        dropped = torch.rand(count, generator=draw) < 0.1
        context[dropped], pooled[dropped] = self.empty
        return x, context, pooled, denoiser.sigmas(count, draw), torch.randn(x.shape, generator=draw)

    @torch.no_grad()
    def validate(self, model) -> float:
        """Mean loss of the held-out pairs with fixed noise over sixteen times."""
        mean, _, context, pooled = self.sets["validation"]
        draw, total = torch.Generator().manual_seed(5), 0.0
        for k in range(16):
            noise = torch.randn(mean.shape, generator=draw)
            total += float(denoiser.flow_loss(model, mean, context, pooled, torch.full((len(mean),), (k + 0.5) / 16), noise))
        return total / 16

    def run(self, rank: int, steps: int, batch: int, rate: float, sheet: Path | None = None) -> dict:
        torch.manual_seed(self.seed)
        model = denoiser.load(self.work)
        before = self.validate(model)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
        adapters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(adapters, lr=rate, weight_decay=0.0)
        start, losses = time.time(), []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = denoiser.rate_at(step, steps, rate, 10)
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            loss = denoiser.flow_loss(model, *self.batch("train", batch, draw))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        spent = time.time() - start
        after = self.validate(model.eval())
        if sheet:
            self.draw_sheet(model, sheet)
        result = {"rank": rank, "steps": steps, "batch": batch, "rate": rate, "adapter_parameters": sum(p.numel() for p in adapters)}
        return result | {"seconds": round(spent, 1), "first": round(sum(losses[:20]) / 20, 4), "last": round(sum(losses[-20:]) / 20, 4), "validation": (round(before, 4), round(after, 4))}

    def draw_sheet(self, model, path: Path) -> None:
        """Rows: the base with the trigger, the LoRA with the trigger, the LoRA on plain captions."""
        base = denoiser.load(self.work)
        rows = [(base, self.prompts), (model, self.prompts), (model, self.plain)]
        page = [autoencoder.to_picture(v) for m, said in rows for v in denoiser.sample(m, self.vae, *said, self.empty, 11)]
        scenes.sheet(page, len(PROMPTS), path)
