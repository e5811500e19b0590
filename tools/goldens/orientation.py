"""Small pictures with an orientation in every place and form, and how Pillow's `ImageOps.exif_transpose` turns them.

Run: python tools/goldens/orientation.py     (from the repository's root; needs numpy, pillow, safetensors)

Writes tests/golden/orientation.safetensors: of each case the file (`NAME.file`, uint8 [bytes]) and the turned pixels
(`NAME.rgb`, uint8 [height, width, 3]).
"""

import io
import struct
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps
from safetensors.numpy import save_file

PREFIX = b"Exif\0\0"
SHORT, LONG = 3, 4
# TIFF's kinds of numbers, each as the bytes of one.
KINDS = {1: "B", 2: "B", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "B", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L", 16: "Q", 17: "q"}

y, x = np.mgrid[0:6, 0:10]
PICTURE = Image.fromarray(np.stack([25 * x, 40 * y, 12 * (x + y)], -1).astype(np.uint8))


def exif(value, kind=SHORT, order="<", count=1, tag=274, twice=None):
    """EXIF data whose first directory has one entry, or two of the same tag."""
    entries = [(tag, kind, count, value)] + ([(tag, SHORT, 1, twice)] if twice else [])
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    directory, rest = struct.pack(order + "H", len(entries)), b""
    place = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        pair = (value, 1) if len(KINDS[kind]) == 2 else (value,)
        data = struct.pack(order + KINDS[kind], *pair) * count
        if len(data) > 4:
            data, rest = struct.pack(order + "L", place + len(rest)), rest + data
        directory += struct.pack(order + "HHL", tag, kind, count) + data.ljust(4, b"\0")
    return head + directory + bytes(4) + rest


def xmp(value, form="attribute"):
    inner = f' tiff:Orientation="{value}">' if form == "attribute" else f"><tiff:Orientation>{value}</tiff:Orientation>"
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description{inner}</rdf:Description></x:xmpmeta>'.encode()


def jpeg(*segments):
    out = io.BytesIO()
    PICTURE.save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + out.getvalue()[2:]


def jpeg_xmp(text):
    return b"http://ns.adobe.com/xap/1.0/\0" + text


def chunk(kind, content):
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(*before, after=()):
    out = io.BytesIO()
    PICTURE.save(out, "PNG")
    data = out.getvalue()
    return data[:33] + b"".join(before) + data[33:-12] + b"".join(after) + data[-12:]


def raw_profile(data, name=b"exif"):
    return b"\n" + name + b"\n%8d\n" % len(data) + b"\n".join(data.hex().encode()[n : n + 72] for n in range(0, 2 * len(data), 72)) + b"\n"


def text(keyword, content):
    return chunk(b"tEXt", keyword + b"\0" + content)


def compressed(keyword, content):
    return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(content))


def international(keyword, content, squeeze=False):
    content = zlib.compress(content) if squeeze else content
    return chunk(b"iTXt", keyword + b"\0" + bytes([squeeze, 0]) + b"\0\0" + content)


def webp(exif=None, xmp=None):
    out = io.BytesIO()
    PICTURE.save(out, "WEBP", lossless=True)
    flags = (8 if exif else 0) | (4 if xmp else 0)
    size = b"".join(struct.pack("<L", side - 1)[:3] for side in PICTURE.size)
    riff = lambda kind, data: kind + struct.pack("<L", len(data)) + data + bytes(len(data) % 2)
    body = riff(b"VP8X", bytes([flags, 0, 0, 0]) + size) + out.getvalue()[12:]
    body += riff(b"EXIF", exif) if exif else b""
    body += riff(b"XMP ", xmp) if xmp else b""
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


def tiff(order="<", orientation=None, packet=None, big=False):
    """`orientation`: kind, count and value of tag 274. `packet`: the bytes of tag 700."""
    pixels = PICTURE.tobytes()
    width, height = PICTURE.size
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [2]), (273, 4, None)]
    if orientation:
        kind, count, value = orientation
        tags.append((274, kind, [value] * count if len(KINDS[kind]) == 1 else [value, 1] * count))
    tags += [(277, 3, [3]), (278, 4, [height]), (279, 4, [len(pixels)])]
    if packet:
        tags.append((700, 1, list(packet)))
    offset, counts, length = ("Q", "Q", 20) if big else ("L", "H", 12)
    place = struct.calcsize("=" + offset)
    start = 16 if big else 8
    data_at = start + struct.calcsize("=" + counts) + length * len(tags) + place
    rest, entries = pixels, b""
    for tag, kind, values in tags:
        values = [data_at] if values is None else values
        data = b"".join(struct.pack(order + KINDS[kind][0], v) for v in values)
        count = len(values) // len(KINDS[kind])
        if len(data) > place:
            data, rest = struct.pack(order + offset, data_at + len(rest)), rest + data
        entries += struct.pack(order + "HH" + offset, tag, kind, count) + data.ljust(place, b"\0")
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HL", 42, 8)
    return head + struct.pack(order + counts, len(tags)) + entries + bytes(place) + rest


