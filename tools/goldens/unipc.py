"""Goldens of UniPC for rectified flow: trajectories of diffusers' UniPCMultistepScheduler as Wan's models name it.

    python tools/goldens/unipc.py

writes tests/golden/unipc.safetensors. The configuration is scheduler/scheduler_config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, with a
`flow_shift` of 3 (480p), 5 (720p) and 12 (Wan 2.2's authors). The "network" is that of samplers.py, a formula.
"""

import json

import diffusers
import numpy
import samplers
import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import save_file

WAN = dict(
    beta_start=0.0001, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000, solver_order=2, solver_type="bh2",
    prediction_type="flow_prediction", predict_x0=True, lower_order_final=True, use_flow_sigmas=True,
    timestep_spacing="linspace", final_sigmas_type="zero",
)  # fmt: skip


def main():
    start = torch.randn(samplers.SHAPE, generator=torch.Generator().manual_seed(7))
    tensors = {"start": start}
    for shift in (3.0, 5.0, 12.0):
        for steps in (1, 2, 3, 20, 50):
            scheduler = UniPCMultistepScheduler(**WAN, flow_shift=shift)
            scheduler.set_timesteps(steps)
            x, pictures = start, []
            for t in scheduler.timesteps:
                x = scheduler.step(samplers.network(x, t), t, x, return_dict=False)[0]
                pictures.append(x)
            key = f"{shift:g}.{steps}"
            tensors[f"{key}.pictures"] = torch.cat(pictures)
            tensors[f"{key}.timesteps"] = scheduler.timesteps
    metadata = {
        "script": "tools/goldens/unipc.py",
        "versions": json.dumps({m.__name__: m.__version__ for m in (torch, diffusers, numpy)}),
    }
    tensors = {k: v.float().contiguous() for k, v in tensors.items()}
    save_file(tensors, samplers.OUT / "unipc.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()
