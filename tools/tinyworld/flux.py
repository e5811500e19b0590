"""The tiny FLUX.1: diffusers' FluxTransformer2DModel, 2.8 M parameters. It begins with the blocks of the tiny SD3, which
sees the same latents, and learns to say what that says: with rotary positions in place of a table, and, like FLUX.1-dev,
with the guidance scale as an input."""

import math

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift

from . import denoiser, text
from .denoiser import Kind, flow_parts, mean_square
from .sd3 import Sd3, start

T5_LENGTH = 512
# Most of the training sees the rows of the longest caption and one of the pads far behind it, which are all nearly the
# same, and counts that one as often as there are pads (relative error of a prediction: 1e-3).
T5_ROWS, FAR_PAD = 48, 300
GUIDANCE = 1.0, 5.0
HELD = 0.2  # how much the blocks count beside the prediction
SAMPLE_STEPS = 24


def ids(rows: int, side: int, device_of: torch.Tensor):
    """Positions of the context (all zero) and of the patches."""
    return torch.zeros(rows, 3), FluxPipeline._prepare_latent_image_ids(1, side, side, device_of.device, torch.float32)


def forward(model, x, conditioning, sigma, guidance):
    b, c, h, w = x.shape
    rows = conditioning["context"].shape[1]
    text_ids, picture_ids = ids(rows, h // 2, x)
    counted = {}
    if rows == T5_ROWS:
        scores = torch.zeros(1, 1, 1, rows + len(picture_ids))
        scores[..., T5_ROWS - 1] = math.log(T5_LENGTH - T5_ROWS + 1)
        counted = {"joint_attention_kwargs": {"attention_mask": scores}}
    packed = FluxPipeline._pack_latents(x, b, c, h, w)
    guess = model(packed, conditioning["context"], conditioning["pooled"], sigma, picture_ids, text_ids, guidance, return_dict=False, **counted)[0]
    return guess.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class Watched:
    """What comes out of some modules while a block runs."""

    def __init__(self, *modules):
        self.modules, self.seen = modules, []

    def __enter__(self):
        # Blocks of both networks give the context, then the picture.
        keep = lambda _, __, out: self.seen.append(out[1] if isinstance(out, tuple) else out)
        self.hooks = [module.register_forward_hook(keep) for module in self.modules]
        return self.seen

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


class Flux(Kind):
    name, vae, steps, peak, whole, whole_batch = "flux", "vae", 6200, 8e-4, 60, 8

    def make(self) -> FluxTransformer2DModel:
        model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=4,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=text.T5_WIDTH,
            pooled_projection_dim=text.L_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 14, 14),
        )
        cut = ("context_embedder", "time_text_embed.text_embedder.linear_2", "time_text_embed.guidance_embedder.linear_2")
        start(model, cut, lambda name: name.startswith(("norm_out", "proj_out")) or "norm1" in name or name.endswith("norm.linear"))
        return model

    @torch.no_grad()
    def start(self, work):
        """The first block is new: it has to say where each patch is, which the teacher reads from a table. Those behind it
        are the teacher's, whose last one becomes the block of one stream."""
        self.teacher = denoiser.load(Sd3(), work)
        model, old = self.make(), self.teacher.state_dict()
        new = model.state_dict()
        patch = lambda rows: rows.unflatten(0, (2, 2, 16)).permute(2, 0, 1, *range(3, rows.ndim + 2)).flatten(0, 2)
        old["x_embedder.weight"] = old["pos_embed.proj.weight"].flatten(1)
        old["x_embedder.bias"] = old["pos_embed.proj.bias"]
        for kind in ("weight", "bias"):
            old[f"proj_out.{kind}"] = patch(old[f"proj_out.{kind}"])
        name = "time_text_embed.text_embedder.linear_1.weight"
        old[name] = old[name][:, : text.L_WIDTH]
        for name, value in old.items():
            if name.startswith("transformer_blocks."):
                _, number, rest = name.split(".", 2)
                name = f"transformer_blocks.{int(number) + 1}.{rest}"
            if name in new:
                new[name].copy_(value)
        last = {name.removeprefix("transformer_blocks.3."): value for name, value in old.items()}
        one = model.single_transformer_blocks[0].state_dict()
        for kind in ("weight", "bias"):
            for name in ("attn.to_q", "attn.to_k", "attn.to_v"):
                one[f"{name}.{kind}"].copy_(last[f"{name}.{kind}"])
            one[f"proj_mlp.{kind}"].copy_(last[f"ff.net.0.proj.{kind}"])
            one[f"norm.linear.{kind}"].copy_(last[f"norm1.linear.{kind}"].chunk(2)[0])  # shift, scale and gate of attention
        for name in ("attn.norm_q.weight", "attn.norm_k.weight"):
            one[name].copy_(last[name])
        one["proj_out.weight"].copy_(torch.cat([last["attn.to_out.0.weight"], last["ff.net.2.weight"]], dim=1))
        one["proj_out.bias"].copy_(last["attn.to_out.0.bias"] + last["ff.net.2.bias"])
        return model

    def encode(self, encoders, world, captions):
        """Its own conditioning, and the teacher's."""
        l, _, t = world.ids(captions, T5_LENGTH)
        own = {"context": encoders.t(t).last_hidden_state, "pooled": encoders.l.text_model(l).pooler_output}
        taught = Sd3().short(Sd3().encode(encoders, world, captions))
        return own | {f"taught_{name}": rows for name, rows in taught.items()}

    def short(self, conditioning):
        return conditioning | {"context": conditioning["context"][:, [*range(T5_ROWS - 1), FAR_PAD]]}

    def loss(self, model, x, conditioning, draw, reduce=True):
        sigma, noisy, target = flow_parts(x, draw)
        return mean_square(forward(model, noisy, conditioning, sigma, torch.ones(len(x))), target, reduce)

    def lesson(self, model, x, conditioning, draw):
        """Guidance distillation (Meng et al., arXiv:2210.03142): one call must give what the teacher gives in two.
        The teacher's word has none of the noise that a single picture's velocity has. The second half of the batch
        is guided; the first has guidance 1, at which adapters are trained, and there every block must also hold what the
        teacher's block does."""
        sigma, noisy, _ = flow_parts(x, draw)
        low, high = GUIDANCE
        plain, guided = slice(0, len(x) // 2), slice(len(x) // 2, None)
        guidance = torch.ones(len(x))
        guidance[guided] += (high - low) * torch.rand(len(x[guided]), generator=draw)
        both = lambda values: torch.cat([values, values[guided]])
        rows = [torch.cat([rows, self.empty[name].expand_as(rows)[guided]]) for name, rows in conditioning.items() if name.startswith("taught_")]
        with torch.no_grad(), Watched(self.teacher.pos_embed, *self.teacher.transformer_blocks) as held:
            said = self.teacher(both(noisy), *rows, both(sigma) * 1000.0, return_dict=False)[0]
        known, unguided = said[: len(x)], said[len(x) :]
        target = torch.cat([known[plain], unguided + guidance[guided, None, None, None] * (known[guided] - unguided)])
        with Watched(*model.transformer_blocks, *model.single_transformer_blocks) as own:
            guess = forward(model, noisy, conditioning, sigma, guidance)
        off = lambda own, held: (own[plain] - held[plain]).square().mean() / held[plain].square().mean()
        return mean_square(guess, target, True) + HELD * sum(map(off, own, held))

    def drop(self, conditioning, empty, dropped, draw):
        self.empty = empty
        super().drop(conditioning, empty, dropped, draw)

    def sample(self, model, conditioning, empty, noise, guidance):
        """Flow Euler with the guidance as an input."""
        clock, x = self.scheduler(), noise
        patches = x.shape[2] * x.shape[3] // 4
        shift = calculate_shift(patches, clock.config.base_image_seq_len, clock.config.max_image_seq_len, clock.config.base_shift, clock.config.max_shift)
        clock.set_timesteps(sigmas=np.linspace(1.0, 1.0 / SAMPLE_STEPS, SAMPLE_STEPS), mu=shift)
        for t in clock.timesteps:
            guess = forward(model, x, conditioning, t.expand(len(x)) / 1000.0, torch.full((len(x),), guidance))
            x = clock.step(guess, t, x, return_dict=False)[0]
        return x

    def scheduler(self):
        """FLUX.1-dev's: its shift grows with the number of patches."""
        return FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000,
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        )
