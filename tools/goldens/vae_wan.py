"""Golden outputs of diffusers' AutoencoderKLWan with small random weights.

Run: python tools/goldens/vae_wan.py     (from the repository's root)

tests/golden/vae_wan.safetensors holds the weights (f32, diffusers' names) and what diffusers computes in f64 from the
numbers of `wave`, which the test makes as well: `golden.mean` of a clip of 17 frames of 24 x 16 px, `golden.odd` of one of 5 frames of 40 x 24 px,
`golden.decoded` of 5 latent frames of 3 x 1. The metadata has the configuration and the names of the original code's file
(`wan/modules/vae.py`), which diffusers' own importer is asked about here.
"""

import json

import diffusers
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file

CONFIG = dict(
    base_dim=2,
    z_dim=3,
    dim_mult=[1, 2, 4, 4],
    # As the released one, which is the only one that the importer of diffusers knows.
    num_res_blocks=2,
    temperal_downsample=[False, True, True],
    latents_mean=[0.25, -0.5, 0.125],
    latents_std=[1.5, 2.0, 0.75],
)


def wave(phase, *shape):
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.3 + phase).float().double().reshape(shape)


def build():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**CONFIG)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            noise = torch.randn(parameter.shape)
            if name.endswith("gamma"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                # The attention's scores must differ, or the softmax is a mean.
                gain = 3.0 if ".to_qkv." in name else 1.2
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
            # Numbers of 8 bits, which make a small repository.
            parameter.copy_(parameter.bfloat16().float())
        # Within the clamp of the pictures, of which nothing would be seen beyond it.
        vae.decoder.conv_out.weight *= 0.125
    return vae


def original_name(name):
    """The original code's name of a tensor, stated from the other side than diffusers' importer does."""
    blocks = CONFIG["num_res_blocks"]
    parts = name.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    half, rest = parts[0], parts[1:]
    if rest[0] == "down_blocks":
        rest = ["downsamples", *rest[1:]]
    elif rest[0] == "up_blocks":
        at = (blocks + 2) * int(rest[1])
        rest = ["upsamples", str(at + int(rest[3]) if rest[2] == "resnets" else at + blocks + 1), *rest[4:]]
    elif rest[0] == "mid_block":
        at = 1 if rest[1] == "attentions" else 2 * int(rest[2])
        rest = ["middle", str(at), *rest[3:]]
    elif rest[0] == "conv_in":
        rest = ["conv1", *rest[1:]]
    elif rest[0] == "norm_out":
        rest = ["head", "0", *rest[1:]]
    elif rest[0] == "conv_out":
        rest = ["head", "2", *rest[1:]]
    if "attentions" not in parts:
        block = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
        rest = [*rest[:2], block.get(rest[2], rest[2]), *rest[3:]] if len(rest) > 3 else rest
        rest = ["shortcut" if part == "conv_shortcut" else part for part in rest]
    return ".".join([half, *rest])


def main():
    vae = build()
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    names = {name: original_name(name) for name in state}
    back = convert_wan_vae_to_diffusers({names[name]: tensor for name, tensor in state.items()})
    assert back.keys() == state.keys(), set(back) ^ set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    wide = vae.double().eval()
    with torch.no_grad():
        clip = wave(0.0, 1, 17, 3, 16, 24).transpose(1, 2)
        mean = wide.encode(clip).latent_dist.mean
        for frames in [1, 5, 9]:
            # Causal: the beginning of a clip is a clip.
            part = wide.encode(clip[:, :, :frames]).latent_dist.mean
            assert torch.allclose(part, mean[:, :, :part.shape[2]], atol=1e-12)
        odd = wide.encode(wave(0.5, 1, 5, 3, 24, 40).transpose(1, 2)).latent_dist.mean
        latents = wave(1.0, 1, 5, 3, 1, 3).transpose(1, 2)
        decoded = wide.decode(latents).sample
        for frames in [1, 2, 3]:
            part = wide.decode(latents[:, :, :frames]).sample
            assert torch.allclose(part, decoded[:, :, :part.shape[2]], atol=1e-12)
    assert decoded.abs().max() < 1.0, decoded.abs().max()
    golden = {"golden.mean": mean, "golden.odd": odd, "golden.decoded": decoded}
    golden = {name: tensor.float().contiguous() for name, tensor in golden.items()}
    metadata = {
        "script": "tools/goldens/vae_wan.py",
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "config": json.dumps(dict(vae.config)),
        "original_names": json.dumps(names),
    }
    weights = {name: tensor.bfloat16() for name, tensor in state.items()}
    weights["decoder.conv_out.weight"] = state["decoder.conv_out.weight"].bfloat16()
    assert all(torch.equal(weights[name].float(), state[name]) for name in state)
    save_file({**weights, **golden}, "tests/golden/vae_wan.safetensors", metadata)
    print({name: tuple(tensor.shape) for name, tensor in golden.items()}, mean.std(), odd.std(), decoded.std(), decoded.abs().max())


if __name__ == "__main__":
    main()
