"""The authors' names of Wan 2.1's networks, in which musubi-tuner and diffusion-pipe read them, and a clip of a few frames."""

import json
import re

from PIL import Image

CLIP = "clip"
CAPTION = "a circle that moves to the right"
FRAMES, SIDE = 9, 32


def tokenizer(base, out):
    """A folder as the authors' checkpoint has it: without a config.json, and with the tokenizer's class named."""
    folder = out / "tokenizers/umt5"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes((base / "tokenizer/tokenizer.json").read_bytes())
    config = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def umt5(state):
    """A UMT5 encoder of transformers under the authors' names."""
    renamed = {}
    for name, tensor in state.items():
        if name == "encoder.embed_tokens.weight":
            continue
        for old, new in [
            ("shared", "token_embedding"),
            ("encoder.final_layer_norm", "norm"),
            ("encoder.block", "blocks"),
            ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
            ("layer.0.SelfAttention", "attn"),
            ("layer.0.layer_norm", "norm1"),
            ("layer.1.layer_norm", "norm2"),
            ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
            ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
            ("layer.1.DenseReluDense.wo", "ffn.fc2"),
        ]:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def umt5_sizes(config):
    """A configuration of transformers as the authors' class takes it."""
    return dict(
        vocab_size=config["vocab_size"], dim=config["d_model"], dim_attn=config["num_heads"] * config["d_kv"], dim_ffn=config["d_ff"],
        num_heads=config["num_heads"], encoder_layers=config["num_layers"], decoder_layers=0,
        num_buckets=config["relative_attention_num_buckets"], shared_pos=False, dropout=0.0,
    )


def vae(state, config):
    """An AutoencoderKLWan of diffusers under the authors' names."""
    blocks = config["num_res_blocks"]
    renamed = {}
    for name, tensor in state.items():
        for old, new in [
            ("post_quant_conv", "conv2"),
            ("quant_conv", "conv1"),
            (".conv_in.", ".conv1."),
            (".norm_out.", ".head.0."),
            (".conv_out.", ".head.2."),
            (".mid_block.attentions.0.", ".middle.1."),
            (".mid_block.resnets.0.", ".middle.0."),
            (".mid_block.resnets.1.", ".middle.2."),
            (".down_blocks.", ".downsamples."),
        ]:
            name = name.replace(old, new)
        up = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.*)", name)
        if up:
            level, kind, n, rest = int(up[1]), up[2], int(up[3]), up[4]
            place = level * (blocks + 2) + (n if kind == "resnets" else blocks + 1)
            name = f"decoder.upsamples.{place}.{rest}"
        if "downsamples" in name or "upsamples" in name or "middle" in name:
            for old, new in [
                ("conv_shortcut", "shortcut"), (".norm1.", ".residual.0."), (".conv1.", ".residual.2."), (".norm2.", ".residual.3."),
                (".conv2.", ".residual.6."),
            ]:  # fmt: skip
                if "residual" not in name:
                    name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def vae_sizes(config):
    return dict(
        dim=config["base_dim"], z_dim=config["z_dim"], dim_mult=config["dim_mult"], num_res_blocks=config["num_res_blocks"],
        attn_scales=[], temperal_downsample=config["temperal_downsample"], dropout=0.0,
    )


def clip(folder, picture):
    """Numbered frames of a window that moves over a picture, in `folder`/clip, and their caption; returns the folder of frames."""
    picture = Image.open(picture).convert("RGB").resize((64, 64), Image.LANCZOS)
    frames = folder / CLIP
    frames.mkdir(parents=True)
    for n in range(FRAMES):
        picture.crop((2 * n, n, 2 * n + SIDE, n + SIDE)).save(frames / f"{n:04d}.png")
    (folder / f"{CLIP}.txt").write_text(CAPTION + "\n", encoding="utf-8")
    return frames
