"""What the training stages share: schedule, averaging, checkpoints, the clock."""

import copy

import time
from pathlib import Path

import torch


def rate_at(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a line down to a hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (1.0 - 0.99 * done)


class Averaged:
    """An exponential moving average of a module's weights; young averages forget faster."""

    def __init__(self, module, decay: float):
        self.module, self.decay, self.count = copy.deepcopy(module).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, module) -> None:
        self.count += 1
        decay = min(self.decay, (1.0 + self.count) / (10.0 + self.count))
        ours, theirs = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)


def save_state(path: Path, **state) -> None:
    """Whole or not at all: written beside, then renamed."""
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    beside.rename(path)


def load_state(path: Path):
    return torch.load(path, weights_only=False, mmap=True) if path.exists() else None


class Progress:
    """A line now and then: step, rate, time left, mean loss since the last line."""

    def __init__(self, what: str, steps: int, every: int, first: int = 0):
        self.what, self.steps, self.every, self.first = what, steps, every, first
        self.start, self.sum, self.count = time.time(), 0.0, 0

    def tell(self, step: int, loss: float, more: str = "") -> None:
        self.sum, self.count = self.sum + loss, self.count + 1
        if (step + 1) % self.every:
            return
        pace = (time.time() - self.start) / (step + 1 - self.first)
        left = pace * (self.steps - step - 1)
        print(f"{self.what} {step + 1}/{self.steps}  loss {self.sum / self.count:.4f}  {pace:.3f} s/step  {left / 60:.1f} min left  {more}", flush=True)
        self.sum, self.count = 0.0, 0


def round_to_half(module):
    """What the saved f16 file will say, held in f32: later stages see the weights users load."""
    with torch.no_grad():
        for tensor in list(module.parameters()) + list(module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())
    return module


# --- several processes, one model ------------------------------------------------------------------
# Each process takes its share of a batch with one thread. Two threads inside one process wait for each
# other at every small operation; two processes wait once a step.


def together(processes: int, port_file: Path, run, *arguments) -> None:
    """Runs `run(rank, processes, *arguments)` in that many processes which can average gradients."""
    if processes == 1:
        return run(0, 1, *arguments)
    port_file.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_joined, args=(processes, str(port_file), run, arguments), nprocs=processes)


def _joined(rank: int, processes: int, port_file: str, run, arguments) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=processes)
    run(rank, processes, *arguments)
    torch.distributed.destroy_process_group()


def average_gradients(parameters, processes: int) -> None:
    """Replaces every gradient by its mean over the processes."""
    if processes == 1:
        return
    gradients = [p.grad for p in parameters]
    flat = torch._utils._flatten_dense_tensors(gradients)
    torch.distributed.all_reduce(flat)
    flat /= processes
    for old, new in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients)):
        old.copy_(new)
