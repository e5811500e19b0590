"""A torch data set of what a store holds of an Experiment's pictures and captions. Needs torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.data

from ._conditioning import assemble, drop_caption
from ._errors import Error, Refused
from ._manifest import Manifest, Picture
from ._recipe import Recipe
from ._store import Store
from ._text import caption_entry, shown

_SPLITS = ("train", "validation", "all")
_CAPTIONS = ("random", "first", "all")
_LATENTS = ("sample", "mean")
# By family, the ids before a row and column that a reference's patches have, and those behind: `prepare_kontext` in FLUX.1's
# `src/flux/sampling.py`, `encode_image_refs` in FLUX.2's `src/flux2/sampling.py`, and diffusers' pipelines.
_REFERENCE_IDS = {"flux1": ((1,), ()), "flux2": ((10,), (0,))}
# Side of a patch in latents, of both families.
_PATCH = 2
# So many of what is missing are named.
_EXAMPLES = 3


class Dataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures as `plumb train` sees them. A sample is a dict of f32 tensors:

    - `latents` [channels, height, width], of a model of videos [channels, frames, height, width]: shifted and scaled as the model was
      trained
    - `context` [tokens, width], `pooled` [width] ([0] for a recipe without)
    - `mask` [tokens], bool, True for rows that the denoiser sees: only where the recipe masks pads
    - `time_ids` [6], only where the model is told sizes (SDXL): height and width of the file, top and left of the crop, height and
      width of the crop, in px
    - `reference` [channels, height, width], only of a picture beside a reference (FLUX.1 Kontext, FLUX.2 klein): the denoiser's latents of
      what it is given, never drawn, of a size of their own
    - `reference_ids` [patches, ids], beside `reference`: the positions of its patches of 2x2 latents, row by row, as diffusers' `img_ids`
      has them behind the picture's own

    and `caption` and `picture` (its file), as text. A picture with `repeats` comes as often.

    `split`: `train` (what is not held out), `validation` (what is), or `all`. `captions`: of a picture with several, a `random`
    one each time (as `plumb train` does), the `first`, or `all`, each a sample of its own. `latents`: a `sample` of the VAE's
    posterior, drawn anew each time, or its `mean`. `caption_dropout`: the probability with which what stands for no caption takes
    its place; the Experiment's where none is given.

    What is random is drawn from torch's global generator, which a DataLoader seeds differently in each worker and epoch, or
    from `generator`, which works without workers only: every worker would have the same copy of it.

    All of it is in the store when this has been made; otherwise it is refused (`plumb.Refused`).
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        store: str | os.PathLike[str] | Store | None = None,
        split: str = "train",
        captions: str = "random",
        latents: str = "sample",
        caption_dropout: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value, known in (("split", split, _SPLITS), ("captions", captions, _CAPTIONS), ("latents", latents, _LATENTS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {shown(value)}")
        dropout = manifest.caption_dropout if caption_dropout is None else caption_dropout
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"caption_dropout: expected from 0 to 1, found {dropout}")
        self.manifest = manifest
        self.recipe = manifest.recipe
        self.store = store if isinstance(store, Store) else Store(manifest.store if store is None else store)
        self.caption_dropout = dropout
        self._draws_latents = latents == "sample"
        self._generator = generator
        held_out = {"train": (False,), "validation": (True,), "all": (False, True)}[split]
        self.pictures: list[Picture] = [p for p in manifest.pictures if p.held_out in held_out]
        # The picture's number, and that of its caption where it is not drawn.
        self._samples: list[tuple[int, int | None]] = []
        for number, picture in enumerate(self.pictures):
            kinds: dict[str, list[int | None]] = {
                "random": [None],
                "first": [0],
                "all": list(range(len(picture.captions))),
            }
            self._samples += [(number, caption) for caption in kinds[captions]] * picture.repeats
        self._refuse_if_missing()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = self._checked_generator()
        number, chosen = self._samples[index]
        picture = self.pictures[number]
        place = _below(len(picture.views), generator)
        view = picture.views[place]
        caption = picture.captions[_below(len(picture.captions), generator) if chosen is None else chosen]
        latents = self.store.latents(self.recipe.latents, view.entry)
        drawn = latents.mean
        if self._draws_latents and self.recipe.patch is None:
            drawn = latents.sample(torch.randn(latents.mean.shape, generator=generator).numpy())
        outputs = self.store.outputs(self.recipe, caption)
        dropped = self._dropped(list(outputs), generator)
        if dropped:
            outputs = drop_caption(self.recipe, outputs, self._empty(), dropped)
        seen = assemble(self.recipe, outputs).torch()
        sample = {
            "latents": torch.from_numpy(self.recipe.normalize(drawn)),
            "context": seen.context,
            "pooled": seen.pooled,
            "caption": caption,
            "picture": picture.file,
        }
        if seen.mask is not None:
            sample["mask"] = seen.mask
        if self.recipe.size_conditioning:
            sample["time_ids"] = torch.tensor(view.time_ids)
        if picture.reference is not None:
            beside = picture.reference.views[place]
            mean = self.store.latents(self.recipe.latents, beside.entry).mean
            sample["reference"] = torch.from_numpy(self.recipe.normalize(mean))
            sample["reference_ids"] = _reference_ids(self.recipe, mean.shape)
        return sample

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a sample's picture as the VAE saw it, in px: the same in all its views."""
        return self.pictures[self._samples[index][0]].views[0].size

    def reference_size(self, index: int) -> tuple[int, int] | None:
        """The same of the reference that a sample's picture stands beside; None where it stands alone."""
        reference = self.pictures[self._samples[index][0]].reference
        return None if reference is None else reference.views[0].size

    def _checked_generator(self) -> torch.Generator | None:
        if self._generator is not None and torch.utils.data.get_worker_info() is not None:
            raise Error(
                "a data set's generator is copied into every worker, which would all draw the same numbers; leave it out, "
                "and give the DataLoader one to seed its workers"
            )
        return self._generator

    def _empty(self) -> Any:
        return self.store.outputs(self.recipe, "") if self.recipe.unconditional == "encoded_empty" else None

    def _dropped(self, slots: list[str], generator: torch.Generator | None) -> frozenset[str]:
        if self.caption_dropout == 0.0:
            return frozenset()
        draws = 1 if self.recipe.dropout == "together" else len(slots)
        # For `together` the one draw is for all.
        drops = (torch.rand(draws, generator=generator) < self.caption_dropout).expand(len(slots)).tolist()
        return frozenset(slot for slot, drop in zip(slots, drops) if drop)

    def _captions(self, number: int, chosen: int | None) -> list[str]:
        """The captions that a sample may have."""
        captions = self.pictures[number].captions
        texts = list(captions) if chosen is None else [captions[chosen]]
        needs_empty = self.caption_dropout > 0.0 and self.recipe.unconditional == "encoded_empty"
        return texts + [""] if needs_empty else texts

    def _context_rows(self, caption: str) -> int:
        """Rows of the context, as the index tells."""
        zero_rows = dict(self.recipe.zero_rows)
        specs = dict(self.recipe.encoders)
        firsts = [group[0] for group in self.recipe.context]
        return sum(
            self.store.rows(specs[slot], caption)[0] if slot in specs else zero_rows[slot] for slot in firsts
        )

    def _refuse_if_missing(self) -> None:
        # Repeats are of the same captions.
        kinds = dict.fromkeys(self._samples)
        captions = list(dict.fromkeys(text for kind in kinds for text in self._captions(*kind)))
        wanted = [
            (slot, spec, [(caption_entry(spec, caption), caption) for caption in captions])
            for slot, spec in self.recipe.encoders
        ]
        seen = [*self.pictures, *(picture.reference for picture in self.pictures if picture.reference is not None)]
        # Pictures may share a reference.
        views = list(dict.fromkeys((view.entry, of.file) for of in seen for view in of.views))
        wanted.append(("latents", self.recipe.latents, views))
        lines = []
        for what, spec, entries in wanted:
            missing = set(self.store.missing(spec, [entry for entry, _ in entries]))
            without = [named for entry, named in entries if entry in missing]
            if without:
                noun, verb = "entry" if len(entries) == 1 else "entries", "is" if len(without) == 1 else "are"
                lines += ["", f"{what}: {len(without)} of {len(entries)} {noun} {verb} missing"]
                lines += [f"    {shown(named)}" for named in without[:_EXAMPLES]]
                lines += [f"    and {len(without) - _EXAMPLES} more"] if len(without) > _EXAMPLES else []
        if lines:
            head = f"{self.store.path} does not hold what this data set needs"
            raise Refused("\n".join([head, *lines, "", f"to mend it: plumb encode {self.manifest.experiment}"]))


