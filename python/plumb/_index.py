"""The index of one spec: which entries a store has, and where their tensors lie. `schemas/FORMAT.md` has the columns."""

from __future__ import annotations

import dataclasses
import io
import os
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from ._errors import Damaged, Error
from ._text import check_version, digest, is_id, read_file, shown

FORMAT_VERSION = 1
_PART_LIMIT = 1 << 30
# How often the index is listed again because a cleaner removed files meanwhile.
_TRIES = 8
_ID_BYTES = 32
# Rows that are decoded at once.
_BATCH_ROWS = 1 << 16
_MOST = np.uint64(2**64 - 1)
# By letter, the number of a hexadecimal digit; of what is none, one that is too large.
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
# Columns of texts that many rows have in common.
_COMMON = ["part", "pack", "dtype"]
# As plumb's own reader has it, and none of them null.
_COLUMNS = {
    "entry": pyarrow.string(),
    "part": pyarrow.string(),
    "parts": pyarrow.uint32(),
    "token_count": pyarrow.uint32(),
    "truncated": pyarrow.bool_(),
    "pack": pyarrow.string(),
    "offset": pyarrow.uint64(),
    "length": pyarrow.uint64(),
    "digest": pyarrow.string(),
    "dtype": pyarrow.string(),
    "shape": pyarrow.list_(pyarrow.field("element", pyarrow.uint64(), nullable=False)),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of an entry, and where its bytes are."""

    name: str
    pack: str
    offset: int
    length: int
    digest: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One place where an entry is."""

    parts: tuple[Part, ...]
    token_count: int
    truncated: bool


class Index:
    """The entries of a spec that the store had when it was read: about 90 bytes for each of an entry's tensors, and 56 for the entry. They are in
    numpy's arrays, which forked workers of a data loader share with each other."""

    def __init__(self, root: str, spec: str) -> None:
        self.problems: list[str] = []
        """What of the index could not be used; the entries concerned count as missing."""
        self._names = _Names()
        rows, places = self._load(root, spec)
        self._rows = _Rows.joined(rows)
        # Those of one entry stay in the order of the files.
        keys = _keys(places.entry)
        order = np.argsort(keys, kind="stable")
        self._keys, self._entries = keys[order], places.entry[order]
        self._first, self._count = places.first[order], places.rows[order]

    def __contains__(self, entry: str) -> bool:
        return len(self._found(entry)) > 0

    def __len__(self) -> int:
        return len(np.unique(self._entries.view(f"V{_ID_BYTES}")))

    def lacking(self, entries: list[str]) -> list[str]:
        """Those of `entries` that are not in it."""
        ids = list(filter(is_id, entries))
        here: set[str] = set()
        if ids and len(self._keys):
            wanted = np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, _ID_BYTES)
            keys = _keys(wanted)
            nearest = np.minimum(self._keys.searchsorted(keys), len(self._keys) - 1)
            # The first of those that begin alike; where it is another, all of these are looked at.
            is_alike = self._keys[nearest] == keys
            is_here = (self._entries[nearest] == wanted).all(axis=1)
            found = zip(ids, is_alike.tolist(), is_here.tolist())
            here.update(entry for entry, alike, same in found if alike and (same or entry in self))
        return [entry for entry in entries if entry not in here]

    def rows(self, entry: str) -> list[Row]:
        """The places where an entry is; none where the store lacks it. Two writers may both have stored it."""
        return [self._row(int(self._first[place]), int(self._count[place])) for place in self._found(entry)]

    def _found(self, entry: str) -> list[int]:
        if not is_id(entry):
            return []
        wanted = np.frombuffer(bytes.fromhex(entry), np.uint8)
        key = _keys(wanted.reshape(1, _ID_BYTES))[0]
        first, last = self._keys.searchsorted(key, "left"), self._keys.searchsorted(key, "right")
        return [place for place in range(first, last) if np.array_equal(self._entries[place], wanted)]

    def _row(self, first: int, count: int) -> Row:
        rows, names = self._rows, self._names
        parts = tuple(
            Part(
                names.text(rows.name[row]),
                names.text(rows.pack[row]),
                int(rows.offset[row]),
                int(rows.length[row]),
                rows.digest[row].tobytes().hex(),
                names.text(rows.dtype[row]),
                rows.shape(row),
            )
            for row in range(first, first + count)
        )
        return Row(parts, int(rows.token_count[first]), bool(rows.truncated[first]))

    def _load(self, root: str, spec: str) -> tuple[list[_Rows], _Places]:
        folder = os.path.join(root, "index", spec)
        # Index files first, packs after them: a pack is on disk before a row names it.
        for _ in range(_TRIES):
            names = _listed(folder)
            found = [self._file(os.path.join(folder, name), name, spec) for name in names]
            rows, places, before = [], [], 0
            packs = _Packs(root, self._names)
            for of_rows, of_places in filter(None, found):
                here = packs.those_here(of_places)
                places.append(here._replace(first=here.first + before))
                rows.append(of_rows)
                before += len(of_rows.pack)
            # Who cleans up removes index files before packs: where all are still there, so were their packs.
            if all(os.path.exists(os.path.join(folder, name)) for name in names):
                self.problems += packs.problems()
                return rows, _Places.joined(places)
            self.problems.clear()
        raise Error(f"{root}: its index keeps changing; try again when whoever cleans it up is done")

    def _file(self, path: str, name: str, spec: str) -> tuple[_Rows, _Places] | None:
        try:
            return _parse(read_file(path, _PART_LIMIT), name, spec, self._names)
        except FileNotFoundError:
            # Moved into another file meanwhile, which the next listing has.
            return None
        except (OSError, Damaged) as error:
            self.problems.append(f"{path}: {error}; its entries count as missing")
            return None


