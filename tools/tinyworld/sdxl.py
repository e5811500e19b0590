"""The tiny SDXL: diffusers' UNet2DConditionModel, 2.4 M parameters, trained to predict noise."""

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from . import scenes, text
from .denoiser import Kind, mean_square

SAMPLE_STEPS = 24
OFFSET = 0.3


class Sdxl(Kind):
    name, vae, steps, peak, whole = "sdxl", "vae4", 3000, 1.0e-3, 0

    def make(self) -> UNet2DConditionModel:
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 80),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 1),
            attention_head_dim=(1, 2, 2),
            cross_attention_dim=text.L_WIDTH + text.G_WIDTH,
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=text.G_WIDTH + 6 * 32,
        )

    def encode(self, encoders, world, captions):
        l, _, g, pooled, _ = encoders.raw(world.ids(captions))
        return {"context": torch.cat([l, g], dim=-1), "pooled": pooled}

    def drop(self, conditioning, empty, dropped, draw):
        """Half of the dropped captions become the empty one, half zeros: both are in use."""
        super().drop(conditioning, empty, dropped, draw)
        zeros = dropped & (torch.rand(len(dropped), generator=draw) < 0.5)
        for rows in conditioning.values():
            rows[zeros] = 0.0

    def sizes(self, count: int, draw: torch.Generator | None) -> torch.Tensor:
        """Original size, crop, target size; in training now and then others, which mean nothing here."""
        usual = torch.tensor([scenes.SIDE, scenes.SIDE, 0, 0, scenes.SIDE, scenes.SIDE]).repeat(count, 1)
        if draw is None:
            return usual
        other = torch.randint(scenes.SIDE // 2, scenes.SIDE * 4, (count, 6), generator=draw)
        other[:, 2:4] = other[:, 2:4] % scenes.SIDE
        return torch.where((torch.rand(count, generator=draw) < 0.3)[:, None], other, usual)

    def forward(self, model, x, t, conditioning, sizes):
        added = {"text_embeds": conditioning["pooled"], "time_ids": sizes}
        return model(x, t, conditioning["context"], added_cond_kwargs=added, return_dict=False)[0]

    def loss(self, model, x, conditioning, draw, reduce=True):
        kept = torch.cumprod(1.0 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)
        t, noise = torch.randint(1000, (len(x),), generator=draw), torch.randn(x.shape, generator=draw)
        # Each channel's noise is moved as a whole: else the network reads the background's colour not from the caption
        # but from what this schedule leaves of it at its noisiest step, and samples begin without that.
        noise = noise + OFFSET * torch.randn(*x.shape[:2], 1, 1, generator=draw)
        a = kept[t][:, None, None, None]
        guess = self.forward(model, a.sqrt() * x + (1 - a).sqrt() * noise, t, conditioning, self.sizes(len(x), draw))
        return mean_square(guess, noise, reduce)

    def sample(self, model, conditioning, empty, noise, guidance):
        """Euler with guidance against zeros, as SDXL's own pipeline does."""
        clock = self.scheduler()
        clock.set_timesteps(SAMPLE_STEPS)
        x = noise * clock.init_noise_sigma
        both = {name: torch.cat([rows, torch.zeros_like(rows)]) for name, rows in conditioning.items()}
        for t in clock.timesteps:
            scaled = clock.scale_model_input(torch.cat([x, x]), t)
            with_caption, without = self.forward(model, scaled, t, both, self.sizes(2 * len(x), None)).chunk(2)
            x = clock.step(without + guidance * (with_caption - without), t, x, return_dict=False)[0]
        return x

    def scheduler(self):
        """SDXL's own configuration."""
        return EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            timestep_spacing="leading",
            steps_offset=1,
            use_karras_sigmas=False,
        )
