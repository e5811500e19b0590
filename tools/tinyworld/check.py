"""Does the base obey its captions, and does it feel a wrong recipe? Numbers, not opinions."""

import itertools
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import autoencoder, denoiser, scenes, text, words
from .sd3 import Sd3

KINDS = list(itertools.product(scenes.SHAPES, scenes.COLOURS, scenes.PLACES))


def templates(background: str) -> torch.Tensor:
    """[432, 3, 64, 64]: every shape in every colour at every place, drawn without jitter."""
    rng = random.Random(0)
    drawn = [scenes.draw(rng, scenes.Scene((scenes.Thing(s, c, "", p),), background), 0.0) for s, c, p in KINDS]
    return shrunk(torch.from_numpy(np.stack([scenes.pixels_of(d) for d in drawn])).float() / 127.5 - 1.0)


def shrunk(pixels):
    return F.avg_pool2d(pixels, 2)


def nearest(picture: torch.Tensor, known: torch.Tensor) -> tuple[str, str, str]:
    """The template nearest in squared error, the picture moved by up to 6 pixels each way."""
    small, best = shrunk(picture[None]), []
    for dy, dx in itertools.product(range(-3, 4), repeat=2):
        moved = torch.roll(small, (dy, dx), dims=(2, 3))
        best.append((known - moved)[..., 4:-4, 4:-4].square().mean(dim=(1, 2, 3)))
    return KINDS[int(torch.stack(best).min(dim=0).values.argmin())]


def obeyed(kind: denoiser.Kind, work: Path, seed: int, count: int = 60) -> dict:
    """Shares of single-thing samples whose nearest template has the captioned shape, colour, place;
    the same for true pictures, which is the best that this judge can say."""
    rng = random.Random(f"{seed} obeyed")
    grounds = list(scenes.BACKGROUNDS)
    known = {g: templates(g) for g in grounds}
    asked = []
    while len(asked) < count:
        scene = scenes.Scene((scenes.Thing(rng.choice(scenes.SHAPES), rng.choice(list(scenes.COLOURS)), "", rng.choice(scenes.PLACES)),), grounds[len(asked) % 5])
        said, _, unsaid = scenes.caption(rng, scene)
        if not unsaid:
            asked.append((scene, said))
    made = denoiser.paint(kind, denoiser.load(kind, work), work, [c for _, c in asked], seed + 1)
    true = [torch.from_numpy(scenes.pixels_of(scenes.draw(rng, scene))).float() / 127.5 - 1.0 for scene, _ in asked]
    result = {}
    for name, pictures in (("samples", made), ("true pictures", true)):
        found = [nearest(p, known[scene.background]) for p, (scene, _) in zip(pictures, asked)]
        want = [(s.things[0].shape, s.things[0].colour, s.things[0].place) for s, _ in asked]
        right = np.array([[a == b for a, b in zip(f, w)] for f, w in zip(found, want)])
        result[name] = {"shape": right[:, 0].mean(), "colour": right[:, 1].mean(), "place": right[:, 2].mean(), "all": right.all(axis=1).mean()}
    scenes.sheet([autoencoder.to_picture(v) for v in made[:40]], 10, work / f"{kind.name}-obeyed.png")
    (work / f"{kind.name}-obeyed.txt").write_text("\n".join(c for _, c in asked) + "\n")
    return {k: {n: round(float(x), 3) for n, x in v.items()} for k, v in result.items()}


class Variant:
    """One way of computing the conditioning; the reference unless a keyword says otherwise."""

    def __init__(self, t5_length=77, bang_is_pad=False, g_pad=None, l_act=None, layer=-2, final_norm=False, zero_t5_pads=False):
        self.t5_length, self.bang_is_pad, self.g_pad, self.l_act = t5_length, bang_is_pad, g_pad, l_act
        self.layer, self.final_norm, self.zero_t5_pads = layer, final_norm, zero_t5_pads

    def clip_rows(self, encoder, ids):
        out = encoder(ids, output_hidden_states=True)
        rows = out.hidden_states[self.layer]
        return (encoder.text_model.final_layer_norm(rows) if self.final_norm else rows), out.text_embeds

    @torch.no_grad()
    def encode(self, work: Path, world: words.Words, captions):
        encoders = text.load(work)
        l, g, t = world.ids(captions, self.t5_length)
        pads = (l == l.max()).cumsum(dim=1) > 1
        if self.g_pad is not None:
            g = g.masked_fill(pads, self.g_pad)
        if self.bang_is_pad:
            g = g.masked_fill(g == world.clip.convert_tokens_to_ids("!</w>"), 0)
        if self.l_act:
            from transformers.activations import ACT2FN

            for layer in encoders.l.text_model.encoder.layers:
                layer.mlp.activation_fn = ACT2FN[self.l_act]
        (l_rows, l_pooled), (g_rows, g_pooled) = self.clip_rows(encoders.l, l), self.clip_rows(encoders.g, g)
        t_rows = encoders.t(t).last_hidden_state
        if self.zero_t5_pads:
            t_rows = t_rows * (t != 0)[..., None]
        both = torch.cat([l_rows, g_rows], dim=-1)
        both = F.pad(both, (0, t_rows.shape[-1] - both.shape[-1]))
        return torch.cat([both, t_rows], dim=1), torch.cat([l_pooled, g_pooled], dim=-1)


VARIANTS = {
    "T5 length 76": Variant(t5_length=76),
    "T5 length 154": Variant(t5_length=154),
    "T5 length 256": Variant(t5_length=256),
    "T5 pads zeroed": Variant(zero_t5_pads=True),
    "CLIP-G ! as 0": Variant(bang_is_pad=True),
    "CLIP-G padded with its end": Variant(g_pad=813),
    "CLIP-L erf gelu": Variant(l_act="gelu"),
    "CLIP last layer": Variant(layer=-1),
    "CLIP final norm": Variant(final_norm=True),
}


@torch.no_grad()
def sensitivity(work: Path, seed: int, count: int = 128) -> dict:
    """How much worse the tiny SD3 predicts under each wrong recipe: mean paired difference and its error.
    Same pictures, noise and times for all."""
    rng = random.Random(f"{seed} sensitivity")
    kind = Sd3()
    model, vae, world = denoiser.load(kind, work), autoencoder.load(work), words.Words(work)
    drawn = [scenes.random_scene(rng) for _ in range(count)]
    captions = [scenes.caption(rng, scene)[0] for scene in drawn]
    captions = [c.rstrip(".!") + ("!" if k % 2 else "") for k, c in enumerate(captions)]
    pixels = autoencoder.to_signed(torch.from_numpy(np.stack([scenes.pixels_of(scenes.draw(rng, s)) for s in drawn])))
    x = torch.cat([denoiser.normal(vae, vae.encode(p).latent_dist.mean) for p in pixels.split(32)])

    def losses(variant):
        context, pooled = variant.encode(work, world, captions)
        draw = torch.Generator().manual_seed(seed)
        parts = zip(x.split(32), context.split(32), pooled.split(32))
        return torch.cat([kind.loss(model, x, {"context": c, "pooled": p}, draw, reduce=False) for x, c, p in parts])

    reference = losses(Variant())
    result = {"reference": (round(float(reference.mean()), 4), 0.0)}
    for name, variant in VARIANTS.items():
        worse = losses(variant) - reference
        result[name] = (round(float(worse.mean()), 5), round(float(worse.std()) / count**0.5, 5))
    return result
