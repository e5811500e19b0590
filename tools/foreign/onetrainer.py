"""Caches of text embeddings and latents by Nerogar/OneTrainer, on the miniatures.

Runs, of OneTrainer: the whole data pipeline of its data loaders (StableDiffusion3BaseDataLoader, FluxBaseDataLoader, ZImageBaseDataLoader and so
on) on mgds (reading captions, aspect bucketing, Tokenize, EncodeClipText, EncodeT5Text, EncodeQwenText, EncodeVAE, DiskCache). Not its own: the
model object is filled by transformers and diffusers instead of OneTrainer's loaders.

    python tools/foreign/onetrainer.py --trainer CLONE --mgds CLONE_OF_MGDS/src --family sd3 --out FOLDER
    python tools/tiny_klein.py MODEL      (also tiny_zimage.py, tiny_chroma.py)
    python tools/foreign/onetrainer.py --trainer CLONE --mgds CLONE_OF_MGDS/src --family flux2 --model MODEL --out FOLDER

Revisions: OneTrainer 23df383 (2026-08-19), mgds 3a6994a (2026-07-05), with transformers 5.23.0, diffusers 0.42.1.
"""

import os
import sys
from types import SimpleNamespace

from common import ASSETS, CAPTIONS, HARD, arguments, dataset, manifest, without

REVISION = "23df3832e8f213d64c337e39f9365ba46e99fed0"
FAMILIES = {"sd3": "tiny-sd3", "flux1": "tiny-flux", "sdxl": "tiny-sdxl", "flux2": None, "zimage": None, "chroma": None}
CASES = {
    "default": {},
    "sequence-length-256": dict(
        config={"text_encoder_2_sequence_length": 256}, only=["flux1"],
        changed={"t5.tokens.max_tokens": 256, "t5.tokens.min_tokens": 256},
    ),
    "layer-skip-1": dict(config={"text_encoder_layer_skip": 1}, only=["sdxl", "sd3"], changed={"clip_l.forward.hidden_layer": -3}),
    "length-256": dict(
        config={"text_encoder_sequence_length": 256}, dtype="bfloat16", only=["flux2"],
        changed={"qwen3.tokens.max_tokens": 256, "qwen3.tokens.min_tokens": 256, "dtype": "bf16"},
    ),
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "stale": dict(stale=True),
    "hard": dict(captions=HARD),
}


def kinds_of(family):
    """OneTrainer's class of the model and of its data loader, its name for the model, and the encoders with their tokenizers."""
    from importlib import import_module

    from modules.util.enum.ModelType import ModelType
    from transformers import (
        CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, Qwen2Tokenizer, Qwen3ForCausalLM, T5EncoderModel, T5Tokenizer,
    )  # fmt: skip

    clip, projected = (CLIPTextModel, CLIPTokenizer), (CLIPTextModelWithProjection, CLIPTokenizer)
    t5, qwen3 = (T5EncoderModel, T5Tokenizer), (Qwen3ForCausalLM, Qwen2Tokenizer)
    name, type_, encoders = {
        "sd3": ("StableDiffusion3", ModelType.STABLE_DIFFUSION_35, [projected, projected, t5]),
        "flux1": ("Flux", ModelType.FLUX_DEV_1, [clip, t5]),
        "sdxl": ("StableDiffusionXL", ModelType.STABLE_DIFFUSION_XL_10_BASE, [clip, projected]),
        "flux2": ("Flux2", ModelType.FLUX_2, [qwen3]),
        "zimage": ("ZImage", ModelType.Z_IMAGE, [qwen3]),
        "chroma": ("Chroma", ModelType.CHROMA_1, [t5]),
    }[family]
    of = lambda module: getattr(import_module(f"modules.{module}"), module.rsplit(".", 1)[1])  # noqa: E731
    return of(f"model.{name}Model"), of(f"dataLoader.{name}BaseDataLoader"), type_, encoders


