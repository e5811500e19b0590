"""Encoding on a Ray cluster.

All that an Experiment needs, from any machine of the cluster (the Experiment, what it names and its store in folders that all see):

    python -m plumb.ray exp.toml

Captions of a Ray data set, by actors that keep their encoders:

    captions.map_batches(
        plumb.ray.Encode, fn_constructor_args=("exp.toml",), batch_format="pyarrow", batch_size=1024,
        num_gpus=1, compute=ray.data.ActorPoolStrategy(size=8),
    )
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pyarrow as pa
import ray

from . import _program
from .worker import Worker


class Encode:
    """For `map_batches` with `batch_format="pyarrow"`: adds the columns `error` and `entries`. Arguments are those of
    `plumb.worker.Worker`, and the name of the column with captions."""

    def __init__(self, experiment: str, *, column: str = "caption", **options: object) -> None:
        self._worker = Worker(experiment, **options)
        self._column = column

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._worker.encode(batch, self._column)


def _part(number: int, of: int, arguments: list[str], threads: int) -> dict:
    """Encodes a part; what the program reports."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    return _program.ask("encode", *arguments, "--part", f"{number}/{of}")


def encode(arguments: list[str], *, parts: int, cpus: int = 1, gpus: float = 0) -> None:
    """Runs `plumb encode` with `arguments` as so many parts, tasks of Ray. A part whose machine is lost is begun again elsewhere."""
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(_part)
    left = [task.remote(number, parts, arguments, max(1, cpus)) for number in range(1, parts + 1)]
    while left:
        done, left = ray.wait(left)
        for report in ray.get(done):
            part = report["part"]
            print(f"part {part['part']}: {part['entries']} of {part['of']} entries; {len(left)} parts left", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m plumb.ray", description="Runs `plumb encode` on a Ray cluster.")
    parser.add_argument("experiment", help="the Experiment file, in a folder that all machines see")
    parser.add_argument("--captions", metavar="FILE", help="as in `plumb encode`")
    parser.add_argument("--parts", type=int, help="tasks; by default four for each GPU, or for each --cpus of the cluster")
    parser.add_argument("--cpus", type=int, default=4, help="CPU cores for each task (4)")
    parser.add_argument("--gpus", type=float, help="GPUs for each task (1 where the cluster has some)")
    given = parser.parse_args()
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    there = ray.cluster_resources()
    gpus = given.gpus if given.gpus is not None else float(there.get("GPU", 0) >= 1)
    at_once = there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1) / max(1, given.cpus)
    parts = given.parts if given.parts is not None else max(1, 4 * int(at_once))
    arguments = [os.path.abspath(given.experiment)]
    if given.captions:
        arguments += ["--captions", os.path.abspath(given.captions)]
    encode(arguments, parts=parts, cpus=given.cpus, gpus=gpus)
    # Nothing is left to do but to look: it tells what there is, and of what is not.
    return subprocess.run([_program.find(), "encode", *arguments, "--device", "cpu"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
