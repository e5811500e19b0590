"""One lease of a GPU: everything that is wanted of it, the most valuable first, each result kept as it comes.

    python3 benches/gpu/lease.py --part 1 --bench .kit/bench --tests .kit/tests --out OUT --seconds 400

Ours runs as a process a case, with `--libraries` (folders of CUDA libraries) in LD_LIBRARY_PATH; the peer does not get
that variable, or it would load other libraries than those PyTorch came with. The peer is one process that imports once
and is started anew where it died. A case that fails or is too slow costs its own limit, nothing else. Results are in
OUT/results{PART}.jsonl (one line each, flushed) and OUT/logs{PART}.txt; OUT/table{PART}.md is written anew after every
case. `benches/gpu/lease.sh` prepares a machine and starts this.
"""

import argparse
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Operations of a step without recomputation, by `peer.py` kind `floor` (counted on the meta device), batch 1.
FLOORS = {("flux1-dev", 512): 44722552307712, ("sd3.5-large", 512): 16671460801536, ("sdxl", 1024): 14187923292160,
          ("sdxl", 512): 3165575495680, ("flux1-dev", 1024): 163874776547328}  # fmt: skip
TOKENS = {"flux1-dev": 512, "sd3.5-large": 333, "sdxl": 77, "flux1-small": 16, "sd3-small": 16, "sdxl-small": 16, "flux1-slice": 512}
FAMILY = lambda model: re.match("flux1|sd3|sdxl", model)[0]  # noqa: E731


def train(who, model, px, limit, batch=1, steps=8, **more):
    case = {"kind": "train", "model": model, "family": FAMILY(model), "px": px, "batch": batch, "tokens": TOKENS[model], "rank": 16,
            "targets": "attention", "steps": steps, "config": str(HERE / "models" / f"{model}.json")} | more  # fmt: skip
    notes = {"own_kernels": "own", "cudnn": "cudnn", "graphs": "graphs", "fp8": "fp8", "checkpointing": "ckpt", "compile": "compiled"}
    said = [notes[k] if v is True else f"no {notes[k]}" if v is False else f"{v} {notes[k]}" for k, v in more.items() if k in notes]
    return {"name": f"{who} {model} {px}px b{batch} {' '.join(said)}".strip(), "who": who, "limit": limit, "case": case}


def ours(model, px, limit, **more):
    return train("ours", model, px, limit, own_kernels=True, **more)


def eager(model, px, limit, **more):
    return train("eager", model, px, limit, **more)


def both(kind, model, limit, **more):
    """Random weights on both sides: the peer's are its libraries' own, ours are written to a file and read."""
    case = {"kind": kind, "model": model, "steps": 5} | more
    file = f"{SCRATCH}/{model}.safetensors"
    own = {"name": f"ours {kind} {model}", "who": "ours", "limit": limit, "case": case | {"file": file, "own_kernels": True}}
    return [{"name": f"eager {kind} {model}", "who": "eager", "limit": limit, "case": case}, own]


def command(name, limit, line):
    return {"name": name, "who": "shell", "limit": limit, "line": line}


def kernels_of(model, px, limit):
    """Time of every kernel of two steps (and of making the random weights), summed by name."""
    case = ours(model, px, 1, steps=1)["case"] | {"device": "cuda:0", "warm_up": 1}
    line = (
        "ncu --clock-control none --metrics gpu__time_duration.sum --csv --print-units base "
        f"$BENCH gpu '{json.dumps(case)}' > $OUT/kernels-{model}.csv 2>$OUT/ncu.err; python3 $HERE/lease.py --sum $OUT/kernels-{model}.csv"
    )
    return command(f"kernels of {model}", limit, line)


SCRATCH = os.environ.get("PLUMB_BENCH_SCRATCH", "/dev/shm")
PARTS = {"kind": "parts", "tokens": 1536, "batch": 1, "heads": 24, "width": 128, "rank": 16, "steps": 20}
BIG = [("flux1-dev", 512), ("sd3.5-large", 512), ("sdxl", 1024)]


