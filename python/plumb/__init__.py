"""Reads plumb's stores: exactly the tensors that a diffusion model was conditioned on, or an error that says why not.

    import plumb

    store = plumb.Store("out/store")
    seen = store.conditioning("exp.toml", "a red circle")   # what the denoiser receives, bit for bit what `plumb train` reads
    seen.context, seen.pooled, seen.mask                    # numpy; seen.torch() for torch

    pictures = plumb.dataset("exp.toml")                    # a torch data set of latents and conditioning

Nothing is encoded here, and nothing is guessed: what the store lacks is refused as `plumb train` refuses it (`Refused`), and
what is damaged is an error (`Damaged`). An Experiment is looked at by the `plumb` program, which this package came with. A
recipe that the store names (`Store.recipes`) and a manifest (`plumb inspect manifest EXP --out FILE`) need no program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._conditioning import Conditioning, EncoderOutput
from ._errors import Damaged, Error, NewerFormat, Refused
from ._manifest import Manifest, Picture, Reference, View, Window
from ._recipe import Recipe
from ._store import Latents, Store

if TYPE_CHECKING:
    import os

    import torch

    from .data import Dataset

__all__ = [
    "Conditioning",
    "Damaged",
    "EncoderOutput",
    "Error",
    "Latents",
    "Manifest",
    "NewerFormat",
    "Picture",
    "Recipe",
    "Reference",
    "Refused",
    "Store",
    "View",
    "Window",
    "dataset",
]


def dataset(
    experiment: str | os.PathLike[str] | Manifest,
    *,
    store: str | os.PathLike[str] | Store | None = None,
    split: str = "train",
    captions: str = "random",
    latents: str = "sample",
    caption_dropout: float | None = None,
    generator: torch.Generator | None = None,
) -> Dataset:
    """The pictures of an Experiment as a torch data set. See `plumb.data.Dataset`.

    `experiment` is the TOML file, a manifest's file (`.json`), or a `Manifest`; `store` is where to read, if not in the
    Experiment's own. Needs torch.
    """
    from .data import Dataset

    return Dataset(
        Manifest.of(experiment, store=store),
        store=store,
        split=split,
        captions=captions,
        latents=latents,
        caption_dropout=caption_dropout,
        generator=generator,
    )
