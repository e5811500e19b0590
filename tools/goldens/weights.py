"""Weights as people's files store them, and what the reference libraries read from them.

Run: python tools/goldens/weights.py     (from the repository's root; needs torch, safetensors, gguf)

- tests/golden/weights_fp8.safetensors: every finite `float8_e4m3fn` and `float8_e5m2`, a layer with a scale in each
  of ComfyUI's two namings, and `NAME.expected` in f32 for each weight NAME.
- tests/golden/weights.gguf: a tensor of each type, one of them reshaped as city96's converter does, and among the
  values some of every kind. tests/golden/weights_gguf.safetensors: the same in f32, as `gguf` dequantises them.
"""

import json
from importlib.metadata import version

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

FOLDER = "tests/golden"
LIBRARIES = {name: version(name) for name in ("gguf", "numpy", "safetensors", "torch")}
METADATA = {"script": "tools/goldens/weights.py", "libraries": json.dumps(LIBRARIES)}
WRITTEN = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
# Types that `gguf` reads and does not write: random blocks. Where their half-precision scales are, in bytes.
READ = {Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}


def fp8() -> dict[str, torch.Tensor]:
    tensors = {}
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        every = torch.arange(256, dtype=torch.uint8).view(dtype)
        finite = every[torch.isfinite(every.float())]
        tensors[name], tensors[f"{name}.expected"] = finite, finite.float()
    generator = torch.Generator().manual_seed(1)
    for layer, scale, inputs in (("old", "scale_weight", "scale_input"), ("new", "weight_scale", "input_scale")):
        weight = torch.randn(6, 5, generator=generator) * 0.03
        factor = weight.abs().max() / 448
        stored = (weight / factor).to(torch.float8_e4m3fn)
        tensors |= {
            f"{layer}.weight": stored,
            f"{layer}.{scale}": factor.reshape(()) if layer == "new" else factor.reshape(1),
            f"{layer}.{inputs}": torch.ones(()),
            f"{layer}.weight.expected": stored.float() * factor,
        }
    tensors["old.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    note = json.dumps({"format": "float8_e4m3fn"}).encode()
    tensors["new.comfy_quant"] = torch.frombuffer(bytearray(note), dtype=torch.uint8)
    return tensors


def random_blocks(kind: Type, scales: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """[3, bytes of two blocks]."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (6, size), dtype=np.uint8)
    for at in scales:
        halves = rng.uniform(-0.02, 0.02, (6, 1)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8)
    return blocks.reshape(3, 2 * size)


def write_gguf() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(f"{FOLDER}/weights.gguf", "t5encoder")
    writer.add_uint32("t5encoder.block_count", 2)
    writer.add_float32("t5encoder.attention.layer_norm_epsilon", 1e-6)
    writer.add_bool("tokenizer.ggml.add_eos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "</s>", "\u2581the"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 0.0, -2.5])
    writer.add_uint64("a.large.number", 1 << 40)
    expected = {}

    def add(name: str, stored: np.ndarray, kind: Type, shape) -> None:
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected[name] = np.ascontiguousarray(quants.dequantize(stored, kind).astype(np.float32).reshape(shape))

    for kind in WRITTEN:
        values = rng.normal(0, 0.05, (3, 64)).astype(np.float32)
        add(f"{kind.name}.weight", quants.quantize(values, kind), kind, (3, 64))
    for kind, scales in READ.items():
        add(f"{kind.name}.weight", random_blocks(kind, scales, rng), kind, (3, 512))
    values = rng.normal(0, 0.05, (32, 16)).astype(np.float32)
    add("reshaped.weight", quants.quantize(values.reshape(2, 256), Type.Q8_0), Type.Q8_0, (32, 16))
    writer.add_array("comfy.gguf.orig_shape.reshaped.weight", [32, 16])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def main() -> None:
    save_file(fp8(), f"{FOLDER}/weights_fp8.safetensors", METADATA)
    save_numpy(write_gguf(), f"{FOLDER}/weights_gguf.safetensors", METADATA)


if __name__ == "__main__":
    main()
