"""Writes tests/golden/{clip,t5}.safetensors: what transformers makes of small random text encoders; and
tests/golden/full_size.json: the tensors that transformers gives the full-size ones.

Each file holds the encoders' weights (`<model>/<tensor>`, in the type a file would have), token ids, and the
outputs for a grid of settings. Its metadata says, case by case, which architecture and which forward rules (in
the JSON form of plumb's specs) give which output. Everything is computed in f32 with eager attention.

Run: python tools/goldens/encoders.py
"""

import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

FOLDER = pathlib.Path(__file__).parents[2] / "tests" / "golden"
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
BOS, EOS, ADDED = 61, 62, 63  # the added token's id is above EOS, as a textual inversion's is


def randomize(model, seed):
    """Weights large enough that attention is far from uniform and activations leave their linear part."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            p.data = 1 + 0.3 * noise
        elif p.dim() == 1:
            p.data = 0.3 * noise
        elif "relative_attention_bias" in name:
            p.data = noise
        elif "embed" in name or "shared" in name:
            p.data = 0.8 * noise
        else:
            p.data = noise * (1.0 if "SelfAttention" in name else 1.4) / p.shape[1] ** 0.5
        if name.endswith("SelfAttention.q.weight"):  # T5 does not scale its scores: its weights do
            p.data /= model.config.d_kv ** 0.5
    return model.eval()


def stored(model, dtype):
    """Rounds the weights to `dtype`, computes with them in f32, and returns them as the file will have them."""
    weights = {k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return weights


class Golden:
    def __init__(self):
        self.tensors, self.cases = {}, []

    def add(self, name, tensor):
        self.tensors[name] = tensor.detach().contiguous()
        return name

    def case(self, **fields):
        self.cases.append(fields)

    def save(self, file):
        FOLDER.mkdir(parents=True, exist_ok=True)
        metadata = {
            "script": "tools/goldens/encoders.py",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cases": json.dumps(self.cases),
        }
        save_file(self.tensors, FOLDER / file, metadata)
        sort_metadata(FOLDER / file)
        print(file, len(self.cases), "cases", (FOLDER / file).stat().st_size, "bytes")


def sort_metadata(path):
    """The library writes metadata in random order; in order, the same run gives the same file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def padded(captions, length, pad):
    ids = torch.full((len(captions), length), pad)
    for row, caption in enumerate(captions):
        ids[row, : len(caption)] = torch.tensor(caption)
    counts = torch.tensor([len(c) for c in captions])
    mask = (torch.arange(length)[None] < counts[:, None]).long()
    return ids, counts, mask


def clip_captions(length):
    generator = torch.Generator().manual_seed(length)
    words = lambda n: torch.randint(1, 60, (n,), generator=generator).tolist()
    return [
        [BOS, EOS],
        [BOS, *words(1), EOS],
        [BOS, *words(5), EOS],
        [BOS, *words(3), EOS, *words(4), EOS],  # the end token's own text in the caption
        [BOS, *words(2), ADDED, *words(3), EOS],
        [BOS, *words(length - 2), EOS],
    ]


def clip_model(golden, name, act, layers, heads, eos, projection, dtype, length, pad):
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=length, hidden_act=ACTIVATIONS[act], layer_norm_eps=1e-5, projection_dim=projection,
        eos_token_id=eos, bos_token_id=0, pad_token_id=1, attn_implementation="eager",
    )
    model = randomize(CLIPTextModelWithProjection(config), seed=len(name) + layers)
    for key, value in stored(model, dtype).items():
        golden.add(f"{name}/{key}", value)
    ids, counts, mask = padded(clip_captions(length), length, pad)
    golden.add(f"{name}.ids", ids), golden.add(f"{name}.counts", counts)
    for masked in ("none", "pads"):
        clip_cases(golden, name, model, act, ids, mask if masked == "pads" else None, masked)


def clip_cases(golden, name, model, act, ids, mask, masked):
    config, layers = model.config, model.config.num_hidden_layers
    norm = model.text_model.final_layer_norm
    run = lambda eos: (setattr(model.text_model, "eos_token_id", eos),
                       model.text_model(ids, attention_mask=mask, output_hidden_states=True))[1]
    out = run(config.eos_token_id)
    hidden = {}
    for layer in range(-1, -layers - 2, -1):
        state = out.hidden_states[layer]
        hidden[layer, False] = golden.add(f"{name}.{masked}.h{layer}", state)
        hidden[layer, True] = golden.add(f"{name}.{masked}.h{layer}.norm", norm(state))
    assert torch.equal(out.last_hidden_state, norm(out.hidden_states[-1]))
    pooled = {}
    for rule, eos in (("config_eos", config.eos_token_id), ("argmax_id", 2), ("first_eos", EOS)):
        row = run(eos).pooler_output
        pooled[rule, False] = golden.add(f"{name}.{masked}.{rule}", row)
        pooled[rule, True] = golden.add(f"{name}.{masked}.{rule}.projected", model.text_projection(row))
    architecture = {
        "kind": "clip_text", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 40,
        "num_hidden_layers": layers, "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings, "hidden_act": act, "layer_norm_eps": 1e-5,
    }
    # Every layer with and without norm, and every rule with and without projection; not every pair of them.
    picks = [(key, (rule, projected)) for key, (rule, projected) in zip(hidden, list(pooled) * 2)]
    picks += [(None, key) for key in pooled] + [(key, None) for key in list(hidden)[:3]]
    for layer, pool in picks:
        rule, projected = pool or ("none", False)
        forward = {
            "kind": "clip_text", "hidden_layer": layer and layer[0], "final_norm": bool(layer and layer[1]),
            "pooled": rule, "projection": projected, "mask": masked,
        }
        eos = {"config_eos": config.eos_token_id, "first_eos": EOS}.get(rule)
        architecture_of_case = {**architecture, "projection_dim": config.projection_dim if projected else None, "eos_token_id": eos}
        golden.case(
            model=name, ids=f"{name}.ids", counts=f"{name}.counts", architecture=architecture_of_case, forward=forward,
            hidden=layer and hidden[layer], pooled=pool and pooled[pool],
        )