def plan(part, device):
    if device == "cpu":
        models = [("flux1-small", 64), ("sd3-small", 64), ("sdxl-small", 64)]
        items = [command("tests", 60, "$TESTS cuda:: --test-threads=2")]
        items += [train(who, m, px, 240, steps=1) for m, px in models for who in ("ours", "eager")]
        items += [train("ours", *models[0], 240, steps=1, fp8=True)]
        items += both("encode", "t5-small", 120, batch=2, tokens=16) + both("vae", "vae-small", 120, batch=1, px=32)
        return items + [eager("flux1-small", 64, 400, steps=1, compile="blocks")]
    smoke = ours("flux1-small", 64, 120, steps=2)  # the driver, NVRTC, cuBLAS, the JIT of the driver
    tests = command("tests of own kernels", 90, "$TESTS cuda:: --test-threads=4")
    rate = {"name": "matmul", "who": "eager", "limit": 60, "case": {"kind": "matmul", "side": 8192, "repeats": 10}}
    parts = [
        {"name": "parts ours own", "who": "ours", "limit": 40, "case": PARTS | {"own_kernels": True}},
        {"name": "parts ours cudnn", "who": "ours", "limit": 40, "case": PARTS | {"own_kernels": True, "cudnn": True}},
        {"name": "parts torch", "who": "eager", "limit": 40, "case": PARTS},
    ]
    card = command("card", 20, "nvidia-smi; ldconfig -p | grep -E 'libcuda.so|libcublas|libnvrtc|libcudnn'; python3 -m pip list 2>/dev/null | grep -iE 'nvidia|torch|diffusers|peft'")
    slice_ = kernels_of("flux1-slice", 512, 70)
    if part == 1:  # does it run, is it right, where does the time go
        items = [card, smoke, tests, rate, ours("flux1-dev", 512, 60), ours("flux1-dev", 512, 60, cudnn=True)]
        items += [ours("flux1-dev", 512, 60, cudnn=True, graphs=True), ours("sdxl", 1024, 60, cudnn=True, graphs=True)]
        items += [ours("flux1-dev", 512, 60, cudnn=True, graphs=True, fp8=True)]
        items += [eager("flux1-dev", 512, 75), *parts, slice_]
        items += [ours(m, px, 60) for m, px in BIG[1:]]
        items += [command("tests of autograd", 60, "$TESTS_ABOVE autograd:: --test-threads=8"), ours("flux1-dev", 512, 50, checkpointing=True)]
        return items + [command("all tests", 120, "$TESTS --test-threads=12 && $TESTS_ABOVE --test-threads=12")]
    items = [smoke, tests, rate]
    for m, px in BIG:
        items += [ours(m, px, 60), ours(m, px, 60, cudnn=True), ours(m, px, 60, cudnn=True, graphs=True), eager(m, px, 75)]
    items += [ours(m, px, 60, cudnn=True, graphs=True, fp8=True) for m, px in BIG[:2]]
    for m, px in BIG:
        items += [eager(m, px, 110, compile="blocks"), eager(m, px, 60, checkpointing=False)]
    items += [*parts, slice_, ours("flux1-dev", 1024, 60, steps=4, cudnn=True, graphs=True), eager("flux1-dev", 1024, 75, steps=4)]
    items += both("encode", "t5-xxl", 90, batch=32, tokens=512) + both("encode", "clip-g", 60, batch=64, tokens=77)
    items += both("vae", "vae", 60, batch=1, px=1024)
    items += [
        command("memcheck", 110, "compute-sanitizer --error-exitcode 9 $TESTS cuda:: --test-threads=1 2>&1 | tail -25"),
        command("racecheck", 60, "compute-sanitizer --tool racecheck --error-exitcode 9 $TESTS attention_of_large --test-threads=1 2>&1 | tail -25"),
        command("all tests", 120, "$TESTS --test-threads=12 && $TESTS_ABOVE --test-threads=12"),
    ]
    return items


def summed(path):
    """A table of kernels by time, from ncu's CSV."""
    import csv

    lines = [line for line in Path(path).read_text().splitlines() if line.startswith('"')]
    totals = {}
    for row in csv.DictReader(lines):
        if row.get("Metric Name") == "gpu__time_duration.sum":
            name = re.sub(r"<.*|\(.*", "", row["Kernel Name"])[:60] + " " + row.get("Grid Size", "")
            count, time_ns = totals.get(name, (0, 0.0))
            totals[name] = (count + 1, time_ns + float(row["Metric Value"].replace(",", "")))
    for name, (count, time_ns) in sorted(totals.items(), key=lambda item: -item[1][1])[:40]:
        print(f"{time_ns / 1e6:9.3f} ms {count:5d} x {name}")


