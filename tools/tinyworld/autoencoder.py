"""The autoencoders, small: SD3's and FLUX's kind (16 channels, factor 8, no quant convolutions, attention in the
middle), and SDXL's (4 channels, quant convolutions), which starts from the first."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from . import scenes
from .steps import Averaged, Progress, average_gradients, load_state, rate_at, round_to_half, save_state, together

PICTURES, STEPS, BATCH, PEAK, WARM_UP = 4096, 3800, 8, 2.0e-3, 50
NARROW_STEPS = 1500  # of the second, which need not learn to see
CROP, WHOLE = 64, 60  # most steps see a crop, the last WHOLE steps whole pictures
KL = 1.0e-3  # nats of one latent number against the pixel losses


def make(latent_channels: int = 16) -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 48),
        layers_per_block=1,
        act_fn="silu",
        latent_channels=latent_channels,
        # Few and wide groups: the last norm sees 16 channels, and a group of two would forget flat colours.
        norm_num_groups=2,
        sample_size=scenes.SIDE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=latent_channels == 4,
        use_post_quant_conv=latent_channels == 4,
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


@torch.no_grad()
def narrowed(work: Path, seed: int) -> AutoencoderKL:
    """A 4-channel autoencoder with the body of the 16-channel one, joined by the four main directions of its
    latents; the quant convolutions begin as the identity."""
    wide, vae = load(work), make(4)
    pixels = to_signed(training_pictures(work, seed, PICTURES)[:256])
    z = torch.cat([wide.encode(part).latent_dist.mean for part in pixels.split(32)])
    flat = z.permute(0, 2, 3, 1).reshape(-1, 16)
    middle = flat.mean(dim=0)
    _, _, main = torch.linalg.svd(flat - middle, full_matrices=False)
    main = main[:4]  # [4, 16]
    old, new = wide.state_dict(), vae.state_dict()
    same = {name: value for name, value in old.items() if name in new and new[name].shape == value.shape}
    vae.load_state_dict(same, strict=False)
    vae.encoder.conv_out.weight[:4] = torch.einsum("kc,cijl->kijl", main, wide.encoder.conv_out.weight[:16])
    vae.encoder.conv_out.bias[:4] = main @ (wide.encoder.conv_out.bias[:16] - middle)
    vae.encoder.conv_out.weight[4:].zero_()
    vae.encoder.conv_out.bias[4:].fill_(-5.0)
    vae.decoder.conv_in.weight.copy_(torch.einsum("ocij,kc->okij", wide.decoder.conv_in.weight, main))
    vae.decoder.conv_in.bias.copy_(wide.decoder.conv_in.bias + wide.decoder.conv_in.weight.sum(dim=(2, 3)) @ middle)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        torch.nn.init.dirac_(conv.weight)
        conv.bias.zero_()
    return vae.requires_grad_(True)


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


def train(work: Path, seed: int, processes: int = 2, name: str = "vae") -> AutoencoderKL:
    training_pictures(work, seed, PICTURES)
    together(processes, (work / f"{name}.meet").absolute(), teach, work, seed, name)
    return load(work, name)


def teach(rank: int, processes: int, work: Path, seed: int, name: str) -> None:
    """The training loop of one process: the same weights in all, each with its share of the batch."""
    torch.manual_seed(seed)
    fresh, steps = (make(), STEPS) if name == "vae" else (narrowed(work, seed), NARROW_STEPS)
    vae, state_file = fresh.train().to(memory_format=torch.channels_last), work / f"{name}.state"
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
    progress = Progress(name, steps, 50, first)
    for step in range(first, steps):
        x = views(pictures, torch.Generator().manual_seed(seed * 1_000_003 + step), whole=step >= steps - WHOLE)
        torch.manual_seed((seed * 1_000_003 + step) * 16 + rank)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, PEAK, WARM_UP)
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
            look(averaged.module, work, seed, name)
    if rank == 0:
        print(f"{name}: {sum(p.numel() for p in parameters)} parameters", flush=True)
        finish(averaged.module, work, seed, name)


@torch.no_grad()
def finish(vae, work: Path, seed: int, name: str) -> None:
    """Rounds, measures scale and shift on the base's pictures, saves, and reports the error."""
    round_to_half(vae.eval())
    rng = random.Random(f"{seed} latent statistics")
    x = to_signed(torch.from_numpy(np.stack([scenes.pixels_of(scenes.draw(rng, scenes.random_scene(rng))) for _ in range(256)])))
    z = torch.cat([vae.encode(part).latent_dist.sample(torch.Generator().manual_seed(seed)) for part in x.split(32)])
    shift = round(float(z.mean()), 4) if name == "vae" else None
    scale = round(1.0 / float(z.std()), 4)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    print(f"autoencoder: shift_factor {shift} scaling_factor {scale}; sd by channel {[round(float(s), 2) for s in z.std(dim=(0, 2, 3))]}")
    look(vae, work, seed, name)
    vae.half().save_pretrained(work / name, safe_serialization=True)


def load(work: Path, name: str = "vae") -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(work / name, torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def look(vae, work: Path, seed: int, name: str) -> None:
    """A sheet of pictures above their reconstructions, and the error in dB for each look."""
    rng = random.Random(f"{seed} look")
    looks = {
        "base": [scenes.draw(rng, scenes.random_scene(rng)) for _ in range(8)],
        "style": [scenes.draw_style(rng, scenes.random_scene(rng)) for _ in range(8)],
    }
    page = []
    for style, pictures in looks.items():
        x = to_signed(torch.from_numpy(np.stack([scenes.pixels_of(p) for p in pictures])))
        posterior = vae.eval().encode(x).latent_dist
        y = vae.decode(posterior.mode()).sample.clamp(-1, 1)
        print(f"autoencoder: {style} {10 * float(torch.log10(4.0 / F.mse_loss(y, x))):.2f} dB; posterior sd {float(posterior.std.mean()):.3f}, latent sd {float(posterior.mode().std()):.3f}", flush=True)
        page += pictures + [to_picture(v) for v in y]
    scenes.sheet(page, 8, work / f"{name}.png")


def to_picture(signed: torch.Tensor):
    from PIL import Image

    return Image.fromarray(((signed.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy())
