"""Goldens of the UNets of SD1.5 and SDXL: small random UNet2DConditionModels of diffusers, in both namings, with peft.

    python tools/goldens/unet.py

writes, per model (`sdxl`, `sd1`, `sd2`):
    tests/golden/unet_<model>.safetensors         diffusers names, bf16, and `golden.*` f32: inputs, outputs, adapters, gradients
    tests/golden/unet_<model>_single.safetensors  the same weights as the original code's single file names them (sdxl, sd1)
and
    tests/golden/unet_world.safetensors           a UNet of SDXL's kind for the encoders and the VAE of assets/tiny-sd3, and
                                                  what 20 steps of training a LoRA on it give
    tests/golden/unet_world_sd1.safetensors       one of SD1's kind

The single-file names are written by the inverse mapping below and then checked here: diffusers' own converter must give
the first file back, tensor for tensor.
"""

import torch
from denoiser import check_conversion, randomize, save, save_single_file, with_adapters
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoraConfig

SCRIPT = "tools/goldens/unet.py"
SMALL = dict(sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4, cross_attention_dim=20)
ADDED = dict(addition_embed_type="text_time", addition_time_embed_dim=6)
MODELS = {
    # As SDXL: no attention at the outermost level, deeper transformers inside, linear projections.
    "sdxl": dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 12, 16),
        layers_per_block=1,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[2, 3, 4],
        use_linear_projection=True,
        projection_class_embeddings_input_dim=6 * 6 + 10,
        **ADDED,
    ),
    # As SD1.5: attention at all levels but the innermost, convolutions around transformers.
    "sd1": dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 12),
        layers_per_block=2,
        attention_head_dim=2,
    ),
    # As SD2: linear projections, heads of one width.
    "sd2": dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
    ),
}
# (latent height, latent width, context tokens): sides that do not halve evenly too.
SHAPES = [(8, 8, 5), (6, 10, 7), (9, 5, 3)]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def single_file_name(name, layers, attends):
    """diffusers' name to the original code's."""
    module, kind = name.rsplit(".", 1)
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    parts = module.split(".")
    if parts[0] == "mid_block":
        part, number, inner = parts[1], int(parts[2]), ".".join(parts[3:])
        place = f"middle_block.{2 * number}.{RESNET[inner]}" if part == "resnets" else f"middle_block.1.{inner}"
        return f"{place}.{kind}"
    side, level, part, number, inner = parts[0], int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    first = level * (layers + 1)
    if part == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{kind}"
    if part == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if attends[level] else 1}.conv.{kind}"
    block = f"input_blocks.{first + 1 + number}" if side == "down_blocks" else f"output_blocks.{first + number}"
    return f"{block}.0.{RESNET[inner]}.{kind}" if part == "resnets" else f"{block}.1.{inner}.{kind}"


def to_single_file(state, config):
    attends = ["CrossAttn" in kind for kind in config.up_block_types]
    prefix = "model.diffusion_model."
    return {prefix + single_file_name(k, config.layers_per_block, attends): v for k, v in state.items()}


def inputs(config, shape, generator):
    height, width, tokens = shape
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    given = {
        "latents": rand(2, config.in_channels, height, width),
        "context": rand(2, tokens, config.cross_attention_dim),
        # One nearly clean, one nearly noise.
        "timesteps": torch.tensor([12.0, 987.0]),
        "target": rand(2, config.out_channels, height, width),
        "pooled": torch.zeros(2, 1),
    }
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["pooled"] = rand(2, pooled)
        sizes = [[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width], [1600, 999, 16, 240, 1024, 768]]
        given["time_ids"] = torch.tensor(sizes)
    return given


def call(model, given):
    added = None
    if "time_ids" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    latents, timesteps, context = given["latents"], given["timesteps"], given["context"]
    return model(latents, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]


def adaptable(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}


def extents(module):
    return list(module.weight.shape)


