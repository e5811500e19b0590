"""Writes what transformers makes of small UMT5 encoders.

- tests/golden/umt5.safetensors: hidden states of small random models, as `encoders.py` has those of CLIP and T5
- tests/golden/tokens_umt5.json: digests of the ids of the captions of tokens.safetensors, as they are (`plain`) and after Wan's
  clean-up (`cleaned`, with the digest of the texts), by vocabulary and program: `tiny`, and `real` from the folder umt5/ of the
  one that PLUMB_TOKENIZERS names
- with --train, tests/golden/tokenizers/umt5: pieces of the real vocabulary, with all that its file says beside them

    python tools/goldens/umt5.py [--train]

Needs ftfy 6.3.1.
"""

import html
import json
import os
import re
import sys
from pathlib import Path

import blake3
import ftfy
import torch
from encoders import FOLDER, Golden, padded, randomize, stored
from tokenizers import Tokenizer
from tokens import captions, packed
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

TINY = FOLDER / "tokenizers/umt5"
LIMIT = 512


def network(golden, name, layers, heads, buckets, distance, dtype, lengths):
    config = UMT5Config(
        vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=layers, num_heads=heads, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=buckets, relative_attention_max_distance=distance, layer_norm_epsilon=1e-6,
        dropout_rate=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = randomize(UMT5EncoderModel(config), seed=len(name) + layers)
    weights = stored(model, dtype)
    weights.pop("encoder.embed_tokens.weight", None)
    for key, value in weights.items():
        golden.add(f"{name}/{key}", value)
    # f32's own rounding comes to half of the tests' tolerance at 300 tokens.
    model.double()
    architecture = {
        "kind": "umt5_encoder", "vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": layers,
        "num_heads": heads, "activation": "gelu_new", "is_gated_act": True, "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(len(name))
    words = lambda n: [*torch.randint(4, 50, (n - 1,), generator=generator).tolist(), 1]  # noqa: E731

    def case(tag, ids, counts, out, mask, rows):
        names = golden.add(f"{tag}.ids", ids), golden.add(f"{tag}.counts", counts)
        hidden = golden.add(f"{tag}.{mask}.h", out.float())
        golden.case(
            model=name, ids=names[0], counts=names[1], architecture=architecture, hidden=hidden, pooled=None,
            forward={"kind": "umt5_encoder", "mask": mask, "pad_rows": rows},
        )  # fmt: skip

    for length in lengths:
        ids, counts, _ = padded([words(length)], length, 0)
        case(f"{name}.{length}", ids, counts, model(ids)[0], "none", "keep")
    ids, counts, mask = padded([words(n) for n in (1, 12, 4, 7, 4, 19, 2)], 19, 0)
    for rows in ("keep", "drop"):
        case(name, ids, counts, model(ids, attention_mask=mask)[0], "pads", rows)
    case(name, ids, counts, model(ids)[0], "none", "keep")


def networks():
    golden = Golden()
    network(golden, "first", 3, 3, 32, 128, torch.float32, (1, 40, 300))
    network(golden, "second", 2, 5, 8, 20, torch.bfloat16, (64,))
    golden.save("umt5.safetensors")


def cleaned(text):
    """`whitespace` of HuggingfaceTokenizer in wan/modules/tokenizers.py, in its words."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip()


def programs(folder):
    """transformers 5 in a folder without a config.json, and what reads tokenizer.json as it stands."""
    five = T5Tokenizer.from_pretrained(folder)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return {
        "transformers_5": lambda text: five(text, max_length=LIMIT, truncation=True)["input_ids"],
        "transformers_4_fast": lambda text: file.encode(text, add_special_tokens=False).ids[: LIMIT - 1] + [1],
    }


def digest(rows):
    whole = blake3.blake3()
    for row in rows:
        whole.update(row)
    return whole.hexdigest()


def tokens():
    texts = captions()
    tidy = [cleaned(text) for text in texts]
    found = {"cleaned": digest(text.encode() + b"\0" for text in tidy)}
    folders = {"tiny": TINY, "real": Path(os.environ.get("PLUMB_TOKENIZERS", "")) / "umt5"}
    for vocabulary, folder in folders.items():
        for name, ids in programs(folder).items():
            for kind, of in {"plain": texts, "cleaned": tidy}.items():
                found[f"{vocabulary}/{name}/{kind}"] = digest(packed(ids(text)) for text in of)
    (FOLDER / "tokens_umt5.json").write_text(json.dumps(found, indent=1) + "\n")


def train():
    """Of the pieces those that the captions need most, all that are one of ASCII's characters, and the first and last sentinels."""
    file = Path(os.environ["PLUMB_TOKENIZERS"]) / "umt5" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    counts = {}
    for text in captions():
        for token in tokenizer.encode(cleaned(text), add_special_tokens=False).tokens:
            counts[token] = counts.get(token, 0) + 1
    kept = set(sorted(counts, key=lambda token: (-counts[token], token))[:700])
    whole = json.loads(file.read_text())
    pieces = whole["model"]["vocab"]
    keep = lambda id, piece: id < 8 or piece == "" or piece in kept or (len(piece) == 1 and piece < "\x7f")  # noqa: E731
    vocab = [entry for id, entry in enumerate(pieces[:256_000]) if keep(id, entry[0])]
    vocab += [[f"<extra_id_{n}>", 0.0] for n in reversed(range(300))]
    ids = {piece: id for id, (piece, _) in reversed(list(enumerate(vocab)))}
    whole["model"]["vocab"] = vocab
    for token in whole["added_tokens"]:
        token["id"] = ids[token["content"]]
    TINY.mkdir(parents=True, exist_ok=True)
    (TINY / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--train" in sys.argv[1:]:
        train()
    with torch.no_grad():
        networks()
    tokens()
