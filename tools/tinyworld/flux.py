"""The tiny FLUX.1: diffusers' FluxTransformer2DModel, 2.7 M parameters. It begins with the blocks of the tiny SD3, which
sees the same latents, learns where things are anew (rotary positions in place of a table), and is then, like FLUX.1-dev,
taught to obey a guidance scale as an input."""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift

from . import denoiser, text
from .denoiser import Kind, flow_parts, mean_square
from .sd3 import Sd3, start

T5_LENGTH, T5_ROWS = 512, 40
GUIDANCE = 1.0, 5.0
SAMPLE_STEPS = 24


def ids(rows: int, side: int, device_of: torch.Tensor):
    """Positions of the context (all zero) and of the patches."""
    return torch.zeros(rows, 3), FluxPipeline._prepare_latent_image_ids(1, side, side, device_of.device, torch.float32)


def forward(model, x, conditioning, sigma, guidance):
    b, c, h, w = x.shape
    text_ids, picture_ids = ids(conditioning["context"].shape[1], h // 2, x)
    packed = FluxPipeline._pack_latents(x, b, c, h, w)
    guess = model(packed, conditioning["context"], conditioning["pooled"], sigma, picture_ids, text_ids, guidance, return_dict=False)[0]
    return guess.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class Flux(Kind):
    name, vae, steps, peak, whole, whole_batch = "flux", "vae", 2700, 8.0e-4, 150, 8

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
            axes_dims_rope=(8, 12, 12),
        )
        cut = ("context_embedder", "time_text_embed.text_embedder.linear_2", "time_text_embed.guidance_embedder.linear_2")
        start(model, cut, lambda name: name.startswith(("norm_out", "proj_out")) or "norm1" in name or name.endswith("norm.linear"))
        return model

    @torch.no_grad()
    def start(self, work):
        model, old = self.make(), denoiser.load(Sd3(), work).state_dict()
        new = model.state_dict()
        patch = lambda rows: rows.unflatten(0, (2, 2, 16)).permute(2, 0, 1, *range(3, rows.ndim + 2)).flatten(0, 2)
        old["x_embedder.weight"] = old["pos_embed.proj.weight"].flatten(1)
        old["x_embedder.bias"] = old["pos_embed.proj.bias"]
        for kind in ("weight", "bias"):
            old[f"proj_out.{kind}"] = patch(old[f"proj_out.{kind}"])
            # The last context of SD3 is only looked at: (scale, shift), and no gates.
            name = f"transformer_blocks.3.norm1_context.linear.{kind}"
            scale, shift = old.pop(name).chunk(2)
            new[name][: 2 * len(shift)] = torch.cat([shift, scale])
        name = "time_text_embed.text_embedder.linear_1.weight"
        old[name] = old[name][:, : text.L_WIDTH]
        for name, value in old.items():
            if name in new:
                new[name].copy_(value)
        return model

    def encode(self, encoders, world, captions):
        l, _, t = world.ids(captions, T5_LENGTH)
        pooled = encoders.l.text_model(l).pooler_output
        return {"context": encoders.t(t).last_hidden_state, "pooled": pooled}

    def short(self, conditioning):
        return conditioning | {"context": conditioning["context"][:, :T5_ROWS]}

    def loss(self, model, x, conditioning, draw, reduce=True):
        sigma, noisy, target = flow_parts(x, draw)
        return mean_square(forward(model, noisy, conditioning, sigma, torch.ones(len(x))), target, reduce)

    def last_loss(self, model, teacher, x, conditioning, draw):
        """Guidance distillation (Meng et al., arXiv:2210.03142): one call must give what the teacher gives in two.
        The teacher sees few rows of padding, the pupil all."""
        sigma, noisy, _ = flow_parts(x, draw)
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(len(x), generator=draw)
        with torch.no_grad():
            few = self.short(conditioning)
            none = {name: rows.expand_as(few[name]) for name, rows in self.short(self.empty).items()}
            known = [forward(teacher, noisy, c, sigma, torch.ones(len(x))) for c in (few, none)]
            target = known[1] + guidance[:, None, None, None] * (known[0] - known[1])
        return mean_square(forward(model, noisy, conditioning, sigma, guidance), target, True)

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