class _Names:
    """Texts that many rows have in common, by number."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def text(self, number: int) -> str:
        return self._texts[number]

    def numbers(self, column: pyarrow.DictionaryArray) -> np.ndarray:
        """The numbers of a column's texts."""
        known = []
        for text in column.dictionary.to_pylist():
            number = self._numbers.setdefault(text, len(self._texts))
            if number == len(self._texts):
                self._texts.append(text)
            known.append(number)
        return np.array(known, np.uint32)[column.indices.to_numpy()]


class _Rows(NamedTuple):
    """A tensor of an entry in each row. Texts are numbers of `_Names`."""

    name: np.ndarray
    pack: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    digest: np.ndarray
    dtype: np.ndarray
    sides: np.ndarray
    """Of all shapes, one after the other."""
    shape_end: np.ndarray
    """Where each ends in `sides`."""
    token_count: np.ndarray
    truncated: np.ndarray

    def shape(self, row: int) -> tuple[int, ...]:
        first = self.shape_end[row - 1] if row else 0
        return tuple(self.sides[first : self.shape_end[row]].tolist())

    @staticmethod
    def joined(some: list[_Rows]) -> _Rows:
        """One after the other; those given are used up."""
        before = 0
        for number, rows in enumerate(some):
            some[number] = rows._replace(shape_end=rows.shape_end + before)
            before += len(rows.sides)
        columns = [list(column) for column in zip(_NO_ROWS, *some)]
        some.clear()
        # One at a time, so that one is there twice and not all.
        return _Rows(*(np.concatenate(columns.pop(0)) for _ in _Rows._fields))


class _Places(NamedTuple):
    """The places of entries: which rows each has, in which pack they are, and how long that must be."""

    entry: np.ndarray
    first: np.ndarray
    rows: np.ndarray
    pack: np.ndarray
    end: np.ndarray

    def take(self, which: np.ndarray) -> _Places:
        return _Places(*(column[which] for column in self))

    @staticmethod
    def joined(some: list[_Places]) -> _Places:
        return _Places(*map(np.concatenate, zip(_NO_PLACES, *some)))


