"""Caches of text embeddings and latents by ostris/ai-toolkit, on the miniatures.

Runs, of the toolkit: AiToolkitDataset (captions, buckets, cache_text_embeddings, cache_latents_all_latents), StableDiffusion.encode_prompt
and .encode_images, PromptEmbeds.save. Not its own: the StableDiffusion object is made without its loader, which downloads.

    python tools/foreign/aitoolkit.py --trainer CLONE --family flux1 --out FOLDER

Revision: 27a03a9 (2026-08-21), with transformers 5.23.0 (the toolkit asks for 5.5.3).
"""

import sys
from pathlib import Path

from common import ASSETS, CAPTIONS, HARD, arguments, dataset, manifest, seed_of, without

REVISION = "27a03a91f23eb1b757d5ec2e80ee3e129cfcc350"
FAMILIES = {"sd3": ("tiny-sd3", "sd3"), "flux1": ("tiny-flux", "flux"), "sdxl": ("tiny-sdxl", "sdxl")}
CASES = {
    "default": {},
    "attn-masking": dict(attn_masking=True, only=["flux1"], changed={"assembly.pads.t5": "zero"}),
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "fp16": dict(dtype="float16", changed={"dtype": "f16"}),
    "stale": dict(stale=True),
    "hard": dict(captions=HARD),
}
ABSENT = (
    "albumentations av bitsandbytes came_pytorch controlnet_aux dctorch einops_exts flash_attn gradio hf_transfer invisible_watermark "
    "k_diffusion kernels kornia librosa lion_pytorch lpips lycoris matplotlib onnxruntime open_clip optimi optimum prodigyopt "
    "pytorch_fid pytorch_wavelets scipy soundfile timm torchao torchaudio wandb xformers"
).split()


def stable_diffusion(family, arch, base, dtype, attn_masking):
    """The toolkit's model object with what encoding reads."""
    from types import SimpleNamespace

    import torch
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline
    from toolkit.stable_diffusion_model import StableDiffusion
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    sd = StableDiffusion.__new__(StableDiffusion)
    clip_1 = CLIPTextModelWithProjection if family == "sd3" else CLIPTextModel
    kinds = {
        "sd3": [(CLIPTokenizer, clip_1), (CLIPTokenizer, CLIPTextModelWithProjection), (T5TokenizerFast, T5EncoderModel)],
        "flux1": [(CLIPTokenizer, clip_1), (T5TokenizerFast, T5EncoderModel)],
        "sdxl": [(CLIPTokenizer, clip_1), (CLIPTokenizer, CLIPTextModelWithProjection)],
    }[family]
    names = ["", "_2", "_3"]
    sd.tokenizer = [k.from_pretrained(base / f"tokenizer{n}") for (k, _), n in zip(kinds, names)]
    sd.text_encoder = [k.from_pretrained(base / f"text_encoder{n}", dtype=dtype).eval() for (_, k), n in zip(kinds, names)]
    sd.vae = AutoencoderKL.from_pretrained(base / "vae").to(dtype).eval()
    sd.arch = arch
    sd.model_config = SimpleNamespace(
        arch=arch, attn_masking=attn_masking, latent_space_version=None, is_pixart_sigma=False, use_long_prompts=False,
    )
    sd.device = "cpu"
    sd.device_torch = sd.vae_device_torch = torch.device("cpu")
    sd.torch_dtype = sd.vae_torch_dtype = dtype
    sd.unet = SimpleNamespace(config=SimpleNamespace())
    sd.encode_control_in_text_embeddings = sd.use_raw_control_images = sd.supports_video_control_images = False
    sd.has_multiple_control_images = False
    sd.latent_space_version = sd.adapter = None
    sd.te_padding_side = "right"
    sd.set_device_state_preset = lambda *_: None
    sd.restore_device_state = lambda: None
    if family == "sd3":
        sd.pipeline = StableDiffusion3Pipeline(
            None, None, sd.vae, sd.text_encoder[0], sd.tokenizer[0], sd.text_encoder[1], sd.tokenizer[1], sd.text_encoder[2],
            sd.tokenizer[2],
        )
    return sd


def run(family, name, case, out):
    import torch
    from toolkit.config_modules import DatasetConfig
    from toolkit.data_loader import AiToolkitDataset

    model, arch = FAMILIES[family]
    folder = out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    dtype = getattr(torch, case.get("dtype", "float32"))
    sd = stable_diffusion(family, arch, ASSETS / model, dtype, case.get("attn_masking", False))
    real = sd.encode_images
    files = iter(())

    def seeded(images, *rest, **more):
        torch.manual_seed(seed_of(Path(next(files)).name))
        with torch.no_grad():
            return real(images, *rest, **more)

    sd.encode_images = seeded
    with torch.no_grad():
        # The data set's constructor ends by caching what it is told to.
        config = DatasetConfig(
            folder_path=str(folder), resolution=128, cache_latents_to_disk=True, cache_text_embeddings=True, caption_ext="txt",
        )
        cache = AiToolkitDataset.cache_latents_all_latents

        def in_order(self):
            nonlocal files
            files = iter([item.path for item in self.file_list])
            cache(self)

        AiToolkitDataset.cache_latents_all_latents = in_order
        try:
            AiToolkitDataset(config, batch_size=1, sd=sd)
        finally:
            AiToolkitDataset.cache_latents_all_latents = cache
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="ostris/ai-toolkit", revision=REVISION, family=family, model=model, case=name, variant="ai-toolkit",
        changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [],
        latents={"seeds": {k: seed_of(k) for k in captions}, "resolution": 128, "is": "sample, scaled and shifted"},
        options={k: v for k, v in case.items() if k in ("attn_masking", "dtype")},
    )


def main():
    args = arguments(__doc__, list(FAMILIES))
    sys.path.insert(0, str(args.trainer))
    without(*ABSENT)
    for name, case in CASES.items():
        if args.only in (None, name) and args.family in case.get("only", FAMILIES):
            run(args.family, name, case, args.out)


if __name__ == "__main__":
    main()
