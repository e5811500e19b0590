"""The autoencoder: SD3's kind (16 channels, factor 8, no quant convolutions, attention in the middle), small."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from . import scenes
from .steps import Averaged, Progress, average_gradients, load_state, rate_at, round_to_half, save_state, together

PICTURES, STEPS, BATCH, PEAK, WARM_UP = 4096, 3800, 8, 2.0e-3, 50
CROP, WHOLE = 64, 60  # most steps see a crop, the last WHOLE steps whole pictures
KL = 1.0e-3  # nats of one latent number against the pixel losses


def make() -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 48),
        layers_per_block=1,
        act_fn="silu",
        latent_channels=16,
        # Few and wide groups: the last norm sees 16 channels, and a group of two would forget flat colours.
        norm_num_groups=2,
        sample_size=scenes.SIDE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
        force_upcast=False,
    )
    quicken(vae)
    return vae


@torch.no_grad()
def quicken(vae) -> None:
    """A start from which minutes are enough: residual branches begin at zero, the straight path keeps its
    signal's size (torch's default thirds it at each convolution, and flat colours drown), the first
    biases are large enough for the last norm to remember brightness, and the latents are all but
    noiseless (a young decoder learns nothing through noise as large as its signal)."""
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            torch.nn.init.normal_(module.bias, std=0.7 if name.endswith("conv_in") else 0.02)
    vae.decoder.conv_out.weight.mul_(0.3)
    vae.encoder.conv_out.weight[16:].zero_()
    vae.encoder.conv_out.bias[16:].fill_(-5.0)


def training_pictures(work: Path, seed: int, count: int) -> torch.Tensor:
    """[N, 3, H, W] bytes: half the base's world, half anything; kept."""
    kept = work / "pictures.state"
    if found := load_state(kept):
        return found["pictures"]
    rng = random.Random(f"{seed} autoencoder pictures")
    drawn = (scenes.draw(rng, scenes.random_scene(rng)) if k % 2 else scenes.draw_any(rng) for k in range(count))
    save_state(kept, pictures=torch.from_numpy(np.stack([scenes.pixels_of(p) for p in drawn])))
    return load_state(kept)["pictures"]


def to_signed(pixels_u8: torch.Tensor) -> torch.Tensor:
    return pixels_u8.float() / 127.5 - 1.0


def views(pictures, draw: torch.Generator, whole: bool) -> torch.Tensor:
    """A batch of whole pictures, or of crops: of two places in each picture the busier one."""
    at = torch.randint(len(pictures), (BATCH,), generator=draw)
    if whole:
        return to_signed(pictures[at])
    corners = torch.randint(scenes.SIDE - CROP + 1, (BATCH, 2, 2), generator=draw).tolist()
    cut = [[pictures[k, :, y : y + CROP, x : x + CROP] for y, x in two] for k, two in zip(at.tolist(), corners)]
    return to_signed(torch.stack([max(two, key=lambda c: float(c.float().var(dim=(1, 2)).sum())) for two in cut]))


def edges(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss_of(vae, x):
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x)))
    coarse = F.mse_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))
    return F.l1_loss(y, x) + 2.0 * F.mse_loss(y, x) + 0.5 * sharp + coarse + KL * posterior.kl().mean() / posterior.mean[0].numel()


def train(work: Path, seed: int, processes: int = 2) -> AutoencoderKL:
    training_pictures(work, seed, PICTURES)
    together(processes, (work / "meet").absolute(), teach, work, seed)
    return load(work)


def teach(rank: int, processes: int, work: Path, seed: int) -> None:
    """The training loop of one process: the same weights in all, each with its share of the batch."""
    torch.manual_seed(seed)
    vae, state_file = make().train().to(memory_format=torch.channels_last), work / "vae.state"
    pictures = training_pictures(work, seed, PICTURES)
    averaged, parameters = Averaged(vae, 0.995), list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK, betas=(0.9, 0.99), weight_decay=1e-3)
    first = 0
    if state := load_state(state_file):
        first = state["step"]
        vae.load_state_dict(state["model"])
        averaged.module.load_state_dict(state["averaged"])
        averaged.count = first
        optimizer.load_state_dict(state["optimizer"])
    progress = Progress("autoencoder", STEPS, 50, first)
    for step in range(first, STEPS):
        x = views(pictures, torch.Generator().manual_seed(seed * 1_000_003 + step), whole=step >= STEPS - WHOLE)
        torch.manual_seed((seed * 1_000_003 + step) * 16 + rank)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, STEPS, PEAK, WARM_UP)
        loss = loss_of(vae, x[rank::processes])
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        average_gradients(parameters, processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averaged.update(vae)
        if rank:
            continue
        progress.tell(step, float(loss.detach()))
        if (step + 1) % 250 == 0:
            save_state(state_file, step=step + 1, model=vae.state_dict(), averaged=averaged.module.state_dict(), optimizer=optimizer.state_dict())
            look(averaged.module, work, seed)
    if rank == 0:
        print(f"autoencoder: {sum(p.numel() for p in parameters)} parameters", flush=True)
        finish(averaged.module, work, seed)


@torch.no_grad()
def finish(vae, work: Path, seed: int) -> None:
    """Rounds, measures scale and shift on the base's pictures, saves, and reports the error."""
    round_to_half(vae.eval())
    rng = random.Random(f"{seed} latent statistics")
    x = to_signed(torch.from_numpy(np.stack([scenes.pixels_of(scenes.draw(rng, scenes.random_scene(rng))) for _ in range(256)])))
    z = torch.cat([vae.encode(part).latent_dist.sample(torch.Generator().manual_seed(seed)) for part in x.split(32)])
    shift, scale = round(float(z.mean()), 4), round(1.0 / float(z.std()), 4)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    print(f"autoencoder: shift_factor {shift} scaling_factor {scale}; sd by channel {[round(float(s), 2) for s in z.std(dim=(0, 2, 3))]}")
    look(vae, work, seed)
    vae.half().save_pretrained(work / "vae", safe_serialization=True)


def load(work: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def look(vae, work: Path, seed: int) -> None:
    """A sheet of pictures above their reconstructions, and the error in dB for each look."""
    rng = random.Random(f"{seed} look")
    looks = {
        "base": [scenes.draw(rng, scenes.random_scene(rng)) for _ in range(8)],
        "style": [scenes.draw_style(rng, scenes.random_scene(rng)) for _ in range(8)],
    }
    page = []
    for name, pictures in looks.items():
        x = to_signed(torch.from_numpy(np.stack([scenes.pixels_of(p) for p in pictures])))
        posterior = vae.eval().encode(x).latent_dist
        y = vae.decode(posterior.mode()).sample.clamp(-1, 1)
        print(f"autoencoder: {name} {10 * float(torch.log10(4.0 / F.mse_loss(y, x))):.2f} dB; posterior sd {float(posterior.std.mean()):.3f}, latent sd {float(posterior.mode().std()):.3f}", flush=True)
        page += pictures + [to_picture(v) for v in y]
    scenes.sheet(page, 8, work / "vae.png")


def to_picture(signed: torch.Tensor):
    from PIL import Image

    return Image.fromarray(((signed.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy())
