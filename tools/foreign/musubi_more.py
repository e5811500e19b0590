"""Caches of text encoder outputs and latents by kohya-ss/musubi-tuner, of Wan 2.1, FLUX.2 klein and Z-Image, on their miniatures.

Runs, of the tuner: encode_and_save_batch of {wan,flux_2,zimage}_cache_text_encoder_outputs.py and ..._cache_latents.py, which save through
dataset/cache_io.py; ImageDataset and VideoDataset of dataset/image_video_dataset.py for captions, buckets, windows of clips and names. Not its
own: the networks are made with the miniatures' sizes, as its loaders have the released models' written into them, and the tokenizers come
from the miniatures' folders in place of the hub.

    python tools/tiny_wan.py MODEL
    python tools/foreign/musubi_more.py --trainer CLONE --family wan --model MODEL --out FOLDER

Revision: 30c658c (2026-06-24), with transformers 4.57.6, ftfy 6.3.1, diffusers 0.32.1, as it asks for. A miniature's folder is written with
transformers 5, whose tokenizers are copied for transformers 4.
"""

import contextlib
import json
import sys

import wan
from common import ASSETS, CAPTIONS, HARD, arguments, dataset, group_norms, manifest, original_vae_names, without

REVISION = "30c658c4f4b0bf05038b3346eff9670259b10fc7"
CASES = {
    "default": dict(dtype="float32"),
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "stale": dict(dtype="float32", stale=True),
    "hard": dict(dtype="float32", captions=HARD),
}
ABSENT = ("av", "bitsandbytes", "easydict", "flash_attn", "sageattention", "xformers")


def loaded(folder, name):
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    return config, {key: tensor.float() for key, tensor in load_file(folder / f"{name}.safetensors").items()}


@contextlib.contextmanager
def without_autocast(*modules):
    """torch.autocast refuses f32 on a CPU, where it would do nothing."""
    import torch

    real, inner = torch.autocast, torch.amp.autocast
    torch.autocast = torch.amp.autocast = lambda *_, **__: contextlib.nullcontext()
    try:
        yield
    finally:
        torch.autocast, torch.amp.autocast = real, inner


class OfWan:
    architecture = "wan"

    def __init__(self, base, out, dtype):
        import torch

        # A default value of its module asks for the GPU.
        torch.cuda.current_device = lambda: 0
        from musubi_tuner.wan.modules.t5 import T5EncoderModel, _t5
        from musubi_tuner.wan.modules.tokenizers import HuggingfaceTokenizer
        from musubi_tuner.wan.modules.vae import WanVAE, WanVAE_

        config, state = loaded(base / "text_encoder", "model")
        network = _t5("umt5", encoder_only=True, **wan.umt5_sizes(config))
        network.load_state_dict(wan.umt5(state), strict=True)
        tokenizer = wan.tokenizer(base, out)
        encoder = T5EncoderModel.__new__(T5EncoderModel)
        encoder.model = network.eval().to(dtype)
        encoder.tokenizer = HuggingfaceTokenizer(name=str(tokenizer), seq_len=512, clean="whitespace")
        self.encoder = encoder

        config, state = loaded(base / "vae", "diffusion_pytorch_model")
        vae = WanVAE.__new__(WanVAE)
        vae.dtype, vae.device = torch.float32, torch.device("cpu")
        vae.model = WanVAE_(**wan.vae_sizes(config))
        vae.model.load_state_dict(wan.vae(state, config), strict=True)
        vae.model.eval().requires_grad_(False)
        vae.scale = [torch.tensor(config["latents_mean"]), 1.0 / torch.tensor(config["latents_std"])]
        self.vae = vae

    def texts(self, batch):
        import musubi_tuner.wan_cache_text_encoder_outputs as texts
        import torch

        texts.encode_and_save_batch(self.encoder, batch, torch.device("cpu"), None)

    def latents(self, batch):
        import musubi_tuner.wan_cache_latents as latents

        latents.encode_and_save_batch(self.vae, None, False, batch)


