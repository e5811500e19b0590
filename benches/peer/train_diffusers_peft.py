"""One LoRA training step in diffusers + peft on the CPU: time and peak memory, as JSON lines.

    python benches/peer/train_diffusers_peft.py --tiny assets/tiny-sd3 --folder target/peer/mmdit-100m

Each case runs in a process of its own, so that its peak resident size is its own. Cases: the tiny SD3
(128 px) and an SD3 transformer of about 100 million random weights (256 px, written to --folder as f32
safetensors unless it is there, so that another program can be measured on the same weights); batch 1 and
4; with and without gradient checkpointing. LoRA of rank 16, AdamW, f32, 77 CLIP + 77 T5 rows of context.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLP = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]


def resident_mib(peak: bool) -> float:
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_large(folder: Path) -> None:
    import torch
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    shape = dict(sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=5, attention_head_dim=64, num_attention_heads=12)
    conditioning = dict(joint_attention_dim=4096, caption_projection_dim=768, pooled_projection_dim=2048, pos_embed_max_size=96)
    SD3Transformer2DModel(**shape, **conditioning, qk_norm="rms_norm").save_pretrained(folder, safe_serialization=True)


def measure(case: dict) -> dict:
    import diffusers
    import peft
    import torch
    import torch.nn.functional as F
    from diffusers import SD3Transformer2DModel

    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    imported = resident_mib(peak=False)
    model = SD3Transformer2DModel.from_pretrained(case["path"], torch_dtype=torch.float32).train().requires_grad_(False)
    targets = ATTENTION + (MLP if case["targets"] == "attention+mlp" else [])
    model.add_adapter(peft.LoraConfig(r=case["rank"], lora_alpha=case["rank"], target_modules=targets))
    if case["checkpointing"]:
        model.enable_gradient_checkpointing()
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)
    loaded, c = resident_mib(peak=False), model.config
    side, batch = c.sample_size, case["batch"]
    x, noise = torch.randn(2, batch, c.in_channels, side, side)
    context = torch.randn(batch, 154, c.joint_attention_dim)
    pooled = torch.randn(batch, c.pooled_projection_dim)
    sigma = torch.linspace(0.2, 0.8, batch) if batch > 1 else torch.tensor([0.5])
    s, seconds = sigma[:, None, None, None], []
    for step in range(case["warm_up"] + case["steps"]):
        start = time.perf_counter()
        guess = model((1 - s) * x + s * noise, context, pooled, sigma * 1000.0, return_dict=False)[0]
        loss = F.mse_loss(guess, noise - x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step >= case["warm_up"]:
            seconds.append(time.perf_counter() - start)
    measured = {"step_s": round(statistics.median(seconds), 4), "step_s_min": round(min(seconds), 4), "steps": len(seconds)}
    measured |= {"peak_rss_mib": round(resident_mib(peak=True), 1), "rss_imported_mib": round(imported, 1), "rss_loaded_mib": round(loaded, 1)}
    counts = {"parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad), "adapter_parameters": sum(p.numel() for p in adapters), "loss": round(float(loss.detach()), 5)}
    return case | measured | counts | {"torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path, default=Path("assets/tiny-sd3"))
    parser.add_argument("--folder", type=Path, default=Path("target/peer/mmdit-100m"))
    parser.add_argument("--models", nargs="+", choices=["tiny", "100m"], default=["tiny", "100m"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--targets", choices=["attention", "attention+mlp"], default="attention+mlp")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a case (the 100m model: half)")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        return
    if "100m" in args.models and not (args.folder / "config.json").exists():
        write_large(args.folder)
    paths = {"tiny": str(args.tiny / "transformer"), "100m": str(args.folder)}
    for name in args.models:
        for batch in args.batches:
            for checkpointing in (False, True):
                case = {"peer": "diffusers+peft", "model": name, "path": paths[name], "batch": batch, "checkpointing": checkpointing}
                case |= {"targets": args.targets, "rank": args.rank, "threads": args.threads, "warm_up": args.warm_up}
                case |= {"steps": args.steps if name == "tiny" else max(1, args.steps // 2), "machine": platform.machine()}
                command = [sys.executable, __file__, "--case", json.dumps(case)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
