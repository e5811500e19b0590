"""Compares the caches that the scripts beside this one left with what plumb gives for the recipe that each manifest names.

    PLUMB=target/debug/plumb python tools/foreign/check.py FOLDER [WORD]

One line a case: the largest relative error over its captions (of the context and of the pooled vector, each against its own
largest number), and of the latents the largest distance from plumb's mean in standard deviations, or as it is where the
trainer keeps the mean. WORD picks the cases whose path has it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import ASSETS  # noqa: E402
from read import latents_of, texts_of  # noqa: E402

FLAVORS = {"sd3": 'flavor = "3.5-large"', "flux1": 'flavor = "dev"', "sdxl": 'flavor = "base-1.0"'}
PLUMB = os.environ.get("PLUMB", "plumb")


def experiment(folder, case, store):
    lines = [
        "[model]", f'family = "{case["family"]}"', FLAVORS[case["family"]], f'path = "{ASSETS / case["model"]}"',
        "[recipe]", f'variant = "{case["variant"]}"', "[recipe.deviate]",
    ]
    for field, value in case["changed"].items():
        if field != "dtype":
            lines.append(f"{field} = {json.dumps(value)}")
    lines += ["[store]", f'path = "{store}"', "[[dataset]]", f'path = "{folder}"', "resolution = 128", "bucket_step = 16"]
    return "\n".join(lines) + "\n"


def plumb(*args):
    done = subprocess.run([PLUMB, "--quiet", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"plumb {' '.join(map(str, args))}: {done.stderr.strip()}")


def error(theirs, ours):
    """The largest difference over the largest number; rows that one has more than the other are said."""
    theirs, ours = theirs.float(), ours.float()
    if theirs.shape != ours.shape:
        return f"{list(theirs.shape)} against {list(ours.shape)}"
    return float((theirs - ours).abs().max() / ours.abs().max())


def worst(errors):
    """The largest number, and how many differ in shape, if any."""
    named = [e for e in errors if isinstance(e, str)]
    most = max((e for e in errors if not isinstance(e, str)), default=0.0)
    return f"{most:.2g}; {len(named)} of {len(errors)}: {named[0]}" if named else most


def run(manifest, folder, temp):
    case = json.loads(manifest.read_text())
    path = temp / "exp.toml"
    path.write_text(experiment(folder, case, temp / "store"))
    contexts, pooleds, latents = [], [], []
    by_file = []
    for file, caption in case["captions"].items():
        if file in case["stale"]:
            continue
        texts = texts_of(folder, case, file, caption)
        if texts is None:
            by_file.append(f"{file}: no entry")
            continue
        out = temp / "c.safetensors"
        plumb("inspect", "conditioning", path, "--caption", caption, "--out", out)
        ours = load_file(out)
        contexts.append(error(texts[0], ours["context"][0]))
        pooleds.append(error(texts[1], ours["pooled"][0]))
        by_file.append(f"{file}: {contexts[-1]} {pooleds[-1]}")
        made = latents_of(folder, case, file)
        if made is not None:
            plumb("inspect", "latents", path, "--picture", folder / file, "--out", out)
            latents.append(of_latents(case, made, load_file(out)))
    return case, worst(contexts), worst(pooleds), worst(latents), by_file


def of_latents(case, made, ours):
    if made.shape != ours["mean"][0].shape:
        return f"{list(made.shape)} against {list(ours['mean'][0].shape)}"
    vae = json.loads((ASSETS / case["model"] / "vae/config.json").read_text())
    scaled = "scaled" in case["latents"]["is"]
    if scaled:
        made = made / vae["scaling_factor"] + (vae.get("shift_factor") or 0)
    distance = (made.float() - ours["mean"][0]).abs()
    if case["latents"]["is"] == "mean":
        return float(distance.max() / ours["mean"].abs().max())
    return float((distance / torch.exp(0.5 * ours["logvar"][0])).max())


def main():
    root = Path(sys.argv[1])
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    shown = lambda e: e if isinstance(e, str) else f"{e:.2g}"
    with tempfile.TemporaryDirectory() as temp:
        for manifest in sorted(root.rglob("manifest.json")):
            if word not in str(manifest):
                continue
            case, context, pooled, latents, by_file = run(manifest, manifest.parent, Path(temp))
            print(
                f"{case['trainer']:25} {case['family']:6} {case['case']:24} {case['dtype']:9}"
                f" context {shown(context):28} pooled {shown(pooled):10} latents {shown(latents)}", flush=True,
            )
            if os.environ.get("VERBOSE"):
                print("   " + "\n   ".join(by_file))


if __name__ == "__main__":
    main()
