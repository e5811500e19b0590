"""The `plumb` program, which looks at Experiments: resolving recipes and digesting weights is done in one place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import warnings
from typing import Any

from ._errors import Error, Refused

VARIABLE = "PLUMB_PROGRAM"
"""Names the program, where it is not the one of this package or on the path."""


def find() -> str:
    """The program: named by PLUMB_PROGRAM, of this Python environment, or on the path."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    own = shutil.which("plumb", path=sysconfig.get_path("scripts"))
    found = own or shutil.which("plumb")
    if found is None:
        raise Error(
            "an Experiment is looked at by the `plumb` program, which is neither in this Python environment nor on the path: "
            f"`pip install` plumb, set {VARIABLE}, or give a recipe of `Store.recipes()` or a manifest, which need no program"
        )
    return found


def ask(*arguments: str) -> dict[str, Any]:
    """Runs the program with `--json` and gives what it reports.

    Raises Refused where it refuses (exit status 4), Error in its own words where it fails. Problems that it tells of are warnings.
    """
    program = find()
    try:
        ran = subprocess.run(
            [program, "--json", "--quiet", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except (OSError, ValueError) as error:
        raise Error(f"{program}: cannot be run: {error}") from None
    said = ran.stderr.strip()
    for mark, kind in (("refused: ", Refused), ("error: ", Error)):
        # What comes before are notes and problems of one line each.
        at = 0 if said.startswith(mark) else said.find("\n" + mark) + 1
        if ran.returncode not in (0, 3) and said.startswith(mark, at):
            raise kind(said[at + len(mark) :])
    for line in said.splitlines():
        warnings.warn(line.removeprefix("problem: "), RuntimeWarning, stacklevel=2)
    try:
        found = json.loads(ran.stdout)
    except ValueError:
        found = None
    if ran.returncode not in (0, 3) or not isinstance(found, dict):
        raise Error(f"{program} {' '.join(arguments)}: exit status {ran.returncode}: {said or ran.stdout[:200]}")
    return found