def model_of(family, base, dtype):
    import diffusers
    import torch
    from modules.util.enum.DataType import DataType

    kind, loader, type_, encoders = kinds_of(family)
    model = kind(type_)
    for i, (encoder, tokenizer) in enumerate(encoders):
        suffix = f"_{i + 1}" if i else ""
        own = f"_{i + 1}" if len(encoders) > 1 else ""
        setattr(model, f"tokenizer{own}", tokenizer.from_pretrained(base / f"tokenizer{suffix}"))
        setattr(model, f"text_encoder{own}", encoder.from_pretrained(base / f"text_encoder{suffix}", dtype=dtype).eval())
    vae = diffusers.AutoencoderKLFlux2 if family == "flux2" else diffusers.AutoencoderKL
    model.vae = vae.from_pretrained(base / "vae").to(dtype).eval()
    if family == "flux2":
        # By which it tells klein from dev.
        model.transformer = torch.nn.Identity()
        model.transformer.config = SimpleNamespace(num_attention_heads=24)
    kind_of_numbers = {"float32": DataType.FLOAT_32, "bfloat16": DataType.BFLOAT_16}[str(dtype).removeprefix("torch.")]
    model.train_dtype = kind_of_numbers
    for name in ("text_encoder_train_dtype", "text_encoder_2_train_dtype", "text_encoder_3_train_dtype", "vae_train_dtype"):
        if hasattr(model, name):
            setattr(model, name, kind_of_numbers)
    # Which part is on the GPU is decided by these; here all is on the CPU.
    model.materialize_only = model.materialize = model.to = lambda *_, **__: None
    return model, loader, type_


def run(args, name, case):
    import torch
    from modules.util.config.ConceptConfig import ConceptConfig
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.TrainProgress import TrainProgress

    family, folder = args.family, args.out / name
    base = args.model or ASSETS / FAMILIES[family]
    captions = dataset(folder, case.get("captions", CAPTIONS))
    model, kind, type_ = model_of(family, base, getattr(torch, case.get("dtype", "float32")))
    concept = ConceptConfig.default_values()
    concept.path, concept.name = str(folder), "tiny"
    concept.image.enable_crop_jitter = concept.image.enable_random_flip = False
    config = TrainConfig.default_values()
    config.model_type, config.concepts, config.cache_dir = type_, [concept], str(folder / "workspace-cache")
    config.resolution, config.train_device, config.temp_device, config.dataloader_threads = "128", "cpu", "cpu", 1
    config.batch_size = 1
    # What is trained is not cached.
    for part in (config.text_encoder, config.text_encoder_2, config.text_encoder_3):
        part.train = False
    for field, value in case.get("config", {}).items():
        assert hasattr(config, field), field
        setattr(config, field, value)
    setup = SimpleNamespace(prepare_text_caching=lambda *_: None)
    torch.manual_seed(0)
    with torch.no_grad():
        loader = kind(torch.device("cpu"), torch.device("cpu"), config, model, setup, TrainProgress())
        loader.get_data_set().start_next_epoch()
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="Nerogar/OneTrainer", revision=REVISION, family=family, model=base.name, case=name, variant="onetrainer",
        changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [], latents={"is": "mean", "resolution": 128, "folder": "workspace-cache"},
        options=case.get("config", {}) | ({"dtype": case["dtype"]} if "dtype" in case else {}),
    )


def main():
    i = sys.argv.index("--mgds")
    mgds = os.path.abspath(sys.argv[i + 1])
    del sys.argv[i : i + 2]
    args = arguments(__doc__, list(FAMILIES))
    sys.path[:0] = [str(args.trainer), mgds]
    without("av", "kernels", "parse", "pynvml", "torch.utils.tensorboard", "nvidia.libnvcomp", "nvidia.nvcomp")
    for name, case in CASES.items():
        if args.only in (None, name) and args.family in case.get("only", FAMILIES):
            run(args, name, case)


if __name__ == "__main__":
    main()
