"""Goldens of what T5's attention may do about pads, beside those of `encoders.py`.

Run: python tools/goldens/t5_masks.py     (from the repository's root; needs torch, transformers)

tests/golden/t5_masks.safetensors: one small random model of transformers, and its hidden states under masks that recipes of
Chroma name. `pads_uniform` is the author's (`T5Stack.forward` of lodestone-rock/flow): the mask is the product of the
tokenizer's mask with itself, so that all scores of a pad get the same large negative number; here transformers' T5 is given
that mask, caption by caption.
"""

import torch
from encoders import Golden, padded, randomize, stored
from transformers import T5Config, T5EncoderModel

ARCHITECTURE = {
    "kind": "t5_encoder", "vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 3,
    "activation": "gelu_new", "is_gated_act": True, "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
}  # fmt: skip


def author(model, ids, mask):
    """The author's mask, one caption at a time: as in a minibatch of one."""
    rows = []
    for row in range(len(ids)):
        one = mask[row : row + 1].float()
        product = (one.T @ one)[None, None]
        bias = torch.zeros_like(product).masked_fill(product == 0, torch.finfo(torch.bfloat16).min)
        rows.append(model(ids[row : row + 1], attention_mask=bias)[0])
    return torch.cat(rows)


def main():
    config = T5Config(
        vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=3, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
        dropout_rate=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = randomize(T5EncoderModel(config), seed=77)
    golden = Golden()
    weights = stored(model, torch.float32)
    weights.pop("encoder.embed_tokens.weight", None)
    for key, value in weights.items():
        golden.add(f"masks/{key}", value)
    generator = torch.Generator().manual_seed(77)
    words = lambda n: [*torch.randint(2, 50, (n - 1,), generator=generator).tolist(), 1]  # noqa: E731
    # The empty caption, one that fills the length, and one with room for a single pad.
    ids, counts, mask = padded([words(n) for n in (1, 12, 4, 20, 19, 2)], 20, 0)
    names = golden.add("masks.ids", ids), golden.add("masks.counts", counts)
    # One more, which attends and is attended.
    wider = (torch.arange(ids.shape[1])[None] <= counts[:, None]).long()
    outputs = {
        "none": model(ids)[0],
        "pads": model(ids, attention_mask=mask)[0],
        "pads_but_one": model(ids, attention_mask=wider)[0],
        "pads_uniform": author(model, ids, mask),
    }
    for row, count in enumerate(counts.tolist()):
        apart = [(outputs["pads"][row, at] - outputs["pads_uniform"][row, at]).abs().max() for at in (count - 1, min(count, 19))]
        assert apart[0] == 0 or apart[0] < 1e-5, apart
        assert count == 20 or apart[1] > 1e-3, apart
    for name, hidden in outputs.items():
        tensor = golden.add(f"masks.{name}.h", hidden)
        for rows in ["keep", "one"] + ["drop"] * (name in ("pads", "pads_uniform")):
            golden.case(
                model="masks", ids=names[0], counts=names[1], architecture=ARCHITECTURE, hidden=tensor, pooled=None,
                forward={"kind": "t5_encoder", "mask": name, "pad_rows": rows},
            )  # fmt: skip
    golden.save("t5_masks.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
