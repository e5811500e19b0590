"""The other side of `benches/vae.rs`: the same weights and frames through diffusers' AutoencoderKLWan, in f32.

Started as `vae_diffusers.py FOLDER FRAMES SIDE THREADS`, where FOLDER holds model.safetensors; writes the means to FOLDER/output.safetensors
and answers with one line of JSON: seconds, and MiB of memory with the model loaded and at the peak.
"""

import json
import pathlib
import sys
import time

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

folder, (frames, side, threads) = pathlib.Path(sys.argv[1]), map(int, sys.argv[2:])
torch.set_num_threads(threads)


def mib(field):
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))


with torch.device("meta"):
    vae = AutoencoderKLWan()
vae.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}, assign=True)
vae.eval()
numbers = torch.arange(frames * 3 * side * side, dtype=torch.float64)
clip = torch.sin(numbers * 1.3).float().reshape(1, frames, 3, side, side).transpose(1, 2).contiguous()
del numbers
with torch.inference_mode():
    # Threads are started and primitives are made before anything is timed.
    vae.encode(clip[:, :, :1, :64, :64])
    loaded, start, busy = mib("VmRSS"), time.perf_counter(), time.process_time()
    mean = vae.encode(clip).latent_dist.mean
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
save_file({"mean": mean.contiguous()}, folder / "output.safetensors")
print(json.dumps({"seconds": seconds, "processor": busy, "loaded_mib": loaded, "peak_mib": mib("VmHWM")}))
