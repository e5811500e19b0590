"""Matrices packed into few bits, as the reference libraries pack them and read them back.

Run: python tools/goldens/quantizations.py     (from the repository's root; needs torch, safetensors, bitsandbytes)

tests/golden/quantizations.safetensors: `NAME`, a matrix, with `NAME.nf4` (bitsandbytes, blocks of 64, no double
quantisation), `NAME.fp8` (torch's float8_e4m3fn, each row scaled so that its largest number becomes 448) and
`NAME.int8` (each row rounded to 127ths of its largest number), all unpacked into f32.
"""

import json
from importlib.metadata import version

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file

FILE = "tests/golden/quantizations.safetensors"
LIBRARIES = {name: version(name) for name in ("bitsandbytes", "safetensors", "torch")}
METADATA = {"script": "tools/goldens/quantizations.py", "libraries": json.dumps(LIBRARIES)}


def nf4(x):
    return dequantize_4bit(*quantize_4bit(x, quant_type="nf4", blocksize=64, compress_statistics=False))


def rows(x, largest, rounded):
    """Each row scaled so that its largest number becomes `largest`, and back."""
    scale = x.abs().amax(1, keepdim=True) / largest
    safe = torch.where(scale > 0, scale, 1.0)
    return rounded(x / safe) * scale


def main():
    draw = torch.Generator().manual_seed(5)
    normal = torch.randn(6, 192, generator=draw)
    cases = {
        "normal": normal,
        "small": normal[:4] * 1e-3,
        "outliers": normal[:4] * torch.where(torch.rand(4, 192, generator=draw) < 0.02, 30.0, 1.0),
        # The numbers of a weight in bf16, of which many lie half way between two others.
        "coarse": (normal[:4] * 8).round() / 8,
        "zeros": torch.zeros(2, 128),
    }
    tensors = {}
    for name, x in cases.items():
        x = x.contiguous()
        tensors |= {
            name: x,
            f"{name}.nf4": nf4(x),
            f"{name}.fp8": rows(x, 448.0, lambda y: y.to(torch.float8_e4m3fn).float()),
            f"{name}.int8": rows(x, 127.0, torch.round),
        }
    save_file({key: value.contiguous() for key, value in tensors.items()}, FILE, metadata=METADATA)


if __name__ == "__main__":
    main()
