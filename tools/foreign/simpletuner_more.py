"""Caches of text embeddings and latents by bghira/SimpleTuner, of Chroma1, Wan 2.1, FLUX.2 klein and Z-Image, on their
miniatures.

Runs, of SimpleTuner: TextEmbeddingCache.compute_prompt_embeddings_with_model with the model classes' _encode_prompts and
_format_text_embedding; the models' encode_cache_batch, post_vae_encode_transform_sample and scale_vae_latents_for_cache, VAECache's
prepare_video_latents, process_video_latents and generate_vae_cache_filename; LocalDataBackend.torch_save. Not its own: the objects are
made without their loaders, and pictures are the squares alone, which need neither scaling nor a bucket.

    python tools/tiny_wan.py MODEL
    python tools/foreign/simpletuner_more.py --trainer CLONE --family wan --model MODEL --out FOLDER

Revision: bc8e6ab (2026-08-22), with transformers 5.23.0, diffusers 0.42.1.
"""

import os
import sys
from types import SimpleNamespace

from common import CAPTIONS, HARD, arguments, dataset, manifest, seed_of, without
from simpletuner_caches import REVISION

CASES = {
    "default": {},
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    # Rows behind the one pad that the denoiser sees are zeros, and the files are packed by gzip (`--compress_disk_cache`).
    "t5-padding-zero": dict(t5_padding="zero", compress=True, dtype="bfloat16", only=["chroma"], changed={"dtype": "bf16"}),
    "stale": dict(stale=True),
    "hard": dict(captions=HARD),
}


def of_wan(model, base, dtype):
    from diffusers import AutoencoderKLWan
    from simpletuner.helpers.models.common import PipelineTypes
    from simpletuner.helpers.models.wan.pipeline import WanPipeline
    from transformers import T5TokenizerFast, UMT5EncoderModel

    model.tokenizers = [T5TokenizerFast.from_pretrained(base / "tokenizer")]
    model.text_encoders = [UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=dtype).eval()]
    pipeline = WanPipeline.__new__(WanPipeline)
    pipeline.tokenizer, pipeline.text_encoder = model.tokenizers[0], model.text_encoders[0]
    model.pipelines = {PipelineTypes.TEXT2IMG: pipeline}
    return AutoencoderKLWan.from_pretrained(base / "vae").float().eval()


def of_klein(model, base, dtype):
    from diffusers import AutoencoderKLFlux2
    from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

    model.config.model_flavour = "klein-4b"
    model._qwen_tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer")
    model._qwen_model = Qwen3ForCausalLM.from_pretrained(base / "text_encoder", dtype=dtype).eval()
    model.tokenizers, model.text_encoders = [model._qwen_tokenizer], [model._qwen_model]
    vae = AutoencoderKLFlux2.from_pretrained(base / "vae").float().eval()
    model.vae = vae
    model._patchify_latents, channels = type(model)._patchify_latents, vae.config.latent_channels
    # It tells latents that are not yet patches by the released VAE's channels.
    real = type(model).post_vae_encode_transform_sample

    def post(sample):
        sample = sample.latent_dist.mode()
        assert sample.shape[1] == channels
        return real(model, model._patchify_latents(sample))

    model.post_vae_encode_transform_sample = post
    return vae


def of_zimage(model, base, dtype):
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    model.tokenizers = [AutoTokenizer.from_pretrained(base / "tokenizer")]
    model.text_encoders = [Qwen3ForCausalLM.from_pretrained(base / "text_encoder", dtype=dtype).eval()]
    return AutoencoderKL.from_pretrained(base / "vae").float().eval()


def of_chroma(model, base, dtype):
    from diffusers import AutoencoderKL
    from simpletuner.helpers.models.chroma.pipeline import ChromaPipeline
    from simpletuner.helpers.models.common import PipelineTypes
    from transformers import AutoTokenizer, T5EncoderModel

    model.tokenizers = [AutoTokenizer.from_pretrained(base / "tokenizer")]
    model.text_encoders = [T5EncoderModel.from_pretrained(base / "text_encoder", dtype=dtype).eval()]
    pipeline = ChromaPipeline.__new__(ChromaPipeline)
    pipeline.tokenizer, pipeline.text_encoder = model.tokenizers[0], model.text_encoders[0]
    model.pipelines = {PipelineTypes.TEXT2IMG: pipeline}
    return AutoencoderKL.from_pretrained(base / "vae").float().eval()


