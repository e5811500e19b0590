"""Token ids of hard strings by the programs that a recipe's `tokens.implementation` names: transformers 4 (its slow tokenizers,
with ftfy and without), open_clip, OpenAI's CLIP; and what ftfy makes of each string.

Writes tests/golden/implementations.safetensors: the strings, and for each vocabulary and implementation a digest per
string. Vocabularies: `tiny`, of tests/golden/tokenizers/, and `real`, from the folder that PLUMB_TOKENIZERS names.

    python tools/goldens/implementations.py 6.1=FOLDER 6.3=FOLDER [--count N] [--seed N] [--out FILE]
    python tools/goldens/implementations.py 6.1=FOLDER 6.3=FOLDER --show 17

Each folder holds the package `ftfy` of that version. Needs transformers 4, open_clip_torch, openai-clip, sentencepiece,
regex, blake3, numpy, safetensors; no torch.
"""

import argparse
import gzip
import html.entities
import importlib.metadata
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import types
import unicodedata
from pathlib import Path

import blake3
import numpy
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/golden/tokenizers"
OUT = ROOT / "tests/golden/implementations.safetensors"

# Hard strings ------------------------------------------------------------------------------------------------

WORDS = (
    "a cat dog photo of the red House don't it's 3.14 1girl masterpiece caf\u00e9 na\u00efve l\u2019\u00e9t\u00e9 \u201cquoted\u201d "
    "\u00dcn\u00efc\u00f6d\u00e9 voil\u00e0 se\u00f1or \u00e0 la mode \u00c0\u00c9 stra\u00dfe \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 "
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1 \u03a3\u03a3 \u6771\u4eac \u65e5\u672c\u8a9e \ud55c\uad6d \u0639\u0631\u0628\u064a \u05e9\u05dc\u05d5\u05dd "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \U0001f44d \U0001f600 \u2713 \u2026 \u2014 \u2013 \u2022 \u20ac \u00a3 \u00a5 \u00a9 \u00ae \u2122 \ufb01ne "
    "o\ufb00ice \ufb03 \ufb05 \uff26\uff35\uff2c\uff2c\u3000\uff57\uff49\uff44\uff54\uff48 \uff76\uff9e \u00bd \u00b2 \u0130stanbul \u017f \u212a \u01c6"
).split(" ")
CODECS = ["cp1252", "latin-1", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso8859-2", "mac_roman", "cp437"]
ENTITIES = sorted(html.entities.html5)
CONTROLS = (
    ["\x1b[31mred\x1b[0m", "\x1b[1;36;44m", "\x1b[K", "\x1b", "\ufeff", "\ufffc", "\ufff9", "\u206a", "\u061c", "\U000e0001", "\ufffd", "\r\n"]
    + [chr(c) for c in (0, 7, 9, 10, 11, 12, 13, 28, 31, 127, 128, 133, 147, 157, 0xA0, 0xAD, 0x200B, 0x2028, 0x2029, 0x3000)]
)
COMPOSED = (
    "e\u0301 A\u030a \u1e9b\u0323 \u0958 \u2126 \u1100\u1161\u11a8 q\u0307\u0323 a\u0300\u0301 \u0345 \u03b1\u0345 \u00c3\u00a0 \u00e2\u20ac\u0153 \u00e2\u20ac \u00c3 "
    "\u00c3\u0192\u00c2\u00a9 \u00ef\u00bf\u00bd \u00e2\u20ac\ufffd \u00c2\u00a0 \u00c3\u201a \u00ed\u00a0\u00bd\u00ed\u00b8\u0080 \u00c0\u0080 l\u2019 \u00c3_la "
    "\u00e2\u201a\u00ac \u00c0 \u00ed"
).split(" ")
SPECIALS = (
    "<b> </b> <|endoftext|> <|startoftext|> <|ENDOFTEXT|> <|\u017ftartoftext|> <start_of_text> <end_of_text> <END_OF_TEXT> </s> <s> "
    "<pad> <unk> <extra_id_0> <extra_id_99> <extra_id_100> < <3 \u2581 \u2581cat </w>"
).split(" ")
MARKS = list(".,;:!?()[]'\"`*-_/\\%") + ["\u00b4", "\u2018", "\u201a", "\u201b", "\u201c", "\u201f", "\u00ab", "'s", "'S", "n't", "'\u017f", "!!", "!!!", "'LL"]
ASSIGNED = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
LATIN = [chr(c) for c in range(0xA0, 0x250)] + [chr(c) for c in range(0x370, 0x530)] + list("\u2018\u2019\u201c\u2013\u2026\u2122\u20ac\u2020\u0160\u0161\u0178\u0153\u017e\u02dc")


def mistaken(rng, text):
    """Text that was decoded by another table, once or several times."""
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        encoded, codec = text.encode("utf-8"), rng.choice(CODECS)
        try:
            text = encoded.decode(codec)
        except UnicodeDecodeError:
            text = encoded.decode(codec, "replace") if rng.random() < 0.5 else text
    return text


def entity(rng):
    name = rng.choice(ENTITIES)
    bare = name.rstrip(";")
    number = rng.choice([0, 11, 13, 59, 65, 0x80, 0x92, 0xD800, 0xFFFE, 0x1F600, 0x110000, rng.randint(0, 0x3000)])
    fixed = ["&", "&;", "&#;", "&#x;", "&amp;amp;lt;", "&lt;", "&nbsp;", "&quot;", "&ampamp;", "&notit;"]
    return rng.choice([f"&{name}", f"&{bare}", f"&{bare};", f"&{name.upper()}", f"&amp;{name}", f"&#{number};", f"&#x{number:x};", f"&#{number}", rng.choice(fixed)])


def piece(rng):
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(WORDS)
    if kind < 0.45:
        return mistaken(rng, " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 4))))
    if kind < 0.52:
        return mistaken(rng, "".join(rng.choice(LATIN) for _ in range(rng.randint(1, 4))))
    if kind < 0.62:
        return entity(rng)
    if kind < 0.67:
        return rng.choice(CONTROLS)
    if kind < 0.75:
        return "".join(rng.choice(LATIN) for _ in range(rng.randint(1, 5)))
    if kind < 0.82:
        return "".join(rng.choice(ASSIGNED) for _ in range(rng.randint(1, 4)))
    return rng.choice(rng.choice([COMPOSED, SPECIALS, MARKS]))


def strings(count, seed):
    rng = random.Random(seed)
    found = {"": None, "\u00c3 la mode": None, "a &amp; b": None, "x <b> &amp;": None, "&lt; &amp;\n<b> &amp;": None}
    while len(found) < count:
        spaces = ["", " ", " ", "  ", "\n", "\t"] if rng.random() < 0.7 else [""]
        found["".join(piece(rng) + rng.choice(spaces) for _ in range(rng.choice([1, 1, 2, 3, 4, 5, 6, 8, 12])))] = None
    return list(found)


# Implementations ---------------------------------------------------------------------------------------------


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def package_file(package, file):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / file


def without_torch():
    """open_clip's tokenizer names types of torch in its signatures and uses none of it here."""
    torch = types.ModuleType("torch")
    torch.LongTensor = torch.Tensor = torch.Generator = object
    sys.modules.setdefault("torch", torch)


def implementations(folder, version):
    """(name, function from a string to its ids without specials around) for one version of ftfy."""
    import ftfy
    import transformers

    clip = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
    assert not clip.is_fast
    clip.fix_text = ftfy.fix_text
    yield f"clip/transformers_4_ftfy_{version}", lambda text: clip(text)["input_ids"][1:-1]

    without_torch()
    with tempfile.TemporaryDirectory() as scratch:
        merges = Path(scratch) / "merges.gz"
        merges.write_bytes(gzip.compress((folder / "clip/merges.txt").read_bytes().rstrip(b"\n")))
        open_clip = module("open_clip_tokenizer", package_file("open_clip", "tokenizer.py"))
        found = open_clip.SimpleTokenizer(bpe_path=str(merges))
        yield f"clip/open_clip_ftfy_{version}", found.encode
        if version == "6.1":
            openai = module("openai_tokenizer", package_file("clip", "simple_tokenizer.py"))
            yield f"clip/openai_ftfy_{version}", openai.SimpleTokenizer(bpe_path=str(merges)).encode
            sys.modules["ftfy"] = None
            plain = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
            sys.modules["ftfy"] = ftfy
            assert plain.fix_text is None
            yield "clip/transformers_4", lambda text: plain(text)["input_ids"][1:-1]
            t5 = transformers.T5Tokenizer(str(folder / "t5/spiece.model"), legacy=True)
            yield "t5/transformers_4", lambda text: t5(text)["input_ids"][:-1]
            fast = transformers.T5TokenizerFast(str(folder / "t5/spiece.model"))
            yield "t5/transformers_4_fast", lambda text: fast(text)["input_ids"][:-1]


def digest(data):
    return int.from_bytes(blake3.blake3(data).digest()[:8], "little")


def of_ids(ids):
    return digest(struct.pack(f"<{len(ids)}I", *ids))


def of_version(version, texts, show):
    import ftfy

    folders = {"tiny": TINY, "real": Path(os.environ["PLUMB_TOKENIZERS"])}
    found = {f"ftfy_{version}": [digest(ftfy.fix_text(text).encode()) for text in texts]}
    if show:
        print(f"ftfy_{version}", ascii(ftfy.fix_text(texts[0])), file=sys.stderr)
    for vocabulary, folder in folders.items():
        for name, encode in implementations(folder, version):
            if show:
                print(vocabulary, name, *encode(texts[0]), file=sys.stderr)
            found[f"{vocabulary}/{name}"] = [of_ids(encode(text)) for text in texts]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("versions", nargs="*")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", type=int)
    parser.add_argument("--version")
    arguments = parser.parse_args()
    texts = strings(arguments.count, arguments.seed)
    if arguments.show is not None:
        texts = [texts[arguments.show]]
        print(ascii(texts[0]))
    if arguments.version:
        print(json.dumps(of_version(arguments.version, texts, arguments.show is not None)))
        return
    encoded = [text.encode() for text in texts]
    tensors = {
        "text": numpy.frombuffer(b"".join(encoded), numpy.uint8),
        "lengths": numpy.array([len(text) for text in encoded], numpy.uint32),
    }
    metadata = {"script": "tools/goldens/implementations.py"}
    for argument in arguments.versions:
        version, folder = argument.split("=", 1)
        environment = {**os.environ, "PYTHONPATH": folder}
        command = [sys.executable, *(a for a in sys.argv if a not in arguments.versions), "--version", version]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        tensors.update({name: numpy.array(values, numpy.uint64) for name, values in found.items()})
    if arguments.show is None:
        for package in ("transformers", "open_clip_torch", "openai-clip", "sentencepiece", "regex"):
            metadata[package] = importlib.metadata.version(package)
        save_file(tensors, arguments.out, metadata)
        arguments.out.chmod(0o644)
        print(len(texts), "strings,", arguments.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