def golden(name, overrides, seed):
    torch.manual_seed(seed)
    model = randomize(UNet2DConditionModel(**{**SMALL, **overrides}))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(200 + seed)
    tensors = {k: v.to(torch.bfloat16) for k, v in state.items()}
    for i, shape in enumerate(SHAPES):
        given = inputs(model.config, shape, generator)
        with torch.no_grad():
            given["output"] = call(model, given)
        tensors |= {f"golden.{i}.{k}": v for k, v in given.items()}
    keys = [k.removeprefix("golden.1.") for k in tensors if k.startswith("golden.1.") and not k.endswith(".output")]
    given = {k: tensors[f"golden.1.{k}"] for k in keys}
    modules = adaptable(model)
    shapes = {n: extents(m) for n, m in modules.items()}
    attention = [n for n in modules if ".attn" in n]
    # Gradients in f64: some are small differences of large numbers, of which f32 keeps three digits.
    model, given = model.double(), {k: v.double() for k, v in given.items()}
    with_adapters(model, call, "all", list(modules), 6.0, given, generator, tensors)
    with_adapters(model, call, "attention", attention, 4.0, given, generator, tensors)
    tensors = {k: v.float() if v.dtype == torch.float64 else v for k, v in tensors.items()}
    save(f"unet_{name}", SCRIPT, model, shapes, tensors, {"all": 6.0, "attention": 4.0})
    if name != "sd2":
        single = to_single_file(state, model.config)
        back = convert_ldm_unet_checkpoint({k: v.clone() for k, v in single.items()}, dict(model.config))
        check_conversion(back, state)
        save_single_file(f"unet_{name}_single", SCRIPT, single)


def curve(model, tensors, steps=20):
    """The losses of training a LoRA on the attention of a model: DDPM, min-SNR 5, AdamW, all from given numbers."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    generator = torch.Generator().manual_seed(5)
    targets = [n for n in adaptable(model) if ".attn" in n]
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets), adapter_name="curve")
    trained = {n.replace(".curve.", "."): p for n, p in model.named_parameters() if ".curve." in n}
    for name, p in sorted(trained.items()):
        if "lora_A" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
        tensors[f"golden.curve.{name}"] = p.detach().clone()
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.01)
    config, losses = model.config, []
    latents = torch.randn(1, config.in_channels, 8, 6, generator=generator)
    context = torch.randn(1, 5, config.cross_attention_dim, generator=generator)
    pooled = torch.randn(1, 64, generator=generator)
    time_ids = torch.tensor([[64.0, 80.0, 0.0, 16.0, 64.0, 48.0]])
    noises = torch.randn(steps, *latents.shape[1:], generator=generator)
    timesteps = torch.randint(0, 1000, (steps,), generator=generator)
    for noise, t in zip(noises.split(1), timesteps.split(1)):
        given = {"latents": scheduler.add_noise(latents, noise, t), "timesteps": t, "context": context}
        prediction = call(model, given | {"pooled": pooled, "time_ids": time_ids})
        kept = scheduler.alphas_cumprod[t]
        ratio = kept / (1 - kept)
        loss = (prediction - noise).square().mean() * (ratio.clamp(max=5.0) / ratio).item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    given = {"latents": latents, "context": context, "pooled": pooled, "time_ids": time_ids, "noises": noises}
    tensors |= {f"golden.curve.{k}": v for k, v in given.items()}
    tensors["golden.curve.timesteps"] = timesteps.float()
    tensors["golden.curve.losses"] = torch.tensor(losses)


def world():
    torch.manual_seed(50)
    overrides = dict(
        sample_size=8, in_channels=16, out_channels=16, norm_num_groups=4, cross_attention_dim=48 + 64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=[1, 2], use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 64,
    )  # fmt: skip
    model = randomize(UNet2DConditionModel(**overrides))
    tensors = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    curve(model, tensors)
    save("unet_world", SCRIPT, model, {}, tensors, {"curve": 4.0})
    overrides = dict(
        sample_size=8, in_channels=16, out_channels=16, norm_num_groups=4, cross_attention_dim=48,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=2,
    )  # fmt: skip
    model = randomize(UNet2DConditionModel(**overrides))
    tensors = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    save("unet_world_sd1", SCRIPT, model, {}, tensors, {})


def main():
    torch.set_num_threads(1)
    for seed, (name, overrides) in enumerate(MODELS.items()):
        golden(name, overrides, seed)
    world()


if __name__ == "__main__":
    main()
