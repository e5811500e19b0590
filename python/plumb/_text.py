"""Ids, canonical JSON and text from files, as `schemas/FORMAT.md` has them."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import blake3

from ._errors import Damaged, Error, NewerFormat

EXPERIMENT_LIMIT = 4 << 20
_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


def digest(data: bytes | memoryview) -> str:
    """The id of bytes."""
    return blake3.blake3(data).hexdigest()


def is_id(text: object) -> bool:
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def caption_entry(spec: str, caption: str) -> str:
    """The fingerprint of what a spec makes of a caption: of the canonical JSON of `caption`, `spec` and `version`."""
    # Without numbers but for a whole one, Python's JSON with sorted keys is that of RFC 8785.
    members = {"caption": caption, "spec": spec, "version": 1}
    try:
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    except UnicodeEncodeError:
        raise Error(f"the caption {shown(caption)} is no text: it has half of a surrogate pair") from None
    return digest(text)


def shown(text: object, limit: int = 70) -> str:
    """Foreign text in a message: control characters escaped, cut where it is long."""
    text = str(text)
    cut = text if len(text) <= limit else text[:limit] + "..."
    return "`" + "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in cut) + "`"


def read_file(path: str, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Damaged(f"{path}: expected at most {limit} bytes")
    return data


def experiment_digest(path: str) -> str:
    """The digest of an Experiment's text, without the byte order mark that some editors begin it with."""
    return digest(read_file(path, EXPERIMENT_LIMIT).removeprefix(b"\xef\xbb\xbf"))


def parse_object(data: bytes, path: str) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise Damaged(f"{path}: expected JSON: {error}") from None
    except RecursionError:
        raise Damaged(f"{path}: expected JSON as plumb writes it: its lists are too deep inside each other") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def check_version(found: object, known: int, path: str) -> None:
    """Refuses what a newer plumb wrote: it may mean something else by the same words."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Damaged(f"{path}: field `version`: expected 1 or more, found {shown(found)}")
    if found > known:
        raise NewerFormat(
            f"{path} has format version {found}, and this plumb package knows versions up to {known}; use a newer one"
        )


def sealed_object(path: str, limit: int, mend: str) -> dict[str, Any]:
    """A JSON object that begins with the digest of its other members, all in canonical form.

    Raises Damaged where the two do not fit; OSError where the file cannot be read.
    """
    data = read_file(path, limit)
    found = parse_object(data, path)
    check_seal(data, path, mend)
    return found


def check_seal(data: bytes, path: str, mend: str) -> None:
    """Raises Damaged where the digest that an object's text begins with is not that of its other members."""
    begin = b'{"digest":"'
    end = len(begin) + 64
    rest = data[end + 2 :]
    is_sealed = data.startswith(begin) and data[end : end + 2] == b'",'
    if not is_sealed or digest(b"{" + rest) != data[len(begin) : end].decode("ascii", "replace"):
        raise Damaged(f"{path}: its members are not those of its digest; {mend}")


def absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.fspath(path))
