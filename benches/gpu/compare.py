"""Ours and the peer, one after the other on one GPU, as one table.

    cargo bench --features cuda --no-run           # prints the path of the bench program
    python benches/gpu/compare.py --bench PATH     # everything; --device cpu is a dry run on small shapes

Needs torch for CUDA, diffusers, peft, transformers and safetensors. No model is downloaded: both sides make random
weights of the real shapes. Cases run in the order of the list until `--budget` seconds are over; a case that was not
run is named. Each side of each case is a process of its own, and its memory is the most that nvidia-smi saw of it (on
the CPU: the largest resident size). The table is saved under benches/results with the GPU's name.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def train(model, px, batch, tokens, steps=10):
    family = re.match("flux1|sd3|sdxl", model)[0]
    return {"kind": "train", "model": model, "family": family, "px": px, "batch": batch, "tokens": tokens,
            "rank": 16, "targets": "attention", "steps": steps}  # fmt: skip


FULL = [
    train("flux1-dev", 512, 1, 512),
    {"kind": "encode", "model": "t5-xxl", "batch": 32, "tokens": 512, "steps": 5},
    train("sd3.5-large", 512, 1, 333),
    train("sdxl", 1024, 1, 77),
    train("flux1-dev", 512, 4, 512, 5),
    train("sd3.5-large", 512, 4, 333, 5),
    train("sdxl", 1024, 4, 77, 5),
    {"kind": "encode", "model": "clip-g", "batch": 64, "tokens": 77, "steps": 10},
    {"kind": "vae", "model": "vae", "px": 1024, "batch": 1, "steps": 5},
    {"kind": "vae", "model": "vae", "px": 512, "batch": 4, "steps": 5},
    train("flux1-dev", 1024, 1, 512, 5),
    train("sd3.5-large", 1024, 1, 333, 5),
    train("sdxl", 512, 1, 77),
    train("flux1-dev", 1024, 4, 512, 3),
    train("sd3.5-large", 1024, 4, 333, 3),
]
# A block's sizes in FLUX.1-dev at 512 px: 1024 patches and 512 tokens of text.
PARTS = {"kind": "parts", "tokens": 1536, "batch": 1, "heads": 24, "width": 128, "rank": 16, "steps": 20}
SMALL_PARTS = PARTS | {"tokens": 24, "heads": 2, "width": 16, "steps": 3}
SMALL = [
    train("flux1-small", 64, 1, 16, 3),
    train("sd3-small", 64, 2, 16, 3),
    train("sdxl-small", 64, 1, 16, 3),
    {"kind": "encode", "model": "t5-small", "batch": 2, "tokens": 16, "steps": 3},
    {"kind": "encode", "model": "clip-small", "batch": 2, "tokens": 77, "steps": 3},
    {"kind": "vae", "model": "vae-small", "px": 32, "batch": 1, "steps": 3},
]


class Memory(threading.Thread):
    """The most memory that a process and its children held, while it runs."""

    def __init__(self, process, card):
        super().__init__(daemon=True)
        self.process, self.card, self.most = process, card, 0
        self.before = used(card) if card else 0

    def run(self):
        while self.process.poll() is None:
            if self.card:
                self.most = max(self.most, used(self.card) - self.before)
            else:
                self.most = max(self.most, resident(self.process.pid))
            time.sleep(0.05)


def used(card):
    """Bytes in use on a GPU that nothing else uses."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", card.partition(":")[2] or "0"]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout) * 2**20


def resident(pid):
    try:
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    except (OSError, TypeError):
        return 0


