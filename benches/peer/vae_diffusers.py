"""The other side of `benches/vae.rs`: the same weights and frames or latents through diffusers' AutoencoderKLWan, in f32.

Started with a case as JSON, whose folder holds model.safetensors. Says the MiB of memory with the model loaded; then, for each line on
standard input, encodes or decodes once and answers with the seconds it took, by the clock and of processor time; and at the end the
peak of its memory. Writes the means, or the last frame, to output.safetensors in the folder.
"""

import json
import pathlib
import sys
import time

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

case = json.loads(sys.argv[1])
folder, frames, side = pathlib.Path(case["folder"]), case["frames"], case["side"]
torch.set_num_threads(case["threads"])


def mib(field):
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))


def waves(*shape):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 1.3).float().reshape(shape)


with torch.device("meta"):
    vae = AutoencoderKLWan()
# What is not used takes no memory of theirs either, but what loading takes is let go of only as Python does it.
other = ("encoder.", "quant_conv.") if case["decode"] else ("decoder.", "post_quant_conv.")
weights = load_file(folder / "model.safetensors")
vae.load_state_dict({name: weights.pop(name).float() for name in list(weights) if not name.startswith(other)}, assign=True, strict=False)
vae.eval()


def run(given):
    return vae.decode(given, return_dict=False)[0] if case["decode"] else vae.encode(given).latent_dist.mean


with torch.inference_mode():
    if case["decode"]:
        small, given = waves(1, 16, 1, 8, 8), waves(1, 16, 1 + frames // 4, side // 8, side // 8)
    else:
        small, given = waves(1, 3, 1, 64, 64), waves(1, frames, 3, side, side).transpose(1, 2).contiguous()
    # Threads are started and primitives are made before anything is timed.
    run(small)
    print(json.dumps({"loaded_mib": mib("VmRSS")}), flush=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = run(given)
        taken = time.perf_counter() - start, time.process_time() - start_cpu
        save_file({"result": (result[:, :, -1] if case["decode"] else result).contiguous()}, folder / "output.safetensors")
        print(*taken, flush=True)
    print(json.dumps({"peak_mib": mib("VmHWM")}), flush=True)
