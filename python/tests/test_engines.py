"""Ray and Daft: what their workers put into a store is what one process puts there, also where a machine is lost."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import tempfile
import time
import unittest

import pyarrow as pa
import pyarrow.parquet

import plumb
from plumb import _program
from plumb.worker import Worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAPTIONS = [f"a red circle, {n}" for n in range(48)]

EXPERIMENT = """
[model]
family = "sd3"
flavor = "3.5-large"
path = "{model}"

[store]
path = "{store}"
"""


class World:
    """A folder with an Experiment of captions, and the store that one process makes of them."""

    def __init__(self, test: unittest.TestCase) -> None:
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "captions.txt").write_text("\n".join(CAPTIONS))
        _program.ask("encode", self.experiment("one"), "--captions", str(self.folder / "captions.txt"))

    def experiment(self, store: str) -> str:
        path = self.folder / f"{store}.toml"
        path.write_text(EXPERIMENT.format(model=ROOT / "assets/tiny-sd3", store=store))
        return str(path)

    def content(self, store: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """The digests of each entry of each spec, as the index has them."""
        found: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for path in sorted((self.folder / store / "index").glob("*/*.parquet")):
            for row in pa.parquet.read_table(path, columns=["entry", "part", "digest"]).to_pylist():
                parts = found.setdefault((path.parent.name, row["entry"]), [])
                if (row["part"], row["digest"]) not in parts:
                    parts.append((row["part"], row["digest"]))
        return {entry: sorted(parts) for entry, parts in found.items()}


def digests(entries: list[dict]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """What rows say, in the same form."""
    return {
        (entry["spec"], entry["entry"]): sorted((part["part"], part["digest"]) for part in entry["parts"]) for entry in entries
    }


class OneProcess(unittest.TestCase):
    def test_rows_keep_their_columns_and_an_error_is_a_row(self) -> None:
        world = World(self)
        table = pa.table({"n": [1, 2, 3], "text": ["a red circle, 0", None, "a red circle, 1"]})
        with Worker(world.experiment("rows"), threads=1, options=("--device", "cpu")) as worker:
            made = worker.encode(table, "text")
            self.assertEqual(made.column_names, ["n", "text", "error", "entries"])
            self.assertEqual(worker.encode(table.slice(0, 0), "text").num_rows, 0)
        self.assertEqual([error is None for error in made["error"].to_pylist()], [True, False, True])
        expected = world.content("one")
        for row in made.to_pylist():
            self.assertEqual(len(row["entries"]), 0 if row["error"] else 3)
            self.assertLessEqual(digests(row["entries"]).items(), expected.items())

    def test_what_the_program_refuses_is_refused_before_it_is_asked(self) -> None:
        world = World(self)
        texts = ["a red circle, 0"]
        with Worker(world.experiment("none"), threads=1, options=("--device", "cpu")) as worker:
            for table, said in (
                (pa.table({"caption": [1, 2]}), "column `caption`: expected strings, found int64"),
                (pa.table({"caption": [True]}), "expected strings, found bool"),
                (pa.table({"caption": [b"a"]}), "expected strings, found binary"),
                (pa.table({"caption": pa.array([1]).dictionary_encode()}), "expected strings, found dictionary"),
                (pa.table({"text": texts}), "expected one column `caption`, found 0; there are: text"),
                (pa.table([texts, texts], names=["caption", "caption"]), "expected one column `caption`, found 2"),
                (pa.table({"caption": texts, "error": ["x"]}), "a column `error`, .* give it another name"),
                (pa.table({"caption": texts, "entries": ["x"]}), "a column `entries`, .* give it another name"),
            ):
                with self.assertRaisesRegex(plumb.Error, said):
                    worker.encode(table)
            # Refused before the process got anything: it goes on.
            for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
                made = worker.encode(pa.table({"caption": pa.array(texts).cast(kind)}))
                self.assertEqual(made["error"].to_pylist(), [None])
            self.assertIn("null", worker.encode(pa.table({"caption": [None]}))["error"].to_pylist()[0])

    def test_the_error_of_the_process_is_raised(self) -> None:
        world = World(self)
        path = world.experiment("broken")
        pathlib.Path(path).write_text("[model]\n")
        with self.assertRaisesRegex(plumb.Error, "family"):
            Worker(path).encode(pa.table({"caption": ["a"]}))
        self.assertFalse((world.folder / "broken").exists())


@unittest.skipUnless(importlib.util.find_spec("ray"), "ray is not installed")
class OnRay(unittest.TestCase):
    def test_a_node_that_is_lost_costs_nothing(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        import plumb.ray

        world = World(self)
        expected = world.content("one")
        os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
        # A lost node is known after half a minute otherwise.
        config = {"health_check_period_ms": 500, "health_check_timeout_ms": 5000}
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": config}
        )
        self.addCleanup(cluster.shutdown)
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PLUMB_PROGRAM": _program.find()}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": paths})
        self.addCleanup(ray.shutdown)

        begun = world.folder / "begun"
        begun.mkdir()

        class Slow(plumb.ray.Encode):
            """So that batches are left when the node goes: none is done before two actors work, or a minute has passed."""

            def __call__(self, batch: pa.Table) -> pa.Table:
                (begun / str(os.getpid())).touch()
                for _ in range(600):
                    time.sleep(0.1)
                    if len(list(begun.iterdir())) > 1:
                        break
                return super().__call__(batch)

        captions = ray.data.from_items([{"id": n, "caption": text} for n, text in enumerate(CAPTIONS)], override_num_blocks=12)
        made = captions.map_batches(
            Slow,
            fn_constructor_args=(world.experiment("ray"),),
            fn_constructor_kwargs={"threads": 1},
            batch_format="pyarrow",
            batch_size=4,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=2, max_size=3),
        )
        rows, lost = [], None
        for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows += batch.to_pylist()
            if lost is None and len(list(begun.iterdir())) > 1:
                lost = nodes.pop()
                cluster.remove_node(lost, allow_graceful=False)
        self.assertIsNotNone(lost, "all was done before a node could be lost")
        self.assertEqual(sorted(row["id"] for row in rows), list(range(len(CAPTIONS))))
        found: dict = {}
        for row in rows:
            self.assertIsNone(row["error"])
            found |= digests(row["entries"])
        self.assertEqual(found, expected)
        self.assertEqual(world.content("ray"), expected)

        plumb.ray.encode([world.experiment("parts"), "--captions", str(world.folder / "captions.txt")], parts=2)
        self.assertEqual(world.content("parts"), expected)


@unittest.skipUnless(importlib.util.find_spec("daft"), "daft is not installed")
class InDaft(unittest.TestCase):
    def test_a_column_of_captions_becomes_entries(self) -> None:
        import daft

        import plumb.daft

        world = World(self)
        encode = plumb.daft.Encode(world.experiment("daft"), threads=1)
        frame = daft.from_pydict({"id": list(range(len(CAPTIONS))), "caption": CAPTIONS})
        made = frame.with_columns({"made": encode(frame["caption"])}).to_pydict()
        self.assertEqual(made["id"], list(range(len(CAPTIONS))))
        found: dict = {}
        for row in made["made"]:
            self.assertIsNone(row["error"])
            found |= digests(row["entries"])
        self.assertEqual(found, world.content("one"))
        self.assertEqual(world.content("daft"), found)


if __name__ == "__main__":
    unittest.main()
