"""A manifest: an Experiment as plumb has looked at it, with all its pictures and captions by the ids of their entries.

Written by `plumb inspect manifest EXP --out FILE`, or asked of the program. It is what the Experiment was at that moment: its ids
are of contents, so whatever changes later, no other tensors than those can be read by it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from . import _program
from ._errors import Damaged, Refused
from ._recipe import Recipe, _Reader, recipe_of
from ._text import absolute, check_version, experiment_digest, sealed_object

# 2 where there are reference pictures.
MANIFEST_VERSION = 2
_LIMIT = 1 << 30


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames of a clip that the VAE saw together."""

    rate: tuple[int, int]
    """Frames a second that the clip was brought to, a fraction: numerator and denominator."""
    start: int
    """The first of them, counted from 0 at that rate."""
    frames: int
    """How many there are."""


@dataclasses.dataclass(frozen=True)
class View:
    """One crop of a picture or of some frames of a clip, mirrored or not."""

    entry: str
    """The id of its latents."""
    size: tuple[int, int]
    """Width and height of what the VAE saw, in px."""
    left: int
    """Columns of the resized picture cut off on the left."""
    top: int
    """Rows cut off at the top."""
    resized: tuple[int, int]
    """Width and height of the whole picture after resizing, in px."""
    flip: bool
    """Whether it is mirrored."""
    time_ids: tuple[float, ...]
    """SDXL's size embedding: height and width of the file, top and left of the crop, height and width of the crop, in px."""
    window: Window | None = None
    """Which frames of a clip; None of a picture."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A picture that the denoiser is given beside another."""

    file: str
    """Where it lay. Nothing is read from there."""
    digest: str
    """What it is known by."""
    views: tuple[View, ...]
    """How it is seen beside each view of the other, in their order; all of one size, which need not be the other's."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A captioned picture."""

    file: str
    """Where it lay. Nothing is read from there."""
    digest: str
    """What it is known by."""
    captions: tuple[str, ...]
    """As the encoders got them; never none."""
    views: tuple[View, ...]
    """All of one size; never none."""
    repeats: int
    """How often it comes in one pass over the data."""
    held_out: bool
    """Whether it is kept for validation."""
    reference: Reference | None = None
    """What the denoiser is given beside it; None where it is given nothing."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What to read from a store, and how it becomes what the denoiser receives."""

    experiment: str
    """The Experiment's file."""
    experiment_digest: str
    """The digest of its text."""
    store: str
    """The store's folder, where the manifest was made."""
    recipe: Recipe
    """How tensors are put together."""
    prompts: tuple[str, ...]
    """Captions that belong to no picture."""
    pictures: tuple[Picture, ...]
    """In the order of the data sets and their files."""
    caption_dropout: float
    """The probability with which `plumb train` drops a caption."""
    entries: str
    """The digest of the list of entries, which a LoRA that plumb trains from them has in its metadata."""
    preview_references: tuple[Reference, ...] = ()
    """What the denoiser is given beside the prompts' pictures: one for all of them, or one for each."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Manifest:
        """Reads a manifest's file.

        Raises Damaged where it is not what was written, and Refused where its Experiment is there and is another by now.
        """
        place = os.fspath(path)
        again = "write it anew with `plumb inspect manifest`"
        members = sealed_object(place, _LIMIT, again)
        found = _manifest(members, place)
        try:
            now = experiment_digest(found.experiment)
        except (OSError, Damaged):
            # Made on another machine, or moved: then the manifest is all there is.
            return found
        if now != found.experiment_digest:
            raise Refused(
                f"{place} was made of another {found.experiment} than there is now; "
                f"to mend it: plumb inspect manifest {found.experiment} --out {place}"
            )
        return found

    @classmethod
    def of(cls, experiment: str | os.PathLike[str] | Manifest, *, store: Any = None) -> Manifest:
        """Of a manifest's file (`.json`), or of an Experiment, at which the program looks: it refuses as `plumb train` does."""
        if isinstance(experiment, Manifest):
            return experiment
        if os.fspath(experiment).endswith(".json"):
            return cls.open(experiment)
        folder = getattr(store, "path", store)
        return cls.of_program(os.fspath(experiment), None if folder is None else os.fspath(folder), None)

    @classmethod
    def of_program(cls, experiment: str, store: str | None, captions: Sequence[str] | None) -> Manifest:
        """Asks the program; with `captions`, for these alone. Raises Refused in its words."""
        arguments = ["inspect", "manifest", absolute(experiment)]
        arguments += [] if store is None else [f"--store={absolute(store)}"]
        arguments += [f"--caption={caption}" for caption in captions or ()]
        return _manifest(_program.ask(*arguments), f"{_program.find()} inspect manifest")


def _manifest(members: dict[str, Any], place: str) -> Manifest:
    read = _Reader(members, place)
    check_version(read.value("version"), MANIFEST_VERSION, place)
    experiment = read.inner("experiment")
    return Manifest(
        experiment=experiment.text("file"),
        experiment_digest=experiment.id("digest"),
        store=read.text("store"),
        recipe=recipe_of(read.value("model"), f"{place}, model"),
        prompts=tuple(read.words(read.items("prompts"))),
        pictures=tuple(_picture(_Reader(p, f"{place}, pictures")) for p in read.items("pictures")),
        caption_dropout=experiment.number("caption_dropout"),
        entries=read.id("entries"),
        # Absent where there are none.
        preview_references=tuple(
            _reference(_Reader(r, f"{place}, preview_references"), 1)
            for r in (read.items("preview_references") if "preview_references" in members else [])
        ),
    )


def _picture(read: _Reader) -> Picture:
    captions = tuple(read.words(read.items("captions")))
    views = tuple(_view(_Reader(view, f"{read.place}, views")) for view in read.items("views"))
    if not captions or not views:
        raise read.wrong("captions" if not captions else "views", "at least one", [])
    reference = _reference(read.inner("reference"), len(views)) if "reference" in read.members else None
    return Picture(
        file=read.text("file"),
        digest=read.id("digest"),
        captions=captions,
        views=views,
        repeats=read.whole("repeats"),
        held_out=read.flag("held_out"),
        reference=reference,
    )


def _reference(read: _Reader, count: int) -> Reference:
    """One that is seen beside `count` views."""
    views = tuple(_view(_Reader(view, f"{read.place}, views")) for view in read.items("views"))
    if len(views) != count:
        raise read.wrong("views", f"as many as the picture has, {count}", len(views))
    return Reference(file=read.text("file"), digest=read.id("digest"), views=views)


def _view(read: _Reader) -> View:
    view = read.inner("view")

    def size(name: str) -> tuple[int, int]:
        sides = view.inner(name)
        return sides.whole("width"), sides.whole("height")

    window = None
    if "window" in view.members:
        frames = view.inner("window")
        rate = frames.inner("rate")
        fraction = (rate.whole("numerator"), rate.whole("denominator"))
        # 0 is a place.
        window = Window(fraction, int(frames.number("start")), frames.whole("frames"))
    return View(
        entry=read.id("entry"),
        size=size("bucket"),
        left=int(view.number("left")),
        top=int(view.number("top")),
        resized=size("resized"),
        flip=view.flag("flip"),
        time_ids=read.numbers("time_ids", 6),
        window=window,
    )