class Memory(threading.Thread):
    """The most that the GPU had in use while a case ran, by NVML in this process: no program is started for it."""

    handle, idle = None, 0

    def __init__(self, ours):
        super().__init__(daemon=True)
        # The peer's process keeps its context while ours runs; and the driver has some for itself.
        self.before = self.used() if ours else Memory.idle
        self.most, self.ended = self.before, threading.Event()

    @classmethod
    def used(cls):
        if not cls.handle:
            return 0
        import pynvml

        return pynvml.nvmlDeviceGetMemoryInfo(cls.handle).used

    def run(self):
        while self.handle and not self.ended.wait(0.02):
            self.most = max(self.most, self.used())

    def stop(self):
        self.ended.set()
        self.join()
        return self.most - self.before


def watch_memory():
    try:
        import pynvml

        pynvml.nvmlInit()
        Memory.handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        Memory.idle = Memory.used()
    except Exception as why:
        print(f"no NVML: {why}")


class Peer:
    """The process that runs the peer's cases."""

    def __init__(self, device):
        self.device, self.process = device, None

    def start(self):
        if self.process is None or self.process.poll() is not None:
            self.log = open(LOGS, "ab")
            self.process = subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def run(self, case, limit):
        self.start()
        self.process.stdin.write(json.dumps(case | {"device": self.device}).encode() + b"\n")
        self.process.stdin.flush()
        until, text = time.monotonic() + limit, b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                self.process.kill()
                self.process.wait()
                return {"failed": "ran out of time" if not ready else f"the peer died; see {LOGS.name}"}
            text += piece
        return json.loads(text)


