"""Caches of text embeddings and latents by tdrussell/diffusion-pipe, on the miniatures of SD3, FLUX.1 and Wan 2.1.

Runs, of diffusion-pipe: SD3Pipeline and its get_call_text_encoder_fn and get_call_vae_fn; FluxPipeline's get_call_text_encoder_fn; Cache of
utils/cache.py, which writes metadata.db and shard_N.bin. Not its own: utils/dataset.py, which spreads the work over GPU processes (the
order of entries is that of the file names here), and the constructors of FLUX.1 and Wan, which want files of the released sizes. It does
not cache the text embeddings of SDXL (models/sdxl.py get_text_encoders); those of FLUX.2 and Z-Image are encoded by ComfyUI's code.

    python tools/foreign/diffusionpipe.py --trainer CLONE --family sd3 --out FOLDER
    python tools/foreign/diffusionpipe.py --trainer CLONE --family wan --model MODEL --out FOLDER      (MODEL: tools/tiny_wan.py MODEL)

Revision: 8f83dbf (2026-08-20), with transformers 5.23.0, diffusers 0.42.1, easydict 1.14.
"""

import json
import sqlite3
import sys

import wan
from common import ASSETS, CAPTIONS, HARD, arguments, dataset, manifest, seed_of, without

REVISION = "8f83dbf25d03219df705570ec03e62be04bc402f"
FAMILIES = {"sd3": "tiny-sd3", "flux1": "tiny-flux", "wan": None}
CASES = {
    "default": {},
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "stale": dict(stale=True),
    "hard": dict(captions=HARD),
}


def pipeline_of(family, base, dtype):
    import diffusers

    if family == "sd3":
        from models.sd3 import SD3Pipeline

        return SD3Pipeline({"model": {"dtype": dtype, "diffusers_path": str(base)}})
    from models.flux import FluxPipeline

    pipeline = FluxPipeline.__new__(FluxPipeline)
    pipeline.diffusers_pipeline = diffusers.FluxPipeline.from_pretrained(base, torch_dtype=dtype, transformer=None)
    return pipeline


def wan_pipeline(base, out, dtype):
    import torch
    from safetensors.torch import load_file

    # A default value of its module asks for the GPU.
    torch.cuda.current_device = lambda: 0
    from models.wan.t5 import T5EncoderModel, _t5
    from models.wan.tokenizers import HuggingfaceTokenizer
    from models.wan.vae2_1 import Wan2_1_VAE, WanVAE_
    from models.wan.wan import VaeAndClip, WanPipeline

    def loaded(part, name):
        state = load_file(base / part / f"{name}.safetensors")
        return json.loads((base / part / "config.json").read_text()), {key: tensor.float() for key, tensor in state.items()}

    pipeline = WanPipeline.__new__(WanPipeline)
    pipeline.model_type, pipeline.cache_text_embeddings = "t2v", True
    config, state = loaded("text_encoder", "model")
    encoder = T5EncoderModel.__new__(T5EncoderModel)
    encoder.model = _t5("umt5", encoder_only=True, dtype=dtype, **wan.umt5_sizes(config))
    encoder.model.load_state_dict(wan.umt5(state), strict=True)
    encoder.model.eval()
    encoder.tokenizer = HuggingfaceTokenizer(name=str(wan.tokenizer(base, out)), seq_len=512, clean="whitespace")
    pipeline.text_encoder = encoder
    config, state = loaded("vae", "diffusion_pytorch_model")
    vae = Wan2_1_VAE.__new__(Wan2_1_VAE)
    vae.model = WanVAE_(**wan.vae_sizes(config))
    vae.model.load_state_dict(wan.vae(state, config), strict=True)
    vae.model.eval().requires_grad_(False)
    vae.scale = [torch.tensor(config["latents_mean"]), 1.0 / torch.tensor(config["latents_std"])]
    pipeline.vae = vae
    pipeline.get_vae = lambda: VaeAndClip(vae.model, None)
    pipeline.get_text_encoders = lambda: [encoder.model]
    return pipeline


def run(family, model, name, case, out):
    import numpy as np
    import torch
    from PIL import Image
    from utils.cache import Cache

    folder = out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    dtype = getattr(torch, case.get("dtype", "float32"))
    pipeline = wan_pipeline(model, out, dtype) if family == "wan" else pipeline_of(family, ASSETS / FAMILIES[family], dtype)
    for i, encoder in enumerate(pipeline.get_text_encoders()):
        encode = pipeline.get_call_text_encoder_fn(encoder)
        cache = Cache(folder / f"cache/{family}/text_embeddings_{i + 1}", "tiny")
        with torch.no_grad():
            for caption in captions.values():
                batch = encode([caption], [False])
                cache.add({key: value[0].clone() for key, value in batch.items()} | {"caption": caption})
        cache.finalize_current_shard()
    cache = Cache(folder / f"cache/{family}/latents", "tiny")
    encode = pipeline.get_call_vae_fn(pipeline.get_vae())
    for file in captions:
        picture = Image.open(folder / file).convert("RGB").resize((128, 128), Image.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        pixels = pixels.unsqueeze(2) if family == "wan" else pixels
        torch.manual_seed(seed_of(file))
        with torch.no_grad():
            # FLUX.1's function scales the pixels itself as well.
            cache.add({"latents": encode(pixels)["latents"][0].clone(), "image_file": file})
    cache.finalize_current_shard()
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="tdrussell/diffusion-pipe", revision=REVISION, family=family, model=str(model or FAMILIES[family]), case=name,
        variant="diffusion-pipe", changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [], texts={"folder": f"cache/{family}"},
        latents={"seeds": {k: seed_of(k) for k in captions}, "folder": f"cache/{family}/latents"},
        options={k: v for k, v in case.items() if k == "dtype"},
    )


def main():
    args = arguments(__doc__, list(FAMILIES))
    sys.path.insert(0, str(args.trainer))
    without("bitsandbytes", "comfy", "deepspeed", "flash_attn", "hyvideo", "imageio", "ltx_video", "torchaudio", "comfy_api", "wandb", "xformers")
    real = sqlite3.connect
    # `autocommit` came with Python 3.12.
    sqlite3.connect = lambda *a, autocommit=None, **k: real(*a, **k)
    for name, case in CASES.items():
        if args.only in (None, name):
            run(args.family, args.model, name, case, args.out)


if __name__ == "__main__":
    main()