class BucketBatches(torch.utils.data.Sampler[list[int]]):
    """Batches of samples that can be stacked: pictures of one size, with contexts of one length, beside references of one size or none.

        DataLoader(dataset, batch_sampler=BucketBatches(dataset, 4))

    Every sample comes once an epoch; the last batch of a size may be short, unless `drop_last`. With `shuffle` the order is drawn anew for
    each epoch, from `generator` or torch's global one.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, found {batch_size}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        self._buckets = _buckets(dataset, batch_size)

    def __len__(self) -> int:
        whole, rest = zip(*(divmod(len(bucket), self.batch_size) for bucket in self._buckets)) if self._buckets else ((), ())
        return sum(whole) if self.drop_last else sum(whole) + sum(count > 0 for count in rest)

    def __iter__(self) -> Iterator[list[int]]:
        batches = []
        for bucket in self._buckets:
            order = torch.randperm(len(bucket), generator=self.generator).tolist() if self.shuffle else range(len(bucket))
            samples = [bucket[place] for place in order]
            batches += [samples[at : at + self.batch_size] for at in range(0, len(samples), self.batch_size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        # Otherwise an epoch would train on one size after the other.
        order = torch.randperm(len(batches), generator=self.generator).tolist() if self.shuffle else range(len(batches))
        return iter([batches[place] for place in order])


def _buckets(dataset: Dataset, batch_size: int) -> list[list[int]]:
    rows_of: dict[str, int] = {}
    buckets: dict[tuple[tuple[int, int], int, tuple[int, int]], list[int]] = {}
    for index in range(len(dataset)):
        captions = dataset._captions(*dataset._samples[index])
        for caption in captions:
            if caption not in rows_of:
                rows_of[caption] = dataset._context_rows(caption)
        rows = {rows_of[caption] for caption in captions}
        if len(rows) > 1 and batch_size > 1:
            raise Error(
                f"a sample may have contexts of {' or '.join(map(str, sorted(rows)))} tokens, by the caption that is drawn, and only equal "
                "ones can be stacked; expected captions='all' or 'first' and caption_dropout=0.0, or a batch_size of 1"
            )
        # No picture is of no size.
        beside = dataset.reference_size(index) or (0, 0)
        buckets.setdefault((dataset.size(index), max(rows), beside), []).append(index)
    return [buckets[key] for key in sorted(buckets)]


def _reference_ids(recipe: Recipe, shape: tuple[int, ...]) -> torch.Tensor:
    """The positions of a reference's patches, of latents [channels, height, width]: [patches, ids], f32."""
    family = recipe.name.partition("/")[0]
    known = _REFERENCE_IDS.get(family)
    if known is None or len(shape) != 3 or shape[1] % _PATCH or shape[2] % _PATCH:
        raise Error(f"recipe {shown(recipe.name)}, latents of {list(shape)}: how a reference is placed beside a picture is not known here")
    before, behind = (torch.tensor(ids, dtype=torch.float32) for ids in known)
    rows, columns = (torch.arange(side // _PATCH, dtype=torch.float32) for side in shape[1:])
    return torch.cartesian_prod(before, rows, columns, *([behind] if len(behind) else []))


def _below(count: int, generator: torch.Generator | None) -> int:
    """A number below `count`; nothing is drawn where there is one."""
    return int(torch.randint(count, (), generator=generator)) if count > 1 else 0
