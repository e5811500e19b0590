"""A store on disk: its entries as tensors, each compared with its digest whenever it is read."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable
from typing import Any, Union

import numpy as np

from ._conditioning import Conditioning, EncoderOutput, assemble, drop_caption
from ._errors import Damaged, Error, Refused
from ._index import FORMAT_VERSION, Index, Part, Row, pack_path
from ._manifest import Manifest
from ._recipe import Recipe, recipe_of
from ._text import (
    absolute,
    caption_entry,
    check_seal,
    check_version,
    digest,
    experiment_digest,
    parse_object,
    read_file,
    shown,
)

_JSON_LIMIT = 4 << 20
_RUN_LIMIT = 256 << 20
_PACK_LIMIT = 256 << 20
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_RUN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\.json", re.ASCII)

RecipeLike = Union[str, "os.PathLike[str]", Recipe, Manifest]


@dataclasses.dataclass(frozen=True)
class Latents:
    """What the VAE made of one view of a picture or clip: the posterior, unscaled, as f32."""

    mean: np.ndarray
    """[channels, height, width], or [channels, frames, height, width] of a VAE of clips."""
    logvar: np.ndarray | None
    """The logarithm of the variance, same shape; None where the mean stands for the latents, as of Wan's VAE."""

    def sample(self, noise: np.ndarray) -> np.ndarray:
        """A sample of the posterior, from standard normals of the same shape; the mean where that stands for the latents."""
        if self.logvar is None:
            return self.mean
        return self.mean + np.exp(self.logvar * np.float32(0.5)) * noise