def measured(command, card, limit):
    """A process's JSON and peak memory, or what it died of."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    memory = Memory(process, card)
    memory.start()
    try:
        out, err = process.communicate(timeout=max(limit, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": "ran out of time"}
    memory.join()
    if process.returncode != 0:
        lines = [line for line in err.strip().splitlines() if line.strip()] or [f"ended with {process.returncode}"]
        return {"failed": lines[-1][:200]}
    return json.loads(out.strip().splitlines()[-1]) | {"memory": memory.most}


def ratio(a, b):
    return f"{a / b:.2f}" if a and b else ""


def row(case, ours, peers, floor, rate):
    name = f"{case['kind']} {case['model']}" + (f", {case['px']} px" if "px" in case else f", {case['tokens']} tokens") + f", batch {case['batch']}"
    cells = [name]
    mine = ours.get("seconds", {}).get("median")
    cells.append(f"{mine:.4f}" if mine else ours["failed"])
    for peer in peers:
        theirs = peer.get("seconds", {}).get("median")
        cells += [f"{theirs:.4f}" if theirs else peer["failed"], ratio(theirs, mine)]
    gib = [f"{side['memory'] / 2**30:.1f}" if "memory" in side else "" for side in (ours, peers[0])]
    cells += [*gib, ratio(ours.get("memory"), peers[0].get("memory"))]
    least = floor["operations"] / rate if "operations" in floor else None
    cells += [f"{least:.4f}" if least else "", f"{100 * least / mine:.0f} %" if least and mine else ""]
    cells.append(f"{ours['blocks_checkpointed']} of {ours['blocks']}" if "blocks" in ours else "")
    return "| " + " | ".join(cells) + " |"


def heading(compiled):
    names = ["case", "ours, s", "eager, s", "times as fast"]
    names += ["compiled, s", "times as fast"] if compiled else []
    names += ["ours, peak GiB", "eager", "of its memory", "floor, s", "floor of ours", "blocks with checkpointing"]
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def profile(case, sides):
    """Each kind of operation alone."""
    lines = ["", f"Where the time goes: forward and back, {case['tokens']} tokens of {case['heads']} heads of {case['width']}.", ""]
    lines += ["| operation | " + " | ".join(f"{name}, ms" for name in sides) + " |", "|---" * (1 + len(sides)) + "|"]
    failed = [f"{name}: {side['failed']}" for name, side in sides.items() if "failed" in side]
    if failed:
        return [*lines[:2], *failed]
    for operation in next(iter(sides.values()))["parts"]:
        times = [f"{1000 * side['parts'][operation]['median']:.3f}" for side in sides.values()]
        lines.append(f"| {operation} | " + " | ".join(times) + " |")
    return lines


def named(args):
    if args.device == "cpu":
        return "CPU (a dry run on small shapes: no figure of it means anything)", "dry-run"
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    line = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip().splitlines()[0]
    return line, re.sub(r"[^a-z0-9]+", "-", line.split(",")[0].lower()).strip("-")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="the bench program, built with --features cuda")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu for a dry run")
    parser.add_argument("--only", default="", help="cases that have this in their kind and model")
    parser.add_argument("--own-kernels", action="store_true", help="ours by its own kernels")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside eager (minutes a case)")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which no case is begun")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    args = parser.parse_args()

    start, card = time.monotonic(), args.device if args.device != "cpu" else None
    said, slug = named(args)
    peer = [sys.executable, str(HERE / "peer.py")]
    square = {"kind": "matmul", "device": args.device, "side": 8192 if card else 512, "repeats": 10}
    found = measured([*peer, json.dumps(square)], card, args.budget)
    if "failed" in found:
        sys.exit(f"the peer does not run on {args.device}: {found['failed']}")
    rate = found["operations_a_second"]
    lines = [f"Matrix products of its own: {rate / 1e12:.3g} TFLOP/s (torch, {'bf16' if card else 'f32'}, squares of {square['side']}).", "", heading(args.compile)]
    print(f"# {said}\n\n" + "\n".join(lines), flush=True)
    versions, left = {}, []
    with tempfile.TemporaryDirectory(dir=os.environ.get("PLUMB_BENCH_SCRATCH")) as scratch:
        for case in FULL if card else SMALL:
            if args.only not in f"{case['kind']} {case['model']}":
                continue
            if time.monotonic() - start > args.budget:
                left.append(f"{case['kind']} {case['model']}, batch {case['batch']}, {case.get('px', case.get('tokens'))}")
                continue
            case = case | {"device": args.device, "config": str(HERE / "models" / f"{case['model']}.json")}
            case["own_kernels"] = args.own_kernels
            case["file"] = f"{scratch}/{case['model']}.safetensors"
            rest = lambda: args.budget + 60 - (time.monotonic() - start)  # noqa: E731
            ours = measured([str(args.bench), "gpu", json.dumps(case)], card, rest())
            peers = [measured([*peer, json.dumps(case)], card, rest())]
            if args.compile:
                peers.append(measured([*peer, json.dumps(case | {"compile": True})], card, rest()) if case["kind"] == "train" else {"failed": ""})
            floor = measured([*peer, json.dumps(case | {"kind": "floor"})], None, rest()) if case["kind"] == "train" else {}
            trained = [side.get("adapter_parameters") for side in (ours, *peers) if "seconds" in side]
            if len(set(trained)) > 1:
                sys.exit(f"{case['model']}: the sides train {trained} numbers, which is no comparison")
            versions |= {key: peers[0][key] for key in ("torch", "diffusers", "peft", "transformers") if key in peers[0]}
            lines.append(row(case, ours, peers, floor, rate))
            print(lines[-1], flush=True)
    if args.only in "parts":
        case = (PARTS if card else SMALL_PARTS) | {"device": args.device}
        ways = {"ours": [str(args.bench), "gpu", json.dumps(case)], "torch": [*peer, json.dumps(case)]}
        if card:
            ways["own kernels"] = [str(args.bench), "gpu", json.dumps(case | {"own_kernels": True})]
        sides = {name: measured(way, card, 60) for name, way in ways.items()}
        lines += profile(case, sides)
        print("\n".join(lines[-10 - len(sides) :]), flush=True)
    if left:
        lines += ["", "Not run, for want of time: " + "; ".join(left) + "."]
    peers = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    head = f"# {said}; {datetime.date.today()}\n\n`benches/gpu/compare.py`. Rank 16 on the attention, bf16, AdamW; peer: {peers}, gradient checkpointing on.\n"
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{slug}{'-own-kernels' if args.own_kernels else ''}.md"
    path.write_text(head + "\n".join(lines) + "\n")
    print(f"\nsaved as {path}" + (f"; not run: {'; '.join(left)}" if left else ""))


if __name__ == "__main__":
    main()
