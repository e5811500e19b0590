"""Reads the sets of samples that `plumb export cache` wrote, with webdataset and mosaicml-streaming, through a DataLoader that shuffles
in two workers, and compares every tensor with what the Python package reads from the store.

Run in the folder of `store`; arguments: the type of the conditioning, then FORMAT=FOLDER for each set."""

import hashlib
import json
import os
import sys
import tempfile

try:
    import streaming
    import webdataset
except ImportError as missing:
    sys.exit(print(f"skipped: {missing}; tools/requirements-shards.txt lists what it needs"))

import plumb
import safetensors.torch
import torch
from plumb._text import caption_entry
from torch.utils.data import DataLoader


def listed(batch):
    return batch


def by_webdataset(folder, split, shards):
    """Keys, captions, meta and tensors, as `.decode()` gives them."""
    urls = [f"{folder}/{split}/{shard['file']}" for shard in shards]
    data = webdataset.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(100).decode()
    for sample in DataLoader(data, batch_size=None, num_workers=2):
        kinds = {name for name in sample if not name.startswith("__")}
        assert kinds == {"json", "pth", "txt"}, kinds
        yield sample["__key__"], sample["txt"], sample["json"], sample["pth"]


def by_streaming(folder, split, shards):
    with tempfile.TemporaryDirectory() as local:
        options = dict(batch_size=2, shuffle=True, shuffle_seed=1, validate_hash="sha256")
        data = streaming.StreamingDataset(remote=folder, local=local, split=split, **options)
        assert len(data) == sum(shard["samples"] for shard in shards)
        for batch in DataLoader(data, batch_size=2, num_workers=2, collate_fn=listed):
            for sample in batch:
                tensors = safetensors.torch.load(sample["tensors"])
                yield sample["key"], sample["caption"], sample["meta"], tensors


def check(store, recipe, meta, tensors, dtype):
    """That every tensor is what its caption or view has in the store."""
    wanted = {}
    for n, caption in enumerate(meta["captions"]):
        seen = store.conditioning(recipe, caption["text"])
        own = seen.torch(dtype=dtype)
        rows = len(own.context)
        mask = torch.ones(rows, dtype=torch.bool) if own.mask is None else own.mask
        wanted |= {f"context.{n}": own.context, f"pooled.{n}": own.pooled, f"mask.{n}": mask}
        for slot, spec in recipe.encoders:
            facts = caption["encoders"][slot]
            assert facts["entry"] == caption_entry(spec, caption["text"])
            assert facts["tokens"] == seen.encoders[slot].token_count
            if "rows" not in facts:
                assert not any(slot in group for group in recipe.context), f"{slot} has no place in the context"
                continue
            (first, end), (left, right) = facts["rows"], facts["channels"]
            part, hidden = seen.context[first:end, left:right], seen.encoders[slot].hidden
            count = min(len(part), len(hidden), facts["tokens"])
            assert (part[:count] == hidden[:count]).all(), f"{slot}: its place in the context"
    for n, view in enumerate(meta["views"]):
        latents = store.latents(recipe.latents, view["entry"])
        wanted[f"latents.{n}"] = torch.from_numpy(recipe.normalize(latents.mean))
        if latents.logvar is not None:
            noise = torch.randn(latents.mean.shape, generator=torch.Generator().manual_seed(n)).numpy()
            name = "latents_std" if n == 0 else f"latents_std.{n}"
            drawn = tensors["latents" if n == 0 else f"latents.{n}"] + tensors.pop(name) * noise
            apart = (drawn - recipe.normalize(latents.sample(noise))).abs().max()
            assert apart < 1e-5, f"a draw from the posterior lies {apart} apart"
        if recipe.size_conditioning:
            wanted[f"time_ids.{n}"] = torch.tensor(view["time_ids"], dtype=torch.float32)
    for n, view in enumerate(meta.get("reference", {}).get("views", [])):
        wanted[f"reference.{n}"] = torch.from_numpy(recipe.normalize(store.latents(recipe.latents, view["entry"]).mean))
    wanted = {name.removesuffix(".0"): tensor for name, tensor in wanted.items() if tensor.numel()}
    assert set(tensors) == set(wanted), (set(tensors), set(wanted))
    for name, tensor in wanted.items():
        found = tensors[name]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor), name


def read(form, folder, dtype):
    store = plumb.Store("store")
    facts = json.load(open(f"{folder}/plumb.json"))
    # As the run of `encode` has it.
    recipe = store.recipe(facts["model"]["recipe"])
    assert facts["model"]["recipe_fingerprint"] == recipe.fingerprint and facts["format"] == form
    assert {spec for _, spec in recipe.encoders} | {recipe.latents} == set(facts["specs"])
    by_form = {"webdataset": by_webdataset, "mds": by_streaming}[form]
    found = {}
    for split, of_split in facts["splits"].items():
        for shard in of_split["shards"]:
            data = open(f"{folder}/{split}/{shard['file']}", "rb").read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        samples = {}
        for key, caption, meta, tensors in by_form(folder, split, of_split["shards"]):
            assert meta["recipe_fingerprint"] == recipe.fingerprint
            assert caption == meta["captions"][0]["text"]
            assert key not in samples, "a sample came twice"
            check(store, recipe, meta, tensors, dtype)
            samples[key] = meta
        assert len(samples) == of_split["samples"]
        found[split] = [samples[key] for key in sorted(samples)]
    empty = f"{folder}/no_caption.safetensors"
    if os.path.exists(empty):
        seen = store.unconditional(recipe).torch(dtype=dtype)
        assert torch.equal(safetensors.torch.load_file(empty)["context"], seen.context)
    return found


dtype = getattr(torch, sys.argv[1])
sets = [read(*argument.split("=", 1), dtype) for argument in sys.argv[2:]]
# Both forms have the same samples in the same order.
assert all(found == sets[0] for found in sets)
print(json.dumps(sets[0]))