def serve():
    """Cases from stdin, results to stdout: what anything else prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.path.insert(0, str(HERE))
    import peer
    import torch

    kinds = {"train": peer.train, "matmul": peer.matmul, "parts": peer.parts, "encode": peer.encode, "vae": peer.vae}
    for line in sys.stdin:
        case = json.loads(line)
        torch.manual_seed(0)
        try:
            found = kinds[case["kind"]](case, torch.device(case["device"]))
        except Exception as why:
            import traceback

            traceback.print_exc()
            found = {"failed": f"{type(why).__name__}: {why}"[:200]}
        if case["device"] != "cpu":
            import gc

            try:
                found["torch_reserved"] = torch.cuda.max_memory_reserved()
                found["torch_allocated"] = torch.cuda.max_memory_allocated()
                torch._dynamo.reset()
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            except Exception as why:
                found.setdefault("failed", f"{type(why).__name__}: {why}"[:200])
        print(json.dumps(found), file=out, flush=True)


def run_ours(case, limit, args):
    environment = dict(os.environ, LD_LIBRARY_PATH=args.libraries, RUST_BACKTRACE="1")
    return started([str(args.bench), "gpu", json.dumps(case | {"device": args.device})], limit, environment, last_line=True)


def shell(line, limit, args):
    environment = dict(os.environ, LD_LIBRARY_PATH=args.libraries, BENCH=str(args.bench), TESTS=str(args.tests), OUT=str(args.out), HERE=str(HERE))
    environment["TESTS_ABOVE"] = f"{args.tests}-above"
    if args.device != "cpu":
        environment["PLUMB_REQUIRE_GPU"] = "1"  # where ours does not open the GPU, tests fail instead of doing nothing
    return started(["bash", "-c", line], limit, environment, last_line=False)


def started(arguments, limit, environment, last_line):
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the group that was started above
        out, err = process.communicate()
        note(arguments, out, err)
        return {"failed": "ran out of time"}
    note(arguments, out, err)
    out, err = out.decode(errors="replace"), err.decode(errors="replace")
    if process.returncode != 0:
        said = [text for text in (out + "\n" + err).splitlines() if text.strip()]
        return {"failed": " / ".join(said[-4:])[-400:] or f"ended with {process.returncode}"}
    if not last_line:
        return {"said": out[-3000:]}
    try:
        return json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"failed": f"printed no JSON: {out[-200:]}"}


def note(arguments, out, err):
    with open(LOGS, "ab") as log:
        log.write(f"\n=== {' '.join(arguments)[:300]}\n".encode() + out[-20000:] + b"\n--- stderr\n" + err[-8000:] + b"\n")


def table(results, rate):
    by = {r["name"]: r for r in results}
    lines = ["| case | s | peak GiB | floor / time | times eager | note |", "|---|---|---|---|---|---|"]
    for r in results:
        if r["who"] == "shell" or r["case"]["kind"] not in ("train", "encode", "vae"):
            continue
        seconds = r.get("seconds", {}).get("median")
        floor = FLOORS.get((r["case"]["model"], r["case"].get("px")), 0) * r["case"]["batch"]
        part = f"{100 * floor / rate / seconds:.0f} %" if rate and seconds and floor else ""
        same = f"eager {r['case']['model']} {r['case']['px']}px b{r['case']['batch']}" if r["case"]["kind"] == "train" else r["name"].replace("ours", "eager")
        eager = by.get(same, {}).get("seconds", {}).get("median")
        faster = f"{eager / seconds:.2f}" if eager and seconds else ""
        note_ = r.get("failed", "") or (f"{r['blocks_checkpointed']}/{r['blocks']} checkpointed" if "blocks" in r else "")
        lines.append(f"| {r['name']} | {seconds:.4f} | {r['memory'] / 2**30:.1f} | {part} | {faster} | {note_} |" if seconds else f"| {r['name']} | | | | | {note_} |")
    return "\n".join(lines)


def parts(results):
    sides = {r["name"]: r["parts"] for r in results if "parts" in r}
    if not sides:
        return ""
    lines = ["", "| operation, ms | " + " | ".join(sides) + " |", "|---" * (len(sides) + 1) + "|"]
    for name in next(iter(sides.values())):
        lines.append(f"| {name} | " + " | ".join(f"{1000 * side[name]['median']:.3f}" for side in sides.values()) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="(the peer's process)")
    parser.add_argument("--sum", type=Path, help="sum ncu's CSV by kernel")
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--tests", type=Path, help="unit tests of plumb-core; those of plumb are `-above` beside it")
    parser.add_argument("--libraries", default=os.environ.get("LD_LIBRARY_PATH", ""))
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=400, help="after which nothing is begun, and what runs is cut")
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.sum:
        return summed(args.sum)
    global LOGS
    start, LOGS = time.monotonic(), args.out / f"logs{args.part}.txt"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.device != "cpu":
        watch_memory()
    peer, results, rate = Peer(args.device), [], None
    peer.start()  # it imports while ours runs its first, small cases
    for item in plan(args.part, args.device):
        left = args.seconds - (time.monotonic() - start)
        if left < 12:
            print(f"not begun: {item['name']}", flush=True)
            continue
        limit, began, memory = min(item["limit"], left), time.monotonic(), Memory(item["who"] == "ours")
        memory.start()
        try:
            match item["who"]:
                case "ours":
                    found = run_ours(item["case"], limit, args)
                case "shell":
                    found = shell(item["line"], limit, args)
                case _:
                    found = peer.run(item["case"], limit)
        except Exception as why:
            found = {"failed": f"the driver: {why!r}"[:300]}
        result = item | found | {"memory": memory.stop(), "took": time.monotonic() - began}
        rate = found.get("operations_a_second", rate)
        results.append(result)
        with open(args.out / f"results{args.part}.jsonl", "a") as file:
            file.write(json.dumps(result) + "\n")
        (args.out / f"table{args.part}.md").write_text(table(results, rate) + parts(results) + "\n")
        seconds = found.get("seconds", {}).get("median")
        brief = found.get("failed") or (f"{seconds:.4f} s" if seconds else found.get("said", str(found.get("operations_a_second", "done")))[-2500:])
        print(f"[{time.monotonic() - start:5.0f} s] {item['name']} ({result['took']:.0f} s): {brief}", flush=True)
    print("\n" + (args.out / f"table{args.part}.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
