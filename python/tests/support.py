"""A folder with an Experiment on a bundled miniature, and the program that works on it, for tests of the package.

    PLUMB_PROGRAM=target/debug/plumb PYTHONPATH=python python -m unittest discover -s python/tests
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from plumb import _program

ROOT = pathlib.Path(__file__).resolve().parents[2]
_ENCODED = tempfile.TemporaryDirectory()
FLAVORS = {"sd3": "3.5-large", "flux1": "dev", "sdxl": "base-1.0"}
MODELS = {"sd3": "tiny-sd3", "flux1": "tiny-flux", "sdxl": "tiny-sdxl"}

EXPERIMENT = """
[model]
family = "{family}"
flavor = "{flavor}"
path = "{path}"

[recipe]
variant = "{variant}"
{recipe}

[store]
path = "store"
{store}

[[dataset]]
path = "pictures"
resolution = 64
bucket_step = 16
{dataset}

[adapter]
rank = 2

[train]
output = "out"
steps = 2
{train}
"""


class World:
    """A folder of its own with three captioned pictures and an Experiment; it goes when the test ends."""

    def __init__(self, test: unittest.TestCase, family: str = "sd3", variant: str = "diffusers", **sections: str) -> None:
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.store = self.folder / "store"
        self.exp = self.folder / "exp.toml"
        self.write(family, variant, **sections)
        (self.folder / "pictures").mkdir()
        for number, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
            picture = self.picture(number)
            Image.fromarray(pixels(64 + 16 * number, 64, color)).save(picture)
            picture.with_suffix(".txt").write_text(f"a red circle number {number}")

    def write(self, family: str = "sd3", variant: str = "diffusers", *, path: str = "", flavor: str = "", **sections: str) -> None:
        named = dict.fromkeys(["recipe", "store", "dataset", "train"], "") | sections
        model = path or str(ROOT / "assets" / MODELS[family])
        text = EXPERIMENT.format(family=family, flavor=flavor or FLAVORS[family], path=model, variant=variant, **named)
        self.exp.write_text(text)

    def picture(self, number: int) -> pathlib.Path:
        return self.folder / "pictures" / f"p{number}.png"

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [_program.find(), *map(str, arguments)], cwd=self.folder, capture_output=True, encoding="utf-8", check=False
        )
        assert ran.returncode == status, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran

    def encode(self) -> None:
        """`plumb encode`; what was encoded before for an equal Experiment and equal pictures is copied."""
        parts = [self.exp, *sorted((self.folder / "pictures").iterdir())]
        key = hashlib.sha256(b"\0".join(part.name.encode() + part.read_bytes() for part in parts)).hexdigest()
        kept = pathlib.Path(_ENCODED.name) / key
        if self.store.exists() or not kept.exists():
            self.run("encode", "exp.toml")
            shutil.copytree(self.store, kept, dirs_exist_ok=True)
        else:
            shutil.copytree(kept, self.store)

    def refusal(self) -> str:
        """What `plumb train` refuses the Experiment with."""
        return self.run("train", self.exp, status=4).stderr.split("refused: ", 1)[1].strip()

    def files(self, pattern: str) -> list[pathlib.Path]:
        found = sorted(self.store.glob(pattern))
        assert found, f"nothing is called {pattern}"
        return found


def pixels(width: int, height: int, color: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    odd = (rows // 8 + columns // 8) % 2
    # Darker to the right, so that no two crops are alike.
    return (np.where(odd[..., None] == 0, color, 240) - columns[..., None]).clip(0).astype(np.uint8)


def write_klein(folder: pathlib.Path) -> None:
    """A model of FLUX.2 klein as diffusers writes one, of the miniatures among the golden files."""
    goldens = ROOT / "tests" / "golden"
    for golden, part, name in (
        ("flux2_tiny", "transformer", "diffusion_pytorch_model"),
        ("vae_flux2", "vae", "diffusion_pytorch_model"),
        ("flux2_tiny_text", "text_encoder", "model"),
    ):
        (folder / part).mkdir(parents=True)
        with safe_open(goldens / f"{golden}.safetensors", "pt") as file:
            (folder / part / "config.json").write_text(file.metadata()["config"])
            tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("golden.")}
        save_file(tensors, folder / part / f"{name}.safetensors")
    shutil.copytree(goldens / "tokenizers" / "qwen3", folder / "tokenizer")


def without_program(test: unittest.TestCase) -> None:
    """From here to the test's end, no program can be run."""
    before = os.environ.get(_program.VARIABLE)
    os.environ[_program.VARIABLE] = "/nowhere/plumb"
    test.addCleanup(lambda: os.environ.pop(_program.VARIABLE) if before is None else os.environ.update({_program.VARIABLE: before}))
