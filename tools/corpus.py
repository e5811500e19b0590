"""Writes tests/corpus: small files of every kind that a plumb of before answered with a panic, an abort, a hang, a wrong
result or an unreadable line, and their kin. What `tests/it/corpus.rs` asks of each is one line, or a picture.

Run in the repository's root with the Python of tools/requirements.txt: python tools/corpus.py
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path("tests/corpus")
MODEL = '[model]\nfamily = "sd3"\nflavor = "3.5-medium"\npath = "base"\n[store]\npath = "store"\n'
TRAIN = '[train]\nsteps = 10\noutput = "out"\n'


def put(name, data):
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def experiments():
    def one(name, text):
        put(f"experiments/{name}.toml", text)

    one("rank-beyond-memory", f"{MODEL}[adapter]\nrank = 288230376151711744\n{TRAIN}")
    one("batch-beyond-memory", MODEL + TRAIN + "batch_size = 9223372036854775807\n")
    one("repeats-beyond-memory", MODEL + TRAIN + '[[dataset]]\npath = "p"\nrepeats = 4294967295\n')
    one("bucket-step-above-side", MODEL + '[[dataset]]\npath = "p"\nresolution = 1024\nbucket_step = 8192\n')
    one("sample-width-beyond-memory", MODEL + "[sample]\nwidth = 4294967295\n")
    one("not-a-number", MODEL + TRAIN + "learning_rate = nan\n")
    one("escapes", MODEL + TRAIN + '"a\\u001b[2J\\u202e" = 1\n')
    one("windows-path", MODEL.replace('"base"', '"D:\\new\\table"'))
    one("nested", MODEL + "[recipe]\ndeviate = " + "[" * 5000 + "]" * 5000 + "\n")
    one("nested-tables", MODEL + "[recipe.deviate]\n" + ".".join(["a"] * 5000) + " = 1\n")
    one("utf-16", b"\xff\xfe" + MODEL.encode("utf-16-le"))
    one("zeros", b"\0" * 64)
    one("long-name", MODEL + TRAIN + f'name = "{"n" * 300}"\n')
    one("long-line", MODEL + TRAIN + f'lr_schedule = "{"x" * 20000}"\n')


def picture():
    rng = np.random.default_rng(1)
    smooth = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1)))
    return Image.fromarray(smooth.astype(np.uint8))


def encoded(format, **options):
    out = io.BytesIO()
    picture().save(out, format, **options)
    return out.getvalue()


def tiff(tags, data):
    """A little-endian TIFF of one directory, whose strips or tiles are `data`, one after the other."""
    tags = dict(tags)
    offsets, at = [], 8
    for part in data:
        offsets.append(at)
        at += len(part)
    entries, extra = b"", b""
    end = at + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        if values == "offsets":
            values = offsets
        kind, form = (4, "I") if max(values) > 65535 or len(values) > 1 and values is offsets else (3, "H")
        packed = struct.pack(f"<{len(values)}{form}", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), end + len(extra))
            extra += packed
        else:
            entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = struct.pack("<2sHI", b"II", 42, at)
    return head + b"".join(data) + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + extra


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pictures():
    tile = bytes(range(256)) * 4
    tiles = [tile] * 12
    tags = {
        256: [64], 257: [48], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3], 284: [2],
        322: [32], 323: [32], 324: "offsets", 325: [len(t) for t in tiles],
    }
    put("pictures/tiled-planes.tif", tiff(tags, tiles))
    huge = dict(tags) | {256: [65535], 257: [65535], 322: [65520], 323: [65520]}
    put("pictures/tiles-beyond-memory.tif", tiff(huge, tiles))
    jpeg = encoded("JPEG", quality=90)
    middle = len(jpeg) * 2 // 3
    put("pictures/zeros-inside.jpg", jpeg[:middle] + b"\0" * 200 + jpeg[middle + 200 :])
    put("pictures/cut.jpg", jpeg[:middle])
    progressive = encoded("JPEG", quality=90, progressive=True)
    put("pictures/cut-progressive.jpg", progressive[: len(progressive) // 2])
    png = encoded("PNG")
    put("pictures/cut.png", png[: len(png) // 2])
    broken = bytearray(png)
    broken[len(png) // 2] ^= 1
    put("pictures/checksum.png", bytes(broken))
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    put("pictures/beyond-memory.png", png[:8] + body)
    webp = encoded("WEBP", lossless=True)
    put("pictures/cut.webp", webp[: len(webp) // 2])
    gif = encoded("GIF")
    put("pictures/cut.gif", gif[: len(gif) // 2])
    bmp = bytearray(encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, -(2**31))
    put("pictures/sides.bmp", bytes(bmp))
    put("pictures/empty.png", b"")
    put("pictures/page.jpg", "<!DOCTYPE html><title>404</title>")


def safetensors(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def weights():
    f32 = lambda shape, end: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    a, sdxl = "lora_unet_x.lora_down.weight", "lora_unet_down_blocks_1_attentions_0_proj_in"
    files = {
        "page.safetensors": b"<!DOCTYPE html><html><title>Sign in</title></html>",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "pickle.pt": b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.",
        "archive.ckpt": b"PK\x03\x04" + b"\0" * 60,
        "empty.safetensors": b"",
        "seven-bytes.safetensors": b"\x10\0\0\0\0\0\0",
        "header-beyond-file.safetensors": struct.pack("<Q", 2**63) + b"{}",
        "nested-header.safetensors": safetensors(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        "sizes-overflow.safetensors": safetensors({"a": f32([2**63, 4], 0)}),
        "offsets-backwards.safetensors": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        "cut.safetensors": safetensors({a: f32([4, 8], 128)}, b"\0" * 60),
        "names-with-escapes.safetensors": safetensors({"a\x1b[2J\r\n" + "x" * 20000: f32([1], 4)}, b"\0" * 4),
        "half-a-pair.safetensors": safetensors({a: f32([4, 8], 128)}, b"\0" * 128),
        "alpha-not-a-number.safetensors": safetensors(
            {
                f"{sdxl}.lora_down.weight": f32([1, 640], 2560),
                f"{sdxl}.lora_up.weight": {"dtype": "F32", "shape": [640, 1], "data_offsets": [2560, 5120]},
                f"{sdxl}.alpha": {"dtype": "F32", "shape": [], "data_offsets": [5120, 5124]},
            },
            b"\0" * 5120 + struct.pack("<f", float("nan")),
        ),
        "no-values.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        "long-name.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 2**62) + b"a",
        "many-dimensions.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<I", 2**31),
    }
    for name, data in files.items():
        put(f"weights/{name}", data)


experiments()
pictures()
weights()
