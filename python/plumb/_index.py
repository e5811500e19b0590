"""The index of one spec: which entries a store has, and where their tensors lie. `schemas/FORMAT.md` has the columns."""

from __future__ import annotations

import dataclasses
import io
import os
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from ._errors import Damaged, Error
from ._text import check_version, digest, is_id, read_file, shown

FORMAT_VERSION = 1
_PART_LIMIT = 1 << 30
# How often the index is listed again because a cleaner removed files meanwhile.
_TRIES = 8
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
    """The entries of a spec that the store had when it was read."""

    def __init__(self, root: str, spec: str) -> None:
        self.problems: list[str] = []
        """What of the index could not be used; the entries concerned count as missing."""
        self._tables: list[pyarrow.Table] = []
        # By entry, its places: number of the table, first row, rows.
        self._places: dict[str, list[tuple[int, int, int]]] = {}
        self._load(root, spec)

    def __contains__(self, entry: str) -> bool:
        return entry in self._places

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, entry: str) -> list[Row]:
        """The places where an entry is; none where the store lacks it. Two writers may both have stored it."""
        return [self._row(*place) for place in self._places.get(entry, ())]

    def _row(self, table: int, first: int, count: int) -> Row:
        rows = self._tables[table].slice(first, count).to_pylist()
        parts = tuple(
            Part(r["part"], r["pack"], r["offset"], r["length"], r["digest"], r["dtype"], tuple(r["shape"]))
            for r in rows
        )
        return Row(parts, rows[0]["token_count"], rows[0]["truncated"])

    def _load(self, root: str, spec: str) -> None:
        folder = os.path.join(root, "index", spec)
        # Index files first, packs after them: a pack is on disk before a row names it.
        for _ in range(_TRIES):
            names = _listed(folder)
            tables = [self._table(os.path.join(folder, name), name, spec) for name in names]
            packs = _Packs(root)
            found = [(table, packs.those_here(places)) for table, places in filter(None, tables)]
            # Who cleans up removes index files before packs: where all are still there, so were their packs.
            if all(os.path.exists(os.path.join(folder, name)) for name in names):
                break
            self.problems.clear()
        else:
            raise Error(f"{root}: its index keeps changing; try again when whoever cleans it up is done")
        self.problems += packs.problems()
        for number, (table, places) in enumerate(found):
            self._tables.append(table)
            for place in places:
                self._places.setdefault(place.entry, []).append((number, place.first, place.rows))

    def _table(self, path: str, name: str, spec: str) -> tuple[pyarrow.Table, list[_Place]] | None:
        try:
            table = _parse(read_file(path, _PART_LIMIT), name, spec)
            return table, _places(table)
        except FileNotFoundError:
            # Moved into another file meanwhile, which the next listing has.
            return None
        except (OSError, Damaged) as error:
            self.problems.append(f"{path}: {error}; its entries count as missing")
            return None


def _listed(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name.endswith(".parquet") and is_id(name.removesuffix(".parquet")))


def _parse(data: bytes, name: str, spec: str) -> pyarrow.Table:
    if digest(data) != name.removesuffix(".parquet"):
        raise Damaged("its bytes are not those of its name; `plumb store rebuild-index` mends it")
    try:
        # Without threads: they do not survive the fork of a data loader's workers.
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data), pre_buffer=False)
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
        table = file.read(columns=list(_COLUMNS), use_threads=False).combine_chunks()
        # Text that is none is found here, and not when a row is looked at.
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"it cannot be decoded: {str(error).strip()}") from None
    nulls = [column for column in _COLUMNS if table[column].null_count > 0]
    if nulls:
        raise Damaged(f"column {nulls[0]}: expected no nulls")
    return table


class _Packs:
    """The sizes of packs, each looked up once."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._sizes: dict[str, int] = {}
        self._lost: dict[str, int] = {}

    def those_here(self, places: list[_Place]) -> list[_Place]:
        """Those whose pack is there and long enough: others are no entries."""
        return [place for place in places if self._has(place.pack, place.end)]

    def _has(self, pack: str, end: int) -> bool:
        if pack not in self._sizes:
            try:
                self._sizes[pack] = os.stat(pack_path(self._root, pack)).st_size
            except OSError:
                self._sizes[pack] = -1
        if self._sizes[pack] >= end:
            return True
        self._lost[pack] = self._lost.get(pack, 0) + 1
        return False

    def problems(self) -> list[str]:
        return [
            f"{pack_path(self._root, pack)}: missing or shorter than the index says, {count} {'entry' if count == 1 else 'entries'} lost; "
            "`plumb store rebuild-index` and encoding again mend it"
            for pack, count in self._lost.items()
        ]


class _Place(NamedTuple):
    """An entry in a table: its rows, and how long its pack must be."""

    entry: str
    first: int
    rows: int
    pack: str
    end: int


def _places(table: pyarrow.Table) -> list[_Place]:
    entries, counts, names = (table[c].to_pylist() for c in ("entry", "parts", "pack"))
    starts, lengths = (table[c].to_pylist() for c in ("offset", "length"))
    found, first = [], 0
    while first < len(entries):
        entry, pack, count = entries[first], names[first], counts[first]
        last = first + count
        # A count is anything up to 4 billion: it is compared before as much is made.
        whole = 0 < count <= len(entries) - first
        whole = whole and entries[first:last] == [entry] * count and names[first:last] == [pack] * count
        if not whole or not is_id(entry) or not is_id(pack):
            raise Damaged(f"row {first}: expected {count} rows of one entry in one pack, found {shown(entry)} in {shown(pack)}")
        end = max(starts[row] + lengths[row] for row in range(first, last))
        found.append(_Place(entry, first, count, pack, end))
        first = last
    return found


def pack_path(root: str, pack: str) -> str:
    """Where a pack lies; `pack` is an id, so it cannot lead out of the store."""
    return os.path.join(root, "packs", pack[:2], f"{pack}.safetensors")