class Store:
    """The store in a folder. It is read only, without a lock; others may encode and clean up meanwhile.

    The index of a spec is read when it is first asked for, and again where something is not found in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Of a pathlib.Path, one slash is left.
        if re.match("(s3|gs|az|https?):/", os.fspath(path)):
            # What may have a password in it is not shown.
            where = "the address" if "@" in os.fspath(path) else os.fspath(path)
            raise Error(f"{shown(where)[1:-1]}: expected a folder, found an address: `plumb store pull ADDRESS FOLDER` fetches it into one")
        self.path = absolute(path)
        self._indexes: dict[str, Index] = {}
        self._experiments: dict[str, tuple[str, Recipe]] = {}
        self._origins: dict[Recipe, str] = {}
        marker = os.path.join(self.path, "store.json")
        try:
            data = read_file(marker, _JSON_LIMIT)
        except FileNotFoundError:
            there = "the folder holds no store.json" if os.path.isdir(self.path) else "there is no such folder"
            raise Error(f"no store at {self.path}: {there}; `plumb encode` makes a store") from None
        except OSError as error:
            raise Error(f"{marker}: cannot be read: {error.strerror}") from None
        members = parse_object(data, marker)
        if members.get("format") != "plumb-store":
            raise Damaged(f"{marker}: field `format`: expected `plumb-store`, found {shown(members.get('format'))}")
        check_version(members.get("version"), FORMAT_VERSION, marker)

    def __repr__(self) -> str:
        return f"plumb.Store({self.path!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads the index itself: an index may be larger than all else.
        return {**self.__dict__, "_indexes": {}}

    def conditioning(self, recipe: RecipeLike, caption: str) -> Conditioning:
        """What the denoiser receives for a caption, bit for bit what `plumb train` reads and
        `plumb inspect conditioning` writes.

        `recipe` is an Experiment (`exp.toml`), a `Recipe`, the name of one that this store names (`sd3/3.5-large:kohya`),
        or a manifest. An Experiment is looked at by the `plumb` program, again whenever its text changes; other changes of
        what it names (a base model's files) are seen by a new `Store`.

        Raises Refused where the store has no entry of it under this recipe, Damaged where it is not what was written.
        """
        return assemble(*self._found(recipe, caption))

    def unconditional(self, recipe: RecipeLike) -> Conditioning:
        """What the denoiser receives for no caption, as the recipe says: the empty caption's conditioning, or zeros.

        Raises as `conditioning` of the empty caption, whose shapes zeros have.
        """
        found, outputs = self._found(recipe, "")
        return assemble(found, drop_caption(found, outputs, outputs, frozenset(outputs)))

    def outputs(self, recipe: RecipeLike, caption: str) -> dict[str, EncoderOutput]:
        """What each encoder made of a caption, by its slot: what is stored, as f32. Raises as `conditioning`."""
        return self._found(recipe, caption)[1]

    def latents(self, spec: str, entry: str) -> Latents:
        """The latents of one view of a picture, as a manifest names them (`Picture.views`)."""
        found = self._read(spec, entry, ("mean",))
        if found is None:
            raise Refused(
                f"{self.path}: the store has no latents {entry[:12]} of spec {spec[:12]}; `plumb encode` makes them again"
            )
        tensors, _ = found
        mean, logvar = tensors["mean"], tensors.get("logvar")
        if logvar is not None and mean.shape != logvar.shape:
            raise Damaged(f"{self.path}: entry {entry}: mean and log-variance have different shapes")
        return Latents(mean, logvar)

    def recipes(self) -> list[Recipe]:
        """The recipes that captions were encoded by, as the store's runs name them, each once. Needs no program."""
        found: dict[Recipe, str] = {}
        for path in self._runs():
            mend = "write it again by encoding, or remove it"
            try:
                data = read_file(path, _RUN_LIMIT)
                members = parse_object(data, path)
                check_version(members.get("version"), FORMAT_VERSION, path)
                extra = members.get("extra")
                if not isinstance(extra, dict) or "model" not in extra:
                    # Of a plumb that did not write it down yet.
                    continue
                check_seal(data, path, mend)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Error(f"{path}: cannot be read: {error.strerror}") from None
            recipe = recipe_of(extra["model"], f"{path}, model")
            found.setdefault(recipe, str(extra.get("experiment", "")))
        self._origins.update(found)
        return list(found)

    def recipe(self, recipe: RecipeLike, *, caption: str | None = None) -> Recipe:
        """The `Recipe` that `conditioning` uses. With `caption`, an Experiment that was not looked at yet is refused where the
        store lacks that caption, and otherwise where it lacks what the Experiment needs."""
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Manifest):
            return recipe.recipe
        path = os.fspath(recipe)
        if path.endswith(".json"):
            return Manifest.open(path).recipe
        if path.endswith(".toml") or os.path.isfile(path):
            return self._of_experiment(path, caption)
        return self._named(path)

    def contains(self, spec: str, entry: str) -> bool:
        """Whether the store has an entry, as far as the index and the sizes of the packs tell."""
        return entry in self._index(spec)

    def missing(self, spec: str, entries: Iterable[str]) -> list[str]:
        """Those of `entries` that the store lacks."""
        entries = list(entries)
        missing = self._index(spec).lacking(entries)
        if missing:
            # Encoded, or moved, since the index was read.
            missing = self._index(spec, again=True).lacking(entries)
        return missing

    def rows(self, spec: str, caption: str) -> tuple[int, ...]:
        """The shape of an encoder's sequence of a caption, [tokens, width], without reading it; () where it has none."""
        rows = self._index(spec).rows(caption_entry(spec, caption))
        parts = rows[0].parts if rows else ()
        return next((part.shape for part in parts if part.name == "hidden"), ())

    def _runs(self) -> list[str]:
        folder = os.path.join(self.path, "runs")
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        return [os.path.join(folder, name) for name in sorted(names) if _RUN.fullmatch(name)]

    def _named(self, name: str) -> Recipe:
        recipes = self.recipes()
        alike = [recipe for recipe in recipes if recipe.name == name]
        if len(alike) == 1:
            return alike[0]
        known = ", ".join(sorted({recipe.name for recipe in recipes})) or "none"
        if not alike:
            raise Error(
                f"{self.path}: {shown(name)} is neither an Experiment's file nor a recipe that a run in the store names ({known}); "
                "`plumb encode` writes down the recipe that it encodes by"
            )
        each = [f"{'; '.join(r.deviations) or 'no deviations'}, encoders {_short(r)}" for r in alike]
        raise Error(
            f"{self.path}: {len(alike)} recipes in the store are called {shown(name)}: {' | '.join(each)}; give one of `Store.recipes()`"
        )

    def _of_experiment(self, path: str, caption: str | None) -> Recipe:
        try:
            text = experiment_digest(path)
        except OSError as error:
            raise Error(f"{path}: cannot be read: {error.strerror}") from None
        known = self._experiments.get(absolute(path))
        if known is not None and known[0] == text:
            return known[1]
        return self._look_at(path, None if caption is None else [caption])

    def _look_at(self, path: str, captions: list[str] | None) -> Recipe:
        """An Experiment's recipe as the program finds it now. Refused in the program's words, which name the fields that differ."""
        manifest = Manifest.of_program(path, self.path, captions)
        self._experiments[absolute(path)] = manifest.experiment_digest, manifest.recipe
        return manifest.recipe

    def _found(self, recipe: RecipeLike, caption: str) -> tuple[Recipe, dict[str, EncoderOutput]]:
        """A recipe, and what its encoders made of a caption."""
        found = self.recipe(recipe, caption=caption)
        outputs, missing = self._outputs(found, caption)
        path = None if isinstance(recipe, (Recipe, Manifest)) else absolute(recipe)
        if missing and path in self._experiments:
            found = self._look_at(path, [caption])
            # The program has found it, so it was encoded between the two looks.
            outputs, missing = self._outputs(found, caption)
        if missing:
            if found not in self._origins:
                self.recipes()
            raise Refused(_no_entry(self.path, missing, caption, self._origins.get(found)))
        return found, outputs

    def _outputs(self, recipe: Recipe, caption: str) -> tuple[dict[str, EncoderOutput], list[str]]:
        """What encoders made of a caption, and the slots of those that have no entry of it."""
        outputs = {slot: self._output(spec, caption) for slot, spec in recipe.encoders}
        missing = [slot for slot, output in outputs.items() if output is None]
        return {slot: output for slot, output in outputs.items() if output is not None}, missing

    def _index(self, spec: str, *, again: bool = False) -> Index:
        if again or spec not in self._indexes:
            index = Index(self.path, spec)
            for problem in index.problems:
                warnings.warn(problem, RuntimeWarning, stacklevel=3)
            self._indexes[spec] = index
        return self._indexes[spec]

    def _output(self, spec: str, caption: str) -> EncoderOutput | None:
        found = self._read(spec, caption_entry(spec, caption), ())
        if found is None:
            return None
        tensors, row = found
        hidden = tensors.get("hidden")
        return EncoderOutput(hidden, tensors.get("pooled"), row.token_count, row.truncated)

    def _read(self, spec: str, entry: str, needed: tuple[str, ...]) -> tuple[dict[str, np.ndarray], Row] | None:
        """An entry's tensors, or None where the store lacks it. Looks once more where a file is gone or an entry not found:
        cleaning up moves entries and then removes what it moved them from, and others encode meanwhile."""
        for again in (False, True):
            rows = self._index(spec, again=again).rows(entry)
            fault: Exception | None = None
            for row in rows:
                try:
                    return self._tensors(spec, entry, row, needed), row
                except (FileNotFoundError, Damaged) as error:
                    # Two writers may both have stored it: any sound one will do.
                    fault = fault or error
                except OSError as error:
                    raise Error(f"{self.path}: entry {entry}: cannot be read: {error.strerror}") from None
            if isinstance(fault, Damaged):
                raise fault
        return None

    def _tensors(self, spec: str, entry: str, row: Row, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
        tensors = {}
        for part in row.parts:
            path = pack_path(self.path, part.pack)
            try:
                tensors[part.name] = _payload(path, part)
            except Damaged as damage:
                raise Damaged(
                    f"damaged entry {entry} of spec {spec}: {damage} in {path}; "
                    "`plumb store rebuild-index` forgets it, encoding again replaces it"
                ) from None
        lacking = [name for name in needed if name not in tensors]
        if lacking:
            raise Damaged(f"damaged entry {entry} of spec {spec}: expected a part `{lacking[0]}`, found {shown(sorted(tensors))}")
        return tensors


def _payload(path: str, part: Part) -> np.ndarray:
    """A tensor's numbers as f32, compared with their digest."""
    kind = _TYPES.get(part.dtype)
    if kind is None:
        raise Damaged(f"part {shown(part.name)}: expected floating-point numbers, found {shown(part.dtype)}")
    count = 1
    for side in part.shape:
        count *= side
    if part.length != count * kind.itemsize or part.length > _PACK_LIMIT:
        raise Damaged(f"part {shown(part.name)}: {part.length} bytes for {part.dtype} of shape {list(part.shape)}")
    with open(path, "rb") as pack:
        pack.seek(part.offset)
        data = pack.read(part.length)
    if digest(data) != part.digest:
        raise Damaged(f"part {shown(part.name)}: its bytes have another digest than {part.digest[:12]}")
    numbers = np.frombuffer(data, kind)
    if part.dtype == "BF16":
        # bf16 is the upper half of f32.
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    numbers = numbers.astype(np.float32).reshape(part.shape)
    if not np.isfinite(numbers).all():
        raise Damaged(f"part {shown(part.name)}: a number in it is not finite")
    return numbers


def _no_entry(path: str, slots: list[str], caption: str, experiment: str | None) -> str:
    lines = [f"{path} does not hold what is asked for", ""]
    lines += [f"{shown(slot)[1:-1]}: the store has no entry of {shown(caption)}" for slot in slots]
    named = experiment or "EXPERIMENT"
    lines += ["", f"to mend it: plumb encode {named} --captions FILE, a text file with the captions, one a line"]
    return "\n".join(lines)


def _short(recipe: Recipe) -> str:
    return ", ".join(f"{shown(slot)[1:-1]} {spec[:12]}" for slot, spec in recipe.encoders)
