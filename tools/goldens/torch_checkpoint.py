"""Writes tests/golden/checkpoint.pth, what torch.save writes of small tensors, and checkpoint.safetensors, the same tensors.

Run: python tools/goldens/torch_checkpoint.py

A state dict of a module, so that the pickle has an ordered dictionary with attributes; a scalar, a tensor that shares another's
numbers, one that begins amid them, and the types that weights have.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden"


def main():
    torch.manual_seed(3)
    module = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(3), "lin": torch.nn.Linear(3, 2)})
    state = module.state_dict()
    state["lin.bias"] = state["lin.bias"].bfloat16()
    state["half"] = torch.randn(2, 1, 2).half()
    state["tied"] = state["lin.weight"]
    state["part"] = state["lin.weight"][1:]
    state["count"] = torch.tensor(7)
    torch.save(state, FOLDER / "checkpoint.pth")
    save_file({k: v.clone().contiguous() for k, v in state.items()}, FOLDER / "checkpoint.safetensors")


if __name__ == "__main__":
    main()
