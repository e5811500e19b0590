"""Shows that a trainer's own loader takes what `plumb export cache` wrote, and encodes nothing anew: its encoders and VAE raise here.

Makes an Experiment on a miniature, encodes it, exports the cache beside the pictures, and lets the trainer's own data set read it.
What comes out is compared with `plumb inspect conditioning` and `plumb inspect latents`, bit for bit where nothing is scaled.

    PLUMB=target/debug/plumb python tools/foreign/load.py kohya --trainer CLONE --family sd3 --out FOLDER

For kohya and musubi with the Python of those scripts, for ai-toolkit and simpletuner with theirs: see kohya.py, aitoolkit.py, ...
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from common import ASSETS, CAPTIONS, arguments, dataset, without

PLUMB = os.environ.get("PLUMB", "plumb")
MODELS = {"sd3": ("tiny-sd3", "3.5-large"), "flux1": ("tiny-flux", "dev"), "sdxl": ("tiny-sdxl", "base-1.0")}


def plumb(*args):
    done = subprocess.run([PLUMB, "--quiet", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"plumb {' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout


def never(*_, **__):
    raise AssertionError("the trainer encodes anew: it did not find the exported entry")


class Never:
    """Stands for an encoder or a VAE."""

    device, dtype, config = "cpu", None, {"block_out_channels": [1, 2, 3, 4]}
    __call__ = encode = encode_prompt = encode_images = never


def exported(args, name, squares=False):
    """The folder of pictures with the trainer's cache in it, the Experiment and the pictures' captions."""
    # Those that are no squares go through buckets, which are plumb's with kohya alone; SimpleTuner takes no caption from an empty line.
    squares = squares or name != "kohya"
    left_out = (("03", "04") if squares else ()) + (("00",) if name == "simpletuner" else ())
    captions = {k: v for k, v in CAPTIONS.items() if k not in left_out}
    folder = args.out / "pictures"
    files = dataset(folder, captions)
    model, flavor = MODELS[args.family]
    experiment = args.out / "exp.toml"
    buckets = "bucket = false" if squares else "bucket_step = 16"
    if name == "musubi":
        # It trains Kontext alone, with a second picture beside each; the miniature's weights are dev's, of the same shapes.
        flavor, beside = "kontext", controls(args.out / "controls", folder, files)
        buckets += f'\nreferences = "{beside}"'
    experiment.write_text(
        f'[model]\nfamily = "{args.family}"\nflavor = "{flavor}"\npath = "{ASSETS / model}"\n[recipe]\nvariant = "reference"\n'
        f'[store]\npath = "{args.out / "store"}"\n'
        f'[[dataset]]\npath = "{folder}"\nresolution = 128\n{buckets}\nallow_empty_captions = true\n'
    )
    out = args.out / "st" if name == "simpletuner" else folder
    plumb("encode", experiment)
    print(plumb("export", "cache", experiment, "--for", name, "--out", out, "--overwrite").strip())
    return folder, experiment, files


def controls(beside, folder, files):
    """The pictures of `folder` upside down, under the same names."""
    from PIL import Image, ImageOps

    beside.mkdir(exist_ok=True)
    for file in files:
        ImageOps.flip(Image.open(folder / file)).save(beside / file)
    return beside


def wanted(experiment, folder, file, caption, temp):
    import torch
    from safetensors.torch import load_file

    plumb("inspect", "conditioning", experiment, "--caption", caption, "--out", temp)
    texts = load_file(temp)
    means = []
    beside = folder.with_name("controls")
    for picture in [folder / file] + [beside / file] * beside.is_dir():
        plumb("inspect", "latents", experiment, "--picture", picture, "--out", temp)
        means.append(load_file(temp)["mean"][0])
    return texts["context"][0], texts["pooled"][0], torch.cat(means, -2)


def normalized(family, mean):
    vae = json.loads((ASSETS / MODELS[family][0] / "vae/config.json").read_text())
    return (mean - (vae.get("shift_factor") or 0)) * vae["scaling_factor"]


def kohya(args, folder, files):
    sys.path.insert(0, str(args.trainer))
    theirs = importlib.import_module("kohya")
    import torch
    from accelerate import Accelerator
    from library import sd3_models

    base = ASSETS / MODELS[args.family][0]
    texts = theirs.strategies(args.family, theirs.tokenizer_folder(base, args.out), {})
    theirs.set_strategies(*texts)
    data = theirs.dream_booth(folder)
    accelerator = Accelerator(cpu=True)
    data.new_cache_text_encoder_outputs([Never(), Never(), Never()], accelerator)
    data.new_cache_latents(Never(), accelerator)
    constants = {"sd3": sd3_models.SDVAE.process_in, "sdxl": lambda x: x * 0.13025, "flux1": lambda x: x}[args.family]
    for info in data.image_data.values():
        name = Path(info.absolute_path).name
        subset = data.image_to_subset[info.image_key]
        assert texts[2].is_disk_cached_outputs_expected(info.text_encoder_outputs_npz)
        assert texts[3].is_disk_cached_latents_expected(info.bucket_reso, info.latents_npz, subset.flip_aug, subset.alpha_mask)
        made = [torch.from_numpy(x) for x in texts[2].load_outputs_npz(info.text_encoder_outputs_npz)]
        latents = torch.from_numpy(texts[3].load_latents_from_disk(info.latents_npz, info.bucket_reso)[0])
        if args.family == "sd3":
            width = made[1].shape[-1]
            context = torch.cat([torch.nn.functional.pad(made[0], (0, width - made[0].shape[-1])), made[1]], 0)
            yield name, context, made[2], constants(latents)
        elif args.family == "flux1":
            yield name, made[1], made[0], latents
        else:
            yield name, torch.cat(made[:2], -1), made[2], constants(latents)


def ai_toolkit(args, folder, files):
    sys.path.insert(0, str(args.trainer))
    theirs = importlib.import_module("aitoolkit")
    without(*theirs.ABSENT)
    import torch
    from toolkit.config_modules import DatasetConfig
    from toolkit.data_loader import AiToolkitDataset

    model, arch = theirs.FAMILIES[args.family]
    sd = theirs.stable_diffusion(args.family, arch, ASSETS / model, torch.float32, False)
    sd.encode_prompt = sd.encode_images = never
    config = DatasetConfig(
        folder_path=str(folder), resolution=128, cache_latents_to_disk=True, cache_text_embeddings=True, caption_ext="txt",
    )
    for item in AiToolkitDataset(config, batch_size=1, sd=sd).file_list:
        item.load_prompt_embedding()
        made = item.prompt_embeds
        yield Path(item.path).name, made.text_embeds[0], made.pooled_embeds[0], item.get_latent()


def simpletuner(args, folder, files):
    sys.path.insert(0, str(args.trainer))
    without("kernels", "opentelemetry")
    theirs = importlib.import_module("simpletuner_caches")
    import torch
    from simpletuner.helpers.caching.text_embeds import TextEmbeddingCache
    from simpletuner.helpers.caching.vae import VAECache
    from simpletuner.helpers.data_backend.local import LocalDataBackend
    from simpletuner.helpers.training.state_tracker import StateTracker

    model = theirs.model_of(args.family, ASSETS / MODELS[args.family][0], torch.float32, {})
    model._encode_prompts = never
    family = {"flux1": "flux"}.get(args.family, args.family)
    StateTracker.set_args(SimpleNamespace(model_family=family))
    StateTracker.get_webhook_handler = classmethod(lambda _: None)
    backend = LocalDataBackend(SimpleNamespace(is_main_process=True, num_processes=1), "texts")
    cache = TextEmbeddingCache(
        "texts", backend, model.text_encoders, model.tokenizers, model.accelerator, cache_dir=str(args.out / "st/text"),
        model_type=family, model=model,
    )
    cache.webhook_handler = None
    vae = VAECache.__new__(VAECache)
    vae.cache_dir, vae.instance_data_dir, vae.hash_filenames = str(args.out / "st/vae"), str(folder), True
    vae.image_data_backend, vae.cache_data_backend = SimpleNamespace(), backend
    for name, caption in files.items():
        record = [{"prompt": caption, "key": caption, "metadata": {}}]
        made = cache.compute_prompt_embeddings_with_model(record, return_concat=True, load_from_cache=True)
        latents = vae._read_from_storage(vae.generate_vae_cache_filename(str(folder / name))[0])
        yield name, made["prompt_embeds"][0], made["pooled_prompt_embeds"], latents
    cache.process_write_batches = False


def musubi(args, folder, files):
    """The latents of a picture above those of the one beside it, as `wanted` has them."""
    sys.path.insert(0, str(args.trainer / "src"))
    without("av", "bitsandbytes", "easydict", "flash_attn", "sageattention", "xformers")
    theirs = importlib.import_module("musubi")
    import torch

    data = theirs.image_dataset(folder, args.out / "controls")
    data.prepare_for_training()
    for i in range(len(data)):
        batch = data.batch_manager[i]
        bucket, at = data.batch_manager.bucket_batch_indices[i]
        item = data.batch_manager.buckets[bucket][at]
        latents = torch.cat([batch["latents"][0], batch["latents_control"][0]], -2)
        yield f"{item.item_key}.png", batch["t5_vec"][0], batch["clip_l_pooler"][0], latents


def main():
    name = sys.argv.pop(1)
    args = arguments(__doc__, list(MODELS))
    args.out.mkdir(parents=True, exist_ok=True)
    folder, experiment, files = exported(args, name)
    loader = {"kohya": kohya, "ai-toolkit": ai_toolkit, "simpletuner": simpletuner, "musubi": musubi}[name]
    seen = 0
    import torch

    for file, context, pooled, latents in loader(args, folder, files):
        want = wanted(experiment, folder, file, files[file], args.out / "want.safetensors")
        assert torch.equal(context, want[0]), f"{file}: context"
        assert torch.equal(pooled, want[1]), f"{file}: pooled"
        error = float((latents - normalized(args.family, want[2])).abs().max())
        assert error < 1e-5, f"{file}: latents {error}"
        seen += 1
    assert seen == len(files), f"{seen} of {len(files)} pictures"
    print(f"{name} {args.family}: {seen} pictures, embeddings equal, latents as the denoiser takes them; nothing encoded anew")


if __name__ == "__main__":
    main()