def cases():
    orders = {"le": "<", "be": ">"}
    for value in range(10):
        for name, order in orders.items():
            data = exif(value, order=order)
            yield f"jpeg_exif_{name}_{value}", jpeg(PREFIX + data)
            yield f"png_exif_{name}_{value}", png(chunk(b"eXIf", data))
            yield f"webp_exif_{name}_{value}", webp(exif=data)
            yield f"tiff_{name}_{value}", tiff(order, (SHORT, 1, value))
    for kind in KINDS:
        for name, order in orders.items():
            for count in 1, 2:
                data = exif(6, kind, order, count)
                yield f"jpeg_kind{kind}_{count}_{name}", jpeg(PREFIX + data)
                yield f"png_kind{kind}_{count}_{name}", png(chunk(b"eXIf", data))
                yield f"webp_kind{kind}_{count}_{name}", webp(exif=data)
                if kind not in (16, 17):
                    yield f"tiff_kind{kind}_{count}_{name}", tiff(order, (kind, count, 6))
        # Pillow reads no other BigTIFF.
        yield f"bigtiff_kind{kind}", tiff("<", (kind, 1, 6), big=True)
    six, three, none = exif(6), exif(3), exif(5, tag=271)
    yield "jpeg_prefix_twice", jpeg(PREFIX + PREFIX + six)
    yield "jpeg_in_two_segments", jpeg(PREFIX + six[:14], PREFIX + six[14:])
    yield "jpeg_two_exif", jpeg(PREFIX + six, PREFIX + three)
    yield "jpeg_tag_twice", jpeg(PREFIX + exif(6, twice=3))
    yield "jpeg_tag_twice_first_of_no_kind", jpeg(PREFIX + exif(6, 17, twice=3))
    yield "jpeg_xmp_before_exif", jpeg(jpeg_xmp(xmp(3)), PREFIX + six)
    yield "jpeg_exif_1_and_xmp", jpeg(PREFIX + exif(1), jpeg_xmp(xmp(6)))
    yield "jpeg_exif_9_and_xmp", jpeg(PREFIX + exif(9), jpeg_xmp(xmp(6)))
    yield "jpeg_exif_without_and_xmp", jpeg(PREFIX + none, jpeg_xmp(xmp(6)))
    yield "jpeg_two_xmp", jpeg(jpeg_xmp(xmp(3)), jpeg_xmp(xmp(6)))
    for value in range(10):
        for form in "attribute", "element":
            packet = xmp(value, form)
            yield f"jpeg_xmp_{form}_{value}", jpeg(jpeg_xmp(packet))
            yield f"png_xmp_{form}_{value}", png(international(b"XML:com.adobe.xmp", packet))
            yield f"webp_xmp_{form}_{value}", webp(xmp=packet)
            yield f"tiff_xmp_{form}_{value}", tiff(packet=packet)
    for name, data in {"plain": six, "prefix": PREFIX + six, "prefix_twice": PREFIX + PREFIX + six}.items():
        if name != "prefix_twice":
            yield f"png_before_{name}", png(chunk(b"eXIf", data))
            yield f"png_after_{name}", png(after=[chunk(b"eXIf", data)])
        yield f"webp_{name}", webp(exif=data)
        for way in text, compressed, international:
            yield f"png_profile_{way.__name__}_{name}", png(way(b"Raw profile type exif", raw_profile(data)))
            yield f"png_profile_after_{way.__name__}_{name}", png(after=[way(b"Raw profile type exif", raw_profile(data))])
            yield f"png_app1_{way.__name__}_{name}", png(way(b"Raw profile type APP1", raw_profile(data, b"generic")))
        yield f"png_text_exif_{name}", png(text(b"exif", data))
    yield "png_profile_squeezed", png(international(b"Raw profile type exif", raw_profile(six), True))
    yield "png_profile_and_exif", png(compressed(b"Raw profile type exif", raw_profile(three)), chunk(b"eXIf", six))
    yield "png_two_exif", png(chunk(b"eXIf", three), after=[chunk(b"eXIf", six)])
    yield "png_xmp_squeezed", png(international(b"XML:com.adobe.xmp", xmp(6), True))
    yield "png_xmp_after", png(after=[international(b"XML:com.adobe.xmp", xmp(6))])
    yield "png_xmp_text", png(text(b"XML:com.adobe.xmp", xmp(6)))
    yield "png_xmp_compressed", png(compressed(b"XML:com.adobe.xmp", xmp(6)))
    yield "png_exif_1_and_xmp", png(chunk(b"eXIf", exif(1)), international(b"XML:com.adobe.xmp", xmp(6)))
    yield "png_exif_without_and_xmp", png(chunk(b"eXIf", none), international(b"XML:com.adobe.xmp", xmp(6)))
    yield "png_xmp_no_digit_then_one", png(international(b"XML:com.adobe.xmp", b'tiff:Orientation="x" tiff:Orientation="6"'))
    yield "png_xmp_two_digits", png(international(b"XML:com.adobe.xmp", b'tiff:Orientation="61"'))
    yield "webp_exif_without_and_xmp", webp(none, xmp(6))
    yield "tiff_1_and_xmp", tiff(orientation=(SHORT, 1, 1), packet=xmp(6))
    yield "tiff_6_and_xmp", tiff(orientation=(SHORT, 1, 6), packet=xmp(3))


def main():
    tensors = {}
    for name, data in cases():
        with Image.open(io.BytesIO(data)) as picture:
            turned = ImageOps.exif_transpose(picture).convert("RGB")
        tensors[f"{name}.file"] = np.frombuffer(data, np.uint8)
        tensors[f"{name}.rgb"] = np.ascontiguousarray(np.asarray(turned))
    metadata = {"script": "tools/goldens/orientation.py", "pillow": PIL.__version__}
    save_file(tensors, "tests/golden/orientation.safetensors", metadata)
    print(len(tensors) // 2, "cases")


if __name__ == "__main__":
    main()
