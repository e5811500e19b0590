"""Golden outputs of diffusers' AutoencoderKL and AutoencoderKLFlux2 with small random weights.

Run: python tools/goldens/vae.py     (from the repository's root)

For each configuration, tests/golden/vae_<name>.safetensors holds the weights (f32, diffusers' names), the inputs
and what diffusers computes from them in f64: `golden.pixels`, `golden.mean`, `golden.logvar`, `golden.latents`,
`golden.decoded`. tests/golden/vae_original_names.safetensors holds the weights of `sdxl` once more, named as the
original code names them; that those names are right is checked here with diffusers' own importer.

`flux2` also holds `golden.normalized`, the latents as the pipelines scale the means (patches by the running statistics of the batch
norm, back in place), and tests/golden/vae_flux2_original_names.safetensors its weights as `src/flux2/autoencoder.py` of
black-forest-labs/flux2 names them: the quant convolutions within the halves.
"""

import json

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file

CONFIGS = {
    # Like SD3: 16 channels, no quant convolutions. 24 x 40 pixels make latents of 3 x 5.
    "sd3": dict(
        config=dict(
            block_out_channels=[8, 8, 16, 16],
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=4,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        size=(24, 40),
    ),
    # Like SDXL: 4 channels, quant convolutions; a size that the factor does not divide.
    "sdxl": dict(
        config=dict(
            block_out_channels=[8, 16],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.13025,
        ),
        size=(27, 38),
    ),
    # One level, no attention, quant convolution on one side only.
    "plain": dict(
        config=dict(
            block_out_channels=[8],
            layers_per_block=3,
            latent_channels=2,
            norm_num_groups=2,
            mid_block_add_attention=False,
            use_post_quant_conv=False,
        ),
        size=(5, 7),
    ),
    # FLUX.2's, with a decoder of other widths than the encoder's, as its small decoder has. 48 x 32 pixels are patches of 3 x 2.
    "flux2": dict(
        kind=AutoencoderKLFlux2,
        config=dict(
            block_out_channels=[8, 8, 16, 16],
            decoder_block_out_channels=[4, 8, 8, 16],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            batch_norm_eps=1e-4,
            patch_size=[2, 2],
        ),
        size=(48, 32),
    ),
}


def build(config, seed, kind=AutoencoderKL):
    torch.manual_seed(seed)
    levels = len(config["block_out_channels"])
    vae = kind(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        **config,
    )
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in name:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                # The attention's scores must differ, or the softmax is a mean.
                gain = 3.0 if ".to_q." in name or ".to_k." in name else 1.2
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
        # Beyond both ends of the clamp of the log-variance.
        channels = config["latent_channels"]
        last = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
        last.bias[channels] = 60.0
        last.bias[channels + 1] = -70.0
        if kind is AutoencoderKLFlux2:
            vae.bn.running_mean.copy_(torch.randn(vae.bn.running_mean.shape))
            # One of them so small that the epsilon counts.
            vae.bn.running_var.copy_(torch.rand(vae.bn.running_var.shape) * 3)
            vae.bn.running_var[1] = 1e-5
    return vae


def normalized(vae, latents):
    """As Flux2KleinPipeline._encode_vae_image does it, and the patches back in place."""
    patches = Flux2KleinPipeline._patchify_latents(latents)
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return Flux2KleinPipeline._unpatchify_latents((patches - mean) / std)


def original_names(state, levels):
    """The names that diffusers' importer of original checkpoints expects, stated from the other side."""
    parts = {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
        "mid_block.attentions.0.to_q": "mid.attn_1.q",
        "mid_block.attentions.0.to_k": "mid.attn_1.k",
        "mid_block.attentions.0.to_v": "mid.attn_1.v",
        "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "resnets": "block",
        "down_blocks": "down",
    }
    out = {}
    for name, tensor in state.items():
        new = name
        for level in range(levels):
            new = new.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
        for ours, theirs in parts.items():
            new = new.replace(ours, theirs)
        if ".attn_1." in new and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        out["first_stage_model." + new] = tensor.clone().contiguous()
    return out


def flux2_names(state, levels):
    """The names of FLUX.2's authors: without a prefix, and the quant convolutions within the halves."""
    original = {k.removeprefix("first_stage_model."): v for k, v in original_names(state, levels).items()}
    for theirs in ("encoder.quant_conv", "decoder.post_quant_conv"):
        for kind in ("weight", "bias"):
            original[f"{theirs}.{kind}"] = original.pop(f"{theirs.split('.')[1]}.{kind}")
    return original


def main():
    versions = {"script": "tools/goldens/vae.py", "diffusers": diffusers.__version__, "torch": torch.__version__}
    for seed, (name, case) in enumerate(CONFIGS.items()):
        vae = build(case["config"], seed, case.get("kind", AutoencoderKL))
        state = {k: v.clone() for k, v in vae.state_dict().items()}
        wide = vae.double().eval()
        height, width = case["size"]
        pixels = torch.rand(2, 3, height, width) * 2 - 1
        with torch.no_grad():
            posterior = wide.encode(pixels.double()).latent_dist
            latents = torch.randn_like(posterior.mean)
            decoded = wide.decode(latents).sample
        assert posterior.logvar.max() == 20.0 and posterior.logvar.min() == -30.0
        golden = {
            "golden.pixels": pixels,
            "golden.mean": posterior.mean.float(),
            "golden.logvar": posterior.logvar.float(),
            "golden.latents": latents.float(),
            "golden.decoded": decoded.float(),
        }
        metadata = {**versions, "config": json.dumps({**dict(vae.config), "_class_name": type(vae).__name__})}
        if name == "flux2":
            # In f32: the statistics are.
            vae = vae.float()
            vae.load_state_dict(state)
            golden["golden.normalized"] = normalized(vae, golden["golden.mean"])
            original = flux2_names(state, len(case["config"]["block_out_channels"]))
            save_file(original, "tests/golden/vae_flux2_original_names.safetensors", versions)
        save_file({**state, **{k: v.contiguous() for k, v in golden.items()}},
                  f"tests/golden/vae_{name}.safetensors", metadata)
        if name == "sdxl":
            original = original_names(state, len(case["config"]["block_out_channels"]))
            back = convert_ldm_vae_checkpoint(dict(original), vae.config)
            assert back.keys() == state.keys(), set(back) ^ set(state)
            assert all(torch.equal(back[k].reshape(state[k].shape), state[k]) for k in state)
            save_file(original, "tests/golden/vae_original_names.safetensors", versions)


if __name__ == "__main__":
    main()
