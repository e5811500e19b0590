"""Writes tests/golden/unet_world_vpred.safetensors: the losses of the training of tests/golden/unet_world.safetensors (`unet.py`),
from the same numbers, for a model of v-prediction whose noise schedule ends in pure noise.

    python tools/goldens/unet_vpred.py

The third step is the last of the schedule, where the picture is gone.
"""

import json
import pathlib

import diffusers
import peft
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from unet import adaptable, call

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests/golden"


def main():
    torch.set_num_threads(1)
    path = GOLDEN / "unet_world.safetensors"
    tensors = {k: v.float() for k, v in load_file(path).items()}
    with safe_open(path, "pt") as file:
        model = UNet2DConditionModel.from_config(json.loads(file.metadata()["config"]))
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("golden.")})
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=[n for n in adaptable(model) if ".attn" in n]), adapter_name="curve")
    trained = {n.replace(".curve.", "."): p for n, p in model.named_parameters() if ".curve." in n}
    for name, p in trained.items():
        p.data.copy_(tensors[f"golden.curve.{name}"])
    optimizer = torch.optim.AdamW([trained[n] for n in sorted(trained)], lr=1e-2, weight_decay=0.01)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    given = {k: tensors[f"golden.curve.{k}"] for k in ("context", "pooled", "time_ids")}
    latents, noises = tensors["golden.curve.latents"], tensors["golden.curve.noises"]
    timesteps = tensors["golden.curve.timesteps"].long()
    timesteps[2] = 999
    losses = []
    for noise, t in zip(noises.split(1), timesteps.split(1)):
        prediction = call(model, given | {"latents": scheduler.add_noise(latents, noise, t), "timesteps": t})
        loss = (prediction - scheduler.get_velocity(latents, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    made = {"timesteps": timesteps.float(), "losses": torch.tensor(losses)}
    versions = {m.__name__: m.__version__ for m in (torch, diffusers, peft)}
    save_file(made, GOLDEN / "unet_world_vpred.safetensors", metadata={"script": "tools/goldens/unet_vpred.py", "versions": json.dumps(versions)})
    print(losses)


if __name__ == "__main__":
    main()
