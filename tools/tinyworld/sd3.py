"""The tiny SD3: diffusers' SD3Transformer2DModel, 2.3 M parameters, trained by rectified flow."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from . import text, words
from .denoiser import SHIFT, Kind, flow_parts, mean_square

CLIP_ROWS, T5_ROWS = 32, 36
SAMPLE_STEPS = 24


def start(model, cut: tuple[str, ...], zero) -> None:
    """The usual start of a diffusion transformer: linears keep their input's size (the encoders' rows
    are large: theirs is cut), every residual branch and the output begin at zero."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.zeros_(module.bias)
            if zero(name):
                torch.nn.init.zeros_(module.weight)
            else:
                gain = 0.3 if name.startswith(cut) else 1.0
                torch.nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), gain=gain)


class Sd3(Kind):
    name, vae, steps, peak, whole = "sd3", "vae", 8000, 1.5e-3, 500

    def make(self) -> SD3Transformer2DModel:
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
        start(model, ("context_embedder", "time_text_embed.text_embedder.linear_2"), lambda name: name.startswith(("norm_out", "proj_out")) or "norm1" in name)
        return model

    def encode(self, encoders, world, captions):
        context, pooled = encoders(world.ids(captions))
        return {"context": context, "pooled": pooled}

    def short(self, conditioning):
        rows = [*range(CLIP_ROWS), *range(words.CLIP_LENGTH, words.CLIP_LENGTH + T5_ROWS)]
        return conditioning | {"context": conditioning["context"][:, rows]}

    def loss(self, model, x, conditioning, draw, reduce=True):
        sigma, noisy, target = flow_parts(x, draw)
        guess = model(noisy, conditioning["context"], conditioning["pooled"], sigma * 1000.0, return_dict=False)[0]
        return mean_square(guess, target, reduce)

    def sample(self, model, conditioning, empty, noise, guidance):
        """Flow Euler with guidance against the encoded empty caption."""
        clock, x = self.scheduler(), noise
        clock.set_timesteps(SAMPLE_STEPS)
        both = {name: torch.cat([rows, empty[name].expand_as(rows)]) for name, rows in conditioning.items()}
        for t in clock.timesteps:
            guess = model(torch.cat([x, x]), both["context"], both["pooled"], t.expand(2 * len(x)), return_dict=False)[0]
            with_caption, without = guess.chunk(2)
            x = clock.step(without + guidance * (with_caption - without), t, x, return_dict=False)[0]
        return x

    def scheduler(self):
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)
