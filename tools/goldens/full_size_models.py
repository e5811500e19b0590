"""The tensors of full-size denoisers, encoders and VAEs, by name and shape, in the layouts that people have them in.

Run: python tools/goldens/full_size_models.py     (from the repository's root; needs torch, diffusers, transformers)

tests/golden/full_size_models.json: per file, a tree of the names' parts with shapes as leaves. Models are built on
torch's meta device, so nothing of their size is held. A new file is a line in `main`.
"""

import json

import chroma
import flux1
import flux2
import sd3
import torch
import unet
import vae_wan
import wan
import zimage
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLWan,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, Qwen3Config, Qwen3ForCausalLM, Qwen3Model, UMT5Config, UMT5EncoderModel
from vae import flux2_names, original_names

SD35_LARGE = dict(
    num_layers=38,
    num_attention_heads=38,
    attention_head_dim=64,
    caption_projection_dim=2432,
    joint_attention_dim=4096,
    pooled_projection_dim=2048,
    pos_embed_max_size=192,
    qk_norm="rms_norm",
)
SDXL = dict(
    sample_size=128,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)


KLEIN_4B = dict(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False)
KLEIN_9B = dict(num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288, guidance_embeds=False)
WAN_1_3B = dict(num_layers=30, num_attention_heads=12, ffn_dim=8960)
UMT5_XXL = dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
QWEN3_8B = dict(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128)


def vae(**extra):
    levels = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    return AutoencoderKL(**levels, block_out_channels=[128, 256, 512, 512], layers_per_block=2, **extra)


def clip(kind, width, layers):
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    return kind(config).state_dict()


def qwen3_4b():
    """Without a head: it is tied to the embedding."""
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    return prefixed("model.", Qwen3Model(config).state_dict())


def umt5_xxl():
    """As ComfyUI's file has it: the embedding once, and the bytes of spiece.model as a tensor (their number is not checked)."""
    state = UMT5EncoderModel(UMT5Config(**UMT5_XXL)).state_dict()
    state.pop("encoder.embed_tokens.weight")
    return {**state, "spiece_model": torch.empty(4548313)}


def open_clip(state):
    """transformers' names to OpenCLIP's, which fuses queries, keys and values."""
    out = {"logit_scale": torch.empty(())}
    parts = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        "text_model.encoder.layers": "transformer.resblocks",
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "text_projection.weight": "text_projection",
    }
    for name, tensor in state.items():
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        if "self_attn.q_proj" in name:
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            tensor = torch.cat([tensor] * 3)
        if "self_attn" not in name:
            out[name] = tensor
    return out


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def sdxl_single(denoiser):
    text = clip(CLIPTextModel, 768, 12)
    if not any(name.startswith("text_model.") for name in text):  # as since transformers 5.6
        text = prefixed("text_model.", text)
    text["text_model.embeddings.position_ids"] = torch.empty(1, 77)
    return {
        **unet.to_single_file(denoiser.state_dict(), denoiser.config),
        **original_names(vae(latent_channels=4).state_dict(), 4),
        **prefixed("conditioner.embedders.0.transformer.", text),
        **prefixed("conditioner.embedders.1.model.", open_clip(clip(CLIPTextModelWithProjection, 1280, 32))),
    }


def tree(state):
    root = {}
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = list(tensor.shape)
    return root


@torch.no_grad()
def main() -> None:
    with torch.device("meta"):
        sd35 = SD3Transformer2DModel(**SD35_LARGE).state_dict()
        sd3_vae = vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False).state_dict()
        flux = FluxTransformer2DModel(guidance_embeds=True)
        chroma1 = ChromaTransformer2DModel()
        z_image = ZImageTransformer2DModel(axes_lens=[1536, 512, 512]).state_dict()
        klein_4b, klein_9b = (Flux2Transformer2DModel(**sizes) for sizes in (KLEIN_4B, KLEIN_9B))
        flux2_vae = AutoencoderKLFlux2().state_dict()
        wan_1_3b, wan_14b = (WanTransformer3DModel(**sizes).state_dict() for sizes in (WAN_1_3B, {}))
        wan_vae = AutoencoderKLWan().state_dict()
        sdxl = UNet2DConditionModel(**SDXL)
        files = {
            "sd35_large": sd35,
            "sd3_vae": sd3_vae,
            "sd35_large_single": {
                **sd3.to_single_file(sd35, SD35_LARGE["num_layers"]),
                **original_names(sd3_vae, 4),
            },
            "flux1_dev": flux.state_dict(),
            "flux1_dev_single": flux1.to_single_file(flux.state_dict(), flux.config),
            "chroma1": chroma1.state_dict(),
            "chroma1_single": chroma.to_single_file(chroma1.state_dict(), chroma1.config),
            "z_image": z_image,
            # ComfyUI's file has one tensor that nothing reads.
            "z_image_single": {**zimage.to_single_file(z_image), "norm_final.weight": torch.empty(3840)},
            "qwen3_4b": qwen3_4b(),
            "klein_4b_single": flux2.to_single_file(klein_4b.state_dict(), klein_4b.config),
            "klein_9b": klein_9b.state_dict(),
            "flux2_vae": flux2_vae,
            "flux2_vae_single": flux2_names(flux2_vae, 4),
            "qwen3_8b": Qwen3ForCausalLM(Qwen3Config(**QWEN3_8B)).state_dict(),
            "wan_1_3b": wan_1_3b,
            # Of 2.1 and, twice, of 2.2.
            "wan_14b_single": wan.to_single_file(wan_14b),
            "wan_vae": wan_vae,
            "wan_vae_single": {vae_wan.original_name(name): tensor for name, tensor in wan_vae.items()},
            "umt5_xxl_comfy": umt5_xxl(),
            "sdxl": sdxl.state_dict(),
            "sdxl_single": sdxl_single(sdxl),
        }
    with open("tests/golden/full_size_models.json", "w") as file:
        file.write(json.dumps({name: tree(state) for name, state in files.items()}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
