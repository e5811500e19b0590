"""The denoiser: diffusers' SD3Transformer2DModel, 2.3 M parameters, trained on the frozen encoders'
exact conditioning by rectified flow."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from . import autoencoder, scenes, text, words
from .steps import Averaged, Progress, average_gradients, load_state, rate_at, round_to_half, save_state, together

PICTURES, SAYINGS = 6144, 2
STEPS, BATCH, PEAK, WARM_UP = 6500, 32, 1.5e-3, 100
# For most of the training the rows of padding are cut short, which costs half as much; the last WHOLE
# steps see every row, as every later user does.
CLIP_ROWS, T5_ROWS, WHOLE = 32, 36, 800
DROPPED = 0.1
SHIFT = 3.0


def make() -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=text.T5_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=text.L_WIDTH + text.G_WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )
    # The usual start of a diffusion transformer: linears keep their input's size (the encoders' rows
    # are large: theirs is cut), every residual branch and the output begin at zero.
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.zeros_(module.bias)
            if name.startswith(("norm_out", "proj_out")) or "norm1" in name:
                torch.nn.init.zeros_(module.weight)
            else:
                large = name.startswith(("context_embedder", "time_text_embed.text_embedder.linear_2"))
                torch.nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), gain=0.3 if large else 1.0)
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def scenes_and_captions(seed: int):
    rng = random.Random(f"{seed} material")
    drawn = [scenes.random_scene(rng) for _ in range(PICTURES)]
    return drawn, [scenes.caption(rng, scene)[0] for scene in drawn for _ in range(SAYINGS)]


@torch.no_grad()
def said(work: Path, seed: int) -> dict:
    """The conditioning of all captions and of the empty one, in f16; kept."""
    kept = work / "said.state"
    if found := load_state(kept):
        return found
    encoders, world, context, pooled = text.load(work), words.Words(work), [], []
    _, captions = scenes_and_captions(seed)
    for at in range(0, len(captions), 512):
        c, p = text.encode(encoders, world, captions[at : at + 512])
        context.append(c.half())
        pooled.append(p.half())
    empty = text.encode(encoders, world, [""])
    found = {"context": torch.cat(context), "pooled": torch.cat(pooled)}
    save_state(kept, **found, empty_context=empty[0][0].half(), empty_pooled=empty[1][0].half())
    print(f"denoiser: {len(captions)} captions encoded", flush=True)
    return load_state(kept)


def pictures(work: Path, seed: int) -> torch.Tensor:
    """[N, 3, H, W] bytes of all scenes; kept."""
    kept = work / "drawn.state"
    if found := load_state(kept):
        return found["pictures"]
    drawn, rng = scenes_and_captions(seed)[0], random.Random(f"{seed} pictures")
    save_state(kept, pictures=torch.from_numpy(np.stack([scenes.pixels_of(scenes.draw(rng, scene)) for scene in drawn])))
    return load_state(kept)["pictures"]


@torch.no_grad()
def seen(work: Path, seed: int) -> dict:
    """Latents (normalised mean and deviation) of all pictures, in f16; kept."""
    kept = work / "seen.state"
    if found := load_state(kept):
        return found
    vae, means, deviations = autoencoder.load(work), [], []
    for part in pictures(work, seed).split(32):
        posterior = vae.encode(autoencoder.to_signed(part)).latent_dist
        means.append(normal(vae, posterior.mean).half())
        deviations.append((posterior.std * vae.config.scaling_factor).half())
    save_state(kept, mean=torch.cat(means), deviation=torch.cat(deviations))
    print(f"denoiser: {PICTURES} pictures encoded", flush=True)
    return load_state(kept)


def material(work: Path, seed: int) -> dict:
    return said(work, seed) | seen(work, seed)


def normal(vae, latents):
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def sigmas(count: int, draw: torch.Generator) -> torch.Tensor:
    """Logit-normal times shifted like the sampler's, one in five uniform so that no time is never met."""
    t = torch.sigmoid(torch.randn(count, generator=draw))
    t = SHIFT * t / (1.0 + (SHIFT - 1.0) * t)
    return torch.where(torch.rand(count, generator=draw) < 0.2, torch.rand(count, generator=draw), t)


