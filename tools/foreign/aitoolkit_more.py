"""Caches of text embeddings and latents by ostris/ai-toolkit, of Chroma1, Wan 2.1, FLUX.2 klein and Z-Image, on their miniatures.

Runs, of the toolkit: AiToolkitDataset (captions, buckets, cache_text_embeddings, cache_latents_all_latents), encode_prompt and encode_images of
the models' own classes, PromptEmbeds.save. Not its own: these objects are made without their loaders, which download.

    python tools/tiny_wan.py MODEL
    python tools/foreign/aitoolkit_more.py --trainer CLONE --family wan --model MODEL --out FOLDER

Revision: 27a03a9 (2026-08-21), with transformers 5.23.0 (the toolkit asks for 5.5.3).
"""

import sys
from pathlib import Path

from aitoolkit import ABSENT, REVISION
from common import CAPTIONS, HARD, arguments, dataset, group_norms, manifest, original_vae_names, seed_of, without

CASES = {
    "default": {},
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "stale": dict(stale=True),
    "hard": dict(captions=HARD),
}


def of_wan(base, dtype):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from toolkit.models.loaders.umt5 import get_umt5_encoder
    from toolkit.models.wan21.wan21 import Wan21

    sd = Wan21.__new__(Wan21)
    sd.tokenizer, sd.text_encoder = get_umt5_encoder(
        model_path=str(base), tokenizer_subfolder="tokenizer", encoder_subfolder="text_encoder", torch_dtype=dtype, comfy_files=False,
    )
    sd.vae = AutoencoderKLWan.from_pretrained(base / "vae").to(dtype).eval()
    sd.pipeline = WanPipeline(
        scheduler=UniPCMultistepScheduler(), text_encoder=sd.text_encoder, tokenizer=sd.tokenizer, vae=sd.vae, transformer=None
    )
    return sd


def of_klein(base, dtype):
    import json

    from diffusers import FlowMatchEulerDiscreteScheduler
    from extensions_built_in.diffusion_models.flux2.flux2_klein_model import Flux2Klein4BModel
    from extensions_built_in.diffusion_models.flux2.src.autoencoder import AutoEncoder, AutoEncoderParams
    from extensions_built_in.diffusion_models.flux2.src.pipeline import Flux2Pipeline
    from safetensors.torch import load_file
    from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

    sd = Flux2Klein4BModel.__new__(Flux2Klein4BModel)
    sd.tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer")
    sd.text_encoder = Qwen3ForCausalLM.from_pretrained(base / "text_encoder", dtype=dtype).eval()
    config = json.loads((base / "vae/config.json").read_text())
    state = load_file(base / "vae/diffusion_pytorch_model.safetensors")
    ch = config["block_out_channels"][0]
    undo = group_norms(config["norm_num_groups"])
    try:
        sd.vae = AutoEncoder(AutoEncoderParams(
            ch=ch, ch_mult=[c // ch for c in config["block_out_channels"]], num_res_blocks=config["layers_per_block"],
            z_channels=config["latent_channels"],
        ))  # fmt: skip
    finally:
        undo()
    renamed = original_vae_names(state)
    renamed |= {f"encoder.quant_conv.{key}": state[f"quant_conv.{key}"] for key in ("weight", "bias")}
    # The miniature's decoder has other widths than its encoder.
    own = {key: value.float() for key, value in renamed.items() if key.startswith(("encoder.", "bn."))}
    missing, left = sd.vae.load_state_dict(own, strict=False)
    assert not left and all(key.startswith("decoder.") for key in missing), (missing, left)
    sd.vae = sd.vae.to(dtype).eval()
    sd.pipeline = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=sd.vae, text_encoder=sd.text_encoder, tokenizer=sd.tokenizer, transformer=None,
        text_encoder_type="qwen",
    )
    return sd


def of_zimage(base, dtype):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline
    from extensions_built_in.diffusion_models.z_image.z_image import ZImageModel
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    sd = ZImageModel.__new__(ZImageModel)
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
    encoder = Qwen3ForCausalLM.from_pretrained(base / "text_encoder", dtype=dtype).eval()
    sd.tokenizer, sd.text_encoder = [tokenizer], [encoder]
    sd.vae = AutoencoderKL.from_pretrained(base / "vae").to(dtype).eval()
    sd.pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=sd.vae, text_encoder=encoder, tokenizer=tokenizer, transformer=None
    )
    return sd


