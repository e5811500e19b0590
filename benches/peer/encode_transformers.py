"""The other side of `benches/encode.rs`: the same weights and token ids through transformers.

Started as `encode_transformers.py FOLDER THREADS`, where FOLDER holds model.safetensors, setting.json and
receives output.safetensors. Then, for each line on standard input, encodes all captions once in f32 and
answers with the seconds it took, by the clock and of processor time. torch's default attention (SDPA) is left on: it is what a user gets.
"""

import json
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

folder, threads = pathlib.Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
setting = json.loads((folder / "setting.json").read_text())
a, masked = setting["architecture"], setting["masked"]
ids, counts = torch.tensor(setting["ids"]), torch.tensor(setting["counts"])
mask = (torch.arange(ids.shape[1])[None] < counts[:, None]).long() if masked else None

with torch.device("meta"):
    if a["kind"] == "clip_text":
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "max_position_embeddings", "hidden_act", "layer_norm_eps", "projection_dim")
        model = CLIPTextModelWithProjection(CLIPTextConfig(**{k: a[k] for k in sizes}, eos_token_id=2))
    elif a["kind"] == "qwen3":
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps")
        rope = {"rope_type": "default", "rope_theta": a["rope_theta"]}
        model = Qwen3Model(Qwen3Config(**{k: a[k] for k in sizes}, rope_parameters=rope))
    else:
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        config, model = (UMT5Config, UMT5EncoderModel) if a["kind"] == "umt5_encoder" else (T5Config, T5EncoderModel)
        model = model(config(**{k: a[k] for k in sizes}, feed_forward_proj="gated-gelu"))
weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
model.load_state_dict(weights, strict=False, assign=True)
if hasattr(model, "text_model"):  # buffers that are in no file
    embeddings = model.text_model.embeddings
    embeddings.position_ids = torch.arange(a["max_position_embeddings"]).expand((1, -1))
if a["kind"] == "qwen3":  # as above
    model.rotary_emb = type(model.rotary_emb)(model.config)
model.tie_weights()
model.eval()
assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])


def encode():
    if a["kind"] == "clip_text":
        out = model(ids, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds
    if a["kind"] == "qwen3":  # as the pipelines take it, with all layers computed
        return (model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states[-2],)
    return (model(ids, attention_mask=mask)[0],)


with torch.inference_mode():
    outputs = encode()
    save_file({f"{i}": t.contiguous() for i, t in enumerate(outputs)}, folder / "output.safetensors")
    print("ready", torch.__version__, flush=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        encode()
        print(time.perf_counter() - start, time.process_time() - start_cpu, flush=True)