_NO_ID = np.empty((0, _ID_BYTES), np.uint8)
_NO_ROWS = _Rows(*(np.empty(0, kind) for kind in ("u4", "u4", "u8", "u8", "u1", "u4", "u8", "i8", "u4", "?")))._replace(digest=_NO_ID)
_NO_PLACES = _Places(_NO_ID, *(np.empty(0, kind) for kind in ("i8", "i8", "u4", "u8")))


def _keys(entries: np.ndarray) -> np.ndarray:
    """Of ids, as rows of bytes, numbers in the order of their first eight."""
    return np.ascontiguousarray(entries[:, :8]).view(">u8").ravel().astype(np.uint64)


def _listed(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name.endswith(".parquet") and is_id(name.removesuffix(".parquet")))


def _parse(data: bytes, name: str, spec: str, names: _Names) -> tuple[_Rows, _Places]:
    if digest(data) != name.removesuffix(".parquet"):
        raise Damaged("its bytes are not those of its name; `plumb store rebuild-index` mends it")
    try:
        plain = pyarrow.parquet.ParquetFile(io.BytesIO(data), pre_buffer=False)
        _check_header(plain, spec)
        # Without threads: they do not survive the fork of a data loader's workers.
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data), metadata=plain.metadata, pre_buffer=False, read_dictionary=_COMMON)
        batches = file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS), use_threads=False)
        decoded = [_decode(batch, names) for batch in batches]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"it cannot be decoded: {str(error).strip()}") from None
    # An entry's rows may be in two batches.
    entry = np.concatenate([_NO_ID, *(batch[0] for batch in decoded)])
    parts = np.concatenate([np.empty(0, np.uint32), *(batch[1] for batch in decoded)])
    rows = _Rows.joined([batch[2] for batch in decoded])
    wrong = [pack for pack in map(names.text, np.unique(rows.pack).tolist()) if not is_id(pack)]
    if wrong:
        raise Damaged(f"column pack: expected ids, found {shown(wrong[0])}")
    return rows, _places(entry, parts, rows)


def _check_header(file: pyarrow.parquet.ParquetFile, spec: str) -> None:
    stated = file.metadata.metadata or {}
    version = stated.get(b"plumb.version", b"").decode("ascii", "replace")
    check_version(int(version) if version.isdecimal() else version, FORMAT_VERSION, "metadata `plumb.version`")
    if stated.get(b"plumb.spec") != spec.encode():
        raise Damaged(f"metadata `plumb.spec`: expected {spec}, found {shown(stated.get(b'plumb.spec'))}")
    for column, kind in _COLUMNS.items():
        place = file.schema_arrow.get_field_index(column)
        found = file.schema_arrow.field(place).type if place >= 0 else None
        if found != kind:
            raise Damaged(f"column {column}: expected {kind}, found {found}")


def _decode(batch: pyarrow.RecordBatch, names: _Names) -> tuple[np.ndarray, np.ndarray, _Rows]:
    """Of some rows: their entries, of how many rows each entry says to be, and the rest."""
    # Text that is none is found here, and not when a row is looked at.
    batch.validate(full=True)
    nulls = [column for column in _COLUMNS if batch[column].null_count > 0]
    if nulls:
        raise Damaged(f"column {nulls[0]}: expected no nulls")
    common = {column: names.numbers(batch[column]) for column in _COMMON}
    shape = batch["shape"]
    ends = shape.offsets.to_numpy()
    rows = _Rows(
        common["part"],
        common["pack"],
        batch["offset"].to_numpy(),
        batch["length"].to_numpy(),
        _ids(batch["digest"], "digest"),
        common["dtype"],
        shape.flatten().to_numpy(),
        (ends[1:] - ends[0]).astype(np.int64),
        batch["token_count"].to_numpy(),
        batch["truncated"].to_numpy(zero_copy_only=False),
    )
    return _ids(batch["entry"], "entry"), batch["parts"].to_numpy(), rows


