"""Golden resized pictures: Pillow's LANCZOS where a side grows, OpenCV's INTER_AREA where none does.

Run: python tools/goldens/resize.py     (from the repository's root; needs numpy, pillow, opencv-python-headless)

tests/golden/resize.safetensors holds per case `<n>.in` and `<n>.out`, uint8 [height, width, 3], and in the
metadata for each n the filter.
"""

import json

import cv2
import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

CASES = [
    # (width, height) from, to
    ((40, 30), (64, 48)),
    ((40, 30), (41, 30)),
    ((40, 30), (40, 77)),
    ((7, 5), (96, 64)),
    ((1, 1), (16, 16)),
    ((2, 90), (33, 64)),
    ((90, 20), (64, 32)),
    ((96, 64), (48, 32)),
    ((97, 61), (48, 32)),
    ((64, 48), (63, 48)),
    ((100, 100), (99, 77)),
    ((120, 80), (64, 43)),
    ((61, 97), (7, 5)),
]


def picture(width, height, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([127 + 120 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(3)], -1)
    noise = rng.integers(0, 256, (height, width, 3))
    edges = np.where(((x // 9 + y // 6) % 2 == 0)[..., None], smooth, noise)
    return np.clip(edges, 0, 255).astype(np.uint8)


def main():
    tensors, filters = {}, {}
    for n, (source, target) in enumerate(CASES):
        pixels = picture(*source, seed=n)
        if target[0] <= source[0] and target[1] <= source[1]:
            resized = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
            filters[n] = "area"
        else:
            resized = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.LANCZOS))
            filters[n] = "lanczos"
        tensors[f"{n}.in"], tensors[f"{n}.out"] = pixels, np.ascontiguousarray(resized)
    metadata = {
        "script": "tools/goldens/resize.py",
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
        "filters": json.dumps(filters),
    }
    save_file(tensors, "tests/golden/resize.safetensors", metadata)


if __name__ == "__main__":
    main()
