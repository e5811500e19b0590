"""Linear layers whose products are in 8-bit floats, as torchao trains them: a scale for each tensor, inputs and weights in e4m3, gradients in e5m2.

Run: python tools/goldens/fp8.py     (from the repository's root; needs torch, safetensors, torchao)

tests/golden/fp8.safetensors: of each case `NAME.x`, `NAME.w`, `NAME.b` and `NAME.g`, the gradient of the result; `NAME.y` and `NAME.dx`, what
torchao's Float8Linear makes of them in f32, its products emulated on a CPU; and the bytes and scales of x, w (e4m3) and g (e5m2):
`NAME.x.codes`, `NAME.x.scale` (what a byte's number is multiplied by) and so on.
"""

import json
from importlib.metadata import version

import torch
from safetensors.torch import save_file
from torchao.float8 import Float8LinearConfig, ScalingGranularity
from torchao.float8.config import e4m3_dtype, e5m2_dtype
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
from torchao.float8.float8_training_tensor import LinearMMConfig

FILE = "tests/golden/fp8.safetensors"
LIBRARIES = {name: version(name) for name in ("safetensors", "torch", "torchao")}
METADATA = {"script": "tools/goldens/fp8.py", "libraries": json.dumps(LIBRARIES)}


def rounded(x, dtype):
    found = hp_tensor_to_float8_dynamic(x, dtype, LinearMMConfig(), scaling_granularity=ScalingGranularity.TENSORWISE)
    return {"codes": found._data.view(torch.uint8), "scale": found._scale.reciprocal().reshape(1)}


def case(draw, rows, inputs, outputs, change):
    normal = lambda *shape: change(torch.randn(*shape, generator=draw))
    layer = torch.nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, inputs) * 0.05)
        layer.bias.copy_(normal(outputs))
    x, g = normal(rows, inputs).requires_grad_(), normal(rows, outputs) * 1e-4
    y = Float8Linear.from_float(layer, config=Float8LinearConfig(emulate=True))(x)
    y.backward(g)
    found = {"x": x.detach(), "w": layer.weight.detach(), "b": layer.bias.detach(), "g": g, "y": y.detach(), "dx": x.grad}
    for name, dtype in [("x", e4m3_dtype), ("w", e4m3_dtype), ("g", e5m2_dtype)]:
        found |= {f"{name}.{key}": value for key, value in rounded(found[name], dtype).items()}
    return found


def main():
    draw = torch.Generator().manual_seed(7)
    outliers = lambda x: x * torch.where(torch.rand(x.shape, generator=draw) < 0.01, 50.0, 1.0)
    cases = {
        "normal": case(draw, 5, 64, 48, lambda x: x),
        "one_row": case(draw, 1, 32, 96, lambda x: x),
        "outliers": case(draw, 7, 96, 32, outliers),
        # Of a bf16 network: many numbers lie half way between two of 8 bits.
        "coarse": case(draw, 3, 48, 16, lambda x: (x * 8).round() / 8),
        "tiny": case(draw, 2, 16, 16, lambda x: x * 1e-20),
        "zeros": case(draw, 2, 16, 16, torch.zeros_like),
    }
    tensors = {f"{name}.{key}": value.contiguous() for name, found in cases.items() for key, value in found.items()}
    save_file(tensors, FILE, metadata=METADATA)


if __name__ == "__main__":
    main()
