"""A Wan 2.1 pipeline of diffusers with random weights, small enough to try plumb's commands on: it makes noise.

    python tools/tiny_wan.py FOLDER     (from the repository's root; needs diffusers, transformers)

Writes FOLDER as `WanPipeline.save_pretrained` does, with the scheduler of the released 1.3B, and the tokenizer of
tests/golden/tokenizers/umt5. `tests/golden/wan_tiny.safetensors` is the weights of all three networks, bf16, as `PART/NAME`, with
their configurations; it is written where it is missing.
"""

import json
import pathlib
import sys

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tests" / "golden"
FILE = GOLDEN / "wan_tiny.safetensors"
TOKENIZER = GOLDEN / "tokenizers" / "umt5"
CHANNELS, TEXT_WIDTH = 4, 16


def networks():
    vocabulary = len(json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"])
    return {
        "transformer": WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT_WIDTH, freq_dim=16,
            ffn_dim=24, num_layers=2, rope_max_seq_len=32,
        ),
        "vae": AutoencoderKLWan(
            base_dim=2, z_dim=CHANNELS, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=[0.25, -0.5, 0.125, 0.0],
            latents_std=[1.5, 2.0, 0.75, 1.0],
        ),
        "text_encoder": UMT5EncoderModel(UMT5Config(
            vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
        )),
    }  # fmt: skip


def randomize(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape)
            if parameter.dim() < 2 or name.endswith("gamma"):
                is_factor = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
                value = 0.1 * noise + (1.0 if is_factor else 0.0)
            else:
                value = noise / parameter[0].numel() ** 0.5
            parameter.copy_(value.bfloat16().float())


def write():
    torch.manual_seed(0)
    tensors, configs = {}, {}
    for part, network in networks().items():
        randomize(network)
        config = network.config.to_dict() if part == "text_encoder" else json.loads(network.to_json_string())
        configs[part] = json.dumps(config)
        state = network.state_dict()
        state.pop("encoder.embed_tokens.weight", None)
        tensors |= {f"{part}/{name}": tensor.bfloat16().contiguous() for name, tensor in state.items()}
    save_file(tensors, FILE, {"script": "tools/tiny_wan.py", **configs})


def pipeline():
    if not FILE.exists():
        write()
    with safe_open(FILE, "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    parts = networks()
    for part, network in parts.items():
        own = {name.removeprefix(f"{part}/"): tensor for name, tensor in weights.items() if name.startswith(f"{part}/")}
        if part == "text_encoder":
            own["encoder.embed_tokens.weight"] = own["shared.weight"]
        network.load_state_dict(own)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokenizer=AutoTokenizer.from_pretrained(TOKENIZER), scheduler=scheduler, **parts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pipeline().save_pretrained(sys.argv[1])
