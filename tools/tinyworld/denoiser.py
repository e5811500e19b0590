"""What the denoisers of all tiny worlds share: their material, the training loop, the sheets of samples.
Each network, its conditioning, its loss and its sampler are a `Kind`: `sd3.py`, `flux.py`, `sdxl.py`."""

import random
from pathlib import Path

import numpy as np
import torch

from . import autoencoder, scenes, text, words
from .steps import Averaged, Progress, average_gradients, load_state, rate_at, round_to_half, save_state, together

PICTURES, SAYINGS = 6144, 2
BATCH, WARM_UP = 32, 100
DROPPED = 0.1


class Kind:
    """One denoiser. Conditioning is a dictionary of tensors, one row per caption."""

    name: str
    vae: str  # the folder of its autoencoder
    steps: int
    peak: float
    # For most of the training the rows of padding are cut short, which costs a fraction; the last `whole`
    # steps see every row, as every later user does, perhaps in smaller batches.
    whole: int
    whole_batch: int = BATCH

    def make(self) -> torch.nn.Module:
        raise NotImplementedError

    def start(self, work: Path) -> torch.nn.Module:
        """The network as its training begins."""
        return self.make()

    def encode(self, encoders: text.Encoders, world: words.Words, captions: list[str]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def short(self, conditioning: dict) -> dict:
        return conditioning

    def drop(self, conditioning: dict, empty: dict, dropped: torch.Tensor, draw: torch.Generator) -> None:
        for name, rows in conditioning.items():
            rows[dropped] = empty[name].to(rows.dtype)

    def loss(self, model, x, conditioning: dict, draw: torch.Generator, reduce: bool = True) -> torch.Tensor:
        raise NotImplementedError

    def lesson(self, model, x, conditioning: dict, draw: torch.Generator) -> torch.Tensor:
        """What its training makes small, where that is not `loss`."""
        return self.loss(model, x, conditioning, draw)

    def sample(self, model, conditioning: dict, empty: dict, noise, guidance: float) -> torch.Tensor:
        """Latents as the denoiser sees them."""
        raise NotImplementedError

    def scheduler(self):
        raise NotImplementedError


@torch.no_grad()
def encode_all(kind: Kind, work: Path, captions: list[str]) -> dict[str, torch.Tensor]:
    encoders, world = text.load(work), words.Words(work)
    parts = [kind.encode(encoders, world, captions[at : at + 64]) for at in range(0, len(captions), 64)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def scenes_and_captions(seed: int):
    rng = random.Random(f"{seed} material")
    drawn = [scenes.random_scene(rng) for _ in range(PICTURES)]
    return drawn, [scenes.caption(rng, scene)[0] for scene in drawn for _ in range(SAYINGS)]


@torch.no_grad()
def said(kind: Kind, work: Path, seed: int) -> dict:
    """The short conditioning of all captions in f16; kept."""
    kept = work / f"{kind.name}-said.state"
    if found := load_state(kept):
        return found
    encoders, world, parts = text.load(work), words.Words(work), []
    _, captions = scenes_and_captions(seed)
    for at in range(0, len(captions), 64):
        short = kind.short(kind.encode(encoders, world, captions[at : at + 64]))
        parts.append({name: rows.half() for name, rows in short.items()})
    save_state(kept, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    print(f"{kind.name}: {len(captions)} captions encoded", flush=True)
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
def seen(kind: Kind, work: Path, seed: int) -> dict:
    """Latents (normalised mean and deviation) of all pictures, in f16; kept."""
    kept = work / f"{kind.vae}-seen.state"
    if found := load_state(kept):
        return found
    vae, means, deviations = autoencoder.load(work, kind.vae), [], []
    for part in pictures(work, seed).split(32):
        posterior = vae.encode(autoencoder.to_signed(part)).latent_dist
        means.append(normal(vae, posterior.mean).half())
        deviations.append((posterior.std * vae.config.scaling_factor).half())
    save_state(kept, mean=torch.cat(means), deviation=torch.cat(deviations))
    print(f"{kind.name}: {PICTURES} pictures encoded", flush=True)
    return load_state(kept)


def normal(vae, latents):
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def plain(vae, latents):
    return latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)


class Batches:
    """Latents and conditioning, with a tenth of the captions dropped: a function of the step's number."""

    def __init__(self, kind: Kind, work: Path, seed: int):
        self.kind, self.seed = kind, seed
        self.said, self.seen = said(kind, work, seed), seen(kind, work, seed)
        self.captions = scenes_and_captions(seed)[1]
        self.encoders, self.world = text.load(work), words.Words(work)
        self.empty = encode_all(kind, work, [""])

    def get(self, step: int, share: slice):
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        at = torch.randint(PICTURES, (BATCH,), generator=draw)
        said = at * SAYINGS + torch.randint(SAYINGS, (BATCH,), generator=draw)
        mean = self.seen["mean"][at].float()
        x = mean + self.seen["deviation"][at].float() * torch.randn(mean.shape, generator=draw)
        dropped = torch.rand(BATCH, generator=draw) < DROPPED
        empty = self.empty
        if step < self.kind.steps - self.kind.whole:
            conditioning, empty = {name: rows[said].float() for name, rows in self.said.items()}, self.kind.short(empty)
        else:
            x, said, dropped = (part[: self.kind.whole_batch] for part in (x, said, dropped))
            with torch.no_grad():
                conditioning = self.kind.encode(self.encoders, self.world, [self.captions[k] for k in said])
        self.kind.drop(conditioning, empty, dropped, draw)
        return x[share], {name: rows[share] for name, rows in conditioning.items()}, draw


def train(kind: Kind, work: Path, seed: int, processes: int = 2) -> torch.nn.Module:
    said(kind, work, seed), seen(kind, work, seed)
    together(processes, (work / f"{kind.name}.meet").absolute(), teach, kind, work, seed)
    return load(kind, work)


def teach(rank: int, processes: int, kind: Kind, work: Path, seed: int) -> None:
    """The training loop of one process: the same weights and batches in all, each with its share."""
    batches = Batches(kind, work, seed)
    torch.manual_seed(seed + 2)
    model, state_file = kind.start(work).train(), work / f"{kind.name}.state"
    averaged = Averaged(model, 0.997)
    vectors = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=kind.peak, betas=(0.9, 0.98))
    first = 0
    if state := load_state(state_file):
        first = state["step"]
        model.load_state_dict(state["model"])
        averaged.module.load_state_dict(state["averaged"])
        averaged.count = first
        optimizer.load_state_dict(state["optimizer"])
    progress = Progress(kind.name, kind.steps, 50, first)
    for step in range(first, kind.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, kind.steps, kind.peak, WARM_UP)
        x, conditioning, draw = batches.get(step, slice(rank, None, processes))
        loss = kind.lesson(model, x, conditioning, draw)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        average_gradients(matrices + vectors, processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update(model)
        if rank:
            continue
        progress.tell(step, float(loss.detach()))
        if (step + 1) % 250 == 0:
            save_state(state_file, step=step + 1, model=model.state_dict(), averaged=averaged.module.state_dict(), optimizer=optimizer.state_dict())
        if (step + 1) % 1000 == 0:
            look(kind, averaged.module, work, seed)
    if rank == 0:
        print(f"{kind.name}: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
        look(kind, averaged.module, work, seed)
        round_to_half(averaged.module).half().save_pretrained(work / f"{kind.name}-denoiser", safe_serialization=True)


def load(kind: Kind, work: Path) -> torch.nn.Module:
    made = type(kind.make())
    return made.from_pretrained(work / f"{kind.name}-denoiser", torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def paint(kind: Kind, model, work: Path, captions: list[str], seed: int, guidance: float = 3.5) -> torch.Tensor:
    """Pixels in [-1, 1] of a sample for each caption."""
    vae = autoencoder.load(work, kind.vae)
    noise = torch.randn(len(captions), vae.config.latent_channels, 16, 16, generator=torch.Generator().manual_seed(seed))
    latents = kind.sample(model, encode_all(kind, work, captions), encode_all(kind, work, [""]), noise, guidance)
    return vae.decode(plain(vae, latents)).sample.clamp(-1, 1)


def look(kind: Kind, model, work: Path, seed: int) -> None:
    """A sheet of samples, one in each pair beside the true picture of its scene."""
    model.eval()
    rng = random.Random(f"{seed} look at samples")
    drawn = [scenes.random_scene(rng) for _ in range(16)]
    captions = [scenes.caption(rng, scene)[0] for scene in drawn]
    made = paint(kind, model, work, captions, seed)
    page = [p for scene, pixels in zip(drawn, made) for p in (scenes.draw(rng, scene), autoencoder.to_picture(pixels))]
    scenes.sheet(page, 8, work / f"{kind.name}.png")
    (work / f"{kind.name}.txt").write_text("\n".join(captions) + "\n")
    model.train()


# --- rectified flow, which two of the three share --------------------------------------------------

SHIFT = 3.0


def sigmas(count: int, draw: torch.Generator) -> torch.Tensor:
    """Logit-normal times shifted like the sampler's, one in five uniform so that no time is never met."""
    t = torch.sigmoid(torch.randn(count, generator=draw))
    t = SHIFT * t / (1.0 + (SHIFT - 1.0) * t)
    return torch.where(torch.rand(count, generator=draw) < 0.2, torch.rand(count, generator=draw), t)


def flow_parts(x, draw: torch.Generator):
    """Times, noisy latents and the velocity to predict."""
    sigma, noise = sigmas(len(x), draw), torch.randn(x.shape, generator=draw)
    s = sigma[:, None, None, None]
    return sigma, (1 - s) * x + s * noise, noise - x


def mean_square(guess, target, reduce: bool):
    each = (guess - target).square().mean(dim=(1, 2, 3))
    return each.mean() if reduce else each
