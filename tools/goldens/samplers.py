"""Goldens of the samplers for DDPM models: trajectories of diffusers' schedulers.

    python tools/goldens/samplers.py

writes tests/golden/samplers.safetensors. The "network" is a formula, 0.8 tanh(1.3 x) + 0.3 cos(t / 100), of what the
scheduler would show a network. Pictures are kept as variance-preserving ones: Euler's are divided by
sqrt(sigma^2 + 1). The configuration is SDXL base's scheduler_config.json; with zero terminal signal-to-noise also
`rescale_betas_zero_snr` and `timestep_spacing = trailing`, as that paper and diffusers' documentation ask for.
"""

import json
import pathlib

import diffusers
import numpy
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
SDXL = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
    steps_offset=1, timestep_spacing="leading",
)  # fmt: skip
CASES = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False)),
    "dpmpp2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp2m_karras": (DPMSolverMultistepScheduler, dict(use_karras_sigmas=True)),
}
STEPS = [1, 4, 20]
SHAPE = (1, 2, 3, 2)


def network(x, t):
    return 0.8 * torch.tanh(1.3 * x) + 0.3 * torch.cos(torch.tensor(float(t)) / 100)


def run(scheduler, steps, start, noises):
    scheduler.set_timesteps(steps)
    sigmas = getattr(scheduler, "sigmas", None)
    scaled = hasattr(scheduler, "init_noise_sigma") and scheduler.init_noise_sigma != 1.0
    x = start * scheduler.init_noise_sigma
    pictures, timesteps = [], []
    for i, t in enumerate(scheduler.timesteps):
        prediction = network(scheduler.scale_model_input(x, t), t)
        scheduling_euler_ancestral_discrete.randn_tensor = lambda *_, i=i, **__: noises[i].clone()
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
        pictures.append(x / (sigmas[i + 1] ** 2 + 1) ** 0.5 if scaled else x)
        timesteps.append(float(t))
    return torch.cat(pictures), torch.tensor(timesteps)


def main():
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(SHAPE, generator=generator)
    noises = torch.randn(max(STEPS), *SHAPE, generator=generator)
    tensors = {"start": start, "noises": noises[:, 0]}
    for name, (kind, extra) in CASES.items():
        for prediction in ("epsilon", "v_prediction"):
            for steps in STEPS:
                scheduler = kind(**SDXL, **extra, prediction_type=prediction)
                key = f"{name}.{prediction}.{steps}"
                tensors[f"{key}.pictures"], tensors[f"{key}.timesteps"] = run(scheduler, steps, start, noises)
        config = {**SDXL, **extra, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        scheduler = kind(**config, prediction_type="v_prediction")
        key = f"{name}.zero_snr.20"
        tensors[f"{key}.pictures"], tensors[f"{key}.timesteps"] = run(scheduler, 20, start, noises)
    metadata = {
        "script": "tools/goldens/samplers.py",
        "versions": json.dumps({m.__name__: m.__version__ for m in (torch, diffusers, numpy)}),
    }
    tensors = {k: v.float().contiguous() for k, v in tensors.items()}
    save_file(tensors, OUT / "samplers.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()
