"""Small pictures of rare kinds, and the pixels that Pillow reads from them, laid over white.

Run: python tools/goldens/odd_pictures.py     (from the repository's root; needs numpy, pillow, safetensors)

Writes tests/golden/odd_pictures.safetensors: of each the file (`NAME.file`, uint8 [bytes]) and its pixels (`NAME.rgb`, uint8
[height, width, 3]). TIFFs whose colours are multiplied by their alpha, or are not; animations of one frame.
"""

import io
import struct
import zlib

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

WIDTH, HEIGHT = 12, 7
y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
ALPHA = np.clip(23 * x, 0, 255)
COLOURS = np.stack([20 * x, 36 * y, 255 - 11 * (x + y)], -1)


def tiff(order, bits, extra, premultiplied):
    """A TIFF of four samples a pixel; `extra`: what tag 338 says of the fourth, or None."""
    colours = COLOURS * ALPHA[..., None] // 255 if premultiplied else COLOURS
    samples = np.concatenate([colours, ALPHA[..., None]], -1) * (257 if bits == 16 else 1)
    pixels = samples.astype(f"{order}u{bits // 8}").tobytes()
    tags = [(256, 4, [WIDTH]), (257, 4, [HEIGHT]), (258, 3, [bits] * 4), (259, 3, [1]), (262, 3, [2]), (273, 4, None)]
    tags += [(277, 3, [4]), (278, 4, [HEIGHT]), (279, 4, [len(pixels)])]
    if extra is not None:
        tags.append((338, 3, [extra]))
    data_at = 8 + 2 + 12 * len(tags) + 4
    rest, entries = pixels, b""
    for tag, kind, values in tags:
        values = [data_at] if values is None else values
        data = b"".join(struct.pack(order + "HL"[kind - 3], value) for value in values)
        if len(data) > 4:
            data, rest = struct.pack(order + "L", data_at + len(rest)), rest + data
        entries += struct.pack(order + "HHL", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "LH", 8, len(tags)) + entries + bytes(4) + rest


def saved(kind, mode, **options):
    pixels = np.concatenate([COLOURS, ALPHA[..., None]], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def apng(mode):
    """An animation whose one frame is the picture itself."""
    def chunk(kind, content):
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    data = saved("PNG", mode)
    frame = struct.pack(">LLLLLHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    return data[:33] + chunk(b"acTL", struct.pack(">LL", 1, 0)) + chunk(b"fcTL", frame) + data[33:]


def animated_webp(mode, lossless):
    def riff(kind, content):
        return kind + struct.pack("<L", len(content)) + content + bytes(len(content) % 2)

    def three(number):
        return struct.pack("<L", number)[:3]

    still = saved("WEBP", mode, lossless=lossless, exact=True, quality=100)[12:]
    # An extended file has its size and flags first.
    still = still[18:] if still.startswith(b"VP8X") else still
    size = three(WIDTH - 1) + three(HEIGHT - 1)
    frame = bytes(6) + size + three(100) + b"\2" + still
    flags = 2 | (16 if mode == "RGBA" else 0)
    body = riff(b"VP8X", bytes([flags, 0, 0, 0]) + size) + riff(b"ANIM", bytes(6)) + riff(b"ANMF", frame)
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


def over_white(picture):
    pixels = np.asarray(picture.convert("RGBA")).astype(np.int64)
    alpha = pixels[..., 3:]
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def main():
    files = {}
    for name, order in {"le": "<", "be": ">"}.items():
        for bits in 8, 16:
            files[f"tiff_premultiplied_{bits}_{name}"] = tiff(order, bits, 1, True)
            files[f"tiff_straight_{bits}_{name}"] = tiff(order, bits, 2, False)
            files[f"tiff_unspecified_{bits}_{name}"] = tiff(order, bits, 0, False)
            files[f"tiff_unsaid_{bits}_{name}"] = tiff(order, bits, None, False)
    for mode in "RGB", "RGBA":
        files[f"apng_{mode}"] = apng(mode)
        files[f"webp_lossless_{mode}"] = animated_webp(mode, True)
    files["webp_lossy_RGB"] = animated_webp("RGB", False)
    tensors = {}
    for name, data in files.items():
        with Image.open(io.BytesIO(data)) as picture:
            tensors[f"{name}.rgb"] = np.ascontiguousarray(over_white(picture))
        tensors[f"{name}.file"] = np.frombuffer(data, np.uint8)
    save_file(tensors, "tests/golden/odd_pictures.safetensors", {"script": "tools/goldens/odd_pictures.py", "pillow": PIL.__version__})


if __name__ == "__main__":
    main()
