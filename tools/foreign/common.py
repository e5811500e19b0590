"""What the scripts beside this one share: captions, pictures, the miniatures in the form that a trainer wants, manifests.

Each script runs one trainer's own caching code on a miniature of assets/, on a CPU, and leaves its caches in a folder.
The trainers are not part of this repository: clone each one at the revision that its script names, and give the folder.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
SEED = 20260

LONG = ", ".join(f"a small blue square {n} with striped red circles on blueprint paper" for n in range(60))
CAPTIONS = {
    # A blank line: the scripts of kohya refuse a file without any.
    "00": "",
    "01": "a red circle",
    "02": LONG,
    "03": "\u72ac\u3068\u732b, a yellow star \U0001f31f \u7ea2\u8272",
    "04": "1girl, solo, red_hair, looking at viewer, simple background",
    "05": "wow! a big green square on the right, blueprint style",
}
# What transformers 4 with ftfy reads in another way than transformers 5: quotes, entities, full-width letters.
HARD = {
    "06": "\u201ca quoted circle\u201d it\u2019s &amp; red",
    "07": "\uff32\uff25\uff24 circle, caf\u00e9 \ufb01ne",
}
# (width, height) of pictures that are not left as they are: one wide, one tall.
SIZES = {"03": (176, 128), "04": (112, 160)}


def arguments(description, families):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--trainer", type=Path, required=True, help="the clone of the trainer")
    parser.add_argument("--family", choices=families, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the caches, one folder a case below it")
    parser.add_argument("--only", help="run only the case of this name")
    parser.add_argument("--model", type=Path, help="a miniature that is not in assets: tools/tiny_wan.py, tiny_klein.py and others write them")
    args = parser.parse_args()
    args.trainer, args.out = args.trainer.resolve(), args.out.resolve()
    torch.set_num_threads(1)
    return args


def dataset(folder, captions=CAPTIONS):
    """Writes pictures and captions into an empty `folder`; returns the captions by file name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, caption in captions.items():
        picture = Image.open(ASSETS / "tiny-style/train" / f"{name}.png").convert("RGB")
        if name in SIZES:
            picture = picture.resize(SIZES[name], Image.LANCZOS)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
    return {f"{name}.png": caption for name, caption in captions.items()}


def manifest(folder, **fields):
    (folder / "manifest.json").write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_for_transformers_4(source, target):
    """Copies a tokenizer whose configuration transformers 5 wrote, so that transformers 4 reads it: the same files, but the list of
    special tokens under its old name."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text())
    extra = config.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        config["additional_special_tokens"] = extra
    if config.get("tokenizer_class") == "T5Tokenizer":
        config["extra_ids"] = len(extra or [])
    config.pop("backend", None)
    path.write_text(json.dumps(config))


def seed_of(name):
    """The seed that is set before a picture is encoded, so that a frozen sample can be told from the mean."""
    return SEED + int(hashlib.sha256(str(name).encode()).hexdigest()[:6], 16)


def group_norms(groups):
    """Makes torch.nn.GroupNorm take `groups` groups whatever it is asked for, and returns how to undo it.

    The VAEs of kohya's scripts, of musubi-tuner and of Black Forest Labs have 32 groups written into their code; a miniature with
    16 channels has 2.
    """
    real = torch.nn.GroupNorm

    class GroupNorm(real):
        def __init__(self, num_groups, num_channels, **rest):
            super().__init__(groups, num_channels, **rest)

    torch.nn.GroupNorm = GroupNorm

    def undo():
        torch.nn.GroupNorm = real

    return undo


def original_vae_names(state):
    """A VAE of diffusers under the names of the original code (CompVis, Stability AI, Black Forest Labs)."""
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down_blocks."))
    renamed = {}
    for name, tensor in state.items():
        new = name
        for old, to in [
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
            ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
            ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
            (".resnets.", ".block."),
            (".downsamplers.0.", ".downsample."),
            (".upsamplers.0.", ".upsample."),
            ("down_blocks.", "down."),
        ]:
            new = new.replace(old, to)
        if "up_blocks." in new:
            head, rest = new.split("up_blocks.", 1)
            level, rest = rest.split(".", 1)
            new = f"{head}up.{levels - 1 - int(level)}.{rest}"
        if "mid.attn_1" in new and new.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[new] = tensor
    return renamed


class Absent:
    """A finder of modules that stands for packages which caching on a CPU never calls (attention kernels, audio, loggers), so that
    the trainer's modules can be imported without them."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        import importlib.machinery

        if any(name == absent or name.startswith(absent + ".") for absent in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        import types
        from unittest.mock import MagicMock

        class Empty(types.ModuleType):
            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                any_parameters = {"__class_getitem__": classmethod(lambda cls, _: cls)}
                value = MagicMock(name=name) if name[:1].islower() else type(name, (), any_parameters)
                setattr(self, name, value)
                return value

        return Empty(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def without(*names):
    """Lets `names` be imported as empty packages, those alone that are not installed."""
    import importlib.util
    import sys

    def missing(name):
        try:
            return importlib.util.find_spec(name) is None
        except ImportError:
            return True

    # Before the others: a package may be there and one of its parts refuse to be imported.
    sys.meta_path.insert(0, Absent({name for name in names if missing(name) or name == "torch.utils.tensorboard"}))