def kind_of(family):
    if family == "chroma":
        from simpletuner.helpers.models.chroma.model import Chroma

        return Chroma, of_chroma
    if family == "wan":
        from simpletuner.helpers.models.wan.model import Wan

        return Wan, of_wan
    if family == "flux2":
        from simpletuner.helpers.models.flux2.model import Flux2

        return Flux2, of_klein
    from simpletuner.helpers.models.z_image.model import ZImage

    return ZImage, of_zimage


# Of the family, and its `model_family`.
FAMILIES = {"wan": "wan", "flux2": "flux2", "zimage": "z_image", "chroma": "chroma"}


def model_of(family, base, dtype, t5_padding="unmodified"):
    """The tuner's model object with what encoding reads, and a VAE."""
    import torch
    from simpletuner.helpers.training.state_tracker import StateTracker

    kind, make = kind_of(family)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model) if isinstance(model, torch.nn.Module) else None
    model.config = SimpleNamespace(t5_padding=t5_padding, tokenizer_max_length=512)
    model.accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    vae = make(model, base, dtype)
    StateTracker.set_args(SimpleNamespace(model_family=FAMILIES[family]))
    StateTracker.set_model_family(FAMILIES[family])
    StateTracker.get_webhook_handler = classmethod(lambda _: None)
    return model, vae


def text_cache(model, family, folder, compress=False):
    from simpletuner.helpers.caching.text_embeds import TextEmbeddingCache
    from simpletuner.helpers.data_backend.local import LocalDataBackend

    backend = LocalDataBackend(SimpleNamespace(is_main_process=True, num_processes=1), "texts", compress_cache=compress)
    cache = TextEmbeddingCache(
        "texts", backend, model.text_encoders, model.tokenizers, model.accelerator, cache_dir=str(folder), model_type=FAMILIES[family],
        model=model,
    )
    cache.webhook_handler = None
    return backend, cache


def vae_cache(folder, pictures, vae):
    from simpletuner.helpers.caching.vae import VAECache

    cache = VAECache.__new__(VAECache)
    cache.cache_dir, cache.instance_data_dir, cache.hash_filenames = str(folder), str(pictures), True
    cache.image_data_backend = SimpleNamespace()
    cache.vae, cache.num_video_frames = vae, None
    return cache


def latents(folder, captions, model, vae, backend, family):
    import numpy as np
    import torch
    from PIL import Image

    cache = vae_cache(folder / "cache/vae", folder, vae)
    os.makedirs(cache.cache_dir)
    for name in captions:
        picture = Image.open(folder / name).convert("RGB")
        if picture.width != picture.height:
            continue
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.manual_seed(seed_of(name))
        with torch.no_grad():
            made = model.encode_cache_batch(vae, cache.prepare_video_latents(pixels))
            made = model.post_vae_encode_transform_sample(made)
            if hasattr(made, "latent_dist"):
                made = made.latent_dist.parameters if family == "wan" else made.latent_dist.sample()
            made = model.scale_vae_latents_for_cache(cache.process_video_latents(made), vae)[0]
        backend.torch_save(made, cache.generate_vae_cache_filename(str(folder / name))[0])


def run(args, name, case):
    import torch

    folder = args.out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    dtype = getattr(torch, case.get("dtype", "float32"))
    model, vae = model_of(args.family, args.model, dtype, case.get("t5_padding", "unmodified"))
    backend, cache = text_cache(model, args.family, folder / "cache/text", case.get("compress", False))
    cache.compute_prompt_embeddings_with_model(
        [{"prompt": text, "key": text, "metadata": {}} for text in captions.values()], return_concat=False, load_from_cache=False,
        split_between_processes=False,
    )
    cache.process_write_batches = False
    cache.batch_write_thread.join()
    latents(folder, captions, model, vae, backend, args.family)
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="bghira/SimpleTuner", revision=REVISION, family=args.family, model=str(args.model), case=name, variant="simpletuner",
        changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [],
        latents={"seeds": {k: seed_of(k) for k in captions}, "folder": "cache/vae"}, texts={"folder": "cache/text"},
        options={k: v for k, v in case.items() if k in ("t5_padding", "compress", "dtype")},
    )


def main():
    args = arguments(__doc__, list(FAMILIES))
    sys.path.insert(0, str(args.trainer))
    without("kernels", "opentelemetry")
    for name, case in CASES.items():
        if args.only in (None, name) and args.family in case.get("only", FAMILIES):
            run(args, name, case)


if __name__ == "__main__":
    main()