def clip():
    golden = Golden()
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    clip_model(golden, "quick", "quick_gelu", 3, 2, 2, 16, f32, 20, EOS)
    clip_model(golden, "erf", "gelu", 2, 4, EOS, 24, f16, 13, 0)
    clip_model(golden, "tanh", "gelu_new", 1, 1, 60, 8, bf16, 20, 0)  # id 60 never occurs: row 0 is pooled
    golden.save("clip.safetensors")


def t5_model(golden, name, act, gated, layers, heads, buckets, distance, dtype, lengths):
    config = T5Config(
        vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=layers, num_heads=heads,
        feed_forward_proj=f"gated-{act}" if gated else act, relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance, layer_norm_epsilon=1e-6, dropout_rate=0.0, attn_implementation="eager",
    )
    config.dense_act_fn, config.is_gated_act = ACTIVATIONS[act], gated
    model = randomize(T5EncoderModel(config), seed=len(name))
    weights = stored(model, dtype)
    weights.pop("encoder.embed_tokens.weight", None)
    for key, value in weights.items():
        golden.add(f"{name}/{key}", value)
    architecture = {
        "kind": "t5_encoder", "vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": layers,
        "num_heads": heads, "activation": act, "is_gated_act": gated, "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance,
    }
    generator = torch.Generator().manual_seed(len(name))
    words = lambda n: [*torch.randint(2, 50, (n - 1,), generator=generator).tolist(), 1]
    case = lambda ids, counts, out, mask, rows: golden.case(
        model=name, ids=ids, counts=counts, architecture=architecture, hidden=out, pooled=None,
        forward={"kind": "t5_encoder", "mask": mask, "pad_rows": rows},
    )
    for length in lengths:
        ids, counts, _ = padded([words(length)], length, 0)
        tag = f"{name}.{length}"
        names = golden.add(f"{tag}.ids", ids), golden.add(f"{tag}.counts", counts)
        case(*names, golden.add(f"{tag}.h", model(ids)[0]), "none", "keep")
    captions = [words(n) for n in (1, 12, 4, 7, 4, 19, 2)]
    ids, counts, mask = padded(captions, 19, 0)
    names = golden.add(f"{name}.ids", ids), golden.add(f"{name}.counts", counts)
    case(*names, golden.add(f"{name}.h", model(ids)[0]), "none", "keep")
    masked = golden.add(f"{name}.masked.h", model(ids, attention_mask=mask)[0])
    case(*names, masked, "pads", "keep")
    case(*names, masked, "pads", "drop")


def t5():
    golden = Golden()
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    t5_model(golden, "v1_1", "gelu_new", True, 2, 4, 32, 128, f32, (1, 2, 7, 8, 9, 16, 33, 130, 300))
    t5_model(golden, "plain", "relu", False, 2, 3, 8, 20, f16, (1, 30))
    t5_model(golden, "silu_gated", "silu", True, 1, 2, 16, 64, bf16, (5, 70))
    t5_model(golden, "erf_gated_xx", "gelu", True, 3, 1, 32, 128, f16, (18,))
    golden.save("t5.safetensors")


def full_size():
    """Names and shapes of CLIP-L, CLIP-G (with projections) and T5 v1.1 XXL."""
    clip_config = lambda width, layers, heads: CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=77, projection_dim=width)
    t5_config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        models = {
            "clip_l": CLIPTextModelWithProjection(clip_config(768, 12, 12)),
            "clip_g": CLIPTextModelWithProjection(clip_config(1280, 32, 20)),
            "t5_xxl": T5EncoderModel(t5_config),
        }
    names = {name: {k: list(v.shape) for k, v in model.state_dict().items()} for name, model in models.items()}
    names["t5_xxl"].pop("encoder.embed_tokens.weight", None)  # tied to `shared.weight`, so not in a file
    text = json.dumps(names, separators=(",", ":"))
    (FOLDER / "full_size.json").write_text(text + "\n")
    print("full_size.json", len(text), "bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        clip()
        t5()
    full_size()
