"""Captions to embeddings by a `plumb worker` process: what engines that spread work over machines call on each batch.

    with plumb.worker.Worker("exp.toml") as worker:
        made = worker.encode(pyarrow.table({"caption": ["a red circle"]}))
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import Any

import pyarrow as pa

from ._errors import Error
from ._program import find

ADDED = ("error", "entries")
"""The columns that are added: why a caption could not be encoded, and what each text encoder made of it."""

_ROWS = 4096


def _captions(table: pa.Table, column: str) -> pa.ChunkedArray:
    """The strings of a column, as the program would take them: a number that is written out would be another caption."""
    names = table.column_names
    if names.count(column) != 1:
        raise Error(f"expected one column `{column}`, found {names.count(column)}; there are: {', '.join(names)}")
    for name in ADDED:
        if name in names:
            raise Error(f"a column `{name}`, which is one of those that are added: give it another name")
    captions = table.column(column)
    kind = captions.type.value_type if pa.types.is_dictionary(captions.type) else captions.type
    # Of no caption at all, pyarrow makes a column of nulls.
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_known(kind) for is_known in known):
        raise Error(f"column `{column}`: expected strings, found {captions.type}")
    return captions.cast(pa.large_string())


class Worker:
    """One process, with the encoders in it for as long as it lives.

    `experiment` names model, recipe and store. With `store` tensors go into the store, and `entries` says which they are; without,
    `entries` has them. `threads` is how many it computes with on a CPU, where several share a machine; `options` are further ones of
    `plumb worker`, as `["--device", "cuda:1"]`.
    """

    def __init__(
        self, experiment: str | os.PathLike[str], *, store: bool = True, threads: int | None = None, options: tuple[str, ...] = ()
    ) -> None:
        command = [find(), "--quiet", "worker", os.fspath(experiment), *(["--store"] if store else []), *options]
        if threads is not None:
            command += ["--threads", str(threads)]
        self._said = tempfile.TemporaryFile()
        self._sink: Any = None
        self._source: Any = None
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        except OSError as error:
            raise Error(f"{command[0]}: cannot be run: {error}") from None

    def encode(self, table: pa.Table, column: str = "caption") -> pa.Table:
        """`table` with the columns `ADDED`, of the captions in `column`.

        Raises Error where these are no strings, the table has such columns already, or the process ends with an error.
        """
        captions = _captions(table, column)
        rows = pa.table({"caption": captions}).combine_chunks()
        # Of no rows, one batch without any: the columns come with it.
        batches = rows.to_batches(max_chunksize=_ROWS) or [pa.RecordBatch.from_pylist([], rows.schema)]
        try:
            made = [part for batch in batches for part in self._exchange(batch)]
        except (OSError, EOFError, StopIteration, pa.ArrowException) as error:
            raise self._failed(error) from None
        found = pa.Table.from_batches(made, self._source.schema)
        for name in ADDED:
            table = table.append_column(found.schema.field(name), found.column(name))
        return table

    def _exchange(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """The rows of one batch. The process writes when it has read all of it, so that neither waits for the other."""
        if self._sink is None:
            self._sink = pa.ipc.new_stream(self._process.stdin, batch.schema)
        self._sink.write_batch(batch)
        self._process.stdin.flush()
        if self._source is None:
            self._source = pa.ipc.open_stream(self._process.stdout)
        made: list[pa.RecordBatch] = []
        while sum(part.num_rows for part in made) < batch.num_rows:
            made.append(self._source.read_next_batch())
        return made

    def _failed(self, error: BaseException) -> Error:
        self._process.kill()
        status = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip().splitlines()
        self._close_files()
        why = next((line for line in reversed(said) if line.startswith(("error: ", "refused: "))), None)
        return Error(why.partition(": ")[2] if why else f"plumb worker: exit status {status}: {said[-1] if said else error}")

    def close(self) -> None:
        """Lets the process end. What it has put into the store is there before."""
        if self._process.poll() is not None and self._process.stdin.closed:
            return
        begun = self._sink is not None
        try:
            if begun:
                self._sink.close()
            self._process.stdin.close()
        except (OSError, pa.ArrowException) as error:
            raise self._failed(error) from None
        # Captions with an error are told by the status 3; a process that got nothing says so.
        if self._process.wait() not in (0, 3) and begun:
            raise self._failed(RuntimeError("it ended early"))
        self._close_files()

    def _close_files(self) -> None:
        self._said.close()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:
                # What was still to be sent, to a process that is gone.
                pass

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            # As of Ctrl-C, of which the process may have ended: nobody reads its rows any more, and it would wait for that.
            self._end()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close_files()