def batch_of(found, seed: int, step: int):
    """Latents, conditioning with a tenth of the captions dropped, times and noise of one step."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    at = torch.randint(len(found["mean"]), (BATCH,), generator=draw)
    said = at * SAYINGS + torch.randint(SAYINGS, (BATCH,), generator=draw)
    mean = found["mean"][at].float()
    x = mean + found["deviation"][at].float() * torch.randn(mean.shape, generator=draw)
    rows = slice(None)
    if step < STEPS - WHOLE:
        rows = [*range(CLIP_ROWS), *range(words.CLIP_LENGTH, words.CLIP_LENGTH + T5_ROWS)]
    context, pooled = found["context"][said][:, rows].float(), found["pooled"][said].float()
    dropped = torch.rand(BATCH, generator=draw) < DROPPED
    context[dropped], pooled[dropped] = found["empty_context"][rows].float(), found["empty_pooled"].float()
    return x, context, pooled, sigmas(BATCH, draw), torch.randn(x.shape, generator=draw)


def flow_loss(model, x, context, pooled, sigma, noise, reduce: bool = True):
    s = sigma[:, None, None, None]
    guess = model((1 - s) * x + s * noise, context, pooled, sigma * 1000.0, return_dict=False)[0]
    return F.mse_loss(guess, noise - x) if reduce else (guess - (noise - x)).square().mean(dim=(1, 2, 3))


def train(work: Path, seed: int, processes: int = 2) -> SD3Transformer2DModel:
    material(work, seed)
    together(processes, (work / "meet").absolute(), teach, work, seed)
    return load(work)


def teach(rank: int, processes: int, work: Path, seed: int) -> None:
    """The training loop of one process: the same weights and batches in all, each with its share."""
    found = material(work, seed)
    torch.manual_seed(seed + 2)
    model, state_file = make().train(), work / "denoiser.state"
    averaged = Averaged(model, 0.997)
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98))
    first = 0
    if state := load_state(state_file):
        first = state["step"]
        model.load_state_dict(state["model"])
        averaged.module.load_state_dict(state["averaged"])
        averaged.count = first
        optimizer.load_state_dict(state["optimizer"])
    progress = Progress("denoiser", STEPS, 50, first)
    for step in range(first, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, STEPS, PEAK, WARM_UP)
        loss = flow_loss(model, *(part[rank::processes] for part in batch_of(found, seed, step)))
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        average_gradients(matrices + plain, processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update(model)
        if rank:
            continue
        progress.tell(step, float(loss.detach()))
        if (step + 1) % 250 == 0:
            save_state(state_file, step=step + 1, model=model.state_dict(), averaged=averaged.module.state_dict(), optimizer=optimizer.state_dict())
        if (step + 1) % 500 == 0:
            look(averaged.module, work, seed)
    if rank == 0:
        print(f"denoiser: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
        round_to_half(averaged.module).half().save_pretrained(work / "transformer", safe_serialization=True)
        scheduler().save_pretrained(work / "scheduler")


def load(work: Path) -> SD3Transformer2DModel:
    return SD3Transformer2DModel.from_pretrained(work / "transformer", torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def sample(model, vae, context, pooled, empty, seed: int, steps: int = 24, guidance: float = 3.5) -> torch.Tensor:
    """Flow Euler with guidance against the encoded empty caption; pixels in [-1, 1]."""
    clock = scheduler()
    clock.set_timesteps(steps)
    x = torch.randn(len(context), 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([context, empty[0].expand(len(context), -1, -1)])
    pooled = torch.cat([pooled, empty[1].expand(len(pooled), -1)])
    for t in clock.timesteps:
        with_caption, without = model(torch.cat([x, x]), context, pooled, t.expand(2 * len(x)), return_dict=False)[0].chunk(2)
        x = clock.step(without + guidance * (with_caption - without), t, x, return_dict=False)[0]
    return vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample.clamp(-1, 1)


def look(model, work: Path, seed: int, name: str = "samples") -> None:
    """A sheet of samples, one in each pair beside the true picture of its scene."""
    model.eval()
    rng = random.Random(f"{seed} look at samples")
    vae, encoders, world = autoencoder.load(work), text.load(work), words.Words(work)
    drawn = [scenes.random_scene(rng) for _ in range(16)]
    captions = [scenes.caption(rng, scene)[0] for scene in drawn]
    made = sample(model, vae, *text.encode(encoders, world, captions), text.encode(encoders, world, [""]), seed)
    page = [p for scene, pixels in zip(drawn, made) for p in (scenes.draw(rng, scene), autoencoder.to_picture(pixels))]
    scenes.sheet(page, 8, work / f"{name}.png")
    (work / f"{name}.txt").write_text("\n".join(captions) + "\n")
    model.train()
