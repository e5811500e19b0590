"""What is missing, changed, damaged or newer is told, and no other tensors are given instead."""

import io
import json
import os
import shutil
import unittest
import unittest.mock
import warnings

import numpy as np
import plumb
import pyarrow
import pyarrow.parquet
from plumb import _index, _text
from support import World, without_program

CAPTION = "a red circle number 1"


class Refused(unittest.TestCase):
    def test_a_caption_that_the_store_lacks_is_refused_with_the_command_that_mends_it(self):
        world = World(self)
        world.encode()
        store = plumb.Store(world.store)
        for recipe in (world.exp, store.recipes()[0]):
            with self.assertRaises(plumb.Refused) as refused:
                store.conditioning(recipe, "no\x1b[31m such")
            said = str(refused.exception)
            self.assertIn("t5: ", said)
            self.assertIn("to mend it: plumb encode", said)
            self.assertIn("--captions FILE", said)
            self.assertNotIn("\x1b", said)
        # What is encoded meanwhile is found.
        world.run("inspect", "conditioning", "exp.toml", "--caption=new", "--out", "new.safetensors")
        self.assertEqual(store.conditioning(world.exp, "new").context.shape[1], 128)

    def test_a_changed_experiment_is_refused_as_train_does(self):
        world = World(self)
        world.encode()
        store = plumb.Store(world.store)
        store.conditioning(world.exp, CAPTION)
        world.write(recipe="[recipe.deviate]\nt5.tokens.max_tokens = 154\nt5.tokens.min_tokens = 154")
        with self.assertRaises(plumb.Refused) as refused:
            store.conditioning(world.exp, CAPTION)
        said = str(refused.exception)
        self.assertRegex(said, r"(?s)t5: 1 of 1 entry is missing.*tokens.max_tokens\s+154\s+256")
        self.assertIn('wanted: [recipe.deviate] instead of 256', said)
        with self.assertRaises(plumb.Refused) as refused:
            plumb.dataset(world.exp)
        self.assertEqual(str(refused.exception), world.refusal())

    def test_a_changed_caption_or_picture_is_refused_as_train_does(self):
        world = World(self)
        world.encode()
        plumb.dataset(world.exp)
        world.picture(0).with_suffix(".txt").write_text("another")
        shutil.copy(world.picture(1), world.picture(2))
        shutil.copy(world.picture(0), world.picture(1))
        world.picture(0).write_bytes(world.picture(0).read_bytes() + b"x")
        with self.assertRaises(plumb.Refused) as refused:
            plumb.dataset(world.exp)
        self.assertEqual(str(refused.exception), world.refusal())
        self.assertIn("latents: 1 of 3 entries is missing", str(refused.exception))

    def test_two_stores_are_not_mixed_up(self):
        world = World(self)
        world.encode()
        other = world.folder / "other"
        shutil.copytree(world.store, other)
        world.run("inspect", "conditioning", "exp.toml", "--caption=only here", "--out", "x.safetensors")
        self.assertTrue(plumb.Store(world.store).conditioning(world.exp, "only here"))
        copy = plumb.Store(other)
        self.assertTrue(copy.conditioning(world.exp, CAPTION))
        with self.assertRaisesRegex(plumb.Refused, f"set to {other}"):
            copy.conditioning(world.exp, "only here")
        self.assertEqual(plumb.dataset(world.exp, store=other).store.path, str(other))

    def test_what_is_no_store_or_no_experiment_is_called_so(self):
        world = World(self)
        with self.assertRaisesRegex(plumb.Error, "there is no such folder"):
            plumb.Store(world.store)
        with self.assertRaisesRegex(plumb.Error, "^s3://bucket/x: expected a folder, found an address: `plumb store pull"):
            plumb.Store("s3://bucket/x")
        with self.assertRaisesRegex(plumb.Error, "^the address: expected a folder"):
            plumb.Store("s3://me:secret@bucket/x")
        world.store.mkdir()
        with self.assertRaisesRegex(plumb.Error, "the folder holds no store.json"):
            plumb.Store(world.store)
        (world.store / "store.json").write_text('{"format": "plumb-store", "version": 2}')
        with self.assertRaisesRegex(plumb.NewerFormat, "format version 2.*up to 1"):
            plumb.Store(world.store)
        for text in ("", "[]", "[" * 100_000, '{"format": "x", "version": 1}', '{"format": "plumb-store", "version": true}'):
            (world.store / "store.json").write_text(text)
            with self.assertRaises(plumb.Damaged):
                plumb.Store(world.store)
        (world.store / "store.json").write_text('{"format": "plumb-store", "version": 1}')
        store = plumb.Store(world.store)
        with self.assertRaisesRegex(plumb.Error, "cannot be read"):
            store.conditioning("none.toml", "x")
        world.exp.write_text("[model]\n")
        with self.assertRaisesRegex(plumb.Error, "exp.toml"):
            store.conditioning(world.exp, "x")
        with self.assertRaisesRegex(plumb.Error, "half of a surrogate pair"):
            _text.caption_entry("0" * 64, "\ud800")