def qwen3(base, out, dtype):
    """The tokenizer and the network, as transformers 4 reads what transformers 5 wrote."""
    import shutil

    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = out / "tokenizers/qwen3"
    shutil.copytree(base / "tokenizer", folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("backend", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    config, state = loaded(base / "text_encoder", "model")
    config["rope_theta"] = config.get("rope_parameters", {}).get("rope_theta", config.get("rope_theta"))
    config.pop("rope_parameters", None)
    network = Qwen3ForCausalLM(Qwen3Config(**{key: value for key, value in config.items() if key != "dtype"}))
    missing, left = network.load_state_dict(state, strict=False)
    assert not left and missing in ([], ["lm_head.weight"]), (missing, left)
    return Qwen2TokenizerFast.from_pretrained(folder), network.eval().to(dtype)


class OfKlein:
    architecture = "f2k4b"

    def __init__(self, base, out, dtype):
        from musubi_tuner.flux_2.flux2_models import AutoEncoder, AutoEncoderParams
        from musubi_tuner.flux_2.flux2_utils import Qwen3Embedder

        self.encoder = Qwen3Embedder(*qwen3(base, out, dtype))
        config, state = loaded(base / "vae", "diffusion_pytorch_model")
        ch = config["block_out_channels"][0]
        mult = [c // ch for c in config["block_out_channels"]]
        undo = group_norms(config["norm_num_groups"])
        try:
            self.ae = AutoEncoder(AutoEncoderParams(ch=ch, ch_mult=mult, num_res_blocks=config["layers_per_block"], z_channels=config["latent_channels"]))
        finally:
            undo()
        renamed = original_vae_names(state)
        renamed |= {f"encoder.quant_conv.{key}": state[f"quant_conv.{key}"] for key in ("weight", "bias")}
        # The miniature's decoder has other widths than its encoder, which the tuner's code does not have.
        own = {key: value for key, value in renamed.items() if key.startswith(("encoder.", "bn."))}
        missing, left = self.ae.load_state_dict(own, strict=False)
        assert not left and all(key.startswith("decoder.") for key in missing), (missing, left)
        self.ae.eval()

    def texts(self, batch):
        import musubi_tuner.flux_2_cache_text_encoder_outputs as texts
        import torch

        texts.encode_and_save_batch(self.encoder, batch, torch.device("cpu"), "flux_2_klein_4b")

    def latents(self, batch):
        import musubi_tuner.flux_2_cache_latents as latents

        latents.encode_and_save_batch(self.ae, batch, "flux_2_klein_4b")


class OfZImage:
    architecture = "zi"

    def __init__(self, base, out, dtype):
        from musubi_tuner.zimage.zimage_autoencoder import AutoencoderKL

        self.tokenizer, self.encoder = qwen3(base, out, dtype)
        config, state = loaded(base / "vae", "diffusion_pytorch_model")
        self.vae = AutoencoderKL(**{key: value for key, value in config.items() if not key.startswith("_")})
        self.vae.load_state_dict(state, strict=True)
        self.vae.eval()

    def texts(self, batch):
        import musubi_tuner.zimage_cache_text_encoder_outputs as texts
        import torch

        texts.encode_and_save_batch(self.tokenizer, self.encoder, batch, torch.device("cpu"))

    def latents(self, batch):
        import musubi_tuner.zimage_cache_latents as latents

        latents.encode_and_save_batch(self.vae, batch)


FAMILIES = {"wan": OfWan, "flux2": OfKlein, "zimage": OfZImage}


def image_dataset(folder, architecture):
    from musubi_tuner.dataset.image_video_dataset import ImageDataset

    return ImageDataset(
        resolution=(128, 128), caption_extension=".txt", batch_size=1, num_repeats=1, enable_bucket=True, bucket_no_upscale=False,
        image_directory=str(folder), cache_directory=str(folder), architecture=architecture,
    )


def video_dataset(folder, architecture):
    from musubi_tuner.dataset.image_video_dataset import VideoDataset

    lines = folder / "clips.jsonl"
    lines.write_text(json.dumps({"video_path": str(folder / wan.CLIP), "caption": wan.CAPTION}) + "\n")
    return VideoDataset(
        resolution=(wan.SIDE, wan.SIDE), caption_extension=".txt", batch_size=1, num_repeats=1, enable_bucket=False, bucket_no_upscale=False,
        frame_extraction="slide", frame_stride=4, target_frames=[5], video_jsonl_file=str(lines), cache_directory=str(folder),
        architecture=architecture,
    )


def run(args, name, case):
    import torch

    folder = args.out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    of = FAMILIES[args.family](args.model, args.out, getattr(torch, case["dtype"]))
    if args.family == "wan":
        wan.clip(folder, ASSETS / "tiny-style/train/01.png")

    def sets():
        yield image_dataset(folder, of.architecture)
        if args.family == "wan":
            yield video_dataset(folder, of.architecture)

    with without_autocast() if case["dtype"] == "float32" else contextlib.nullcontext():
        for files in sets():
            for batch in files.retrieve_text_encoder_output_cache_batches(1):
                of.texts(batch)
    for files in sets():
        for _, batch in files.retrieve_latent_cache_batches(1):
            with without_autocast():
                of.latents(batch)
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="kohya-ss/musubi-tuner", revision=REVISION, family=args.family, model=str(args.model), case=name, variant="musubi",
        changed=case.get("changed", {}), dtype=case["dtype"], captions=captions, stale=["01.png"] if case.get("stale") else [],
        latents={"resolution": 128, "is": "mean, as the denoiser takes it"}, options={"dtype": case["dtype"]},
    )


def main():
    args = arguments(__doc__, list(FAMILIES))
    sys.path.insert(0, str(args.trainer / "src"))
    without(*ABSENT)
    for name, case in CASES.items():
        if args.only in (None, name):
            run(args, name, case)


if __name__ == "__main__":
    main()
