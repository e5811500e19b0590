"""Checks LoRA files that were converted from one naming to another, with the programs' own code where Python has it.

    python tools/check_lora_formats.py hashes LORA...
    python tools/check_lora_formats.py sd3 BASE_FOLDER DIFFUSERS.safetensors KOHYA.safetensors
    python tools/check_lora_formats.py flux1 DIFFUSERS.safetensors KOHYA.safetensors
    python tools/check_lora_formats.py sdxl MODULES.json DIFFUSERS.safetensors KOHYA.safetensors

Each command checks the hashes of its files too.

hashes  computes `sshs_model_hash` and `sshs_legacy_hash` as kohya's scripts define them and compares.
sd3     diffusers loads the one; the other is applied to the weights by ComfyUI's rules (`lora_unet_` and the native name
        with underscores, alpha / rank), which diffusers' checkpoint converter brings to its names. One denoiser call
        must be equal.
flux1   diffusers' own converter must make the one from the other, number for number.
sdxl    diffusers loads each into a small random UNet (config `unet_tiny` of MODULES.json); one call must be equal.
"""

import hashlib
import io
import json
import sys

import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file

LIMIT = 1e-4


def fail_unless(condition, text):
    print(text)
    if not condition:
        sys.exit(1)


def hashes(*files):
    for path in files:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        raw = open(path, "rb").read()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        model = hashlib.sha256(data).hexdigest()
        trained = {key: value for key, value in metadata.items() if key.startswith("ss_")}
        again = io.BytesIO(safetensors.torch.save(load_file(path), trained))
        again.seek(0x100000)
        legacy = hashlib.sha256(again.read(0x10000)).hexdigest()[:8]
        expected = (model, legacy, "0x" + model)
        found = tuple(metadata.get(k) for k in ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"))
        fail_unless(found == expected, f"{path}: hashes {found}, expected {expected}")
        saved = safetensors.torch.save(load_file(path), trained)
        fail_unless(saved.endswith(data), f"{path}: tensors in the order of the format's own library")


def changed_by(model, inputs, load):
    """A call before and after."""
    with torch.no_grad():
        before = model(**inputs, return_dict=False)[0]
        load()
        after = model(**inputs, return_dict=False)[0]
    return before, after


def compare(before, one, other):
    scale = one.abs().max()
    error = ((one - other).abs().max() / scale).item()
    change = ((one - before).abs().max() / scale).item()
    fail_unless(
        error <= LIMIT and change > 1e-3,
        f"one denoiser call: max relative error {error:.2e} (limit {LIMIT:.0e}); the LoRA changes it by {change:.2e}",
    )


class Deltas(dict):
    """Changes of weights under native names; a weight that nothing changes is zero, in a shape that can be cut."""

    def __missing__(self, key):
        return torch.zeros(6, 1)

    def pop(self, key, *default):
        return super().pop(key) if key in self else self[key]


def sd3(base, diffusers_file, kohya_file):
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    def model():
        return SD3Transformer2DModel.from_pretrained(base, subfolder="transformer", torch_dtype=torch.float32)

    ours = model()
    config = ours.config
    generator = torch.Generator().manual_seed(1)
    inputs = dict(
        hidden_states=torch.randn(1, config.in_channels, 8, 8, generator=generator),
        encoder_hidden_states=torch.randn(1, 7, config.joint_attention_dim, generator=generator),
        pooled_projections=torch.randn(1, config.pooled_projection_dim, generator=generator),
        timestep=torch.tensor([500.0]),
    )
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipeline = StableDiffusion3Pipeline(
        transformer=ours, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, **dict.fromkeys(parts)
    )
    before, loaded = changed_by(ours, inputs, lambda: pipeline.load_lora_weights(diffusers_file))

    stored = load_file(kohya_file)
    used = set()
    deltas = Deltas()
    natives = native_sd3_names(config.num_layers, config.dual_attention_layers)
    for native in natives:
        path = "lora_unet_" + native.replace(".", "_")
        if path + ".lora_up.weight" not in stored:
            continue
        keys = [path + end for end in (".lora_up.weight", ".lora_down.weight", ".alpha")]
        up, down, alpha = (stored[key].float() for key in keys)
        used.update(keys)
        deltas[native + ".weight"] = (up.flatten(1) @ down.flatten(1)) * (alpha / down.shape[0])
    fail_unless(used == set(stored), f"{len(stored) - len(used)} tensors under no native name")
    deltas["context_embedder.weight"] = deltas["context_embedder.weight"]
    other = model()
    weights = dict(other.named_parameters())
    for name, delta in convert_sd3_transformer_checkpoint_to_diffusers(deltas).items():
        if delta.abs().max() > 0:
            weights[name].data += delta.reshape(weights[name].shape)
    with torch.no_grad():
        merged = other(**inputs, return_dict=False)[0]
    compare(before, loaded, merged)


def native_sd3_names(layers, dual):
    names = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.0", "y_embedder.mlp.2"]
    names += ["context_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    for layer in range(layers):
        streams = {"x_block": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], "context_block": ["attn.qkv"]}
        if layer < layers - 1:
            streams["context_block"] = streams["x_block"]
        if layer in dual:
            streams["x_block"] = streams["x_block"] + ["attn2.qkv", "attn2.proj"]
        for stream, parts in streams.items():
            names += [f"joint_blocks.{layer}.{stream}.{part}" for part in parts + ["adaLN_modulation.1"]]
    return names


def flux1(diffusers_file, kohya_file):
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    expected = {name.removeprefix("transformer."): t for name, t in load_file(diffusers_file).items()}
    found = {n.removeprefix("transformer."): t for n, t in _convert_kohya_flux_lora_to_diffusers(load_file(kohya_file)).items()}
    wrong = [n for n in sorted(expected.keys() | found.keys()) if n not in expected or n not in found or not torch.equal(expected[n], found[n])]
    fail_unless(not wrong, f"{len(expected)} tensors; {len(wrong)} differ from what diffusers makes of the other file {wrong[:3]}")


def sdxl(modules, diffusers_file, kohya_file):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    config = json.load(open(modules))["networks"]["unet_tiny"]["config"]
    generator = torch.Generator().manual_seed(1)
    inputs = dict(
        sample=torch.randn(1, 4, 8, 8, generator=generator),
        timestep=500,
        encoder_hidden_states=torch.randn(1, 7, config["cross_attention_dim"], generator=generator),
        added_cond_kwargs={
            "text_embeds": torch.randn(1, 16, generator=generator),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        },
    )
    results = []
    for file in (diffusers_file, kohya_file):
        torch.manual_seed(2)
        unet = UNet2DConditionModel(**config)
        parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae")
        pipeline = StableDiffusionXLPipeline(
            unet=unet, scheduler=EulerDiscreteScheduler(), add_watermarker=False, **dict.fromkeys(parts)
        )
        before, after = changed_by(unet, inputs, lambda: pipeline.load_lora_weights(file))
        taken = sum(".lora_A." in name for name, _ in unet.named_parameters())
        results.append((taken, after))
    (count, one), (other_count, other) = results
    fail_unless(count == other_count, f"{count} and {other_count} modules taken")
    compare(before, one, other)


if __name__ == "__main__":
    commands = {"hashes": hashes, "sd3": sd3, "flux1": flux1, "sdxl": sdxl}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
    if sys.argv[1] != "hashes":
        hashes(*sys.argv[-2:])
