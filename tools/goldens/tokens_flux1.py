"""Token ids of the captions of tokens.safetensors by the route of every FLUX.1 recipe variant and flavor.

Writes tests/golden/tokens_flux1.json: by vocabulary (`tiny`, and `real` from the folder that PLUMB_TOKENIZERS names) and
route, the digest of the ids of all captions. Which caption differs is shown by `tokens.py --show`: T5's routes there differ
in length only.

    python tools/goldens/tokens_flux1.py
"""

import json
import os
from pathlib import Path

import blake3
from tokens import TINY, ROOT, captions, first_line, load, packed, plain


def routes(folder):
    """`flavor/variant/encoder` -> function from captions to lists of ids."""
    clip, _, _, t5 = load(folder)
    change = {
        "kohya": lambda texts: [first_line(text) for text in texts],
        "ai-toolkit": lambda texts: [", ".join(text.split(",")) for text in texts],
    }
    lengths = {"onetrainer": (77, 77), "diffusers": (512, 512), "ai-toolkit": (512, 512), "diffusion-pipe": (512, 512)}
    found = {}
    for variant in ("reference", "diffusers", "kohya", "ai-toolkit", "simpletuner", "onetrainer", "diffusion-pipe"):
        changed = change.get(variant, lambda texts: texts)
        for flavor, length in zip(("dev", "schnell"), lengths.get(variant, (512, 256)), strict=True):
            name = f"{flavor}/{variant}"
            found[f"{name}/clip_l"] = lambda texts, changed=changed: plain(clip, changed(texts), 77)
            found[f"{name}/t5"] = lambda texts, changed=changed, length=length: plain(t5, changed(texts), length)
    return dict(sorted(found.items()))


def digest(rows):
    whole = blake3.blake3()
    for ids in rows:
        whole.update(packed(ids))
    return whole.hexdigest()


def main():
    texts = captions()
    vocabularies = {"tiny": TINY, "real": Path(os.environ["PLUMB_TOKENIZERS"])}
    found = {v: {name: digest(route(texts)) for name, route in routes(folder).items()} for v, folder in vocabularies.items()}
    (ROOT / "tests/golden/tokens_flux1.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
