"""A recipe with the specs that entries are filed under, as plumb describes it: how tensors of the store become what a denoiser
receives. `schemas/FORMAT.md` has the members."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ._errors import Damaged
from ._text import check_version, is_id, shown

DESCRIPTION_VERSION = 1
_LARGEST = float(np.finfo(np.float64).max)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A base model's recipe, resolved: nothing in it depends on where the base model or the store lies.

    Two of them are equal where they make the same conditioning and latents of the same entries.
    """

    name: str
    """As `plumb recipe` takes it, `sd3/3.5-large:kohya`; deviations are not in it."""
    fingerprint: str
    """Of the recipe's rules, deviations included."""
    deviations: tuple[str, ...]
    """What an Experiment has otherwise than the name says: `t5.tokens.max_tokens = 154 instead of 77`."""
    encoders: tuple[tuple[str, str], ...]
    """Slot and spec of each encoder that there is, in the recipe's order."""
    zero_rows: tuple[tuple[str, int], ...]
    """Slot and rows of zeros of each encoder that is left out."""
    filled_rows: tuple[tuple[str, int], ...]
    """Slot and rows, of each slot whose sequence is filled up to so many with rows of zeros."""
    context: tuple[tuple[str, ...], ...]
    """Slots whose sequences are joined by channel; the results are joined by row."""
    pooled: tuple[str, ...]
    """Slots whose pooled vectors are joined."""
    zeroed: frozenset[str]
    """Slots whose pads become zeros."""
    mask: str
    """What the denoiser masks: `none`, `pads`, or `pads_but_one`, where it sees the first."""
    unconditional: str
    """What stands for no caption: `encoded_empty` or `zeros`."""
    dropout: str
    """Whether caption dropout drops all encoders `together` or `each_encoder` for itself."""
    context_width: int
    """Channels of the context."""
    latents: str
    """The spec of the VAE's latents."""
    latent_channels: int
    """Channels of the latents."""
    scale: float
    """What the VAE's latents are multiplied with."""
    shift: float
    """What is taken off before, where all channels have the same."""
    mean: tuple[float, ...] | None
    """What is taken off before, by channel; None where all have `shift`."""
    std: tuple[float, ...] | None
    """What is divided by, by channel; None where nothing is."""
    size_conditioning: bool
    """Whether the denoiser is told each picture's size and crop."""
    patch: int | None = None
    """Side of the squares of latents of which mean and deviation have a number for each channel and place (FLUX.2); the denoiser is then
    given the mean of the VAE's distribution, not a draw."""

    def normalize(self, latents: np.ndarray) -> np.ndarray:
        """The denoiser's latents of the VAE's, [channels, height, width]: shifted and scaled as the model was trained."""
        if self.mean is None or self.std is None:
            # In one step, in f32: as plumb and diffusers round.
            return latents * np.float32(self.scale) + np.float32(-self.shift * self.scale)
        if self.patch is not None:
            side, (c, h, w) = self.patch, latents.shape
            by_place = (c, 1, side, 1, side)
            mean, std = (np.array(n, np.float32).reshape(by_place) for n in (self.mean, self.std))
            patches = latents.reshape(c, h // side, side, w // side, side)
            return ((patches - mean) / std).reshape(c, h, w)
        by_channel = (len(self.mean),) + (1,) * (latents.ndim - 1)
        mean = np.array(self.mean, np.float32).reshape(by_channel)
        std = np.array(self.std, np.float32).reshape(by_channel)
        return (latents - mean) * np.float32(self.scale) / std


def recipe_of(model: object, place: str) -> Recipe:
    """The recipe in plumb's description of a base model; `place` names it in errors."""
    read = _Reader(model, place)
    check_version(read.value("version"), DESCRIPTION_VERSION, place)
    assembly = read.inner("assembly")
    pads = assembly.mapping("pads", lambda v: v in ("keep", "zero"), '"keep" or "zero"')
    latents = read.inner("latents")
    scale, shift, mean, std, patch = _statistics(latents.inner("statistics"), latents.whole("channels"))
    # Absent where nothing is filled.
    filled = read.mapping("filled_rows", _is_count, "a number of rows") if "filled_rows" in read.members else {}
    encoders = [_Reader(e, f"{place}, encoders") for e in read.items("encoders")]
    return Recipe(
        name=read.text("recipe"),
        fingerprint=read.id("recipe_fingerprint"),
        deviations=tuple(_deviation(_Reader(d, f"{place}, deviations")) for d in read.items("deviations")),
        encoders=tuple((encoder.text("slot"), encoder.id("spec")) for encoder in encoders),
        zero_rows=tuple(read.mapping("zero_rows", _is_count, "a number of rows").items()),
        filled_rows=tuple(filled.items()),
        context=tuple(tuple(assembly.words(group)) for group in assembly.items("context")),
        pooled=tuple(assembly.words(assembly.items("pooled"))),
        zeroed=frozenset(slot for slot, rule in pads.items() if rule == "zero"),
        mask=assembly.word("mask", ("none", "pads", "pads_but_one")),
        unconditional=assembly.word("unconditional", ("encoded_empty", "zeros")),
        dropout=assembly.word("dropout", ("together", "each_encoder")),
        context_width=read.whole("context_width"),
        latents=latents.id("spec"),
        latent_channels=latents.whole("channels"),
        scale=scale,
        shift=shift,
        mean=mean,
        std=std,
        size_conditioning=read.flag("size_conditioning"),
        patch=patch,
    )


def _statistics(
    read: _Reader, channels: int
) -> tuple[float, float, tuple[float, ...] | None, tuple[float, ...] | None, int | None]:
    kind = next(iter(read.members), None)
    if kind == "shared" and len(read.members) == 1:
        both = read.inner("shared")
        return both.number("scale"), both.number("shift"), None, None, None
    if kind == "per_channel" and len(read.members) == 1:
        each = read.inner("per_channel")
        mean, std = each.numbers("mean", channels), each.numbers("std", channels)
        return each.number("scale"), 0.0, mean, std, None
    if kind == "patches" and len(read.members) == 1:
        each = read.inner("patches")
        side = each.whole("side")
        if not 1 <= side <= 16:
            raise each.wrong("side", "1 to 16", side)
        mean, std = (each.numbers(name, channels * side * side) for name in ("mean", "std"))
        return 1.0, 0.0, mean, std, side
    raise read.wrong("statistics", "`shared`, `per_channel` or `patches`", read.members)


def _deviation(read: _Reader) -> str:
    return f"{read.text('field')} = {read.value('value')} instead of {read.value('instead_of')}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_number(value: object) -> bool:
    # A whole number may be too large for a float.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -_LARGEST <= value <= _LARGEST


class _Reader:
    """Takes members out of a JSON object, each of the kind that it must be."""

    def __init__(self, members: object, place: str) -> None:
        self.place = place
        if not isinstance(members, dict):
            raise Damaged(f"{place}: expected an object, found {shown(members)}")
        self.members: Mapping[str, Any] = members

    def wrong(self, name: str, expected: str, found: object) -> Damaged:
        return Damaged(f"{self.place}: field {shown(name)}: expected {expected}, found {shown(found)}")

    def value(self, name: str) -> Any:
        if name not in self.members:
            raise Damaged(f"{self.place}: field {shown(name)}: expected, not found")
        return self.members[name]

    def _checked(self, name: str, is_right: Callable[[Any], bool], expected: str) -> Any:
        value = self.value(name)
        if not is_right(value):
            raise self.wrong(name, expected, value)
        return value

    def text(self, name: str) -> str:
        return self._checked(name, lambda v: isinstance(v, str), "text")

    def id(self, name: str) -> str:
        return self._checked(name, is_id, "64 hexadecimal digits")

    def word(self, name: str, known: tuple[str, ...]) -> str:
        return self._checked(name, lambda v: v in known, " or ".join(f"`{word}`" for word in known))

    def whole(self, name: str) -> int:
        return self._checked(name, _is_count, "a whole number above 0")

    def number(self, name: str) -> float:
        return float(self._checked(name, _is_number, "a number"))

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        def is_right(value: Any) -> bool:
            return isinstance(value, list) and len(value) == count and all(map(_is_number, value))

        return tuple(map(float, self._checked(name, is_right, f"{count} numbers")))

    def flag(self, name: str) -> bool:
        return self._checked(name, lambda v: isinstance(v, bool), "true or false")

    def items(self, name: str) -> list[Any]:
        return self._checked(name, lambda v: isinstance(v, list), "a list")

    def words(self, items: object) -> list[str]:
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise Damaged(f"{self.place}: expected a list of texts, found {shown(items)}")
        return items

    def inner(self, name: str) -> _Reader:
        return _Reader(self.value(name), f"{self.place}, {name}")

    def mapping(self, name: str, is_right: Callable[[Any], bool], expected: str) -> dict[str, Any]:
        inner = self.inner(name)
        return {key: inner._checked(key, is_right, expected) for key in inner.members}
