"""The peer of `benches inspect`: FILE WIDTH ABOVE NEAREST; prints JSON. What a user writes with numpy, in blocks so that it fits memory."""

import json
import resource
import sys
import time

import numpy as np

BLOCK = 2048


def timed(work):
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    found["clock"], found["processor"] = time.perf_counter() - clock, time.process_time() - processor
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def neighbors(vectors, above, nearest):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near, best = 0, []
    for start in range(0, len(unit), BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -2
        near += int(np.count_nonzero(cosines >= above))
        # A copy: the slice alone would keep the whole block.
        best.append(np.argpartition(cosines, -nearest, axis=1)[:, -nearest:].copy())
    return {"near_duplicates": near // 2, "found": len(np.concatenate(best))}


def plane(vectors):
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    points = centred @ axes[:, -2:]
    return {"explained": float(values[-1] / values.sum()), "points": len(points)}


def main():
    file, width, above, nearest = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    vectors = np.fromfile(file, np.float32).reshape(-1, width)
    print(json.dumps({"plane": timed(lambda: plane(vectors)), "neighbors": timed(lambda: neighbors(vectors, above, nearest))}))


main()