class Damage(unittest.TestCase):
    def setUp(self):
        self.world = World(self)
        self.world.encode()
        (self.recipe,) = plumb.Store(self.world.store).recipes()

    def read(self):
        return plumb.Store(self.world.store).conditioning(self.recipe, CAPTION)

    def warned(self):
        """The refusal, with what was warned of."""
        with warnings.catch_warnings(record=True) as caught, self.assertRaises(plumb.Refused):
            warnings.simplefilter("always")
            self.read()
        return " ".join(str(warning.message) for warning in caught)

    def rewrite(self, change):
        """Changes the index files' tables; the new ones are named by their digests, as a writer would."""
        for path in self.world.files("index/*/*.parquet"):
            table = pyarrow.parquet.read_table(path, partitioning=None)
            kept = pyarrow.parquet.ParquetFile(path).metadata.metadata
            table = change(table).replace_schema_metadata({k: v for k, v in kept.items() if k.startswith(b"plumb")})
            path.unlink()
            write_index(path.parent, table)

    def test_a_flipped_bit_in_a_pack(self):
        for path in self.world.files("packs/*/*.safetensors"):
            data = bytearray(path.read_bytes())
            data[len(data) - 100] ^= 1
            path.write_bytes(data)
        store = plumb.Store(self.world.store)
        damaged = 0
        for number in range(3):
            try:
                store.conditioning(self.recipe, f"a red circle number {number}")
            except plumb.Damaged as error:
                damaged += 1
                self.assertRegex(str(error), "damaged entry .* its bytes have another digest.*rebuild-index")
        self.assertGreater(damaged, 0)

    def test_a_short_or_missing_pack(self):
        for path in self.world.files("packs/*/*.safetensors"):
            os.truncate(path, 1000)
        self.assertIn("missing or shorter than the index says", self.warned())
        for path in self.world.files("packs/*/*.safetensors"):
            path.unlink()
        self.assertIn("missing or shorter than the index says", self.warned())

    def test_a_damaged_index_file_is_told_and_its_entries_are_missing(self):
        for path in self.world.files("index/*/*.parquet"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        self.assertIn("its bytes are not those of its name", self.warned())

    def test_an_index_file_that_is_named_right_and_is_none(self):
        for make in (
            lambda table: table.rename_columns(["Entry" if c == "entry" else c for c in table.column_names]),
            lambda table: table.set_column(0, "entry", pyarrow.array(["../" * 5] * len(table))),
            lambda table: table.set_column(2, "parts", pyarrow.array([7] * len(table), pyarrow.uint32())),
            lambda table: table.set_column(2, "parts", pyarrow.array([0] * len(table), pyarrow.uint32())),
            lambda table: table.set_column(2, "parts", pyarrow.array([(1 << 32) - 1] * len(table), pyarrow.uint32())),
            lambda table: table.set_column(0, "entry", pyarrow.array([b"\xff"] * len(table)).view(pyarrow.string())),
        ):
            self.setUp()
            self.rewrite(make)
            self.assertIn("its entries count as missing", self.warned())
        for path in self.world.files("index/*/*.parquet"):
            path.unlink()
            data = b"PAR1" + b"\0" * 40 + b"PAR1"
            path.with_name(f"{_text.digest(data)}.parquet").write_bytes(data)
        self.assertIn("cannot be decoded", self.warned())

    def test_numbers_that_are_not_finite(self):
        nan = {}
        for path in self.world.files("packs/*/*.safetensors"):
            data = bytearray(path.read_bytes())
            data[-4:] = np.float32(np.nan).tobytes()
            pack = _text.digest(bytes(data))
            nan[path.stem] = (pack, bytes(data))
            (self.world.store / "packs" / pack[:2]).mkdir(exist_ok=True)
            (self.world.store / "packs" / pack[:2] / f"{pack}.safetensors").write_bytes(data)

        def change(table):
            rows = table.to_pylist()
            for row in rows:
                row["pack"], data = nan[row["pack"]]
                row["digest"] = _text.digest(data[row["offset"] : row["offset"] + row["length"]])
            return pyarrow.Table.from_pylist(rows, table.schema)

        self.rewrite(change)
        store = plumb.Store(self.world.store)
        said = []
        for number in range(3):
            try:
                store.conditioning(self.recipe, f"a red circle number {number}")
            except plumb.Damaged as error:
                said.append(str(error))
        self.assertTrue(said and all("a number in it is not finite" in text for text in said), said)

    def test_a_length_that_does_not_fit_its_shape(self):
        def change(table):
            rows = table.to_pylist()
            for row in rows:
                row["shape"] = [1 << 40, 1 << 40]
            return pyarrow.Table.from_pylist(rows, table.schema)

        self.rewrite(change)
        with self.assertRaisesRegex(plumb.Damaged, "bytes for F32 of shape"):
            self.read()

    def test_a_run_that_was_changed(self):
        (path,) = self.world.files("runs/*.json")
        path.write_bytes(path.read_bytes().replace(b'"context_width":128', b'"context_width":256'))
        with self.assertRaisesRegex(plumb.Damaged, "its members are not those of its digest"):
            plumb.Store(self.world.store).recipes()


class Meanwhile(unittest.TestCase):
    def setUp(self):
        self.world = World(self)
        self.world.encode()
        self.store = plumb.Store(self.world.store)
        (self.recipe,) = self.store.recipes()
        self.expected = self.store.conditioning(self.recipe, CAPTION).context

    def move(self):
        """Moves all entries to other packs and index files and removes those they were in, as `plumb store gc` does."""
        moved = {}
        for path in self.world.files("packs/*/*.safetensors"):
            # The same tensors, and another digest: nothing looks behind the last tensor.
            data = path.read_bytes() + b"\0"
            moved[path.stem] = _text.digest(data)
            folder = self.world.store / "packs" / moved[path.stem][:2]
            folder.mkdir(exist_ok=True)
            (folder / f"{moved[path.stem]}.safetensors").write_bytes(data)
        for path in self.world.files("index/*/*.parquet"):
            table = pyarrow.parquet.read_table(path, partitioning=None)
            kept = pyarrow.parquet.ParquetFile(path).metadata.metadata
            packs = pyarrow.array([moved[pack] for pack in table["pack"].to_pylist()])
            table = table.set_column(table.column_names.index("pack"), "pack", packs)
            write_index(path.parent, table.replace_schema_metadata({k: v for k, v in kept.items() if k.startswith(b"plumb")}))
            path.unlink()
        for pack in moved:
            (self.world.store / "packs" / pack[:2] / f"{pack}.safetensors").unlink()

    def test_entries_that_were_moved_since_the_index_was_read_are_found(self):
        self.move()
        np.testing.assert_array_equal(self.store.conditioning(self.recipe, CAPTION).context, self.expected)

    def test_index_files_that_vanish_while_they_are_read_are_looked_for_again(self):
        read, moved = _index.read_file, []

        def read_and_move(path, limit):
            if not moved:
                moved.append(path)
                self.move()
            return read(path, limit)

        store = plumb.Store(self.world.store)
        with unittest.mock.patch.object(_index, "read_file", read_and_move):
            np.testing.assert_array_equal(store.conditioning(self.recipe, CAPTION).context, self.expected)
        self.assertTrue(moved)

    def test_a_second_copy_serves_where_the_first_is_damaged(self):
        good = self.world.folder / "good"
        shutil.copytree(self.world.store, good)
        self.move()
        for path in self.world.files("packs/*/*.safetensors"):
            data = bytearray(path.read_bytes())
            data[-20000:] = b"\1" * 20000
            path.write_bytes(data)
        shutil.copytree(good, self.world.store, dirs_exist_ok=True)
        found = plumb.Store(self.world.store).conditioning(self.recipe, CAPTION)
        np.testing.assert_array_equal(found.context, self.expected)

    def test_other_files_in_the_store_are_passed_over(self):
        for folder in {path.parent for path in self.world.files("index/*/*.parquet")}:
            (folder / ".tmp-1-2-held").write_bytes(b"half")
            (folder / "notes.parquet").write_bytes(b"")
        (self.world.store / "runs" / ".tmp-1-3-held").write_bytes(b"half")
        store = plumb.Store(self.world.store)
        np.testing.assert_array_equal(store.conditioning(store.recipes()[0], CAPTION).context, self.expected)


class Manifests(unittest.TestCase):
    def setUp(self):
        self.world = World(self)
        self.world.encode()
        self.file = self.world.folder / "m.json"
        self.world.run("inspect", "manifest", "exp.toml", "--out", self.file)

    def test_a_manifest_needs_no_program_and_names_the_same(self):
        of_program = plumb.Manifest.of(self.world.exp)
        without_program(self)
        self.assertEqual(plumb.Manifest.open(self.file), of_program)
        self.assertEqual(len(plumb.dataset(self.file)), 3)
        found = plumb.Store(self.world.store).conditioning(self.file, CAPTION)
        self.assertEqual(found.context.shape[1], 128)

    def test_a_manifest_of_an_experiment_that_has_changed_is_refused(self):
        self.world.write(recipe="[recipe.deviate]\nt5.tokens.max_tokens = 154\nt5.tokens.min_tokens = 154")
        with self.assertRaisesRegex(plumb.Refused, "made of another .*exp.toml than there is now"):
            plumb.Manifest.open(self.file)
        # On another machine there is none to compare with.
        self.world.exp.unlink()
        plumb.Manifest.open(self.file)

    def test_what_was_written_into_it_by_hand_is_not_read(self):
        written = self.file.read_bytes()
        for change in (
            lambda data: data.replace(b'"scale":', b'"scale":1'),
            lambda data: json.dumps(json.loads(data)).encode(),
            lambda data: data[:-1],
            lambda data: b"",
        ):
            self.file.write_bytes(change(written))
            with self.assertRaises(plumb.Damaged):
                plumb.Manifest.open(self.file)

    def test_one_of_a_newer_plumb_is_refused(self):
        members = json.loads(self.file.read_bytes())
        del members["digest"]
        members["version"] = 3
        text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.file.write_text(f'{{"digest":"{_text.digest(text.encode())}",{text[1:]}')
        with self.assertRaises(plumb.NewerFormat):
            plumb.Manifest.open(self.file)

    def test_what_the_store_lost_is_refused(self):
        shutil.rmtree(self.world.store / "index")
        with self.assertRaises(plumb.Refused) as refused:
            plumb.dataset(self.file)
        said = str(refused.exception)
        self.assertIn("t5: 3 of 3 entries are missing", said)
        self.assertIn("latents: 3 of 3 entries are missing", said)
        self.assertIn(f"to mend it: plumb encode {self.world.exp}", said)


def write_index(folder, table):
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    data = file.getvalue()
    (folder / f"{_text.digest(data)}.parquet").write_bytes(data)


if __name__ == "__main__":
    unittest.main()
