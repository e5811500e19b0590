"""Writes src/text/tokenizer/ftfy/tables.json: what the package ftfy knows of characters and encodings, for two of its
versions, and the HTML entities of Python's `html`.

    python tools/ftfy_tables.py 6.1=FOLDER 6.3=FOLDER     each folder holds the package `ftfy` of that version
"""

import html
import html.entities
import json
import re
import subprocess
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "src/text/tokenizer/ftfy/tables.json"
LICENCE = (
    "From ftfy (https://github.com/rspeer/python-ftfy), copyright Robyn Speer, licensed under the Apache License 2.0 (6.1: the MIT "
    "License): tables of characters and the expression that finds mojibake, rewritten as data by tools/ftfy_tables.py."
)


def characters(inside):
    """All characters that a class of an expression holds."""
    holds = re.compile(f"[{inside}]")
    return "".join(c for c in map(chr, range(0x10000)) if not 0xD800 <= ord(c) < 0xE000 and holds.match(c))


def compact(pattern):
    """A verbose expression of Python's `re` without its layout, as Rust's `regex` reads it."""
    out, inside, comment, at = [], False, False, 0
    while at < len(pattern):
        c = pattern[at]
        if comment:
            comment = c != "\n"
        elif c == "\\":
            at += 1
            # Python's white space has four characters more, its word characters are letters and numbers.
            classes = {"s": r"\s\x1c-\x1f", "w": r"\p{L}\p{N}_"}
            if pattern[at] in classes:
                out.append(classes[pattern[at]] if inside else f"[{classes[pattern[at]]}]")
            elif pattern[at] == "x":
                out.append(rf"\x{{{pattern[at + 1 : at + 3]}}}")
                at += 2
            else:
                out.append("\\" + pattern[at])
        elif inside:
            inside = c != "]"
            out.append("\\" + c if c in "[&~" else c)
        elif c == "[":
            inside = True
            out.append(c)
        elif c == "#":
            comment = True
        elif not c.isspace():
            out.append(c)
        at += 1
    # A bare control or a soft hyphen in the file would be lost on a reader.
    return "".join(c if " " <= c < "\x7f" else rf"\x{{{ord(c):x}}}" for c in "".join(out))




def of_this_version():
    """What the version of ftfy that can be imported here says."""
    import ftfy.bad_codecs  # noqa: F401  registers the sloppy encodings
    from ftfy import badness, chardata

    encodings = {}
    for name in chardata.CHARMAP_ENCODINGS:
        encodings[name] = bytes(range(0x80, 0x100)).decode(name)
    return {
        "encodings": encodings,
        "bad": compact(badness.BADNESS_RE.pattern),
        "starts": [characters(chardata.UTF8_CLUES[f"utf8_first_of_{n}"]) for n in (2, 3, 4)],
        "continuation": characters(chardata.UTF8_CLUES["utf8_continuation"]),
        "strict": characters(chardata.UTF8_CLUES["utf8_continuation_strict"]),
        "ligatures": {chr(c): text for c, text in chardata.LIGATURES.items()},
        "widths": {chr(c): text for c, text in chardata.WIDTH_MAP.items()},
        "upper": {name[1:]: text for name, text in chardata.HTML_ENTITIES.items() if name[1:] not in html.entities.html5},
    }


def main():
    if sys.argv[1:] == ["--this"]:
        print(json.dumps(of_this_version()))
        return
    versions = {}
    for argument in sys.argv[1:]:
        version, folder = argument.split("=", 1)
        run = subprocess.run([sys.executable, __file__, "--this"], env={"PYTHONPATH": folder}, capture_output=True, check=True)
        versions[version] = json.loads(run.stdout)
    common = {}
    for key in ("ligatures", "widths", "upper"):
        common[key] = versions["6.1"].pop(key)
        assert all(v.pop(key, common[key]) == common[key] for v in versions.values()), key
    tables = {
        "from": LICENCE,
        "versions": versions,
        **common,
        "entities": html.entities.html5,
        "references": {str(code): text for code, text in html._invalid_charrefs.items()},
        "nothing": sorted(html._invalid_codepoints),
    }
    OUT.write_text(json.dumps(tables, indent=0) + "\n", encoding="ascii")
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
