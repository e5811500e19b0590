"""The other side of `benches/encode.rs`: the same weights and token ids through transformers.

Started as `encode_transformers.py FOLDER THREADS PRECISION WAY`, where FOLDER holds model.safetensors and setting.json, PRECISION is
f32 or bf16, and WAY is eager, compiled (torch.compile), openvino (the same module by openvino.convert_model) or onnx (exported by
torch.onnx, run by ONNX Runtime, which computes on processors in f32 alone). Says `ready` and what it runs, or `absent` and what cannot be had. Writes FOLDER/WAY.safetensors and, eager, FOLDER/truth.safetensors, computed in f64. Then, for each
line on standard input, encodes all captions once and answers with the seconds it took, by the clock and of processor time. torch's
default attention (SDPA) is left on: it is what a user gets.
"""

import json
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

folder, threads, precision, way = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if way == "openvino":
    try:
        import openvino
    except ImportError:
        print("absent openvino", flush=True)
        sys.exit()
if way == "onnx":
    try:
        import onnxruntime
        import onnxscript  # noqa: F401: what torch.onnx exports with
    except ImportError:
        print("absent onnxruntime and onnxscript", flush=True)
        sys.exit()
    if precision != "f32":
        print(f"absent {precision} in onnxruntime on processors", flush=True)
        sys.exit()
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


class Taken(torch.nn.Module):
    """What a pipeline takes of the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask=None):
        if a["kind"] == "clip_text":
            out = self.model(ids, output_hidden_states=True)
            return out.hidden_states[-2], out.text_embeds
        if a["kind"] == "qwen3":  # as the pipelines take it, with all layers computed
            return (self.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states[-2],)
        return (self.model(ids, attention_mask=mask)[0],)


def by_openvino(taken):
    given = (ids,) if mask is None else (ids, mask)
    converted = openvino.convert_model(taken, example_input=given)
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(converted, "CPU", hints)
    arrays = [t.numpy() for t in given]
    return lambda: [torch.from_numpy(t) for t in compiled(arrays).to_tuple()]


def by_onnx(taken):
    given = (ids,) if mask is None else (ids, mask)
    file = folder / "model.onnx"
    torch.onnx.export(taken, given, file, dynamo=True, external_data=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    arrays = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given)}
    return lambda: [torch.from_numpy(t) for t in session.run(None, arrays)]


taken, version = Taken(model), "torch " + torch.__version__


def save(name, outputs):
    save_file({f"{i}": t.float().contiguous() for i, t in enumerate(outputs)}, folder / f"{name}.safetensors")


with torch.inference_mode():
    if way == "eager":
        save("truth", taken.double()(ids, mask))
        taken.float()
    if way == "openvino":
        encode, version = by_openvino(taken), "openvino " + openvino.__version__
    elif way == "onnx":
        encode, version = by_onnx(taken), "onnxruntime " + onnxruntime.__version__
    else:
        if precision == "bf16":
            taken.bfloat16()
        module = torch.compile(taken) if way == "compiled" else taken

        def encode():
            return module(ids, mask)

    save(way, encode())
    print("ready", version, flush=True)
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        encode()
        print(time.perf_counter() - start, time.process_time() - start_cpu, flush=True)
