"""The aspect-ratio rule of kohya's sd-scripts, stated independently, and its answers for many picture sizes.

Run: python tools/goldens/buckets.py     (from the repository's root; needs numpy and safetensors only)

The rule (sd-scripts: library/model_util.py make_bucket_resolutions, library/train_util.py BucketManager):

Candidates. For every width that is `min + n * step` and at most `max`, the height is the most whole steps that keep
the area within that of the resolution, at most `max`; it counts if it is at least `min`, and then so does the same
turned by a quarter. The square of the most whole steps within the area counts as well.

Choice. A picture whose size is a candidate keeps it. Any other takes the candidate whose width / height is nearest,
the first in order of (width, height) if two are equally near. The picture is scaled to cover it (the side that would
be too long is the one that overhangs), both sides rounded half up.

Without enlarging, there are no candidates. A picture of no more than the resolution's area keeps its size; a larger
one is scaled to that area, then either width or height is rounded to steps (half up, then down), whichever leaves
the ratio of both rounded nearer to the picture's (the height where equal), the other side follows the picture's
ratio. The bucket is the most whole steps of each side.

tests/golden/buckets.safetensors holds per rule an int32 table of rows
(width, height, bucket width, bucket height, resized width, resized height), and the rule in the metadata.
"""

import json
import math
import random

import numpy as np
import safetensors
from safetensors.numpy import save_file


def candidates(area, least, most, step):
    side = int(math.sqrt(area) // step) * step
    found = {(side, side)}
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            found |= {(width, height), (height, width)}
    return sorted(found)


def half_up(x):
    return int(x + 0.5)


def with_candidates(width, height, sizes):
    ratio = width / height
    if (width, height) in sizes:
        bucket = (width, height)
    else:
        bucket = min(sizes, key=lambda s: abs(s[0] / s[1] - ratio))
    if ratio > bucket[0] / bucket[1]:
        scale = bucket[1] / height
    else:
        scale = bucket[0] / width
    return bucket, (half_up(width * scale), half_up(height * scale))


def without_enlarging(width, height, area, step):
    def to_steps(x):
        return half_up(x) // step * step

    ratio = width / height
    resized = (width, height)
    if width * height > area:
        ideal_width = math.sqrt(area * ratio)
        ideal_height = area / ideal_width
        by_width = to_steps(ideal_width)
        its_height = to_steps(by_width / ratio)
        by_height = to_steps(ideal_height)
        its_width = to_steps(by_height * ratio)
        if 0 in (its_height, by_height, by_width, its_width):
            return None
        if abs(by_width / its_height - ratio) < abs(its_width / by_height - ratio):
            resized = (by_width, half_up(by_width / ratio))
        else:
            resized = (half_up(by_height * ratio), by_height)
    bucket = tuple(side // step * step for side in resized)
    return (bucket, resized) if min(bucket) > 0 else None


RULES = {
    "sd15": dict(resolution=[512, 512], min=256, max=1024, step=64, no_upscale=False),
    "sdxl": dict(resolution=[1024, 1024], min=512, max=2048, step=64, no_upscale=False),
    "sdxl_kohya_default": dict(resolution=[1024, 1024], min=256, max=1024, step=64, no_upscale=False),
    "oblong": dict(resolution=[512, 768], min=256, max=1024, step=32, no_upscale=False),
    # kohya rounds bounds to whole steps, the resolution's area stays.
    "side_1000": dict(resolution=[1000, 1000], min=256, max=2048, step=64, no_upscale=False),
    "wide": dict(resolution=[1080, 720], min=256, max=2176, step=64, no_upscale=False),
    "tiny": dict(resolution=[128, 128], min=64, max=256, step=16, no_upscale=False),
    "no_upscale": dict(resolution=[1024, 1024], min=512, max=2048, step=64, no_upscale=True),
    "no_upscale_fine": dict(resolution=[512, 512], min=256, max=1024, step=8, no_upscale=True),
}


def sizes(rule, count=1500):
    rng = random.Random(7)
    area = rule["resolution"][0] * rule["resolution"][1]
    listed = candidates(area, rule["min"], rule["max"], rule["step"])
    yield from listed
    for width, height in listed:
        yield width - 1, height
        yield 2 * width + 1, 2 * height
    yield from [(1, 1), (1, 2), (6000, 4000), (4000, 6000), (3000, 300), (300, 3000), (1920, 1080), (63, 65)]
    for _ in range(count):
        yield int(2 ** rng.uniform(5, 13)), int(2 ** rng.uniform(5, 13))
    for _ in range(count // 2):
        height = rng.randint(64, 4096)
        yield max(1, int(height * rng.uniform(0.5, 2.0))), height


def main():
    tables = {}
    for name, rule in RULES.items():
        area = rule["resolution"][0] * rule["resolution"][1]
        listed = candidates(area, rule["min"], rule["max"], rule["step"])
        rows = []
        for width, height in sizes(rule):
            if rule["no_upscale"]:
                answer = without_enlarging(width, height, area, rule["step"])
            else:
                answer = with_candidates(width, height, listed)
            if answer is None:
                rows.append((width, height, 0, 0, 0, 0))
            else:
                rows.append((width, height, *answer[0], *answer[1]))
        tables[name] = np.array(rows, dtype=np.int32)
    metadata = {"script": "tools/goldens/buckets.py", "safetensors": safetensors.__version__, "rules": json.dumps(RULES)}
    save_file(tables, "tests/golden/buckets.safetensors", metadata)


if __name__ == "__main__":
    main()
