"""Picture files of every kind, written by Pillow, with the RGB pixels that Pillow reads from them.

Run: python tools/goldens/pictures.py     (from the repository's root; needs numpy, pillow, safetensors)

Writes the files to tests/golden/pictures/ and to tests/golden/pictures.safetensors, per file, uint8
[height, width, 3]: the picture turned by its EXIF orientation and laid over white.
"""

from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps
from safetensors.numpy import save_file

FOLDER = Path("tests/golden/pictures")
WIDTH, HEIGHT = 24, 17


def smooth(channels=3):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [127 + 120 * np.sin(x / (5 + c) + y / (9 - c) + c) for c in range(channels)]
    return np.stack(planes, -1).round().astype(np.uint8)


def over_white(picture):
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        pixels = np.asarray(picture.convert("RGBA")).astype(np.int64)
        alpha = pixels[..., 3:]
        return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        return np.repeat(((wide + 128) // 257)[..., None], 3, -1).astype(np.uint8)
    return np.asarray(picture.convert("RGB"))


def main():
    FOLDER.mkdir(exist_ok=True)
    rgb = Image.fromarray(smooth())
    rgba = Image.fromarray(smooth(4))
    grey = rgb.convert("L")
    wide = Image.fromarray((smooth(1)[..., 0].astype(np.uint16) * 257 + 91))
    exif = Image.Exif()
    files = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgba, {}),
        "grey.png": (grey, {}),
        "grey_alpha.png": (Image.merge("LA", (grey, rgba.getchannel("A"))), {}),
        "palette.png": (rgb.quantize(32), {}),
        "palette_transparent.png": (rgb.quantize(32), {"transparency": 3}),
        "bilevel.png": (grey.convert("1"), {}),
        "grey16.png": (wide, {}),
        "rgb.bmp": (rgb, {}),
        "rgb.webp": (rgb, {"lossless": True}),
        "rgba.webp": (rgba, {"lossless": True, "exact": True}),
        "rgb.tiff": (rgb, {}),
        "grey.gif": (grey, {}),
        "rgb.jpg": (rgb, {"quality": 95, "subsampling": 0}),
        "rgb_420.jpg": (rgb, {"quality": 90, "subsampling": 2}),
        "progressive.jpg": (rgb, {"quality": 90, "progressive": True}),
        "grey.jpg": (grey, {"quality": 95}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"quality": 95}),
        "cmyk.tiff": (rgb.convert("CMYK"), {}),
    }
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        files[f"turned_{orientation}.png"] = (rgb, {"exif": exif.tobytes()})
    files["turned_6.jpg"] = (rgb, {"quality": 95, "subsampling": 0, "exif": files["turned_6.png"][1]["exif"]})
    tensors = {}
    for name, (picture, options) in files.items():
        picture.save(FOLDER / name, **options)
        with Image.open(FOLDER / name) as read:
            tensors[name] = np.ascontiguousarray(over_white(read))
    # Kinds that are refused.
    frames = [Image.fromarray(np.roll(smooth(), n, 1)) for n in range(3)]
    for name in ["animated.gif", "animated.webp", "animated.png"]:
        frames[0].save(FOLDER / name, save_all=True, append_images=frames[1:])
    Image.fromarray(smooth(1)[..., 0].astype(np.float32) / 255).save(FOLDER / "float.tiff")
    metadata = {"script": "tools/goldens/pictures.py", "pillow": PIL.__version__}
    save_file(tensors, "tests/golden/pictures.safetensors", metadata)


if __name__ == "__main__":
    main()