def of_chroma(base, dtype):
    from types import SimpleNamespace

    from diffusers import AutoencoderKL
    from extensions_built_in.diffusion_models.chroma.chroma_model import ChromaModel, FakeCLIP
    from transformers import T5EncoderModel, T5TokenizerFast

    sd = ChromaModel.__new__(ChromaModel)
    sd.vae = AutoencoderKL.from_pretrained(base / "vae").to(dtype).eval()
    # The first of each stands for a CLIP that the model has not.
    clip = FakeCLIP()
    clip.device = "cpu"
    sd.tokenizer = [clip, T5TokenizerFast.from_pretrained(base / "tokenizer")]
    sd.text_encoder = [clip, T5EncoderModel.from_pretrained(base / "text_encoder", dtype=dtype).eval()]
    sd.pipeline = SimpleNamespace(text_encoder=sd.text_encoder[1])
    return sd


FAMILIES = {"chroma": of_chroma, "wan": of_wan, "flux2": of_klein, "zimage": of_zimage}


def model_of(family, base, dtype):
    """The toolkit's model object with what encoding reads."""
    from types import SimpleNamespace

    import torch

    sd = FAMILIES[family](base, dtype)
    sd.arch = type(sd).arch
    sd.model_config = SimpleNamespace(arch=sd.arch, latent_space_version=None, is_pixart_sigma=False, low_vram=False)
    sd.device = "cpu"
    sd.device_torch = sd.vae_device_torch = sd.te_device_torch = torch.device("cpu")
    sd.torch_dtype = sd.vae_torch_dtype = sd.te_torch_dtype = dtype
    sd.model = SimpleNamespace(config=SimpleNamespace())
    sd.encode_control_in_text_embeddings = sd.use_raw_control_images = sd.supports_video_control_images = False
    sd.has_multiple_control_images = False
    sd.latent_space_version = sd.adapter = None
    sd.te_padding_side = "right"
    sd.set_device_state_preset = lambda *_: None
    sd.restore_device_state = lambda: None
    return sd


def alone(trainer):
    """Lets the modules of these models be imported without those of all others, which ask for the GPU and for newer packages."""
    import types

    for name in ("extensions_built_in", "extensions_built_in.diffusion_models"):
        package = types.ModuleType(name)
        package.__path__ = [str(trainer / name.replace(".", "/"))]
        sys.modules[name] = package


def data_set(folder, sd):
    from toolkit.config_modules import DatasetConfig
    from toolkit.data_loader import AiToolkitDataset

    config = DatasetConfig(
        folder_path=str(folder), resolution=128, cache_latents_to_disk=True, cache_text_embeddings=True, caption_ext="txt",
    )
    return AiToolkitDataset(config, batch_size=1, sd=sd)


def run(args, name, case):
    import torch
    from toolkit.data_loader import AiToolkitDataset

    folder = args.out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    sd = model_of(args.family, args.model, getattr(torch, case.get("dtype", "float32")))
    real, files = sd.encode_images, iter(())

    def seeded(images, *rest, **more):
        torch.manual_seed(seed_of(Path(next(files)).name))
        return real(images, *rest, **more)

    sd.encode_images = seeded
    cache = AiToolkitDataset.cache_latents_all_latents

    def in_order(self):
        nonlocal files
        files = iter([item.path for item in self.file_list])
        cache(self)

    AiToolkitDataset.cache_latents_all_latents = in_order
    try:
        with torch.no_grad():
            # The data set's constructor ends by caching what it is told to.
            data_set(folder, sd)
    finally:
        AiToolkitDataset.cache_latents_all_latents = cache
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="ostris/ai-toolkit", revision=REVISION, family=args.family, model=str(args.model), case=name, variant="ai-toolkit",
        changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [], latents={"seeds": {k: seed_of(k) for k in captions}, "resolution": 128},
        options={k: v for k, v in case.items() if k == "dtype"},
    )


def main():
    args = arguments(__doc__, list(FAMILIES))
    sys.path.insert(0, str(args.trainer))
    without(*ABSENT)
    alone(args.trainer)
    for name, case in CASES.items():
        if args.only in (None, name):
            run(args, name, case)


if __name__ == "__main__":
    main()