def _ids(column: pyarrow.StringArray, name: str) -> np.ndarray:
    """A column of ids as rows of bytes."""
    if not len(column):
        return _NO_ID
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
    digits = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    wrong = np.diff(offsets) != 2 * _ID_BYTES
    halves = _DIGITS[digits if not wrong.any() else digits[:0]].reshape(-1, 2 * _ID_BYTES)
    if not wrong.any():
        wrong = (halves > 15).any(axis=1)
    if wrong.any():
        raise Damaged(f"column {name}: expected ids, found {shown(column[int(wrong.argmax())].as_py())}")
    return halves[:, ::2] << 4 | halves[:, 1::2]


class _Packs:
    """The sizes of packs, each looked up once."""

    def __init__(self, root: str, names: _Names) -> None:
        self._root = root
        self._names = names
        self._sizes: dict[int, int] = {}
        self._lost: dict[int, int] = {}

    def those_here(self, places: _Places) -> _Places:
        """Those whose pack is there and long enough: others are no entries."""
        packs, of_packs = np.unique(places.pack, return_inverse=True)
        sizes = np.array([self._size(pack) for pack in packs.tolist()], np.uint64)
        is_here = (sizes[of_packs] >= places.end) & (sizes[of_packs] > 0)
        for pack, lost in zip(packs.tolist(), np.bincount(of_packs[~is_here], minlength=len(packs)).tolist()):
            if lost:
                self._lost[pack] = self._lost.get(pack, 0) + lost
        return places.take(is_here)

    def _size(self, pack: int) -> int:
        """0 where there is none: no pack is empty."""
        if pack not in self._sizes:
            try:
                self._sizes[pack] = os.stat(pack_path(self._root, self._names.text(pack))).st_size
            except OSError:
                self._sizes[pack] = 0
        return self._sizes[pack]

    def problems(self) -> list[str]:
        return [
            f"{pack_path(self._root, self._names.text(pack))}: missing or shorter than the index says, {count} "
            f"{'entry' if count == 1 else 'entries'} lost; `plumb store rebuild-index` and encoding again mend it"
            for pack, count in self._lost.items()
        ]


def _places(entry: np.ndarray, parts: np.ndarray, rows: _Rows) -> _Places:
    """Where entries begin in rows, and how many rows each has, as its first says."""
    if not len(parts):
        return _NO_PLACES
    is_new = (entry[1:] != entry[:-1]).any(axis=1) | (rows.pack[1:] != rows.pack[:-1])
    begins = np.concatenate(([0], np.flatnonzero(is_new) + 1))
    lengths = np.diff(np.append(begins, len(parts)))
    counts = parts[begins].astype(np.int64)
    whole = counts == lengths
    first, of_each = begins[whole], counts[whole]
    # An entry twice in a pack, one after the other; or rows that are missing.
    more = [pair for begin, length in zip(begins[~whole].tolist(), lengths[~whole].tolist()) for pair in _divided(parts, begin, length, entry)]
    if more:
        first = np.append(first, [at for at, _ in more])
        of_each = np.append(of_each, [count for _, count in more])
        order = np.argsort(first)
        first, of_each = first[order], of_each[order]
    # A sum that is too large for its type is more than any pack has.
    ends = np.where(rows.offset > _MOST - rows.length, _MOST, rows.offset + rows.length)
    return _Places(entry[first], first, of_each, rows.pack[first], np.maximum.reduceat(ends, first))


def _divided(parts: np.ndarray, begin: int, length: int, entry: np.ndarray) -> list[tuple[int, int]]:
    """Rows of one entry in one pack that follow each other, as the places that they say to be."""
    found, at = [], begin
    while at < begin + length:
        count = int(parts[at])
        if not 0 < count <= begin + length - at:
            what = f"{count} rows of one entry in one pack, found {begin + length - at} of {entry[at].tobytes().hex()}"
            raise Damaged(f"row {at}: expected {what}")
        found.append((at, count))
        at += count
    return found


def pack_path(root: str, pack: str) -> str:
    """Where a pack lies; `pack` is an id, so it cannot lead out of the store."""
    return os.path.join(root, "packs", pack[:2], f"{pack}.safetensors")
