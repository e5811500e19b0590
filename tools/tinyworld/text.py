"""The three text encoders: SD3's kinds, small, taught for a few minutes to say what a caption describes.

The lesson is text only: from each encoder's outputs a linear read-out must name every attribute of
the scene. After it the encoders are frozen; the read-outs are thrown away.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from . import scenes, words
from .steps import Averaged, Progress, load_state, rate_at, round_to_half, save_state

STEPS, BATCH, PEAK, WARM_UP = 1100, 64, 2.0e-3, 60
L_WIDTH, G_WIDTH, T5_WIDTH = 48, 64, 128
NONE = "-"
# What a read-out must name: twice a thing's four attributes, then the background.
FIELDS = [
    *[[NONE, *scenes.SHAPES], [NONE, *scenes.COLOURS], [NONE, *scenes.SIZES], [NONE, *scenes.PLACES]] * 2,
    [NONE, *scenes.BACKGROUNDS],
]


def clip(vocabulary: int, width: int, heads: int, layers: int, act: str) -> CLIPTextModelWithProjection:
    """The legacy ids 0 / 2 / 1 are those of every published SD3 folder (none is a tokenizer's id)."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=words.CLIP_LENGTH,
        hidden_act=act,
        layer_norm_eps=1e-5,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def t5(vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=T5_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


class Encoders(nn.Module):
    """The three encoders and SD3's way of putting their outputs together."""

    def __init__(self, l, g, t):
        super().__init__()
        self.l, self.g, self.t = l, g, t

    def raw(self, ids):
        """Penultimate CLIP rows without the final norm, pooled rows, T5 rows."""
        l = self.l(ids[0], output_hidden_states=True)
        g = self.g(ids[1], output_hidden_states=True)
        t = self.t(ids[2]).last_hidden_state
        return l.hidden_states[-2], l.text_embeds, g.hidden_states[-2], g.text_embeds, t

    def forward(self, ids):
        """context [B, 77 + T, D] and pooled [B, L + G]: CLIP rows first, zero-padded to T5's width."""
        l, l_pooled, g, g_pooled, t = self.raw(ids)
        both = torch.cat([l, g], dim=-1)
        both = F.pad(both, (0, t.shape[-1] - both.shape[-1]))
        return torch.cat([both, t], dim=1), torch.cat([l_pooled, g_pooled], dim=-1)


def fresh(world: words.Words) -> Encoders:
    clip_size, t5_size = len(world.clip), len(world.t5)
    both = Encoders(clip(clip_size, L_WIDTH, 3, 3, "quick_gelu"), clip(clip_size, G_WIDTH, 4, 3, "gelu"), t5(t5_size))
    with torch.no_grad():
        both.l.text_projection.weight.copy_(torch.eye(L_WIDTH))
    both.l.text_projection.requires_grad_(False)
    return both


class ReadOuts(nn.Module):
    """One linear read-out for each output that the denoiser will see."""

    def __init__(self):
        super().__init__()
        names = sum(len(field) for field in FIELDS)
        widths = {"l": L_WIDTH, "l_end": L_WIDTH, "g": G_WIDTH, "g_end": G_WIDTH, "t_end": T5_WIDTH, "t_mean": T5_WIDTH}
        self.heads = nn.ModuleDict({name: nn.Linear(width, names) for name, width in widths.items()})

    def forward(self, raw, ids):
        l, l_pooled, g, g_pooled, t = raw
        row = torch.arange(len(l))
        clip_end, t5_end = ids[0].argmax(dim=-1), (ids[2] == 1).int().argmax(dim=-1)
        seen = {"l": l_pooled, "l_end": l[row, clip_end], "g": g_pooled, "g_end": g[row, clip_end], "t_end": t[row, t5_end], "t_mean": t.mean(dim=1)}
        return {name: self.heads[name](value) for name, value in seen.items()}


def targets(things, unsaid, background) -> list[int]:
    """The class of each field; what the caption leaves open is class 0."""
    said = []
    for k in range(2):
        if k >= len(things):
            said += [NONE] * 4
            continue
        thing = things[k]
        said += [thing.shape, thing.colour, thing.size, NONE if "place" in unsaid else thing.place]
    said.append(NONE if "background" in unsaid else background)
    return [field.index(name) for field, name in zip(FIELDS, said)]


def lesson(rng, count: int) -> tuple[list[str], torch.Tensor]:
    captions, classes = [], []
    for _ in range(count):
        scene = scenes.random_scene(rng, two=0.5)
        text, things, unsaid = scenes.caption(rng, scene)
        captions.append(words.with_chaff(rng, text) if rng.random() < 0.25 else text)
        classes.append(targets(things, unsaid, scene.background))
    return captions, torch.tensor(classes)


def loss_of(logits, classes):
    """Mean cross-entropy over read-outs and fields; the share of scenes read without any error."""
    total, exact = 0.0, {}
    for name, values in logits.items():
        parts = values.split([len(field) for field in FIELDS], dim=-1)
        total = total + sum(F.cross_entropy(part, classes[:, k]) for k, part in enumerate(parts)) / len(FIELDS)
        right = torch.stack([part.argmax(-1) == classes[:, k] for k, part in enumerate(parts)]).all(dim=0)
        exact[name] = float(right.float().mean())
    return total / len(logits), exact


def train(work: Path, seed: int) -> Encoders:
    torch.manual_seed(seed + 1)
    world = words.Words(work)
    encoders, heads, state_file = fresh(world).eval(), ReadOuts(), work / "text.state"
    both = nn.ModuleList([encoders, heads])
    for name in ("l", "g", "t"):
        print(f"text encoder {name}: {sum(p.numel() for p in getattr(encoders, name).parameters())} parameters", flush=True)
    averaged = Averaged(both, 0.99)
    optimizer = torch.optim.AdamW([p for p in both.parameters() if p.requires_grad], lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if state := load_state(state_file):
        first = state["step"]
        both.load_state_dict(state["model"])
        averaged.module.load_state_dict(state["averaged"])
        averaged.count = first
        optimizer.load_state_dict(state["optimizer"])
    progress = Progress("text", STEPS, 50, first)
    for step in range(first, STEPS):
        captions, classes = lesson(random.Random(f"{seed} lesson {step}"), BATCH)
        ids = world.ids(captions)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, STEPS, PEAK, WARM_UP)
        loss, exact = loss_of(heads(encoders.raw(ids), ids), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        averaged.update(both)
        progress.tell(step, float(loss.detach()), " ".join(f"{k} {v:.2f}" for k, v in exact.items()))
        if (step + 1) % 250 == 0:
            save_state(state_file, step=step + 1, model=both.state_dict(), averaged=averaged.module.state_dict(), optimizer=optimizer.state_dict())
    encoders, heads = round_to_half(averaged.module)
    captions, classes = lesson(random.Random(f"{seed} exam"), 512)
    ids = world.ids(captions)
    with torch.no_grad():
        _, exact = loss_of(heads(encoders.raw(ids), ids), classes)
    print("text: whole scene read without error:", exact, flush=True)
    for name, part in (("text_encoder", encoders.l), ("text_encoder_2", encoders.g), ("text_encoder_3", encoders.t)):
        part.half().save_pretrained(work / name, safe_serialization=True)
    return load(work)


def load(work: Path) -> Encoders:
    return (
        Encoders(
            CLIPTextModelWithProjection.from_pretrained(work / "text_encoder", dtype=torch.float32),
            CLIPTextModelWithProjection.from_pretrained(work / "text_encoder_2", dtype=torch.float32),
            T5EncoderModel.from_pretrained(work / "text_encoder_3", dtype=torch.float32),
        )
        .eval()
        .requires_grad_(False)
    )
