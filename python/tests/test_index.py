"""The index as `Index` has it in arrays, against its tables read row by row."""

from __future__ import annotations

import os
import pathlib
import random
import tempfile
import unittest
import unittest.mock

import pyarrow
import pyarrow.parquet

from plumb import _index
from plumb._index import Index, Part, Row, pack_path
from plumb._text import digest

SPEC = digest(b"a spec")
MANY = (1 << 64) - 1


def row(entry, count, number, **other):
    """A tensor of an entry that says to be of `count`."""
    made = {
        "entry": entry,
        "part": ("hidden", "pooled", "mean")[number % 3],
        "parts": count,
        "token_count": number,
        "truncated": number % 2 == 1,
        "pack": digest(b"pack %d" % (number % 2)),
        "offset": 100 + number,
        "length": 8,
        "digest": digest(b"payload %d" % number),
        "dtype": ("F32", "BF16")[number % 2],
        "shape": [[], [number], [2, 77, number]][number % 3],
    }
    return {**made, **other}


class IndexTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.folder = self.root / "index" / SPEC
        self.folder.mkdir(parents=True)
        for number in range(2):
            path = pathlib.Path(pack_path(str(self.root), digest(b"pack %d" % number)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0" * 10_000)

    def write(self, rows, **columns):
        fields = [pyarrow.field(name, kind, nullable=False) for name, kind in _index._COLUMNS.items()]
        schema = pyarrow.schema(fields, {"plumb.version": "1", "plumb.spec": SPEC})
        table = pyarrow.Table.from_pylist(rows, schema)
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        made = self.folder / "made"
        pyarrow.parquet.write_table(table, made, row_group_size=3)
        made.rename(self.folder / f"{digest(made.read_bytes())}.parquet")

    def check(self, rows):
        """The index has these rows, by entry and place."""
        expected: dict[str, list[Row]] = {}
        at = 0
        while at < len(rows):
            first, count = rows[at], rows[at]["parts"]
            parts = tuple(
                Part(r["part"], r["pack"], r["offset"], r["length"], r["digest"], r["dtype"], tuple(r["shape"]))
                for r in rows[at : at + count]
            )
            found = Row(parts, first["token_count"], first["truncated"])
            expected.setdefault(first["entry"], []).append(found)
            at += count
        for batch in (1, 2, 3, 1000):
            with unittest.mock.patch.object(_index, "_BATCH_ROWS", batch):
                index = Index(str(self.root), SPEC)
            self.assertEqual((index.problems, len(index)), ([], len(expected)))
            for entry, places in expected.items():
                self.assertIn(entry, index)
                self.assertEqual(index.rows(entry), places)
            others = [digest(b"other"), next(iter(expected), "")[:-1] + "0", "", "../..", MANY.to_bytes(32, "big").hex()]
            absent = [entry for entry in others if entry not in expected]
            self.assertEqual(index.lacking([*expected, *absent, *expected]), absent)
            self.assertEqual([index.rows(entry) for entry in absent], [[]] * len(absent))

    def test_entries_of_any_number_of_tensors_and_copies(self):
        rng = random.Random(1)
        for entries in (0, 1, 2, 30):
            self.setUp()
            rows = []
            for number in range(entries):
                count, pack = rng.randint(1, 5), digest(b"pack %d" % rng.randint(0, 1))
                entry = digest(b"entry %d" % number)
                # Sometimes twice, one after the other, in one pack or two.
                for copy in range(rng.choice((1, 1, 2))):
                    there = pack if copy == 0 or rng.random() < 0.5 else digest(b"pack 0")
                    rows += [row(entry, count, len(rows) + at, pack=there) for at in range(count)]
            self.write(rows)
            self.check(rows)

    def test_entries_that_begin_alike(self):
        alike = [digest(b"entry")[:16] + digest(b"%d" % number)[16:] for number in range(5)]
        rows = [row(entry, 1, number) for number, entry in enumerate(alike)]
        self.write(rows)
        self.check(rows)

    def test_files_are_one_after_the_other(self):
        rows = [row(digest(b"entry %d" % number), 2, at) for number in range(8) for at in range(2)]
        rows = [{**r, "pack": digest(b"pack 0")} for r in rows]
        self.write(rows[:6])
        self.write([])
        self.write(rows[6:])
        names = sorted(os.listdir(self.folder))
        self.assertEqual(len(names), 3)
        self.check(rows)

    def test_what_no_pack_has_room_for_is_no_entry(self):
        whole = row(digest(b"entry"), 1, 0)
        for other in ({"offset": 9_993}, {"offset": MANY}, {"length": MANY}, {"offset": MANY, "length": MANY}, {"pack": digest(b"none")}):
            self.setUp()
            self.write([whole, row(digest(b"lost"), 1, 2, **other)])
            index = Index(str(self.root), SPEC)
            self.assertEqual((len(index), len(index.problems)), (1, 1))
            self.assertRegex(index.problems[0], "missing or shorter than the index says, 1 entry lost")

    def test_damage_is_told_in_words(self):
        entry = digest(b"entry")
        rows = [row(entry, 2, number, pack=digest(b"pack 0")) for number in range(4)]
        texts = pyarrow.array([entry] * 3 + ["x"])
        for columns, told in (
            ({"entry": texts}, "column entry: expected ids, found `x`"),
            ({"digest": texts}, "column digest: expected ids, found `x`"),
            ({"pack": texts}, "column pack: expected ids, found `x`"),
            ({"digest": pyarrow.array([entry.upper()] * 4)}, f"column digest: expected ids, found `{entry.upper()}`"),
            ({"digest": pyarrow.array(["\u00e9" * 32] * 4)}, "column digest: expected ids, found"),
            ({"entry": pyarrow.array([entry[:-1] + "\n"] * 4)}, r"column entry: expected ids, found `.*\\n`"),
            ({"entry": pyarrow.array([entry, entry, entry, None])}, "column entry: expected no nulls"),
            ({"pack": pyarrow.array([entry, None, entry, entry])}, "column pack: expected no nulls"),
            ({"parts": pyarrow.array([2, 2, 3, 2], pyarrow.uint32())}, "row 2: expected 3 rows of one entry in one pack, found 2"),
            ({"parts": pyarrow.array([0] * 4, pyarrow.uint32())}, "row 0: expected 0 rows of one entry in one pack, found 4"),
            ({"parts": pyarrow.array([2] * 4, pyarrow.int64())}, "column parts: expected uint32, found int64"),
            ({"pack": pyarrow.array([entry, SPEC, entry, entry])}, "row 0: expected 2 rows of one entry in one pack, found 1"),
        ):
            self.setUp()
            self.write(rows, **columns)
            index = Index(str(self.root), SPEC)
            self.assertEqual(len(index), 0)
            self.assertEqual(len(index.problems), 1)
            self.assertRegex(index.problems[0], told)


if __name__ == "__main__":
    unittest.main()
