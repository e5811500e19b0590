"""Encoding in Daft, on one machine or on a Ray cluster:

    encode = plumb.daft.Encode("exp.toml")
    captions.with_columns({"made": encode(captions["caption"])})

`made` is a struct of `error` and `entries`, see `plumb worker --help`. `Encode` is a `daft.cls`: `daft.cls(plumb.daft.Encoder, gpus=1,
max_concurrency=8)` makes one with resources of your own.
"""

from __future__ import annotations

import pyarrow as pa

import daft
from daft import DataType

from .worker import Worker

_TEXT, _COUNT, _FLOAT = DataType.string(), DataType.uint32(), DataType.float32()
_PART = {"part": _TEXT, "dtype": _TEXT, "shape": DataType.list(DataType.uint64()), "digest": _TEXT}
_PART |= {name: _FLOAT for name in ("mean", "std", "min", "max", "rms")}
_ENTRY = {"slot": _TEXT, "spec": _TEXT, "entry": _TEXT, "token_count": _COUNT, "truncated": DataType.bool()}
_ENTRY |= {"parts": DataType.list(DataType.struct(_PART))}
MADE = DataType.struct({"error": _TEXT, "entries": DataType.list(DataType.struct(_ENTRY))})
"""What is made of a caption."""


class Encoder:
    """Called with a column of captions. Tensors go into the Experiment's store; other arguments are those of `plumb.worker.Worker`."""

    def __init__(self, experiment: str, **options: object) -> None:
        self._worker = Worker(experiment, store=True, **options)

    @daft.method.batch(return_dtype=MADE, batch_size=1024)
    def __call__(self, captions: daft.Series) -> pa.Array:
        made = self._worker.encode(pa.table({"caption": captions.to_arrow()}))
        columns = [made.column(name).combine_chunks() for name in ("error", "entries")]
        return pa.StructArray.from_arrays(columns, ["error", "entries"])


Encode = daft.cls(Encoder)
