"""Holds plumb's reading of PEFT's and diffusers' adapters against these libraries.

    python tools/check_adapters.py make BASE_FOLDER OUT     writes adapters for the UNet of a small model, and prints their names
    python tools/check_adapters.py compare BASE_FOLDER OUT  compares what each changes with what `OUT/NAME.plumb.safetensors` says,
                                                            which `plumb import lora OUT/NAME` made of it, and with what the folder
                                                            `OUT/NAME.peft` changes, which `plumb export lora OUT/NAME` made of it

For PEFT's folders the reference is `PeftModel.from_pretrained(...).merge_and_unload()`, for diffusers' files `load_lora_weights`
and `fuse_lora`; for plumb's folders PEFT's, and diffusers' `load_lora_adapter`.
"""

import json
import pathlib
import sys

import torch
from denoisers import load, pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

LIMIT = 1e-5

PATTERNS = dict(
    r=4,
    lora_alpha=6,
    target_modules=["to_q", "to_k", "to_v"],
    rank_pattern={"attn1.to_q": 8, r".*attn2\.to_[kv]": 2},
    alpha_pattern={r"attn2\.(to_k|to_q)": 5, "attn2.to_k": 3, "^mid_block.attentions.0.transformer_blocks.0.attn1.to_k": 1},
)
CONFIGS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=["to_q", "to_k"]),
    "rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["to_q", "to_k"]),
    "patterns": PATTERNS,
    "patterns-rslora": dict(PATTERNS, use_rslora=True),
    "eva": dict(r=4, lora_alpha=2, target_modules=["to_q", "to_k"]),
    "transposed": dict(r=4, lora_alpha=8, fan_in_fan_out=True, target_modules=["to_q", "to_k"]),
    "convolutions": dict(r=2, lora_alpha=8, target_modules=["conv1", "to_q"]),
}


def randomize(model):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def make(base, out):
    for name, config in CONFIGS.items():
        model = get_peft_model(load(base), LoraConfig(**config))
        randomize(model)
        model.save_pretrained(out / name)
        if name == "eva":
            file = out / name / "adapter_config.json"
            stated = json.loads(file.read_text())
            file.write_text(json.dumps(dict(stated, init_lora_weights="eva", eva_config={"rho": 2.0})))
        # The same as diffusers keeps it.
        unet = load(base)
        unet.add_adapter(LoraConfig(**config))
        randomize(unet)
        pipeline(unet).save_lora_weights(
            out,
            unet_lora_layers=get_peft_model_state_dict(unet),
            weight_name=f"{name}.safetensors",
            **_collate_lora_metadata({"unet": unet}),
        )
        print(name)
        print(f"{name}.safetensors")


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def reference(base, adapter):
    model = load(base)
    before = weights(model)
    if adapter.is_dir():
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    else:
        loaded = pipeline(model)
        loaded.load_lora_weights(adapter)
        loaded.fuse_lora(components=["unet"])
        loaded.unload_lora_weights()
        model = loaded.unet
    return changes(before, model)


def changes(before, model):
    after = weights(model)
    found = {name: after[name] - value for name, value in before.items()}
    return {name: change for name, change in found.items() if change.abs().max() > 0}


def by_diffusers(base, folder):
    model = load(base)
    before = weights(model)
    model.load_lora_adapter(folder, weight_name="adapter_model.safetensors", prefix="base_model.model")
    stored = {name.removeprefix("base_model.model.") for name in load_file(folder / "adapter_model.safetensors")}
    adapted = {name.replace(".default_0.", ".") for name, _ in model.named_parameters() if ".lora_" in name}
    if adapted != stored:
        sys.exit(f"{folder}: diffusers puts adapters on {sorted(adapted ^ stored)[:3]} too, or not")
    model.fuse_lora()
    model.unload_lora()
    return changes(before, model)


def modules_of(base, folder):
    """The modules that PEFT puts adapters on."""
    model = PeftModel.from_pretrained(load(base), folder)
    names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    return {name.removeprefix("base_model.model.").split(".lora_A.")[0] + ".weight" for name in names}


def ours(file):
    stored = load_file(file)
    found = {}
    for name, a in stored.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b = stored[f"{module}.lora_B.weight"]
            change = (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
            found[module.split(".", 1)[1] + ".weight"] = change
    return found


def compare(base, out):
    for name in [part for name in CONFIGS for part in (name, f"{name}.safetensors")]:
        expected, exported = reference(base, out / name), out / f"{name}.peft"
        hold(name, expected, ours(out / f"{name}.plumb.safetensors"))
        hold(f"{name} exported, in PEFT", expected, reference(base, exported))
        hold(f"{name} exported, in diffusers", expected, by_diffusers(base, exported))
        if modules_of(base, exported) != expected.keys():
            sys.exit(f"{exported}: PEFT puts adapters on other modules")


def hold(name, expected, found):
    if expected.keys() != found.keys():
        sys.exit(f"{name}: {len(expected)} modules, plumb has {len(found)}")
    error = max(((found[k] - v).abs().max() / v.abs().max()).item() for k, v in expected.items())
    print(f"{name}: {len(found)} modules, max relative error {error:.1e}")
    if error > LIMIT:
        sys.exit(f"{name}: over {LIMIT:.0e}")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("make", "compare"):
        sys.exit(__doc__)
    {"make": make, "compare": compare}[sys.argv[1]](sys.argv[2], pathlib.Path(sys.argv[3]))
