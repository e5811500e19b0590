"""Caches of text embeddings and latents by bghira/SimpleTuner, on the miniatures.

Runs, of the tuner: TextEmbeddingCache.compute_embeddings_for_prompts (file names, writing by LocalDataBackend.torch_save), the _encode_prompts
and _format_text_embedding of its SD3, Flux and SDXL classes, and their check_user_config where it sets the length; of VAECache the file
names, and encode_cache_batch of the model. Not its own: the model objects are made without their loaders, the encoders are opened by
transformers, and the picture is brought to size by Pillow (the tuner does it in a metadata backend that scans the data set first).

    python tools/foreign/simpletuner_caches.py --trainer CLONE --family sd3 --out FOLDER

Revision: bc8e6ab (2026-08-22), with transformers 5.23.0, diffusers 0.42.1.
"""

import os
import sys
from types import SimpleNamespace

from common import ASSETS, CAPTIONS, HARD, arguments, dataset, manifest, seed_of, without

REVISION = "bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb"
FAMILIES = {"sd3": "tiny-sd3", "flux1": "tiny-flux", "sdxl": "tiny-sdxl"}
CASES = {
    "default": {},
    "t5-padding-zero": dict(t5_padding="zero", only=["sd3", "flux1"], changed={"assembly.pads.t5": "zero"}),
    "tokenizer-max-length-77": dict(
        tokenizer_max_length=77, only=["sd3"], changed={"t5.tokens.max_tokens": 77, "t5.tokens.min_tokens": 77}
    ),
    "bf16": dict(dtype="bfloat16", changed={"dtype": "bf16"}),
    "fp16": dict(dtype="float16", changed={"dtype": "f16"}),
    "compressed": dict(compress=True),
    "stale": dict(stale=True),
    "hard": dict(captions=HARD),
}


def model_of(family, base, dtype, case):
    """The tuner's model object with what encoding reads."""
    from simpletuner.helpers.models.common import PipelineTypes
    from simpletuner.helpers.models.flux.model import Flux
    from simpletuner.helpers.models.sd3.model import SD3
    from simpletuner.helpers.models.sdxl.model import SDXL

    import torch

    kind = {"sd3": SD3, "flux1": Flux, "sdxl": SDXL}[family]
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model) if isinstance(model, torch.nn.Module) else None
    length = case.get("tokenizer_max_length") or {"sd3": 154, "flux1": 512, "sdxl": 77}[family]
    model.config = SimpleNamespace(t5_padding=case.get("t5_padding", "unmodified"), tokenizer_max_length=length)
    model.accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    model.tokenizers, model.text_encoders = [], []
    for name, part in kind.TEXT_ENCODER_CONFIGURATION.items():
        encoder = part["model"]
        model.tokenizers.append(part["tokenizer"].from_pretrained(base / part["tokenizer_subfolder"]))
        model.text_encoders.append(encoder.from_pretrained(base / part.get("subfolder", name), dtype=dtype).eval())
    if family == "flux1":
        # Its pipeline of its own tokenizes and encodes.
        pipeline = kind.PIPELINE_CLASSES[PipelineTypes.TEXT2IMG](
            None, None, model.text_encoders[0], model.tokenizers[0], model.text_encoders[1], model.tokenizers[1], None
        )
        model.pipelines = {PipelineTypes.TEXT2IMG: pipeline}
    return model


def run(family, name, case, out):
    import torch
    from diffusers import AutoencoderKL
    from simpletuner.helpers.caching.text_embeds import TextEmbeddingCache
    from simpletuner.helpers.caching.vae import VAECache
    from simpletuner.helpers.data_backend.local import LocalDataBackend
    from simpletuner.helpers.training.state_tracker import StateTracker

    base = ASSETS / FAMILIES[family]
    folder = out / name
    captions = dataset(folder, case.get("captions", CAPTIONS))
    dtype = getattr(torch, case.get("dtype", "float32"))
    model = model_of(family, base, dtype, case)
    StateTracker.set_args(SimpleNamespace(model_family={"flux1": "flux"}.get(family, family)))
    backend = LocalDataBackend(SimpleNamespace(is_main_process=True, num_processes=1), "texts", compress_cache=case.get("compress", False))
    model_type = {"flux1": "flux"}.get(family, family)
    cache = TextEmbeddingCache(
        "texts", backend, model.text_encoders, model.tokenizers, model.accelerator, cache_dir=str(folder / "cache/text"),
        model_type=model_type, model=model,
    )
    cache.webhook_handler = None
    StateTracker.get_webhook_handler = classmethod(lambda _: None)
    cache.compute_prompt_embeddings_with_model(
        [{"prompt": text, "key": text, "metadata": {}} for text in captions.values()], return_concat=False, load_from_cache=False,
        split_between_processes=False,
    )
    cache.process_write_batches = False
    cache.batch_write_thread.join()
    latents(folder, captions, AutoencoderKL.from_pretrained(base / "vae").float().eval(), model, backend, VAECache)
    if case.get("stale"):
        (folder / "01.txt").write_text("a blue circle, edited since\n")
        captions["01.png"] = "a blue circle, edited since"
    manifest(
        folder, trainer="bghira/SimpleTuner", revision=REVISION, family=family, model=FAMILIES[family], case=name, variant="simpletuner",
        changed=case.get("changed", {}), dtype=case.get("dtype", "float32"), captions=captions,
        stale=["01.png"] if case.get("stale") else [],
        latents={"seeds": {k: seed_of(k) for k in captions}, "is": "sample, scaled and shifted", "folder": "cache/vae"}, texts={"folder": "cache/text"},
        options={k: v for k, v in case.items() if k in ("t5_padding", "tokenizer_max_length", "dtype", "compress")},
    )


def latents(folder, captions, vae, model, backend, kind):
    """The squares alone: those pictures need neither scaling nor a bucket."""
    import numpy as np
    import torch
    from PIL import Image

    cache = kind.__new__(kind)
    cache.cache_dir, cache.instance_data_dir, cache.hash_filenames = str(folder / "cache/vae"), str(folder), True
    cache.image_data_backend = SimpleNamespace()
    os.makedirs(cache.cache_dir)
    for name in captions:
        picture = Image.open(folder / name).convert("RGB")
        if picture.width != picture.height:
            continue
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.manual_seed(seed_of(name))
        with torch.no_grad():
            sample = model.encode_cache_batch(vae, pixels).latent_dist.sample()[0]
        backend.torch_save(model.scale_vae_latents_for_cache(sample, vae), cache.generate_vae_cache_filename(str(folder / name))[0])


def main():
    args = arguments(__doc__, list(FAMILIES))
    sys.path.insert(0, str(args.trainer))
    without("kernels", "opentelemetry")
    for name, case in CASES.items():
        if args.only in (None, name) and args.family in case.get("only", FAMILIES):
            run(args.family, name, case, args.out)


if __name__ == "__main__":
    main()
