"""Files of a store, and manifests, damaged at random: each is read, or refused with an error of the package's own.

Two seconds for each kind of file; `PLUMB_FUZZ_SECONDS=3600` for longer, with other damage from another `PLUMB_FUZZ_SEED`. What ever
ends in another error is printed as it was written, and belongs into a test of its own.
"""

import os
import random
import time
import unittest
import warnings

import numpy as np
import plumb
from plumb import _text
from support import World, without_program

CAPTION = "a red circle number 1"
SECONDS = float(os.environ.get("PLUMB_FUZZ_SECONDS", "2"))
SEED = int(os.environ.get("PLUMB_FUZZ_SEED", "20260728"))
# What JSON has that single bytes seldom make.
WORDS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"Infinity", b'"\\ud800"', b"\x1b[2J",
    b"1" * 400, b"1" * 5000, b"[" * 100_000, b'{"a":' * 20_000, b"\xff\xfe", b"4294967296",
]  # fmt: skip
# How much longer than its time a test may wait for one file.
SLOW = 30.0


def damaged(rng: random.Random, data: bytes, words: list[bytes]) -> bytes:
    """Changes a few bytes, cuts, repeats or inserts."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(9 if words else 7)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            found[at:at] = found[rng.randrange(len(found) + 1) :][:16]
        elif kind == 2:
            del found[at : at + 1]
        elif kind <= 4:
            found[at : at + 1] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])])
        elif kind <= 6:
            end = min(at + rng.randrange(12), len(found))
            found[at:end] = found[at:end][::-1]
        else:
            end = at + rng.choice([0, 0, 1, 4])
            found[at:end] = rng.choice(words)
    return bytes(found)


def sealed(data: bytes) -> bytes:
    """A JSON object's text with the digest of its members as it would be had plumb written them."""
    rest = data[len(b'{"digest":"') + 64 + 2 :]
    return b'{"digest":"' + _text.digest(b"{" + rest).encode() + b'",' + rest


class Fuzz(unittest.TestCase):
    def setUp(self):
        self.world = World(self)
        self.world.encode()
        self.manifest = self.world.folder / "m.json"
        self.world.run("inspect", "manifest", "exp.toml", "--out", self.manifest)
        (self.recipe,) = plumb.Store(self.world.store).recipes()
        picture = plumb.Manifest.open(self.manifest).pictures[1]
        self.latents = picture.views[0].entry
        without_program(self)
        warnings.simplefilter("ignore")
        self.addCleanup(warnings.resetwarnings)

    def read(self):
        store = plumb.Store(self.world.store)
        found = store.conditioning(self.recipe, CAPTION)
        latents = store.latents(self.recipe.latents, self.latents)
        return [found.context, found.pooled, latents.mean, latents.logvar]

    def fuzz(self, path, read, *, words=WORDS, make=lambda data: data, name=None):
        """Damages a file again and again. `make` is what is done to the damaged bytes, `name` tells the file's name by them."""
        whole, rng, start, runs = path.read_bytes(), random.Random(SEED), time.monotonic(), 0
        path.unlink()
        refused = 0
        while runs < 50 or time.monotonic() - start < SECONDS:
            data = make(damaged(rng, whole, words))
            place = path.with_name(name(data)) if name else path
            place.write_bytes(data)
            begin = time.monotonic()
            try:
                read()
            except plumb.Error as error:
                refused += 1
                self.assertNotIn("\x1b", str(error))
                self.assertLess(len(str(error)), 4000)
            except Exception as error:
                raise AssertionError(f"run {runs} of {path.name}, seed {SEED}: {error!r}: {data[:20000]!r}") from error
            self.assertLess(time.monotonic() - begin, SLOW, data[:20000])
            place.unlink()
            runs += 1
        path.write_bytes(whole)
        self.assertGreater(refused, 0, f"{runs} runs")

    def test_the_marker_of_a_store(self):
        self.fuzz(self.world.store / "store.json", lambda: plumb.Store(self.world.store))

    def test_a_run(self):
        (path,) = self.world.files("runs/*.json")

        def read():
            for recipe in plumb.Store(self.world.store).recipes():
                plumb.Store(self.world.store).conditioning(recipe, CAPTION)

        self.fuzz(path, read, make=sealed)

    def test_a_manifest(self):
        def read():
            manifest = plumb.Manifest.open(self.manifest)
            plumb.Store(self.world.store).conditioning(manifest, CAPTION)

        self.fuzz(self.manifest, read, make=sealed)

    def test_an_index_file(self):
        for path in self.world.files("index/*/*.parquet"):
            self.fuzz(path, self.read, words=[], name=lambda data: f"{_text.digest(data)}.parquet")

    def test_a_pack(self):
        expected = self.read()

        def read():
            for found, wanted in zip(self.read(), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)

        for path in self.world.files("packs/*/*.safetensors"):
            self.fuzz(path, read, words=[])


if __name__ == "__main__":
    unittest.main()
